"""Windows of one size to another: the nearest neighbours that Pillow takes, and its smooth kernels.

When it reduces, a smooth kernel is as wide as what it replaces, as Pillow does it. The dtype stays:
integers are rounded to the nearest and a bicubic overshoot ends at the limits of the dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

METHODS = ("nearest", "bilinear", "bicubic", "area")
_KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX}

_IMPULSES = 512  # unit impulses resized at once
_STEP = 2.0**-20  # pixels to which places are rounded, so that a pixel is the same in blocks that begin elsewhere
_TIE = 1e-6  # pixels by which a place may miss the border that it lies on
_LEAST = 1e-6  # of its weights that must lie on valid pixels, for a pixel to be valid

Extent: TypeAlias = tuple[float, float, float, float]


def resize(
    image: NDArray[Any],
    size: tuple[int, int],
    method: str,
    *,
    box: Extent | None = None,
    valid: NDArray[np.bool_] | None = None,
    empty: float = 0,
) -> NDArray[Any]:
    """An image at another size, its dtype kept.

    Parameters
    ----------
    image : array, shape (height, width, bands)
    size : (height, width), pixels
    method : ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"area"``
    box : (y0, x0, y1, x1), pixels, the part that becomes `size`; what lies around it serves the kernels. None for all
    valid : array (height, width, bands), which pixels may be mixed; None for all
    empty : what a pixel holds that only invalid ones give to

    Returns
    -------
    array, shape (*size, bands)

    Raises
    ------
    ValueError : an unknown method, or a smooth one for booleans or complex numbers

    >>> resize(np.arange(4, dtype="u2").reshape(1, 4, 1), (1, 2), "area").ravel()
    array([1, 3], dtype=uint16)
    >>> resize(np.arange(4, dtype="u2").reshape(1, 4, 1), (1, 2), "area", box=(0, 1, 1, 3)).ravel()
    array([1, 2], dtype=uint16)
    """
    if method not in METHODS:
        raise ValueError(f"resample must be one of {', '.join(METHODS)}, not {method!r}")
    if box is None and image.shape[:2] == tuple(size):
        return image
    if method == "nearest":
        rows, columns = _nearest_places(image.shape, size, box)
        near: NDArray[Any] = image[rows[:, None], columns]
        return near
    if image.dtype.kind not in "uif":
        raise ValueError(f"{method} resampling of {image.dtype} makes no sense; pass resample='nearest'")
    if valid is not None and valid.all():
        valid = None
    # Pillow takes the ends of a box as 32-bit floats, which is too little where a kernel ends abruptly.
    is_inside = box is None or (min(box[:2]) >= 0 and box[2] <= image.shape[0] and box[3] <= image.shape[1])
    if image.dtype == np.uint8 and valid is None and is_inside and (box is None or method != "area"):
        parts = [image] if image.shape[2] == 3 else [image[..., band] for band in range(image.shape[2])]
        part_box = None if box is None else (box[1], box[0], box[3], box[2])
        pixels = (
            Image.fromarray(np.ascontiguousarray(part)).resize(size[::-1], _KERNELS[method], part_box) for part in parts
        )
        arrays = [np.asarray(each) for each in pixels]
        return arrays[0] if arrays[0].ndim == 3 else np.stack(arrays, axis=-1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # of what is not finite, and of overshoots
        if valid is None:
            numbers = _resized(image, size, method, box)
        else:
            numbers, weights = _resized_valid(image, valid, size, method, box)
            if method == "bicubic":  # whose weights, some of them negative, sum up to anything where pixels are missing
                part = np.abs(weights - 1) > _LEAST
                others, weights = _resized_valid(image, valid, size, "bilinear", box)
                numbers = np.where(part, others, numbers)
            numbers[~(weights > _LEAST)] = empty
        if image.dtype.kind == "f":
            return numbers.astype(image.dtype)
    return to_integers(numbers, image.dtype)


def resize_valid(
    valid: NDArray[np.bool_], size: tuple[int, int], method: str, *, box: Extent | None = None
) -> NDArray[np.bool_]:
    """Which pixels of `resize` valid ones give to, shape (*size, bands)."""
    if method == "nearest" or (box is None and valid.shape[:2] == tuple(size)):
        return resize(valid, size, "nearest", box=box)
    method = "bilinear" if method == "bicubic" else method
    there: NDArray[np.bool_] = _resized(valid, size, method, box) > _LEAST
    return there


def around(box: Extent, size: tuple[int, int], method: str, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of an image that `resize` takes for a box of it: the margin of its kernel ends at the image.

    >>> around((8.5, 0.5, 12.5, 4.5), (4, 4), "bilinear", (64, 64))
    (8, 0, 13, 5)
    """
    ends: list[tuple[int, int]] = []
    for start, stop, wanted, length in zip(box[:2], box[2:], size, shape, strict=True):
        scale = (stop - start) / wanted
        first, last = start + scale / 2, stop - scale / 2  # the centres of the outer pixels
        reach = 0.0 if method == "nearest" else _SUPPORTS[method] * max(scale, 1.0)
        low, high = int(np.floor(first - reach)), int(np.ceil(last + reach))
        inner, outer = int(np.floor(first + _TIE)), int(np.floor(last + _TIE))
        ends.append((max(low, min(0, inner)), min(max(high, outer + 1), max(length, outer + 1))))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _nearest_places(shape: tuple[int, ...], size: tuple[int, int], box: Extent | None) -> list[NDArray[np.intp]]:
    """The row and the column of an image that stand at each of `size` places."""
    if box is None:
        return [_nearest(shape[axis], size[axis]) for axis in (0, 1)]
    lines = [np.floor(_centres(box[axis], box[axis + 2], size[axis]) + _TIE) for axis in (0, 1)]
    return [np.clip(line, 0, length - 1).astype(np.intp) for line, length in zip(lines, shape, strict=False)]


