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
_KERNELS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}

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
        return _resize_bytes(image, size, method)
    return _resize_numbers(image, size, method)


@lru_cache(maxsize=256)
@lru_cache(maxsize=256)
def _nearest(length: int, wanted: int) -> NDArray[np.intp]:
    """Which of `length` pixels stands at each of `wanted` places: Pillow's choice, ties included."""
    numbers = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    places: NDArray[np.intp] = np.asarray(numbers.resize((wanted, 1), Image.Resampling.NEAREST))[0].astype(np.intp)
    places.flags.writeable = False
    return places


def _resize_bytes(image: NDArray[Any], size: tuple[int, int], method: str) -> NDArray[Any]:
    bands = image.shape[2]
    if bands == 3:
        pixels = Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], _KERNELS[method])
        return np.asarray(pixels)
    out = np.empty((*size, bands), np.uint8)
    for band in range(bands):
        pixels = Image.fromarray(np.ascontiguousarray(image[..., band])).resize(size[::-1], _KERNELS[method])
        out[..., band] = np.asarray(pixels)
    return out


def _resize_numbers(image: NDArray[Any], size: tuple[int, int], method: str) -> NDArray[Any]:
    down = _weights(image.shape[0], size[0], method)
    across = _weights(image.shape[1], size[1], method)
    rows = down @ image.reshape(image.shape[0], -1).astype(np.float64)
    numbers = np.matmul(across, rows.reshape(size[0], image.shape[1], image.shape[2]))
    if image.dtype.kind == "f":
        exact: NDArray[Any] = numbers.astype(image.dtype)
        return exact
    limits = np.iinfo(image.dtype)
    rounded = np.floor(numbers + 0.5)
    # Between two exactly held bounds every rounded value is held exactly too; the upper bound itself may not be.
    rounded = np.maximum(rounded, float(limits.min))
    top = rounded >= float(limits.max)
    result: NDArray[Any] = np.where(top, 0, rounded).astype(image.dtype)
    result[top] = limits.max
    return result


@lru_cache(maxsize=64)
def _weights(length: int, wanted: int, method: str) -> NDArray[np.float64]:
    """How much each of `length` pixels gives to each of `wanted`: Pillow's kernel, read off unit impulses."""
    if length == wanted:
        return np.eye(length)
    weights = np.empty((wanted, length))
    for start in range(0, length, _IMPULSES):
        impulses = np.eye(length, min(_IMPULSES, length - start), -start, dtype=np.float32)
        pixels = Image.fromarray(impulses).resize((impulses.shape[1], wanted), _KERNELS[method])
        weights[:, start : start + impulses.shape[1]] = np.asarray(pixels)
    weights /= weights.sum(axis=1, keepdims=True)
    weights.flags.writeable = False
    return weights
