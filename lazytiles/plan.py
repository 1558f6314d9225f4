"""What a batch of windows will read: pure arithmetic on small arrays, no bytes.

A *job* is a run of neighbouring segments of one column that is read and decoded together (one
segment where they are large); a *piece* is the part of a job that goes to one window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import LazyTilesError
from lazytiles.page import Page

Int64s: TypeAlias = NDArray[np.int64]
Target: TypeAlias = Callable[[int], NDArray[Any]]
Done: TypeAlias = Callable[[Sequence[int]], None]
Failed: TypeAlias = Callable[[Sequence[int], LazyTilesError], None]

# Decoded bytes up to which neighbouring strips are one job: large ones spare the interpreter, but a small read is
# divided more finely, so that every thread has some of it.
RUN_BYTES = (2**16, 2**18)
_JOBS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Rectangles of pages, in the order in which they are wanted.

    Parameters
    ----------
    pages : the pages that they lie on
    page : int64, shape (n,), index into `pages` of each window
    boxes : int64, shape (n, 4), (y0, x0, y1, x1), pixels, half-open, inside the page
    bands : which samples are wanted, in this order; None for all
    """

    pages: Sequence[Page]
    page: Int64s
    boxes: Int64s
    bands: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.page)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Plan:
    """Which segments are read for some windows, and where each part of them goes.

    Attributes
    ----------
    windows : what was asked for
    raw : int64, the windows on uncompressed pages, which are sliced, not decoded
    empty : int64, the windows without a pixel
    raw_bytes : bytes of the windows in `raw`
    jobs : int64, shape (j, 6): page, first segment, segments, row, column, whether it is one plane of several
    starts : int64, shape (j + 1,): job k has the pieces ``starts[k]:starts[k + 1]``
    pieces : int64, shape (p, 8): window, then rows and columns in the job's block (y0, y1, x0, x1), the place
        in the window (y, x), and for a plane the band that it fills, plus one (0: whole pixels)
    ranges : int64, shape (j, 3): first byte, bytes, whether the run's segments lie side by side
    segments : number of segments to decode
    bytes_read, bytes_decoded, bytes_delivered : bytes taken from files, decoded from them, asked for
    """

    windows: Windows
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


def plan(windows: Windows, groups: Int64s | None = None) -> Plan:
    """Which segments some windows need, each once, and where each part of them goes.

    Parameters
    ----------
    windows : the rectangles
    groups : int64, shape (n,), the batch of each window; jobs are ordered by the first batch that needs them
    """
    geometry = _geometry(windows.pages)
    on = geometry[windows.page] if len(windows) else np.empty((0, 8), np.int64)
    sizes = np.prod(np.maximum(windows.boxes[:, 2:] - windows.boxes[:, :2], 0), axis=1)
    wanted = on[:, 6] if windows.bands is None else np.full(len(on), len(windows.bands))
    nbytes = sizes * wanted * on[:, 7]
    delivered = int(nbytes.sum())
    is_raw = (on[:, 5] == 1) & (sizes > 0)
    raw, empty = np.flatnonzero(is_raw), np.flatnonzero(sizes == 0)
    raw_bytes = int(nbytes[raw].sum())
    chosen = np.flatnonzero(~is_raw & (sizes > 0))
    if not len(chosen):
        none = np.empty((0, 8), np.int64)
        head = np.zeros(1, np.int64)
        return Plan(windows, raw, empty, raw_bytes, none[:, :6], head, none, none[:, :3], 0, raw_bytes, 0, delivered)
    touched = _touched(windows, geometry, chosen)
    jobs, starts, pieces, ranges, segments, read, decoded = _grouped(windows, geometry, touched, groups)
    return Plan(
        windows, raw, empty, raw_bytes, jobs, starts, pieces, ranges, segments, read + raw_bytes, decoded, delivered
    )


def _geometry(pages: Sequence[Page]) -> Int64s:
    """A row of integers for each page: segment height and width, rows, columns, planes, raw?, samples, itemsize."""
    table = [page.geometry for page in pages]
    return np.array(table, dtype=np.int64).reshape(len(table), 8)


def _touched(windows: Windows, geometry: Int64s, chosen: Int64s) -> Int64s:
    """A row (window, page, plane, row, column, band position) for each segment that each window touches."""
    boxes = windows.boxes[chosen]
    page = windows.page[chosen]
    height, width, planes = geometry[page, 0], geometry[page, 1], geometry[page, 4]
    row, column = boxes[:, 0] // height, boxes[:, 1] // width
    rows = (boxes[:, 2] - 1) // height - row + 1
    columns = (boxes[:, 3] - 1) // width - column + 1
    bands = None if windows.bands is None else np.array(windows.bands, dtype=np.int64)
    depth = np.where(planes > 1, planes if bands is None else len(bands), 1)
    times = rows * columns * depth
    of = np.repeat(np.arange(len(chosen)), times)
    step = np.arange(len(of)) - np.repeat(np.cumsum(times) - times, times)
    band, step = np.divmod(step, (rows * columns)[of])
    down, right = np.divmod(step, columns[of])
    plane = band if bands is None else np.where(planes[of] > 1, bands[np.minimum(band, len(bands) - 1)], 0)
    position = np.where(planes[of] > 1, band + 1, 0)
    return np.stack([chosen[of], page[of], plane, row[of] + down, column[of] + right, position], axis=1)


