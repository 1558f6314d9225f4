"""The reader processes of this process, and how the parts of one plan are handed out to them."""

from __future__ import annotations

import atexit
import itertools
import os
import pickle
import select
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from lazytiles.buffers import Memory, Placed, shared_shelf
from lazytiles.config import configure, count, settings, usable_cpus, when_configured
from lazytiles.errors import LazyTilesError
from lazytiles.images.cache import segment_cache
from lazytiles.images.jobs import Jobs, Settled
from lazytiles.images.plan import Plan
from lazytiles.images.workers import Answer, Sheet, Wire

PROGRAM = "from lazytiles.images.workers import serve; serve({fds})"  # what a worker runs
_MOST_THREADS = 4  # of a worker
_STARTS = 3  # workers that may die before they were ready, until no more are started
_LEAST_JOBS = 16  # of a plan that is worth sending
_MOST_SEGMENTS = 16  # of a part, about
_AHEAD = 2  # parts that a connection has at once, so that a worker never waits for the next
_TALL, _WIDE = 1024, 4  # rows of strips, and rows and columns of tiles, that one worker keeps together
_PATIENCE_S = 0.1  # between looks for workers that have come, and for a worker to end
_sheets = itertools.count()


class GoneError(Exception):
    """The worker at the other end of a connection is no more."""


class Connection:
    """One thread of one worker; for one reading thread at a time."""

    def __init__(self, worker: Worker, ours: socket.socket) -> None:
        self.worker, self._wire = worker, Wire(ours)
        self.parts = deque[int]()  # asked for and not answered
        self._plan = -1  # the number of the plan that the other end has last got
        self._known: dict[int, weakref.ref[Memory]] = {}  # the memory that it knows

    def fileno(self) -> int:
        """For `select`."""
        return self._wire.socket.fileno()

    def close(self) -> None:
        """The worker ends then."""
        self._wire.socket.close()

    @property
    def has_more(self) -> bool:
        """Whether something of an answer is here that `select` does not know of."""
        return self._wire.has_more

    def receive(self) -> Any:
        """The next message of the worker, waited for."""
        try:
            return self._wire.receive()[0]
        except (EOFError, OSError) as error:
            raise GoneError from error

    def ask(self, sheet: Sheet, memories: Sequence[Memory], part: int, numbers: Sequence[int]) -> None:
        """Have jobs of a plan done, which go into some shared memories; GoneError where the worker is no more."""
        try:
            if self._plan != sheet.number:
                new = {memory.number: memory for memory in memories if memory.number not in self._known}
                gone = tuple(number for number, memory in self._known.items() if memory() is None)
                fresh = tuple((memory.number, memory.nbytes) for memory in new.values())
                fds = [memory.fd for memory in new.values() if memory.fd is not None]
                self._wire.send(sheet._replace(new=fresh, gone=gone), fds)
                self._plan = sheet.number
                self._known.update((number, weakref.ref(memory)) for number, memory in new.items())
                for number in gone:
                    del self._known[number]
            self._wire.send((sheet.number, numbers))
        except OSError as error:
            raise GoneError from error
        self.parts.append(part)


