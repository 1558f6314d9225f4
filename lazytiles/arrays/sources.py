"""What an array of many sources is given: the sources and how they agree, and positions among their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lazytiles.aliases import Int64s
from lazytiles.indexing import permutation


def positions(indices: Any) -> Int64s:
    """Positions as an int64 array of one axis, or `IndexError`."""
    given = np.asarray(indices)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise IndexError(f"positions are integers of shape (n,), not {given.dtype} of shape {given.shape}")
    return given.astype(np.int64)


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
                "of a list make an array by np.asarray, of a path a region by open_region"
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
    """Where the samples of some (source, index) pairs stand among the samples that an array holds, refused for others.

    The samples held, `rows`, are numbered through all sources, of which `starts` has the first ones, and the total.
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
