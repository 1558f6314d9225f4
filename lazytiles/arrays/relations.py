"""How the pixels of one image lie on those of another, and where boxes on the ground lie among them.

The *base* of a tile is the image whose whole pixels its window counts. Every other image that the tile takes pixels
of lies on it by a `Relation`: other bands, frames and masks, whatever their resolution and origin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.errors import RegionError, require
from lazytiles.images import Page, Region

_AGREE = 0.01  # pixels by which two grids that are one may differ, anywhere in an image
_NEAR = 0.01  # by which a level may be coarser than asked for, and still serve for it
_EXACT = 1e-6  # pixels by which a number of pixels that is meant to be whole may miss it


@dataclass(frozen=True, slots=True)
class Relation:
    """From pixels of the base to those of a page, rows before columns: ``page = scale * base + offset``."""

    scale: tuple[float, float]
    offset: tuple[float, float]

    def then(self, other: Relation) -> Relation:
        """This one, and from its pixels to those of another page."""
        scale = self.scale[0] * other.scale[0], self.scale[1] * other.scale[1]
        starts = zip(self.offset, other.scale, other.offset, strict=True)
        offset = [start * size + more for start, size, more in starts]
        return Relation(scale, (offset[0], offset[1]))

    def boxes(self, windows: NDArray[Any]) -> NDArray[np.float64]:
        """Windows (y0, x0, y1, x1) of the base as boxes in pixels of the page."""
        boxes: NDArray[np.float64] = windows * np.array(self.scale * 2) + np.array(self.offset * 2)
        return boxes

    def shown(self, windows: NDArray[Any], size: tuple[int, int], shape: tuple[int, ...]) -> NDArray[Any]:
        """Windows of the base on a page of that shape: integers where its pixels are those of the tile, else floats.

        Parameters
        ----------
        size : (height, width), pixels, of a tile
        """
        shift = self.shift(shape) if windows.dtype.kind != "f" else None
        if shift is not None:
            return windows + shift
        boxes = self.boxes(windows)
        whole = np.round(boxes)
        is_same = (abs(boxes - whole) <= _AGREE).all() and (whole[:, 2:] - whole[:, :2] == size).all()
        return whole.astype(np.int64) if is_same else boxes

    def shift(self, shape: tuple[int, ...]) -> Int64s | None:
        """(y, x, y, x) whole pixels, where that is all that pages of this shape differ in; else None."""
        sizes, starts = np.array(self.scale), np.array(self.offset)
        whole = np.round(starts)
        drift = np.abs(sizes - 1) * shape[:2] + np.abs(starts - whole)
        return np.tile(whole.astype(np.int64), 2) if (drift <= _AGREE).all() else None


@dataclass(frozen=True, slots=True)
class Placing:
    """What windows count, and how images lie on each other.

    Parameters
    ----------
    coordinates : ``"pixels"`` of the images, ``"base"`` for pixels of their full resolution, ``"map"`` units
    mpp : micrometres a pixel of tiles, where images are brought to one scale
    mask_scale : pixels of an image's full resolution in one of its mask's; or ``"mpp"``, as both say in micrometres
    """

    coordinates: str = "pixels"
    mpp: float | None = None
    mask_scale: float | str | None = None


SAME = Relation((1.0, 1.0), (0.0, 0.0))
Pair: TypeAlias = tuple[float, float]


def in_micrometres(page: Page) -> Pair:
    """(y, x) micrometres a pixel of a page.

    Raises
    ------
    RegionError : nothing says it
    """
    if page.mpp is None:
        raise RegionError(
            f"{page}: does not say how many micrometres a pixel is; say it by source_mpp=, a number or a column"
        )
    return page.mpp


def at_scale(region: Region, mpp: float) -> Region:
    """A region, or the coarsest of its levels that is no coarser than so many micrometres a pixel."""
    full = np.array(in_micrometres(region.pages[0])) / region.levels[region.level].downsample
    sizes = (full * level.downsample for level in region.levels)
    fine = [number for number, size in enumerate(sizes) if (size <= mpp * (1 + _NEAR)).all()]
    return region.at_level(fine[-1]) if fine else region


def transform_of(page: Page) -> Affine:
    """From pixels of a page to map units.

    Raises
    ------
    RegionError : the image has no georeference
    """
    place = page.georeference
    if place is None or place.transform is None:
        raise RegionError(
            f'{page}: says nowhere which place it shows, and coordinates="map" needs that; give it a transform, such '
            'as by a world file, or pass boxes in pixels with coordinates="pixels"'
        )
    return place.transform


def by_place(base: Page, page: Page) -> Relation:
    """How two pages with a georeference lie on each other.

    Raises
    ------
    RegionError : one has none, their CRS differ, or they are rotated against each other
    """
    shown, wanted = transform_of(page), transform_of(base)
    if said := _other_crs(base, page):
        raise RegionError(f"{page}: {said}; bring both to one CRS")
    both = ~shown @ wanted
    turned = max(abs(both.b) * base.shape[0], abs(both.d) * base.shape[1])
    if turned > _AGREE:
        raise RegionError(f"{page}: is rotated against {base}; bring both to one grid, such as with gdalwarp")
    return Relation((both.e, both.a), (both.f, both.c))


def by_size(base: Page, page: Page) -> Relation:
    """How two pages without a georeference that show the same place lie on each other.

    Raises
    ------
    RegionError : their sizes have no exact ratio
    """
    sizes = page.shape[:2], base.shape[:2]
    ratios = {(max(pair) / min(pair), pair[0] > pair[1]) for pair in zip(*sizes, strict=True)}
    if len(ratios) > 1 or not ratios.pop()[0].is_integer():
        raise RegionError(
            f"{page}: is {_by(sizes[0])} pixels, {base} is {_by(sizes[1])}: without a georeference the files of one "
            "tile have sizes whose ratio is a whole number"
        )
    scale = page.shape[0] / base.shape[0], page.shape[1] / base.shape[1]
    return Relation(scale, (0.0, 0.0))


def are_placed(*pages: Page) -> bool:
    """Whether all of some pages have a transform."""
    return all(page.georeference is not None and page.georeference.transform is not None for page in pages)


def bounds_of(page: Page, windows: Int64s) -> NDArray[np.float64]:
    """(left, bottom, right, top) of windows (y0, x0, y1, x1) of a placed page, map units."""
    place = transform_of(page)
    y, x = windows[:, [0, 0, 2, 2]], windows[:, [1, 3, 1, 3]]
    right, up = place.a * x + place.b * y + place.c, place.d * x + place.e * y + place.f
    return np.column_stack([right.min(axis=1), up.min(axis=1), right.max(axis=1), up.max(axis=1)])


def apart(base: Page, page: Page) -> str:
    """How far the grids of two placed pages are apart, in words that follow the page; empty where they are one."""
    if said := _other_crs(base, page):
        return said
    shown, wanted = transform_of(page), transform_of(base)
    both = ~wanted @ shown
    if max(abs(both.a - 1), abs(both.d)) * page.shape[1] + max(abs(both.e - 1), abs(both.b)) * page.shape[0] > _AGREE:
        sizes = (f"{each.a:.10g} x {abs(each.e):.10g}" for each in (shown, wanted))
        return f"has pixels of {next(sizes)} where {base.file.path} has {next(sizes)}"
    if max(abs(both.c), abs(both.f)) > _AGREE:
        x, y = shown.c - wanted.c, shown.f - wanted.f
        pixels = f"{both.c:.6g} pixels in x and {both.f:.6g} in y ({x:.10g} and {y:.10g} map units)"
        return f"begins {pixels} from where {base.file.path} begins"
    return ""


def _other_crs(base: Page, page: Page) -> str:
    """What is said of a page in another CRS; empty where both are in one, or one does not say."""
    mine, other = page.georeference, base.georeference
    if mine is None or other is None or not mine.crs or not other.crs or mine.shares_system(other):
        return ""
    return f"is in {mine.crs}, {base.file.path} in {other.crs}"


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


@dataclass(frozen=True, slots=True, eq=False)
class MapBoxes:
    """Boxes on the ground.

    Parameters
    ----------
    values : float64, shape (n, 4), (xmin, ymin, xmax, ymax), map units
    crs : of the boxes; None for that of each image
    """

    values: NDArray[np.float64]
    crs: str | None = None

    def part(self, rows: Int64s | slice) -> MapBoxes:
        """Some of them."""
        return replace(self, values=self.values[rows])

    def words(self, row: int) -> str:
        """One box in the words of its table."""
        return f"box ({', '.join(format(value, '.12g') for value in self.values[row].tolist())})"

    def exactly(self, page: Page) -> NDArray[np.float64]:
        """Where they lie in an image, (y0, x0, y1, x1), pixels, not rounded.

        Raises
        ------
        RegionError : the image has no transform, or one by which a box is no box of its pixels; another CRS
        """
        transform, values = transform_of(page), self._values_for(page)
        if max(abs(transform.b) * page.shape[0], abs(transform.d) * page.shape[1]) > _AGREE * abs(transform.a):
            raise RegionError(f"{page}: is rotated against its CRS, so that boxes in map units are none of its pixels")
        inverse = ~transform
        x, y = values[:, ::2] * inverse.a + inverse.c, values[:, 1::2] * inverse.e + inverse.f
        return np.column_stack([y.min(axis=1), x.min(axis=1), y.max(axis=1), x.max(axis=1)])

    def windows(self, page: Page) -> Int64s:
        """The same as whole pixels: each side is moved by at most half a pixel, so that whole extents stay."""
        exact = self.exactly(page)
        starts = np.floor(np.round(exact[:, :2] / _EXACT) * _EXACT + 0.5)
        extents = exact[:, 2:] - exact[:, :2]
        whole = np.abs(extents - np.round(extents)) <= _AGREE
        stops = np.where(whole, starts + np.round(extents), np.floor(exact[:, 2:] + 0.5))
        return np.concatenate([starts, np.maximum(stops, starts + 1)], axis=1).astype(np.int64)

    def _values_for(self, page: Page) -> NDArray[np.float64]:
        """The boxes in the CRS of a page."""
        own = page.georeference.crs if page.georeference is not None else None
        if self.crs is None or self.crs == own:
            return self.values
        if own is None:
            raise RegionError(f"{page}: does not say its CRS, and the boxes are in {self.crs}")
        try:
            pyproj = require("pyproj", extra="geo")
        except ImportError as error:
            raise RegionError(
                f"{page}: is in {own}, the boxes are in {self.crs}; bring them to {own}, or install what does it: "
                "pip install 'lazytiles[geo]'"
            ) from error
        transformer = pyproj.Transformer.from_crs(self.crs, own, always_xy=True)
        x, y = transformer.transform(self.values[:, [0, 2, 0, 2]], self.values[:, [1, 1, 3, 3]])
        return np.column_stack([x.min(axis=1), y.min(axis=1), x.max(axis=1), y.max(axis=1)])
