"""Tiles of several regions on their way into one block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Int64s
from lazytiles.arrays.form import TileForm
from lazytiles.arrays.gather import Gather
from lazytiles.config import check_limit, count
from lazytiles.errors import LazyTilesError
from lazytiles.images import is_remote
from lazytiles.indexing import Request

Parts: TypeAlias = Sequence[tuple[Any, Int64s, tuple[Int64s, ...]]]  # the first of each a `RegionTiles`


def gathered(parts: Parts, box: Box, origins: Int64s | None, form: TileForm) -> Gather:
    """Tiles of some regions on their way into blocks.

    Parameters
    ----------
    parts : for each region its tiles, the slots that they fill, and their rows (and frames) in the region
    box, origins : what is wanted of each tile, as in `Request`
    """
    where: list[tuple[Any, Int64s, Int64s]] = []

    def name(slot: int) -> str:
        for tiles, slots, rows in where:
            hit = np.flatnonzero(slots == slot)
            if len(hit):
                return str(tiles.describe(int(rows[hit[0]])))
        return "tile"

    open_ahead(tiles for tiles, _, _ in parts)
    gather = Gather(form, box, origins, name)
    for tiles, slots, places in parts:
        where.append((tiles, slots, places[0]))
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


def read_tiles(
    parts: Parts,
    asked: Request,
    form: TileForm,
    *,
    out: NDArray[Any] | None = None,
    threads: int | None = None,
    readers: int | None = None,
) -> NDArray[Any]:
    """The block of a request over the tiles of some regions; the first error met is raised."""
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
    ((_, block),) = gather.read([shape[0]], out=out, threads=threads, readers=readers)
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