def _centres(start: float, stop: float, wanted: int) -> NDArray[np.float64]:
    """Where the centres of `wanted` pixels lie that share an extent."""
    places: NDArray[np.float64] = np.round((start + (np.arange(wanted) + 0.5) * ((stop - start) / wanted)) / _STEP)
    return places * _STEP


def _resized(image: NDArray[Any], size: tuple[int, int], method: str, box: Extent | None) -> NDArray[Any]:
    """Both axes at their new length, unrounded; summed pixel by pixel, so that it is the same everywhere."""
    for axis, wanted in enumerate(size):
        if box is not None:
            pixels, weights = _taps_of(image.shape[axis], box[axis], box[axis + 2], wanted, method)
        elif image.shape[axis] != wanted:
            pixels, weights = _taps(image.shape[axis], wanted, method)
        else:
            continue
        total = np.zeros((*image.shape[:axis], wanted, *image.shape[axis + 1 :]))
        for places, weight in zip(pixels, weights, strict=True):
            # Along rows a weight stands at every band, so that NumPy walks a row in one go.
            spread = weight[:, None].repeat(image.shape[2], 1) if axis else weight[:, None, None]
            part = image.take(places, axis) * spread
            total += part if weight.all() else np.where(spread, part, 0)  # what is not finite has no zero part
        image = total
    return image


@lru_cache(maxsize=256)
def _nearest(length: int, wanted: int) -> NDArray[np.intp]:
    """Which of `length` pixels stands at each of `wanted` places: Pillow's choice, ties included."""
    numbers = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    places: NDArray[np.intp] = np.asarray(numbers.resize((wanted, 1), Image.Resampling.NEAREST))[0].astype(np.intp)
    places.flags.writeable = False
    return places


def to_integers(numbers: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Floats as integers of a dtype, rounded to the nearest, those beyond its limits set to them.

    >>> to_integers(np.array([-0.6, 0.5, 2.0**64]), np.dtype("uint64"))
    array([                   0,                    1, 18446744073709551615],
          dtype=uint64)
    """
    limits = np.iinfo(dtype)
    rounded = np.floor(numbers + 0.5)
    # Between two exactly held bounds every rounded value is held exactly too; the upper bound itself may not be.
    rounded = np.maximum(rounded, float(limits.min))
    top = rounded >= float(limits.max)
    result: NDArray[Any] = np.where(top, 0, rounded).astype(dtype)
    result[top] = limits.max
    return result


def _resized_valid(
    image: NDArray[Any], valid: NDArray[np.bool_], size: tuple[int, int], method: str, box: Extent | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same of valid pixels alone, as gdalwarp does it; and how much of the kernel's weight lies on them."""
    weights = _resized(valid, size, method, box)
    return _resized(np.where(valid, image, image.dtype.type(0)), size, method, box) / weights, weights


@lru_cache(maxsize=64)
def _taps(length: int, wanted: int, method: str) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Which of `length` pixels give to each of `wanted`, and how much: Pillow's kernel, read off unit impulses.

    Of shape (most pixels that give to one, wanted); where fewer do, others stand there and give nothing.
    """
    weights = np.empty((wanted, length))
    for start in range(0, length, _IMPULSES):
        impulses = np.eye(length, min(_IMPULSES, length - start), -start, dtype=np.float32)
        pixels = Image.fromarray(impulses).resize((impulses.shape[1], wanted), _KERNELS[method])
        weights[:, start : start + impulses.shape[1]] = np.asarray(pixels)
    weights /= weights.sum(axis=1, keepdims=True)
    most = int(np.count_nonzero(weights, axis=1).max())
    places = np.argsort(weights == 0, axis=1, kind="stable")[:, :most]
    return places.T.copy(), np.take_along_axis(weights, places, axis=1).T.copy()


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5."""
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))


_SUPPORTS = {"bilinear": 1.0, "bicubic": 2.0, "area": 0.5}
_WEIGHTS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "bilinear": lambda x: np.maximum(1 - x, 0),
    "bicubic": _cubic,
    "area": lambda x: (x <= 0.5).astype(np.float64),
}


@lru_cache(maxsize=256)
def _taps_of(
    length: int, start: float, stop: float, wanted: int, method: str
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """As `_taps`, for the part of an axis from `start` to `stop`; the kernels of Pillow, worked out."""
    scale = max(1.0, float(np.round((stop - start) / wanted / _STEP) * _STEP))
    reach, centres = _SUPPORTS[method] * scale, np.minimum(_centres(start, stop, wanted), length - _TIE)
    first = np.floor(centres - reach + 0.5).astype(np.intp)
    places = first + np.arange(int(np.ceil(2 * reach)) + 1)[:, None]
    weights = _WEIGHTS[method](np.abs(places + 0.5 - centres) / scale)
    weights[(places < 0) | (places >= length) | (places >= np.floor(centres + reach + 0.5))] = 0
    weights /= weights.sum(axis=0)
    used = (weights != 0).any(axis=1)
    return np.clip(places[used], 0, length - 1), weights[used]
