"""`TileForm`: what every tile of an array looks like, how pixels of images make it, and of which pages these are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lazytiles.errors import RegionError
from lazytiles.images import Page, Region
from lazytiles.indexing import size_words


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes before rows and columns that images of tiles have."""

    letters: str = ""  # T and Z as far as they are there
    lead: tuple[int, ...] = ()  # their lengths
    channels: int = 1  # pages that are bands of one tile

    @classmethod
    def of(cls, region: Region) -> Layout:
        """That of a region; refused where several things lie along an axis that is no time, depth or channel."""
        sizes = dict(zip(region.axes, region.lead, strict=False))
        if odd := [letter for letter, size in sizes.items() if letter not in "TZC" and size > 1]:
            raise RegionError(
                f"{region.path}: is {size_words(region.shape)}, {region.axes}: say by axes= what its axis {odd[0]} is, "
                'T (frames), Z (slices) or C (channels), such as axes="CYX"; or take one page by page=k'
            )
        letters = "".join(letter for letter in "TZ" if letter in sizes)
        return cls(letters, tuple(sizes[letter] for letter in letters), sizes.get("C", 1))

    @property
    def planes(self) -> int:
        """Tiles' planes of rows and columns in one region."""
        return math.prod(self.lead)

    def pages(self, region: Region) -> list[Page]:
        """The pages of a region plane by plane, the bands of each together; refused where its axes are others."""
        if Layout.of(region) != self:
            mine = f"{region.axes} of {size_words(region.shape)}"
            wanted = ", ".join(f"{n} along {letter}" for letter, n in zip(self.letters, self.lead, strict=True))
            raise RegionError(
                f"{region.path}: is {mine}; the first image has {wanted or 'one plane'} and {self.channels} channels: "
                "images of one array have the same axes"
            )
        letters = region.axes[: len(region.lead)]
        every = np.arange(len(region.pages)).reshape(region.lead)
        order = every.transpose([letters.index(one) for one in sorted(letters, key="TZC".find)])  # others: length 1
        return [region.pages[k] for k in order.ravel().tolist()]


ONE_PAGE = Layout()


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
