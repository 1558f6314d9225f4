"""`DelayedView`: part of any source as a lazy array, and how rows of any source are read.

A view is an index map: it reads nothing when it is made, and a view of a view is one view.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.arrays.travel import Travels
from lazytiles.config import check_limit
from lazytiles.indexing import LazyArray, Seed, permutation, request, seed_of

Int64s: TypeAlias = NDArray[np.int64]
Box: TypeAlias = tuple[tuple[int, int], ...]


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
        if hasattr(source, "__dlpack__"):
            return np.asarray(source)
        np.dtype(getattr(source, "dtype", float))
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
    """Rows of any source, cut by a box: `source[rows[k]][box]`, moved by `origins[k]`.

    Parameters
    ----------
    source : anything with `shape`, `dtype` and slices along its axes
    rows : int64, shape (n,), non-negative, in any order, repetitions allowed
    box : (start, stop) for each axis but the first
    origins : int64, shape (n, axes - 1), added to the starts, or None

    Returns
    -------
    new array, shape (n, *extents), native byte order
    """
    own = getattr(source, "read_box", None)
    if own is not None:
        block: NDArray[Any] = own(rows, box, origins)
        return block
    shape = (len(rows), *(stop - start for start, stop in box))
    dtype = np.dtype(source.dtype).newbyteorder("=")
    check_limit(math.prod(shape) * dtype.itemsize, "a read of {}", shape)
    out = np.empty(shape, dtype)
    cut: tuple[Any, ...] = tuple(slice(start, stop) for start, stop in box)
    if origins is not None:
        for k, (row, origin) in enumerate(zip(rows.tolist(), origins.tolist(), strict=True)):
            moved: tuple[Any, ...] = tuple(slice(a + o, b + o) for (a, b), o in zip(box, origin, strict=True))
            out[k] = source[(row, *moved)]
    elif isinstance(source, np.ndarray) and len(rows):
        if source.dtype == dtype:
            np.take(source[(slice(None), *cut)], rows, axis=0, out=out, mode="clip")  # rows are inside; no buffer
        else:
            out[...] = source[(slice(None), *cut)][rows]
    else:
        _read_runs(source, rows, cut, out)
    return out


def _read_runs(source: Any, rows: Int64s, cut: tuple[slice, ...], out: NDArray[Any]) -> None:
    """Runs of neighbouring rows by one slice each, which every store can do."""
    if not len(rows):
        return
    unique, inverse = np.unique(rows, return_inverse=True)
    breaks = np.flatnonzero(np.diff(unique) > 1) + 1
    order = np.argsort(inverse, kind="stable")
    at = np.searchsorted(inverse[order], np.concatenate([[0], breaks, [len(unique)]]))
    heads = np.concatenate([[0], breaks])
    for k, head in enumerate(heads.tolist()):
        stop = int(breaks[k]) if k < len(breaks) else len(unique)
        places = order[at[k] : at[k + 1]]
        part = np.asarray(source[(slice(int(unique[head]), int(unique[stop - 1]) + 1), *cut)])
        out[places] = part[inverse[places] - head]


class DelayedView(Travels, LazyArray):
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
            samples = source._samples[source._order][samples]
            source = source.source
        self.source: Any = source
        self._samples: Int64s = samples
        self._order: Int64s = np.arange(len(samples), dtype=np.int64)
        self.seed: int | None = None
        self.shape: tuple[int, ...] = (len(samples), *source.shape[1:])
        self.dtype = np.dtype(source.dtype).newbyteorder("=")
        if shuffle:
            self.shuffle(seed)

    @property
    def order(self) -> Int64s:
        """Which sample comes where, as a copy."""
        return self._order.copy()

    @order.setter
    def order(self, order: Any) -> None:
        self._order = checked_order(order, len(self))
        self.seed = None

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """Which frames of which samples are there, (n, frames), as the source says it; None where all must be."""
        known = getattr(self.source, "valid", None)
        whole: NDArray[np.bool_] | None = known if isinstance(known, np.ndarray) else None
        return None if whole is None else whole[self.samples]

    @property
    def samples(self) -> Int64s:
        """Which sample of the source each position of the current order shows, int64, shape (n,)."""
        return self._samples[self._order]

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

    def copy(self) -> DelayedView:
        """The same samples and order over the same source, to be reordered on its own."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def read_box(self, rows: Int64s, box: Box, origins: Int64s | None) -> NDArray[Any]:
        """See `lazytiles.arrays.view.read_box`."""
        return read_box(self.source, self._samples[self._order[rows]], box, origins)

    def take(self, indices: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The samples at some positions of the current order, as one new array or in `out`."""
        block: NDArray[Any] = self[np.asarray(indices, dtype=np.int64)]
        return into(block, out)

    def __getitem__(self, key: Any) -> Any:
        asked = request(key, self.shape, row_axes=1)
        return asked.finish(self.read_box(asked.rows[0], asked.box, asked.origins))

    def _glimpse(self, rows: Int64s | None = None) -> NDArray[np.uint8] | None:
        glimpse = getattr(self.source, "_glimpse", None)
        return None if glimpse is None else glimpse(self.samples[:4] if rows is None else self.samples[rows])

    def __repr__(self) -> str:
        return f"<DelayedView of {type(self.source).__name__}: {self.shape} {self.dtype}>"


def into(block: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """The block, or `out` filled with it; another shape or dtype is refused."""
    if out is None:
        return block
    fits(out, block.shape, block.dtype)
    out[...] = block
    return out


def fits(out: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an `out` of another shape or dtype than the samples that are to be written into it."""
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out is {out.shape} {out.dtype}, the samples are {shape} {dtype}")


def checked_order(order: Any, n: int) -> Int64s:
    """An order as int64, or `ValueError` if it is no permutation of ``range(n)``."""
    given = np.asarray(order)
    if given.shape != (n,) or given.dtype.kind not in "iu":
        raise ValueError(f"an order of {n} samples has shape ({n},) and integers, not {given.shape} {given.dtype}")
    result = given.astype(np.int64)
    seen = np.zeros(n, dtype=np.bool_)
    seen[result[(result >= 0) & (result < n)]] = True
    if not seen.all():
        raise ValueError(f"an order of {n} samples holds each of 0 to {n - 1} once; {int((~seen).sum())} are missing")
    return result
