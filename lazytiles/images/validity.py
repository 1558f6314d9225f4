"""Which pixels hold something: not nodata, not NaN, not transparent, not masked out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import shown
from lazytiles.images.page import Page
from lazytiles.images.plan import Windows
from lazytiles.images.reader import read_windows
from lazytiles.indexing import LazyArray, request, token

Bools = NDArray[np.bool_]

_EPSILON = 2 * np.finfo(np.float32).eps  # GDAL's ARE_REAL_EQUAL, for float64 too


def has_invalid(page: Page) -> bool:
    """Whether a page may have pixels that are not valid though they are numbers, by its tags."""
    return page.nodata is not None or page.mask is not None or page.alpha is not None


def may_be_invalid(page: Page) -> bool:
    """Whether any pixel of a page may be invalid, by its tags."""
    return page.dtype.kind in "fc" or has_invalid(page)


def mask_of(page: Page) -> tuple[Page, int] | None:
    """The page and its sample that say which pixels are valid: a mask page, or alpha; None where numbers say it."""
    if page.mask is not None:
        return page.mask, 0
    return (page, page.alpha) if page.nodata is None and page.alpha is not None else None


def valid_windows(windows: Windows) -> Bools:
    """Which samples of some windows of one size hold something, shape (n, height, width, bands), read from their pages.

    Of whole numbers without a nodata value only the mask is read, if there is one.
    """
    pages, bands = windows.pages, windows.bands
    y0, x0, y1, x1 = windows.boxes[0].tolist() if len(windows) else (0, 0, 0, 0)
    shape = (len(windows), y1 - y0, x1 - x0, pages[0].shape[2] if bands is None else len(bands))
    if all(page.dtype.kind not in "fc" and (page.nodata is None or page.mask is not None) for page in pages):
        pixels = np.broadcast_to(np.zeros((), pages[0].dtype), shape)
    else:
        pixels = read_windows(windows, shape[1:], pages[0].dtype)
    return judged(windows, pixels)


def judged(windows: Windows, pixels: NDArray[Any]) -> Bools:
    """Which samples of windows that are read already hold something, of the shape of `pixels`; masks are read here."""
    valid = np.empty(pixels.shape, np.bool_)
    for number in np.unique(windows.page).tolist():
        here = windows.page == number
        page, told = windows.pages[number], mask_of(windows.pages[number])
        mask = None
        if told is not None:
            boxes = windows.boxes[here]
            asked = Windows((told[0],), np.zeros(len(boxes), np.int64), boxes, (told[1],))
            mask = read_windows(asked, (*pixels.shape[1:3], 1), told[0].dtype)[..., 0]
        valid[here] = _valid_samples(page, pixels[here], windows.bands, mask)
    return valid


def scaled(windows: Windows, pixels: NDArray[Any]) -> NDArray[np.float32]:
    """What stored numbers mean, by their file's scale and offset: float32, NaN where they mean nothing."""
    out = np.empty(pixels.shape, np.float32)
    for number in np.unique(windows.page).tolist():
        here = windows.page == number
        scales, offsets = windows.pages[number].scale_offset or ((1.0,), (0.0,))
        bands = slice(None) if windows.bands is None or len(scales) == 1 else list(windows.bands)
        out[here] = pixels[here].astype(np.float64) * np.array(scales)[bands] + np.array(offsets)[bands]
    out[~judged(windows, pixels)] = np.nan
    return out


def _valid_samples(page: Page, pixels: NDArray[Any], bands: tuple[int, ...] | None, mask: Any) -> Bools:
    """Which samples hold something, by the first that the page has: a mask (above 0), nodata, alpha; never NaN."""
    valid: Bools = np.ones(pixels.shape, np.bool_) if pixels.dtype.kind not in "fc" else ~np.isnan(pixels)
    if mask is not None:
        valid &= mask[..., None] > 0
    elif page.nodata is not None:
        valid &= ~_equals(pixels, page.nodata)
    elif page.alpha is not None and (bands is None or page.alpha in bands):
        place = page.alpha if bands is None else bands.index(page.alpha)
        valid &= pixels[..., place, None] > 0
    return valid


def _equals(pixels: NDArray[Any], nodata: Any) -> Bools:
    """Which numbers are nodata, of floats within the tolerance that GDAL gives one written with fewer digits."""
    same: Bools
    if pixels.dtype.kind not in "fc":
        same = pixels == nodata
        return same
    real, nodata = pixels.real, nodata.real
    if real.dtype.itemsize < 4:
        real, nodata = real.astype(np.float32), np.float32(nodata)
    with np.errstate(over="ignore", invalid="ignore"):
        same = (real == nodata) | (abs(real - nodata) < real.dtype.type(_EPSILON) * abs(real + nodata))
    return same


class Valid(LazyArray):
    """Which pixels of a region hold something, as a lazy boolean array of its rows and columns; read when asked for.

    Parameters
    ----------
    region : the `Region`, of one image or a stack of them

    Notes
    -----
    By the first of these that the file has: an internal mask page, a nodata value, an alpha sample. NaN is never valid,
    and a pixel is valid where any of the region's bands is. Any number of threads may read at once.
    """

    def __init__(self, region: Any) -> None:
        self.region = region
        self.axes = region.axes.replace("S", "")
        self.shape = region.shape[: len(self.axes)]
        self.dtype = np.dtype(np.bool_)
        self.chunks = region.chunks[: len(self.axes)]

    def __getitem__(self, key: Any) -> Any:
        lead = len(self.axes) - 2
        asked = request(key, self.shape, row_axes=lead, cells=self.chunks[lead:])
        if not all(asked.block_shape):
            return asked.finish(np.empty(asked.block_shape, np.bool_))
        return asked.finish(np.asarray(valid_windows(self.region.windows(asked)).any(axis=-1)))

    def __repr__(self) -> str:
        return f"<Valid {shown(self.region.path)!r}: {self.shape} bool>"

    def __dask_tokenize__(self) -> Any:
        return token("lazytiles.Valid", self.region)
