"""`DelayedView`: part of any source as a lazy array, and how rows of any source are read.

A view is an index map: it reads nothing when it is made, and a view of a view is one view.
"""

from __future__ import annotations

import math
import mmap
import os
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Box, Int64s
from lazytiles.config import check_limit
from lazytiles.errors import require
from lazytiles.indexing import LazyArray, Seed, each_at, permutation, seed_of


def held(source: Any) -> Any:
    """What an array or a flow holds of a source that it is given: the source as it is now.

    Arrays of the library keep the order that they have now, whatever is done to the original later. pandas objects
    and tensors in memory (JAX, torch, TensorFlow: all that speak DLPack) become NumPy arrays of the same values,
    shape (n, ...), because their own methods mean other things than ours. All others are held as they are.

    Raises
    ------
    TypeError : a tensor that NumPy cannot see (on a device, or followed for gradients), a dtype that it does not know
    ValueError : missing values: NA in a pandas column, masked elements

    >>> view = DelayedView(np.arange(3))
    >>> kept = held(view)
    >>> view.order = [2, 1, 0]
    >>> kept[:], held(pd.Series([4, 5], dtype="Int64"))
    (array([0, 1, 2]), array([4, 5]))
    """
    kind = type(source)
    if isinstance(source, LazyArray):
        return source.copy() if hasattr(source, "copy") else source
    if isinstance(source, np.ma.MaskedArray) and np.ma.is_masked(source):
        raise ValueError("some elements of an array are masked; say what they are with .filled(value)")
    if isinstance(source, np.ndarray):
        return source
    if kind.__module__.partition(".")[0] == "pandas":
        return _values_of(source)
    try:
        dtype = getattr(source, "dtype", float)
        # Older tensors of TensorFlow speak no DLPack, nor do the variables of Keras, whose dtypes are names.
        if hasattr(source, "__dlpack__") or hasattr(dtype, "as_numpy_dtype") or isinstance(dtype, str):
            return np.asarray(source)
        np.dtype(dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"a {kind.__module__.partition('.')[0]} {kind.__name__} cannot be read as a NumPy array ({error}); "
            "pass its values as one, as numpy.asarray or its own .numpy() gives them"
        ) from error
    return source


def _values_of(data: Any) -> NDArray[Any]:
    """The values of a pandas object in row order; nullable columns as NumPy's dtypes."""
    if isinstance(data, pd.DataFrame) and any(not isinstance(dtype, np.dtype) for dtype in data.dtypes):
        columns = [_values_of(data.iloc[:, k]) for k in range(data.shape[1])]
        if all(column.dtype != object for column in columns):
            return np.stack(columns, axis=1)
    is_nullable = not isinstance(data, pd.DataFrame) and not isinstance(data.dtype, np.dtype)
    if is_nullable and pd.api.types.is_numeric_dtype(data.dtype):
        absent = np.flatnonzero(pd.isna(data))
        if len(absent):
            name = "a column" if getattr(data, "name", None) is None else f"column {data.name!r}"
            raise ValueError(
                f"{len(absent)} of {len(data)} values of {name} are missing (NA), first in row {absent[0]}"
            )
        return np.asarray(data.to_numpy().tolist(), getattr(data.dtype, "numpy_dtype", None))
    values: NDArray[Any] = data.to_numpy()
    return values


