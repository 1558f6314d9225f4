"""`BatchFlow`: sources in tandem to batches, in an order that depends on nothing but its seed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from html import escape
from itertools import chain, count
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lazytiles.indexing import Seed
from lazytiles.training.readahead import ReadAhead
from lazytiles.training.schedule import READAHEAD_BYTES, Feed, Key
from lazytiles.training.shards import Shard
from lazytiles.training.transforms import Transform
from lazytiles.trees import Structure


class BatchFlow:
    """Batches of one or several sources, in an order that depends on the seed and the epoch alone.

    Iterating gives one epoch; the next iteration gives the next epoch. An epoch that was not followed to
    its end begins anew.

    Parameters
    ----------
    data : one source, or tuples, lists and dicts of sources of one length (N, ...)
    batch_size : samples of a batch
    shuffle : a new permutation for each epoch, on top of the order that the sources have
    window : with `shuffle`, mix so many sources at a time, so that a batch touches few files; the sources of the first
        array in `data` that is made of several
    replacement : draw N samples an epoch, each from all; None does so where `weights` is "balanced"
    weights : relative probability of each sample, shape (N,); or "balanced", which makes every class of the labels of
        the first array with labels equally likely
    drop_last : leave out the last batch where it is not full
    transform : ``(batch, rng) -> batch``, such as `augment.Augment`; ``batch -> batch``; or a function of one image,
        ``fn(image=..., mask=...) -> dict``. All parts of the batch come back, with as many samples
    seed : int, or a NumPy `Generator` or `RandomState` that one is drawn from, or None for a fresh one; see ``.seed``
    shard : (rank, count), or "auto" to ask the launcher: this flow's part of every global batch of
        ``batch_size * count`` samples; all shards are given one seed
    prefetch : finished batches that wait
    readahead_bytes : bytes of the batches that are planned and decoded together, each segment once
    threads : threads that read and transform; None takes the setting of that name
    readers : processes that read instead; ``"auto"`` takes the setting of that name
    processes : processes that run `transform` instead of threads (needs the extra ``processes``)
    loop : go on with the next epoch, without end

    Raises
    ------
    TypeError : something in `data` is not a source
    ValueError : lengths that differ, an option out of its range, shards of a random order without a seed

    Notes
    -----
    What was given is held as it is now: reordering an array later changes no batch (see
    `lazytiles.training.tandem.Tandem`).

    The numbers of `rng` are a function of (seed, epoch, place of the batch's first sample in the order of the epoch);
    those of ``rng.samples[i]``, which `Augment` and functions of one image use, of (seed, epoch, place of sample i).
    The latter are the same for any batch size and number of shards, both for any number of threads and processes.

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
        window: int | None = None,
        replacement: bool | None = None,
        weights: ArrayLike | None = None,
        drop_last: bool = False,
        transform: Transform | None = None,
        seed: Seed = None,
        shard: Shard = (0, 1),
        prefetch: int = 2,
        readahead_bytes: int = READAHEAD_BYTES,
        threads: int | None = None,
        readers: int | Literal["auto"] = "auto",
        processes: int = 0,
        loop: bool = False,
    ) -> None:
        self.loop = loop
        self._feed = Feed(
            data, batch_size, shuffle=shuffle, window=window, replacement=replacement, weights=weights,
            drop_last=drop_last, transform=transform, seed=seed, shard=shard, prefetch=prefetch,
            readahead_bytes=readahead_bytes, threads=threads, readers=readers, processes=processes,
        )  # fmt: skip
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
        return len(self._feed.schedule)

    def __iter__(self) -> Iterator[Structure]:
        return self.flow()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return self._feed.schedule.described("BatchFlow", len(self))

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    @property
    def seed(self) -> int:
        """The seed of all orders and random numbers."""
        return self._feed.schedule.seed

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._position[0]

    def flow(self) -> Iterator[Structure]:
        """The batches from here on: to the end of the epoch, or without end where the flow loops."""
        self._position = first, begin = self._begin
        self._begin = (first, 0)
        size = len(self)
        later = count(first + 1) if self.loop and size else ()
        rest = ((epoch, batch) for epoch in later for batch in range(size))
        ahead = ReadAhead(self._feed, chain(((first, batch) for batch in range(begin, size)), rest))
        self._passes.add(ahead)
        try:
            for (epoch, batch), *held in ahead:
                if batch + 1 < size:
                    self._position = (epoch, batch + 1)
                else:
                    self._position = self._begin = (epoch + 1, 0)
                # Popped, so that a batch which its consumer dropped is not kept alive here.
                yield held.pop()
        finally:
            ahead.close()

    def rows(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """The rows of the sources that make up a batch, int64."""
        return self._feed.schedule.rows((epoch, batch))

    def state_dict(self) -> dict[str, int]:
        """A few JSON numbers from which `load_state_dict` continues with the next batch, bit for bit."""
        return self._feed.state(*self._position)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin the next iteration where `state` was taken.

        Parameters
        ----------
        state : what `state_dict` of a flow over the same data with the same options gave

        Raises
        ------
        LazyTilesError : another version, other data or other options, or not what `state_dict` gave
        """
        self._begin = self._position = self._feed.load(state, batches=len(self))

    def close(self) -> None:
        """End all iterations and worker processes; a later iteration starts what it needs."""
        for ahead in tuple(self._passes):
            ahead.close()
        self._feed.close()

    def _open(self) -> None:
        self._passes: weakref.WeakSet[ReadAhead] = weakref.WeakSet()
        weakref.finalize(self, self._feed.close)