class Worker:
    """A process that reads, and its connections."""

    def __init__(self, threads: int) -> None:
        # It finds what this process has found, but for what lies in the folder of the user's script.
        own = str(Path(__file__).parents[2])
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        script = str(Path(main).resolve().parent) if main else None
        paths = [*(os.path.abspath(entry) for entry in sys.path if entry and entry not in (own, script)), own]
        pairs = [socket.socketpair() for _ in range(threads)]
        try:
            fds = [theirs.fileno() for _, theirs in pairs]
            program = f"import sys; sys.path[:] = {paths!r}; " + PROGRAM.format(fds=fds)
            command = [sys.executable, "-c", program]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=fds, start_new_session=True, close_fds=True
            )
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        self.connections = [Connection(self, ours) for ours, _ in pairs]
        self.is_ready, self.pid = False, self._process.pid

    def close(self, *, at_once: bool = False) -> None:
        """Let it end by itself, or end it; nothing of it writes afterwards."""
        for connection in self.connections:
            connection.close()
        if at_once:
            self._process.kill()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Readers:
    """The reader processes of this process: started when they are first wanted, shared by all reads.

    Notes
    -----
    A forked child has none until it wants its own.
    """

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self._idle: set[Connection] = set()
        self._lock = threading.Lock()
        self._failures = 0  # workers that died before they were ready

    def lease(self, wanted: int) -> list[Connection]:
        """See that so many workers are there or on their way; the connections of those that are ready and free.

        They are the caller's until they are given back.
        """
        with self._lock:
            while len(self.workers) < wanted and self._failures < _STARTS:
                self.workers.append(Worker(_threads_of(wanted)))
            starting = {worker.connections[0]: worker for worker in self.workers if not worker.is_ready}
            for connection in select.select(list(starting), [], [], 0)[0] if starting else ():
                worker = starting[connection]
                try:
                    for each in worker.connections:
                        each.receive()
                except GoneError:
                    self._failures += 1
                    self.workers.remove(worker)
                    worker.close()
                    if self._failures == _STARTS:
                        warnings.warn(
                            "reader processes do not start, so threads read instead; pass readers=0, or see what "
                            '`python -c "import lazytiles.images.workers"` says',
                            stacklevel=2,
                        )
                else:
                    worker.is_ready = True
                    self._failures = 0
                    self._idle.update(worker.connections)
            taken = [each for worker in self.workers[:wanted] for each in worker.connections if each in self._idle]
            self._idle.difference_update(taken)
            return taken

    def give_back(self, connections: Iterable[Connection]) -> None:
        """The end of a lease."""
        with self._lock:
            self._idle.update(each for each in connections if each.worker in self.workers)

    def replace(self, worker: Worker) -> None:
        """Put another worker in the place of one; the others go on with the segments that are theirs."""
        with self._lock:
            if worker not in self.workers:
                return
            self._idle.difference_update(worker.connections)
            self.workers[self.workers.index(worker)] = Worker(len(worker.connections))
        worker.close(at_once=True)

    def descriptors(self) -> set[int]:
        """The descriptors of all connections."""
        with self._lock:
            return {each.fileno() for worker in self.workers for each in worker.connections}

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            workers, self.workers, self._idle = self.workers, [], set()
        for worker in workers:
            worker.close()

    def fit(self) -> None:
        """End the workers where the settings want none any more."""
        if not settings().readers:
            self.close()

    def forget(self) -> None:
        """Start anew in a forked child; the workers are the parent's."""
        for worker in self.workers:
            for connection in worker.connections:
                connection.close()
        self.__init__()  # type: ignore[misc]  # the same object stays imported everywhere
        configure(readers=0)  # such a child is one of many, as those of a `DataLoader` are


