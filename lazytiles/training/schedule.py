"""What a flow and a Keras adapter have in common: which rows each batch has, how it comes about, where one stands."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from operator import index
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lazytiles.arrays import held
from lazytiles.augment import with_boxes
from lazytiles.errors import LazyTilesError
from lazytiles.indexing import Seed, balanced_weights, draw, permutation, seed_of, shard_batches, shard_slice
from lazytiles.training.shards import Shard, own_shard
from lazytiles.training.tandem import Alive, Array, Rows, Tandem, batch_error
from lazytiles.training.transforms import Stage, Transform
from lazytiles.trees import Structure

STATE_VERSION = 2
Key = tuple[int, int]  # (epoch, batch)
READAHEAD_BYTES = 256 * 2**20
_NAMES_IN_DIGEST = 4


class Schedule:
    """Which rows each batch of each epoch has: a pure function of what it is made of.

    The options are as for `BatchFlow`; `samples` is how many rows there are, and `groups` the number of each row's
    group, of which `window` mixes so many at a time, shape (samples,). A global batch has ``batch_size * count`` rows;
    shard `r` takes the `r`-th part of each, so that the shards together are the one order.

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
        window: int | None = None,
        groups: ArrayLike | None = None,
        replacement: bool = False,
        weights: ArrayLike | None = None,
        drop_last: bool = False,
        seed: int = 0,
        shard: Shard = (0, 1),
    ) -> None:
        if not hasattr(batch_size, "__index__"):
            raise TypeError(f"batch_size must be an integer, not {batch_size!r}")
        self.samples, self.batch_size, self.seed = samples, index(batch_size), index(seed)
        self.shuffle, self.replacement, self.drop_last = shuffle, replacement, drop_last
        self.shard = own_shard() if shard == "auto" else shard
        self.weights = None if weights is None else np.array(weights, dtype=np.float64)
        self.window = window
        self.groups = None if window is None or groups is None else np.asarray(groups).astype(np.int32)
        self._batches = shard_batches(samples, batch_size, self.shard, drop_last=drop_last)
        self._orders: dict[int, Rows] = {}
        if window is not None and (not shuffle or replacement or weights is not None):
            raise ValueError(
                f"window={window!r} says how shuffle=True mixes; it goes with shuffle=True, and not with weights= or "
                "replacement="
            )
        if window is not None and self.groups is None:
            raise ValueError(
                f"window={window!r} mixes that many sources at a time: it needs an array of several sources, such as "
                "open_tiles or MultiSourceArray give"
            )
        is_count = isinstance(window, int | np.integer) and not isinstance(window, bool) and window >= 1
        if window is not None and not is_count:
            raise ValueError(f"window is how many sources are mixed at a time, at least 1; not {window!r}")
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
            if self.weights is None and not self.replacement:
                order = permutation(self.samples, self.seed, epoch=epoch, groups=self.groups, window=self.window)
            else:
                how: Any = {"weights": self.weights, "replacement": self.replacement}
                order = draw(self.samples, self.samples, self.seed, epoch=epoch, **how)
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

    def places(self, key: Key) -> range:
        """The places of a batch's samples in the order of its epoch, over all shards."""
        return range(self.samples)[shard_slice(key[1], self.batch_size, self.shard)]

    def described(self, kind: str, batches: int) -> str:
        """The repr of something of a kind that gives so many batches an epoch."""
        part = f", shard {self.shard[0]} of {self.shard[1]}" if self.shard[1] > 1 else ""
        order = "shuffled" if self.shuffle else "drawn" if self.is_random else "in order"
        sizes = f"{self.samples} samples {order}, {batches} batches of {self.batch_size}"
        return f"{kind}({sizes}{part}, seed {self.seed})"


