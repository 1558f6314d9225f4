"""One job of a plan: a run of segments read, decoded, and scattered to the windows that want parts of it."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from lazytiles.config import settings
from lazytiles.errors import LazyTilesError, SegmentError
from lazytiles.images.cache import Claim, Run, segment_cache
from lazytiles.images.files import pool
from lazytiles.images.page import Page
from lazytiles.images.plan import Plan, Targets
from lazytiles.images.remote import Range

Counts = tuple[int, int, int]
COUNTED = ("segments_decoded", "bytes_read", "cache_hits")  # the counters that they are for
Piece = list[int]  # a line of `Plan.pieces`


class Settled(NamedTuple):
    """What has come of some jobs: the window of each piece that was written; those that have failed, and why."""

    pieces: list[int]
    failed: dict[int, LazyTilesError]


class Jobs:
    """The jobs of a plan, to be done in any order by any threads, each once; `tally` collects what was counted."""

    def __init__(self, plan: Plan, targets: Targets, tally: list[Counts]) -> None:
        self.pages, self.bands = plan.windows.pages, plan.windows.bands
        self.targets, self.tally = targets, tally
        # Lists are made job by job: of the whole plan, each reader process would make them all for its part.
        self.jobs, self.ranges, self.starts, self.pieces = plan.jobs, plan.ranges, plan.starts, plan.pieces

    def windows_of(self, number: int) -> list[int]:
        """The window of each piece of a job."""
        windows: list[int] = self.pieces[self.starts[number] : self.starts[number + 1], 0].tolist()
        return windows

    def wanted(self, number: int) -> list[Range]:
        """The byte ranges of the segments of a job that are not kept decoded."""
        at, first, length = self.jobs[number, :3].tolist()
        page = self.pages[at]
        left = [k for part in segment_cache.missing(page.key, first, first + length) for k in part]
        spans = ((int(page.offsets[k]), int(page.counts[k])) for k in left)
        return [(page.file.path, a, a + n) for a, n in spans if n and a >= 0 and a + n <= page.file.size]

    def do(self, number: int) -> Settled:
        """Read and decode a job."""
        at, first, length, row, column = self.jobs[number].tolist()
        page, segments = self.pages[at], range(first, first + length)
        height = page.segment[0]
        pieces = self.pieces[self.starts[number] : self.starts[number + 1]].tolist()
        try:
            rows = max(piece[2] for piece in pieces)
            runs = self._runs(page, segments, row, column, rows, self.ranges[number].tolist())
            self._scatter(runs, pieces, first, height)
            return Settled([piece[0] for piece in pieces], {})
        except LazyTilesError as error:
            if length == 1 and page.codec.lzw is None:
                return Settled([], dict.fromkeys(sorted({piece[0] for piece in pieces}), error))
        # Pieces that need nothing damaged of it are read by themselves; the others have failed.
        good, failed = [], dict[int, LazyTilesError]()
        for piece in pieces:
            top, bottom = piece[1] // height, (piece[2] - 1) // height + 1
            try:
                rows = piece[2] - top * height
                runs = self._runs(page, segments[top:bottom], row + top, column, rows, anew=True)
                self._scatter(runs, [piece], first, height)
                good.append(piece[0])
            except LazyTilesError as reason:
                failed[piece[0]] = reason
        return Settled(good, failed)

    def _scatter(self, runs: list[Run], pieces: list[Piece], first: int, height: int) -> None:
        """Write pieces of a job, whose first segment and rows in a segment are told, into their windows."""
        bands = self.bands
        if len(runs) == 1 and bands is None and not pieces[0][7]:  # most reads: whole pixels of one array
            targets, block, top = self.targets, runs[0].array, (runs[0].first - first) * height
            for window, y0, y1, x0, x1, y, x, _ in pieces:
                targets[window][y : y + y1 - y0, x : x + x1 - x0] = block[y0 - top : y1 - top, x0:x1]
            return
        for window, y0, y1, x0, x1, y, x, band in pieces:
            whole = self.targets[window]
            for run in runs:
                top = (run.first - first) * height
                start, stop = max(y0, top), min(y1, top + len(run.array))
                if stop <= start:
                    continue
                part = run.array[start - top : stop - top, x0:x1]
                rows = slice(y + start - y0, y + stop - y0)
                columns = slice(x, x + x1 - x0)
                if band:
                    whole[rows, columns, band - 1] = part[..., 0]
                else:
                    whole[rows, columns] = part if bands is None else part[..., list(bands)]

    def _runs(
        self,
        page: Page,
        segments: range,
        row: int,
        column: int,
        rows: int,
        where: list[int] | None = None,
        *,
        anew: bool = False,
    ) -> list[Run]:
        """Decoded segments of one column, all stored or all missing, out of the cache where it has them.

        The first lies at (row, column) of the grid. At the least so many pixel rows of them are decoded, from the top.
        `where` is (offset, bytes, whether they lie side by side), if it is known; `anew` leaves the cache alone.
        """
        first, height = segments.start, page.segment[0]
        if not page.counts[first]:
            shape = (height * len(segments), page.segment[1], page.segment_samples)
            blank = np.broadcast_to(np.array(page.fill, dtype=page.dtype), shape)  # not a byte for each pixel
            return [Run(first, segments.stop, blank)]
        if anew or not settings().cache_bytes:
            return self._decode(page, segments, row, column, rows, where)
        claim = Claim(page.key, first, segments.stop, page.segment_bytes)
        made: list[Run] = []
        try:
            while (other := segment_cache.enter(claim)) is not None:
                other.wait()
            for part in claim.missing:
                before = part.start - first
                here = len(part) * height if claim.keeps else rows - before * height  # what is kept is kept whole
                whole = where if len(part) == len(segments) else None
                made += self._decode(page, part, row + before, column, here, whole)
            if claim.keeps:
                segment_cache.settle(claim, made)
        finally:  # an interrupt, too, leaves no claim behind that others would wait for
            segment_cache.leave(claim)
        if claim.found:
            self.tally.append((0, 0, len(segments) - sum(map(len, claim.missing))))
        return [*claim.found, *made]

    def _decode(
        self, page: Page, segments: range, row: int, column: int, rows: int, where: list[int] | None
    ) -> list[Run]:
        if where is not None and len(segments) == 1:  # most jobs: what the plan says of the run is said of the segment
            datas, sizes = [_stored(page, segments.start, where[0], where[1])], where[1:2]
        else:
            offsets, sizes = (table[segments.start : segments.stop].tolist() for table in (page.offsets, page.counts))
            if where is None:
                side_by_side = all(o + n == after for o, n, after in zip(offsets, sizes, offsets[1:], strict=False))
                where = [offsets[0], sum(sizes), side_by_side]
            if where[2]:
                datas = [_stored(page, segments.start, where[0], where[1])]
            else:
                datas = [_stored(page, *span) for span in zip(segments, offsets, sizes, strict=True)]
        self.tally.append((len(segments), sum(sizes), 0))
        return _decoded(page, segments, row, column, rows, datas, sizes)


def kept_jobs(plan: Plan) -> list[bool]:
    """Which jobs of a plan this process keeps decoded."""
    pages = plan.windows.pages
    return segment_cache.held((pages[at].key, first, first + length) for at, first, length, _, _ in plan.jobs.tolist())


def _stored(page: Page, segment: int, offset: int, size: int) -> bytes:
    """The bytes of segments, the first of which an error names."""
    if offset < 0 or offset + size > page.file.size:
        raise SegmentError(
            f"{page}: segment {segment} lies at bytes {offset} to {offset + size} of a file of {page.file.size} "
            "bytes; the file is cut short or its tables are damaged: restore it or leave its windows out"
        )
    return pool.read(page.file, offset, size)


def _decoded(
    page: Page, segments: range, row: int, column: int, rows: int, datas: list[Any], sizes: list[int]
) -> list[Run]:
    codec, height = page.codec, page.segment[0]
    if codec.lzw is not None and len(segments) > 1:
        with suppress(Exception):  # one by one, below, the damaged segment gets its name
            return [Run(segments.start, segments.stop, codec.decode_run(datas, sizes, row, rows))]
    if len(datas) < len(segments):
        together = memoryview(datas[0])
        datas = [together[end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    runs = []
    for k, (segment, data) in enumerate(zip(segments, datas, strict=True)):
        try:
            if codec.lzw is not None:
                array = codec.decode_run([data], [len(data)], row + k, rows - k * height)
            else:
                array = codec(data, segment, row + k, column)
        except ImportError as error:
            raise ImportError(f"{page}: its codec cannot be imported: {error}; start the process anew") from error
        except MemoryError as error:
            raise SegmentError(
                f"{page}: memory ran out while segment {segment} (row {row + k}, column {column}) was decoded; the "
                "file may be sound: free memory, or lower cache_bytes or threads, and read it again"
            ) from error
        except Exception as error:
            raise SegmentError(
                f"{page}: segment {segment} (row {row + k}, column {column}) cannot be decoded: {error}; "
                "the file is damaged there or of an unsupported kind: restore it or leave its windows out"
            ) from error
        runs.append(Run(segment, segment + 1, array))
    return runs
