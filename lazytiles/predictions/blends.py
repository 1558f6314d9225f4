"""How tiles are blended where they overlap, and how many rows that takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.indexing import windows_from_boxes

BOXES = {4: ("xmin", "ymin", "xmax", "ymax"), 6: ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")}


@dataclass(frozen=True, slots=True)
class Band:
    """The rows that must be held while windows are added in their order."""

    windows: NDArray[np.int64]
    frontier: NDArray[np.int64]
    rows: int

    @classmethod
    def of(cls, windows: NDArray[np.int64], height: int) -> Band:
        """The band of `(n, 2d)` windows in a region of that height: before window k, rows above `frontier[k]`
        are finished.

        >>> Band.of(np.array([(0, 0, 4, 4), (0, 2, 4, 6), (2, 0, 6, 4)]), 6)
        Band(3 windows, at most 4 rows at once)
        """
        axes = windows.shape[1] // 2
        first, last = np.clip(windows[:, 0], 0, height), np.clip(windows[:, axes], 0, height)
        frontier = np.minimum.accumulate(first[::-1])[::-1]
        return cls(windows, frontier, max(1, int((last - frontier).max(initial=0))))

    def __len__(self) -> int:
        return len(self.windows)

    def __repr__(self) -> str:
        return f"Band({len(self)} windows, at most {self.rows} rows at once)"


def windows_of(boxes: Any) -> NDArray[np.int64]:
    """User boxes as windows: `(n, 4)` rows `(y0, x0, y1, x1)`, or `(n, 6)` rows `(z0, y0, x0, z1, y1, x1)`.

    Boxes are integers, x first, or a table with columns `xmin`, `ymin` and so on.

    >>> windows_of([(1, 2, 4, 6)])
    array([[2, 1, 6, 4]])
    """
    columns = getattr(boxes, "columns", None)
    if columns is not None:
        boxes = boxes[list(BOXES[6 if "zmin" in columns else 4])].to_numpy()
    table = np.asarray(boxes)
    if table.ndim == 1 and table.size in BOXES:
        table = table[np.newaxis]
    if table.ndim != 2 or table.shape[1] not in BOXES:
        raise ValueError(f"boxes of shape {table.shape} are given; they are (n, 4) or (n, 6): {', '.join(BOXES[6])}")
    with np.errstate(invalid="ignore"):
        whole = table.astype(np.int64)
    if table.dtype.kind not in "iu" and not (whole == table).all():
        raise ValueError("boxes are whole pixels; fractions and missing values are not")
    axes = table.shape[1] // 2
    bad = np.flatnonzero((whole[:, axes:] <= whole[:, :axes]).any(axis=1))
    if bad.size:
        raise ValueError(f"box {tuple(whole[bad[0]].tolist())} holds no pixel; a box is {', '.join(BOXES[2 * axes])}")
    return windows_from_boxes(whole)


@lru_cache(maxsize=8)
def tile_weights(blend: str, extents: tuple[int, ...], dtype: str = "<f8") -> NDArray[Any]:
    """How much each pixel of a tile of such extents counts: positive, symmetric, greatest in the centre.

    >>> tile_weights("hann", (1, 4)).round(3)
    array([[0.146, 0.854, 0.854, 0.146]])
    """
    centred = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in extents), indexing="ij", sparse=True)
    weights = np.ones(extents)
    if blend == "crop":
        weights = 1 / (1 + sum(along**2 for along in centred))
    for along, extent in zip(centred, extents, strict=True):
        if blend == "hann":
            weights = weights * np.cos(np.pi * along / extent) ** 2
        elif blend == "gaussian":
            weights = weights * np.exp(-0.5 * (8 * along / extent) ** 2)
    result: NDArray[Any] = weights.astype(dtype)
    result.setflags(write=False)
    return result


def _average(sums: NDArray[Any], weights: NDArray[Any], tile: NDArray[Any], weight: NDArray[Any]) -> None:
    fresh = weights == 0
    if fresh.all():
        sums[...] = tile
        weights[...] = weight
        return
    weights += weight
    # A running mean moves by nothing where tiles agree and takes a first value as it is: both stay exact.
    with np.errstate(invalid="ignore", over="ignore"):
        step = np.subtract(tile, sums, dtype=sums.dtype)
        step *= _over(weight / weights, sums.ndim)
        if not np.isfinite(step.sum()):
            # Equal infinities differ by NaN.
            np.copyto(step, 0, where=tile == sums)
        sums += step
    if fresh.any():
        np.copyto(sums, tile, where=_over(fresh, sums.ndim), casting="same_kind")


def _crop(sums: NDArray[Any], weights: NDArray[Any], tile: NDArray[Any], weight: NDArray[Any]) -> None:
    np.copyto(sums, tile, where=_over(weight > weights, sums.ndim), casting="same_kind")
    np.maximum(weights, weight, out=weights)


def _largest(sums: NDArray[Any], weights: NDArray[Any], tile: NDArray[Any], weight: NDArray[Any]) -> None:
    fresh = _over(weights == 0, sums.ndim)
    np.copyto(sums, np.where(fresh, tile, np.maximum(sums, tile)), casting="same_kind")
    weights[...] = weight


COMBINE: dict[str, Callable[..., None]] = {
    "crop": _crop,
    "gaussian": _average,
    "hann": _average,
    "max": _largest,
    "mean": _average,
}


def _over(pixels: NDArray[Any], ndim: int) -> NDArray[Any]:
    return pixels.reshape(pixels.shape + (1,) * (ndim - pixels.ndim))
