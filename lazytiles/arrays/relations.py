"""How the pixels of one image lie on those of another, and where boxes on the ground lie among them.

The *base* of a tile is the image whose whole pixels its window counts. Every other image that the tile takes pixels
of lies on it by a `Relation`: other bands, frames and masks, whatever their resolution and origin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.errors import LazyTilesError, RegionError
from lazytiles.images import Level, Page, Region, check_resample
from lazytiles.indexing import Ground, brought, size_words

_AGREE = 0.01  # pixels by which two grids that are one may differ, anywhere in an image
_EXACT = 1e-6  # pixels by which a number of pixels that is meant to be whole may miss it
_SAME_MPP = 1.001  # by which the pixels of a level may be larger than those that are wanted, and serve for them
_SCALE_DRIFT = 0.01  # of its length by which a mask may be larger or smaller than micrometres, often rounded, say


@dataclass(frozen=True, slots=True)
class Relation:
    """From pixels of the base to those of a page, rows before columns: ``page = scale * base + offset``."""

    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)

    def after(self, first: Relation) -> Relation:
        """From what another relation begins with to what this one ends with, where that one ends with its base."""
        scale = self.scale[0] * first.scale[0], self.scale[1] * first.scale[1]
        offset = (self.scale[k] * first.offset[k] + self.offset[k] for k in (0, 1))
        return Relation(scale, (next(offset), next(offset)))

    def boxes(self, windows: NDArray[Any]) -> NDArray[np.float64]:
        """Windows (y0, x0, y1, x1) of the base as boxes in pixels of the page."""
        boxes: NDArray[np.float64] = windows * np.array(self.scale * 2) + np.array(self.offset * 2)
        return boxes

    def shift(self, shape: tuple[int, ...]) -> Int64s | None:
        """(y, x, y, x) whole pixels, where that is all that pages of this shape differ in; else None."""
        sizes, starts = np.array(self.scale), np.array(self.offset)
        whole = np.round(starts)
        drift = np.abs(sizes - 1) * shape[:2] + np.abs(starts - whole)
        return np.tile(whole.astype(np.int64), 2) if (drift <= _AGREE).all() else None


@dataclass(frozen=True, slots=True)
class Units:
    """What the boxes of tiles count, and at which scale their images and masks are read."""

    kind: str = "pixels"  # of the level that is opened; or of level 0, "base"; or "map" units
    mpp: float | None = None  # micrometres a pixel of the tiles; None for the level that is opened
    # Pixels of level 0 of an image in one of its mask's; "mpp" where both files say theirs; None: masks of its extent.
    mask_scale: float | str | None = None

    @property
    def knows_levels(self) -> bool:
        """Whether it matters which level of its image a page is."""
        return self.kind == "base" or self.mask_scale is not None

    def level_read(self, region: Region) -> Region:
        """An image at the level that its tiles are read from: the smallest whose pixels are as fine as is wanted."""
        if self.mpp is None:
            return region
        own, most = mpp_of(region.pages[0]), self.mpp * _SAME_MPP
        fine = [k for k, one in enumerate(region.levels) if max(np.multiply(own, one.downsample)) <= most]
        return region.at_level(fine[-1] if fine else 0)

    def ratio(self, page: Page, level: Level) -> tuple[float, float]:
        """Pixels of level 0 (y, x) in a pixel of a tile of so many micrometres, by the page of one of its levels."""
        assert self.mpp is not None
        y, x = (self.mpp * down / own for down, own in zip(level.downsample, mpp_of(page), strict=True))
        return y, x

    def size(self, extent: tuple[int, int], page: Page, level: Level) -> tuple[int, int]:
        """The tile that a box of so many pixels of level 0 is: as `make_grid` makes boxes, else the nearest."""
        if self.mpp is None:
            height, width = (max(1, round(n / down)) for n, down in zip(extent, level.downsample, strict=True))
            return height, width
        found = []
        for n, ratio in zip(extent, self.ratio(page, level), strict=True):
            within = int(n / ratio + _EXACT)
            touches = int(np.ceil(within * ratio - _EXACT)) == n
            found.append(max(1, within if touches else round(n / ratio)))
        return found[0], found[1]

    def scale_of(self, image: Page, level: Level, mask: Page) -> tuple[float, float]:
        """Pixels of level 0 (y, x) of an image, of which the page of one level is given, in one of its mask's."""
        if not isinstance(self.mask_scale, str):
            scale = float(self.mask_scale or 1)
            return scale, scale
        pixels = zip(
            level.downsample, mpp_of(image), mpp_of(mask, "the scale itself, such as mask_scale=16"), strict=True
        )
        y, x = (down * own / one for down, one, own in pixels)
        return y, x

    def fits(self, image: Page, level: Level, mask: Page) -> bool:
        """Whether a mask has the extent of its image, as far as its scale tells: within one of its pixels."""
        pairs = zip(level.shape, self.scale_of(image, level, mask), mask.shape[:2], strict=True)
        drift = _SCALE_DRIFT if isinstance(self.mask_scale, str) else 0.0
        return all(abs(n / scale - length) < 1 + _EXACT + drift * length for n, scale, length in pairs)


