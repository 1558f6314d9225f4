"""Patches around pixels under a mask: as a source, and as stores of one array per class."""

from __future__ import annotations

import hashlib
import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from lazytiles.cut import cut, spatial_axes
from lazytiles.errors import StoreError
from lazytiles.indexing import request
from lazytiles.journal import is_interrupted
from lazytiles.pixels import AllPixels, MaskPixels, Scatter
from lazytiles.reader import check_limit
from lazytiles.record import KINDS
from lazytiles.seeds import fresh_seed
from lazytiles.sink import StoreSink
from lazytiles.store import identity
from lazytiles.stored import StoreArray, refuse_other_rows, replaceable, tidy

Int64s: TypeAlias = NDArray[np.int64]

FORMATS = ("hdf5", "zarr", "blosc2", "npy")
ITERATED_ROWS = 64
_CLASSES = 1000


class PatchGenerator:
    """The patches around the pixels under a mask, as a lazy source: patch k is ``patches[k]``.

    The patch of pixel p has ``source[p]`` at index ``size // 2`` along every axis, for odd and even sizes: it
    is ``padded[p : p + size]`` of the source padded by ``size // 2`` before and ``(size - 1) // 2`` behind.

    Parameters
    ----------
    source : array-like with `shape`, `dtype` and slices, such as an array, a memmap, a dataset or a `Region`:
        an image (H, W), with channels (H, W, C), or a volume (D, H, W), with channels (D, H, W, C)
    patch_size : pixels along each spatial axis, (height, width) or (depth, height, width); one number means
        the same along all, which are then those of the mask, or without one those that a `Region` names, or
        all but a last axis of at most 4, which is channels
    mask : array-like of the source's spatial shape: patches around its non-zero pixels only; None for all
        pixels.  Must not change
    random : whether patches come in the random order of `seed`, else in that of the pixels, row by row
    mirrored : what lies beyond the edges: True mirrors the image, edge pixels repeated (`numpy.pad`'s
        "symmetric"), False is zero
    max_num : at most so many patches: the first ones of the order
    seed : of the order; None draws a fresh one

    Attributes
    ----------
    shape : (patches, *patch size, channels if there are any)
    dtype : the source's, native byte order
    seed : of the order, None if it is not random

    Raises
    ------
    ValueError : sizes that fit neither source nor mask

    Notes
    -----
    Takes no memory per patch: the pixels are counted once, block by block, and the order is computed where it
    is asked for.  A batch reads neighbouring patches together.  Any number of threads may read at once;
    pickles with its source.

    >>> patches = PatchGenerator(np.arange(12).reshape(3, 4), 3, mirrored=False)
    >>> patches
    <PatchGenerator of 12 patches 3 x 3 int64 from (3, 4), zeros beyond the edges>
    >>> patches[0].tolist()
    [[0, 0, 0], [0, 0, 1], [0, 4, 5]]
    """

    def __init__(
        self,
        source: Any,
        patch_size: int | Sequence[int],
        mask: Any = None,
        random: bool = False,
        mirrored: bool = True,
        max_num: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.source = source
        self.patch_size = _sizes(source, patch_size, mask)
        spatial = tuple(source.shape[: len(self.patch_size)])
        self.mirrored = mirrored
        self._pixels = AllPixels(spatial) if mask is None else MaskPixels(mask)
        count = len(self._pixels)
        if max_num is not None and operator.index(max_num) < 0:
            raise ValueError(f"max_num must be at least 0 patches, not {max_num}")
        if count and 0 in source.shape:
            raise ValueError(f"a source of shape {tuple(source.shape)} has no pixels")
        self.seed = None if not random else fresh_seed() if seed is None else operator.index(seed)
        self._scatter = None if self.seed is None else Scatter(count, self.seed)
        taken = count if max_num is None else min(max_num, count)
        self.shape: tuple[int, ...] = (taken, *self.patch_size, *source.shape[len(self.patch_size) :])
        self.dtype = np.dtype(source.dtype).newbyteorder("=")

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(math.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all patches."""
        return int(self.size * self.dtype.itemsize)

    def __len__(self) -> int:
        return int(self.shape[0])

    def centers(self, indices: Any = None) -> Int64s:
        """The pixels of the source that patches lie around.

        Parameters
        ----------
        indices : ints, shape (n,), each in ``range(len(self))``; None for all

        Returns
        -------
        int64 array, shape (n, spatial axes)

        >>> PatchGenerator(np.zeros((3, 3)), 3, mask=np.eye(3)).centers([2, 0]).tolist()
        [[2, 2], [0, 0]]
        """
        numbers = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        return self._pixels.at(numbers if self._scatter is None else self._scatter(numbers))

    def take(self, indices: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The patches of these indices, in their order, as one array.

        Parameters
        ----------
        indices : ints, shape (n,); negative ones count from the end
        out : array of the result's shape and dtype to write into

        Raises
        ------
        IndexError : an index beyond the patches
        LimitError : more bytes than `max_window_bytes`
        """
        numbers = np.asarray(indices, dtype=np.int64)
        if len(numbers) and not (-len(self) <= numbers.min() and numbers.max() < len(self)):
            raise IndexError(f"indices {numbers.min()} to {numbers.max()} asked for of {len(self)} patches")
        shape = (len(numbers), *self.shape[1:])
        if out is None:
            nbytes = math.prod(shape) * self.dtype.itemsize
            check_limit(nbytes, "a batch of {} patches of {}", shape[0], shape[1:])
            out = np.empty(shape, self.dtype)
        if len(numbers):
            cut(self.source, self.centers(numbers % len(self)), self.patch_size, self.mirrored, out)
        return out

    def read_box(self, rows: Int64s, box: tuple[tuple[int, int], ...], origins: Int64s | None) -> NDArray[Any]:
        """Patches cut by a box, which moves by the `origins` of each if there are any."""
        patches = self.take(rows)
        if origins is None:
            cut: tuple[Any, ...] = (slice(None), *(slice(start, stop) for start, stop in box))
            part: NDArray[Any] = patches[cut]
            return part
        out = np.empty((len(rows), *(stop - start for start, stop in box)), self.dtype)
        for k, origin in enumerate(origins.tolist()):
            moved: tuple[Any, ...] = tuple(slice(a + o, b + o) for (a, b), o in zip(box, origin, strict=True))
            out[k] = patches[k][moved]
        return out

    def __getitem__(self, key: Any) -> Any:
        asked = request(key, self.shape, row_axes=1)
        return asked.finish(self.read_box(asked.rows[0], asked.box, asked.origins))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for start in range(0, len(self), ITERATED_ROWS):
            yield from self.take(np.arange(start, min(start + ITERATED_ROWS, len(self))))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("patches are always read into a new array; copy=False cannot be kept")
        whole: NDArray[Any] = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __repr__(self) -> str:
        edge = "mirrored" if self.mirrored else "zeros"
        order = "" if self.seed is None else f", in the order of seed {self.seed}"
        size = " x ".join(map(str, self.shape[1:]))
        return (
            f"<PatchGenerator of {len(self)} patches {size} {self.dtype} from {tuple(self.source.shape)}, "
            f"{edge} beyond the edges{order}>"
        )

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


def _sizes(source: Any, patch_size: Any, mask: Any) -> tuple[int, ...]:
    shape = tuple(source.shape)
    if np.ndim(patch_size):
        sizes = tuple(operator.index(size) for size in patch_size)
    else:
        sizes = (operator.index(patch_size),) * (spatial_axes(source) if mask is None else len(mask.shape))
    if not (2 <= len(sizes) <= len(shape)) or min(sizes) < 1:
        raise ValueError(
            f"patch_size={patch_size!r} does not fit a source of shape {shape}: give pixels, at least 1, or "
            "one number for each spatial axis, (height, width) or (depth, height, width)"
        )
    if mask is not None and tuple(mask.shape) != shape[: len(sizes)]:
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} does not fit patches {sizes} of a source of shape {shape}: "
            f"it must have the source's spatial shape {shape[: len(sizes)]}"
        )
    return sizes


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
    names = {f"class_{value}" for value in values}
    if len(names) < len(values) or any(os.sep in name for name in names):
        raise ValueError(f"class_list={values!r} must name each class once, by a plain value")
    return {value: _OneClass(mask, value) for value in values}


