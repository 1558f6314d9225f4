"""`MultiSourceArray`: many sources as one lazy array, with an order, labels and a table beside it."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Box, Int64s
from lazytiles.arrays.companions import Companions, joint_places
from lazytiles.arrays.cost import Cost, reading_cost
from lazytiles.arrays.facts import bounds, facts_of, glimpse, ground, in_a_line
from lazytiles.arrays.form import TileForm
from lazytiles.arrays.reading import (
    Parts,
    by_source,
    gathered,
    open_ahead,
    read_blocks,
    read_each,
    read_parts,
    read_tiles,
)
from lazytiles.arrays.region_tiles import RegionTiles
from lazytiles.arrays.sources import agreement, limited, listed, positions, positions_of
from lazytiles.arrays.view import Ordered, held
from lazytiles.augment import Boxes
from lazytiles.config import MIB
from lazytiles.errors import LazyTilesError, ManifestError
from lazytiles.images import Plan
from lazytiles.indexing import (
    Request,
    Seed,
    fits,
    into,
    kfold_rows,
    permutation,
    request,
    seed_of,
    select_rows,
    split_rows,
    token,
)
from lazytiles.verbs import verb

MOST_PROBLEMS = 20


class MultiSourceArray(Ordered):
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
        self._hold(tuple(map(held, listed(sources))), dtype)
        self.companions = self._in_step(Companions.of(self.sources, labels, classes, table))
        if maxlen is not None:
            self.seed = seed_of(seed)
            self._keep(limited(np.diff(self._starts), maxlen, self.seed if shuffle else None))
        if shuffle:
            self.shuffle(seed if self.seed is None else self.seed)
            self._is_fresh_choice = seed is None and len(self) < self._starts[-1]

    @classmethod
    def assembled(cls, sources: Sequence[Any], companions: Companions, rows: Int64s | None = None) -> MultiSourceArray:
        """Sources that agree, and what stands beside the samples, as they are.

        Parameters
        ----------
        rows : which samples of the sources, numbered through all, are held; None for all
        companions : one row for each sample held
        """
        array = cls.__new__(cls)
        array._hold(tuple(sources), None)
        if rows is not None:
            array._rows, array.shape = rows, (len(rows), *array.shape[1:])
        array.companions = array._in_step(companions)
        return array

    def _hold(self, sources: tuple[Any, ...], dtype: Any) -> None:
        """Hold all samples of some sources, in their order."""
        inner, self.dtype = agreement(sources, dtype)
        self.sources = sources
        self._starts = np.cumsum([0, *(source.shape[0] for source in sources)], dtype=np.int64)
        self._rows = np.arange(self._starts[-1], dtype=np.int64)
        self._is_fresh_choice = False
        self.shape: tuple[int, ...] = (len(self._rows), *inner)
        first = sources[0]
        self.form: TileForm | None = first.form if all(isinstance(s, RegionTiles) for s in sources) else None
        self._row_axes = 1 + len(first.lead) if self.form is not None else 1

    def _in_step(self, companions: Companions) -> Companions:
        """With lazy labels as an array of this class, which selects as this one does."""
        is_known = companions.labels is None or isinstance(companions.labels, np.ndarray | MultiSourceArray)
        return companions if is_known else replace(companions, labels=MultiSourceArray([companions.labels]))

    def _keep(self, rows: Int64s) -> None:
        """Keep only some samples, by their place in the unshuffled array."""
        self._rows = self._rows[rows]
        self.companions = self.companions.at(rows)
        self.shape = (len(rows), *self.shape[1:])
        self._order = None

    def _ordered(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.copy() if self._order is None else values[self._order]

    @property
    def labels(self) -> Any:
        """The labels in the current order: a new array, a lazy one where they are one (mask tiles), or None."""
        labels = self.companions.labels
        if isinstance(labels, MultiSourceArray):
            return labels.copy() if self._order is None else labels.select(self._order)
        return None if labels is None else self._ordered(labels)

    @property
    def classes(self) -> list[Any] | None:
        """The names of the classes, of which the labels are the numbers (the places in this list), or None."""
        return None if self.companions.classes is None else list(self.companions.classes)

    @property
    def boxes(self) -> Boxes | None:
        """Which columns of the labels are boxes, and how they are written; None where none is known to be."""
        return self.companions.boxes

    def get_labels(self) -> Any:
        """The labels in the current order; the older name of `labels`."""
        return self.labels

    @property
    def table(self) -> pd.DataFrame | None:
        """The manifest's columns of the samples in the current order, or None."""
        table = self.companions.table
        return None if table is None else table.iloc[self._now()].reset_index(drop=True)

    @property
    def tabular(self) -> NDArray[np.float32] | None:
        """The columns given to the model beside the image, float32 (n, columns), in the current order, or None."""
        table, names = self.companions.table, self.companions.tabular
        if table is None or names is None:
            return None
        return np.ascontiguousarray(table[list(names)].to_numpy(dtype=np.float32)[self._now()])

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """Which frames of which samples are there, (n, frames), in the current order; None where all must be."""
        return None if self.companions.valid is None else self._ordered(self.companions.valid)

    @property
    def valid_pixels(self) -> MultiSourceArray | None:
        """Which pixels hold something: lazy, boolean (n, [frames,] H, W), in the current order; None without images."""
        return self.validity("any")

    def validity(self, kind: str) -> MultiSourceArray | None:
        """As `valid_pixels`; with the kind ``"bands"`` each value by itself, (n, [frames,] height, width, C)."""
        kept, rows = self.companions.kept, None if self.companions.kept is not None else self._rows
        sources = self.sources if kept is None else (kept,)
        found = [own(kind) for source in sources if (own := getattr(source, "of_validity", None)) is not None]
        if len(found) < len(sources) or any(each is None for each in found):
            return None
        twin = type(self).assembled(found, Companions(table=self.companions.table), rows)
        twin._order, twin.seed = self._order, self.seed
        return twin

    of_validity = validity  # of an array that is the source of another

    @property
    def region_ids(self) -> NDArray[np.int64]:
        """The number of the source of each sample, in the current order; of written tiles that they came from."""
        return self._ordered(self._groups())

    def _groups(self) -> Int64s:
        if self.companions.places is not None:
            return self.companions.places[1][:, 0]
        return np.searchsorted(self._starts, self._rows, side="right") - 1

    @property
    def places(self) -> tuple[tuple[Any, ...], Int64s]:
        """The regions that samples lie in; and of each sample its region, its place there and in the unshuffled array.

        The regions are the sources; of tiles that were written to memory or a store, what they came from. The numbers
        are int64, shape (n, 3), in the current order.
        """
        if self.companions.places is not None:
            regions, places = self.companions.places
            return regions, places[self._now()]
        if not all(isinstance(source, MultiSourceArray) for source in self.sources):
            return self.sources, np.column_stack([self.index_pairs, self.order])
        regions, places = joint_places(self.sources)
        return regions, np.column_stack([places[self._rows[self._now()]], self.order])

    @property
    def sample_windows(self) -> Int64s | None:
        """The window of each sample, starts then stops, in the current order; None unless from a manifest."""
        if not all(hasattr(source, "windows") for source in self.sources):
            return None
        return np.concatenate([source.windows for source in self.sources])[self._rows[self._now()]]

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
        groups = None if window is None else self._groups().astype(np.int32)
        self._order = permutation(len(self), seed, groups=groups, window=window)
        self.seed = seed
        return self

    def reset_order(self) -> MultiSourceArray:
        """Back to the order of the manifest (or of the sources); returns the array itself."""
        self._order, self.seed = None, None
        return self

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
        by : a table column, or ``"source"``; no group of equal values is on both sides. ``"ground"``: no two windows
            that overlap, in one region or on the ground
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
        cells = None
        if self.form is not None and self.form.resample is None:
            cells = (*(self.form.segment or self.form.size), None)[: len(self.form.inner_shape)]
        asked = request(key, self.shape, row_axes=self._row_axes, cells=cells)
        return asked.finish(self._block(asked))

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
        """Read a box out of each of some samples; see `Region.read_box`."""
        if self._row_axes == 1:
            return self._block(Request((rows,), box, origins, len(rows)))
        return super().read_box(rows, box, origins)

    def _block(self, asked: Request, out: NDArray[Any] | None = None, **how: Any) -> NDArray[Any]:
        parts = self._parts(asked.rows)
        if self.form is not None:
            return read_tiles(parts, asked, self.form, out=out, **how)
        return read_parts(parts, asked, self.dtype, out)

    def _parts(self, places: tuple[Int64s, ...]) -> Parts:
        """For each source that some samples lie in: the slots of the block they fill, and where they lie in it."""
        return by_source(self.sources, self._starts, self._held(places[0]), places[1:])

    @property
    def plans_batches(self) -> bool:
        """Whether batches share segments, so that reading several together saves work."""
        return self.form is not None

    @property
    def scratch_bytes(self) -> int:
        """Bytes that the pixels of the windows of one sample take at most; see `RegionTiles.scratch_bytes`."""
        return 0 if self.form is None else max((source.scratch_bytes for source in self.sources), default=0)

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
        if self.form is None or not len(batches):
            results = read_each(batches, partial(self.take, threads=threads), stop=stop)
        else:
            places = [request(positions(batch), self.shape, row_axes=self._row_axes) for batch in batches]
            how: dict[str, Any] = {"threads": threads, "readers": readers, "stop": stop}
            results = read_blocks(places, self.shape[1:], self.form, self._parts, **how)
        for k, result in results:
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
        if self.form is None:
            raise TypeError("plan() describes reads of image files; these sources are arrays")
        if indices is None:
            return self.cost(**of_epoch)
        if of_epoch:
            raise TypeError(f"{', '.join(of_epoch)} is for a whole epoch, plan() without indices")
        asked = request(select_rows(indices, len(self)), self.shape, row_axes=self._row_axes)
        return gathered(self._parts(asked.rows), asked.box, None, self.form).plan()

    def verify(self) -> None:
        """Open every region's tags once and refuse, in one error, all windows and files that cannot be read.

        Raises
        ------
        ManifestError : the first 20 problems and how many there are; each names tile, file and window
        """
        sources = [self.sources[k] for k in np.unique(self.index_pairs[:, 0]).tolist()]
        open_ahead(sources)
        own = (source.verify() or () for source in sources if hasattr(source, "verify"))
        problems: list[str] = [said for several in own for said in several]
        if isinstance(self.companions.labels, MultiSourceArray):
            self.companions.labels.verify()
        if problems:
            more = f"\nand {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
            raise ManifestError("\n".join(problems[:MOST_PROBLEMS]) + more)

    def name_of(self, position: int) -> str:
        """The words for a sample, by its position in the current order."""
        source, index = self.index_pairs[position].tolist()
        own: Callable[[int], str] = getattr(self.sources[source], "describe", f"sample {{}} of source {source}".format)
        return own(index)

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

    def statistics(self, **options: Any) -> Any:
        """Mean, deviation, extremes and histogram by band and frame, exact; see `lazytiles.reports.statistics`."""
        return verb("statistics")(self, **options)

    def cost(self, *, batch_size: int = 32, readahead_bytes: int = 256 * MIB) -> Cost:
        """What an epoch in batches would read and decode, by order, from tags alone; see `lazytiles.arrays.cost`."""
        return reading_cost(self, batch_size=batch_size, readahead_bytes=readahead_bytes)

    def persist(self, path: str | os.PathLike[str] | None = None, **options: Any) -> MultiSourceArray:
        """The same array over tiles written once, to memory or a store; see `lazytiles.stores.saving.persist`."""
        stored: MultiSourceArray = verb("persist")(self, path, **options)
        return stored

    __repr__, _glimpse = in_a_line, glimpse
    ground, bounds = property(ground), property(bounds)

    def _facts(self) -> dict[str, str]:
        return super()._facts() | facts_of(self)

    def __dask_tokenize__(self) -> Any:
        return token("lazytiles.MultiSourceArray", self.sources, self._rows[self._now()])
