"""Decoded segments kept for later reads, within an exact budget of bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.buffers import shelf
from lazytiles.config import settings, when_configured
from lazytiles.images.files import pool

_SLACK = 64  # bytes beside an array's own that are not worth a copy
_FEW = 64  # runs, too few of which to learn from
_ONE_IN = 17  # of the runs that are not welcome is kept, to see if it is found; a prime, so in step with no order
_MEMORY = 64  # finds after which all of them count half


@dataclass(slots=True, eq=False)  # not frozen: a new one would take twice as long
class Run:
    """Neighbouring segments ``first:stop`` that were decoded together, one below the other in one array.

    It does not change.
    """

    first: int
    stop: int
    array: NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the memory that the array keeps alive."""
        base = self.array.base
        return base.nbytes if isinstance(base, np.ndarray) else self.array.nbytes


class Claim:
    """What a thread wants of a page: segments ``first:stop``; what of them is kept, and what is left to it to decode.

    Where `keeps`, what it decodes is to be kept, and others who want one of the same segments meanwhile wait for it.
    `nbytes` are those of one of them, decoded; None: to be kept in any case.
    """

    __slots__ = ("first", "found", "keeps", "key", "made", "missing", "nbytes", "ready", "stop")

    def __init__(self, key: Hashable, first: int = 0, stop: int = 1, nbytes: int | None = None) -> None:
        self.key, self.first, self.stop, self.nbytes = key, first, stop, nbytes
        self.found: list[Run] = []
        self.missing: list[range] = []
        self.made: list[Run] = []
        self.keeps = False
        self.ready: threading.Event | None = None  # made for the first who waits

    def wait(self) -> None:
        """Wait until it is left; for a claim that `SegmentCache.enter` gave."""
        assert self.ready is not None
        self.ready.wait()


