"""What many sources must agree in, and what stands beside their samples: labels, table, choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.order import permutation

Int64s: TypeAlias = NDArray[np.int64]


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


def labels_of(labels: Any, lengths: Int64s, total: int) -> Any:
    """Labels by sample: an array, or the lazy source that was given."""
    if labels is None:
        return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    if not isinstance(labels, np.ndarray) and hasattr(labels, "shape") and hasattr(labels, "dtype"):
        if isinstance(labels, pd.Series | pd.Index):
            labels = labels.to_numpy()
        elif labels.shape[0] != total:  # a zarr.Array has no len()
            raise ValueError(f"the labels are {labels.shape[0]} samples, the sources hold {total}")
        else:
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
    if maxlen < 1:
        raise ValueError(f"maxlen must be at least 1, not {maxlen}")
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