def _grouped(
    windows: Windows, geometry: Int64s, touched: Int64s, groups: Int64s | None
) -> tuple[Int64s, Int64s, Int64s, Int64s, int, int, int]:
    """Jobs, starts, pieces and ranges of a plan, and its segments, bytes read and bytes decoded."""
    page, plane, row, column = touched[:, 1], touched[:, 2], touched[:, 3], touched[:, 4]
    of = geometry[page]
    number = (plane * of[:, 2] + row) * of[:, 3] + column
    base = np.concatenate([[0], np.cumsum(geometry[:, 2] * geometry[:, 3] * geometry[:, 4])])
    unique, first, inverse = np.unique(base[page] + number, return_index=True, return_inverse=True)
    segments = touched[first]
    numbers = number[first]
    offsets, counts = _stored(windows.pages, segments[:, 1], numbers)
    begins = _run_starts(geometry, segments, unique, counts)
    run_of = np.cumsum(begins) - 1
    heads = np.flatnonzero(begins)
    lengths = np.diff(np.append(heads, len(unique)))
    pieces, piece_job = _pieces(windows, geometry, touched, segments, run_of[inverse], heads, lengths)
    planar = np.zeros(len(heads), dtype=np.int64)
    planar[run_of[inverse]] = touched[:, 5] > 0
    jobs = np.stack(
        [segments[heads, 1], numbers[heads], lengths, segments[heads, 3], segments[heads, 4], planar], axis=1
    )
    ranges = _ranges(offsets, counts, heads, lengths)
    jobs, starts, pieces, ranges = _ordered(jobs, pieces, piece_job, ranges, groups)
    present = counts > 0
    g = geometry[segments[:, 1]]
    decoded = g[:, 0] * g[:, 1] * np.where(g[:, 4] > 1, 1, g[:, 6]) * g[:, 7]
    return jobs, starts, pieces, ranges, int(present.sum()), int(counts.sum()), int(decoded[present].sum())


def _stored(pages: Sequence[Page], page: Int64s, numbers: Int64s) -> tuple[Int64s, Int64s]:
    """Offsets and byte counts of segments that are sorted by page."""
    cuts = np.flatnonzero(np.diff(page)) + 1
    parts = np.split(numbers, cuts)
    heads = page[np.concatenate([[0], cuts])].tolist()
    offsets = np.concatenate([pages[k].offsets[part] for k, part in zip(heads, parts, strict=True)])
    counts = np.concatenate([pages[k].counts[part] for k, part in zip(heads, parts, strict=True)])
    return offsets, counts


def _run_starts(geometry: Int64s, segments: Int64s, unique: Int64s, counts: Int64s) -> NDArray[np.bool_]:
    """Where a new job begins among the sorted segments."""
    g = geometry[segments[:, 1]]
    begins = np.ones(len(unique), dtype=np.bool_)
    same = (np.diff(unique) == 1) & (g[1:, 3] == 1) & (segments[1:, 3] > 0)
    begins[1:] = ~(same & (counts[1:] > 0) & (counts[:-1] > 0))
    nbytes = g[:, 0] * g[:, 1] * np.where(g[:, 4] > 1, 1, g[:, 6]) * g[:, 7]
    most = np.maximum(1, np.clip(nbytes.sum() // _JOBS, *RUN_BYTES) // nbytes)
    heads = np.flatnonzero(begins)
    along = np.arange(len(unique)) - heads[np.cumsum(begins) - 1]
    result: NDArray[np.bool_] = along % most == 0
    return result


def _pieces(
    windows: Windows,
    geometry: Int64s,
    touched: Int64s,
    segments: Int64s,
    job: Int64s,
    heads: Int64s,
    lengths: Int64s,
) -> tuple[Int64s, Int64s]:
    """What each job gives to each window, and the job of each such piece."""
    slots = int(touched[:, 5].max()) + 1
    _, first = np.unique((job * len(windows) + touched[:, 0]) * slots + touched[:, 5], return_index=True)
    job, window = job[first], touched[first, 0]
    head = segments[heads[job]]
    g = geometry[head[:, 1]]
    box = windows.boxes[window]
    top, left = head[:, 3] * g[:, 0], head[:, 4] * g[:, 1]
    y0, y1 = np.maximum(box[:, 0], top), np.minimum(box[:, 2], top + lengths[job] * g[:, 0])
    x0, x1 = np.maximum(box[:, 1], left), np.minimum(box[:, 3], left + g[:, 1])
    pieces = np.stack(
        [window, y0 - top, y1 - top, x0 - left, x1 - left, y0 - box[:, 0], x0 - box[:, 1], touched[first, 5]],
        axis=1,
    )
    return pieces, job


def _ranges(offsets: Int64s, counts: Int64s, heads: Int64s, lengths: Int64s) -> Int64s:
    side_by_side = np.ones(len(offsets), dtype=np.int64)
    side_by_side[1:] = offsets[1:] == offsets[:-1] + counts[:-1]
    side_by_side[heads] = 1
    total = np.add.reduceat(counts, heads)
    together = np.minimum.reduceat(side_by_side, heads)
    return np.stack([offsets[heads], total, together], axis=1)


def _ordered(
    jobs: Int64s, pieces: Int64s, piece_job: Int64s, ranges: Int64s, groups: Int64s | None
) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Jobs in the order of the first batch that needs them, their pieces beside each other."""
    lengths = np.bincount(piece_job, minlength=len(jobs))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    if groups is None:
        return jobs, starts, pieces, ranges
    first = np.minimum.reduceat(groups[pieces[:, 0]], starts[:-1])
    order = np.argsort(first, kind="stable")
    moved = np.repeat(starts[:-1][order], lengths[order])
    inner = np.arange(len(pieces)) - np.repeat(np.cumsum(lengths[order]) - lengths[order], lengths[order])
    new_starts = np.concatenate([[0], np.cumsum(lengths[order])])
    return jobs[order], new_starts, pieces[moved + inner], ranges[order]
