"""`KerasAdapter`: a `keras.utils.PyDataset` that is exact, reads ahead, and leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from html import escape
from operator import index
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lazytiles.errors import LazyTilesError, require
from lazytiles.indexing import Seed
from lazytiles.training.batches import Inputs, Output, Scaling, class_count, differences, one_target, parts_of
from lazytiles.training.keras_callbacks import EpochCallback, ResumeCallback
from lazytiles.training.keras_serving import Server
from lazytiles.training.schedule import READAHEAD_BYTES, Feed, check_budgets
from lazytiles.training.shards import Shard
from lazytiles.training.transforms import Transform
from lazytiles.trees import Structure, leaves, rebuilt

keras: Any = require("keras", extra="keras")


class KerasAdapter(keras.utils.PyDataset):
    """Samples and their labels as the batches of `fit`, `evaluate` and `predict`, on all of Keras' backends.

    What batch i of an epoch holds is decided once. With ``shuffle=True``, `weights` or `replacement` an index means
    the next batch of the planned order when it is first asked for, and that batch for the rest of the epoch: `fit`,
    which shuffles indices unless told otherwise, gets the planned order, a function of (seed, epoch), and whoever
    else looks takes nothing away. Otherwise index i means the rows ``i * batch_size`` and on, always.

    Parameters
    ----------
    x : a `MultiSourceArray` (its labels are `y`, its ``tabular`` a second input), a source, or a tuple or
        dict of sources, shape (N, ...)
    y : targets, in the same forms; mask tiles are a source like any other
    sample_weight : shape (N,)
    steps_per_epoch : batches of an epoch, if epochs are to be shorter or longer than a pass over the samples
    transform : as in `BatchFlow`, on ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)`` before normalising
    normalize : True for 0..1 by the range of the dtype that the source has, of integers alone (int16: -32768
        becomes 0); ``(mean, std)`` per band, or an object or dict with both, such as ``tiles.statistics()``. A
        transform before it must keep the source's range, whatever dtype it makes of it
    num_classes : make the target one-hot, of so many classes; True takes the classes of `x` (see `MultiSourceArray`)
    batch_size, shuffle, window, weights, replacement, drop_last, seed, shard, prefetch, readahead_bytes, threads, \
