"""Which batch an index means, epoch after epoch, and reading ahead of whoever asks; without any framework."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from lazytiles.errors import LazyTilesError
from lazytiles.training.batches import copied
from lazytiles.training.readahead import Key, ReadAhead
from lazytiles.training.schedule import Feed
from lazytiles.trees import Structure, leaves

Owner = Literal["nobody", "user", "trainer"]  # who said which epoch it is: a trainer says so for each

_LOOKS = 2  # batches that a trainer looks at, at most, before it begins an epoch
_PATIENCE_S = 0.5  # how long a batch that is read in any case is waited for
_RUNS = 2  # sequences that are read ahead at once: a trainer's, and that of a callback which predicts


@dataclass(slots=True, eq=False)
class _Run:
    """Steps that are asked for one after the other, and what reads them ahead."""

    steps: Sequence[int]
    ahead: ReadAhead
    given: int = 0

    @property
    def head(self) -> int | None:
        return self.steps[self.given] if self.given < len(self.steps) else None


class Server:
    """Decides once in an epoch which of its steps an index means, and reads the likely next ones ahead.

    With ``is_shuffled`` an index means the next planned step when it is first asked for, and that step for
    the rest of the epoch; whoever asks, in whatever order, gets each step once and the same one again.
    Without, index i is step i. An epoch of which all steps were asked for moves on when it ends or another
    one begins.

    Parameters
    ----------
    feed : how a batch comes about
    steps : batches of an epoch; where a pass over the samples has more or fewer, epochs go on through the passes

    Notes
    -----
    Not safe for threads by itself; `KerasAdapter` has the lock.
    """

    def __init__(self, feed: Feed, steps: int) -> None:
        self.feed, self.steps = feed, steps
        self.is_shuffled = feed.schedule.is_random
        self.epoch = 0
        self.begins = 0  # how often this epoch was begun: by a trainer, and by whoever else passes over it
        self.owner: Owner = "nobody"
        self.done: list[int] = []  # steps of this epoch that an earlier process has done
        self.left: Sequence[int] = range(steps)  # the others, as planned
        self.asked: list[tuple[int, int]] = []  # (step, thread), while a trainer says which epoch it is
        self._bound: dict[int, int] = {}  # index -> step
        self._taken: set[int] = set()  # the steps that are bound
        self._planned = 0  # how many of `left` are so at its beginning
        self._asks = 0
        self._ends = 0  # how often a pass over it was ended: never, where a class of the user's keeps that to itself
        self._index = -1  # that was asked for last
        self._last: Literal["ask", "begin", "end"] = "ask"  # what happened last
        self.is_cut = False  # whether the last pass was of a resumed epoch
        self._is_build = False  # whether it was begun first for one batch only, as a trainer does to build a model
        self._is_pending = False  # whether the epoch is over, unless somebody who began it before goes on
        self._kept: dict[int, Structure] = {}  # steps that were read and wait to be asked for
        self._looked: list[int] = []  # those of them that were given already, perhaps to somebody who only looks
        self._runs: list[_Run] = []  # the one that was used last is the last
        self._nbytes = 0  # of a batch

    def __getstate__(self) -> dict[str, object]:
        fresh = {"owner": "nobody", "asked": [], "_kept": {}, "_looked": [], "_runs": []}
        return {**vars(self), **fresh, "_bound": {**self._bound}, "_taken": {*self._taken}}

    @property
    def next_epoch(self) -> int:
        """The epoch of the next request."""
        return self.epoch + self._is_pending

    @property
    def _passes(self) -> int:
        """How many passes over this epoch were begun."""
        return self.begins - self._is_build

    @property
    def promised(self) -> int:
        """How many steps whoever passes over the epoch now will get: in a resumed one, those that are left."""
        return len(self.left) if self._last == "begin" or self.owner == "trainer" else self.steps

    def key(self, epoch: int, step: int) -> Key:
        """The pass and the batch in it of one step of an epoch."""
        return divmod(epoch * self.steps + step, len(self.feed.schedule))

    def position(self) -> tuple[int, list[int]]:
        """The epoch of the next request, and which of its steps were given or done before."""
        if self._is_over():
            return self.epoch + 1, []
        return self.epoch, sorted({*self.done, *self._bound.values()})

    def begin(self) -> None:
        """Somebody begins to pass over the epoch: wait for a batch, so that its errors come out here."""
        is_next = self._passes == 1 or self._last == "end" or not self._ends if self.begins else self.steps > _LOOKS
        if is_next and self._moves_on():
            self.move(self.epoch + 1)
        self._is_pending = False
        if self.begins == 0 and self.owner == "user" and self._asks > _LOOKS:
            self.begins = 1  # somebody's loop, which does not say so
        elif self.begins == 0:
            self._forget()
        coming = self.left[self._free() :] if self.is_shuffled else self.left
        if coming and coming[0] not in self._kept:
            self._kept[coming[0]] = self._fetch(coming[0], lambda: coming)
        self.begins += 1
        self._last = "begin"

    def end(self) -> None:
        """Somebody ends a pass: the next epoch follows if all of this one was asked for."""
        self._last = "end"
        self._ends += 1
        self._is_build = self._is_build or self.begins == self._asks == 1
        is_next = self._passes == 1 or (self.begins == 0 and (self.steps > _LOOKS or self._is_pending))
        if is_next and self._moves_on():
            self.move(self.epoch + 1)
        elif self._moves_on():
            # Asked for in the looks of a trainer, which then begins, or by a loop, which asks again; or it was begun
            # in the midst of somebody else's pass, who may go on: what comes next tells.
            self._is_pending = True

    def ask(self, index: int) -> tuple[Key, Structure]:
        """The batch that `index` means."""
        if self._is_pending and self.begins == 0:
            self.move(self.epoch + 1)
        is_new = index not in self._bound
        step = self._plan(index) if is_new else self._bound[index]
        batch = self._fetch(step, lambda: self._likely(index, is_new=is_new))
        self._bound[index] = step
        self._taken.add(step)
        self._index, self._last = index, "ask"
        self._asks += 1
        if self.owner == "trainer":
            self.asked.append((step, threading.get_ident()))
        key = self.key(self.epoch, step)
        if step in self.left[:_LOOKS] if self.begins == 0 else self._asks == 1:
            self._kept[step] = batch
            self._looked = [step] if self.begins else []
            return key, copied(batch)
        while self._looked:
            self._kept.pop(self._looked.pop(), None)
        return key, batch

    def move(self, epoch: int, done: Sequence[int] = ()) -> None:
        """Let the next request be of `epoch`, of which the steps `done` are left out."""
        self.drop()
        self._forget()
        self.epoch, self.done = epoch, sorted(done)
        self.left = sorted({*range(self.steps)}.difference(done)) if done else range(self.steps)
        self.owner = "nobody"

    def set_epoch(self, epoch: int, owner: Owner) -> None:
        """Begin `epoch` anew, or what is left of it; `owner` says it again for each of the others."""
        if epoch != self.next_epoch or self._is_pending:
            self.move(epoch)
        elif self._asks > _LOOKS:
            self.drop()
        self._forget()
        self.owner = owner

    def drop(self) -> None:
        """Forget all batches that were read."""
        while self._runs:
            self._runs.pop().ahead.close()
        self._kept.clear()

    def _forget(self) -> None:
        """Let indices mean nothing yet; what was read stays."""
        self._bound.clear()
        self._taken.clear()
        self._looked.clear()
        self.asked.clear()
        self.begins = self._planned = self._asks = self._ends = 0
        self._index = -1
        self.is_cut = self._is_build = self._is_pending = False

    def _is_over(self) -> bool:
        return sum(index < len(self.left) for index in self._bound) == len(self.left)

    def _moves_on(self) -> bool:
        """Whether the epoch is over, and followed by the next without being told."""
        return self._is_over() and (self.owner == "nobody" or (self.owner == "user" and self._passes < 2))

    def _plan(self, index: int) -> int:
        """The step of an index that means none yet; before the epoch begins, that of its number."""
        if index >= len(self.left):
            return self.done[index - len(self.left)]
        return self.left[self._free() if self.is_shuffled and self.begins else index]

    def _free(self) -> int:
        """How many of the planned steps come before the first that no index means."""
        while self._planned < len(self.left) and self.left[self._planned] in self._taken:
            self._planned += 1
        return self._planned

    def _likely(self, index: int, *, is_new: bool) -> Sequence[int]:
        """The steps from that of `index` on which will be asked for in this order, if any can be told."""
        if self.is_shuffled and self.begins and is_new:
            return self.left[self._free() :]
        is_first = self.begins == 0 and self._asks == 0 and index == 0
        if not is_first and index != self._index + 1:
            return ()
        if not self.is_shuffled or self.begins == 0:
            return self.left[index:]
        return [self._bound[k] for k in takewhile(self._bound.__contains__, range(index, len(self.left)))]

    def _fetch(self, step: int, likely: Callable[[], Sequence[int]]) -> Structure:
        if step in self._kept:
            return self._kept.pop(step)
        for run in self._runs:
            if run.head == step:
                return self._follow(run)
        for run in self._runs if self._fits() else ():
            if step in run.steps[run.given :]:
                end = time.monotonic() + _PATIENCE_S
                while (head := run.head) not in (None, step) and time.monotonic() < end:
                    try:
                        self._kept[head] = self._follow(run)
                    except LazyTilesError:  # of a batch that was not asked for
                        break
                if run in self._runs and head == step:
                    return self._follow(run)
        steps = likely()
        coming = (k for run in self._runs for k in run.steps[run.given :])
        if not steps or (len(steps) > 1 and (steps[1] in self._kept or steps[1] in coming)):
            return self.feed.work.read(self.key(self.epoch, step))
        if self._kept:
            steps = [step for step in steps if step not in self._kept]
        while len(self._runs) >= _RUNS:
            self._runs.pop(0).ahead.close()
        keys = (self.key(self.epoch, step) for step in steps)
        self._runs.append(_Run(steps, self.feed.ahead(keys)))
        return self._follow(self._runs[-1])

    def _follow(self, run: _Run) -> Structure:
        """The next batch of a run."""
        self._runs.remove(run)
        _, batch = next(run.ahead)
        run.given += 1
        self._runs.append(run)
        self._nbytes = sum(array.nbytes for array in leaves(batch))
        return batch

    def _fits(self) -> bool:
        """Whether all of an epoch may wait, so that no order of indices makes it decode anything again."""
        is_planned = not self.is_shuffled and bool(self.feed.tandem.planned)
        return is_planned and self._nbytes * self.steps <= self.feed.readahead_bytes