def read_box(source: Any, rows: Int64s, box: Box, origins: Int64s | None) -> NDArray[Any]:
    """Rows of any source with `shape`, `dtype` and slices: `source[rows[k]][box]`, moved by `origins[k]`.

    Arguments are those of `LazyArray.read_box`.
    """
    own = getattr(source, "read_box", None)
    if own is not None:
        block: NDArray[Any] = own(rows, box, origins)
        return block
    shape = (len(rows), *(stop - start for start, stop in box))
    dtype = np.dtype(source.dtype).newbyteorder("=")
    check_limit(math.prod(shape) * dtype.itemsize, "a read of {}", shape)
    if origins is not None:
        return each_at(source, rows, box, origins)
    out = np.empty(shape, dtype)
    cut: tuple[Any, ...] = tuple(slice(start, stop) for start, stop in box)
    if isinstance(source, np.ndarray) and len(rows):
        if source.dtype == dtype:
            np.take(source[(slice(None), *cut)], rows, axis=0, out=out, mode="clip")  # rows are inside; no buffer
        else:
            out[...] = source[(slice(None), *cut)][rows]
    elif len(rows):  # runs of neighbouring rows by one slice each, which every store can do
        unique, inverse = np.unique(rows, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        ends = np.concatenate([[0], np.flatnonzero(np.diff(unique) > 1) + 1, [len(unique)]])
        at = np.searchsorted(inverse[order], ends)
        for head, stop, first, last in np.column_stack([ends[:-1], ends[1:], at[:-1], at[1:]]).tolist():
            places = order[first:last]
            part = np.asarray(source[(slice(int(unique[head]), int(unique[stop - 1]) + 1), *cut)])
            out[places] = part[inverse[places] - head]
    return out


class Ordered(LazyArray):
    """Samples of one or more sources in an order that can be set; what `DelayedView` and `MultiSourceArray` share.

    Pickles what it has; memory maps and HDF5 datasets go by file and place, and are opened to read on arrival.
    """

    _rows: Int64s  # which samples of what lies underneath are held
    _order: Int64s | None = None  # which of those comes where; None as they are
    seed: int | None = None

    def _now(self) -> Int64s | slice:
        return slice(None) if self._order is None else self._order

    def _held(self, positions: Int64s) -> Int64s:
        """What lies underneath some positions of the current order."""
        return self._rows[positions if self._order is None else self._order[positions]]

    @property
    def order(self) -> Int64s:
        """Which sample comes where, int64, as a copy; settable to any permutation."""
        return np.arange(len(self), dtype=np.int64) if self._order is None else self._order.copy()

    @order.setter
    def order(self, order: Any) -> None:
        given, n = np.asarray(order), len(self)
        if given.shape != (n,) or given.dtype.kind not in "iu":
            raise ValueError(f"an order of {n} samples has shape ({n},) and integers, not {given.shape} {given.dtype}")
        result = given.astype(np.int64)
        seen = np.zeros(n, dtype=np.bool_)
        seen[result[(result >= 0) & (result < n)]] = True
        if not seen.all():
            raise ValueError(
                f"an order of {n} samples holds each of 0 to {n - 1} once; {int((~seen).sum())} are missing"
            )
        self._order = result
        self.seed = None

    def copy(self) -> Self:
        """The same samples and order over the same sources, to be reordered on its own."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: _packed(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update((name, _unpacked(value)) for name, value in state.items())


class DelayedView(Ordered):
    """Samples `idx_min:idx_max` of a source as a lazy array with NumPy's full indexing.

    Parameters
    ----------
    source : array-like with `shape`, `dtype` and slices; its samples lie along axis 0
    shuffle : whether to start in a shuffled order
    idx_min, idx_max : which samples, as a slice takes them
    seed : int, or a NumPy `Generator` or `RandomState` that an int is drawn from; None draws a fresh one

    Attributes
    ----------
    order : int64, shape (n,): position k shows sample ``idx_min + order[k]``; settable to any permutation
    seed : of the last shuffle, or None

    Examples
    --------
    >>> view = DelayedView(np.arange(10) ** 2, idx_min=2, idx_max=6)
    >>> view[1:], view[-1]
    (array([ 9, 16, 25]), np.int64(25))
    """

    def __init__(
        self,
        source: Any,
        *,
        shuffle: bool = False,
        idx_min: int | None = None,
        idx_max: int | None = None,
        seed: Seed = None,
    ) -> None:
        if not getattr(source, "shape", ()):
            kind = type(source).__name__
            raise ValueError(
                f"a {kind} is no source of samples: it has no shape; of a list make an array by np.asarray"
            )
        samples = np.arange(source.shape[0], dtype=np.int64)[slice(idx_min, idx_max)]
        source = held(source)
        if isinstance(source, DelayedView):
            samples = source.samples[samples]
            source = source.source
        self.source: Any = source
        self._rows = samples
        self.shape: tuple[int, ...] = (len(samples), *source.shape[1:])
        self.dtype = np.dtype(source.dtype).newbyteorder("=")
        if shuffle:
            self.shuffle(seed)

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """Which frames of which samples are there, (n, frames), as the source says it; None where all must be."""
        known = getattr(self.source, "valid", None)
        return known[self.samples] if isinstance(known, np.ndarray) else None

    def of_validity(self, kind: str) -> DelayedView | None:
        """Which pixels, or values, of the same samples are valid; None where the source does not say it."""
        found = getattr(self.source, "of_validity", lambda kind: None)(kind)
        if found is None:
            return None
        twin = self.copy()
        twin.source, twin.shape, twin.dtype = found, (len(self), *found.shape[1:]), np.dtype(np.bool_)
        return twin

    @property
    def samples(self) -> Int64s:
        """Which sample of the source each position of the current order shows, int64, shape (n,)."""
        return self._rows.copy() if self._order is None else self._rows[self._order]

    @property
    def region_ids(self) -> Int64s | None:
        """The number of the source that each sample lies in, of a view of an array of several; else None."""
        numbers: Int64s | None = getattr(self.source, "region_ids", None)
        return None if numbers is None else numbers[self.samples]

    def shuffle(self, seed: Seed = None) -> DelayedView:
        """Reorder in place, by the seed and the length alone; returns the view itself."""
        self.seed = seed_of(seed)
        self._order = permutation(len(self), self.seed)
        return self

    def read_box(self, rows: Int64s, box: Box, origins: Int64s | None) -> NDArray[Any]:
        """Read a box out of each of some samples; see `Region.read_box`."""
        return read_box(self.source, self._held(rows), box, origins)

    def _glimpse(self, rows: Int64s | None = None) -> NDArray[np.uint8] | None:
        glimpse = getattr(self.source, "_glimpse", None)
        return None if glimpse is None else glimpse(self.samples[:4] if rows is None else self.samples[rows])

    def __repr__(self) -> str:
        return f"<DelayedView of {type(self.source).__name__}: {self.shape} {self.dtype}>"


class _ByName(partial[Any]):
    """What opens a source that lies in a file."""


def _packed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_packed, value))
    holder: Any = getattr(value, "base", None)
    if isinstance(value, np.memmap) and isinstance(holder, mmap.mmap) and value.filename is not None:
        # A slice of a map does not know its place in the file: it goes as the pixels that it is.
        order = "C" if value.flags.c_contiguous else "F"
        return _ByName(np.memmap, os.fspath(value.filename), value.dtype, "r", value.offset, value.shape, order)
    if type(value).__module__.startswith("h5py.") and value.file.driver != "core" and value.name:
        return _ByName(_dataset, os.path.abspath(value.file.filename), value.name)
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_unpacked, value))
    return value() if isinstance(value, _ByName) else value


def _dataset(path: str, name: str) -> Any:
    return require("h5py", extra="hdf5").File(path, "r")[name]
