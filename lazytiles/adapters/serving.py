"""Which batch answers which request of a trainer that hides its epochs; without any framework."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lazytiles.adapters.portable import copied
from lazytiles.order import permutation
from lazytiles.readahead import Key, ReadAhead
from lazytiles.schedule import Feed
from lazytiles.tandem import Structure

_LOOKS = 2  # batches that TensorFlow looks at before it asks for the first


@dataclass(slots=True)
class _Pass:
    """One walk over the steps of an epoch."""

    epoch: int
    is_permuted: bool
    steps: NDArray[np.int64]  # in the order in which they are served
    trainer: object = None  # whoever began it
    served: int = 0
    ahead: ReadAhead | None = None

    @property
    def is_over(self) -> bool:
        return self.served >= len(self.steps)


class Server:
    """Serves the batches of one epoch after the other, read ahead, whatever indices they are asked by.

    Parameters
    ----------
    feed : how a batch comes about
    steps : batches of one epoch; where it differs from the feed's batches, epochs go on through the passes

    Notes
    -----
    Not safe for threads by itself; `KerasAdapter` has the lock.
    """

    def __init__(self, feed: Feed, *, steps: int) -> None:
        self.feed, self.steps = feed, steps
        self.batches, self.seed = len(feed.schedule), feed.schedule.seed
        # Never permute batches where the samples are shuffled already.
        self.is_fixed = feed.schedule.is_random
        self.epoch = 0  # of the next pass
        self.offset = 0  # steps of that epoch that an earlier process has done
        self._pass: _Pass | None = None
        self._kept: dict[Key, Structure] = {}
        self._is_new = False  # whether an epoch was begun and nothing was asked since

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_pass": None, "_kept": {}, "_is_new": False}

    def key(self, epoch: int, step: int) -> Key:
        """The pass and the batch in it of one step of an epoch."""
        done = epoch * self.steps + step
        return done // self.batches, done % self.batches

    def position(self) -> tuple[int, int]:
        """The epoch and the step in it of the next request."""
        now = self._pass
        if now is None or now.is_over:
            return (self.epoch, self.offset) if now is None else (now.epoch + 1, 0)
        return now.epoch, now.served + self.steps - len(now.steps)

    def order(self, epoch: int, *, is_permuted: bool) -> NDArray[np.int64]:
        """The steps of an epoch as they are served.

        The first stays first: trainers look at it before they say whether they shuffle.
        """
        if self.is_fixed or not is_permuted or self.steps < 3:
            return np.arange(self.steps)
        later = permutation(self.steps - 1, self.seed, epoch=epoch, purpose="batches")
        return np.concatenate([[0], 1 + later])

    def begin(self, *, is_permuted: bool | None, trainer: object) -> None:
        """An epoch begins: wait for its first batch, so that its errors come out here.

        Parameters
        ----------
        is_permuted : whether the trainer shuffles, or None where that is not known yet
        trainer : what begins the epoch; the same one may go on with a pass it left
        """
        self._is_new = True
        left = self._pass
        if left is not None and not left.is_over:
            goes_on = left.trainer is trainer if left.served > 1 else left.epoch == self.epoch
            if goes_on and (is_permuted is None or left.is_permuted == is_permuted):
                return
        if is_permuted is not None:
            self._start(is_permuted, trainer)
        first = self.key(self.epoch, self._first(bool(is_permuted)))
        if first not in self._kept:
            self._kept[first] = self._fetch(first)
        elif self._pass is not None:
            self._read_on(self._pass)

    def place(self, index: int) -> tuple[int, bool]:
        """The position in the pass, and whether the trainer shuffles, as the arrival of an index tells."""
        now = self._pass
        if now is None or now.is_over or (self._is_new and now.served > 0 and index != now.served):
            return 0, index != 0
        return now.served, now.is_permuted or index != now.served

    def serve(self, position: int, *, is_permuted: bool) -> tuple[Key, Structure]:
        """The batch at a position of the present pass; position 0 begins a pass."""
        now = self._pass
        self._is_new = False
        if now is None or (position == 0 and not self._can_rewind(now, is_permuted)):
            now = self._start(is_permuted, None if now is None else now.trainer)
        if is_permuted and not now.is_permuted:
            self._permute(now)
        key = self.key(now.epoch, int(now.steps[position]))
        now.served = position
        batch = self._fetch(key)
        now.served = position + 1
        first = self.key(now.epoch, int(now.steps[0]))
        if position == 0:
            # A trainer that builds its model takes the first batch, ends the epoch and begins it again.
            self._kept[first] = batch
        else:
            self._kept.pop(first, None)
        return key, batch

    def look(self, index: int, *, is_permuted: bool | None = None, trainer: object = None) -> tuple[Key, Structure]:
        """Step `index` of the present epoch in arrays of its own; a trainer's first look begins its pass.

        Parameters
        ----------
        is_permuted, trainer : as in `begin`, where it is a trainer that looks
        """
        key = self.key(self.epoch, index)
        if index < _LOOKS and is_permuted is not None and self._pass is None:
            looks = [self.key(self.epoch, step) for step in range(min(_LOOKS, self.steps))]
            self._read_on(self._start(is_permuted, trainer), looks)
        if key in self._kept:
            return key, copied(self._kept[key])
        if index >= _LOOKS:
            return key, self.feed.work.read(key)
        now = self._pass
        is_before = now is not None and now.served == 0 and trainer is not None and now.trainer is trainer
        batch = self._kept[key] = self._fetch(key) if is_before else self.feed.work.read(key)
        return key, copied(batch)

    def end(self, *, starts_over: object = None) -> None:
        """An epoch ends: the next one follows if all of it was served; what was read ahead is dropped.

        Parameters
        ----------
        starts_over : the trainer that only looked at batches to build its model, if one did
        """
        now = self._pass
        if now is None:
            return
        if now.is_over and (starts_over is None or starts_over is not now.trainer):
            self.epoch, self.offset = now.epoch + 1, 0
            self.drop()
        elif now.served > 1:
            self._close(now)

    def set_epoch(self, epoch: int, offset: int = 0) -> None:
        """Let the next pass be that of `epoch`, from step `offset` on."""
        if epoch != self.epoch or offset:
            self.epoch, self.offset = epoch, offset

    def drop(self) -> None:
        """Forget the present pass and all batches."""
        if self._pass is not None:
            self._close(self._pass)
        self._pass = None
        self._kept.clear()

    def walk(self, epoch: int) -> Iterator[tuple[Key, Structure]]:
        """All batches of an epoch in order, read ahead, apart from what is served."""
        ahead = self.feed.ahead([self.key(epoch, step) for step in range(self.steps)])
        try:
            yield from ahead
        finally:
            ahead.close()

    def _first(self, is_permuted: bool) -> int:
        return int(self.order(self.epoch, is_permuted=is_permuted)[self.offset])

    def _can_rewind(self, now: _Pass, is_permuted: bool) -> bool:
        same = now.epoch == self.epoch and now.is_permuted == is_permuted
        return same and now.served <= 1 and len(now.steps) == self.steps - self.offset

    def _start(self, is_permuted: bool, trainer: object) -> _Pass:
        if self._pass is not None:
            self._close(self._pass)
        steps = self.order(self.epoch, is_permuted=is_permuted)[self.offset :]
        self._pass = _Pass(self.epoch, is_permuted, steps, trainer)
        ours = {self.key(self.epoch, int(step)) for step in range(self.steps)}
        self._kept = {key: batch for key, batch in self._kept.items() if key in ours}
        return self._pass

    def _permute(self, now: _Pass) -> None:
        """The trainer turns out to shuffle: what it has not got yet comes in our own order."""
        self._close(now)
        order = self.order(now.epoch, is_permuted=True)[self.steps - len(now.steps) :]
        got = now.steps[: now.served]
        now.steps = np.concatenate([got, order[~np.isin(order, got)]])
        now.is_permuted = True

    def _fetch(self, key: Key) -> Structure:
        if key in self._kept:
            return self._kept.pop(key)
        now = self._pass
        try:
            if now is None:
                return self.feed.work.read(key)
            found, batch = next(self._read_on(now), (None, None))
            if found == key:
                return batch
            # Asked by something that is not in step, such as a thread of an earlier fit.
            self._close(now)
            return self.feed.work.read(key)
        except BaseException:
            self.drop()
            raise

    def _read_on(self, now: _Pass, looks: Sequence[Key] = ()) -> ReadAhead:
        """What reads the rest of a pass ahead, those that are looked at before the others; it works from here on."""
        if now.ahead is None:
            keys = [self.key(now.epoch, int(step)) for step in now.steps[now.served :]]
            now.ahead = self.feed.ahead([key for key in dict.fromkeys([*looks, *keys]) if key not in self._kept])
            now.ahead.start()
        return now.ahead

    def _close(self, now: _Pass) -> None:
        if now.ahead is not None:
            now.ahead.close()
            now.ahead = None
