"""Windows of one size to another: the nearest neighbours that Pillow takes, and its smooth kernels.

When it reduces, a smooth kernel is as wide as what it replaces, as Pillow does it. The dtype stays:
integers are rounded to the nearest and a bicubic overshoot ends at the limits of the dtype.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

METHODS = ("nearest", "bilinear", "bicubic", "area")
_KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX}

_IMPULSES = 512  # unit impulses resized at once


def resize(image: NDArray[Any], size: tuple[int, int], method: str) -> NDArray[Any]:
    """An image at another size, its dtype kept.

    Parameters
    ----------
    image : array, shape (height, width, bands)
    size : (height, width), pixels
    method : ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"area"``

    Returns
    -------
    array, shape (*size, bands)

    Raises
    ------
    ValueError : an unknown method, or a smooth one for booleans or complex numbers

    >>> resize(np.arange(4, dtype="u2").reshape(1, 4, 1), (1, 2), "area").ravel()
    array([1, 3], dtype=uint16)
    """
    if method not in METHODS:
        raise ValueError(f"resample must be one of {', '.join(METHODS)}, not {method!r}")
    if image.shape[:2] == tuple(size):
        return image
    if method == "nearest":
        rows, columns = (_nearest(n, m) for n, m in zip(image.shape, size, strict=False))
        near: NDArray[Any] = image[rows[:, None], columns]
        return near
    if image.dtype.kind not in "uif":
        raise ValueError(f"{method} resampling of {image.dtype} makes no sense; pass resample='nearest'")
    if image.dtype == np.uint8:
        parts = [image] if image.shape[2] == 3 else [image[..., band] for band in range(image.shape[2])]
        pixels = (Image.fromarray(np.ascontiguousarray(part)).resize(size[::-1], _KERNELS[method]) for part in parts)
        arrays = [np.asarray(each) for each in pixels]
        return arrays[0] if arrays[0].ndim == 3 else np.stack(arrays, axis=-1)
    numbers: NDArray[Any] = image
    with np.errstate(invalid="ignore", over="ignore"):  # of what is not finite, and of bicubic overshoots
        for axis in (0, 1):
            if numbers.shape[axis] != size[axis]:
                numbers = _resize_axis(numbers, axis, size[axis], method)
        if image.dtype.kind == "f":
            return numbers.astype(image.dtype)
    return to_integers(numbers, image.dtype)


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


def _resize_axis(image: NDArray[Any], axis: int, wanted: int, method: str) -> NDArray[np.float64]:
    """The image at another length of one axis, unrounded; summed pixel by pixel, so that it is the same everywhere."""
    pixels, weights = _taps(image.shape[axis], wanted, method)
    total = np.zeros((*image.shape[:axis], wanted, *image.shape[axis + 1 :]))
    for places, weight in zip(pixels, weights, strict=True):
        # Along rows a weight stands at every band, so that NumPy walks a row in one go.
        spread = weight[:, None].repeat(image.shape[2], 1) if axis else weight[:, None, None]
        part = image.take(places, axis) * spread
        total += part if weight.all() else np.where(spread, part, 0)  # what is not finite has no zero part
    return total


@lru_cache(maxsize=64)
def _taps(length: int, wanted: int, method: str) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Which of `length` pixels give to each of `wanted`, and how much: Pillow's kernel, read off unit impulses.

    Returns
    -------
    arrays of shape (most pixels that give to one, wanted); where fewer do, others stand there and give nothing
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
