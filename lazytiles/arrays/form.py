"""`TileForm`: what every tile of an array looks like, and how it is made of the pixels of its images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lazytiles.arrays.layout import ONE_PAGE, Layout


@dataclass(frozen=True, slots=True)
class TileForm:
    """What every tile of an array looks like."""

    size: tuple[int, int]  # (height, width), pixels, of a tile
    samples: int  # bands of a tile
    asked: tuple[int, ...] | str | None  # which bands were asked for, as `bands_read` takes them
    dtype: np.dtype[Any]  # of a tile
    bands: tuple[int, ...] | None = None  # which samples of the images are read; None for all
    gray: bool = False  # whether they become one luminance band
    pad: str | None = None  # a NumPy pad mode for windows that leave their region, or None to refuse them
    resample: str | None = None  # how windows of another size are brought to `size`; None where none has one
    method: str = "bilinear"  # how pixels of an image on another grid than the tile's are brought to it
    segment: tuple[int, int] | None = None  # (height, width) of the segments of the images, as far as is known
    pixels: np.dtype[Any] | None = None  # the dtype of an image, where that is another one
    casts: bool = False  # whether images of other dtypes are cast to it
    layout: Layout = ONE_PAGE  # the axes of an image before its rows and columns
    files: int = 1  # how many files make a frame
    counts: tuple[int, ...] = ()  # where a tile is made of several files or channels, the samples of each
    # Which of these are read, and which bands of the tile they are.
    parts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    fill: tuple[float, ...] = (0,)  # what padding by "constant" and missing frames hold, band by band
    scaled: bool = False  # whether numbers become what they mean, by the scale and offset of their file; NaN: not valid
    area: int = 0  # about how many pixels a tile is made of, where windows do not say it
    # "bands" for tiles that say which of their values are valid; "any", without an axis of bands: whether any band is.
    valid: str = ""

    @property
    def is_mixed(self) -> bool:
        """Whether bands are made of all samples of an image, which images may have in different numbers."""
        return self.gray or self.asked == "rgb"

    @property
    def reads_all(self) -> bool:
        """Whether all samples of each page are read, whichever of them become bands."""
        return self.is_mixed or bool(self.parts)

    @property
    def is_made(self) -> bool:
        """Whether no tile is nothing but pixels of one image."""
        return self.reads_all or self.scaled or bool(self.valid)

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of a tile of one frame."""
        return self.size if self.valid == "any" else (*self.size, self.samples)

    def of_validity(self, kind: str) -> TileForm:
        """The form of the tiles that say which pixels of tiles of this form are valid; kinds as of `valid`."""
        stored = self.pixels or self.dtype
        return replace(self, dtype=np.dtype(np.bool_), pixels=stored, valid=kind, fill=(0,), scaled=False)
