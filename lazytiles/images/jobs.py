"""The jobs of a plan: runs of segments read, decoded, and scattered to the windows that want parts of them.

A few jobs at a time go through each step together. What the step needs is at hand then, and the interpreter is handed
over less often.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from lazytiles.aliases import Int64s
from lazytiles.config import settings
from lazytiles.errors import LazyTilesError, SegmentError
from lazytiles.images.cache import Claim, Run, segment_cache
from lazytiles.images.codecs import divided
from lazytiles.images.files import pool
from lazytiles.images.page import Page
from lazytiles.images.plan import RUN_BYTES, Plan, Targets
from lazytiles.images.remote import Range

Counts = tuple[int, int, int]
COUNTED = ("segments_decoded", "bytes_read", "cache_hits")  # the counters that they are for
TOGETHER = 2**18  # bytes that a thread decodes before it scatters them
Piece = list[int]  # a line of `Plan.pieces`


class Settled(NamedTuple):
    """What has come of some jobs: the window of each piece that was written; those that have failed, and why."""

    pieces: list[int]
    failed: dict[int, LazyTilesError]


@dataclass(slots=True, eq=False)
class _Job:
    """What one job asks for, and what has come of it."""

    page: Page
    segments: range  # of one column, all stored or all missing
    row: int  # of the grid, in which the first lies
    column: int
    rows: int  # pixel rows that are wanted, from the top
    offset: int  # of the first stored byte
    size: int
    side_by_side: int  # whether the stored bytes of its segments lie so
    pieces: list[Piece]
    missing: Sequence[range] = ()  # the segments that are to be decoded
    found: Sequence[Run] = ()
    error: LazyTilesError | None = None  # why there is nothing else


class _Part(NamedTuple):
    """Neighbouring segments of a job that are to be decoded, and where all their bytes lie."""

    job: _Job
    segments: range
    offset: int
    size: int

    @property
    def row(self) -> int:
        """Of the grid, in which the first lies."""
        return self.job.row + self.segments.start - self.job.segments.start

    @property
    def rows(self) -> int:
        """Pixel rows that are wanted of it."""
        return self.job.rows - (self.segments.start - self.job.segments.start) * self.job.page.segment[0]


class Jobs:
    """The jobs of a plan, to be done in any order by any threads, each once; `tally` collects what was counted.

    Attributes
    ----------
    lines : int64, shape (j, 11): page, first segment, segments, row, column, pixel rows that are wanted, first byte,
        bytes, whether its segments lie side by side, and which pieces are its own (start, stop)
    pieces : as those of the plan: what belongs to neighbouring jobs lies side by side
    """

    def __init__(
        self, pages: Sequence[Page], bands: tuple[int, ...] | None, lines: Int64s, pieces: Int64s, targets: Targets
    ) -> None:
        self.pages, self.bands, self.targets = pages, bands, targets
        # Lists are made for a few jobs: of the whole plan, each reader process would make them all for its part.
        self.lines, self.pieces = lines, pieces
        self.tally: list[Counts] = []
        self.kept: dict[int, list[Run]] = {}  # of jobs that are not done, found decoded; looked up no more

    @classmethod
    def of(cls, plan: Plan, targets: Targets) -> Self:
        """All of them."""
        rows = np.maximum.reduceat(plan.pieces[:, 2], plan.starts[:-1])
        lines = np.column_stack([plan.jobs, rows, plan.ranges, plan.starts[:-1], plan.starts[1:]])
        return cls(plan.windows.pages, plan.windows.bands, lines, plan.pieces, targets)

    def windows_of(self, numbers: Sequence[int]) -> list[int]:
        """The window of each piece of some jobs."""
        if not isinstance(numbers, range):
            return [window for number in numbers for window in self.windows_of(range(number, number + 1))]
        start, stop = self.lines[numbers[0], 9], self.lines[numbers[-1], 10]
        windows: list[int] = self.pieces[start:stop, 0].tolist()
        return windows

    def wanted(self, number: int) -> list[Range]:
        """The byte ranges of the segments of a job that are not kept decoded."""
        at, first, length = self.lines[number, :3].tolist()
        page = self.pages[at]
        left = [k for part in segment_cache.missing(page.key, first, first + length) for k in part]
        spans = ((int(page.offsets[k]), int(page.counts[k])) for k in left)
        return [(page.file.path, a, a + n) for a, n in spans if n and a >= 0 and a + n <= page.file.size]

    def find(self) -> list[bool]:
        """Look for what is kept decoded, and say of each job whether all of it is."""
        keys = {at: self.pages[at].key for at in np.unique(self.lines[:, 0]).tolist()}
        found = segment_cache.kept((keys[at], first, first + n) for at, first, n in self.lines[:, :3].tolist())
        self.kept = {k: runs for k, runs in enumerate(found) if runs}
        return list(map(bool, found))

    def do(self, numbers: Sequence[int]) -> Settled:
        """Read, decode and scatter some jobs, so many at a time as decode to `TOGETHER` bytes."""
        done = Settled([], {})
        some, nbytes, before = list[_Job](), 0, -1
        for number, line in zip(numbers, self.lines[_at(numbers)].tolist(), strict=True):
            at, first, length, row, column, rows, offset, size, side_by_side, start, stop = line
            pieces = self.pieces[start:stop].tolist()
            if at != before:
                try:
                    page = self.pages[at]
                except LazyTilesError as error:  # a reader process opens it now
                    done.failed.update(dict.fromkeys([piece[0] for piece in pieces], error))
                    continue
                before, segment_bytes = at, page.segment_bytes
            job = _Job(page, range(first, first + length), row, column, rows, offset, size, side_by_side, pieces)
            if self.kept and (found := self.kept.pop(number, None)):
                job.found = found
                self._scatter(job, done)
                self.tally.append((0, 0, length))
                continue
            if some and nbytes + length * segment_bytes > TOGETHER:
                self._do(some, done)
                some, nbytes = [], 0
            some.append(job)
            nbytes += length * segment_bytes
        self._do(some, done)
        return done

    def _do(self, jobs: list[_Job], done: Settled) -> None:
        """Do some jobs in steps, and those that fail as far as their pieces can be had."""
        left = jobs
        while left:
            left = self._make(left)
        for job in jobs:
            if job.error is None:
                self._scatter(job, done)
            elif len(job.segments) == 1 and not job.page.codec.ends_early:
                done.failed.update(dict.fromkeys([piece[0] for piece in job.pieces], job.error))
            else:
                self._do_by_pieces(job, done)

    def _do_by_pieces(self, job: _Job, done: Settled) -> None:
        """Do pieces that need nothing damaged of a job, each by itself and past the cache; the others have failed."""
        height = job.page.segment[0]
        for piece in job.pieces:
            top, bottom = piece[1] // height, (piece[2] - 1) // height + 1
            segments, rows = job.segments[top:bottom], piece[2] - top * height
            part = _Job(job.page, segments, job.row + top, job.column, rows, 0, 0, 0, [], [segments])
            self._decode([part])
            if part.error is None:
                self._scatter(replace(job, pieces=[piece], found=part.found), done)
            else:
                done.failed[piece[0]] = part.error

    def _scatter(self, job: _Job, done: Settled) -> None:
        """Write the pieces of a job into their windows."""
        targets, bands, height, first = self.targets, self.bands, job.page.segment[0], job.segments.start
        done.pieces.extend([piece[0] for piece in job.pieces])
        if len(job.found) == 1 and bands is None and not job.pieces[0][7]:  # most reads: whole pixels of one array
            run = job.found[0]
            block, top = run.array, (run.first - first) * height
            for window, y0, y1, x0, x1, y, x, _ in job.pieces:
                targets[window][y : y + y1 - y0, x : x + x1 - x0] = block[y0 - top : y1 - top, x0:x1]
            return
        for window, y0, y1, x0, x1, y, x, band in job.pieces:
            whole = targets[window]
            for run in job.found:
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

    def _make(self, jobs: list[_Job]) -> list[_Job]:
        """Find or decode the segments of some jobs; those are left that other threads decode now, one of them awaited.

        At the least as many pixel rows of them are decoded as are wanted, from the top.
        """
        for job in jobs:
            if job.size:
                job.missing = [job.segments]
                continue
            shape = (job.page.segment[0] * len(job.segments), job.page.segment[1], job.page.segment_samples)
            blank = np.broadcast_to(np.array(job.page.fill, dtype=job.page.dtype), shape)  # not a byte for each pixel
            job.found = [Run(job.segments.start, job.segments.stop, blank)]
        if settings().cache_bytes:
            return self._make_kept([job for job in jobs if job.size])
        self._decode(jobs)
        return []

    def _make_kept(self, jobs: list[_Job]) -> list[_Job]:
        """The same beside a cache."""
        claims = {
            job: Claim(job.page.key, job.segments.start, job.segments.stop, job.page.segment_bytes) for job in jobs
        }
        try:
            blocked = segment_cache.enter_all(claims.values())
            hits = 0
            for job, claim in claims.items():
                if claim in blocked:
                    continue
                job.found, job.missing = claim.found, claim.missing
                if claim.keeps:  # what is kept is kept whole
                    job.rows = len(job.segments) * job.page.segment[0]
                if claim.found:
                    hits += len(job.segments) - sum(map(len, claim.missing))
            self._decode([job for job, claim in claims.items() if claim not in blocked])
            for job, claim in claims.items():
                if claim.keeps and job.error is None:
                    segment_cache.settle(claim, _apart(job.found[len(claim.found) :], job.page))
        finally:  # an interrupt, too, leaves no claim behind that others would wait for
            for claim in claims.values():
                segment_cache.leave(claim)
        if hits:
            self.tally.append((0, 0, hits))
        left = [job for job, claim in claims.items() if claim in blocked]
        if left:
            blocked[claims[left[0]]].wait()
        return left

    def _decode(self, jobs: list[_Job]) -> None:
        """Read and decode what is missing of some jobs; what cannot be is their error."""
        parts = list[_Part]()
        for job in jobs:
            for segments in job.missing:
                if job.side_by_side and len(segments) == len(job.segments):
                    parts.append(_Part(job, segments, job.offset, job.size))
                    continue
                for k in segments:
                    parts.append(_Part(job, range(k, k + 1), int(job.page.offsets[k]), int(job.page.counts[k])))
        at = 0
        while at < len(parts):
            n = _alike(parts, at)
            if n == 1 or not self._decode_together(parts[at : at + n]):
                for part in parts[at : at + n]:
                    self._decode_alone(part)
            at += n

    def _decode_alone(self, part: _Part) -> None:
        """Read and decode a part; what is wrong with it is the error of its job."""
        job, segments, offset, size = part
        if job.error is not None:
            return
        try:
            data = _stored(job.page, segments.start, offset, size)
            self.tally.append((len(segments), size, 0))
            runs = _decoded(job.page, segments, part.row, job.column, part.rows, data)
            job.found = [*job.found, *runs]
        except LazyTilesError as error:
            job.error = error

    def _decode_together(self, parts: list[_Part]) -> bool:
        """Read and decode parts of one page at once, and say whether that was possible."""
        page, height = parts[0].job.page, parts[0].job.page.segment[0]
        try:
            datas = _read(page, parts)
            last, whole = parts[-1], sum([len(part.segments) for part in parts[:-1]])
            sizes = [size for part in parts for size in _sizes(page, part.segments, part.size)]
            rows = height * whole + _rows(page, last.row, len(last.segments), last.rows)
            array = page.codec.decode_run(datas, sizes, rows)
        except Exception:  # one by one, what is damaged gets its name
            return False
        self.tally.append((len(sizes), sum(sizes), 0))
        top, first = 0, parts[0].segments.start
        for part, after in itertools.zip_longest(parts, parts[1:]):
            if after is None or after.job is not part.job or after.segments.start != part.segments.stop:
                bottom = top + height * (part.segments.stop - first)
                part.job.found = [*part.job.found, Run(first, part.segments.stop, array[top:bottom])]
                top, first = bottom, after.segments.start if after else 0
        return True


def _at(numbers: Sequence[int]) -> Any:
    """Some numbers, neighbours or not, as an index."""
    return slice(numbers.start, numbers.stop) if isinstance(numbers, range) else numbers


def _apart(runs: Sequence[Run], page: Page) -> Sequence[Run]:
    """Runs as they are kept: each segment by itself, but where they could only be decoded together."""
    if page.codec.ends_early or all(run.stop - run.first == 1 for run in runs):
        return runs
    height = page.segment[0]
    return [
        Run(k, k + 1, run.array[(k - run.first) * height : (k - run.first + 1) * height])
        for run in runs
        for k in range(run.first, run.stop)
    ]


def _alike(parts: list[_Part], at: int) -> int:
    """How many parts, from one of them on, may be decoded together: all segments but the last of them are whole.

    Where decoding may end inside a segment, they are neighbours of one job; else a few small ones, wherever they lie.
    """
    page = parts[at].job.page
    codec = page.codec
    if at + 1 == len(parts) or codec.strips is None:
        return 1
    apart = not codec.ends_early
    most, n = max(1, RUN_BYTES[1] // page.segment_bytes), 1
    for before, after in itertools.pairwise(itertools.islice(parts, at, None)):
        if after.job.page is not page:
            break
        is_below = after.job is before.job and after.segments.start == before.segments.stop
        if not is_below and not (apart and n < most and (codec.tiled or _are_whole(before))):
            break
        n += 1
    return n


def _are_whole(part: _Part) -> bool:
    """Whether no strip of a part is lower than the others."""
    height, segments = part.job.page.segment[0], len(part.segments)
    return _rows(part.job.page, part.row, segments, height * segments) == height * segments


def _rows(page: Page, row: int, segments: int, wanted: int) -> int:
    """Pixel rows that are decoded of so many segments, the first in this row of the grid, if so many are wanted."""
    rows = page.segment[0] * segments
    if not page.codec.tiled:
        rows = min(rows, page.codec.image[0] - row * page.segment[0])
    return min(rows, wanted) if page.codec.ends_early else rows


def _sizes(page: Page, segments: range, size: int) -> list[int]:
    """The bytes of each of some segments that are so many together."""
    sizes: list[int] = [size] if len(segments) == 1 else page.counts[segments.start : segments.stop].tolist()
    return sizes


def _read(page: Page, parts: list[_Part]) -> list[bytes]:
    """The bytes of parts of a page, in which those that lie side by side are one."""
    datas, at = list[bytes](), 0
    while at < len(parts):
        _, segments, offset, size = parts[at]
        at += 1
        while at < len(parts) and parts[at].offset == offset + size and not page.file.is_remote:
            size, at = size + parts[at].size, at + 1
        datas.append(_stored(page, segments.start, offset, size))
    return datas


def _stored(page: Page, segment: int, offset: int, size: int) -> bytes:
    """The bytes of segments, the first of which an error names."""
    if offset < 0 or offset + size > page.file.size:
        raise SegmentError(
            f"{page}: segment {segment} lies at bytes {offset} to {offset + size} of a file of {page.file.size} "
            "bytes; the file is cut short or its tables are damaged: restore it or leave its windows out"
        )
    return pool.read(page.file, offset, size)


def _decoded(page: Page, segments: range, row: int, column: int, rows: int, data: bytes) -> list[Run]:
    """Segments of one column, so many rows of pixels, by their bytes; the first lies at (row, column) of the grid."""
    codec, height = page.codec, page.segment[0]
    sizes = _sizes(page, segments, len(data))
    if codec.strips is not None:
        with suppress(Exception):  # one by one, below, the damaged segment gets its name
            array = codec.decode_run([data], sizes, _rows(page, row, len(segments), rows))
            return [Run(segments.start, segments.stop, array)]
    runs = []
    datas: list[bytes | memoryview] = [data] if len(sizes) == 1 else [*divided(data, sizes)]
    for k, (segment, stored) in enumerate(zip(segments, datas, strict=True)):
        try:
            if codec.ends_early:
                array = codec.decode_run([stored], [len(stored)], _rows(page, row + k, 1, rows - k * height))
            else:
                array = codec(stored, segment, row + k, column)
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