def _refuse_absent(mask: Any, generators: Mapping[Any, PatchGenerator]) -> None:
    """Refuse classes that no pixel has."""
    lost = [value for value, patches in generators.items() if not len(patches._pixels)]
    if lost and mask is not None:
        found = _values_in(mask)
        more = f" and {len(found) - 50} more" if len(found) > 50 else ""
        raise ValueError(
            f"class_list={list(generators)!r}: no pixel of the mask is {', '.join(map(repr, lost))}; it holds "
            f"{', '.join(map(repr, found[:50]))}{more}"
        )


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
    seed: int = 0,
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
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not one of {', '.join(FORMATS)}")
    generators = {
        value: PatchGenerator(volume, patch_size, only, random, mirrored, max_num, seed)
        for value, only in _masks(mask, class_list).items()
    }
    _refuse_absent(mask, generators)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = KINDS[format].suffixes[0]
    stores = {value: folder / f"class_{value}{suffix}" for value in generators}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) if progress else nullcontext() as bar:
        for value, patches in generators.items():
            store, fingerprint = stores[value], _fingerprint(patches, value)
            if resume and not overwrite and (os.path.exists(store) or is_interrupted(store)):
                _compare(store, patches, batch_size)
                continue
            facts: dict[str, Any] = {
                "fingerprint": fingerprint,
                "about": {"fingerprint": fingerprint},
                "length": len(patches),
            }
            with StoreSink(
                store, KINDS[format], options, chunk=batch_size, overwrite=overwrite, resume=resume, **facts
            ) as sink:
                _fill(sink, patches, batch_size, bar)
    return stores


def _fingerprint(patches: PatchGenerator, value: Any) -> str:
    """What a store of patches is of: how they are cut, around which class, and of what."""
    facts = (patches.shape, patches.dtype.str, patches.mirrored, patches.seed, str(value), identity(patches.source))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _batches(patches: PatchGenerator, first: int, last: int, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    for start in range(first, last, size):
        yield start, patches.take(np.arange(start, min(start + size, last)))


def _compare(path: Path, patches: PatchGenerator, batch_size: int) -> None:
    """Refuse a complete store that is damaged or has other patches."""
    try:
        store = StoreArray(path)
    except StoreError as error:
        raise replaceable(path, error) from error
    with closing(store):
        if store.shape != patches.shape or store.dtype != patches.dtype:
            raise replaceable(path, f"its {store.shape} {store.dtype} would be {patches.shape} {patches.dtype} now")
        refuse_other_rows(store, _batches(patches, 0, len(patches), batch_size))
        tidy(store)


def _fill(sink: StoreSink, patches: PatchGenerator, batch_size: int, bar: Progress | None) -> None:
    if sink.layout is None:
        sink.begin(patches.shape[1:], patches.dtype)
    if sink.rows:
        sink.compare(_batches(patches, 0, sink.rows, batch_size))
    task = None if bar is None else bar.add_task(sink.path.stem, total=len(patches), completed=sink.rows)
    for _, rows in _batches(patches, sink.rows, len(patches), batch_size):
        sink.append(rows)
        if bar is not None and task is not None:
            bar.advance(task, len(rows))
    sink.close()
