"""`MultiSourceArray`: many sources as one lazy array, with an order, labels and a table beside it."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.arrays.companions import (
    agreement,
    chosen,
    joined_tables,
    labels_of,
    limited,
    listed,
    positions_of,
    table_of,
)
from lazytiles.arrays.cost import Cost, reading_cost
from lazytiles.arrays.gather import TileForm
from lazytiles.arrays.region_tiles import RegionTiles, gathered, open_ahead, read_tiles
from lazytiles.arrays.sources import by_source, positions, read_blocks, read_each, read_parts
from lazytiles.arrays.travel import Travels
from lazytiles.arrays.view import DelayedView, checked_order, fits, held, into
from lazytiles.augment import Boxes
from lazytiles.display import CHEAP_BYTES, side_by_side, stretched
from lazytiles.errors import LazyTilesError, ManifestError
from lazytiles.images import Plan
from lazytiles.indexing import (
    LazyArray,
    Request,
    Seed,
    kfold_rows,
    permutation,
    request,
    seed_of,
    select_rows,
    split_rows,
    token,
)
from lazytiles.verbs import verb

Int64s: TypeAlias = NDArray[np.int64]
Box: TypeAlias = tuple[tuple[int, int], ...]

MOST_PROBLEMS = 20
_FEW = 4  # tiles in the small picture of a notebook


class MultiSourceArray(Travels, LazyArray):
    """Sources one after the other along axis 0, as one lazy array with NumPy's full indexing.

    Parameters
    ----------
    sources : array-likes of one sample shape and dtype: NumPy arrays, memory maps, HDF5 datasets, Zarr arrays,
        regions, views, other arrays of this class (as they are now: reordering them later changes nothing)
    labels : one value per source (default 0, 1, 2, … by source), or one array per source (a label per sample),
        or one array or lazy source in step with all samples, such as mask tiles. Text becomes class numbers, see
        `classes`. Sources that are labelled arrays of this class keep their labels, classes and tables by default
    shuffle : whether to start in a shuffled order
    maxlen : at most so many samples of each source: the first ones, or with `shuffle` a random choice
    seed : of that order and choice: int, or a NumPy `Generator` or `RandomState` that one is drawn from; None draws a
        fresh one
    table : a DataFrame with one row per sample, or None
    dtype : what to cast every source to; by default they must agree
    classes : the classes in the order of their numbers; by default the names sorted, where labels are text. Without
        `labels` the names of the sources' classes

    Raises
    ------
    ValueError : sources that disagree, labels or a table of another length, a label that is none of the classes

    Notes
    -----
    Any number of threads may read at once; `shuffle` and setting `order` are for one thread. Pickling keeps the
    order and drops what is open; memory maps and HDF5 datasets go by the name of their file.

    Examples
    --------
    >>> both = MultiSourceArray([np.zeros((2, 3)), np.ones((3, 3))])
    >>> both.shape, both.labels
    ((5, 3), array([0, 0, 1, 1, 1]))
    >>> both.shuffle(7)[0].shape
    (3,)
    """

    def __init__(
        self,
        sources: Sequence[Any],
        labels: Any = None,
        *,
        shuffle: bool = False,
        maxlen: int | None = None,
        seed: Seed = None,
        table: pd.DataFrame | None = None,
        dtype: Any = None,
        classes: Sequence[Any] | None = None,
    ) -> None:
        self.sources: tuple[Any, ...] = tuple(map(held, listed(sources)))
        inner, self.dtype = agreement(self.sources, dtype)
        lengths = np.array([source.shape[0] for source in self.sources], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        total = int(self._starts[-1])
        self.seed: int | None = None
        self.tabular_columns: tuple[str, ...] | None = None
        self._valid: NDArray[np.bool_] | None = None
        self._boxes: Boxes | None = None  # what the labels are, where they are boxes
        self._note = ""  # why there are no labels
        self._classes: list[Any] | None = None
        own = self._of_sources() if labels is None and classes is None else None
        self._is_by_source = labels is None and own is None  # nobody gave these labels
        self._labels, self._classes = labels_of(labels, lengths, total, classes) if own is None else own
        if not isinstance(self._labels, np.ndarray):
            lazy = isinstance(self._labels, MultiSourceArray)
            self._labels = self._labels.copy() if lazy else MultiSourceArray([self._labels])
        if own is not None and table is None:
            table = joined_tables([source.table for source in self.sources])
        self._table = table_of(table, total)
        self._places: tuple[tuple[Any, ...], Int64s] | None = None  # the regions that written tiles came from
        self._segment: tuple[int, int] | None = None  # of the images, as far as is known
        self._rows = np.arange(total, dtype=np.int64)
        self._order: Int64s | None = None
        self.shape: tuple[int, ...] = (total, *inner)
        first = self.sources[0]
        self._form: TileForm | None = first.form if all(isinstance(s, RegionTiles) for s in self.sources) else None
        self._row_axes = 2 if self._form is not None and first.timed else 1
        if maxlen is not None:
            self.seed = seed_of(seed)
            self._keep(limited(lengths, maxlen, self.seed if shuffle else None))
        self._is_fresh_choice = False
        if shuffle:
            self.shuffle(seed if self.seed is None else self.seed)
            self._is_fresh_choice = seed is None and len(self) < total

    def _of_sources(self) -> tuple[Any, list[Any] | None] | None:
        """The labels and classes that labelled sources bring; None where none does."""
        arrays = [source for source in self.sources if isinstance(source, MultiSourceArray)]
        kinds = {type(source._labels) for source in arrays}
        if kinds <= {type(None)}:
            return None
        first = arrays[0]
        if len(arrays) < len(self.sources) or len(kinds) > 1:
            if all(source._is_by_source or source._labels is None for source in arrays):
                return None
            raise ValueError("some sources have labels, or mask tiles, and others have none: pass labels=")
        for name in ("classes", "boxes", "tabular_columns"):
            for k, source in enumerate(arrays):
                if getattr(source, name) != getattr(first, name):
                    raise ValueError(
                        f"the {name} of source {k}, {getattr(source, name)}, are not those of source 0, "
                        f"{getattr(first, name)}; open both in the same way, or pass labels="
                    )
        labels = [source.labels for source in arrays]
        if len({part.shape[1:] for part in labels}) > 1:
            raise ValueError(f"the sources have labels of different shapes: {[part.shape for part in labels]}")
        self._boxes, self.tabular_columns = first._boxes, first.tabular_columns
        valid = [source.valid for source in arrays]
        frames = next((part.shape[1] for part in valid if part is not None), None)
        if frames is not None:
            every = [np.ones((len(source), frames), np.bool_) for source in arrays]
            self._valid = np.concatenate([e if v is None else v for e, v in zip(every, valid, strict=True)])
        if isinstance(labels[0], MultiSourceArray):
            return (labels[0] if len(labels) == 1 else MultiSourceArray(labels)), first._classes
        return np.concatenate(labels), first._classes

    def _keep(self, positions: Int64s) -> None:
        """Keep only some samples, by their place in the unshuffled array."""
        self._rows = self._rows[positions]
        self._labels = chosen(self._labels, positions)
        self._table = None if self._table is None else self._table.iloc[positions]
        self._valid = None if self._valid is None else self._valid[positions]
        if self._places is not None:
            regions, places = self._places
            self._places = regions, np.column_stack([places[positions, :2], np.arange(len(positions))])
        self.shape = (len(self._rows), *self.shape[1:])
        self._order = None

    def _now(self) -> Int64s | slice:
        return slice(None) if self._order is None else self._order

    def _ordered(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.copy() if self._order is None else values[self._order]

    @property
    def labels(self) -> Any:
        """The labels in the current order: a new array, a lazy one where they are one (mask tiles), or None."""
        if isinstance(self._labels, MultiSourceArray):
            return self._labels.copy() if self._order is None else self._labels.select(self._order)
        return None if self._labels is None else self._ordered(self._labels)

    @property
    def classes(self) -> list[Any] | None:
        """The names of the classes, of which the labels are the numbers (the places in this list), or None."""
        return None if self._classes is None else list(self._classes)

    @property
    def boxes(self) -> Boxes | None:
        """Which columns of the labels are boxes, and how they are written; None where none is known to be."""
        return self._boxes

    def get_labels(self) -> Any:
        """The labels in the current order; the older name of `labels`."""
        return self.labels

    @property
    def table(self) -> pd.DataFrame | None:
        """The manifest's columns of the samples in the current order, or None."""
        return None if self._table is None else self._table.iloc[self._now()].reset_index(drop=True)

    @property
    def tabular(self) -> NDArray[np.float32] | None:
        """The columns given to the model beside the image, float32 (n, columns), in the current order, or None."""
        if self._table is None or self.tabular_columns is None:
            return None
        values = self._table[list(self.tabular_columns)].to_numpy(dtype=np.float32)
        return np.ascontiguousarray(values[self._now()])

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """Which frames of which samples are there, (n, frames), in the current order; None where all must be."""
        if self._valid is not None:
            return self._ordered(self._valid)
        parts = [
            source.valid if isinstance(source, MultiSourceArray | DelayedView) else None for source in self.sources
        ]
        known = [part for part in parts if part is not None]
        if not known:
            return None
        frames = known[0].shape[1:]
        there = [
            np.ones((source.shape[0], *frames), np.bool_) if part is None else part
            for source, part in zip(self.sources, parts, strict=True)
        ]
        whole: NDArray[np.bool_] = np.concatenate(there)[self._rows]
        return self._ordered(whole)

    @property
    def region_ids(self) -> NDArray[np.int64]:
        """The number of the source of each sample, in the current order; of written tiles that they came from."""
        return self._ordered(self._groups())

    def _groups(self) -> Int64s:
        return (
            np.searchsorted(self._starts, self._rows, side="right") - 1
            if self._places is None
            else self._places[1][:, 0]
        )

    @property
    def places(self) -> tuple[tuple[Any, ...], Int64s]:
        """The regions that samples lie in; and of each sample its region, its place there and in the unshuffled array.

        The regions are the sources; of tiles that were written to memory or a store, what they came from. The numbers
        are int64, shape (n, 3), in the current order.
        """
        if self._places is not None:
            regions, places = self._places
            return regions, places[self._now()]
        if not all(isinstance(source, MultiSourceArray) for source in self.sources):
            return self.sources, np.column_stack([self.index_pairs, self.order])
        # Arrays of arrays, such as both sides of a split: a region that several have is one.
        known: dict[int, tuple[int, Any]] = {}
        parts = []
        for source in self.sources:
            regions, places = source.places
            numbers = [known.setdefault(id(region), (len(known), region))[0] for region in regions]
            parts.append(np.column_stack([np.array(numbers, np.int64)[places[:, 0]], places[:, 1]]))
        joint = np.concatenate(parts)[self._rows[self._now()]]
        return tuple(region for _, region in known.values()), np.column_stack([joint, self.order])

    @property
    def sample_windows(self) -> Int64s | None:
        """The window of each sample, starts then stops, in the current order; None unless from a manifest."""
        if not all(hasattr(source, "windows") for source in self.sources):
            return None
        every = np.concatenate([source.windows for source in self.sources])
        windows: Int64s = every[self._rows[self._now()]]
        return windows

    @property
    def order(self) -> Int64s:
        """Which sample comes where, int64, as a copy; settable to any permutation."""
        return np.arange(len(self), dtype=np.int64) if self._order is None else self._order.copy()

    @order.setter
    def order(self, order: Any) -> None:
        self._order = checked_order(order, len(self))
        self.seed = None

    @property
    def index_pairs(self) -> Int64s:
        """(source, index within it) of each sample in the current order, int64 (n, 2); settable."""
        rows = self._rows[self._now()]
        source = np.searchsorted(self._starts, rows, side="right") - 1
        return np.stack([source, rows - self._starts[source]], axis=1)

    @index_pairs.setter
    def index_pairs(self, pairs: Any) -> None:
        self.order = positions_of(pairs, self._rows, self._starts)

    def shuffle(self, seed: Seed = None, *, window: int | None = None) -> MultiSourceArray:
        """Reorder in place; returns the array itself.

        Parameters
        ----------
        seed : the order is a function of the seed, the length and `window` alone. Of a NumPy `Generator` or
            `RandomState` an int is drawn, None draws a fresh one; it is kept in `seed`
        window : shuffle sources, then samples within groups of so many sources, so that a batch touches few files
        """
        if seed is not None and self._is_fresh_choice:
            warnings.warn(
                "the samples that maxlen keeps were chosen by a fresh seed: another array that is shuffled by this one "
                "holds others in the same places; pass seed= when the arrays are made",
                stacklevel=2,
            )
        seed = seed_of(seed)
        groups = None
        if window is not None:
            groups = self._groups().astype(np.int32)
        self._order = permutation(len(self), seed, groups=groups, window=window)
        self.seed = seed
        return self

    def reset_order(self) -> MultiSourceArray:
        """Back to the order of the manifest (or of the sources); returns the array itself."""
        self._order, self.seed = None, None
        return self

    def copy(self) -> MultiSourceArray:
        """The same samples and order over the same sources, to be reordered on its own."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def select(self, key: Any) -> MultiSourceArray:
        """A lazy sub-array, its labels and table along; its order starts as the order of the selection.

        Parameters
        ----------
        key : mask, slice or indices into the current order
        """
        positions = select_rows(key, len(self))
        part = self.copy()
        part.seed = None
        part._keep(positions if self._order is None else self._order[positions])
        return part

    def split(
        self, fraction: float, *, by: str | None = None, stratify: str | None = None, seed: Seed = 0
    ) -> tuple[MultiSourceArray, MultiSourceArray]:
        """Two parts, of about `fraction` and the rest of the samples; see `lazytiles.indexing.splits`.

        Parameters
        ----------
        fraction : share of the samples in the first part, between 0 and 1
        by : a table column, or ``"source"``; no group of equal values is on both sides
        stratify : a table column, or ``"labels"``, whose shares both sides keep
        seed : of the draw, as for `shuffle`
        """
        first, second = split_rows(self, fraction, by=by, stratify=stratify, seed=seed_of(seed))
        return self.select(first), self.select(second)

    def kfold(
        self, n: int, *, by: str | None = None, stratify: str | None = None, seed: Seed = 0
    ) -> Iterator[tuple[MultiSourceArray, MultiSourceArray]]:
        """`n` times a training and a test part; every sample is tested once; options as for `split`."""
        still = self.copy()  # a shuffle between two folds must not move samples from one to another
        folds = kfold_rows(still, n, by=by, stratify=stratify, seed=seed_of(seed))
        return ((still.select(train), still.select(test)) for train, test in folds)

    def __getitem__(self, key: Any) -> Any:
        asked = request(key, self.shape, row_axes=self._row_axes, cells=self._cells())
        return asked.finish(self._block(asked))

    def _cells(self) -> tuple[int | None, ...] | None:
        if self._form is None or self._form.resample is not None:
            return None
        return (*(self._segment or self._form.size), None)

    def take(
        self,
        indices: Any,
        out: NDArray[Any] | None = None,
        *,
        threads: int | None = None,
        readers: int | None = None,
    ) -> NDArray[Any]:
        """The batch read that everything uses: one plan, each segment decoded once, one new array.

        Parameters
        ----------
        indices : integers, shape (n,), positions in the current order; negative ones count from the end
        out : array (n, *sample shape) of the array's dtype to fill, or None
        threads : threads that decode; default as configured
        readers : processes that decode instead, where that is worth it; default as configured

        Returns
        -------
        array, shape (n, *sample shape)
        """
        asked = request(positions(indices), self.shape, row_axes=self._row_axes)
        direct = out if out is not None and out.flags.c_contiguous else None
        if direct is not None:
            fits(direct, (len(indices), *self.shape[1:]), self.dtype)
        block: NDArray[Any] = asked.finish(self._block(asked, out=direct, threads=threads, readers=readers))
        return block if out is None else out if direct is not None else into(block, out)

    def read_box(self, rows: Int64s, box: Box, origins: Int64s | None) -> NDArray[Any]:
        """See `lazytiles.arrays.view.read_box`."""
        if self._row_axes == 1:
            return self._block(Request((rows,), box, origins, len(rows)))
        if origins is None:
            cut = tuple(slice(start, stop) for start, stop in box)
            block: NDArray[Any] = self[(rows, *cut)]
            return block
        out = np.empty((len(rows), *(stop - start for start, stop in box)), self.dtype)
        for k, row in enumerate(rows.tolist()):
            moved = (slice(a + o, b + o) for (a, b), o in zip(box, origins[k].tolist(), strict=True))
            out[k] = self[(row, *moved)]
        return out

    def _block(
        self,
        asked: Request,
        *,
        out: NDArray[Any] | None = None,
        threads: int | None = None,
        readers: int | None = None,
    ) -> NDArray[Any]:
        parts = self._parts(asked.rows)
        if self._form is not None:
            return read_tiles(parts, asked, self._form, out=out, threads=threads, readers=readers)
        return read_parts(parts, asked, self.dtype, out=out)

    def _parts(self, places: tuple[Int64s, ...]) -> list[tuple[Any, Int64s, tuple[Int64s, ...]]]:
        """For each source that some samples lie in: the slots of the block they fill, and where they lie in it."""
        now = places[0] if self._order is None else self._order[places[0]]
        return by_source(self.sources, self._starts, self._rows[now], places[1:])

    @property
    def plans_batches(self) -> bool:
        """Whether batches share segments, so that reading several together saves work."""
        return self._form is not None

    def take_batches(
        self,
        batches: Sequence[Int64s],
        done: Callable[[int, NDArray[Any] | LazyTilesError], None],
        *,
        threads: int | None = None,
        readers: int | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Read several batches as one plan, each segment decoded once for all of them.

        Parameters
        ----------
        batches : positions in the current order, one int64 array for each batch
        done : called once for each batch, ``done(k, array or error)``, as soon as it is complete; early batches
            first where that is possible. The array is new, contiguous and the caller's own
        threads : threads that decode
        readers : processes that decode instead; None as configured
        stop : set by anyone to leave the rest undone
        """
        if self._form is None:
            for k, result in read_each(batches, partial(self.take, threads=threads), stop=stop):
                done(k, result)
            return
        places = [request(positions(batch), self.shape, row_axes=self._row_axes) for batch in batches]
        options: dict[str, Any] = {"threads": threads, "readers": readers, "stop": stop}
        if places:
            for k, result in read_blocks(places, self.shape[1:], self._form, self._parts, **options):
                done(k, result)
                del result  # a batch that its consumer dropped is not kept alive here

    def plan(self, indices: Any = None, **of_epoch: Any) -> Plan | Cost:
        """What ``take(indices)`` would read, or without indices what an epoch costs, from tags alone; print it.

        Parameters
        ----------
        indices : any first-axis key into the current order; None for `cost` of a whole epoch
        of_epoch : `batch_size` and `readahead_bytes`, as for `cost`

        Raises
        ------
        TypeError : the samples do not come from image files
        """
        if self._form is None:
            raise TypeError("plan() describes reads of image files; these sources are arrays")
        if indices is None:
            return self.cost(**of_epoch)
        if of_epoch:
            raise TypeError(f"{', '.join(of_epoch)} is for a whole epoch, plan() without indices")
        asked = request(select_rows(indices, len(self)), self.shape, row_axes=self._row_axes)
        return gathered(self._parts(asked.rows), asked.box, None, self._form).plan()

    def verify(self) -> None:
        """Open every region's tags once and refuse, in one error, all windows and files that cannot be read.

        Raises
        ------
        ManifestError : the first 20 problems and how many there are; each names tile, file and window
        """
        problems: list[str] = []
        sources = [self.sources[k] for k in np.unique(self.index_pairs[:, 0]).tolist()]
        open_ahead([(source, self._rows[:0], ()) for source in sources if isinstance(source, RegionTiles)])
        for source in sources:
            if hasattr(source, "verify"):
                problems += source.verify() or []
        if isinstance(self._labels, MultiSourceArray):
            self._labels.verify()
        if problems:
            more = f"\nand {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
            raise ManifestError("\n".join(problems[:MOST_PROBLEMS]) + more)

    def name_of(self, position: int) -> str:
        """The words for a sample, by its position in the current order."""
        source, index = self.index_pairs[position].tolist()
        own: Callable[[int], str] | None = getattr(self.sources[source], "describe", None)
        return own(index) if own is not None else f"sample {index} of source {source}"

    def to_dask(self, chunks: Any = None) -> Any:
        """The samples as a dask array, in the current order; no pixel is read.

        Chunks lie by region. Of a shuffled array they do so underneath, and any chunk on top may depend on all of
        them: call ``reset_order()`` first where the order does not matter.

        Parameters
        ----------
        chunks : samples in a chunk, or as dask takes them; by default some 16 MiB
        """
        return verb("tiles_to_dask")(self, chunks)

    def to_torch(self, y: Any = None, **options: Any) -> Any:
        """A map-style torch dataset whose batches are planned reads; see `lazytiles.training.torch.to_torch`."""
        return verb("to_torch")(self, y, **options)

    def plot(self, n: int = 16, **options: Any) -> Any:
        """A montage of the first n tiles with their labels; see `lazytiles.reports.plots.plot_tiles`."""
        return verb("plot_tiles")(self, n, **options)

    def statistics(
        self,
        *,
        client: Any = None,
        scheduler: Any = None,
        threads: int | None = None,
        limits: tuple[float, float] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Mean, deviation, extremes and histogram by band and frame, exact; see `lazytiles.reports.statistics`."""
        cluster = {"client": client, "scheduler": scheduler}
        return verb("statistics")(self, **cluster, threads=threads, limits=limits, progress=progress)

    def cost(self, *, batch_size: int = 32, readahead_bytes: int = 256 * 2**20) -> Cost:
        """What an epoch in batches would read and decode, by order, from tags alone; see `lazytiles.arrays.cost`."""
        return reading_cost(self, batch_size=batch_size, readahead_bytes=readahead_bytes)

    def persist(self, path: str | os.PathLike[str] | None = None, **options: Any) -> MultiSourceArray:
        """The same array over tiles written once, to memory or a store; see `lazytiles.stores.saving.persist`."""
        stored: MultiSourceArray = verb("persist")(self, path, **options)
        return stored

    def _facts(self) -> dict[str, str]:
        return super()._facts() | {"sources": str(len(self.sources))}

    def _glimpse(self, rows: Int64s | None = None) -> NDArray[np.uint8] | None:
        few = np.arange(min(_FEW, len(self))) if rows is None else rows
        if self._form is None or not len(few) or self.table is None:
            return None
        planned = self.plan(few)
        if getattr(planned, "bytes_decoded", 0) > CHEAP_BYTES or self.nbytes // len(self) * len(few) > CHEAP_BYTES:
            return None
        return side_by_side(stretched(self.take(few)), columns=_FEW, gap=1)[0]

    def __dask_tokenize__(self) -> Any:
        return token("lazytiles.MultiSourceArray", self.sources, self._rows[self._now()])

    def __repr__(self) -> str:
        kind = {type(None): "no labels", np.ndarray: "labels"}.get(type(self._labels), "mask tiles")
        kind += f" ({self._note})" if self._note else f" of {len(self._classes)} classes" if self._classes else ""
        order = "in order" if self._order is None else f"shuffled, seed {self.seed}"
        return f"<MultiSourceArray: {self.shape} {self.dtype} from {len(self.sources)} sources, with {kind}, {order}>"
