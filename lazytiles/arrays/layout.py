"""Which pages of a region are the frames, the slices and the bands of its tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
