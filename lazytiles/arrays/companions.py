"""What many sources must agree in, and what stands beside their samples: labels, table, choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays.classes import check_classes, class_name, is_numeric
from lazytiles.arrays.view import held
from lazytiles.indexing import permutation


def listed(sources: Any) -> tuple[Any, ...]:
    """The given sources; one array in place of a list of them is refused: it would be a source a sample."""
    if hasattr(sources, "shape") and hasattr(sources, "dtype"):
        raise ValueError(
            f"sources is one array of shape {tuple(sources.shape)}, which would make each of its samples a source; "
            "pass a list of arrays: [array]"
        )
    if isinstance(sources, str | bytes | Mapping | pd.DataFrame):
        raise ValueError(f"sources is a list of arrays, not one {type(sources).__name__}")
    found = tuple(sources)
    if not found:
        raise ValueError("an array of many sources needs at least one source")
    return found


def agreement(sources: Sequence[Any], dtype: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The sample shape and dtype that all sources share."""
    first = sources[0]
    for k, source in enumerate(sources):
        if not getattr(source, "shape", ()) or not hasattr(source, "dtype"):
            raise ValueError(
                f"source {k} ({type(source).__name__}) has no samples: it needs a shape (n, …) and a dtype; "
                "of a list make an array by np.asarray"
            )
    wanted = np.dtype(first.dtype if dtype is None else dtype).newbyteorder("=")
    for k, source in enumerate(sources):
        if tuple(source.shape[1:]) != tuple(first.shape[1:]):
            raise ValueError(
                f"source {k} has samples of shape {tuple(source.shape[1:])}, source 0 of {tuple(first.shape[1:])}"
            )
        own = np.dtype(source.dtype).newbyteorder("=")
        if dtype is None and own != wanted:
            raise ValueError(f"source {k} is {own}, source 0 is {wanted}; pass dtype= to cast them all")
    return tuple(first.shape[1:]), wanted


def labels_of(labels: Any, lengths: Int64s, total: int, classes: Any = None) -> tuple[Any, list[Any] | None]:
    """Labels by sample, an array or the lazy source that was given; and the classes whose numbers they are.

    Parameters
    ----------
    labels : as `MultiSourceArray` takes them; text becomes class numbers
    lengths, total : samples of each source, and of all
    classes : the classes in the order of their numbers; by default the names sorted, or a categorical's own order
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
    is_names = isinstance(given, np.ndarray) and given.ndim == 1 and _is_text(given)
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


def _is_text(labels: NDArray[Any]) -> bool:
    if labels.dtype.kind == "O":
        return len(labels) > 0 and all(isinstance(value, str) for value in labels)
    return labels.dtype.kind in "UT"


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


def chosen(labels: Any, positions: Int64s) -> Any:
    """The labels of some samples; lazy ones select for themselves."""
    if labels is None:
        return None
    return labels[positions] if isinstance(labels, np.ndarray) else labels.select(positions)


def table_of(table: pd.DataFrame | None, total: int) -> pd.DataFrame | None:
    """A copy of the table, if it has a row for each sample."""
    if table is not None and len(table) != total:
        raise ValueError(f"the table has {len(table)} rows, the sources hold {total} samples")
    return None if table is None else table.copy()


def limited(lengths: Int64s, maxlen: int, seed: int | None) -> Int64s:
    """At most `maxlen` positions of each source: the first, or by a seed a random choice in rising order."""
    if isinstance(maxlen, bool) or not isinstance(maxlen, int | np.integer) or maxlen < 1:
        raise ValueError(f"maxlen must be a number of at least 1, not {maxlen!r}")
    starts = np.cumsum(lengths) - lengths
    kept = []
    for k, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        inside = np.arange(length, dtype=np.int64)
        if seed is not None and length > maxlen:
            inside = np.sort(permutation(length, seed, epoch=k)[:maxlen])
        kept.append(start + inside[:maxlen])
    return np.concatenate(kept)


def positions_of(pairs: Any, rows: Int64s, starts: Int64s) -> Int64s:
    """Where the samples of some (source, index) pairs stand among the samples that an array holds.

    Parameters
    ----------
    pairs : integers, shape (n, 2)
    rows : int64, shape (n,), the samples held, numbered through all sources
    starts : int64, the number of the first sample of each source, and the total

    Raises
    ------
    ValueError : another shape, or a pair that names what the array does not hold
    """
    given = np.asarray(pairs)
    if given.shape != (len(rows), 2) or given.dtype.kind not in "iu":
        raise ValueError(f"index pairs of {len(rows)} samples are integers of shape ({len(rows)}, 2)")
    if not len(rows):
        return np.empty(0, np.int64)
    source, index = given.astype(np.int64).T
    lengths = np.diff(starts)
    if source.min() < 0 or source.max() >= len(lengths):
        raise ValueError(f"index pairs name sources outside 0 to {len(lengths) - 1}")
    if (index < 0).any() or (index >= lengths[source]).any():
        raise ValueError("index pairs name samples outside their source")
    wanted = starts[source] + index
    found = np.empty(len(rows), np.int64)
    found[np.argsort(wanted, kind="stable")] = np.argsort(rows, kind="stable")
    if (rows[found] != wanted).any():
        raise ValueError("index pairs name samples that this array does not hold, or not so often")
    return found
