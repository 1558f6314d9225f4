"""Which batch an index means, epoch after epoch, and reading ahead of whoever asks; without any framework."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from lazytiles.adapters.portable import copied
from lazytiles.readahead import Key, ReadAhead
from lazytiles.schedule import Feed
from lazytiles.tandem import Structure, leaves

Owner = Literal["nobody", "user", "trainer"]  # who said which epoch it is: a trainer says so for each

_LOOKS = 2  # batches that a trainer looks at, at most, before it begins an epoch
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
        self.is_inside = False
        self.owner: Owner = "nobody"
        self.done: list[int] = []  # steps of this epoch that an earlier process has done
        self.left: Sequence[int] = range(steps)  # the others, as planned
        self.asked: list[tuple[int, int]] = []  # (step, thread), while a trainer says which epoch it is
        self._bound: dict[int, int] = {}  # index -> step
        self._planned = 0  # how many of `left` were given to an index
        self._asks = 0
        self._last = -1  # index that was asked for last
        self._is_short = False  # whether the last iteration was of a resumed epoch
        self._is_pending = False  # whether the epoch is over if what was asked for were no looks
        self._kept: dict[int, Structure] = {}  # steps that were read and wait to be asked for
        self._looked: list[int] = []  # those of them that were given already, perhaps to somebody who only looks
        self._runs: list[_Run] = []  # the one that was used last is the last
        self._nbytes = 0  # of a batch

    def __getstate__(self) -> dict[str, object]:
        fresh = {"begins": 0, "is_inside": False, "owner": "nobody", "asked": [], "_asks": 0}
        return {**vars(self), **fresh, "_bound": {**self._bound}, "_kept": {}, "_looked": [], "_runs": []}

    @property
    def next_epoch(self) -> int:
        """The epoch of the next request."""
        return self.epoch + self._is_pending

    @property
    def promised(self) -> int:
        """How many steps whoever passes over the epoch now will get: in a resumed one, those that are left."""
        return len(self.left) if self.is_inside or self.owner == "trainer" else self.steps

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
        if self._is_over() and self._moves_on() and (self.begins or self.steps > _LOOKS):
            self.move(self.epoch + 1)
        self._is_pending = False
        if self.begins == 0 and self.owner == "user" and self._asks > _LOOKS:
            self.begins = 1  # somebody's loop, which does not say so
        elif self.begins == 0:
            self._forget()
        coming = self.left[self._planned if self.is_shuffled else 0 :]
        if coming and coming[0] not in self._kept:
            self._kept[coming[0]] = self._fetch(coming[0], lambda: coming)
        self.begins += 1
        self.is_inside = True

    def end(self) -> None:
        """Somebody ends a pass: the next epoch follows if all of this one was asked for."""
        self.is_inside = False
        if not (self._is_over() and self._moves_on()):
            return
        if self.begins or self.steps > _LOOKS or self._is_pending:
            self.move(self.epoch + 1)
        else:
            # So few may have been looks of a trainer, which then begins, or a pass of a loop, which asks again.
            self._is_pending = True

    def iterate(self) -> int:
        """Begin a pass in order, of the steps that are returned; none right after one of a resumed epoch."""
        is_second, self._is_short = self._is_short, False
        if is_second:
            return 0
        self.begin()
        self._is_short = len(self.left) < self.steps
        return len(self.left)

    def ask(self, index: int) -> tuple[Key, Structure]:
        """The batch that `index` means."""
        if self._is_pending:
            self.move(self.epoch + 1)
        is_new = index not in self._bound
        step = self._plan(index) if is_new else self._bound[index]
        batch = self._fetch(step, lambda: self._likely(index, step, is_new=is_new))
        self._bound[index] = step
        self._planned += is_new and self.is_shuffled and index < len(self.left)
        self._last = index
        self._asks += 1
        if self.owner == "trainer":
            self.asked.append((step, threading.get_ident()))
        key = self.key(self.epoch, step)
        if self._asks <= (1 if self.begins else _LOOKS):
            self._kept[step] = batch
            self._looked.append(step)
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
        self._looked.clear()
        self.asked.clear()
        self.begins = self._planned = self._asks = 0
        self._last = -1
        self._is_pending = False

    def _is_over(self) -> bool:
        return sum(index < len(self.left) for index in self._bound) == len(self.left)

    def _moves_on(self) -> bool:
        """Whether an epoch that is over is followed by the next without being told."""
        return self.owner == "nobody" or (self.owner == "user" and self.begins < 2)

    def _plan(self, index: int) -> int:
        if index >= len(self.left):
            return self.done[index - len(self.left)]
        return self.left[self._planned if self.is_shuffled else index]

    def _likely(self, index: int, step: int, *, is_new: bool) -> Sequence[int]:
        """The steps from this one on that will be asked for in this order, if any can be told."""
        if index >= len(self.left):
            return ()
        if self.is_shuffled and is_new:
            return self.left[self._planned :]
        is_first = self.begins == 0 and self._asks == 0 and index == 0
        if not is_first and index != self._last + 1:
            return ()
        if not self.is_shuffled:
            return self.left[index:]
        known = takewhile(self._bound.__contains__, range(index, len(self.left)))
        return [self._bound[index] for index in known]

    def _fetch(self, step: int, likely: Callable[[], Sequence[int]]) -> Structure:
        if step in self._kept:
            return self._kept.pop(step)
        for run in self._runs:
            if run.head == step:
                return self._follow(run)
        for run in self._runs if self._fits() else ():
            if step in run.steps[run.given :]:
                while (head := run.head) is not None and head != step:
                    self._kept[head] = self._follow(run)
                return self._follow(run)
        if not (steps := likely()):
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
