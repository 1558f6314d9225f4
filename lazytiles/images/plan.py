"""What a batch of windows will read: pure arithmetic on small arrays, no bytes.

A *job* is a run of neighbouring segments of one column that is read and decoded together (one
segment where they are large); a *piece* is the part of a job that goes to one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.images.page import Page


class Targets(Protocol):
    """Where the pixels of each window go: an array (height, width, bands) by the window's number."""

    def __getitem__(self, window: int, /) -> NDArray[Any]:
        """The array of a window; the same, or one over the same memory, each time."""


# Decoded bytes up to which neighbouring strips are one job: large ones spare the interpreter, but a small read is
# divided more finely, so that every thread has some of it.
RUN_BYTES = (2**16, 2**18)
_JOBS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Rectangles of pages, in the order in which they are wanted."""

    pages: Sequence[Page]  # that they lie on
    page: Int64s  # shape (n,), index into `pages` of each window
    boxes: Int64s  # shape (n, 4), (y0, x0, y1, x1), pixels, half-open, inside the page
    bands: tuple[int, ...] | None = None  # which samples are wanted, in this order; None for all

    def __len__(self) -> int:
        return len(self.page)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Plan:
    """Which segments are read for some windows, and where each part of them goes.

    Attributes
    ----------
    windows : what was asked for
    batch : int64, shape (n,), the batch of each window, from 0
    raw : int64, the windows on uncompressed pages, which are sliced, not decoded
    empty : int64, the windows without a pixel
    raw_bytes : bytes of the windows in `raw`
    jobs : int64, shape (j, 5): page, first segment, segments, row, column
    starts : int64, shape (j + 1,): job k has the pieces ``starts[k]:starts[k + 1]``
    pieces : int64, shape (p, 8): window, then rows and columns in the job's block (y0, y1, x0, x1), the place
        in the window (y, x), and for a plane the band that it fills, plus one (0: whole pixels)
    ranges : int64, shape (j, 3): first byte, bytes, whether the run's segments lie side by side
    segments : number of segments to decode
    bytes_read : bytes taken from files
    bytes_decoded : bytes decoded from them
    bytes_delivered : bytes asked for
    """

    windows: Windows
    batch: Int64s
    raw: Int64s
    empty: Int64s
    raw_bytes: int
    jobs: Int64s
    starts: Int64s
    pieces: Int64s
    ranges: Int64s
    segments: int
    bytes_read: int
    bytes_decoded: int
    bytes_delivered: int

    def __repr__(self) -> str:
        ratio = self.bytes_decoded / self.bytes_delivered if self.bytes_delivered else 0.0
        return (
            f"<Plan: {len(self.windows)} windows of {len(self.windows.pages)} pages; {self.segments} segments in "
            f"{len(self.jobs)} jobs; {self.bytes_read:,} bytes read, {self.bytes_decoded:,} decoded, "
            f"{self.bytes_delivered:,} delivered ({ratio:.1f} times as much decoded as delivered)>"
        )


def planned(windows: Windows, batch: Int64s | None = None) -> Plan:
    """Which segments some windows need, each once, and where each part of them goes.

    Jobs are ordered by the first batch that needs them, where the batch of each window is told.
    """
    pages = windows.pages
    geometry = np.array([page.geometry for page in pages], dtype=np.int64).reshape(len(pages), 8).T.copy()
    on = geometry[:, windows.page]
    boxes = windows.boxes.T
    sizes = np.maximum(boxes[2] - boxes[0], 0) * np.maximum(boxes[3] - boxes[1], 0)
    wanted = on[SAMPLES] if windows.bands is None else len(windows.bands)
    nbytes = sizes * wanted * on[ITEMSIZE]
    delivered = int(nbytes.sum())
    is_raw = (on[RAW] == 1) & (sizes > 0)
    raw, empty = np.flatnonzero(is_raw), np.flatnonzero(sizes == 0)
    raw_bytes = int(nbytes[raw].sum())
    chosen = np.flatnonzero(~is_raw & (sizes > 0))
    every = np.zeros(len(windows), np.int64) if batch is None else batch
    head = windows, every, raw, empty, raw_bytes
    if not len(chosen):
        none = np.empty((0, 8), np.int64)
        return Plan(*head, none[:, :5], np.zeros(1, np.int64), none, none[:, :3], 0, raw_bytes, 0, delivered)
    jobs, starts, pieces, ranges, segments, read, decoded = _grouped(windows, geometry, _touched(windows, on, chosen))
    if batch is not None:
        order = np.argsort(np.minimum.reduceat(batch[pieces[:, 0]], starts[:-1]), kind="stable")
        lengths = np.diff(starts)[order]
        begins, starts = starts[order], np.concatenate([[0], np.cumsum(lengths)])
        pieces = pieces[np.repeat(begins - starts[:-1], lengths) + np.arange(starts[-1])]
        jobs, ranges = jobs[order], ranges[order]
    return Plan(*head, jobs, starts, pieces, ranges, segments, read + raw_bytes, decoded, delivered)


# The lines of a table of `Page.geometry`, which has a column for each page.
HEIGHT, WIDTH, ROWS, COLUMNS, PLANES, RAW, SAMPLES, ITEMSIZE = range(8)


def _table(*columns: Int64s | int) -> Int64s:
    """Columns of numbers as one array."""
    table = np.empty((len(columns[0]), len(columns)), dtype=np.int64)  # type: ignore[arg-type]  # the first is an array
    for k, column in enumerate(columns):
        table[:, k] = column
    return table


def _touched(windows: Windows, on: Int64s, chosen: Int64s) -> tuple[Int64s, ...]:
    """The segments under some windows, each time that one is touched; `on` is the geometry of the page of every window.

    Of each: the window (rising), its page, plane, row and column, and the band that the plane fills, plus one (0: whole
    pixels).
    """
    y0, x0, y1, x1 = windows.boxes[chosen].T
    height, width, planes = on[HEIGHT, chosen], on[WIDTH, chosen], on[PLANES, chosen]
    row, column = y0 // height, x0 // width
    rows, columns = (y1 - 1) // height - row + 1, (x1 - 1) // width - column + 1
    bands = None if windows.bands is None else np.array(windows.bands, dtype=np.int64)
    depth = np.where(planes > 1, planes if bands is None else len(bands), 1)
    times = rows * columns * depth
    of = np.repeat(np.arange(len(chosen)), times)
    step = np.arange(len(of)) - np.repeat(np.cumsum(times) - times, times)
    plane = band = np.zeros(len(of), dtype=np.int64)
    if (planes > 1).any():
        which, step = np.divmod(step, (rows * columns)[of])
        is_planar = planes[of] > 1
        plane = which if bands is None else np.where(is_planar, bands[np.minimum(which, len(bands) - 1)], 0)
        band = np.where(is_planar, which + 1, 0)
    down, right = np.divmod(step, columns[of])
    window = chosen[of]
    return window, windows.page[window], plane, row[of] + down, column[of] + right, band


def _grouped(
    windows: Windows, geometry: Int64s, touched: tuple[Int64s, ...]
) -> tuple[Int64s, Int64s, Int64s, Int64s, int, int, int]:
    """Jobs, starts, pieces and ranges of a plan, and its segments, bytes read and bytes decoded."""
    window, page, plane, row, column, band = touched
    grid = geometry[ROWS] * geometry[COLUMNS] * geometry[PLANES]
    base = np.cumsum(grid) - grid
    every = base[page] + (plane * geometry[ROWS, page] + row) * geometry[COLUMNS, page] + column
    order = np.argsort(every, kind="stable")
    in_order = every[order]
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = in_order[1:] != in_order[:-1]
    first = order[is_new]  # one touch of each segment
    page, row, column, every = page[first], row[first], column[first], every[first]
    numbers = every - base[page]
    offsets, counts = _stored(windows.pages, page, numbers)
    g = geometry[:, page]
    nbytes = g[HEIGHT] * g[WIDTH] * np.where(g[PLANES] > 1, 1, g[SAMPLES]) * g[ITEMSIZE]
    begins = _run_starts(g, row, every, counts, nbytes)
    heads = np.flatnonzero(begins)
    job = (np.cumsum(begins) - 1)[np.cumsum(is_new) - 1]
    together: Int64s | int = 1
    total = counts
    if len(heads) < len(first):  # several segments of a run are one piece of a window
        key = (job * len(windows) + window[order]) * (int(band.max()) + 1) + band[order]
        _, once = np.unique(key, return_index=True)
        order, job = order[once], job[once]
        side_by_side = np.ones(len(offsets), dtype=np.int64)
        side_by_side[1:] = offsets[1:] == offsets[:-1] + counts[:-1]
        side_by_side[heads] = 1
        total, together = np.add.reduceat(counts, heads), np.minimum.reduceat(side_by_side, heads)
    ranges = _table(offsets[heads], total, together)
    jobs = _table(page[heads], numbers[heads], np.diff(heads, append=len(first)), row[heads], column[heads])
    window, band, g = window[order], band[order], g[:, heads]
    by0, bx0, by1, bx1 = windows.boxes[window].T
    top, left = (jobs[:, 3] * g[HEIGHT])[job], (jobs[:, 4] * g[WIDTH])[job]
    bottom, right = top + (jobs[:, 2] * g[HEIGHT])[job], left + g[WIDTH, job]
    y0, x0, y1, x1 = np.maximum(by0, top), np.maximum(bx0, left), np.minimum(by1, bottom), np.minimum(bx1, right)
    pieces = _table(window, y0 - top, y1 - top, x0 - left, x1 - left, y0 - by0, x0 - bx0, band)
    starts = np.concatenate([[0], np.cumsum(np.bincount(job, minlength=len(jobs)))])
    present = counts > 0
    return jobs, starts, pieces, ranges, int(present.sum()), int(counts.sum()), int(nbytes[present].sum())


def _stored(pages: Sequence[Page], page: Int64s, numbers: Int64s) -> tuple[Int64s, Int64s]:
    """Offsets and byte counts of segments that are sorted by page."""
    if page[0] == page[-1]:
        only = pages[page[0]]
        return only.offsets[numbers], only.counts[numbers]
    cuts = np.flatnonzero(np.diff(page)) + 1
    parts = np.split(numbers, cuts)
    heads = page[np.concatenate([[0], cuts])].tolist()
    offsets = np.concatenate([pages[k].offsets[part] for k, part in zip(heads, parts, strict=True)])
    counts = np.concatenate([pages[k].counts[part] for k, part in zip(heads, parts, strict=True)])
    return offsets, counts


def _run_starts(g: Int64s, row: Int64s, every: Int64s, counts: Int64s, nbytes: Int64s) -> NDArray[np.bool_]:
    """Where a new job begins among the sorted segments; only those of a single column go together."""
    begins = np.ones(len(every), dtype=np.bool_)
    alone = g[COLUMNS, 1:] == 1
    if not alone.any():
        return begins
    same = (np.diff(every) == 1) & alone & (row[1:] > 0)
    begins[1:] = ~(same & (counts[1:] > 0) & (counts[:-1] > 0))
    most = np.maximum(1, np.clip(nbytes.sum() // _JOBS, *RUN_BYTES) // nbytes)
    heads = np.flatnonzero(begins)
    along = np.arange(len(every)) - heads[np.cumsum(begins) - 1]
    result: NDArray[np.bool_] = along % most == 0
    return result
