"""Reader processes: each carries out parts of a plan and writes straight into the batches' shared memory.

A worker imports the reader and nothing of the user's, has a connection for each of its threads, and ends when the
process that started it does. It opens the pages that a part names by itself and keeps some of them. What goes over a
connection is a few kilobytes: jobs and pieces as integers, the names of pages, descriptors of memory it has not seen.
"""

from __future__ import annotations

import atexit
import mmap
import os
import pickle
import queue
import select
import socket
import struct
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from lazytiles.buffers import Memory, Placed
from lazytiles.config import configure, cores, count, counters, settings, when_configured
from lazytiles.errors import LazyTilesError
from lazytiles.images.cache import cache, clear_cache
from lazytiles.images.files import FileKey
from lazytiles.images.jobs import COUNTED, Counts, Jobs, Settled
from lazytiles.images.opening import reopened
from lazytiles.images.page import Page
from lazytiles.images.plan import Int64s, Plan

PROGRAM = "from lazytiles.images.workers import serve; serve({fds})"  # what a worker runs

_HEAD = struct.Struct("<QI")  # bytes of a message, descriptors beside it
_MOST_DESCRIPTORS = 64  # in one message
_MOST_PAGES = 2048  # that a worker keeps open facts of
_MOST_THREADS = 4  # of a worker
_TRIES = 2  # workers that a part may kill
_STARTS = 3  # workers that may die before they were ready, until no more are started
_LEAST_JOBS = 16  # of a plan that is worth sending
_MOST_JOBS = 16  # of a part
_TALL, _WIDE = 1024, 4  # rows of strips, and rows and columns of tiles, that one worker keeps together
_PATIENCE_S = 0.2  # between looks for workers that have come or gone


class Part(NamedTuple):
    """Some jobs of a plan, and where the pixels of their windows go.

    Parameters
    ----------
    pages : by which each page is opened again
    plan : jobs, pieces and ranges; its windows have no pages
    places : int64, shape (k, 6): window, number of the memory, first byte, height, width, bands
    dtype : of the pixels
    limits : the settings under which it is read
    clears : how often the cache of the process that asks was cleared
    new : (number, bytes) of memory whose descriptors come with the part
    gone : numbers of memory that will not be used again
    """

    pages: tuple[tuple[FileKey, Any], ...]
    plan: Plan
    places: NDArray[np.int64]
    dtype: np.dtype[Any]
    limits: dict[str, Any]
    clears: int
    new: tuple[tuple[int, int], ...]
    gone: tuple[int, ...]


class Answer(NamedTuple):
    """What has come of a part: the windows that cannot be completed, what was counted, or what else was raised."""

    failed: dict[int, LazyTilesError]
    counted: dict[str, int]
    error: BaseException | None = None


