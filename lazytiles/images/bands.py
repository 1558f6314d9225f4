"""Which samples of an image are read, and as what: bands in any order, red, green and blue, or gray."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import RegionError
from lazytiles.images.page import Page
from lazytiles.images.resample import to_integers

Bands = Sequence[int] | str | None
LUMA = (299, 587, 114)  # thousandths of red, green and blue: ITU-R BT.601, as Pillow and OpenCV weigh them


def to_gray(block: NDArray[Any]) -> NDArray[Any]:
    """Red, green and blue, (..., samples), as one luminance band (ITU-R BT.601), dtype kept; one band stays what it is.

    `bands_read` has let the page pass; a fourth sample, opacity, is left out.
    """
    if block.shape[-1] <= 2:
        return block[..., :1]
    # Pixel by pixel: a matrix product rounds in another order in a block of another size.
    whole = block.dtype.kind in "ui"
    if whole and block.dtype.itemsize <= 4:  # exact
        red, green, blue = (block[..., k] * np.int64(weight) for k, weight in enumerate(LUMA))
        return ((red + green + blue + 500) // 1000).astype(block.dtype)[..., None]
    with np.errstate(invalid="ignore"):  # infinities
        parts = [block[..., k] * np.float64(weight / 1000) for k, weight in enumerate(LUMA)]
        luminance: NDArray[Any] = parts[0] + parts[1] + parts[2]
    gray = to_integers(luminance, block.dtype) if whole else luminance.astype(block.dtype)
    return gray[..., None]


def bands_read(page: Page, bands: tuple[int, ...] | str | None, gray: bool) -> tuple[int, ...]:
    """Which samples of a page become bands, in their order; images of one array must agree in them.

    The bands are as `asked_bands` gives them: negative ones from the last; ``"rgb"`` for red, green and blue; None for
    all. With `gray` they become one luminance band, which is 0. A page without such samples is a RegionError that says
    what it has.
    """
    samples = page.shape[2]
    if gray or bands == "rgb":
        asked = "gray=True" if gray else 'bands="rgb"'
        if page.palette or page.is_ink:
            what = "a palette's indices" if page.palette else "amounts of ink (CMYK)"
            raise RegionError(f"{page}: {asked} makes no sense of {what}; convert it to colours")
        has_opacity = samples == 2 and hasattr(page.codec, "format")  # the second of a picture's two samples
        if samples not in (1, 3, 4) and not has_opacity:
            raise RegionError(f"{page}: {asked} needs images of 1, 3 or 4 samples, not {samples}; choose by bands=[k]")
        if gray and samples > 1 and page.dtype.kind not in "uif":
            raise RegionError(f"{page}: gray=True makes no sense of {page.dtype} samples; choose one by bands=[k]")
        return (0,) if gray else (0, 1, 2)
    if bands is None or isinstance(bands, str):
        return tuple(range(samples))
    if not bands or any(not -samples <= band < samples for band in bands):
        raise RegionError(f"{page}: bands {list(bands)} asked for; it has bands 0 to {samples - 1}")
    return tuple(band % samples for band in bands)


def check_resample(page: Page, method: str | None) -> None:
    """Refuse to resample a palette's indices, booleans or complex numbers by a method other than ``"nearest"``."""
    if method in (None, "nearest") or (page.dtype.kind in "uif" and not page.palette):
        return
    what = "a palette's indices" if page.palette else f"{page.dtype} samples"
    raise RegionError(f"{page}: {method} resampling of {what} makes no sense; pass resample='nearest'")


def to_rgb(block: NDArray[Any]) -> NDArray[Any]:
    """Red, green and blue of pixels that `bands_read` lets pass: gray repeated, a fourth sample left out."""
    return block[..., :1].repeat(3, axis=-1) if block.shape[-1] <= 2 else block[..., :3]


def asked_bands(bands: Any) -> tuple[int, ...] | str | None:
    """The given bands as plain integers, ``"rgb"`` or None, or a ValueError; True and False are no bands."""
    if bands is None or (isinstance(bands, str) and bands == "rgb"):
        return bands
    try:
        if not any(isinstance(band, bool | np.bool_) for band in bands):
            return tuple(operator.index(band) for band in bands)
    except TypeError:
        pass
    raise ValueError(f'bands are a list of integers, such as [0, 2], not {bands!r}; or "rgb"')