readers, processes : as in `BatchFlow`; ``weights="balanced"`` goes by `y`

    Attributes
    ----------
    inputs : the sources, the scaling and the batch size that it was made with, which `lazytiles.predict` goes by

    Raises
    ------
    ValueError : no batch at all, or options out of their range
    TypeError : sources of text or objects, or something that is no source
    LazyTilesError : a window or file of `x` that cannot be read, found before training starts

    Notes
    -----
    An epoch moves on when `on_epoch_end` or `on_epoch_begin` is called after all of its batches were asked for, or as
    `callback`, `set_epoch` and `epochs` say. ``adapter[i]`` outside an epoch is a batch of the coming one.

    Nothing is read by threads of Keras; the shared pool of lazytiles holds none while the trainer does not ask.
    Copies read the same sources.

    >>> adapter = KerasAdapter(np.zeros((5, 2), "uint8"), np.arange(5), batch_size=2)
    >>> len(adapter), adapter[2][1]
    (3, array([4]))
    """

    def __init__(
        self,
        x: Structure,
        y: Structure = None,
        sample_weight: Structure = None,
        *,
        batch_size: int = 32,
        shuffle: bool = False,
        window: int | None = None,
        replacement: bool | None = None,
        weights: ArrayLike | None = None,
        seed: Seed = 0,
        drop_last: bool = False,
        steps_per_epoch: int | None = None,
        shard: Shard = (0, 1),
        transform: Transform | None = None,
        normalize: Any = False,
        num_classes: int | bool | None = None,
        prefetch: int = 2,
        readahead_bytes: int = READAHEAD_BYTES,
        threads: int | None = None,
        readers: int | Literal["auto"] = "auto",
        processes: int = 0,
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        data, num_classes = parts_of(x, y, sample_weight), class_count(num_classes, x, y)
        output = Output(Scaling.of(normalize, data[0]), num_classes)
        feed = Feed(
            data, batch_size, shuffle=shuffle, window=window, replacement=replacement, weights=weights,
            labels=one_target(data), drop_last=drop_last, transform=transform, output=output, seed=seed, shard=shard,
            prefetch=prefetch, readahead_bytes=readahead_bytes, threads=threads, readers=readers, processes=processes,
        )  # fmt: skip
        feed.tandem.verify()
        output.check(feed.tandem.data, is_final=transform is None)
        check_budgets(steps_per_epoch=steps_per_epoch)
        if len(feed.schedule) == 0:
            how = f"batch_size={batch_size}, shard={feed.schedule.shard}, drop_last={drop_last}"
            raise ValueError(f"{feed.tandem.samples} samples give no batch: {how}")
        given = (data[0], data[1] if len(data) > 1 else None, output.scaling)
        self.inputs = Inputs(*given, batch_size, has_transform=transform is not None)
        self._feed, self._server = feed, Server(feed, steps_per_epoch or len(feed.schedule))
        self._first: Structure = None  # a sample of each array of the first batch, with which all must agree

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_server": copy.copy(self._server)}

    def __deepcopy__(self, memo: dict[int, Any]) -> KerasAdapter:
        memo.update((id(source), source) for source in self._feed.tandem.sources)
        twin = memo[id(self)] = copy.copy(self)
        twin.__dict__.update(copy.deepcopy(twin.__dict__, memo))
        return twin

    def __len__(self) -> int:
        """Batches of one epoch."""
        return self._server.steps

    @property
    def num_batches(self) -> int:
        """Batches of one epoch; in the epoch that a training was resumed in, those that are left of it."""
        return self._server.promised

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("workers", "use_multiprocessing"):
            raise AttributeError(
                f"{name} = {value!r} cannot be set: KerasAdapter reads ahead by itself, in order; pass threads=, "
                "prefetch= or processes= when it is made"
            )
        super().__setattr__(name, value)

    @property
    def epoch(self) -> int:
        """The epoch that is served next, from 0."""
        return self._server.next_epoch

    def __getitem__(self, i: int) -> Structure:
        """The batch that index `i` means in this epoch: see `KerasAdapter`."""
        key, batch = self._server.ask(range(len(self))[i])
        if self._first is None:
            self._first = rebuilt(batch, iter([array[:1].copy() for array in leaves(batch)]))
        elif what := differences(self._first, batch):  # TensorFlow casts silently to the dtypes of the first batch
            names = self._feed.tandem.name(self._feed.schedule.rows(key))
            self._server.drop()
            raise LazyTilesError(
                f"batch {key[1]} of epoch {key[0]} ({names}) has {what}; make the transform give one dtype"
            )
        return batch

    def __repr__(self) -> str:
        return self._feed.schedule.described("KerasAdapter", len(self))

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    def on_epoch_begin(self) -> None:
        """Keras calls this when an epoch begins: the first batch is read here, where an error does no harm."""
        self._server.begin()

    def on_epoch_end(self) -> None:
        """Keras calls this when an epoch ends; the next one follows if all batches of it were asked for."""
        self._server.end()

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch` (from 0) anew; whoever predicts or evaluates in the midst of it does not end it."""
        self._server.set_epoch(index(epoch), "user")

    def epochs(self, n: int) -> Iterator[Iterator[Structure]]:
        """The next `n` epochs for a loop of your own: each gives its batches in the planned order.

        An epoch that was left before its end is followed by the next one all the same.

        >>> adapter = KerasAdapter(np.arange(4.0), batch_size=2)
        >>> [[len(x) for (x,) in epoch] for epoch in adapter.epochs(2)]
        [[2, 2], [2, 2]]
        """
        first = self.epoch
        try:
            for epoch in range(first, first + n):
                self._server.set_epoch(epoch, "trainer")
                yield self._pass()
            self._server.set_epoch(first + n, "nobody")
        finally:
            self._server.owner = "nobody"
            self._server.end()

    def close(self) -> None:
        """Drop what was read ahead and end worker processes, as after an interrupted `fit`; all stays usable."""
        self._server.drop()
        self._server.set_epoch(self._server.next_epoch, "nobody")
        self._feed.close()

    def sample_ids(self, epoch: int, i: int) -> NDArray[np.int64]:
        """The rows of `x` in the planned batch `i` of an epoch, int64, shape (at most batch_size,)."""
        return self._feed.schedule.rows(self._server.key(epoch, range(len(self))[i]))

    def sequential(self) -> KerasAdapter:
        """The same samples and transform in their own order, each once, for `evaluate` and `predict`."""
        twin = copy.copy(self)
        twin._feed = self._feed.in_order()
        twin._server = Server(twin._feed, len(twin._feed.schedule))
        return twin

    def callback(self) -> EpochCallback:
        """A Keras callback that tells the adapter its epoch: with `initial_epoch`, after a restored one."""
        return EpochCallback(self)

    def resume_callback(
        self, folder: str | PathLike[str], *, save_freq: int | Literal["epoch"] = "epoch"
    ) -> ResumeCallback:
        """A Keras callback that saves model and position; a killed `fit` goes on with the very next batch.

        Parameters
        ----------
        folder : where the backup is; removed when training ends
        save_freq : batches from one backup to the next, or "epoch"
        """
        return ResumeCallback(self, folder, save_freq=save_freq)

    def state_dict(self, *, epoch: int | None = None, step: int | None = None) -> dict[str, Any]:
        """A few JSON numbers that say where training stands.

        Parameters
        ----------
        epoch, step : the next batch to train on; without them that of the next request, which may be ahead
            of the training
        """
        if epoch is None or step is None:
            return self._state_of(*self._server.position())
        return self._state_of(epoch + step // len(self), [*range(step % len(self))])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next epoch be that of `state`, from its batch on.

        Raises
        ------
        LazyTilesError : another version, other samples or other options
        """
        if (steps := state.get("steps", len(self))) != len(self):
            raise LazyTilesError(f"this state has {steps} steps an epoch; this adapter has {len(self)}")
        epoch, batch = self._feed.load(state, batches=len(self))
        skipped = state.get("skipped", [])
        done = {*range(batch + len(skipped))}.difference(skipped)
        if len(done) != batch or batch + len(skipped) > len(self):
            raise LazyTilesError(f"this state skips the batches {skipped}, which are not batches before number {batch}")
        self._server.move(epoch, [*done])

    def to_tf_dataset(self) -> Any:
        """A `tf.data.Dataset` of the batches in their planned order, of the epoch that the adapter is in.

        An iteration that comes to its end moves the epoch on, as a `fit` on the adapter does. The tuning of its
        options while it runs is off: where an iteration ends, TensorFlow often waits for it.

        Raises
        ------
        ImportError : TensorFlow is not installed
        """
        tf: Any = require("tensorflow", extra="keras")
        batch = self[0]
        form = rebuilt(batch, (tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in leaves(batch)))
        dataset = tf.data.Dataset.from_generator(self._pass, output_signature=form)
        options = tf.data.Options()
        options.autotune.enabled = False
        # So its length is known; where an epoch was resumed, `_pass` says that it ends before.
        return dataset.repeat().take(len(self)).with_options(options)

    def _state_of(self, epoch: int, done: list[int]) -> dict[str, Any]:
        """The state in which these steps of an epoch are done: where they are not the first, with those between."""
        state = {**self._feed.state(epoch, len(done)), "steps": len(self)}
        skipped = sorted({*range(max(done, default=-1) + 1)}.difference(done))
        return {**state, "skipped": skipped} if skipped else state

    def _pass(self) -> Iterator[Structure]:
        """What is left of the epoch, in order. `tf.data` asks for another pass where it is shorter than was told."""
        server = self._server
        is_second, server.is_cut = server.is_cut, False
        if is_second:
            return
        server.begin()
        count = len(server.left)
        for i in range(count):
            batch = self[i]
            if i + 1 == count:  # nobody may ask for more than the last
                server.end()
                server.is_cut = count < len(self)
            yield batch
