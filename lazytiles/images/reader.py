"""Many windows of many pages: each segment read and decoded once, its parts scattered where they belong.

`carry_out` is the only step that touches files. Its engines do the jobs of one plan: the calling thread, shared
threads beside it, or ranges fetched from a server first. What is not finished when it is stopped is left alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lazytiles.buffers import Placed
from lazytiles.config import count, settings
from lazytiles.errors import LazyTilesError
from lazytiles.images.files import FileKey, pool
from lazytiles.images.jobs import COUNTED, TOGETHER, Jobs
from lazytiles.images.mapped import row_ranges, slice_windows
from lazytiles.images.plan import Plan, Targets, Windows, planned
from lazytiles.images.readers import Parts
from lazytiles.images.remote import portions, remote
from lazytiles.threads import Crew

# Of small jobs more threads do less: each job hands the interpreter over several times, which takes the longer the more
# want it. Measured on 16 cores: JPEG tiles of 256 pixels 5,290 a second on 8 threads, 3,620 on 16 (see
# docs/understand/cores.md). On two cores one thread decodes zstd tiles of 4 KiB faster than two.
_LARGE_JOB = 2**20  # bytes decoded
_MOST_FOR_SMALL_JOBS = 8
_LEAST_FOR_A_THREAD = 2**12  # bytes of a small job for each of the threads
_MOST_JOBS = 64  # that a thread does at one go
_LOOKED_AT = 16  # places of a plan, to see whether its files are in memory
_SHARES = 4  # of the jobs that each thread has at the least


class Arrived(NamedTuple):
    """A batch whose windows are all read, or that cannot be completed."""

    batch: int  # its number in the plan
    failed: Mapping[int, LazyTilesError]  # why windows could not be read; if any, others may be missing too


class _Progress:
    """What is still missing of each window and each batch of a plan, and the batches that have arrived."""

    def __init__(self, plan: Plan, stop: threading.Event | None) -> None:
        # A window that needs no job is one piece.
        pieces = np.bincount(plan.pieces[:, 0], minlength=len(plan.windows))
        self.pieces: list[int] = np.maximum(pieces, 1).tolist()
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

    def settle(self, pieces: Iterable[int], failed: Mapping[int, LazyTilesError]) -> None:
        """A piece of each of some windows has been written; other windows have failed."""
        with self.lock:
            left = self.pieces
            for window in pieces:
                left[window] -= 1
                if not left[window]:
                    batch = self.batch[window]
                    self.windows[batch] -= 1
                    if not self.windows[batch]:
                        self._arrive(batch, {})
            for window, error in failed.items():
                batch = self.batch[window]
                if self.windows[batch] > 0:
                    self.windows[batch] = -1  # below zero: nothing that comes later completes it
                    self._arrive(batch, {window: error})

    def _arrive(self, batch: int, failed: Mapping[int, LazyTilesError]) -> None:
        self.left -= 1
        self.arrived.append(Arrived(batch, failed))
        self.changed.notify_all()

    def wake(self) -> None:
        """Let who waits look again."""
        with self.changed:
            self.changed.notify_all()

    def arrivals(self, is_over: Callable[[], bool] = lambda: True) -> Iterator[Arrived]:
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
    placed: Placed | None = None,
    threads: int | None = None,
    readers: int = 0,
    stop: threading.Event | None = None,
    aside: bool = False,
) -> Iterator[Arrived]:
    """Read what a plan says; gives each batch as soon as all of it is there, or one window of it cannot be read.

    Parameters
    ----------
    plan : what to read
    targets : the array (height, width, bands) into which each window is written
    placed : the same in shared memory, for reader processes
    threads : threads that decode, the calling one included; default as configured
    readers : processes that decode instead, where the plan is sendable
    stop : set by anyone to leave the rest undone
    aside : let shared threads do all of it. A thread that makes arrays which live long should not decode besides:
        where the two mix, the memory of each decoded segment goes back to the system and is asked for anew

    Yields
    ------
    Arrived, each batch of the plan that has a window once, in the order in which they arrive
    """
    progress = _Progress(plan, stop)
    threads = threads or settings().threads
    progress.settle(plan.empty.tolist(), _changed_files(plan))
    jobs = Jobs.of(plan, targets)
    try:
        if any(page.file.is_remote for page in plan.windows.pages):
            yield from _from_afar(plan, jobs, progress, threads)
        else:
            yield from _from_here(plan, jobs, progress, threads, placed, readers, aside)
        if not progress.is_enough():
            raise LazyTilesError(f"{progress.left} batches were neither read nor refused; please report this")
    finally:
        sums = np.array([(0, plan.raw_bytes, 0), *jobs.tally]).sum(axis=0).tolist()
        for name, amount in zip(COUNTED, sums, strict=True):
            count(name, amount)


def _from_here(
    plan: Plan, jobs: Jobs, progress: _Progress, threads: int, placed: Placed | None, readers: int, aside: bool
) -> Iterator[Arrived]:
    """What a plan of local files says, by readers or by threads."""
    if len(plan.raw):
        progress.settle(*slice_windows(plan.windows, plan.raw.tolist(), jobs.targets))
    if placed is not None and readers:
        with Parts(plan, placed, jobs, readers, lambda done: progress.settle(*done), progress.is_enough) as parts:
            # One thread talks to the workers, and one tells the system what they will read; others read while no worker
            # is ready, or what is kept here.
            others = threads - 1 if parts.is_local else 0
            tasks: list[Callable[[], None]] = [
                parts.run,
                partial(_advise, plan, jobs, looks=True),
                *[parts.help] * others,
            ]
            yield from _by_crew(lambda k: tasks[k](), len(tasks), progress, len(tasks), aside=aside)
        return
    first = partial(_advise, plan, jobs) if len(plan.jobs) > 1 else None
    is_small = plan.bytes_decoded < _LARGE_JOB * len(plan.jobs)
    if is_small:
        useful = plan.bytes_decoded // (_LEAST_FOR_A_THREAD * len(plan.jobs))
        threads = min(threads, max(1, useful), _MOST_FOR_SMALL_JOBS)
    order: Sequence[int] = range(len(plan.jobs))
    if settings().cache_bytes:  # first what is kept decoded: what the others decode would push it out of the cache
        held = jobs.find()
        order = sorted(order, key=lambda k: not held[k]) if any(held) else order
        if all(held) and is_small:
            threads = 1  # nothing but small copies
    cut = _parts(plan, order, threads)
    work = partial(_settled, jobs, cut, progress)
    yield from _by_crew(work, len(cut), progress, min(threads, len(cut)), first=first, aside=aside)


def _from_afar(plan: Plan, jobs: Jobs, progress: _Progress, threads: int) -> Iterator[Arrived]:
    """The same with files behind addresses: what a portion of the plan needs is fetched first, in one go."""
    yield from progress.arrivals()  # batches of windows without a pixel are complete
    raw = plan.raw.tolist()
    pages, boxes = plan.windows.pages, plan.windows.boxes.tolist()
    slices = [row_ranges(pages[plan.windows.page[number]], boxes[number]) for number in raw]
    for part in portions(slices):
        with remote.ahead(item for k in part for item in slices[k]):
            progress.settle(*slice_windows(plan.windows, raw[part.start : part.stop], jobs.targets))
        yield from progress.arrivals()
    wanted = [jobs.wanted(number) for number in range(len(plan.jobs))]
    for part in portions(wanted):
        with remote.ahead(item for k in part for item in wanted[k]):
            cut = _parts(plan, part, threads)
            yield from _by_crew(partial(_settled, jobs, cut, progress), len(cut), progress, threads)


def _parts(plan: Plan, order: Sequence[int], threads: int) -> list[Sequence[int]]:
    """Jobs in an order in parts, each of which a thread does at one go."""
    most = min(len(order) // (_SHARES * threads), TOGETHER * len(plan.jobs) // max(1, plan.bytes_decoded), _MOST_JOBS)
    size = max(1, most)
    return [order[k : k + size] for k in range(0, len(order), size)]


def _settled(jobs: Jobs, parts: Sequence[Sequence[int]], progress: _Progress, k: int) -> None:
    """The k-th of some parts, done and told."""
    progress.settle(*jobs.do(parts[k]))


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
    if jobs:
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
    yield from progress.arrivals()


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


def _advise(plan: Plan, jobs: Jobs, *, looks: bool = False) -> None:
    """Tell the system what will be read, but for what is kept decoded; if it `looks`, not where all is in memory."""
    wanted = np.delete(np.arange(len(plan.jobs)), list(jobs.kept))
    keys = [page.file for page in plan.windows.pages]
    limit = np.array([key.size for key in keys])
    page, (offset, size) = plan.jobs[wanted, 0], plan.ranges[wanted, :2].T
    is_there = (size > 0) & (offset >= 0) & (offset < limit[page])
    page, offset, size = page[is_there], offset[is_there], size[is_there]
    step = -(-len(page) // _LOOKED_AT) or 1
    with suppress(LazyTilesError):  # the read itself will say it, with the window's name
        few = zip(page[::step].tolist(), offset[::step].tolist(), strict=True)
        if not len(page) or (looks and all(pool.is_in_memory(keys[at], first) for at, first in few)):
            return
    # What lies side by side is one range.
    begins = np.flatnonzero(np.r_[True, (page[1:] != page[:-1]) | (offset[1:] != (offset + size)[:-1])])
    ranges: dict[FileKey, list[tuple[int, int]]] = {}
    heads = zip(page[begins].tolist(), offset[begins].tolist(), np.add.reduceat(size, begins).tolist(), strict=True)
    for at, first, nbytes in heads:
        ranges.setdefault(keys[at], []).append((first, nbytes))
    for key, spans in ranges.items():
        with suppress(LazyTilesError):
            pool.advise(key, spans)


def read_windows(
    windows: Windows, inner: tuple[int, int, int], dtype: np.dtype[Any], *, threads: int | None = None
) -> NDArray[Any]:
    """Windows of one size as one new array (n, *inner); the first that cannot be read raises its error."""
    out = np.empty((len(windows), *inner), dtype)
    for _, failed in carry_out(planned(windows), out, threads=threads):
        if failed:
            raise failed[min(failed)]
    return out
