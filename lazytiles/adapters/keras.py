"""`KerasAdapter`: a `keras.utils.PyDataset` that is exact, reads ahead, and leaves nothing behind."""

from __future__ import annotations

import copy
import inspect
import sys
import threading
from collections.abc import Iterator, Mapping
from html import escape
from os import PathLike
from types import FrameType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lazytiles.adapters.portable import Inputs, Output, Scaling, differences, parts_of
from lazytiles.adapters.resume import EpochCallback, ResumeCallback
from lazytiles.adapters.serving import Server
from lazytiles.errors import LazyTilesError, require
from lazytiles.ranks import Shard
from lazytiles.readahead import Key
from lazytiles.schedule import READAHEAD_BYTES, Feed, Schedule
from lazytiles.stage import Transform
from lazytiles.tandem import Structure, leaves, rebuilt

keras: Any = require("keras", extra="keras")


class KerasAdapter(keras.utils.PyDataset):
    """Samples and their labels as the batches of `fit`, `evaluate` and `predict`, on all of Keras' backends.

    Each batch is served once an epoch, in an order that is a function of (seed, epoch): also when `fit`
    shuffles, as it does unless told otherwise. With ``shuffle=True`` samples are permuted for each epoch,
    and batches come in the planned order; without, a `fit` that shuffles gets the same batches in the
    order `batch_order`.

    Parameters
    ----------
    x : a `MultiSourceArray` (its labels are `y`, its ``tabular`` a second input), a source, or a tuple or
        dict of sources, shape (N, ...)
    y : targets, in the same forms; mask tiles are a source like any other
    sample_weight : shape (N,)
    batch_size : samples of a batch
    shuffle : permute the samples for each epoch
    seed : int
    drop_last : leave out the last batch where it is not full
    steps_per_epoch : batches of an epoch, if epochs are to be shorter or longer than a pass over the samples
    shard : (rank, count), or "auto" to ask the launcher: this process's part of each global batch; needs
        full batches
    transform : (batch, rng) -> batch, on ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)`` before
        normalising; `rng` is a function of (seed, pass, batch). Or a function of one image, as in `BatchFlow`
    normalize : True for 0..1 by the range of the dtype that the source has, of integers alone (int16: -32768
        becomes 0); ``(mean, std)`` per band, or an object or dict with both, such as ``tiles.statistics()``. A
        transform before it must keep the source's range, whatever dtype it makes of it
    num_classes : make the target one-hot
    prefetch, readahead_bytes, threads : as in `BatchFlow`

    Raises
    ------
    ValueError : no batch at all, or options out of their range
    TypeError : sources of text or objects, or something that is no source
    LazyTilesError : a window or file of `x` that cannot be read, found before training starts

    Notes
    -----
    ``adapter[i]`` outside an epoch is batch i of the present epoch. Nothing is read by threads of Keras;
    the shared pool of lazytiles holds none while the trainer does not ask.

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
        seed: int = 0,
        drop_last: bool = False,
        steps_per_epoch: int | None = None,
        shard: Shard = (0, 1),
        transform: Transform | None = None,
        normalize: Any = False,
        num_classes: int | None = None,
        prefetch: int = 2,
        readahead_bytes: int = READAHEAD_BYTES,
        threads: int | None = None,
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        data = parts_of(x, y, sample_weight)
        output = Output(Scaling.of(normalize, data[0]), num_classes)
        feed = Feed(
            *(data, batch_size),
            shuffle=shuffle,
            drop_last=drop_last,
            transform=transform,
            output=output,
            seed=seed,
            shard=shard,
            prefetch=prefetch,
            readahead_bytes=readahead_bytes,
            threads=threads,
        )
        feed.tandem.verify()
        _check_sizes(feed.schedule, steps_per_epoch, num_classes, data)
        given = (data[0], data[1] if len(data) > 1 else None, output.scaling)
        self.inputs = Inputs(*given, batch_size, has_transform=transform is not None)
        if transform is None:
            output.check(feed.tandem.data[0])
        self._follow(feed, steps_per_epoch or len(feed.schedule))
        self._first: Structure = None  # a sample of each array of the first batch, with which all must agree
        self._is_inside = False
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_is_inside")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._is_inside = False
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Batches of one epoch."""
        return self._server.steps

    @property
    def num_batches(self) -> int:
        """Batches of one epoch; to Keras' generator, those that a resumed training has left of its first."""
        is_for_one_epoch = self._is_inside and sys._getframe(1).f_code.co_flags & inspect.CO_GENERATOR
        return self._server.steps - (self._server.offset if is_for_one_epoch else 0)

    @property
    def epoch(self) -> int:
        """The epoch that is served next, from 0."""
        return self._server.epoch

    def __getitem__(self, index: int) -> Structure:
        """The next batch of the epoch, however Keras numbers it; outside an epoch, its batch `index`."""
        index = range(len(self))[index]
        asked = _keras_request(self, index)
        with self._lock:
            if asked is None and not self._is_inside:
                trainer = _keras_trainer(self)
                shuffles = getattr(trainer, "shuffle", None)
                return self._checked(*self._server.look(index, is_permuted=shuffles, trainer=trainer))
            position, is_permuted = self._server.place(index) if asked is None else asked
            batch = self._checked(*self._server.serve(position, is_permuted=is_permuted))
        return _torch_tensors(batch) if asked is not None and keras.backend.backend() == "torch" else batch

    def __repr__(self) -> str:
        s = self._feed.schedule
        part = f", shard {s.shard[0]} of {s.shard[1]}" if s.shard[1] > 1 else ""
        kind = "shuffled" if s.shuffle else "in order"
        sizes = f"{s.samples} samples {kind}, {len(self)} batches of {s.batch_size}"
        return f"KerasAdapter({sizes}{part}, seed {s.seed})"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    def on_epoch_begin(self) -> None:
        """Keras begins an epoch: its first batch is waited for here, where an error does no harm."""
        trainer = _keras_trainer(self)
        with self._lock:
            self._is_inside = True
            self._server.begin(is_permuted=getattr(trainer, "shuffle", None), trainer=trainer)

    def on_epoch_end(self) -> None:
        """Keras ends an epoch: what was read ahead is dropped; if all was served, the next epoch follows."""
        frame = _keras_frame(self)
        is_reset = frame is not None and frame.f_back is not None and frame.f_back.f_code.co_name == "reset"
        starts_over = frame.f_locals["self"] if frame is not None and is_reset else None
        with self._lock:
            self._is_inside = False
            self._server.end(starts_over=starts_over)

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be that of `epoch` (from 0), as `callback` does in `fit`."""
        with self._lock:
            self._server.set_epoch(epoch)

    def close(self) -> None:
        """Drop what was read ahead, as after an interrupted `fit`; the adapter stays usable."""
        with self._lock:
            self._server.drop()

    def sample_ids(self, epoch: int, i: int) -> NDArray[np.int64]:
        """The rows of `x` in batch `i` of an epoch, int64, shape (at most batch_size,)."""
        return self._feed.schedule.rows(self._server.key(epoch, range(len(self))[i]))

    def batch_order(self, epoch: int) -> NDArray[np.int64]:
        """The batches of an epoch as a `fit` that shuffles gets them: 0 first; int64, shape (len(self),)."""
        return self._server.order(epoch, is_permuted=True)

    def sequential(self) -> KerasAdapter:
        """The same samples and transform in their own order, each once, for `evaluate` and `predict`."""
        twin = copy.copy(self)
        feed = self._feed.in_order()
        twin._follow(feed, len(feed.schedule))
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

    def state_dict(self, *, epoch: int | None = None, step: int | None = None) -> dict[str, int]:
        """A few JSON numbers that say where training stands.

        Parameters
        ----------
        epoch, step : the next batch to train on; without them that of the next request, which may be ahead
            of the training
        """
        with self._lock:
            here = self._server.position()
            epoch, step = here if epoch is None or step is None else (epoch + step // len(self), step % len(self))
            return {**self._feed.state(epoch, step), "steps": len(self)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next epoch be that of `state`, from its batch on.

        Raises
        ------
        LazyTilesError : another version, other samples or other options
        """
        epoch, step = self._feed.load(state, batches=len(self))
        if state.get("steps") != len(self):
            raise LazyTilesError(f"this state has {state.get('steps')} steps an epoch; this adapter has {len(self)}")
        with self._lock:
            self._server.drop()
            self._server.set_epoch(epoch, step)

    def to_tf_dataset(self) -> Any:
        """A `tf.data.Dataset` of the batches in their planned order; each iteration of it is the next epoch.

        The tuning of its options while it runs is off: where an iteration ends, TensorFlow often waits for it.

        Raises
        ------
        ImportError : TensorFlow is not installed
        """
        tf: Any = require("tensorflow", extra="keras")
        epochs = iter(range(self.epoch, sys.maxsize))
        form = rebuilt(self[0], (tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in leaves(self[0])))

        def batches() -> Iterator[Structure]:
            for key, batch in self._server.walk(next(epochs)):
                yield self._checked(key, batch)

        dataset = tf.data.Dataset.from_generator(batches, output_signature=form)
        options = tf.data.Options()
        options.autotune.enabled = False
        return dataset.apply(tf.data.experimental.assert_cardinality(len(self))).with_options(options)

    def _follow(self, feed: Feed, steps: int) -> None:
        self._feed = feed
        self._server = Server(feed, steps=steps)

    def _checked(self, key: Key, batch: Structure) -> Structure:
        """The batch, if its arrays have the dtypes and ranks of the first: TensorFlow casts them silently."""
        if self._first is None:
            self._first = rebuilt(batch, iter([array[:1].copy() for array in leaves(batch)]))
        elif what := differences(self._first, batch):
            names = self._feed.tandem.name(self._feed.schedule.rows(key))
            self._server.drop()
            raise LazyTilesError(
                f"batch {key[1]} of epoch {key[0]} ({names}) has {what}; make the transform give one dtype"
            )
        return batch


