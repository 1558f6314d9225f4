"""How a `MultiSourceArray` reads: several batches of tiles as one plan, or other sources one by one.

A region that cannot be opened, or a segment that cannot be decoded, fails only the batches that need it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays.form import TileForm
from lazytiles.arrays.reading import gathered
from lazytiles.arrays.region_tiles import RegionTiles
from lazytiles.arrays.view import read_box
from lazytiles.config import check_limit
from lazytiles.errors import LazyTilesError, LimitError
from lazytiles.indexing import Request, permutation

Part: TypeAlias = tuple[RegionTiles, Int64s, tuple[Int64s, ...]]


def by_source(
    sources: Sequence[Any], starts: Int64s, rows: Int64s, others: tuple[Int64s, ...]
) -> list[tuple[Any, Int64s, tuple[Int64s, ...]]]:
    """For each source that some samples lie in: the slots of the block they fill, and where they lie in it.

    Parameters
    ----------
    sources : one after the other, source k being the rows ``starts[k]:starts[k + 1]``
    rows : int64, shape (n,), the row of each slot
    others : places of each slot on the axes after the first, such as its frame
    """
    if len(sources) == 1 and len(rows):
        return [(sources[0], np.arange(len(rows)), (rows, *others))]
    number = np.searchsorted(starts, rows, side="right") - 1
    if len(number) and (number == number[0]).all():
        first = int(number[0])
        return [(sources[first], np.arange(len(rows)), (rows - starts[first], *others))]
    order = np.argsort(number, kind="stable")
    parts = []
    for slots in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        if len(slots):
            k = int(number[slots[0]])
            parts.append((sources[k], slots, (rows[slots] - starts[k], *(place[slots] for place in others))))
    return parts


def read_blocks(
    places: Sequence[Request],
    inner: tuple[int, ...],
    form: TileForm,
    parts_of: Callable[[tuple[Int64s, ...]], list[Part]],
    *,
    threads: int | None = None,
    readers: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[tuple[int, NDArray[Any] | LazyTilesError]]:
    """Read batches of whole tiles together.

    Parameters
    ----------
    places : the rows of each batch
    inner : shape of a sample, ([frames,] height, width, bands)
    form : what the tiles look like
    parts_of : which regions some rows lie in, as in `gathered`
    threads, readers, stop : as in `Gather.read`

    Yields
    ------
    (number of a batch, its new array (n, *inner) or its error), each once, as they are ready
    """
    box = places[0].box
    lengths = [place.n for place in places]
    frames = math.prod(inner[: -len(form.inner_shape)])
    shape = (max(lengths) // max(frames, 1), *inner)
    try:
        check_limit(math.prod(shape) * form.dtype.itemsize, "a batch of {}", shape)
    except LimitError as refusal:
        yield from ((number, refusal) for number in range(len(lengths)))
        return
    rows = tuple(np.concatenate(column) for column in zip(*(place.rows for place in places), strict=True))
    gather = gathered(parts_of(rows), box, None, form)
    failed = gather.failures(lengths)
    yield from failed.items()
    for number, result in gather.read(lengths, threads=threads, readers=readers, stop=stop, aside=True):
        if number not in failed:
            if not isinstance(result, LazyTilesError):
                result = result.reshape(lengths[number] // frames, *inner)
            yield number, result
        del result  # a batch that its consumer dropped is not kept alive here


def read_each(
    batches: Sequence[Int64s], take: Callable[[Int64s], NDArray[Any]], *, stop: threading.Event | None
) -> Iterator[tuple[int, NDArray[Any] | LazyTilesError]]:
    """Read batches of sources that have no segments one after the other; arguments as for `read_blocks`."""
    for number, batch in enumerate(batches):
        if stop is not None and stop.is_set():
            return
        try:
            yield number, take(batch)
        except LazyTilesError as error:
            yield number, error


def read_parts(
    parts: Sequence[tuple[Any, Int64s, tuple[Int64s, ...]]],
    asked: Request,
    dtype: np.dtype[Any],
    *,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The block of a request over sources of any kind, each asked once."""
    shape = asked.block_shape
    check_limit(math.prod(shape) * dtype.itemsize, "a read of {}", shape)
    if len(parts) == 1 and out is None and np.dtype(parts[0][0].dtype).newbyteorder("=") == dtype:
        # One source fills every slot in order: its own block is the result.
        return read_box(parts[0][0], parts[0][2][0], asked.box, asked.origins)
    block = np.empty(shape, dtype) if out is None else out.reshape(shape)
    for source, slots, (rows,) in parts:
        origins = None if asked.origins is None else asked.origins[slots]
        block[slots] = read_box(source, rows, asked.box, origins)
    return block


def positions(indices: Any) -> Int64s:
    """Positions as an int64 array of one axis, or `IndexError`."""
    given = np.asarray(indices)
    if given.size == 0 and given.ndim == 1:
        return given.astype(np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu":
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
