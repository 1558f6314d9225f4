"""`Companions`: what stands beside the samples of an array: labels and their classes, table, frames that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays.kept import KeptValid
from lazytiles.arrays.view import DelayedView, held
from lazytiles.augment import Boxes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Companions:
    """What stands beside the samples of an array, row by row as they stood before the array was ordered."""

    labels: Any = None  # array, one row a sample; or a lazy array in step with the samples, such as mask tiles
    classes: list[Any] | None = None  # the names of the classes, of which the labels are the numbers
    boxes: Boxes | None = None  # which columns of the labels are boxes, where some are
    table: pd.DataFrame | None = None  # the manifest's columns, one row a sample
    tabular: tuple[str, ...] | None = None  # columns of the table that are given to a model beside the image
    valid: NDArray[np.bool_] | None = None  # which frames of which samples are there, (n, frames); None: all must be
    # The regions that written samples came from; int64 (n, 3), of each sample its region, its place there and here.
    places: tuple[tuple[Any, ...], Int64s] | None = None
    note: str = ""  # why there are no labels
    by_source: bool = False  # whether the labels are the numbers of the sources, because nobody gave others
    kept: KeptValid | None = None  # which values are valid, of samples that were written, whose images are elsewhere

    @classmethod
    def of(cls, sources: Sequence[Any], labels: Any, classes: Any, table: pd.DataFrame | None) -> Companions:
        """What a user gives for the samples of some sources; without labels and classes, what the sources bring."""
        lengths = np.array([source.shape[0] for source in sources], np.int64)
        total = int(lengths.sum())
        if table is not None and len(table) != total:
            raise ValueError(f"the table has {len(table)} rows, the sources hold {total} samples")
        table = None if table is None else table.copy()
        own = _brought(sources) if labels is None and classes is None else None
        # A source that does not say which frames are there has all.
        parts = [s.valid if isinstance(s, DelayedView) or hasattr(s, "companions") else None for s in sources]
        frames, valid = next((part.shape[1:] for part in parts if part is not None), None), None
        if frames is not None:
            every = (np.ones((n, *frames), np.bool_) for n in lengths.tolist())
            valid = np.concatenate([e if part is None else part for e, part in zip(every, parts, strict=True)])
        if own is not None:
            labels, first = own
            table = joined_tables([source.table for source in sources]) if table is None else table
            return cls(labels, first.classes, first.boxes, table, first.tabular, valid)
        found, names = labels_of(labels, lengths, total, classes)
        return cls(found, names, table=table, valid=valid, by_source=labels is None)

    def at(self, rows: Int64s) -> Companions:
        """Of some rows; lazy labels select for themselves."""
        labels, places = self.labels, self.places
        if labels is not None:
            labels = labels[rows] if isinstance(labels, np.ndarray) else labels.select(rows)
        if places is not None:
            places = places[0], np.column_stack([places[1][rows, :2], np.arange(len(rows))])
        return replace(
            self,
            labels=labels,
            table=None if self.table is None else self.table.iloc[rows],
            valid=None if self.valid is None else self.valid[rows],
            places=places,
            kept=None if self.kept is None else self.kept.at(rows),
        )


def _brought(sources: Sequence[Any]) -> tuple[Any, Companions] | None:
    """The labels that labelled sources bring, and what stands beside the first; None where none does."""
    arrays = [source for source in sources if hasattr(source, "companions")]
    if all(source.companions.labels is None for source in arrays):
        return None
    first = arrays[0]
    if len(arrays) < len(sources) or len({type(source.companions.labels) for source in arrays}) > 1:
        if all(source.companions.by_source or source.companions.labels is None for source in arrays):
            return None
        raise ValueError("some sources have labels, or mask tiles, and others have none: pass labels=")
    for name in ("classes", "boxes", "tabular"):
        wanted = getattr(first.companions, name)
        for k, source in enumerate(arrays):
            if (own := getattr(source.companions, name)) != wanted:
                raise ValueError(
                    f"the {name} of source {k}, {own}, are not those of source 0, {wanted}; open both in the same "
                    "way, or pass labels="
                )
    labels = [source.labels for source in arrays]
    if len({part.shape[1:] for part in labels}) > 1:
        raise ValueError(f"the sources have labels of different shapes: {[part.shape for part in labels]}")
    if isinstance(labels[0], np.ndarray):
        return np.concatenate(labels), first.companions
    return (labels[0] if len(labels) == 1 else type(labels[0])(labels)), first.companions


def joint_places(sources: Sequence[Any]) -> tuple[tuple[Any, ...], Int64s]:
    """The regions that arrays of tiles lie in, one that several have once; of each sample its region and place there.

    The numbers are int64, shape (n, 2), the sources one after the other: such as both sides of a split.
    """
    known: dict[int, tuple[int, Any]] = {}
    parts = []
    for source in sources:
        regions, places = source.places
        numbers = [known.setdefault(id(region), (len(known), region))[0] for region in regions]
        parts.append(np.column_stack([np.array(numbers, np.int64)[places[:, 0]], places[:, 1]]))
    return tuple(region for _, region in known.values()), np.concatenate(parts)


def labels_of(labels: Any, lengths: Int64s, total: int, classes: Any = None) -> tuple[Any, list[Any] | None]:
    """Labels by sample, an array or the lazy source that was given; and the classes whose numbers they are, or None.

    `labels` and `classes` are as `MultiSourceArray` takes them; `lengths` and `total` count the samples of each source
    and of all.
    """
    names = check_classes(classes)
    if labels is None and names is not None:
        if len(names) != len(lengths):
            raise ValueError(
                f"{len(names)} classes for {len(lengths)} sources; pass labels=, or a class for each source"
            )
        return _by_sample(None, lengths, total), names
    if isinstance(getattr(labels, "dtype", None), pd.CategoricalDtype):
        categories = pd.Series(labels).cat.categories
        names = categories.to_list() if names is None and not is_numeric(categories.to_series()) else names
        labels = np.asarray(labels)
    given = _by_sample(labels, lengths, total)
    is_names = isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "UTO"
    if is_names and given.dtype.kind == "O":
        is_names = len(given) > 0 and all(isinstance(value, str) for value in given)
    if names is None and not is_names:
        return given, None
    if not isinstance(given, np.ndarray) or given.ndim > 1:
        raise ValueError("classes are for labels of one value a sample, not for masks or rows of values")
    found, distinct = pd.factorize(given)
    texts = [class_name(value) for value in distinct]
    names = names or sorted(texts)
    index = {class_name(value): k for k, value in enumerate(names)}
    unknown = [text for text in texts if text not in index]
    if unknown or (found < 0).any():
        first = int(np.flatnonzero(found == (texts.index(unknown[0]) if unknown else -1))[0])
        label = class_name(given[first])
        raise ValueError(f"sample {first} has the label {label!r}, which is none of the classes {names[:10]}")
    return np.array([index[text] for text in texts], np.int64)[found], names


def _by_sample(labels: Any, lengths: Int64s, total: int) -> Any:
    if labels is None:
        return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    if hasattr(labels, "shape"):
        labels = held(labels)
        if not isinstance(labels, np.ndarray):
            if labels.shape[0] != total:  # a zarr.Array has no len()
                raise ValueError(f"the labels are {labels.shape[0]} samples, the sources hold {total}")
            return labels
    if isinstance(labels, np.ndarray):
        if len(labels) == total and (labels.ndim > 1 or total != len(lengths) or (lengths == 1).all()):
            return labels.copy()
        labels = list(labels)
    if len(labels) != len(lengths):
        raise ValueError(
            f"{len(labels)} labels for {len(lengths)} sources of {total} samples: pass one per source, one array "
            "per source, or one per sample"
        )
    parts = [np.asarray(label) for label in labels]
    for k, (part, length) in enumerate(zip(parts, lengths.tolist(), strict=True)):
        if part.ndim and len(part) != length:
            raise ValueError(f"source {k} has {length} samples and {len(part)} labels")
    spread = [part if part.ndim else np.repeat(part, n) for part, n in zip(parts, lengths.tolist(), strict=True)]
    return np.concatenate(spread)


def joined_tables(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    """The rows of several tables one after the other, the columns that all have; None where one is missing."""
    given = [table for table in tables if table is not None]
    if len(given) < len(tables):
        return None
    data: dict[Any, Any] = {}
    for name in (name for name in given[0].columns if all(name in table for table in given)):
        parts = [table[name] for table in given]
        if all(isinstance(part.dtype, pd.CategoricalDtype) for part in parts):
            data[name] = pd.api.types.union_categoricals(parts, ignore_order=True)
        else:
            data[name] = pd.concat(parts, ignore_index=True)
    return pd.DataFrame(data)


def class_name(value: object) -> str:
    """A value of a target column as the text that classes are compared by; whole numbers without a point.

    >>> class_name("cat"), class_name(3.0), class_name(True)
    ('cat', '3', 'True')
    """
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def check_classes(classes: Sequence[Any] | None) -> list[Any] | None:
    """The classes that a user names, as a list; a ValueError where they are no list, or not different."""
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Sequence | np.ndarray | pd.Index | pd.Series):
        raise ValueError(f"classes are a list of names, such as ['cat', 'dog'], not {classes!r}")
    given = [value.item() if isinstance(value, np.generic) else value for value in classes]
    names = [class_name(value) for value in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ValueError(f"classes={given}: " + (f"{twice[0]!r} is there twice" if twice else "no class is named"))
    return given


def is_numeric(column: pd.Series) -> bool:
    """Whether a column is of numbers by its type; booleans are none."""
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
