"""Rows into anything that takes slices: arrays, memory maps, datasets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cast(block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values as another dtype: rounded and clipped to its range where it holds integers, never wrapped round.

    >>> cast(np.array([300.7, -1, 1.5]), np.dtype("uint8"))
    array([255,   0,   2], dtype=uint8)
    """
    if block.dtype == dtype:
        return block
    if block.dtype.kind not in "biuf" or dtype.kind not in "biu":
        return block.astype(dtype)
    if block.dtype.kind == "f" and np.isnan(block).any():
        raise ValueError(f"the values hold NaN, which {dtype} cannot; choose a floating dtype= or out=")
    if dtype.kind == "b":
        return block >= 0.5
    limits = np.iinfo(dtype)
    if block.dtype.kind != "f":
        given = np.iinfo(block.dtype if block.dtype.kind != "b" else np.uint8)
        return block.clip(max(limits.min, given.min), min(limits.max, given.max)).astype(dtype)
    # In double precision, which holds the limits of 32 bits; those of 64 bits are set as they are.
    rounded = np.rint(block, dtype=np.float64)
    clipped: NDArray[Any] = rounded.clip(limits.min, np.nextafter(float(limits.max), 0)).astype(dtype)
    clipped[rounded >= float(limits.max)] = limits.max
    return clipped


class ArraySink:
    """Rows into anything that takes `array[start:stop] = rows`, cast to its dtype; the axis `frames` of them in front.

    >>> sink = ArraySink(np.zeros((2, 2)))
    >>> sink.append(np.ones((1, 2))); sink.close()
    array([[1., 1.],
           [0., 0.]])
    """

    def __init__(self, array: Any, frames: int | None = None) -> None:
        self.array, self._frames, self._row = array, frames, 0

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        place: Any = slice(self._row, self._row + len(rows))
        values = rows
        if self._frames is not None:
            place, values = (slice(None), place), np.moveaxis(rows, self._frames, 0)
        self.array[place] = cast(values, np.dtype(getattr(self.array, "dtype", values.dtype)))
        self._row += len(rows)

    def close(self) -> Any:
        """The array."""
        flush = getattr(self.array, "flush", None)
        if flush is not None:
            flush()
        return self.array

    def abort(self) -> None:
        """The array is the caller's and stays as it is."""
