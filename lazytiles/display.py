"""Pixels for the eye: contrast stretched, small, and as PNG text; no plotting library."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

CHEAP_BYTES = 16 * 2**20
_VIRIDIS = np.array(
    [
        (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142),
        (31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37),
    ]
)  # fmt: skip


def stretched(
    pixels: ArrayLike, *, bands: Sequence[int] | None = None, limits: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Pixels of any dtype, (..., H, W) of one band or (..., H, W, C), as uint8 (..., H, W, 3) that show contrast.

    Three `bands` are shown, or one; by default the first three, or the first of fewer. `limits` are the values shown as
    black and white; by default the 2nd and 98th percentile of each band.

    >>> stretched(np.array([[[0.0], [1.0]]]), limits=(0, 1)).tolist()
    [[[0, 0, 0], [255, 255, 255]]]
    """
    array = np.asarray(pixels)
    chosen = list(bands) if bands is not None else list(range(3 if array.shape[-1] >= 3 else 1))
    if len(chosen) not in (1, 3):
        raise ValueError(f"bands {chosen}: one band, or three as red, green and blue")
    values = np.real(array[..., chosen]).astype(np.float64)
    finite = np.isfinite(values)
    # Quartered, so that the range of the largest floats, and a step within it, are floats too.
    values = np.where(finite, values, 0) / 4
    limits = None if limits is None else (limits[0] / 4, limits[1] / 4)
    shown = np.zeros(values.shape, np.uint8)
    for k in range(len(chosen)):
        known = values[..., k][finite[..., k]]
        if not known.size:
            continue
        low, high = np.percentile(known, [2, 98]) if limits is None else limits
        if high <= low:
            low, high = float(known.min()), float(known.max())
        scaled = (values[..., k] - low) / (high - low if high > low else 1)
        shown[..., k] = np.where(finite[..., k], np.clip(scaled, 0, 1) * 255, 0).astype(np.uint8)
    return np.repeat(shown, 3, axis=-1) if len(chosen) == 1 else shown


def png(pixels: NDArray[np.uint8]) -> str:
    """An image as the text of a data address, to stand inside a page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def colours(values: ArrayLike) -> list[str]:
    """A colour for each number, from dark for the least to bright for the most; grey for NaN.

    >>> colours([0, 1, float("nan")])
    ['#440154', '#fde725', '#888888']
    """
    numbers = np.asarray(values, np.float64)
    finite = np.isfinite(numbers)
    low, high = (numbers[finite].min(), numbers[finite].max()) if finite.any() else (0.0, 1.0)
    place = np.clip(np.where(finite, numbers - low, 0) / (high - low if high > low else 1), 0, 1)
    stops = np.linspace(0, 1, len(_VIRIDIS))
    mixed = np.stack([np.interp(place, stops, _VIRIDIS[:, k]) for k in range(3)], axis=-1).round().astype(int)
    return [
        "#{:02x}{:02x}{:02x}".format(*rgb) if known else "#888888"
        for rgb, known in zip(mixed.tolist(), finite.tolist(), strict=True)
    ]


def side_by_side(samples: NDArray[Any], columns: int, gap: int = 2) -> tuple[NDArray[Any], list[tuple[int, int]]]:
    """Samples on one sheet, so many columns of them in a row, the frames of each beside each other.

    Of samples uint8 (n, H, W, 3) or (n, T, H, W, 3) the sheet, uint8 (h, w, 3), and (top, left) of each. There are
    `gap` pixels between frames; four times as many, white, between samples.
    """
    if samples.ndim == 4:
        samples = samples[:, None]
    n, frames, height, width, _ = samples.shape
    wide = frames * width + gap * (frames - 1)
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 4 * gap), columns * (wide + 4 * gap), 3), 255, np.uint8)
    places = []
    for k, sample in enumerate(samples):
        top, left = k // columns * (height + 4 * gap) + 2 * gap, k % columns * (wide + 4 * gap) + 2 * gap
        places.append((top, left))
        for frame, pixels in enumerate(sample):
            start = left + frame * (width + gap)
            sheet[top : top + height, start : start + width] = pixels
    return sheet, places


def plural(count: int, word: str) -> str:
    """A number and its word.

    >>> plural(1, "problem"), plural(1200, "problem")
    ('1 problem', '1,200 problems')
    """
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