class SegmentCache:
    """Least-recently-used runs of decoded segments, keyed by the identity of their file and their page.

    Notes
    -----
    Arrays are read-only and own their bytes, so the budget is exact. Threads that miss the same segment at once
    decode it once: the first one's claim is entered, and must be left whatever happens; the others wait for it
    and then enter theirs. A decode that failed is not kept.
    """

    def __init__(self) -> None:
        self._runs: dict[Hashable, dict[int, Run]] = {}  # of each page, by the number of each of its segments
        self._recent: OrderedDict[Run, tuple[Hashable, int]] = OrderedDict()  # page, number among the kept
        self._claims: dict[Hashable, list[Claim]] = {}
        self._lock = threading.RLock()
        self.nbytes = 0
        self._entered = 0  # runs kept so far
        self._finds = 0  # runs found of late,
        self._soon = 0  # and how many of them were among the latest quarter of those that are kept
        self._refused = 0
        self.clears = 0  # how often all was forgotten, by which workers know that they should too

    def enter(self, claim: Claim) -> Claim | None:
        """Set what a claim finds, misses and keeps; or give another one to wait for before it is entered again."""
        first, stop = claim.first, claim.stop
        with self._lock:
            entered = self._claims.get(claim.key)
            for other in entered or ():
                if other.first < stop and first < other.stop:
                    other.ready = other.ready or threading.Event()
                    return other
            claim.found, claim.missing = self._split(claim.key, first, stop)
            self._note(claim.found)
            claim.keeps = bool(claim.missing) and self._welcomes(claim)
            if claim.keeps:
                if entered is None:
                    entered = self._claims[claim.key] = []
                entered.append(claim)
        return None

    def enter_all(self, claims: Iterable[Claim]) -> dict[Claim, Claim]:
        """Enter some claims of different segments; gives those that could not be, and what each has to wait for."""
        with self._lock:
            return {claim: other for claim in claims if (other := self.enter(claim)) is not None}

    def _note(self, found: Sequence[Run]) -> None:
        """Remember whether what was found was kept of late."""
        latest = self._entered - len(self._recent) // 4
        for run in found:
            self._finds += 1
            self._soon += self._recent[run][1] > latest
        if self._finds > _MEMORY:  # the past counts less and less
            self._finds, self._soon = self._finds // 2, self._soon // 2

    def _welcomes(self, claim: Claim) -> bool:
        """Whether what a claim misses is worth keeping.

        While there is room it is. Later it pushes out others, which pays where what was kept last is what is found.
        In a random order it is not: any other run is as likely to be wanted, and keeping costs time.
        """
        if claim.nbytes is None or len(self._recent) < _FEW or 2 * self._soon >= self._finds:
            return True
        if self.nbytes + claim.nbytes * sum(map(len, claim.missing)) <= settings().cache_bytes:
            return True
        self._refused += 1
        return self._refused % _ONE_IN == 0

    def _split(self, key: Hashable, first: int, stop: int) -> tuple[list[Run], list[range]]:
        """The runs that hold some of the segments, and the segments that no run holds."""
        found: list[Run] = []
        missing: list[range] = []
        runs, at = self._runs.get(key, {}), first
        while at < stop:
            run = runs.get(at)
            if run is None:
                at += 1
                continue
            if at > first:
                missing.append(range(first, at))
            found.append(run)
            self._recent.move_to_end(run)
            first = at = run.stop
        if first < stop:
            missing.append(range(first, stop))
        return found, missing

    def settle(self, claim: Claim, runs: Sequence[Run] = ()) -> None:
        """Keep what was decoded for a claim, entered or not, within the budget, and leave it."""
        if not claim.keeps and not runs:
            return
        kept = [_owned(run) for run in runs]
        budget = settings().cache_bytes
        gone = []
        with self._changing():
            for run in kept:
                if run.nbytes <= budget:
                    gone += self._shrink(budget - run.nbytes)
                    self._runs.setdefault(claim.key, {}).update(dict.fromkeys(range(run.first, run.stop), run))
                    self._entered += 1
                    self._recent[run] = claim.key, self._entered
                    self.nbytes += run.nbytes
            gone += self._shrink(budget)
        claim.made = kept
        self.leave(claim)

    def leave(self, claim: Claim) -> None:
        """End a claim, and wake those who wait for it: what must follow `enter`, whatever happens."""
        if not claim.keeps:
            return
        with self._lock:
            entered = self._claims.get(claim.key, [])
            if claim in entered:
                entered.remove(claim)
            if not entered:
                self._claims.pop(claim.key, None)
        if claim.ready is not None:
            claim.ready.set()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The lock; where what is kept was changed by half, all of it is forgotten."""
        with self._lock:
            try:
                yield
            except BaseException:
                self._empty()
                raise

    def fit(self) -> None:
        """Forget what exceeds the budget that is set now."""
        with self._changing():
            self._shrink(settings().cache_bytes)

    def _shrink(self, budget: int) -> list[Run]:
        """Forget the runs that are over budget; their memory is given back by the caller, outside the lock."""
        gone = []
        while self.nbytes > budget:
            run, (key, _) = self._recent.popitem(last=False)
            gone.append(self._forget_run(run, key))
        return gone

    def _forget_run(self, run: Run, key: Hashable) -> Run:
        self.nbytes -= run.nbytes
        runs = self._runs[key]
        for k in range(run.first, run.stop):
            del runs[k]
        if not runs:
            del self._runs[key]
        return run

    def once(self, key: Hashable, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of a key: kept, or made once for all who want it now; not to be written to."""
        claim = Claim(key)
        try:
            while (other := self.enter(claim)) is not None:
                other.wait()
                if other.made:
                    return other.made[0].array
            if claim.found:
                return claim.found[0].array
            array = make()
            self.settle(claim, [Run(0, 1, array)])
            return array
        finally:
            self.leave(claim)

    def kept(self, wanted: Iterable[tuple[Hashable, int, int]]) -> list[list[Run] | None]:
        """The runs of each of some (page, first, stop) of which all is kept now, which count as used; or None."""
        kept = list[list[Run] | None]()
        with self._lock:
            for each in wanted:
                found, missing = self._split(*each)
                if not missing:
                    self._note(found)
                kept.append(None if missing else found)
        return kept

    def missing(self, key: Hashable, first: int, stop: int) -> list[range]:
        """Which of the segments ``first:stop`` are not kept now."""
        with self._lock:
            return self._split(key, first, stop)[1]

    def drop(self, key: Hashable, is_over: Callable[[int], bool]) -> None:
        """Forget those runs of a page whose last segment will not be asked for again."""
        with self._changing():
            for run in [run for run in set(self._runs.get(key, {}).values()) if is_over(run.stop - 1)]:
                del self._recent[run]
                self._forget_run(run, key)

    def clear(self) -> None:
        """Forget every array."""
        with self._lock:
            self.clears += 1
            self._empty()

    def _empty(self) -> None:
        self._runs.clear()
        self._recent.clear()
        self.nbytes = 0

    def forget(self) -> None:
        """Start anew in a forked child, where no other thread will settle what was claimed."""
        self.__init__()  # type: ignore[misc]  # the same object stays imported everywhere


def _owned(run: Run) -> Run:
    """The run with a read-only array that keeps no more memory alive than its own bytes, but for a few."""
    array = run.array
    base: Any = array.base
    owns = base is None or (isinstance(base, bytes) and len(base) == array.nbytes)
    if not owns and not (isinstance(base, np.ndarray) and base.nbytes <= array.nbytes + _SLACK):
        run = Run(run.first, run.stop, array.copy())
    run.array.flags.writeable = False
    return run


segment_cache = SegmentCache()
when_configured.append(segment_cache.fit)
os.register_at_fork(after_in_child=segment_cache.forget)


def clear_cache() -> None:
    """Forget every decoded segment, close every idle file and give back the memory that waits for batches.

    >>> clear_cache()
    """
    segment_cache.clear()
    shelf.clear()
    pool.clear()