def level_of(region: Region) -> Level:
    """The shape of level 0 of an image, and how many of its pixels one of the level is that is open."""
    if not region.level:
        return Level(region.inner_shape[:2])
    return Level(region.levels[0].shape, region.levels[region.level].downsample)


def mpp_of(page: Page, cure: str = "source_mpp=, a number or the name of a column of the table") -> tuple[float, float]:
    """Micrometres (y, x) from one pixel to the next; a RegionError where the file does not say it."""
    if page.mpp is None:
        raise RegionError(f"{page}: does not say how many micrometres a pixel is; pass {cure}")
    return page.mpp


def transform_of(page: Page) -> Affine:
    """From pixels of a page to map units; a RegionError where it has no georeference."""
    place = page.georeference
    if place is None or place.transform is None:
        raise RegionError(
            f'{page}: says nowhere which place it shows, and coordinates="map" needs that; give it a transform, such '
            'as by a world file, or pass boxes in pixels with coordinates="pixels"'
        )
    return place.transform


def by_place(base: Page, page: Page) -> Relation:
    """How two pages with a georeference lie on each other; refused in two CRS, or rotated against each other."""
    shown, wanted = transform_of(page), transform_of(base)
    if said := _other_crs(base, page):
        raise RegionError(f"{page}: {said}; bring both to one CRS")
    both = ~shown @ wanted
    turned = max(abs(both.b) * base.shape[0], abs(both.d) * base.shape[1])
    if turned > _AGREE:
        raise RegionError(f"{page}: is rotated against {base}; bring both to one grid, such as with gdalwarp")
    return Relation((both.e, both.a), (both.f, both.c))


def by_size(base: Page, page: Page, base_shape: tuple[int, int], shape: tuple[int, int]) -> Relation:
    """How the level 0 of two pages without a georeference lie on each other: by shapes whose ratio must be whole."""
    ratios = {(max(pair) / min(pair), pair[0] > pair[1]) for pair in zip(shape, base_shape, strict=True)}
    if len(ratios) > 1 or not ratios.pop()[0].is_integer():
        raise RegionError(
            f"{page}: is {size_words(shape)} pixels, {base} is {size_words(base_shape)}: without a georeference the "
            "files of one tile have sizes whose ratio is a whole number"
        )
    return Relation((shape[0] / base_shape[0], shape[1] / base_shape[1]))


