"""`BatchFlow`: sources in tandem to batches, in an order that depends on nothing but its seed."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping
from html import escape
from itertools import chain, count
from operator import index
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lazytiles.augment import with_boxes
from lazytiles.errors import LazyTilesError
from lazytiles.order import balanced_weights, draw, fresh_seed, permutation, shard_batches, shard_slice
from lazytiles.ranks import Shard, own_shard
from lazytiles.readahead import Key, ReadAhead, Work
from lazytiles.stage import Stage, Transform
from lazytiles.tandem import Rows, Structure, Tandem

STATE_VERSION = 1
READAHEAD_BYTES = 256 * 2**20
_NAMES_IN_DIGEST = 4


class Schedule:
    """Which rows each batch of each epoch has: a pure function of what it is made of.

    A global batch has ``batch_size * count`` rows; shard `r` takes the `r`-th part of each, so that the
    shards together are the one order.

    Parameters
    ----------
    samples : rows there are
    batch_size : rows of a batch of this shard
    shuffle : a new permutation of all rows for each epoch
    replacement, weights : draw the rows instead, `weights` being relative probabilities, shape (samples,)
    drop_last : leave out the global batch that is not full, as several shards always do
    seed : int
    shard : (rank, count), or "auto" to ask the launcher

    Raises
    ------
    ValueError : sizes below one, a rank outside its count, weights that cannot be drawn from

    >>> schedule = Schedule(5, 2)
    >>> len(schedule), schedule.rows((0, 2))
    (3, array([4]))
    >>> Schedule(8, 2, shard=(1, 2)).rows((0, 1))
    array([6, 7])
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        replacement: bool = False,
        weights: ArrayLike | None = None,
        drop_last: bool = False,
        seed: int = 0,
        shard: Shard = (0, 1),
    ) -> None:
        self.samples, self.batch_size, self.seed = samples, int(batch_size), index(seed)
        self.shuffle, self.replacement, self.drop_last = shuffle, replacement, drop_last
        self.shard = own_shard() if shard == "auto" else shard
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self._batches = shard_batches(samples, batch_size, self.shard, drop_last=drop_last)
        self._orders: dict[int, Rows] = {}
        if self.weights is not None:
            self.order(0)

    def __len__(self) -> int:
        return self._batches

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_orders": {}}

    @property
    def is_random(self) -> bool:
        """Whether epochs differ."""
        return self.shuffle or self.replacement or self.weights is not None

    def order(self, epoch: int) -> Rows:
        """All rows of an epoch, of all shards, int64."""
        if not self.is_random:
            return np.arange(self.samples)
        order = self._orders.get(epoch)
        if order is None:
            order = self._draw(epoch)
            # Two, because the end of one epoch is read while the next is planned.
            self._orders = dict([*list(self._orders.items())[-1:], (epoch, order)])
        return order

    def rows(self, key: Key) -> Rows:
        """The rows of a batch, int64, shape (at most batch_size,)."""
        epoch, batch = key
        part = shard_slice(batch, self.batch_size, self.shard)
        if not self.is_random:
            return np.arange(*part.indices(self.samples))
        return self.order(epoch)[part]

    def words(self) -> tuple[object, ...]:
        """What distinguishes this schedule from others, apart from its seed."""
        weights = None if self.weights is None else hashlib.blake2b(self.weights.tobytes()).hexdigest()
        return (
            *(self.samples, self.batch_size, self.shuffle, self.replacement, weights),
            *(self.drop_last, *self.shard),
        )

    def _draw(self, epoch: int) -> Rows:
        if self.weights is None and not self.replacement:
            return permutation(self.samples, self.seed, epoch=epoch)
        return draw(
            *(self.samples, self.samples, self.seed),
            epoch=epoch,
            weights=self.weights,
            replacement=self.replacement,
        )


def digest(tandem: Tandem, schedule: Schedule) -> int:
    """A number below 2**48 that changes with what is read (shapes, dtypes, order, windows) and how."""
    words = hashlib.blake2b(digest_size=6)
    words.update(repr(schedule.words()).encode())
    for source in tandem.sources:
        words.update(repr((tuple(map(int, source.shape)), np.dtype(source.dtype).str)).encode())
        for name in ("order", "sample_windows"):
            array = getattr(source, name, None)
            if isinstance(array, np.ndarray):
                words.update(np.ascontiguousarray(array).data)
        if hasattr(source, "name_of") and tandem.samples:
            for row in np.linspace(0, tandem.samples - 1, _NAMES_IN_DIGEST).astype(int):
                words.update(source.name_of(int(row)).encode())
    return int.from_bytes(words.digest(), "big")


