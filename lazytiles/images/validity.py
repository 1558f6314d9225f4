"""Which pixels of an image hold something (stand-in until the real one lands)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def valid_bands(page: Any, pixels: NDArray[Any], bands: Any, mask: Any = None) -> NDArray[np.bool_]:
    """Band by band."""
    valid = np.ones(pixels.shape, np.bool_)
    if page.nodata is not None and page.nodata == page.nodata:
        valid &= pixels != page.nodata
    if pixels.dtype.kind == "f":
        valid &= ~np.isnan(pixels)
    if mask is not None:
        valid &= np.asarray(mask).reshape(*pixels.shape[:2], -1)[..., :1] > 0
    return valid


def has_invalid(page: Any) -> bool:
    """Whether a page may have pixels that are not valid though they are numbers, by its tags."""
    return page.nodata is not None or page.mask is not None or page.alpha is not None


def may_be_invalid(page: Any) -> bool:
    """Whether any pixel of a page may be invalid, by its tags."""
    return has_invalid(page) or page.dtype.kind in "fc"


def judged(windows: Any, pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Of windows that are read."""
    return valid_bands(windows.pages[0], pixels, windows.bands)


def scaled(windows: Any, pixels: NDArray[Any]) -> NDArray[np.float32]:
    """What numbers mean."""
    scale, offset = windows.pages[0].scale_offset or ((1.0,), (0.0,))
    out = (pixels * np.array(scale) + np.array(offset)).astype(np.float32)
    out[~judged(windows, pixels)] = np.nan
    return out