def _send(connection: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    data = pickle.dumps(message, protocol=5)
    socket.send_fds(connection, [_HEAD.pack(len(data), len(fds))], list(fds))
    connection.sendall(data)


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """The next message and its descriptors; EOFError where the other side has gone."""
    head, fds, _, _ = socket.recv_fds(connection, _HEAD.size, _MOST_DESCRIPTORS)
    head += _exactly(connection, _HEAD.size - len(head)) if head else b""
    if not head:
        raise EOFError
    size, _ = _HEAD.unpack(head)
    return pickle.loads(_exactly(connection, size)), fds  # noqa: S301  # from the process at the other end


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        n = connection.recv_into(view)
        if not n:
            raise EOFError
        view = view[n:]
    return data


# ---- in the worker ----

_maps: dict[int, mmap.mmap] = {}
_told: dict[str, int] = {}  # what the parent has been told of the counters
_lock = threading.Lock()


def serve(fds: Sequence[int]) -> None:
    """Answer on some connections until the other side is gone; what a worker runs."""
    with suppress(BaseException):
        threads = [threading.Thread(target=_answer_all, args=(fd,), daemon=True) for fd in fds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    os._exit(0)


def _answer_all(fd: int) -> None:
    with socket.socket(fileno=fd) as connection, suppress(OSError, EOFError):
        _send(connection, "ready")
        while True:
            part, fds = _receive(connection)
            _send(connection, _answer(part, fds))
    os._exit(0)  # one connection that ends ends them all


def _answer(part: Part, fds: Sequence[int]) -> Answer:
    failed: dict[int, LazyTilesError] = {}
    wrong: BaseException | None = None
    try:
        _keep_up(part, fds)
        tally: list[Counts] = []
        try:
            pages = [_page(key, origin) for key, origin in part.pages]
        except LazyTilesError as error:
            failed.update(dict.fromkeys(part.places[:, 0].tolist(), error))
        else:
            jobs = Jobs(pages, part.plan, dict(_targets(part)), tally)
            for number in range(len(part.plan.jobs)):
                failed.update(jobs.do(number).failed)
        for counts in tally:
            for name, amount in zip(COUNTED, counts, strict=True):
                count(name, amount)
    except BaseException as error:
        wrong = error
    return Answer({window: _plain(error) for window, error in failed.items()}, _counted(), wrong)


def _keep_up(part: Part, fds: Sequence[int]) -> None:
    """Map memory that is new, forget memory that is gone, and take over the limits."""
    with _lock:
        for (number, nbytes), fd in zip(part.new, fds, strict=True):
            if number not in _maps:
                # All pages at once: a fault for each of them costs more than what is written there.
                _maps[number] = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
            os.close(fd)
        for number in part.gone:
            _maps.pop(number, None)
        if part.limits != asdict(settings()):
            configure(**part.limits)
        if part.clears > cache.clears:
            clear_cache()
            cache.clears = part.clears


def _plain(error: LazyTilesError) -> LazyTilesError:
    """The error without what caused it, which need not be fit to be sent; its message says it."""
    return type(error)(str(error))


def _counted() -> dict[str, int]:
    """What this worker has counted since the last answer."""
    with _lock:
        now = dict(counters())
        new = {name: amount - _told.get(name, 0) for name, amount in now.items() if amount != _told.get(name, 0)}
        _told.update(now)
        return new


def _targets(part: Part) -> Iterator[tuple[int, NDArray[Any]]]:
    for window, number, offset, height, width, bands in part.places.tolist():
        yield window, np.ndarray((height, width, bands), part.dtype, _maps[number], offset)


@lru_cache(_MOST_PAGES)
def _page(key: FileKey, origin: Any) -> Page:
    return reopened(key, origin)


# ---- in the process that reads ----


class GoneError(Exception):
    """The worker at the other end of a connection is no more."""


class Connection:
    """One thread of one worker; for one caller at a time."""

    def __init__(self, worker: Worker, ours: socket.socket) -> None:
        self.worker, self._socket = worker, ours
        self._sent: dict[int, weakref.ref[Memory]] = {}  # the memory that the other end knows, by number

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def begin(self) -> None:
        """Take the word that the worker is ready."""
        try:
            _receive(self._socket)
        except (EOFError, OSError) as error:
            raise GoneError from error

    def ask(self, part: Part, memories: Sequence[Memory]) -> Answer:
        """Have a part carried out, which is written into some shared memories.

        Raises
        ------
        GoneError : the worker died of it
        """
        gone = tuple(number for number, memory in self._sent.items() if memory() is None)
        new = [memory for memory in memories if memory.number not in self._sent]
        part = part._replace(new=tuple((memory.number, memory.nbytes) for memory in new), gone=gone)
        try:
            _send(self._socket, part, [memory.fd for memory in new if memory.fd is not None])
            answer: Answer = _receive(self._socket)[0]
        except (EOFError, OSError) as error:
            raise GoneError from error
        except BaseException:
            self.worker.kill()  # it may be writing still, and its answer would be taken for that of the next part
            raise
        self._sent.update((memory.number, weakref.ref(memory)) for memory in new)
        for number in gone:
            del self._sent[number]
        return answer

    def close(self) -> None:
        """Let the worker end."""
        self._socket.close()


class Worker:
    """A process that reads, and its connections."""

    def __init__(self, threads: int) -> None:
        pairs = [socket.socketpair() for _ in range(threads)]
        try:
            fds = [theirs.fileno() for _, theirs in pairs]
            program = f"import sys; sys.path[:] = {_import_path()!r}; " + PROGRAM.format(fds=fds)
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
        self.idle: queue.LifoQueue[Connection] = queue.LifoQueue()
        self.is_ready = False
        self.is_gone = False

    def kill(self) -> None:
        """End it at once; nothing of it writes afterwards."""
        self.is_gone = True
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let it end by itself, or end it where it does not."""
        self.is_gone = True
        for connection in self.connections:
            connection.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()


def _import_path() -> list[str]:
    """Where a worker finds what this process has found, but for the folder of the user's script."""
    own = str(Path(__file__).parents[2])
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    script = str(Path(main).resolve().parent) if main else None
    rest = [entry for entry in sys.path if entry and entry not in (own, script)]
    return [*rest, own]


class Readers:
    """The reader processes of this process: started when they are first wanted, shared by all reads.

    Notes
    -----
    A forked child has none until it wants its own.
    """

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        self._failures = 0  # workers that died before they were ready

    def connections(self, readers: int) -> int:
        """See that so many workers are there or on their way; how many connections they have together."""
        threads = max(1, min(_MOST_THREADS, cores() // readers))
        with self._lock:
            while len(self._workers) < readers and self._failures < _STARTS:
                self._workers.append(Worker(threads))
            self._look()
            return sum(len(worker.connections) for worker in self._workers[:readers])

    def _look(self) -> None:
        """Take up the workers that have become ready; the caller has the lock."""
        starting = {c: worker for worker in self._workers if not worker.is_ready for c in worker.connections[:1]}
        for connection in select.select(list(starting), [], [], 0)[0] if starting else ():
            worker = starting[connection]
            try:
                for each in worker.connections:
                    each.begin()
            except GoneError:
                self._workers.remove(worker)
                worker.close()
                self._failures += 1
                if self._failures == _STARTS:
                    warnings.warn(
                        "reader processes do not start; threads read instead. Run LAZYTILES_READERS=1 in a terminal "
                        "to see why, or set readers=0",
                        stacklevel=2,
                    )
                continue
            worker.is_ready = True
            self._failures = 0
            for each in worker.connections:
                worker.idle.put(each)

    def take(self, number: int, *, is_bound: bool) -> Connection | None:
        """A connection of a worker, waited for; None while that worker is not ready.

        Parameters
        ----------
        number : of the worker; it wraps around
        is_bound : whether it must be that worker, because it keeps what it decodes
        """
        while True:
            with self._lock:
                self._look()
                first = number % max(1, len(self._workers))
                turned = [*self._workers[first:], *self._workers[:first]]
            ready = [worker for worker in turned[: 1 if is_bound else None] if worker.is_ready and not worker.is_gone]
            if not ready:
                return None
            for worker in ready:
                with suppress(queue.Empty):
                    return worker.idle.get_nowait()
            with suppress(queue.Empty):
                return ready[0].idle.get(timeout=_PATIENCE_S)

    def give(self, connection: Connection) -> None:
        """A connection comes back."""
        connection.worker.idle.put(connection)

    def bury(self, worker: Worker) -> None:
        """Put another worker in the place of one that is gone."""
        with self._lock:
            if worker in self._workers:
                # Its place is kept, so that the others go on with the segments that are theirs.
                self._workers[self._workers.index(worker)] = Worker(len(worker.connections))
                worker.kill()
                worker.close()

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            workers, self._workers = self._workers, []
            for worker in workers:
                worker.close()

    def fit(self) -> None:
        """End the workers that are more than the settings allow."""
        if not settings().readers:
            self.close()

    def descriptors(self) -> set[int]:
        """The descriptors of all connections."""
        with self._lock:
            return {each.fileno() for worker in self._workers for each in worker.connections}

    def forget(self) -> None:
        """Start anew in a forked child; the workers are the parent's."""
        for worker in self._workers:
            for connection in worker.connections:
                connection.close()
        self.__init__()  # type: ignore[misc]  # the same object stays imported everywhere


readers = Readers()
when_configured.append(readers.fit)
atexit.register(readers.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=readers.forget)


def is_sendable(plan: Plan) -> bool:
    """Whether workers can read what a plan says: enough to be worth it, of files that they can open by themselves."""
    return len(plan.jobs) >= _LEAST_JOBS and all(
        page.origin is not None and not page.file.is_remote for page in plan.windows.pages
    )


class Parts:
    """A plan in parts, which any threads may have carried out, each once.

    Parameters
    ----------
    plan : sendable
    placed : where the pixels of each window go
    jobs : its jobs with the same memory as targets, for what is done here: what is kept decoded here, and what is
        wanted while a worker is not ready
    workers : how many processes read
    """

    def __init__(self, plan: Plan, placed: Placed, jobs: Jobs, workers: int) -> None:
        self._plan, self._placed, self._jobs, limits = plan, placed, jobs, settings()
        self.connections = readers.connections(workers)
        size = max(1, min(_MOST_JOBS, len(plan.jobs) // (8 * max(1, self.connections))))
        self._keeps = limits.cache_bytes > 0
        self._parts: list[tuple[int, Int64s]] = []  # which worker, or -1 for this process, and which jobs
        if self._keeps:
            owners = _owners(plan, workers)
            every = [(k, np.flatnonzero(owners == k)) for k in range(-1, workers)]
            cut = [(k, numbers[at : at + size]) for k, numbers in every for at in range(0, len(numbers), size)]
            # What is kept here comes first, then what is wanted first.
            self._parts = sorted(cut, key=lambda part: (part[0] >= 0, part[1][0]))
        else:
            everything = np.arange(len(plan.jobs))
            self._parts = [(k, everything[at : at + size]) for k, at in enumerate(range(0, len(everything), size))]
        self._limits = asdict(limits) | {"readers": 0, "cache_bytes": limits.cache_bytes // (workers + 1)}
        self._limits["open_files"] = max(1, limits.open_files // (workers + 1))

    def __len__(self) -> int:
        return len(self._parts)

    def do(self, number: int) -> Settled:
        """Have a part carried out by a worker that is free, or the one that keeps its segments."""
        owner, jobs = self._parts[number]
        if owner < 0:
            return self._do_here(jobs)
        plan = self._plan.part(jobs)
        for _ in range(_TRIES):
            connection = readers.take(owner, is_bound=self._keeps)
            if connection is None:
                return self._do_here(jobs)
            try:
                answer = connection.ask(*self._part(plan))
            except GoneError:
                readers.bury(connection.worker)
                continue
            readers.give(connection)
            if answer.error is not None:
                raise answer.error
            for name, amount in answer.counted.items():
                count(name, amount)
            return Settled([w for w in plan.pieces[:, 0].tolist() if w not in answer.failed], answer.failed)
        pages = sorted({str(plan.windows.pages[k]) for k in np.unique(plan.jobs[:, 0]).tolist()})
        error = LazyTilesError(
            f"{_TRIES} reader processes died while they read {', '.join(pages[:3])}: memory ran out, or a codec "
            "crashed; read these windows with readers=0 to see which, or leave them out"
        )
        return Settled([], dict.fromkeys(plan.pieces[:, 0].tolist(), error))

    def _do_here(self, numbers: Int64s) -> Settled:
        pieces: list[int] = []
        failed: dict[int, LazyTilesError] = {}
        for number in numbers.tolist():
            done = self._jobs.do(number)
            pieces += done.pieces
            failed.update(done.failed)
        return Settled(pieces, failed)

    def _part(self, plan: Plan) -> tuple[Part, list[Memory]]:
        placed = self._placed
        used, renumbered = np.unique(plan.jobs[:, 0], return_inverse=True)
        pages = [plan.windows.pages[k] for k in used.tolist()]
        jobs = np.column_stack([renumbered, plan.jobs[:, 1:]])
        plan = replace(plan, windows=replace(plan.windows, pages=()), jobs=jobs)
        windows = np.unique(plan.pieces[:, 0])
        where = placed.where[windows]
        memories = [placed.memories[k] for k in np.unique(where[:, 0]).tolist()]
        numbers = np.array([memory.number for memory in placed.memories])
        places = np.column_stack([windows, numbers[where[:, 0]], where[:, 1:]])
        keys = tuple((page.file, page.origin) for page in pages)
        return Part(keys, plan, places, pages[0].dtype, self._limits, cache.clears, (), ()), memories


def _owners(plan: Plan, workers: int) -> Int64s:
    """Which worker keeps the segments of each job; -1 where this process keeps them already."""
    pages = plan.windows.pages
    jobs = plan.jobs.tolist()
    held = cache.held((pages[at].key, first, first + length) for at, first, length, _, _ in jobs)
    tall = [_TALL if page.grid[1] == 1 else _WIDE for page in pages]
    seeds = [crc32(repr((page.file.path, page.number)).encode()) for page in pages]
    owners = [seeds[at] + row // tall[at] + 31 * (column // tall[at]) for at, _, _, row, column in jobs]
    return np.where(held, -1, np.array(owners) % workers)