def check_state(state: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Refuse the state of another flow.

    Parameters
    ----------
    state : what is to be loaded
    expected : the state of the flow that is to load it

    Raises
    ------
    LazyTilesError : saying what differs
    """
    if state.get("version") != STATE_VERSION:
        raise LazyTilesError(f"this state has version {state.get('version')!r}; version {STATE_VERSION} can be loaded")
    if missing := sorted(expected.keys() - state.keys()):
        raise LazyTilesError(f"this state lacks {', '.join(missing)}; pass what state_dict() gave")
    if state["epoch"] < 0 or state["batch"] < 0:
        raise LazyTilesError(f"this state is of batch {state['batch']} of epoch {state['epoch']}; both count from 0")
    for name, what in (("samples", "samples"), ("batch_size", "samples a batch"), ("seed", "as its seed")):
        if state[name] != expected[name]:
            raise LazyTilesError(f"this state is of a flow with {state[name]} {what}; this one has {expected[name]}")
    if state["digest"] != expected["digest"]:
        raise LazyTilesError(
            "this state is of a flow that reads something else: other tiles, another order, or other "
            "options; make the flow as it was made when the state was saved"
        )


class BatchFlow:
    """Batches of sources in tandem, in an order that is a function of the seed and the epoch alone.

    Iterating gives one epoch; the next iteration gives the next epoch. An epoch that was not followed to
    its end begins anew.

    Parameters
    ----------
    data : one source, or tuples, lists and dicts of sources of one length (N, ...)
    batch_size : samples of a batch
    shuffle : a new permutation for each epoch, on top of the order that the sources have
    replacement : draw N samples an epoch, each from all
    weights : relative probability of each sample, shape (N,); or "balanced", by the labels of the source
    drop_last : leave out the last batch where it is not full
    transform : (batch, rng) -> batch, where `rng` is a function of (seed, epoch, batch), such as
        `augment.Augment`; or a function of one image, ``fn(image=..., mask=...) -> dict``
    seed : int, or None for a fresh one, to be found in ``.seed``
    shard : (rank, count), or "auto" to ask the launcher: this flow's part of every global batch of
        ``batch_size * count`` samples; all shards are given one seed
    prefetch : finished batches that wait
    readahead_bytes : bytes of the batches that are planned and decoded together, each segment once
    threads : threads that read and transform; None takes the setting of that name
    processes : processes that run `transform` instead of threads (needs the extra ``processes``)
    loop : go on with the next epoch, without end

    Raises
    ------
    TypeError : something in `data` is not a source
    ValueError : lengths that differ, an option out of its range, shards of a random order without a seed

    Notes
    -----
    Reading is done on a pool of threads that all flows share. An error is raised at the batch that it
    belongs to. An iterator that is closed or forgotten stops its reading; `close` or ``with`` also ends
    worker processes.

    >>> flow = BatchFlow((np.arange(5) * 10, np.arange(5)), 2)
    >>> for x, i in flow:
    ...     print(x, i)
    [ 0 10] [0 1]
    [20 30] [2 3]
    [40] [4]
    """

    def __init__(
        self,
        data: Structure,
        batch_size: int,
        *,
        shuffle: bool = False,
        replacement: bool = False,
        weights: ArrayLike | None = None,
        drop_last: bool = False,
        transform: Transform | None = None,
        seed: int | None = None,
        shard: Shard = (0, 1),
        prefetch: int = 2,
        readahead_bytes: int = READAHEAD_BYTES,
        threads: int | None = None,
        processes: int = 0,
        loop: bool = False,
    ) -> None:
        check_budgets(prefetch=prefetch, readahead_bytes=readahead_bytes, threads=threads, processes=processes)
        self.seed = fresh_seed() if seed is None else index(seed)
        self.prefetch, self.readahead_bytes, self.loop = prefetch, readahead_bytes, loop
        self._keeps_seed = seed is not None
        self._tandem = Tandem(data, threads=threads)
        self._schedule = Schedule(
            *(self._tandem.samples, batch_size),
            shuffle=shuffle,
            replacement=replacement,
            weights=self._tandem_weights(weights),
            drop_last=drop_last,
            seed=self.seed,
            shard=shard,
        )
        if seed is None and self._schedule.is_random and self._schedule.shard[1] > 1:
            raise ValueError("shards of a random order need one seed; pass the same seed= to each of them")
        self._stage = None if transform is None else Stage(with_boxes(transform, data), self.seed, processes=processes)
        self._begin: Key = (0, 0)  # where the next iteration begins
        self._position: Key = (0, 0)  # of the next batch of the iteration that last gave one
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_passes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        """Batches of one epoch."""
        return len(self._schedule)

    def __iter__(self) -> Iterator[Structure]:
        return self.flow()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        s = self._schedule
        kind = "shuffled" if s.shuffle else "drawn" if s.is_random else "in order"
        part = f", shard {s.shard[0]} of {s.shard[1]}" if s.shard[1] > 1 else ""
        sizes = f"{s.samples} samples {kind}, {len(self)} batches of {s.batch_size}"
        return f"BatchFlow({sizes}{part}, seed {self.seed})"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._position[0]

    def flow(self) -> Iterator[Structure]:
        """The batches from here on: to the end of the epoch, or without end where the flow loops."""
        self._position = self._begin
        self._begin = (self._begin[0], 0)
        ahead = ReadAhead(
            Work(self._tandem, self._schedule.rows, self._stage, self._tandem.threads),
            self._keys(*self._position),
            prefetch=self.prefetch,
            readahead_bytes=self.readahead_bytes,
        )
        self._passes.add(ahead)
        try:
            for key, *held in ahead:
                self._advance(*key)
                # Popped, so that a batch which its consumer dropped is not kept alive here.
                yield held.pop()
        finally:
            ahead.close()

    def rows(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """The rows of the sources that make up a batch, int64."""
        return self._schedule.rows((epoch, batch))

    def state_dict(self) -> dict[str, int]:
        """A few JSON numbers from which `load_state_dict` continues with the next batch, bit for bit."""
        epoch, batch = self._position
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "batch": batch,
            "seed": self.seed,
            "samples": self._schedule.samples,
            "batch_size": self._schedule.batch_size,
            "digest": digest(self._tandem, self._schedule),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin the next iteration where `state` was taken.

        Parameters
        ----------
        state : what `state_dict` of a flow over the same data with the same options gave

        Raises
        ------
        LazyTilesError : another version, other data or other options, or not what `state_dict` gave
        """
        expected = self.state_dict()
        check_state(state, expected if self._keeps_seed else {**expected, "seed": state["seed"]})
        if state["batch"] >= max(1, len(self)):
            raise LazyTilesError(f"this state is of batch {state['batch']}; an epoch of this flow has {len(self)}")
        self.seed = self._schedule.seed = state["seed"]
        if self._stage is not None:
            self._stage.seed = self.seed
        self._begin = self._position = (state["epoch"], state["batch"])

    def close(self) -> None:
        """End all iterations and worker processes; a later iteration starts what it needs."""
        for ahead in tuple(self._passes):
            ahead.close()
        if self._stage is not None:
            self._stage.close()

    def _tandem_weights(self, weights: ArrayLike | None) -> ArrayLike | None:
        if not isinstance(weights, str):
            return weights
        labels = next((s.labels for s in self._tandem.sources if hasattr(s, "labels")), None)
        if weights != "balanced" or labels is None:
            raise ValueError(
                f"weights are one number a sample, or 'balanced' over a source with labels; not {weights!r}"
            )
        return balanced_weights(labels)

    def _open(self) -> None:
        self._passes: weakref.WeakSet[ReadAhead] = weakref.WeakSet()
        if self._stage is not None:
            weakref.finalize(self, self._stage.close)

    def _keys(self, epoch: int, batch: int) -> Iterator[Key]:
        size = len(self)
        first = ((epoch, k) for k in range(batch, size))
        if not self.loop or size == 0:
            return first
        return chain(first, ((later, k) for later in count(epoch + 1) for k in range(size)))

    def _advance(self, epoch: int, batch: int) -> None:
        if batch + 1 < len(self):
            self._position = (epoch, batch + 1)
        else:
            self._position = self._begin = (epoch + 1, 0)


def check_budgets(*, prefetch: int, readahead_bytes: int, threads: int | None, processes: int = 0) -> None:
    """Refuse budgets out of range.

    Raises
    ------
    ValueError : naming the option

    >>> check_budgets(prefetch=-1, readahead_bytes=0, threads=None)
    Traceback (most recent call last):
    ValueError: prefetch must be an integer of at least 0, not -1
    """
    least = {"prefetch": 0, "readahead_bytes": 0, "threads": 1, "processes": 0}
    given = {
        "prefetch": prefetch,
        "readahead_bytes": readahead_bytes,
        "threads": threads,
        "processes": processes,
    }
    for name, value in given.items():
        if value is not None and (not isinstance(value, int | np.integer) or value < least[name]):
            raise ValueError(f"{name} must be an integer of at least {least[name]}, not {value!r}")
