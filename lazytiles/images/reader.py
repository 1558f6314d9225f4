"""Many windows of many pages: each segment read and decoded once, its parts scattered where they belong.

`carry_out` is the only step that touches files. Its engines do the jobs of one plan: the calling thread, shared
threads beside it, or ranges fetched from a server first. What is not finished when it is stopped is left alone.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import count, settings
from lazytiles.errors import LazyTilesError, LimitError, SegmentError
from lazytiles.images.cache import Claim, Run, cache, filled
from lazytiles.images.files import FileKey, pool
from lazytiles.images.mapped import row_ranges, slice_windows
from lazytiles.images.page import Page
from lazytiles.images.plan import Plan, Targets
from lazytiles.images.ranges import Range, portions
from lazytiles.images.remote import remote
from lazytiles.threads import Crew


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


class Arrived(NamedTuple):
    """A batch whose windows are all read, or that cannot be completed.

    Parameters
    ----------
    batch : its number in the plan
    failed : the windows that could not be read, and why; where there are any, others may be missing too
    """

    batch: int
    failed: Mapping[int, LazyTilesError]


class _Progress:
    """What is still missing of each window and each batch of a plan, and the batches that have arrived."""

    def __init__(self, plan: Plan, stop: threading.Event | None) -> None:
        n = len(plan.windows)
        self.pieces: list[int] = np.bincount(plan.pieces[:, 0], minlength=n).tolist()
        self.windows: list[int] = np.bincount(plan.batch).tolist()
        self.batch: list[int] = plan.batch.tolist()
        self.left = sum(map(bool, self.windows))  # batches that have not arrived
        self.stop = stop
        self.arrived = deque[Arrived]()
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)

    def is_enough(self) -> bool:
        """Whether nothing that is left is wanted any more."""
        return self.left == 0 or (self.stop is not None and self.stop.is_set())

    def settle(self, pieces: Iterable[Sequence[int]], failed: Mapping[int, LazyTilesError]) -> None:
        """Some pieces have been written; the windows of others have failed."""
        with self.lock:
            left = self.pieces
            for piece in pieces:
                window = piece[0]
                left[window] -= 1
                if not left[window]:
                    self._complete(window)
            self._fail(failed)

    def settle_windows(self, windows: Iterable[int], failed: Mapping[int, LazyTilesError]) -> None:
        """Some windows are complete; others have failed."""
        with self.lock:
            for window in windows:
                self._complete(window)
            self._fail(failed)

    def _complete(self, window: int) -> None:
        batch = self.batch[window]
        self.windows[batch] -= 1
        if not self.windows[batch]:
            self._arrive(batch, {})

    def _fail(self, failed: Mapping[int, LazyTilesError]) -> None:
        for window, error in failed.items():
            if self.windows[self.batch[window]] > 0:
                self.windows[self.batch[window]] = -1  # below zero: nothing that comes later completes it
                self._arrive(self.batch[window], {window: error})

    def _arrive(self, batch: int, failed: Mapping[int, LazyTilesError]) -> None:
        self.left -= 1
        self.arrived.append(Arrived(batch, failed))
        self.changed.notify_all()

    def wake(self) -> None:
        """Let who waits look again."""
        with self.changed:
            self.changed.notify_all()

    def arrivals(self, is_over: Callable[[], bool]) -> Iterator[Arrived]:
        """The batches as they arrive, until no more will come or none is wanted."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.arrived or is_over())
                if not self.arrived or (self.stop is not None and self.stop.is_set()):
                    return
                one = self.arrived.popleft()
            yield one


def carry_out(
    plan: Plan,
    targets: Targets,
    *,
    threads: int | None = None,
    stop: threading.Event | None = None,
    aside: bool = False,
) -> Iterator[Arrived]:
    """Read what a plan says; gives each batch as soon as all of it is there, or one window of it cannot be read.

    Parameters
    ----------
    plan : what to read
    targets : the array (height, width, bands) into which each window is written
    threads : threads that decode, the calling one included; default as configured
    stop : set by anyone to leave the rest undone
    aside : let shared threads do all of it. A thread that makes arrays which live long should not decode besides:
        where the two mix, the memory of each decoded segment goes back to the system and is asked for anew

    Yields
    ------
    Arrived, each batch of the plan that has a window once, in the order in which they arrive
    """
    progress, tally = _Progress(plan, stop), list[Counts]()
    threads = threads or settings().threads
    progress.settle_windows(plan.empty.tolist(), _changed_files(plan))
    try:
        if any(page.file.is_remote for page in plan.windows.pages):
            yield from _from_afar(plan, targets, progress, tally, threads)
            return
        if len(plan.raw):
            progress.settle_windows(*slice_windows(plan.windows, plan.raw.tolist(), targets))
        jobs = _Jobs(plan, targets, tally)
        order = _kept_first(plan) if settings().cache_bytes else range(len(plan.jobs))
        work = _settling(jobs, order, progress)
        first = (lambda: _advise(plan)) if len(order) > 1 else None
        yield from _by_crew(work, len(order), progress, min(threads, len(order)), first=first, aside=aside)
    finally:
        sums = np.array([(0, plan.raw_bytes, 0), *tally]).sum(axis=0).tolist()
        for name, amount in zip(("segments_decoded", "bytes_read", "cache_hits"), sums, strict=True):
            count(name, amount)


def _settling(jobs: _Jobs, order: Sequence[int], progress: _Progress) -> Callable[[int], None]:
    """Does the k-th job of an order, and says what has come of it."""

    def work(k: int) -> None:
        progress.settle(*jobs.do(order[k]))

    return work


