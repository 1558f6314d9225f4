"""Reader processes: they carry out the jobs of one plan and write straight into the batches' shared memory.

A worker imports the reader and nothing of the user's, has a connection for each of its threads, and ends when the
process that started it does. A plan lies in shared memory too; what goes over a connection is which of its jobs are
to be done next, and that they are done.
"""

from __future__ import annotations

import array
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

from lazytiles.config import Settings, configure, count, counters, settings
from lazytiles.errors import LazyTilesError
from lazytiles.images.cache import clear_cache, segment_cache
from lazytiles.images.jobs import COUNTED, Counts, Jobs
from lazytiles.images.layouts.opening import reopened
from lazytiles.images.page import Page

_HEAD = struct.Struct("<QI")  # of a message: its bytes, and the descriptors with it
_ROOM = socket.CMSG_SPACE(250 * array.array("i").itemsize)  # for the descriptors of one message
_LEAST = 2**12  # bytes asked for at once
_MOST_PAGES = 2048  # that a worker keeps facts of
_MOST_PLANS = 8  # that a worker keeps


class Sheet(NamedTuple):
    """A plan as workers see it."""

    number: int  # of the plan
    # The memory, first byte and shape of its arrays: lines and pieces of `Jobs`, where each window lies, and of what
    # each page is opened by, pickled, where it begins (and, once more, where the last ends) and the bytes.
    tables: tuple[tuple[int, int, tuple[int, ...]], ...]
    bands: tuple[int, ...] | None
    dtype: np.dtype[Any]  # of the pixels
    folder: str | None  # the working directory that names of files are relative to; None where there is none any more
    limits: Settings  # under which it is read
    clears: int  # how often the cache of the process that asks was cleared
    new: tuple[tuple[int, int], ...] = ()  # (number, bytes) of the memory whose descriptors come with the sheet
    gone: tuple[int, ...] = ()  # numbers of the memory that will not be used again


class Answer(NamedTuple):
    """What has come of a part: the windows that cannot be completed, what was counted, or what else was raised."""

    failed: dict[int, LazyTilesError]
    counted: dict[str, int]
    error: BaseException | None = None


class Wire:
    """One end of a connection, over which whole messages go, and descriptors with them."""

    def __init__(self, own: socket.socket) -> None:
        self.socket = own
        self._got = b""  # and not taken
        self._fds = array.array("i")

    def send(self, message: object, fds: Sequence[int] = ()) -> None:
        """Send a message, and descriptors with it."""
        data = pickle.dumps(message, protocol=5)
        head = _HEAD.pack(len(data), len(fds))
        if fds:
            socket.send_fds(self.socket, [head], list(fds))
            self.socket.sendall(data)
        else:
            self.socket.sendall(head + data)

    def receive(self) -> tuple[Any, list[int]]:
        """The next message and the descriptors that came with it; EOFError where the other side has gone."""
        size, n = _HEAD.unpack(self._take(_HEAD.size))
        message = pickle.loads(self._take(size))  # noqa: S301  # from the other end
        fds, self._fds = self._fds[:n].tolist(), self._fds[n:]
        return message, fds

    @property
    def has_more(self) -> bool:
        """Whether something of a next message has come already, so that the system may not say it again."""
        return bool(self._got)

    def _take(self, size: int) -> bytes:
        while len(self._got) < size:
            data, told, _, _ = self.socket.recvmsg(max(_LEAST, size), _ROOM)
            if not data:
                raise EOFError
            for _, _, fds in told:
                self._fds.frombytes(fds[: len(fds) - len(fds) % self._fds.itemsize])
            self._got += data
        taken, self._got = self._got[:size], self._got[size:]
        return taken


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
    with socket.socket(fileno=fd) as own, suppress(OSError, EOFError):
        wire = Wire(own)
        wire.send("ready")
        wrong: BaseException | None = None
        while True:
            message, fds = wire.receive()
            if isinstance(message, Sheet):
                wrong = _take_over(message, fds)
            else:
                answer = _answer(*message) if wrong is None else Answer({}, {}, wrong)
                wire.send(tuple(answer))
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
            if sheet.limits != settings():
                configure(**asdict(sheet.limits))
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
    lines, pieces, places, bounds, origins = (
        np.ndarray(shape, np.int64 if k < len(sheet.tables) - 1 else np.uint8, _maps[memory], offset)
        for k, (memory, offset, shape) in enumerate(sheet.tables)
    )
    pages: Any = _Pages(origins.tobytes(), bounds.tolist())
    return Jobs(pages, sheet.bands, lines, pieces, _Targets(places, sheet.dtype))


@lru_cache(_MOST_PAGES)
def _page(origin: bytes) -> Page:
    return reopened(*pickle.loads(origin))  # noqa: S301  # from the other end


class _Pages:
    """Pages that are opened when they are first wanted."""

    def __init__(self, origins: bytes, bounds: list[int]) -> None:
        self._origins, self._bounds = origins, bounds

    def __getitem__(self, k: int) -> Page:
        return _page(self._origins[self._bounds[k] : self._bounds[k + 1]])


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
        failed, tally = jobs.do(numbers).failed, list[Counts]()
        with suppress(IndexError):  # empty, by the threads of other connections, too
            while True:
                tally.append(jobs.tally.pop())
        for name, amounts in zip(COUNTED, zip(*tally, strict=True), strict=False):
            count(name, sum(amounts))
    except BaseException as error:
        wrong = error
    with _lock:  # what was counted since the other side was last told
        now = counters()
        new = {name: amount - _told.get(name, 0) for name, amount in now.items() if amount != _told.get(name, 0)}
        _told.update(now)
    return Answer({window: type(error)(str(error)) for window, error in failed.items()}, new, wrong)
