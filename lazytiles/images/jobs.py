"""One job of a plan: a run of segments read, decoded, and scattered to the windows that want parts of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from numpy.typing import NDArray

from lazytiles.config import settings
from lazytiles.errors import LazyTilesError, SegmentError
from lazytiles.images.cache import Claim, Run, filled, segment_cache
from lazytiles.images.files import pool
from lazytiles.images.page import Page
from lazytiles.images.plan import Plan, Targets
from lazytiles.images.remote import Range

Counts = tuple[int, int, int]
COUNTED = ("segments_decoded", "bytes_read", "cache_hits")  # the counters that they are for
Piece = list[int]  # a line of `Plan.pieces`


class Settled(NamedTuple):
    """What has come of some jobs.

    Parameters
    ----------
    pieces : for each piece that was written, its window
    failed : the windows that cannot be completed, and why
    """

    pieces: list[int]
    failed: dict[int, LazyTilesError]


class Jobs:
    """The jobs of a plan, to be done in any order by any threads, each once.

    Parameters
    ----------
    pages : that its jobs are about
    plan : jobs, pieces and ranges
    targets : where the pixels of each window go
    tally : collects what was counted
    """

    def __init__(self, pages: Sequence[Page], plan: Plan, targets: Targets, tally: list[Counts]) -> None:
        self.pages, self.bands = pages, plan.windows.bands
        self.targets, self.tally = targets, tally
        self.jobs, self.ranges = plan.jobs.tolist(), plan.ranges.tolist()
        self.starts, self.pieces = plan.starts.tolist(), plan.pieces

    def windows_of(self, number: int) -> list[int]:
        """The window of each piece of a job."""
        windows: list[int] = self.pieces[self.starts[number] : self.starts[number + 1], 0].tolist()
        return windows

    def wanted(self, number: int) -> list[Range]:
        """The byte ranges of the segments of a job that are not kept decoded."""
        at, first, length = self.jobs[number][:3]
        page = self.pages[at]
        left = [k for part in segment_cache.missing(page.key, first, first + length) for k in part]
        spans = ((int(page.offsets[k]), int(page.counts[k])) for k in left)
        return [(page.file.path, a, a + n) for a, n in spans if n and a >= 0 and a + n <= page.file.size]

    def do(self, number: int) -> Settled:
        """Read and decode a job."""
        at, first, length, row, column = self.jobs[number]
        page = self.pages[at]
        pieces = self.pieces[self.starts[number] : self.starts[number + 1]].tolist()
        rows = max(piece[2] for piece in pieces)
        segments = range(first, first + length)
        try:
            self._scatter(self._blocks(page, segments, row, column, rows, self.ranges[number]), pieces)
        except LazyTilesError as error:
            return self._rescued(page, segments, row, column, pieces, error)
        return Settled([piece[0] for piece in pieces], {})

    def _rescued(
        self, page: Page, segments: range, row: int, column: int, pieces: list[Piece], error: LazyTilesError
    ) -> Settled:
        """The pieces of a job that need nothing damaged of it, read by themselves; the others have failed."""
        if len(segments) == 1 and page.codec.lzw is None:
            return Settled([], dict.fromkeys(sorted({piece[0] for piece in pieces}), error))
        good, failed = [], dict[int, LazyTilesError]()
        height = page.segment[0]
        for piece in pieces:
            top, bottom = piece[1] // height, (piece[2] - 1) // height + 1
            try:
                own = segments[top:bottom]
                blocks = self._blocks(page, own, row + top, column, piece[2] - top * height, anew=True)
                self._scatter([(top * height + y, block) for y, block in blocks], [piece])
            except LazyTilesError as reason:
                failed[piece[0]] = reason
            else:
                good.append(piece[0])
        return Settled(good, failed)

    def _scatter(self, blocks: list[tuple[int, NDArray[Any]]], pieces: list[Piece]) -> None:
        bands = self.bands
        if len(blocks) == 1 and bands is None and not pieces[0][7]:  # most reads: whole pixels of one array
            targets, ((top, block),) = self.targets, blocks
            for window, y0, y1, x0, x1, y, x, _ in pieces:
                targets[window][y : y + y1 - y0, x : x + x1 - x0] = block[y0 - top : y1 - top, x0:x1]
            return
        for window, y0, y1, x0, x1, y, x, band in pieces:
            whole = self.targets[window]
            for top, block in blocks:
                start, stop = max(y0, top), min(y1, top + block.shape[0])
                if stop <= start:
                    continue
                part = block[start - top : stop - top, x0:x1]
                rows = slice(y + start - y0, y + stop - y0)
                columns = slice(x, x + x1 - x0)
                if band:
                    whole[rows, columns, band - 1] = part[..., 0]
                else:
                    whole[rows, columns] = part if bands is None else part[..., list(bands)]

    def _blocks(
        self,
        page: Page,
        segments: range,
        row: int,
        column: int,
        rows: int,
        where: list[int] | None = None,
        *,
        anew: bool = False,
    ) -> list[tuple[int, NDArray[Any]]]:
        """Decoded segments of one column as (first row among them, array), from top to bottom.

        Parameters
        ----------
        segments : their numbers, all stored or all missing
        row, column : the place of the first in the grid
        rows : how many pixel rows of them are wanted, from the top; they may be all that is decoded
        where : (offset, bytes, whether they lie side by side), if it is known
        anew : leave the cache alone
        """
        height, first = page.segment[0], segments.start
        if not page.counts[first]:
            shape = (height * len(segments), page.segment[1], page.segment_samples)
            return [(0, filled(shape, page.dtype, page.fill))]
        read = self._decode if anew or not settings().cache_bytes else self._kept
        return [((run.first - first) * height, run.array) for run in read(page, segments, row, column, rows, where)]

    def _kept(
        self, page: Page, segments: range, row: int, column: int, rows: int, where: list[int] | None
    ) -> list[Run]:
        """Decoded segments, out of the cache where it has them; what is to be kept is decoded to its end."""
        claim = Claim(page.key, segments.start, segments.stop, page.segment_bytes)
        made: list[Run] = []
        height = page.segment[0]
        try:
            while (other := segment_cache.enter(claim)) is not None:
                other.wait()
            for part in claim.missing:
                before = part.start - segments.start
                here = len(part) * height if claim.keeps else rows - before * height
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
            data = pool.read(page.file, *_inside(page, segments.start, where[0], where[1]))
            self.tally.append((1, where[1], 0))
            return _decoded(page, segments, row, column, rows, [data], where[1:2])
        offsets, sizes = (table[segments.start : segments.stop].tolist() for table in (page.offsets, page.counts))
        if where is None:
            side_by_side = all(o + n == after for o, n, after in zip(offsets, sizes, offsets[1:], strict=False))
            where = [offsets[0], sum(sizes), side_by_side]
        if where[2]:
            datas: list[Any] = [pool.read(page.file, *_inside(page, segments[0], where[0], where[1]))]
        else:
            spans = zip(segments, offsets, sizes, strict=True)
            datas = [pool.read(page.file, *_inside(page, *span)) for span in spans]
        self.tally.append((len(segments), sum(sizes), 0))
        return _decoded(page, segments, row, column, rows, datas, sizes)


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
        except (Exception, RecursionError) as error:
            raise SegmentError(
                f"{page}: segment {segment} (row {row + k}, column {column}) cannot be decoded: {error}; "
                "the file is damaged there or of an unsupported kind: restore it or leave its windows out"
            ) from error
        runs.append(Run(segment, segment + 1, array))
    return runs


def _inside(page: Page, segment: int, offset: int, size: int) -> tuple[int, int]:
    if offset < 0 or offset + size > page.file.size:
        raise SegmentError(
            f"{page}: segment {segment} lies at bytes {offset} to {offset + size} of a file of {page.file.size} "
            "bytes; the file is cut short or its tables are damaged: restore it or leave its windows out"
        )
    return offset, size