class Feed:
    """Sources, their schedule, and what is done with each batch: all that is needed to make any batch.

    The options are as for `BatchFlow`. Besides, `labels` is what ``weights="balanced"`` goes by, shape (N,) or (N, k),
    by default those of the first array with labels, and `output` is done last, batch -> batch.
    """

    def __init__(
        self,
        data: Structure,
        batch_size: int,
        *,
        shuffle: bool = False,
        window: int | None = None,
        replacement: bool | None = None,
        weights: ArrayLike | None = None,
        labels: Any = None,
        drop_last: bool = False,
        transform: Transform | None = None,
        output: Callable[[Structure], Structure] | None = None,
        seed: Seed = None,
        shard: Shard = (0, 1),
        prefetch: int = 2,
        readahead_bytes: int = READAHEAD_BYTES,
        threads: int | None = None,
        readers: int | Literal["auto"] = "auto",
        processes: int = 0,
    ) -> None:
        given = None if readers == "auto" else readers
        check_budgets(
            prefetch=prefetch, readahead_bytes=readahead_bytes, threads=threads, readers=given, processes=processes
        )
        self.prefetch, self.readahead_bytes = prefetch, readahead_bytes
        self.keeps_seed = seed is not None and not isinstance(seed, np.random.Generator | np.random.RandomState)
        self.tandem = Tandem(data, threads=threads, readers=given)
        if replacement is None:
            replacement = isinstance(weights, str)
        groups = None if window is None else self.tandem.groups()
        self.schedule = Schedule(
            self.tandem.samples, batch_size, shuffle=shuffle, window=window, groups=groups, replacement=replacement,
            weights=_weights_of(weights, labels, self.tandem), drop_last=drop_last, seed=seed_of(seed), shard=shard,
        )  # fmt: skip
        if seed is None and self.schedule.is_random and self.schedule.shard[1] > 1:
            raise ValueError("shards of a random order need one seed; pass the same seed= to each of them")
        self.stage = None if transform is None else Stage(with_boxes(transform, self.tandem.data), processes=processes)
        self.output = output

    @property
    def is_light(self) -> bool:
        """Whether nothing remains to be done, once the planned sources are read, that is worth a thread."""
        return self.stage is None and self.output is None and self.tandem.is_light

    def in_order(self) -> Feed:
        """The same samples with the same transform, each once, in their own order and in one shard."""
        twin = copy.copy(self)
        twin.schedule = Schedule(self.schedule.samples, self.schedule.batch_size, seed=self.schedule.seed)
        return twin

    def read(self, key: Key) -> Structure:
        """The batch of a key, read now and here."""
        return self.make(key, self.schedule.rows(key), {}, Alive())

    def make(self, key: Key, rows: Rows, given: dict[int, Array], alive: Alive) -> Structure:
        """The batch of a key of which some sources are read already, on any thread; errors name batch and tiles."""
        place = "batch {1} of epoch {0}".format(*key)
        try:
            batch = self.tandem.read(rows, given)
        except LazyTilesError:
            raise
        except Exception as error:
            raise batch_error(f"reading {place}", self.tandem.name(rows), error) from error
        alive.track(batch)
        if self.stage is None and self.output is None:
            return batch
        try:
            if self.stage is not None:
                places = self.schedule.places(key)
                batch = self.stage(batch, (self.schedule.seed, key[0], places.start, len(places)))
            batch = batch if self.output is None else self.output(batch)
        except Exception as error:
            raise batch_error(f"transform of {place}", self.tandem.name(rows), error) from error
        alive.track(batch)
        return batch

    def state(self, epoch: int, batch: int) -> dict[str, int]:
        """A few JSON numbers that say which batch comes next, and of what."""
        # A number below 2**48 that changes with what is read (shapes, dtypes, order, windows) and how.
        plan = self.schedule
        arrays = (plan.weights, plan.groups)
        weights, groups = (None if a is None else hashlib.blake2b(a.tobytes()).hexdigest() for a in arrays)
        how = (plan.samples, plan.batch_size, plan.shuffle, plan.replacement, weights, plan.drop_last)
        digest = hashlib.blake2b(repr((*how, *plan.shard, plan.window, groups)).encode(), digest_size=6)
        for source in self.tandem.sources:
            digest.update(repr((tuple(map(int, source.shape)), np.dtype(source.dtype).str)).encode())
            for name in ("order", "sample_windows"):
                array = getattr(source, name, None)
                if isinstance(array, np.ndarray):
                    digest.update(np.ascontiguousarray(array).data)
            if hasattr(source, "name_of") and self.tandem.samples:
                for row in np.linspace(0, self.tandem.samples - 1, _NAMES_IN_DIGEST).astype(int):
                    digest.update(source.name_of(int(row)).encode())
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "batch": batch,
            "seed": plan.seed,
            "samples": plan.samples,
            "batch_size": plan.batch_size,
            "digest": int.from_bytes(digest.digest(), "big"),
        }

    def load(self, state: Mapping[str, int], *, batches: int) -> Key:
        """The epoch and batch of a state; its seed is taken over where none was given.

        A state of other data or other options is refused; `batches` is how many an epoch has.
        """
        expected = self.state(0, 0)
        if state.get("version") != STATE_VERSION:
            found = state.get("version")
            raise LazyTilesError(f"this state has version {found!r}; version {STATE_VERSION} can be loaded")
        if missing := sorted(expected.keys() - state.keys()):
            raise LazyTilesError(f"this state lacks {', '.join(missing)}; pass what state_dict() gave")
        if state["epoch"] < 0 or state["batch"] < 0:
            raise LazyTilesError(
                f"this state is of batch {state['batch']} of epoch {state['epoch']}; both count from 0"
            )
        for name, what in (("samples", "samples"), ("batch_size", "samples a batch"), ("seed", "as its seed")):
            if state[name] != expected[name] and (name != "seed" or self.keeps_seed):
                raise LazyTilesError(
                    f"this state is of a flow with {state[name]} {what}; this one has {expected[name]}"
                )
        if state["digest"] != expected["digest"]:
            raise LazyTilesError(
                "this state is of a flow that reads something else: other tiles, another order, or other "
                "options; make the flow as it was made when the state was saved"
            )
        if state["batch"] >= max(1, batches):
            raise LazyTilesError(f"this state is of batch {state['batch']}; an epoch of this flow has {batches}")
        self.schedule.seed = state["seed"]
        return state["epoch"], state["batch"]

    def close(self) -> None:
        """End worker processes; a later batch starts new ones."""
        if self.stage is not None:
            self.stage.close()


