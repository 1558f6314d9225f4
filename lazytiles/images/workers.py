"""Reader processes: they carry out the jobs of one plan and write straight into the batches' shared memory.

A worker imports the reader and nothing of the user's, has a connection for each of its threads, and ends when the
process that started it does. A plan lies in shared memory too; what goes over a connection is which of its jobs are
to be done next, and that they are done.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import configure, count, counters, settings
from lazytiles.errors import LazyTilesError
from lazytiles.images.cache import clear_cache, segment_cache
from lazytiles.images.files import FileKey
from lazytiles.images.jobs import COUNTED, Jobs
from lazytiles.images.layouts.opening import reopened
from lazytiles.images.page import Page
from lazytiles.images.plan import Plan, Windows

_HEAD = struct.Struct("<Q")  # bytes of a message
_MOST_DESCRIPTORS = 250  # in one message
_MOST_PAGES = 2048  # that a worker keeps facts of
_MOST_PLANS = 8  # that a worker keeps


class Sheet(NamedTuple):
    """A plan as workers see it."""

    number: int  # of the plan
    tables: tuple[tuple[int, int, tuple[int, ...]], ...]  # the memory, first byte and shape of its five arrays
    pages: tuple[int, int, int]  # the memory, first byte and bytes of what each page is opened by, pickled
    bands: tuple[int, ...] | None
    dtype: np.dtype[Any]  # of the pixels
    folder: str | None  # the working directory that names of files are relative to; None where there is none any more
    limits: dict[str, Any]  # the settings under which it is read
    clears: int  # how often the cache of the process that asks was cleared
    new: tuple[tuple[int, int], ...] = ()  # (number, bytes) of the memory whose descriptors come with the sheet
    gone: tuple[int, ...] = ()  # numbers of the memory that will not be used again


class Answer(NamedTuple):
    """What has come of a part: the windows that cannot be completed, what was counted, or what else was raised."""

    failed: dict[int, LazyTilesError]
    counted: dict[str, int]
    error: BaseException | None = None


def send(connection: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    """Send a message, and descriptors with it."""
    data = pickle.dumps(message, protocol=5)
    if fds:
        socket.send_fds(connection, [_HEAD.pack(len(data))], list(fds))
        connection.sendall(data)
    else:
        connection.sendall(_HEAD.pack(len(data)) + data)


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """The next message and the descriptors that came with it; EOFError where the other side has gone."""
    head, fds, _, _ = socket.recv_fds(connection, _HEAD.size, _MOST_DESCRIPTORS)
    if not head:
        raise EOFError
    if len(head) < _HEAD.size:
        head += _exactly(connection, _HEAD.size - len(head))
    return pickle.loads(_exactly(connection, *_HEAD.unpack(head))), fds  # noqa: S301  # from the other end


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size)
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


# In the worker: one set of maps and plans for all its connections.
_maps: dict[int, mmap.mmap] = {}
_plans: OrderedDict[int, Jobs] = OrderedDict()
_told: dict[str, int] = {}  # what the other side has been told of the counters
_lock = threading.Lock()


def serve(fds: Sequence[int]) -> None:
    """Answer on some connections until the other side is gone; what a worker runs."""
    with suppress(BaseException):
        threads = [threading.Thread(target=_serve, args=(fd,), daemon=True) for fd in fds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    os._exit(0)


def _serve(fd: int) -> None:
    with socket.socket(fileno=fd) as connection, suppress(OSError, EOFError):
        send(connection, "ready")
        wrong: BaseException | None = None
        while True:
            message, fds = receive(connection)
            if isinstance(message, Sheet):
                wrong = _take_over(message, fds)
            else:
                send(connection, _answer(*message) if wrong is None else Answer({}, {}, wrong))
    os._exit(0)  # where one connection ends, all of them do


def _take_over(sheet: Sheet, fds: Sequence[int]) -> BaseException | None:
    """Map memory that is new, forget memory that is gone, and make jobs of a plan; what went wrong, if anything did."""
    try:
        with _lock:
            for (number, nbytes), fd in zip(sheet.new, fds, strict=True):
                if number not in _maps:
                    # All pages at once: a fault for each of them costs more than what is written there.
                    _maps[number] = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
                os.close(fd)
            for number in sheet.gone:
                _maps.pop(number, None)
            if sheet.folder is not None:
                with suppress(OSError):  # one that is no more: what lies in it is missed when it is read
                    os.chdir(sheet.folder)
            if sheet.limits != asdict(settings()):
                configure(**sheet.limits)
            if sheet.clears > segment_cache.clears:
                clear_cache()
                segment_cache.clears = sheet.clears
            if sheet.number not in _plans:
                _plans[sheet.number] = _jobs_of(sheet)
                while len(_plans) > _MOST_PLANS:
                    _plans.popitem(last=False)
    except BaseException as error:
        return error
    return None


def _jobs_of(sheet: Sheet) -> Jobs:
    # The tables are copied: their memory is used again when the plan is over.
    tables = [np.ndarray(shape, np.int64, _maps[memory], offset).copy() for memory, offset, shape in sheet.tables]
    jobs, starts, pieces, ranges, places = tables
    memory, offset, size = sheet.pages
    pages: Any = _Pages(pickle.loads(_maps[memory][offset : offset + size]))  # noqa: S301  # from the other end
    none = np.empty(0, np.int64)
    windows = Windows(pages, none, none.reshape(0, 4), sheet.bands)
    plan = Plan(windows, none, none, none, 0, jobs, starts, pieces, ranges, 0, 0, 0, 0)
    return Jobs(plan, _Targets(places, sheet.dtype), [])


_page = lru_cache(_MOST_PAGES)(reopened)


class _Pages:
    """Pages that are opened when they are first wanted."""

    def __init__(self, origins: Sequence[tuple[FileKey, Any]]) -> None:
        self._origins = origins

    def __getitem__(self, k: int) -> Page:
        return _page(*self._origins[k])


class _Targets:
    """The pixels of windows in mapped memory."""

    def __init__(self, places: NDArray[np.int64], dtype: np.dtype[Any]) -> None:
        self._places, self._dtype = places, dtype

    def __getitem__(self, window: int) -> NDArray[Any]:
        number, offset, *shape = self._places[window].tolist()
        return np.ndarray(shape, self._dtype, _maps[number], offset)


def _answer(number: int, numbers: Sequence[int]) -> Answer:
    """Do some jobs of a plan."""
    failed: dict[int, LazyTilesError] = {}
    wrong: BaseException | None = None
    try:
        with _lock:
            jobs = _plans[number]
        failed = jobs.do(numbers).failed
        with suppress(IndexError):  # empty, by the threads of other connections, too
            while True:
                for name, amount in zip(COUNTED, jobs.tally.pop(), strict=True):
                    count(name, amount)
    except BaseException as error:
        wrong = error
    with _lock:  # what was counted since the other side was last told
        now = counters()
        new = {name: amount - _told.get(name, 0) for name, amount in now.items() if amount != _told.get(name, 0)}
        _told.update(now)
    return Answer({window: type(error)(str(error)) for window, error in failed.items()}, new, wrong)
