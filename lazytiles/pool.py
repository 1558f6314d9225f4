"""The bounded pool of threads that all flows share; it has no thread while there is nothing to do."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

Job = Callable[[], None]


class Pool:
    """Jobs on at most `limit` threads, which end as soon as nothing is queued.

    Jobs neither raise nor wait for a consumer, so that a stalled flow never holds a thread.

    Notes
    -----
    Threads are daemons: what stops them at exit is the owner of the job.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start_anew()
        if hasattr(os, "register_at_fork"):
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
        while True:
            with self._lock:
                if not self._jobs:
                    self._threads.discard(threading.current_thread())
                    return
                job = self._jobs.popleft()
            job()
            # The last job and what it holds must not live on while the thread waits for the lock.
            del job


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
