"""Batches read before they are asked for: many planned and decoded together, within a budget of bytes."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Literal

from lazytiles.config import settings
from lazytiles.errors import LazyTilesError
from lazytiles.threads import Lane, Pool
from lazytiles.training.schedule import Feed, Key
from lazytiles.training.tandem import Alive, Array, Rows, batch_error, native
from lazytiles.trees import Structure

_HEADSTART = 0.15  # of the budget is still undelivered when the next block starts
_BLOCK_BATCHES = 4096  # batches of one block at most, however small they are
_POOL = Pool(32)
_PATIENCE_S = 1.0  # how long `close` waits for jobs that were told to stop
_LAST_PATIENCE_S = 0.3  # and how long the end of the process waits for them


@dataclass(slots=True)
class _Slot:
    """One batch between its planning and its delivery."""

    key: Key
    rows: Rows
    nbytes: int
    missing: int  # planned sources that are not read yet
    given: dict[int, Array] = field(default_factory=dict)
    alive: Alive = field(default_factory=Alive)
    state: Literal["reading", "read", "finishing", "finished"] = "reading"
    batch: Structure = None
    error: LazyTilesError | None = None


class ReadAhead:
    """An iterator of ``(key, batch)`` in the order of `keys`, which reads ahead while its consumer works.

    Consecutive batches of sources that can plan are read as one block. What is planned, read or waits comes to
    `readahead_bytes` of the feed at most, or to one batch that is larger; the next block starts when little of it is
    left; with 0 every batch is planned alone. Other sources are read batch by batch. `prefetch` finished batches wait;
    with 0 each is finished when it is asked for. The order of the keys may be without end. No job on the shared pool
    of threads waits for the consumer. An error is raised at the batch that it belongs to, and ends the iteration.
    """

    def __init__(self, feed: Feed, keys: Iterable[Key]) -> None:
        self._feed = feed
        self._keys = deque[Key]()  # taken from the order, but not planned yet: one at most
        self._order: Iterator[Key] = iter(keys)
        self._prefetch = feed.prefetch
        self._block_bytes = feed.readahead_bytes if feed.tandem.planned else 0
        self._is_direct = feed.prefetch == 0 and self._block_bytes == 0
        self._is_inline = feed.prefetch == 0 or (self._block_bytes > 0 and feed.is_light)
        self._ready = ("finished", "read") if self._is_inline else ("finished",)  # states of a batch that may be given
        self._sample_bytes = feed.tandem.sample_bytes(feed.tandem.planned)
        self._lane = Lane(_POOL, feed.tandem.threads or settings().threads)
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._slots = deque[_Slot]()
        self._waiting_bytes = 0  # of all slots
        self._reading = 0  # planned sources of the present block that are being read
        self._jobs = 0
        self._broken: BaseException | None = None  # what no batch could take, such as a thread that did not start
        _OPEN.add(self)

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> tuple[Key, Structure]:
        if self._is_direct:
            key = self._upcoming()
            return key, self._feed.read(key)
        with self._changed:
            self._plan()
            while not self._slots or (self._slots[0].error is None and self._slots[0].state not in self._ready):
                if self._broken is not None:
                    raise LazyTilesError(f"reading ahead failed: {self._broken!r}") from self._broken
                # A block is over only when its reader is, which may be after its last batch arrived.
                if self._stop.is_set() or (not self._slots and self._reading == 0):
                    raise StopIteration
                self._changed.wait()
            slot = self._slots.popleft()
            self._waiting_bytes -= slot.nbytes
            if slot.error is None:
                self._plan()
        if slot.error is not None:
            self.close()
            # An error that a frame of its own traceback refers to would keep that batch alive.
            error, slot.error = slot.error, None
            try:
                raise error
            finally:
                del error
        if slot.state == "read":
            slot.batch = self._feed.make(slot.key, slot.rows, slot.given, slot.alive)
        return slot.key, slot.batch

    def close(self) -> None:
        """Stop reading and drop what was read; waits a moment for jobs at work to notice."""
        self._stop.set()
        with self._changed:
            self._slots.clear()
            self._order = iter(())
            self._keys.clear()
            self._changed.notify_all()
            if not _POOL.is_here():
                self._changed.wait_for(lambda: self._jobs <= 0, timeout=_PATIENCE_S)

    def _upcoming(self) -> Key:
        if self._stop.is_set():
            raise StopIteration
        return self._keys.popleft() if self._keys else next(self._order)

    def _plan(self) -> None:
        """Start whatever the budgets allow; the caller holds the lock."""
        if self._stop.is_set():
            return
        if self._block_bytes and self._reading == 0:
            self._start_block()
        while not self._block_bytes and len(self._slots) < self._prefetch and self._add_slot(0):
            self._slots[-1].state = "read"
        if not self._is_inline:
            for slot in islice(self._slots, self._prefetch):
                if slot.state == "read" and slot.error is None:
                    slot.state = "finishing"
                    self._submit(self._lane.submit, partial(self._finish, slot))

    def _start_block(self) -> None:
        """Plan and read a block, where so little is undelivered that one is worth its start: a large one decodes less.

        Where a few batches fill the budget, one of them may wait.
        """
        waiting, one = self._waiting_bytes, self._slots[-1].nbytes if self._slots else 0
        few = max(_HEADSTART * self._block_bytes, one)
        if waiting > 0 and (waiting > few or waiting + one > self._block_bytes):
            return
        before = len(self._slots)
        while len(self._slots) - before < _BLOCK_BATCHES:
            room = self._block_bytes - self._waiting_bytes if self._slots else None
            if not self._add_slot(self._sample_bytes, room):
                break
        block = list(islice(self._slots, before, None))
        if block:
            self._reading = len(self._feed.tandem.planned)
            for which in self._feed.tandem.planned:
                self._submit(_POOL.submit, partial(self._read, which, block))

    def _add_slot(self, sample_bytes: int, room: float | None = None) -> bool:
        """Plan the next batch, unless there is none or it would need more than `room` bytes."""
        try:
            key = self._upcoming()
        except StopIteration:
            return False
        rows = self._feed.schedule.rows(key)
        nbytes = len(rows) * sample_bytes
        if room is not None and nbytes > room:
            self._keys.append(key)
            return False
        self._slots.append(_Slot(key, rows, nbytes, len(self._feed.tandem.planned)))
        self._waiting_bytes += nbytes
        return True

    def _submit(self, submit: Callable[[Callable[[], None]], None], job: Callable[[], None]) -> None:
        def run() -> None:
            try:
                if not self._stop.is_set():
                    job()
            except BaseException as error:  # where memory ran out while one was worded, the consumer must not wait
                self._broken = error
            finally:
                with self._changed:
                    self._jobs -= 1
                    self._changed.notify_all()

        self._jobs += 1
        try:
            submit(run)
        except BaseException as error:
            self._jobs -= 1
            self._broken = error
            raise

    def _read(self, which: int, block: list[_Slot]) -> None:
        """Read one planned source of a block."""

        def arrive(k: int, result: Array | LazyTilesError) -> None:
            slot = block[k]
            with self._changed:
                if self._stop.is_set():
                    return
                if isinstance(result, BaseException):
                    slot.error = slot.error or result
                else:
                    slot.given[which] = native(result)
                    slot.missing -= 1
                    slot.state = "read" if slot.missing == 0 else "reading"
                    self._plan()
                self._changed.notify_all()

        try:
            self._feed.tandem.read_planned(which, [slot.rows for slot in block], arrive, self._stop)
            self._fail(which, block, RuntimeError("its source neither gave it nor an error"))
        except BaseException as error:
            self._fail(which, block, error)
        with self._changed:
            self._reading -= 1
            self._plan()
            self._changed.notify_all()

    def _fail(self, which: int, block: list[_Slot], error: BaseException) -> None:
        with self._changed:
            for slot in block:
                if slot.state == "reading" and which not in slot.given and slot.error is None:
                    place = "reading batch {1} of epoch {0}".format(*slot.key)
                    slot.error = batch_error(place, self._feed.tandem.name(slot.rows), error)

    def _finish(self, slot: _Slot) -> None:
        given = {} if self._block_bytes == 0 else slot.given
        try:
            slot.batch = self._feed.make(slot.key, slot.rows, given, slot.alive)
        except LazyTilesError as error:
            slot.error = error.with_traceback(None)
        except BaseException as error:
            slot.error = batch_error("batch {1} of epoch {0}".format(*slot.key), "", error)
        slot.given = {}
        slot.state = "finished"


_OPEN: weakref.WeakSet[ReadAhead] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Let a process end without waiting for what nobody will ask for."""
    for ahead in tuple(_OPEN):
        ahead._stop.set()
    _POOL.join(_LAST_PATIENCE_S)