def _weights_of(weights: Any, labels: Any, tandem: Tandem) -> ArrayLike | None:
    """The weights that were given, or those that make the classes of some labels equally likely."""
    if not isinstance(weights, str):
        return None if weights is None else np.asarray(held(weights))
    if labels is None:
        labels = next((s.labels for s in tandem.sources if getattr(s, "labels", None) is not None), None)
    if weights != "balanced" or labels is None:
        raise ValueError(
            f"weights are one number a sample, or 'balanced' over a source with labels; not {weights!r}; "
            "of labels in an array of their own, lazytiles.indexing.orders.balanced_weights(labels) gives them"
        )
    if len(labels.shape) > 2:
        raise ValueError(
            f"weights='balanced' goes by one class a sample, but the labels are masks, {tuple(labels.shape)}; pass one "
            "number a sample, such as weights=balanced_weights(classes) with a class for each mask"
        )
    return balanced_weights(held(labels))


def check_budgets(**given: Any) -> None:
    """Refuse budgets and counts out of range.

    >>> check_budgets(prefetch=-1, readahead_bytes=0, threads=None)
    Traceback (most recent call last):
    ValueError: prefetch must be an integer of at least 0, not -1
    """
    for name, value in given.items():
        least = int(name in ("threads", "steps_per_epoch"))
        if value is not None and (type(value) is bool or not isinstance(value, int | np.integer) or value < least):
            raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
