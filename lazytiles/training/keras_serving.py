"""Which batch an index means, epoch after epoch, and reading ahead of whoever asks; without any framework.

A trainer may look at a batch or two, begins an epoch, asks for each index in some order, and ends the epoch. Others may
do the same in the midst of it. Nobody says who it is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from lazytiles.errors import LazyTilesError
from lazytiles.training.batches import copied
from lazytiles.training.readahead import ReadAhead
from lazytiles.training.schedule import Feed, Key
from lazytiles.trees import Structure, leaves

Owner = Literal["nobody", "user", "trainer"]  # who said which epoch it is: a trainer says so for each

_LOOKS = 2  # batches that a trainer looks at, at most, before it begins an epoch
_STREAK = 3  # indices in sequence that are read ahead; a pass that begins is taken to be so
_PATIENCE_S = 0.5  # how long others are read before a batch; TensorFlow hears no Ctrl-C while it waits for one


class Server:
    """Decides once in an epoch which of its steps an index means, and reads the likely next ones ahead.

    With ``is_shuffled`` an index means the next planned step when it is first asked for, and that step for
    the rest of the epoch; whoever asks, in whatever order, gets each step once and the same one again.
    Without, and before an epoch begins, index i is step i. An epoch of which all steps were asked for moves on when
    another one begins, or when a step is asked for after it has ended.

    An epoch has `steps` batches; where a pass over the samples has more or fewer, epochs go on through the passes.
    """

    def __init__(self, feed: Feed, steps: int) -> None:
        self.feed, self.steps = feed, steps
        self.is_shuffled = feed.schedule.is_random
        self.epoch = 0
        self.owner: Owner = "nobody"
        self.done: list[int] = []  # steps of this epoch that an earlier process has done
        self.left: Sequence[int] = range(steps)  # the others, as planned
        self.begins = 0  # passes over this epoch: a trainer's, and those of whoever else passes over it
        self.asked: list[tuple[int, int]] = []  # (step, thread), while a trainer says which epoch it is
        self.is_cut = False  # whether the last pass was of a resumed epoch
        self._ends = 0  # how often one of them was ended: never, where a class of the user's keeps that to itself
        self._last: Literal["ask", "begin", "end"] = "ask"  # what happened last
        self._index = -1  # that was asked for last
        self._streak = _STREAK  # how many before it were asked for one after the other
        self._bound: dict[int, int] = {}  # index -> step
        self._free = deque[int]()  # the steps that no index means, once the epoch has begun
        self._kept: dict[int, Structure] = {}  # steps that were read and wait to be asked for
        self._look: int | None = None  # one of them that was given already, perhaps to build a model
        self._run: tuple[deque[int], ReadAhead] | None = None  # steps, one after the other, and what reads them ahead
        self._nbytes = 0  # of a batch
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, object]:
        fresh: Any = {"_lock": None, "owner": "nobody", "asked": [], "_kept": {}, "_look": None, "_run": None}
        return {**vars(self), **fresh, "_bound": {**self._bound}, "_free": self._free.copy()}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    @property
    def next_epoch(self) -> int:
        """The epoch of the next request."""
        return self.epoch + (self._last == "end" and self._is_over())

    @property
    def promised(self) -> int:
        """How many steps whoever passes over the epoch now will get: in a resumed one, those that are left."""
        return len(self.left) if self._last == "begin" or self.owner == "trainer" else self.steps

    def key(self, epoch: int, step: int) -> Key:
        """The pass and the batch in it of one step of an epoch."""
        return divmod(epoch * self.steps + step, len(self.feed.schedule))

    def position(self) -> tuple[int, list[int]]:
        """The epoch of the next request, and which of its steps were given or done before."""
        with self._lock:
            is_through = len(self._bound) == len(self.left)
            return self.epoch + is_through, [] if is_through else sorted({*self.done, *self._bound.values()})

    def begin(self) -> None:
        """Somebody begins to pass over the epoch: wait for a batch, so that its errors come out here."""
        with self._lock:
            has_ended = self._last == "end"
            # All of it may have been asked for in the midst of an epoch, by somebody who passes over it besides.
            is_midst = self.begins > 1 and self._ends > 0 and not has_ended
            if self._is_over() and not is_midst and (self.begins or self.steps > _LOOKS):
                self.move(self.epoch + 1)
            # A trainer may begin and end it with one batch before, to build its model.
            is_built = has_ended and self.begins == len(self._bound) == 1
            if self.begins == 0:
                # Who has looked at it before is forgotten, unless it was a loop of the user's, who said which it is.
                if self.owner == "user" and len(self._bound) > _LOOKS:
                    self.begins = 1
                else:
                    self._forget()
                if self.is_shuffled:
                    self._free.extend(sorted({*self.left}.difference(self._bound.values())))
            coming = self._free if self.is_shuffled else self.left
            if coming and coming[0] not in self._kept:
                self._kept[coming[0]] = self._read(coming[0], coming)
            self.begins += not is_built
            self._last, self._index, self._streak = "begin", -1, _STREAK

    def end(self) -> None:
        """Somebody ends a pass; what comes next tells whether the epoch has ended, too."""
        with self._lock:
            self._ends += 1
            self._last = "end"

    def ask(self, index: int) -> tuple[Key, Structure]:
        """The batch that `index` means."""
        with self._lock:
            if self._last == "end" and self.begins < 2 and self._is_over():
                self.move(self.epoch + 1)
            self._streak = self._streak + 1 if index == self._index + 1 else 0
            coming: Iterable[int] = ()  # the steps from it on, if any can be told to be asked for in this order
            if index >= len(self.left):
                step = self.done[index - len(self.left)]
            elif self._free and index not in self._bound:
                step, coming = self._free[0], self._free
            else:
                step = self._bound.get(index, self.left[index])
                if self._streak >= _STREAK and not self._free:
                    coming = (self._bound.get(k, self.left[k]) for k in range(index, len(self.left)))
            batch = self._read(step, coming)
            if index < len(self.left):
                self._bound[index] = step
            if coming is self._free:
                self._free.popleft()
            self._index, self._last = index, "ask"
            if self.owner == "trainer":
                self.asked.append((step, threading.get_ident()))
            if self._look is not None:
                self._kept.pop(self._look, None)
            self._look = step if self.begins == len(self._bound) == 1 else None
            # What is looked at before the epoch, or alone, as to build a model, is asked for again.
            if step == self._look or (self.begins == 0 and step in self.left[:_LOOKS]):
                self._kept[step] = batch
                batch = copied(batch)
            return self.key(self.epoch, step), batch

    def move(self, epoch: int, done: Sequence[int] = ()) -> None:
        """Let the next request be of `epoch`, of which the steps `done` are left out."""
        with self._lock:
            self.drop()
            self._forget()
            self.epoch, self.done = epoch, sorted(done)
            self.left = sorted({*range(self.steps)}.difference(done)) if done else range(self.steps)
            self.owner = "nobody"

    def set_epoch(self, epoch: int, owner: Owner) -> None:
        """Begin `epoch` anew, or what is left of it; `owner` says it again for each of the others."""
        with self._lock:
            if epoch != self.epoch:
                self.move(epoch)
            self._forget()
            self.owner = owner

    def drop(self) -> None:
        """Forget all batches that were read."""
        with self._lock:
            if self._run is not None:
                self._run[1].close()
            self._run = self._look = None
            self._kept.clear()

    def _forget(self) -> None:
        """Let indices mean nothing yet; what was read stays."""
        self._bound.clear()
        self._free.clear()
        self.asked.clear()
        self.begins = self._ends = 0
        self._index, self._streak = -1, _STREAK
        self.is_cut = False

    def _is_over(self) -> bool:
        """Whether all of the epoch was asked for, and the next may follow without being told."""
        is_told = self.owner == "trainer" or (self.owner == "user" and self.begins > 1)
        return len(self._bound) == len(self.left) and not is_told

    def _read(self, step: int, coming: Iterable[int]) -> Structure:
        """The batch of a step: with those that come after it, where these are not on their way, or else alone."""
        if step in self._kept:
            return self._kept.pop(step)
        run = self._run[0] if self._run is not None else deque[int]()
        # Where all of an epoch may wait, no order of indices makes it decode anything again.
        is_planned = not self.is_shuffled and bool(self.feed.tandem.planned)
        may_wait = is_planned and self._nbytes * self.steps <= self.feed.readahead_bytes
        if not (run and (step == run[0] or (may_wait and step in run))):
            steps = deque(k for k in coming if k not in self._kept)
            if len(steps) < 2 or (run and (may_wait or steps[1] == run[0])):
                return self.feed.read(self.key(self.epoch, step))
            if self._run is not None:
                self._run[1].close()
            self._run = steps, ReadAhead(self.feed, [self.key(self.epoch, k) for k in steps])
        end = time.monotonic() + _PATIENCE_S
        while self._run is not None:
            (steps, ahead), self._run = self._run, None  # an error or Ctrl-C leaves none behind
            head = steps.popleft()
            try:
                _, batch = next(ahead)
            except LazyTilesError:
                if head == step:
                    raise
                break  # of a batch that nobody has asked for
            self._run = (steps, ahead) if steps else None
            self._nbytes = sum(array.nbytes for array in leaves(batch))
            if head == step:
                return batch
            self._kept[head] = batch
            if time.monotonic() > end:
                break
        return self.feed.read(self.key(self.epoch, step))
