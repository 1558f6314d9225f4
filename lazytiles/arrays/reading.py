"""From the rows of a request to its block: in which source each lies, and how tiles and other sources are read.

A region that cannot be opened, or a segment that cannot be decoded, fails only the batches that need it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Int64s
from lazytiles.arrays.form import TileForm
from lazytiles.arrays.gather import Gather
from lazytiles.arrays.view import read_box
from lazytiles.config import check_limit, count
from lazytiles.errors import LazyTilesError, LimitError
from lazytiles.images import is_remote
from lazytiles.indexing import Request

# A source, such as `RegionTiles`; the slots of a block that it fills; and its rows (and frames) for them.
Part: TypeAlias = tuple[Any, Int64s, tuple[Int64s, ...]]
Parts: TypeAlias = Sequence[Part]


def by_source(sources: Sequence[Any], starts: Int64s, rows: Int64s, others: tuple[Int64s, ...]) -> Parts:
    """For each source that some samples lie in: the slots of the block they fill, and where they lie in it.

    Source k is the rows ``starts[k]:starts[k + 1]``; each slot has one of `rows`, and places on the `others` of the row
    axes, such as its frame.
    """
    if len(sources) == 1 and len(rows):
        return [(sources[0], np.arange(len(rows)), (rows, *others))]
    number = np.searchsorted(starts, rows, side="right") - 1
    if len(number) and (number == number[0]).all():
        first = int(number[0])
        return [(sources[first], np.arange(len(rows)), (rows - starts[first], *others))]
    order = np.argsort(number, kind="stable")
    parts: list[Part] = []
    for slots in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        if len(slots):
            k = int(number[slots[0]])
            parts.append((sources[k], slots, (rows[slots] - starts[k], *(place[slots] for place in others))))
    return parts


def read_tiles(
    parts: Parts, asked: Request, form: TileForm, *, out: NDArray[Any] | None = None, **how: Any
) -> NDArray[Any]:
    """The block of a request over the tiles of some regions, `how` as in `Gather.read`; the first error is raised."""
    shape = asked.block_shape
    check_limit(math.prod(shape) * form.dtype.itemsize, "a read of {}", shape)
    if all(shape):
        short = _slices(parts, asked, form, shape, out)
        if short is not None:
            return short
    gather = gathered(parts, asked.box, asked.origins, form)
    gather.raise_any()
    if not all(shape):
        return np.empty(shape, form.dtype) if out is None else out.reshape(shape)
    ((_, block),) = gather.read([shape[0]], out=out, **how)
    if isinstance(block, LazyTilesError):
        raise block
    return block.reshape(shape)


def _slices(
    parts: Parts, asked: Request, form: TileForm, shape: tuple[int, ...], out: NDArray[Any] | None
) -> NDArray[Any] | None:
    """The block by the short way of uncompressed pages, where there is nothing to plan; None: take the long one.

    The long way is also for what fails here: it says which tile it was.
    """
    if form.is_made or asked.origins is not None or asked.box[2] != (0, form.samples):
        return None
    for tiles, _, _ in parts:
        if not tiles.is_sliced:
            return None
    try:
        block = parts[0][0].sliced(asked.box[:2], parts[0][2]) if len(parts) == 1 and out is None else None
        if block is None:
            block = np.empty(shape, form.dtype) if out is None else out.reshape(shape)
            for tiles, slots, places in parts:
                tiles.slice_into(block, asked.box[:2], slots, places)
    except LazyTilesError:
        return None
    count("bytes_read", block.nbytes)
    return block


def gathered(parts: Parts, box: Box, origins: Int64s | None, form: TileForm) -> Gather:
    """Tiles of some regions on their way into blocks, of each what box and origins of a `Request` say."""

    def name(slot: int) -> str:
        for tiles, slots, places in parts:
            hit = np.flatnonzero(slots == slot)
            if len(hit):
                return str(tiles.describe(int(places[0][hit[0]])))
        return "tile"

    open_ahead(tiles for tiles, _, _ in parts)
    gather = Gather(form, box, origins, name)
    for tiles, slots, places in parts:
        tiles.add_to(gather, places[0], tiles.plane_of(places), slots)
    return gather


def open_ahead(sources: Iterable[Any]) -> None:
    """Open together the regions behind addresses among some sources; what fails says so when it is read."""
    waiting = [
        (tiles, frame)
        for tiles in sources
        if not getattr(tiles, "is_sound", True)
        for frame, opener in enumerate(tiles.regions)
        if isinstance(opener, partial) and opener.args and is_remote(str(opener.args[0]))
    ]
    if len(waiting) > 1:
        with ThreadPoolExecutor(min(32, len(waiting)), thread_name_prefix="lazytiles-open") as threads:
            for opened in [threads.submit(tiles.page, tiles.first_of(frame)) for tiles, frame in waiting]:
                with suppress(LazyTilesError):
                    opened.result()


def read_blocks(
    places: Sequence[Request],
    inner: tuple[int, ...],
    form: TileForm,
    parts_of: Callable[[tuple[Int64s, ...]], Parts],
    **how: Any,
) -> Iterator[tuple[int, NDArray[Any] | LazyTilesError]]:
    """Read batches of whole tiles, of the shape `inner`, together; `how` as in `Gather.read`.

    Yields the number of a batch and its new array (n, *inner) or its error, each once, as they are ready.
    """
    lengths = [place.n for place in places]
    frames = math.prod(inner[: -len(form.inner_shape)])
    shape = (max(lengths) // max(frames, 1), *inner)
    try:
        check_limit(math.prod(shape) * form.dtype.itemsize, "a batch of {}", shape)
    except LimitError as refusal:
        yield from ((number, refusal) for number in range(len(lengths)))
        return
    rows = tuple(np.concatenate(column) for column in zip(*(place.rows for place in places), strict=True))
    gather = gathered(parts_of(rows), places[0].box, None, form)
    failed = gather.failures(lengths)
    yield from failed.items()
    for number, result in gather.read(lengths, aside=True, **how):
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


def read_parts(parts: Parts, asked: Request, dtype: np.dtype[Any], out: NDArray[Any] | None) -> NDArray[Any]:
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