def found_relation(tiles: Any, number: int) -> Relation | None:
    """How a page of a region's tiles lies on what their windows count; None where its pixels are that."""
    page = tiles.opened_page(number)
    base, level = tiles.base_of(number)
    is_base_level = tiles.units.kind == "base"
    if base is None or (base is page and not (is_base_level and level.downsample != (1, 1))):
        return None
    down = Relation((1 / level.downsample[0], 1 / level.downsample[1]))
    # What windows count is level 0 of the base, or the page of it that is open.
    to_top = Relation((1.0, 1.0) if is_base_level else level.downsample)
    to_base = down if is_base_level else Relation((1.0, 1.0))
    own = tiles.levels[number]
    from_own = Relation((1 / own.downsample[0], 1 / own.downsample[1]))
    if tiles.is_scaled:
        y, x = tiles.units.scale_of(base, level, page)
        found = Relation((1 / y, 1 / x)).after(to_top)
    elif base is page:
        found = to_base
    elif tiles.on_ground or are_placed(base, page):
        found = by_place(base, page).after(to_base)
    elif tiles.is_bound:  # `_disagreements` says where their extents differ
        found = from_own.after(to_top)
    else:
        found = from_own.after(by_size(base, page, level.shape, own.shape)).after(to_top)
    shift = found.shift(page.shape)
    if shift is None or tiles.whole:
        check_resample(page, tiles.form.method)
    return None if shift is not None and not shift.any() and page.shape[:2] == base.shape[:2] else found


def are_placed(*pages: Page) -> bool:
    """Whether all of some pages have a transform."""
    return all(page.georeference is not None and page.georeference.transform is not None for page in pages)


def bounds_of(page: Page, windows: NDArray[Any]) -> NDArray[np.float64]:
    """(left, bottom, right, top) of windows (y0, x0, y1, x1) of a placed page, map units."""
    place = transform_of(page)
    y, x = windows[:, [0, 0, 2, 2]], windows[:, [1, 3, 1, 3]]
    right, up = place.a * x + place.b * y + place.c, place.d * x + place.e * y + place.f
    return np.column_stack([right.min(axis=1), up.min(axis=1), right.max(axis=1), up.max(axis=1)])


def ground_of(sources: Sequence[Any]) -> Ground:
    """Where the windows of some images lie, one image after the other; those whose image is not there say no place.

    Each source has a length, `base`, which opens the image, and its `base_windows` in pixels of that.
    """
    systems: list[Any] = []
    parts = []
    for source in sources:
        found = np.full(len(source), -1), np.full((len(source), 4), np.nan), np.full(len(source), np.nan)
        try:
            base = source.base()
            if base is not None and are_placed(base):
                place = base.georeference
                known = [k for k, one in enumerate(systems) if place.shares_system(one)]
                if not known:
                    systems.append(place)
                found[0][:], found[1][:] = (known or [len(systems) - 1])[0], bounds_of(base, source.base_windows)
                found[2][:] = math.sqrt(abs(place.transform.determinant))
        except LazyTilesError:  # who reads it is told
            pass
        parts.append(found)
    return Ground(tuple(systems), *(np.concatenate(each) for each in zip(*parts, strict=True)))


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


@dataclass(frozen=True, slots=True, eq=False)
class MapBoxes:
    """Boxes on the ground."""

    values: NDArray[np.float64]  # shape (n, 4), (xmin, ymin, xmax, ymax), map units
    crs: str | None = None  # of the boxes; None for that of each image

    def part(self, rows: Int64s | slice) -> MapBoxes:
        """Some of them."""
        return replace(self, values=self.values[rows])

    def words(self, row: int) -> str:
        """One box in the words of its table."""
        return f"box ({', '.join(format(value, '.12g') for value in self.values[row].tolist())})"

    def exactly(self, page: Page) -> NDArray[np.float64]:
        """Where they lie in an image, (y0, x0, y1, x1), pixels, not rounded; refused where it is rotated."""
        transform, values = transform_of(page), self.values
        own = page.georeference.crs if page.georeference is not None else None
        if self.crs is not None and self.crs != own:
            if own is None:
                raise RegionError(f"{page}: does not say its CRS, and the boxes are in {self.crs}")
            try:
                values = brought(values, self.crs, own)
            except ImportError as error:
                raise RegionError(
                    f"{page}: is in {own}, the boxes are in {self.crs}; bring them to {own}, or install what does it: "
                    "pip install 'lazytiles[geo]'"
                ) from error
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
