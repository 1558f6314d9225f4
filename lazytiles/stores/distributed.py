"""One Zarr store written by many processes: each chunk by one of them, as often as it takes.

The process that holds the `StoreSink` (made with ``scattered=True``, which has the lock and the journal) hands out
a `BlockTarget`; anyone anywhere writes chunks with `write_block` and sends back what it returns, for
`StoreSink.place`. The store is complete when the sink is closed, and can only be closed when no chunk is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lazytiles.arrays import MultiSourceArray, result_of
from lazytiles.errors import StoreError, require
from lazytiles.stores.formats.base import Layout
from lazytiles.stores.formats.zarr import ZarrFormat
from lazytiles.stores.sink import StoreSink


@dataclass(frozen=True, slots=True)
class BlockTarget:
    """An unfinished Zarr store, small enough to send: where its chunks go and what they are."""

    path: Path
    layout: Layout
    length: int

    @classmethod
    def of(cls, sink: StoreSink, length: int) -> Self:
        """The target of a sink whose layout is fixed."""
        assert sink.layout is not None  # for mypy: begin has set it
        return cls(sink.partial.absolute(), sink.layout, length)


def write_block(target: BlockTarget, start: int, rows: NDArray[Any]) -> tuple[int, list[int]]:
    """Write whole chunks from row `start` on; what `StoreSink.place` takes. Writing them again changes nothing."""
    layout = target.layout
    stop = start + len(rows)
    whole = start % layout.chunk == 0 and (stop % layout.chunk == 0 or stop == target.length)
    if not whole or stop > target.length or rows.shape[1:] != layout.shape or rows.dtype != layout.dtype:
        raise StoreError(
            f"rows {start} to {stop} of shape {rows.shape} {rows.dtype} are no whole chunks of {layout.chunk} rows "
            f"of {layout.shape} {layout.dtype} of {target.length}"
        )
    form = ZarrFormat({})
    form.join(target.path, layout)
    return start, [crc for crc, _ in form.put(start, np.ascontiguousarray(rows))]


STEP_BYTES = 16 * 2**20


def write_on(client: Any, tiles: MultiSourceArray, sink: StoreSink, report: Callable[[int, int], object]) -> None:
    """Write all samples into the chunks of a scattered sink, on the workers of a cluster, and complete it.

    The workers of the `distributed.Client` see the same file system. Chunks that the sink, which is begun, has
    already are not written again; what is there stays for `resume` if a task fails.
    """
    try:
        layout = BlockTarget.of(sink, len(tiles)).layout
        step = layout.chunk * max(1, STEP_BYTES // max(1, layout.chunk * layout.row_bytes))
        there = sorted({*range(0, len(tiles), step)} - {start // step * step for start in sink.missing})
        sink.compare((start, tiles.take(np.arange(start, min(start + step, len(tiles))))) for start in there)
        target = BlockTarget.of(sink, len(tiles))
        starts = sorted({start // step * step for start in sink.missing})
        done = len(tiles) - sum(min(step, len(tiles) - start) for start in starts)
        blocks = tiles.to_dask(chunks=(step, *tiles.shape[1:])).to_delayed().ravel()
        delayed = importlib.import_module("dask").delayed
        writes = [delayed(write_block, pure=False)(target, start, blocks[start // step]) for start in starts]
        futures = client.compute(writes)
        first = {future.key: start for future, start in zip(futures, starts, strict=True)}
        try:
            for future in require("distributed", extra="cluster").as_completed(futures):
                samples = range(first[future.key], min(first[future.key] + step, len(tiles)))
                sink.place(*result_of(future, tiles, samples))
                future.release()
                done += len(samples)
                report(done, len(tiles))
        finally:
            client.cancel(futures)
        sink.close()
    finally:
        sink.abort()
