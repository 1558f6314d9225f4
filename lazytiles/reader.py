"""Many windows of many pages: each segment read and decoded once, its parts scattered where they belong.

`read` carries out a `Plan` on the shared threads. The calling thread works too, so that a read never
waits for a free thread; what is not finished when it is stopped is left alone.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.cache import Claim, Run, cache, filled
from lazytiles.config import count, settings
from lazytiles.errors import LazyTilesError, LimitError, SegmentError
from lazytiles.files import FileKey, pool
from lazytiles.page import Page
from lazytiles.plan import Done, Failed, Plan, Target
from lazytiles.ranges import Range, portions
from lazytiles.raw import row_ranges, slice_windows
from lazytiles.remote import remote

_MOST_THREADS = 64
_PATIENCE_S = 0.05  # for shared threads that are busy, before the calling one works itself


class _Threads:
    """The process's shared threads, as many as any read has wanted at once; a forked child makes its own."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._size = 0
        self._lock = threading.Lock()

    def executor(self, helpers: int) -> ThreadPoolExecutor:
        """An executor of at least so many threads. Of no more than are wanted: it starts new ones up to its limit."""
        size = min(max(helpers, settings().threads - 1), _MOST_THREADS)
        with self._lock:
            if self._executor is None or size > self._size:
                larger = ThreadPoolExecutor(size, thread_name_prefix="lazytiles-shared")
                if self._executor is not None:
                    self._executor.shutdown(wait=False)
                self._executor, self._size = larger, size
            return self._executor

    def forget(self) -> None:
        self.__init__()  # type: ignore[misc]  # the threads of the parent do not exist in the child


shared = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.forget)


def check_limit(nbytes: int, what: str, *named: object) -> None:
    """Refuse a read whose array would exceed `max_window_bytes`; `what` is its name, with a ``{}`` for each `named`."""
    limit = settings().max_window_bytes
    if nbytes > limit:
        raise LimitError(
            f"{what.format(*named)} is {nbytes:,} bytes, max_window_bytes is {limit:,}; read less at once, or raise "
            "it with lazytiles.configure(max_window_bytes=...)"
        )


