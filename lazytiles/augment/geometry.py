"""One resampling for a whole chain of transforms: where each output pixel comes from, and fetching it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lazytiles.indexing import folded

FILLS = ("nearest", "reflect", "constant")

# A band's arrays stay in the processor's cache and below the allocator's mapping threshold: twice the speed.
BAND_PIXELS = 4096


@dataclass(frozen=True, slots=True)
class Placement:
    """Where every output pixel comes from.

    ``input = linear @ (output + origin) + offset + warp(output + origin)``
    """

    size: tuple[int, int]  # output (height, width), pixels
    frame: tuple[int, int]  # input (height, width), pixels
    origin: tuple[int, int]  # the crop's first (row, column)
    linear: tuple[float, float, float, float]  # row-major 2 x 2
    offset: tuple[float, float]  # (row, column), pixels
    warp: NDArray[np.float64] | None  # (rows, columns, 2) pixels by which a cubic B-spline's control points are moved
    amount: float  # added to the image's values

    @property
    def is_aligned(self) -> bool:
        """Whether pixel centres fall on pixel centres: flips, quarter turns and whole shifts only."""
        a, b, c, d = (abs(entry) for entry in self.linear)
        turned = (a, b, c, d) in ((1.0, 0.0, 0.0, 1.0), (0.0, 1.0, 1.0, 0.0))
        return turned and self.warp is None and all(o.is_integer() for o in self.offset)

    def bands(self) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64]]]:
        """Flat output pixels in order, and the input (row, column) coordinates of each."""
        height, width = self.size
        step = max(1, BAND_PIXELS // max(width, 1))
        for top in range(0, height, step):
            bottom = min(top + step, height)
            y, x = self._coordinates(top, bottom)
            yield slice(top * width, bottom * width), y.ravel(), x.ravel()

    def moved_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where points of the input lie in the output: (x, y), shape (k, 2), pixels from the corner of the first pixel.

        They may lie outside. Not for a placement with a warp.

        >>> flip = Placement((2, 4), (2, 4), (0, 0), (1.0, 0.0, 0.0, -1.0), (0.0, 3.0), None, 0.0)
        >>> flip.moved_points(np.array([[0.0, 0.5]]))
        array([[4. , 0.5]])
        """
        a, b, c, d = self.linear
        # Pixels are numbered at their centres, half a pixel from their corners.
        y, x = points[:, 1] - 0.5 - self.offset[0], points[:, 0] - 0.5 - self.offset[1]
        area = a * d - b * c
        rows, columns = (d * y - b * x) / area, (a * x - c * y) / area
        return np.stack([columns - self.origin[1], rows - self.origin[0]], axis=1) + 0.5

    def moved_boxes(self, corners: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes of the input in the output: the bounds of their four corners, cut at the edges of the output.

        Under a warp it is the bounds of the output's pixels whose centres come from inside the box. What leaves the
        output, or has no pixel, becomes 0, 0, 0, 0; a box without pixels stays what it is. Boxes are (x0, y0, x1, y1),
        shape (k, 4), in pixels, half-open.
        """
        given = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        result = corners.copy()
        if self.warp is None:
            four = corners[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
            places = self.moved_points(four).reshape(-1, 4, 2)
            bounds = np.concatenate([places.min(axis=1), places.max(axis=1)], axis=1)
            bounds = np.clip(bounds, 0, [*self.size[::-1]] * 2)
        else:
            y, x = self._coordinates(0, self.size[0])
            bounds = np.zeros(corners.shape)
            for k, (x0, y0, x1, y1) in enumerate((corners - 0.5).tolist()):
                shown = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
                rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
                if len(rows):
                    bounds[k] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        there = (bounds[:, 2] > bounds[:, 0]) & (bounds[:, 3] > bounds[:, 1])
        result[given] = np.where(there[:, None], bounds, 0)[given]
        return result

    @property
    def is_still(self) -> bool:
        """Whether every pixel stays where it is."""
        still = self.linear == (1.0, 0.0, 0.0, 1.0) and self.offset == (0.0, 0.0) and self.origin == (0, 0)
        return still and self.warp is None and self.size == self.frame

    def _coordinates(self, top: int, bottom: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        a, b, c, d = self.linear
        rows = np.arange(top + self.origin[0], bottom + self.origin[0], dtype=np.float64)[:, None]
        columns = np.arange(self.origin[1], self.origin[1] + self.size[1], dtype=np.float64)
        y = (a * rows + self.offset[0]) + b * columns
        x = (c * rows + self.offset[1]) + d * columns
        if self.warp is None:
            return y, x
        down = spline_basis(self.frame[0], self.warp.shape[0])[top + self.origin[0] : bottom + self.origin[0]]
        across = spline_basis(self.frame[1], self.warp.shape[1])[self.origin[1] : self.origin[1] + self.size[1]]
        return y + down @ self.warp[..., 0] @ across.T, x + down @ self.warp[..., 1] @ across.T


@lru_cache(maxsize=64)
def spline_basis(length: int, points: int) -> NDArray[np.float64]:
    """Weights of `points` control points, spread from edge to edge, at each of `length` pixels: (length, points).

    The uniform cubic B-spline; beyond the edges the outermost points repeat. Rows sum to 1; the array is read-only.

    >>> spline_basis(3, 3).round(3).tolist()
    [[0.833, 0.167, 0.0], [0.167, 0.667, 0.167], [0.0, 0.167, 0.833]]
    """
    place = np.arange(length) * ((points - 1) / max(length - 1, 1))
    knot = np.minimum(place.astype(np.int64), points - 2)
    f = place - knot
    weights = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    basis = np.zeros((length, points))
    for tap, weight in enumerate(weights, start=-1):
        np.add.at(basis, (np.arange(length), np.clip(knot + tap, 0, points - 1)), weight / 6)
    basis.flags.writeable = False
    return basis


def move_image(image: NDArray[Any], axes: tuple[int, int], place: Placement, fill: str, cval: float) -> NDArray[Any]:
    """The image at its new place, bilinear, in its own dtype; exact copies where pixels fall on pixels.

    Any number of axes, of which `axes` (rows, columns) are spatial. `fill` and `cval` say what lies outside.
    """
    if image.dtype.kind not in "biufc":
        raise TypeError(f"an image of dtype {image.dtype} cannot be transformed; give numbers or booleans")
    if place.is_aligned and place.amount:
        working = _working(image.dtype)
        image = _in_dtype(image.astype(working) + working.type(place.amount), image.dtype)
    return _moved(image, axes, place, fill, cval, _blend)


def move_mask(mask: NDArray[Any], axes: tuple[int, int], place: Placement, fill: str, cval: float) -> NDArray[Any]:
    """The mask at its new place, each pixel a copy of the nearest one; any dtype, no new values."""
    return _moved(mask, axes, place, fill, cval, _pick)


def _moved(
    array: NDArray[Any], axes: tuple[int, int], place: Placement, fill: str, cval: float, by_pixel: Any
) -> NDArray[Any]:
    """`array` by whole rows and columns, or else as a table of pixels by everything else, (height * width, k)."""
    if fill == "constant" and array.dtype.kind in "biu":
        is_bool = array.dtype.kind == "b"
        low, high = (0, 1) if is_bool else (np.iinfo(array.dtype).min, np.iinfo(array.dtype).max)
        if not (low <= cval <= high and cval == int(cval)):
            raise ValueError(f"cval={cval!r} is not a value of dtype {array.dtype}: whole numbers {low} to {high}")
    if place.is_aligned:
        return _gather(array, axes, place, fill, cval)
    table = np.moveaxis(array, axes, (0, 1))
    rest = table.shape[2:]
    moved = by_pixel(table.reshape(place.frame[0] * place.frame[1], math.prod(rest)), place, fill, cval)
    return np.ascontiguousarray(np.moveaxis(moved.reshape(*place.size, *rest), (0, 1), axes))


def _gather(array: NDArray[Any], axes: tuple[int, int], place: Placement, fill: str, cval: Any) -> NDArray[Any]:
    """Whole rows and columns, copied: nothing is computed, so nothing is rounded."""
    a, b, c, d = place.linear
    turned = a == 0
    along = [np.arange(n, dtype=np.float64) + o for n, o in zip(place.size, place.origin, strict=True)]
    lines = (b * along[1], c * along[0]) if turned else (a * along[0], d * along[1])
    for axis, line, start, length in zip(axes, lines, place.offset, place.frame, strict=True):
        index = (line + start).astype(np.int64)
        array = array.take(folded(index, length, fill), axis=axis)
        if fill == "constant":
            array[(slice(None),) * axis + ((index < 0) | (index >= length),)] = cval
    return np.ascontiguousarray(array.swapaxes(*axes)) if turned else array


def _pick(flat: NDArray[Any], place: Placement, fill: str, cval: Any) -> NDArray[Any]:
    height, width = place.frame
    out = np.empty((place.size[0] * place.size[1], flat.shape[1]), flat.dtype)
    for band, y, x in place.bands():
        rows, columns = np.floor(y + 0.5).astype(np.int64), np.floor(x + 0.5).astype(np.int64)
        out[band] = flat[folded(rows, height, fill) * width + folded(columns, width, fill)]
        if fill == "constant":
            outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
            out[band][outside] = cval
    return out


def _blend(flat: NDArray[Any], place: Placement, fill: str, cval: Any) -> NDArray[Any]:
    """Bilinear interpolation as one sparse matrix, four weights a row, for all channels and frames."""
    dtype = flat.dtype
    values = np.ascontiguousarray(flat.astype(_working(dtype)))
    values += values.dtype.type(place.amount)
    parts = values.view(values.real.dtype) if dtype.kind == "c" else values
    out = np.empty((place.size[0] * place.size[1], flat.shape[1]), dtype)
    height, width = place.frame
    for band, y, x in place.bands():
        rows, down = _taps(y, height, fill, parts.dtype)
        columns, across = _taps(x, width, fill, parts.dtype)
        index = np.empty((len(y), 4), np.int32 if height * width < 2**31 else np.int64)
        weight = np.empty((len(y), 4), parts.dtype)
        for k in range(4):
            np.add(rows[k // 2] * width, columns[k % 2], out=index[:, k], casting="same_kind")
            np.multiply(down[k // 2], across[k % 2], out=weight[:, k])
        ends = np.arange(0, 4 * len(y) + 1, 4, dtype=index.dtype)
        matrix = csr_array((weight.ravel(), index.ravel(), ends), shape=(len(y), height * width))
        moved = (matrix @ parts).view(values.dtype)
        if fill == "constant":  # for the weight that fell outside
            moved += (1 - (down[0] + down[1]) * (across[0] + across[1]))[:, None] * values.dtype.type(cval)
        out[band] = _in_dtype(moved, dtype)
    return out


def _taps(
    place: NDArray[np.float64], length: int, fill: str, dtype: np.dtype[Any]
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The two pixels on either side along one axis, and their weights."""
    floor = np.floor(place)
    after = (place - floor).astype(dtype)
    first = floor.astype(np.int64)
    indices, weights = [first, first + 1], [1 - after, after]
    if fill == "constant":
        weights = [w * ((i >= 0) & (i < length)) for i, w in zip(indices, weights, strict=True)]
    return [folded(i, length, fill) for i in indices], weights


def _working(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float32 where it holds every value exactly, else float64; floats and complex numbers stay."""
    return np.result_type(dtype, np.float32)


def _in_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rounded (ties to even) and saturated to an integer dtype; booleans are true from one half."""
    if dtype.kind == "b":
        return np.asarray(values >= 0.5)
    if dtype.kind not in "iu":
        return values.astype(dtype, copy=False)
    info = np.iinfo(dtype)
    whole = np.rint(values)
    if dtype.itemsize < 8:
        return np.asarray(np.clip(whole, info.min, info.max).astype(dtype))
    # The largest 64-bit integers are no float64, so they are put in by hand.
    high = whole >= float(info.max)
    result = np.where(high, 0, np.maximum(whole, float(info.min))).astype(dtype)
    result[high] = info.max
    return result
