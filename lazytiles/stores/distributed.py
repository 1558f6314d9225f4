"""One Zarr store written by many processes: each chunk by one of them, as often as it takes.

The process that holds the `StoreSink` (made with ``scattered=True``, which has the lock and the journal) hands out
a `BlockTarget`; anyone anywhere writes chunks with `write_block` and sends back what it returns, for
`StoreSink.place`. The store is complete when the sink is closed, and can only be closed when no chunk is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import StoreError
from lazytiles.stores.formats.base import Layout
from lazytiles.stores.formats.chunked import ZarrFormat
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
    """Write whole chunks from row `start` on; writing them again changes nothing.

    Parameters
    ----------
    target : the store
    start : first row; a multiple of the chunk
    rows : shape (n, *row shape), of the store's dtype; n a multiple of the chunk, or up to the last row

    Returns
    -------
    start, and the CRC-32 of each chunk, for `StoreSink.place`

    Raises
    ------
    StoreError : rows that are no whole chunks of this store
    """
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