def _by_crew(
    work: Callable[[int], None],
    jobs: int,
    progress: _Progress,
    threads: int,
    *,
    first: Callable[[], None] | None = None,
    aside: bool = False,
) -> Iterator[Arrived]:
    """Jobs 0, 1, 2, … on so many threads, and the batches that arrive meanwhile."""
    if not jobs:
        yield from progress.arrivals(lambda: True)
        return
    helpers = threads if aside else threads - 1
    crew = Crew(work, jobs, progress.is_enough, helpers=helpers, first=first, ended=progress.wake)
    try:
        if aside and crew.has_begun:
            yield from progress.arrivals(lambda: crew.is_over)
        else:
            crew.work()
        crew.join()
    finally:
        crew.close()
    yield from progress.arrivals(lambda: True)


def _from_afar(
    plan: Plan, targets: Targets, progress: _Progress, tally: list[Counts], threads: int
) -> Iterator[Arrived]:
    """The same with files behind addresses: what a portion of the plan needs is fetched first, in one go."""
    raw = plan.raw.tolist()
    pages, boxes = plan.windows.pages, plan.windows.boxes.tolist()
    slices = [row_ranges(pages[plan.windows.page[number]], boxes[number]) for number in raw]
    for part in portions(slices):
        with remote.ahead(item for k in part for item in slices[k]):
            progress.settle_windows(*slice_windows(plan.windows, raw[part.start : part.stop], targets))
        yield from progress.arrivals(lambda: True)
    jobs = _Jobs(plan, targets, tally)
    wanted = [jobs.wanted(number) for number in range(len(plan.jobs))]
    for part in portions(wanted):
        with remote.ahead(item for k in part for item in wanted[k]):
            yield from _by_crew(_settling(jobs, part, progress), len(part), progress, threads)


def _changed_files(plan: Plan) -> dict[int, LazyTilesError]:
    """The windows of files that are no longer what they were when they were opened."""
    windows, failed = plan.windows, dict[int, LazyTilesError]()
    files = {page.file for page in windows.pages}
    remote.refresh(key.path for key in files if key.is_remote)
    for key in files:
        try:
            pool.check(key)
        except LazyTilesError as error:
            on = [k for k, page in enumerate(windows.pages) if page.file == key]
            failed.update(dict.fromkeys(np.flatnonzero(np.isin(windows.page, on)).tolist(), error))
    return failed


def _kept_first(plan: Plan) -> list[int]:
    """The jobs, those first that are kept decoded: what the others decode would push them out of the cache."""
    pages = plan.windows.pages
    held = cache.held((pages[j[0]].key, j[1], j[1] + j[2]) for j in plan.jobs.tolist())
    return sorted(range(len(held)), key=lambda k: not held[k])


def _advise(plan: Plan) -> None:
    ranges: dict[FileKey, list[tuple[int, int]]] = {}
    for job, (offset, size, _) in zip(plan.jobs.tolist(), plan.ranges.tolist(), strict=True):
        key = plan.windows.pages[job[0]].file
        if size and 0 <= offset < key.size:
            ranges.setdefault(key, []).append((offset, size))
    for key, spans in ranges.items():
        with suppress(LazyTilesError):  # the read itself will say it, with the window's name
            pool.advise(key, spans)


Counts = tuple[int, int, int]  # segments decoded, bytes read, segments found in the cache
Piece = list[int]  # a line of `Plan.pieces`


class _Jobs:
    """The jobs of a plan, to be done in any order by any threads, each once."""

    def __init__(self, plan: Plan, targets: Targets, tally: list[Counts]) -> None:
        self.pages, self.bands = plan.windows.pages, plan.windows.bands
        self.targets, self.tally = targets, tally
        self.jobs, self.ranges = plan.jobs.tolist(), plan.ranges.tolist()
        self.starts, self.pieces = plan.starts.tolist(), plan.pieces

    def wanted(self, number: int) -> list[Range]:
        """The byte ranges of the segments of a job that are not kept decoded."""
        at, first, length = self.jobs[number][:3]
        page = self.pages[at]
        left = [k for part in cache.missing(page.key, first, first + length) for k in part]
        spans = ((int(page.offsets[k]), int(page.counts[k])) for k in left)
        return [(page.file.path, a, a + n) for a, n in spans if n and a >= 0 and a + n <= page.file.size]

    def do(self, number: int) -> tuple[list[Piece], dict[int, LazyTilesError]]:
        """Read and decode a job; the pieces that were written, and the windows that cannot be completed."""
        at, first, length, row, column = self.jobs[number]
        page = self.pages[at]
        pieces = self.pieces[self.starts[number] : self.starts[number + 1]].tolist()
        rows = max(piece[2] for piece in pieces)
        segments = range(first, first + length)
        try:
            self._scatter(self._blocks(page, segments, row, column, rows, self.ranges[number]), pieces)
        except LazyTilesError as error:
            return self._rescued(page, segments, row, column, pieces, error)
        return pieces, {}

    def _rescued(
        self, page: Page, segments: range, row: int, column: int, pieces: list[Piece], error: LazyTilesError
    ) -> tuple[list[Piece], dict[int, LazyTilesError]]:
        """The pieces of a job that need nothing damaged of it, read by themselves; the others have failed."""
        if len(segments) == 1 and page.codec.lzw is None:
            return [], dict.fromkeys(sorted({piece[0] for piece in pieces}), error)
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
                good.append(piece)
        return good, failed

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
