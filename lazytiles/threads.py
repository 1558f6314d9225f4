"""Threads that all reads and flows share: a crew for one plan, and a bounded pool for what flows read ahead."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial

from lazytiles.config import settings

Job = Callable[[], None]


class Pool:
    """Jobs on at most `limit` threads, which end as soon as nothing is queued.

    Jobs neither raise nor wait for a consumer, so that a stalled flow never holds a thread. Threads are daemons: what
    stops them at exit is the owner of the job.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start_anew()
        os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        self._lock = threading.RLock()
        self._jobs: deque[Job] = deque()
        self._threads: set[threading.Thread] = set()

    def submit(self, job: Job) -> None:
        """Run a job soon, on a thread of the pool."""
        thread = threading.Thread(target=self._work, name="lazytiles-ahead", daemon=True)
        with self._lock:
            self._jobs.append(job)
            if len(self._threads) >= self._limit:
                return
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException as error:
            with self._lock:
                self._threads.discard(thread)
                if self._threads and isinstance(error, Exception):
                    return  # one of those that run does it
                with suppress(ValueError):  # the thread came after all
                    self._jobs.remove(job)
            raise

    def is_here(self) -> bool:
        """Whether the caller runs on a thread of the pool."""
        here = threading.get_ident()
        return any(thread.ident == here for thread in tuple(self._threads))

    def join(self, seconds: float) -> None:
        """Wait for the threads of now, at most so long for all of them together."""
        end = time.monotonic() + seconds
        for thread in tuple(self._threads):
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._jobs:
                        self._threads.discard(threading.current_thread())
                        return
                    job = self._jobs.popleft()
                job()
                # The last job and what it holds must not live on while the thread waits for the lock.
                del job
        except BaseException:  # of this loop, as jobs raise nothing: what waits is another thread's then
            with self._lock:
                self._threads.discard(threading.current_thread())
                waiting = self._jobs.popleft() if self._jobs else None
            if waiting is not None:
                self.submit(waiting)
            raise


class Lane:
    """Jobs of one owner, at most `width` of them at once, on the threads of a pool."""

    def __init__(self, pool: Pool, width: int) -> None:
        self._pool = pool
        self._free = width
        self._lock = threading.RLock()
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Run a job after those submitted before it, as soon as the lane has room."""
        with self._lock:
            if self._free == 0:
                self._jobs.append(job)
                return
            self._free -= 1
        try:
            self._pool.submit(partial(self._drive, job))
        except BaseException:
            with self._lock:
                self._free += 1
            raise

    def _drive(self, job: Job | None) -> None:
        while job is not None:
            job()
            with self._lock:
                job = self._jobs.popleft() if self._jobs else None
                self._free += job is None


_MOST_SHARED = 64
_PATIENCE_S = 0.05  # for shared threads that are busy, before the calling one works itself


class _Shared:
    """The process's shared threads, as many as any crew has wanted at once; a forked child makes its own."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._size = 0
        self._lock = threading.RLock()

    def executor(self, helpers: int) -> ThreadPoolExecutor:
        """An executor of at least so many threads. Of no more than are wanted: it starts new ones up to its limit."""
        size = min(max(helpers, settings().threads - 1), _MOST_SHARED)
        with self._lock:
            if self._executor is None or size > self._size:
                larger = ThreadPoolExecutor(size, thread_name_prefix="lazytiles-shared")
                if self._executor is not None:
                    self._executor.shutdown(wait=False)
                self._executor, self._size = larger, size
            return self._executor

    def forget(self) -> None:
        self.__init__()  # type: ignore[misc]  # the threads of the parent do not exist in the child


shared = _Shared()
os.register_at_fork(after_in_child=shared.forget)


class Crew:
    """Jobs 0, 1, 2, … done by shared threads and by whoever calls `work`.

    Each helper, a shared thread, is told when it `ended`; the first of them does `first` before its jobs. `is_enough`
    is asked before each job; true leaves the rest undone. `close` must follow, whatever happens; it waits for the
    helpers, so that none goes on to write afterwards.
    """

    def __init__(
        self,
        job: Callable[[int], None],
        jobs: int,
        is_enough: Callable[[], bool],
        *,
        helpers: int,
        first: Callable[[], None] | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._job, self._jobs, self._is_enough = job, jobs, is_enough
        self._numbers = itertools.count()
        self._begun, self._broken = threading.Event(), threading.Event()
        self._helpers: list[Future[None]] = []
        self._first = first
        try:
            with suppress(RuntimeError):  # the interpreter ends, or a larger pool came: the caller does the rest
                for k in range(helpers):
                    helper = shared.executor(helpers).submit(self._help, k == 0)
                    self._helpers.append(helper)
                    helper.add_done_callback(lambda _: ended())
            if not self._helpers and first is not None:
                first()
        except BaseException:
            self.close()
            raise

    @property
    def has_begun(self) -> bool:
        """Whether a helper is at work, after a moment's patience; else the shared threads are busy with other crews."""
        return bool(self._helpers) and self._begun.wait(_PATIENCE_S)

    @property
    def is_over(self) -> bool:
        """Whether no helper is at work or will be."""
        return all(helper.done() for helper in self._helpers)

    def work(self) -> None:
        """Do jobs here until none is left."""
        try:
            while not (self._broken.is_set() or self._is_enough()) and (number := next(self._numbers)) < self._jobs:
                self._job(number)
        except BaseException:
            self._broken.set()
            raise

    def join(self) -> None:
        """Wait for the helpers; what one of them raised is raised here."""
        for helper in self._helpers:
            if not helper.cancel():
                helper.result()

    def close(self) -> None:
        """Leave the rest undone and wait for the helpers."""
        self._broken.set()
        wait([helper for helper in self._helpers if not helper.cancel()])

    def _help(self, is_first: bool) -> None:
        self._begun.set()
        if is_first and self._first is not None:
            self._first()
        self.work()


def do_all(job: Callable[[int], None], jobs: int, threads: int | None = None) -> None:
    """Jobs 0, 1, 2, … on so many threads, the calling one among them; the first error met is raised."""
    crew = Crew(job, jobs, lambda: False, helpers=min(threads or settings().threads, jobs) - 1)
    try:
        crew.work()
        crew.join()
    finally:
        crew.close()