def _check_sizes(schedule: Schedule, steps: int | None, classes: int | None, data: tuple[Structure, ...]) -> None:
    if len(schedule) == 0:
        raise ValueError(
            f"{schedule.samples} samples give no batch: batch_size={schedule.batch_size}, "
            f"shard={schedule.shard}, drop_last={schedule.drop_last}"
        )
    if steps is not None and steps < 1:
        raise ValueError(f"steps_per_epoch must be at least 1, not {steps}")
    if classes is not None and (len(data) < 2 or len(leaves(data[1])) != 1 or isinstance(data[1], Mapping)):
        raise ValueError("num_classes makes one target one-hot; there must be exactly one")


def _torch_tensors(batch: Structure) -> Structure:
    """Tensors over the same memory, where torch has the dtype: fifty times faster than Keras' own copy."""
    torch: Any = require("torch", extra="torch")
    return rebuilt(batch, (a if a.dtype.kind == "u" and a.itemsize > 1 else torch.from_numpy(a) for a in leaves(batch)))


# Keras tells a dataset neither whether it shuffles nor which of its generators asks. Both stand in the frames of the
# methods that call us; where they are named otherwise, requests are placed by their arrival.
_DEPTH = 7  # frames between Keras and us at most, for classes that inherit from ours


def _keras_frame(dataset: KerasAdapter) -> FrameType | None:
    """The nearest calling frame of an object of Keras that serves this dataset."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEPTH):
        if frame is None:
            return None
        # Whose locals are looked at keeps them until it ends: only frames that are Keras', never a consumer's.
        is_theirs = "py_dataset" in frame.f_code.co_names
        if is_theirs and getattr(frame.f_locals.get("self"), "py_dataset", None) is dataset:
            return frame
        frame = frame.f_back
    return None


def _keras_trainer(dataset: KerasAdapter) -> object:
    """The object of Keras that is calling, or None."""
    frame = _keras_frame(dataset)
    return None if frame is None else frame.f_locals["self"]


def _keras_request(dataset: KerasAdapter, index: int) -> tuple[int, bool] | None:
    """The place of an index in the order of Keras' generator that asks, and if that is shuffled; or None."""
    frame = _keras_frame(dataset)
    indices = None if frame is None else frame.f_locals.get("indices")
    if not isinstance(indices, list | range):
        return None
    return indices.index(index), isinstance(indices, list)
