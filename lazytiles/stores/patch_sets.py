"""`create_dataset`: patches around pixels, one store of them for each class of a mask."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID

from lazytiles.arrays import PatchGenerator
from lazytiles.indexing import Seed, seed_of
from lazytiles.stores.companions import StoredCompanions
from lazytiles.stores.formats import FORMATS
from lazytiles.stores.saving import Job, OnProgress, identity

_CLASSES = 1000


class _OneClass:
    """A mask of classes as the mask of one of them, compared where it is read."""

    def __init__(self, mask: Any, value: Any) -> None:
        self.shape = tuple(mask.shape)
        self._mask = mask
        self._value = value

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self._mask[key]) == self._value


def _values_in(mask: Any, limit: int | None = None) -> list[Any]:
    """The values of a mask of classes, rising, read slice by slice; NaN, which equals nothing, is left out."""
    found: set[Any] = set()
    for k in range(mask.shape[0]):
        found.update(value for value in np.unique(np.asarray(mask[k])).tolist() if value == value)
        if limit is not None and len(found) > limit:
            raise ValueError(
                f"the mask holds more than {limit} values, as images do; name the classes that are wanted in class_list"
            )
    return sorted(found)


def _masks(mask: Any, class_list: Sequence[Any] | None) -> dict[Any, Any]:
    """The mask of each class, None for all pixels."""
    if mask is None:
        if class_list is not None:
            raise ValueError(f"class_list={list(class_list)!r} names values of a mask, but there is no mask")
        return {"all": None}
    values = _values_in(mask, _CLASSES) if class_list is None else list(class_list)
    if class_list is not None and not values:
        raise ValueError(
            "class_list names no class; name the values of the mask to write, or pass None for all of them"
        )
    names = {f"class_{value}" for value in values}
    if len(names) < len(values) or any(os.sep in name for name in names):
        raise ValueError(f"class_list={values!r} must name each class once, by a plain value")
    return {value: _OneClass(mask, value) for value in values}


def create_dataset(
    path: str | os.PathLike[str],
    patch_size: int | Sequence[int],
    volume: Any,
    mask: Any = None,
    class_list: Sequence[Any] | None = None,
    *,
    format: str = "hdf5",  # noqa: A002
    random: bool = True,
    mirrored: bool = True,
    max_num: int | None = None,
    seed: Seed = 0,
    batch_size: int = 32,
    progress: bool = True,
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> dict[Any, Path]:
    """Write the patches around the pixels of each class to a store of their own, all in one folder.

    Parameters
    ----------
    path : the folder; made if it is not there.  Its stores are named ``class_<value>``
    patch_size, volume, random, mirrored, seed : as `source` and the others of `PatchGenerator`
    mask : array-like of the volume's spatial shape, with a class in every pixel; None for all pixels, which are
        then the one class "all"
    class_list : the values of the mask to write patches of; None for all that are found in it
    format : "hdf5", "zarr", "blosc2" or "npy"
    max_num : at most so many patches of each class
    batch_size : patches of one chunk, and of one read
    progress : whether a bar is shown on standard error
    overwrite : replace stores that are there
    resume : go on where a killed call of the same arguments stopped: classes that are complete stay as they are
    options : for the format's library, as the writers take them

    Returns
    -------
    the store of each class, in the order of `class_list` or rising; `open_store` and the format's library open them

    Raises
    ------
    ValueError : an unknown format, classes named twice or not in the mask, sizes that do not fit
    StoreError : a store exists, is locked, or cannot be written

    >>> import tempfile
    >>> classes = np.array([[0, 1, 1], [2, 0, 1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stores = create_dataset(folder, 3, np.ones((2, 3)), classes, [1, 2], format="npy", progress=False)
    ...     {value: np.load(store).shape for value, store in stores.items()}
    {1: (3, 3, 3), 2: (1, 3, 3)}
    """
    known = [name for name, form in FORMATS.items() if not form.takes_labels]
    if format not in known:
        raise ValueError(f"format={format!r} is not one of {', '.join(known)}")
    seed = seed_of(seed)
    generators = {
        value: PatchGenerator(volume, patch_size, only, random, mirrored, max_num, seed)
        for value, only in _masks(mask, class_list).items()
    }
    lost = [value for value, patches in generators.items() if not len(patches) and max_num != 0]
    if lost and mask is not None:
        found = _values_in(mask)
        more = f" and {len(found) - 50} more" if len(found) > 50 else ""
        raise ValueError(
            f"class_list={list(generators)!r}: no pixel of the mask is {', '.join(map(repr, lost))}; it holds "
            f"{', '.join(map(repr, found[:50]))}{more}"
        )
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = FORMATS[format].suffixes[0]
    stores = {value: folder / f"class_{value}{suffix}" for value in generators}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) if progress else nullcontext() as bar:
        for value, patches in generators.items():
            facts = (patches.shape, patches.dtype.str, patches.mirrored, patches.seed, str(value))
            state = hashlib.sha256(repr((*facts, identity(patches.source))).encode())
            report: bool | OnProgress = False
            if bar is not None:
                report = partial(_advance, bar, bar.add_task(stores[value].stem, total=len(patches)))
            job = Job(patches, state, StoredCompanions(), None, overwrite, resume, False, options, read_bytes=0)
            job.write(stores[value], batch_size, report)
    return stores


def _advance(bar: Progress, task: TaskID, done: int, _: int) -> None:
    bar.update(task, completed=done)