def check_chunk(where: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse chunks, to be written or read, of more bytes than `max_segment_bytes`."""
    nbytes, limit = math.prod(shape) * dtype.itemsize, settings().max_segment_bytes
    if nbytes > limit:
        raise LimitError(
            f"{where}: one chunk of shape {shape} is {nbytes} bytes decoded, max_segment_bytes is {limit}; write "
            "smaller chunks, or raise it with lazytiles.configure(max_segment_bytes=...)"
        )


class _Read:
    """One plan being carried out."""

    def __init__(self, plan: Plan, target: Target, done: Done, failed: Failed, stop: threading.Event | None) -> None:
        self.plan = plan
        self.target = target
        self.done = done
        self.failed = failed
        self.stop = stop or threading.Event()
        pieces = np.bincount(plan.pieces[:, 0], minlength=len(plan.windows))
        self.missing: list[int] = pieces.tolist()
        self.jobs = plan.jobs.tolist()
        self.starts = plan.starts.tolist()
        self.ranges = plan.ranges.tolist()
        self.lock = threading.Lock()
        self.tally: list[tuple[int, int, int]] = []  # segments decoded, bytes read, segments found in the cache

    def run(self, threads: int, *, aside: bool) -> None:
        """Everything: first what is only sliced, then the jobs, on so many threads."""
        self._check_files()
        if len(self.plan.empty):
            self.done(self.plan.empty.tolist())
        jobs = len(self.jobs)
        if any(page.file.is_remote for page in self.plan.windows.pages):
            self._far(threads)
        else:
            self._sliced(self.plan.raw.tolist())
            if jobs:
                order = self._kept_first()
                beside = self._advise if jobs > 1 else None
                _spread(lambda k: self._job(order[k]), jobs, min(threads, jobs), self.stop, beside, aside=aside)
        tally = np.array([(0, self.plan.raw_bytes, 0), *self.tally]).sum(axis=0).tolist()
        for name, amount in zip(("segments_decoded", "bytes_read", "cache_hits"), tally, strict=True):
            count(name, amount)

    def _kept_first(self) -> list[int]:
        """The jobs, those first that are kept decoded: what the others decode would push them out of the cache."""
        if not settings().cache_bytes:
            return list(range(len(self.jobs)))
        pages = self.plan.windows.pages
        held = cache.held((pages[j[0]].key, j[1], j[1] + j[2]) for j in self.jobs)
        return sorted(range(len(held)), key=lambda k: not held[k])

    def _check_files(self) -> None:
        windows = self.plan.windows
        files = {page.file for page in windows.pages}
        remote.refresh(key.path for key in files if key.is_remote)
        for key in files:
            try:
                pool.check(key)
            except LazyTilesError as error:
                on = [k for k, page in enumerate(windows.pages) if page.file == key]
                self.failed(np.flatnonzero(np.isin(windows.page, on)).tolist(), error)

    def _advise(self) -> None:
        ranges: dict[FileKey, list[tuple[int, int]]] = {}
        for job, (offset, size, _) in zip(self.jobs, self.ranges, strict=True):
            key = self.plan.windows.pages[job[0]].file
            if size and 0 <= offset < key.size:
                ranges.setdefault(key, []).append((offset, size))
        for key, spans in ranges.items():
            with suppress(LazyTilesError):  # the read itself will say it, with the window's name
                pool.advise(key, spans)

    def _far(self, threads: int) -> None:
        """The same with files behind addresses: what a portion of the plan needs is fetched first, in one go."""
        plan, raw = self.plan, self.plan.raw.tolist()
        pages, boxes = plan.windows.pages, plan.windows.boxes.tolist()
        slices = [row_ranges(pages[plan.windows.page[number]], boxes[number]) for number in raw]
        for part in portions(slices):
            with remote.ahead(item for k in part for item in slices[k]):
                self._sliced(raw[part.start : part.stop])
        wanted = [self._wanted(number) for number in range(len(self.jobs))]
        for part in portions(wanted):
            with remote.ahead(item for k in part for item in wanted[k]):
                _spread(lambda k, first=part.start: self._job(first + k), len(part), threads, self.stop)  # type: ignore[misc]

    def _wanted(self, number: int) -> list[Range]:
        """The byte ranges of the segments of a job that are not kept decoded."""
        at, first, length = self.jobs[number][:3]
        page = self.plan.windows.pages[at]
        left = [k for part in cache.missing(page.key, first, first + length) for k in part]
        spans = ((int(page.offsets[k]), int(page.counts[k])) for k in left)
        return [(page.file.path, a, a + n) for a, n in spans if n and a >= 0 and a + n <= page.file.size]

    def _sliced(self, raw: list[int]) -> None:
        """What needs no decoding: windows of uncompressed pages."""
        if raw:
            self.done(slice_windows(self.plan.windows, raw, self.target, self.failed))

    def _job(self, number: int) -> None:
        at, first, length, row, column = self.jobs[number]
        page = self.plan.windows.pages[at]
        pieces = self.plan.pieces[self.starts[number] : self.starts[number + 1]].tolist()
        rows = max(piece[2] for piece in pieces)
        segments = range(first, first + length)
        try:
            self._scatter(self._blocks(page, segments, row, column, rows, self.ranges[number]), pieces)
        except LazyTilesError as error:
            pieces = self._rescued(page, segments, row, column, pieces, error)
        finished = []
        with self.lock:
            for piece in pieces:
                self.missing[piece[0]] -= 1
                if not self.missing[piece[0]]:
                    finished.append(piece[0])
        if finished:
            self.done(finished)

    def _rescued(
        self, page: Page, segments: range, row: int, column: int, pieces: list[list[int]], error: LazyTilesError
    ) -> list[list[int]]:
        """The pieces of a job that need nothing damaged of it, read by themselves; the others have failed."""
        if len(segments) == 1 and page.codec.lzw is None:
            self.failed(sorted({piece[0] for piece in pieces}), error)
            return []
        good = []
        height = page.segment[0]
        for piece in pieces:
            top, bottom = piece[1] // height, (piece[2] - 1) // height + 1
            try:
                own = segments[top:bottom]
                blocks = self._blocks(page, own, row + top, column, piece[2] - top * height, anew=True)
                self._scatter([(top * height + y, block) for y, block in blocks], [piece])
            except LazyTilesError as reason:
                self.failed([piece[0]], reason)
            else:
                good.append(piece)
        return good

    def _scatter(self, blocks: list[tuple[int, NDArray[Any]]], pieces: list[list[int]]) -> None:
        bands = self.plan.windows.bands
        if len(blocks) == 1 and bands is None and not pieces[0][7]:  # most reads: whole pixels of one array
            target, ((top, block),) = self.target, blocks
            for window, y0, y1, x0, x1, y, x, _ in pieces:
                target(window)[y : y + y1 - y0, x : x + x1 - x0] = block[y0 - top : y1 - top, x0:x1]
            return
        for window, y0, y1, x0, x1, y, x, band in pieces:
            whole = self.target(window)
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
            while (other := cache.enter(claim)) is not None:
                other.wait()
            for part in claim.missing:
                before = part.start - segments.start
                here = len(part) * height if claim.keeps else rows - before * height
                whole = where if len(part) == len(segments) else None
                made += self._decode(page, part, row + before, column, here, whole)
            if claim.keeps:
                cache.settle(claim, made)
        finally:  # an interrupt, too, leaves no claim behind that others would wait for
            cache.leave(claim)
        if claim.found:
            self.tally.append((0, 0, len(segments) - sum(map(len, claim.missing))))
        return [*claim.found, *made]

    def _decode(
        self, page: Page, segments: range, row: int, column: int, rows: int, where: list[int] | None
    ) -> list[Run]:
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


def _spread(
    work: Callable[[int], None],
    jobs: int,
    threads: int,
    stop: threading.Event,
    beside: Callable[[], None] | None = None,
    *,
    aside: bool = False,
) -> None:
    """Do jobs 0, 1, 2, … on so many threads, and `beside` on one more or before the jobs of one.

    The calling thread is one of them, and the others are shared. With `aside` it only waits, unless they are busy.
    """
    numbers = itertools.count()
    begun, broken = threading.Event(), threading.Event()

    def loop() -> None:
        begun.set()
        try:
            while not (stop.is_set() or broken.is_set()) and (number := next(numbers)) < jobs:
                work(number)
        except BaseException:
            broken.set()
            raise

    def first() -> None:
        if beside is not None:
            beside()
        loop()

    helpers: list[Future[None]] = []
    others = threads if aside else threads - 1
    try:
        with suppress(RuntimeError):  # the interpreter ends, or a larger pool came: the calling thread does the rest
            helpers.extend(shared.executor(others).submit(loop if k or aside else first) for k in range(others))
        if beside is not None and (aside or not helpers):
            beside()
        if aside and helpers and begun.wait(_PATIENCE_S):
            wait(helpers, return_when=FIRST_COMPLETED)
        else:
            loop()
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    except BaseException:  # of whichever thread; no other may go on to write when the caller has the error
        broken.set()
        wait([helper for helper in helpers if not helper.cancel()])
        raise


def read(
    plan: Plan,
    target: Target,
    done: Done,
    failed: Failed,
    *,
    threads: int | None = None,
    stop: threading.Event | None = None,
    aside: bool = False,
) -> None:
    """Carry out a plan.

    Parameters
    ----------
    plan : what to read
    target : the array (height, width, bands) into which a window is written, by its number
    done : told, from any thread, which windows are complete, each once
    failed : told, from any thread, which windows cannot be completed, and why; maybe more than once each
    threads : threads that decode, the calling one included; default as configured
    stop : set by anyone to leave the rest undone
    aside : let shared threads do all of it. A thread that makes arrays which live long should not decode besides:
        where the two mix, the memory of each decoded segment goes back to the system and is asked for anew
    """
    _Read(plan, target, done, failed, stop).run(threads or settings().threads, aside=aside)