def _threads_of(workers: int) -> int:
    """How many threads each of so many workers has."""
    return max(1, min(_MOST_THREADS, usable_cpus() // max(1, workers)))


readers = Readers()
when_configured.append(readers.fit)
atexit.register(readers.close)
os.register_at_fork(after_in_child=readers.forget)


def is_sendable(plan: Plan) -> bool:
    """Whether workers are to read what a plan says: much of it, or what one of them may keep and this process does not.

    They open the files by themselves, which must be possible.
    """
    pages, jobs = plan.windows.pages, plan.jobs
    if not all(page.origin is not None and not page.file.is_remote for page in pages):
        return False
    if len(jobs) >= _LEAST_JOBS:
        return True
    missing = (segment_cache.missing(pages[at].key, first, first + n) for at, first, n, _, _ in jobs.tolist())
    return settings().cache_bytes > 0 and any(missing)


class Parts:
    """A plan in parts, for workers and, while none is ready, for threads of this process; `settle` is told of each.

    Workers are leased to it by ``with``.
    """

    def __init__(
        self,
        plan: Plan,
        placed: Placed,
        jobs: Jobs,
        workers: int,
        settle: Callable[[Settled], None],
        is_enough: Callable[[], bool],
    ) -> None:
        self._jobs, self._workers, self._settle, self._is_enough = jobs, workers, settle, is_enough
        self._keeps = settings().cache_bytes > 0
        owners: Any = np.zeros(len(plan.jobs), np.int64)
        if self._keeps:
            pages = plan.windows.pages
            tall = [_TALL if page.grid[1] == 1 else _WIDE for page in pages]
            seeds = [crc32(repr((page.file.path, page.number)).encode()) for page in pages]
            places = plan.jobs[:, [0, 3, 4]].tolist()
            keepers = [seeds[at] + row // tall[at] + 31 * (column // tall[at]) for at, row, column in places]
            owners = np.where(jobs.find(), -1, np.array(keepers) % workers)
        self._suspects = deque[int]()  # begun by workers that have died
        # Of each worker, or of all where nothing is kept, and last of this process: the parts not begun.
        self._left = [deque[int]() for _ in range((workers if self._keeps else 1) + 1)]
        self._leased: list[Connection] = []
        self._hungry: Iterable[Connection] = ()  # those of them that may have less to do than they could
        threads = max(workers * _threads_of(workers), settings().threads)
        every = [(k, np.flatnonzero(owners == k)) for k in range(-1, len(self._left) - 1)]
        most = max(1, _MOST_SEGMENTS * len(plan.jobs) // int(plan.jobs[:, 2].sum()))
        share = threads // workers if self._keeps else threads
        cut = [(k, part) for k, numbers in every for part in _cut(numbers, share, most)]
        cut.sort(key=lambda part: (part[0] >= 0, part[1][0]))  # what is kept here comes first
        self._parts = [_short(numbers.tolist()) for _, numbers in cut]
        for part, (owner, _) in enumerate(cut):
            self._left[owner].append(part)
        self._tables, self._sheet, self._memories = _sheet_of(plan, placed, jobs, workers)

    @property
    def is_local(self) -> bool:
        """Whether threads of this process are to help: no worker is ready, or something is kept here."""
        return not self._leased or bool(self._left[-1])

    def help(self) -> None:
        """Do parts on this thread: those whose segments are kept here, and others while no worker is ready."""
        while not self._is_enough() and (part := self._next(-1 if self._leased else None)) is not None:
            self._do_here(part)

    def _next(self, owner: int | None) -> int | None:
        """A part that is not begun: of a worker, of this process (-1) or of whomever (None); None: there is none."""
        if owner is None:
            left = self._left[::-1]
        else:
            left = [self._left[owner if self._keeps or owner < 0 else 0]]
        for parts in left:
            with suppress(IndexError):
                return parts.popleft()
        return None

    def _do_here(self, part: int) -> None:
        self._settle(self._jobs.do(self._parts[part]))

    def run(self) -> None:
        """Keep the workers busy until all is done; what they raise is raised here."""
        try:
            looked = time.monotonic()
            while not self._is_enough():
                if not self._leased or time.monotonic() > looked + _PATIENCE_S:
                    self._lease()
                    looked = time.monotonic()
                hungry, self._hungry = self._hungry, ()
                for connection in hungry:
                    self._feed(connection)
                if any(connection.parts for connection in self._leased):
                    self._collect()
                elif any(self._left) and self._suspects and readers.workers and not self._leased:
                    time.sleep(_PATIENCE_S / 10)  # until others are ready: what killed these may kill this process
                elif any(self._left):  # of workers that are not ready, or busy with other plans
                    if (part := self._next(None)) is not None:
                        self._do_here(part)
                elif self._suspects:
                    self._try_alone()
                else:
                    return
        except BaseException:
            for connection in self._leased:
                readers.replace(connection.worker)  # it may be in mid-answer, and writing
            self._leased = []
            raise

    def _lease(self) -> None:
        self._attend([*self._leased, *readers.lease(self._workers)])

    def _attend(self, connections: list[Connection]) -> None:
        """These are the leased ones from now on."""
        self._leased = self._hungry = connections
        self._by_fd = {connection.fileno(): connection for connection in connections}
        self._poll = select.poll()
        for fd in self._by_fd:
            self._poll.register(fd, select.POLLIN)

    def _feed(self, connection: Connection) -> None:
        if connection not in self._leased:  # its worker has died meanwhile, by what another connection of it says
            return
        owner = readers.workers.index(connection.worker) if connection.worker in readers.workers else 0
        while len(connection.parts) < _AHEAD and not self._is_enough() and (part := self._next(owner)) is not None:
            try:
                connection.ask(self._sheet, self._memories, part, self._parts[part])
            except GoneError:
                connection.parts.append(part)
                self._lost(connection.worker)
                return

    def _collect(self) -> None:
        """Wait for answers, and take those that are there."""
        self._hungry = [self._by_fd[fd] for fd, _ in self._poll.poll(_PATIENCE_S * 1000)]
        for connection in self._hungry:
            self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        while connection in self._leased:  # its worker may have died meanwhile, by what another connection of it says
            try:
                answer = Answer(*connection.receive())
            except GoneError:
                self._lost(connection.worker)
                return
            self._take(answer, self._jobs.windows_of(self._parts[connection.parts.popleft()]))
            if not connection.has_more:
                return

    def _take(self, answer: Answer, windows: list[int]) -> None:
        for name, amount in answer.counted.items():
            count(name, amount)
        if answer.error is not None:
            raise answer.error
        written = [w for w in windows if w not in answer.failed] if answer.failed else windows
        self._settle(Settled(written, answer.failed))

    def _lost(self, worker: Worker) -> None:
        """A worker has died: its parts are begun again, but for one that has killed two."""
        gone = [connection for connection in self._leased if connection.worker is worker]
        left = [connection for connection in self._leased if connection.worker is not worker]
        readers.replace(worker)
        for connection in gone:
            for k, part in enumerate(connection.parts):
                # Those behind the first had not begun.
                (self._suspects if k == 0 else self._left[0]).append(part)
            connection.parts.clear()
        self._attend(left)  # to what it has left, too

    def _try_alone(self) -> None:
        """Do the jobs of a part one by one with nothing beside, after a worker has died of it or of another."""
        part = self._suspects.popleft()
        for number in self._parts[part]:
            while not self._leased:
                self._lease()
                if not self._leased and not readers.workers:
                    raise LazyTilesError("reader processes die and cannot be started anew; read with readers=0")
                time.sleep(0 if self._leased else _PATIENCE_S / 10)
            connection, windows = self._leased[0], self._jobs.windows_of([number])
            try:
                connection.ask(self._sheet, self._memories, part, [number])
                answer = Answer(*connection.receive())
            except GoneError:
                connection.parts.clear()
                self._lost(connection.worker)
                at, segment = self._jobs.lines[number, :2].tolist()
                error = LazyTilesError(
                    f"{self._jobs.pages[at]}: two reader processes died while they read segment {segment}: memory ran "
                    "out, or its codec crashed; read it with readers=0 to see which, or leave its windows out"
                )
                self._settle(Settled([], dict.fromkeys(windows, error)))
            else:
                connection.parts.clear()
                self._take(answer, windows)

    def __enter__(self) -> Self:
        self._lease()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is begun, which writes into memory that may be used again, and give the connections back."""
        try:
            for connection in self._leased:
                with suppress(GoneError):
                    while connection.parts:
                        connection.receive()
                        connection.parts.popleft()
        finally:
            for connection in self._leased:
                if connection.parts:
                    readers.replace(connection.worker)
            readers.give_back(self._leased)


def _cut(numbers: NDArray[np.intp], threads: int, most: int) -> Iterator[NDArray[np.intp]]:
    """Jobs in parts for so many threads: large ones at first, as each is a message, and small ones at last."""
    at = 0
    while at < len(numbers):
        size = max(1, min(most, (len(numbers) - at) // threads))
        yield numbers[at : at + size]
        at += size


def _short(numbers: list[int]) -> Sequence[int]:
    """Rising numbers, as a range where they are neighbours: that is short to send and quick to look up."""
    neighbours = range(numbers[0], numbers[-1] + 1)
    return neighbours if len(neighbours) == len(numbers) else numbers


def _sheet_of(plan: Plan, placed: Placed, jobs: Jobs, workers: int) -> tuple[NDArray[np.uint8], Sheet, list[Memory]]:
    """A plan as an array in shared memory, where its parts lie, and all the memory that workers need for it."""
    numbers = np.array([memory.number for memory in placed.memories])
    places = np.column_stack([numbers[placed.where[:, 0]], placed.where[:, 1:]])
    origins = [pickle.dumps((page.file, page.origin), protocol=5) for page in plan.windows.pages]
    bounds = np.cumsum([0, *map(len, origins)], dtype=np.int64)
    tables = [
        *map(np.ascontiguousarray, (jobs.lines, jobs.pieces, places, bounds)),
        np.frombuffer(b"".join(origins), np.uint8),
    ]
    parts = [table.reshape(-1).view(np.uint8) for table in tables]
    stops = np.cumsum([len(part) for part in parts]).tolist()
    flat = shared_shelf.empty((stops[-1],), np.dtype(np.uint8))
    np.concatenate(parts, out=flat)
    place = shared_shelf.place(flat)
    begins = [place.offset + stop - len(part) for stop, part in zip(stops, parts, strict=True)]
    limits = settings()
    folder = None
    with suppress(OSError):
        folder = os.getcwd()
    sheet = Sheet(
        next(_sheets),
        tuple((place.memory.number, begin, table.shape) for begin, table in zip(begins, tables, strict=True)),
        plan.windows.bands,
        plan.windows.pages[0].dtype,
        folder,
        replace(
            limits,
            readers=0,
            cache_bytes=limits.cache_bytes // (workers + 1),
            open_files=max(1, limits.open_files // (workers + 1)),
        ),
        segment_cache.clears,
    )
    return flat, sheet, [place.memory, *placed.memories]
