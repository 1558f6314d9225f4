"""What is wrong with the windows of a region's tiles, by the tags of its images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Fault, Int64s
from lazytiles.arrays.form import TileForm
from lazytiles.arrays.relations import apart, are_placed
from lazytiles.errors import LazyTilesError, RegionError
from lazytiles.images import Page, bands_read, check_resample
from lazytiles.indexing import size_words

_EXACT = 1e-6  # pixels by which a box may leave its image and still lie in it


def outside(
    low: NDArray[Any], high: NDArray[Any], space: Sequence[int], pad: str | None, region: str, slack: float = _EXACT
) -> tuple[NDArray[np.bool_], str]:
    """Which boxes leave a region of these extents, or where it is padded, do not meet it; and what is said of them."""
    if pad is not None:
        beside = np.asarray(((high <= 0) | (low >= space)).any(axis=1))
        return beside, f" does not meet {region}: there is nothing to pad; correct it"
    leaving = np.asarray(((low < -_EXACT) | (high > np.array(space) + slack)).any(axis=1))
    return leaving, f' leaves {region}; pass pad="reflect" or correct the box'


def check_page(page: Page, form: TileForm, part: int) -> None:
    """Refuse a page, for a part of the form, that does not hold what those of the other regions hold."""
    read = bands_read(page, form.asked, form.gray) if not form.parts else tuple(range(page.shape[2]))
    wanted = form.pixels or form.dtype
    samples = form.counts[part] if form.parts else form.samples
    alike = page.dtype == wanted or (form.casts and (wanted.kind == "f" or np.can_cast(page.dtype, wanted)))
    counted = bool(form.parts) or (form.asked is None and not form.gray)
    if not alike or (counted and len(read) != samples):
        raise RegionError(
            f"{page}: holds {page.shape[2]} bands of {page.dtype}, the other regions hold {samples} of "
            f"{wanted}; regions of one array must agree: convert it, or choose bands=[...]"
            + (', bands="rgb" or gray=True' if page.shape[2] in (1, 3, 4) and samples in (1, 3, 4) else "")
            + ("; or say dtype=" if page.dtype != wanted and not form.casts else "")
        )
    if form.bands is not None and read != form.bands:
        raise RegionError(
            f"{page}: has {page.shape[2]} bands, of which bands={list(form.asked or ())} are {list(read)}, but "
            f"{list(form.bands)} of the other regions; count the bands from the first, 0"
        )
    check_resample(page, form.resample)


def faults_on(tiles: Any, number: int, rows: Int64s | slice = slice(None)) -> Iterator[Fault]:
    """What is wrong with all or some windows on a page that is open, by its tags."""
    try:
        shown, windows = tiles.shown(number, rows), tiles.exact_windows(rows)
    except LazyTilesError as error:
        yield "other grid", np.ones(len(np.arange(len(tiles))[rows]), np.bool_), f": {error}"
        return
    if not len(shown):
        return
    if not tiles.on_ground and number % tiles.parts == 0:
        differing = list(_disagreements(tiles, number))
        yield from ((kind, np.ones(len(shown), np.bool_), cause) for kind, cause in differing)
        if differing and tiles.is_bound:
            return
    yield from _other_sizes(tiles, number, rows, windows)
    if tiles.on_ground or not tiles.whole:
        yield from _outside(tiles, number, rows, shown)


def _other_sizes(tiles: Any, number: int, rows: Int64s | slice, windows: NDArray[Any]) -> Iterator[Fault]:
    """Windows that have another size than tiles have, or boxes another than tiles of so many micrometres."""
    page, form, units = tiles.opened_page(number), tiles.form, tiles.units
    height, width = form.size
    if units.mpp is not None:
        if tiles.follows:
            return
        boxes = tiles.windows[rows]
        other = np.asarray((abs(windows - boxes) > 1 + _EXACT).any(axis=1))
        if other.any():
            first = int(np.argmax(other))
            high, wide = (boxes[first, 2:] - boxes[first, :2]).tolist()
            wanted = " x ".join(f"{n:.6g}" for n in (windows[first, 2:] - windows[first, :2]).tolist())
            said = f" is {high} x {wide} pixels of {page.file.path}, where {height} x {width} pixels of"
            cure = "correct it, or pass another size= or mpp="
            yield "other extent", other, f"{said} {units.mpp:g} micrometres are {wanted}; {cure}"
        return
    is_sized = form.resample is None and number % tiles.parts == 0
    is_sized = is_sized and (tiles.whole or tiles.boxes is not None or units.kind == "base")
    if not is_sized or (tiles.is_bound and not tiles.on_ground):
        return
    extents = windows[:, 2:] - windows[:, :2]
    if units.kind == "base":
        extents = np.maximum(1, np.round(extents / tiles.levels[number].downsample))
    other = (extents != form.size).any(axis=1)
    if other.any():
        high, wide = extents[np.argmax(other)].astype(int).tolist()
        cause = f" is {high} x {wide} pixels of {page}, the first is {height} x {width}"
        if tiles.whole:
            cause = f": {page} is {size_words(tiles.sized(number))} pixels, the first image is {height} x {width}"
        yield "mixed size", other, f"{cause}; pass size=(height, width) to resample them to one size"


def _outside(tiles: Any, number: int, rows: Int64s | slice, shown: NDArray[Any]) -> Iterator[Fault]:
    """Windows that leave their page, or where what leaves it is padded, that do not meet it."""
    page, form, shape = tiles.opened_page(number), tiles.form, tiles.sized(number)
    low, high = shown[:, :2], shown[:, 2:]
    if shown.dtype.kind == "f":  # the centres of the outer pixels
        half = (high - low) / (2 * np.array(form.size))
        low, high = np.minimum(low, high) + abs(half), np.maximum(low, high) - abs(half)
    region = f"region {tiles.name} ({page.file.path}, {size_words(shape)})"
    slack = 1.0 if tiles.is_scaled else _EXACT  # a mask may lack what would be a part of a pixel of it
    wrong, cause = outside(low, high, page.shape[:2], form.pad, region, slack)
    if form.pad is None and tiles.units.kind == "base" and not tiles.follows:
        boxes = tiles.windows[rows]  # also by less than a pixel of the level that is read
        wrong |= outside(boxes[:, :2], boxes[:, 2:], shape, None, region)[0]
    if wrong.any():
        yield "window outside", wrong, cause


def _disagreements(tiles: Any, number: int) -> Iterator[tuple[str, str]]:
    """What forbids to cut a page by the same boxes of pixels as the other frames, and as its mask or image."""
    page, beside = tiles.opened_page(number), list[tuple[Any, int]]()
    with suppress(LazyTilesError):  # what cannot be opened says so when it is read
        at = None if tiles.partner is None else tiles.partner.last()
        beside = [(tiles.partner, at)] if tiles.partner is not None and at is not None else []
    frames = [(tiles, other) for other in tiles.there() if other % tiles.parts == 0 and other != number]
    is_resized = tiles.whole and tiles.form.resample is not None and tiles.units.kind != "base"
    for kind, said, others in (
        ("frames differ", "the frames of a tile are cut by one box, ", [] if is_resized else frames),
        ("mask differs", "an image and its mask are cut by one box, ", beside),
    ):
        for source, at in others:
            other = source.opened_page(at)
            mine, its = tiles.sized(number), source.sized(at)
            if source is not tiles and tiles.units.mask_scale is not None:
                if cause := _other_scale(tiles, number, source, at):
                    yield kind, cause
            elif are_placed(page, other):
                if tiles.units.kind != "base" and (far := apart(other, page)):
                    cure = "so they lie on one grid: bring them to one, or give boxes in map units with coordinates="
                    yield "other grid", f': {page.file.path} {far}; {said}{cure}"map"'
                    break
            elif mine != its:
                cure = "so they have one extent" + (": bring them to one size and place" if others is frames else "")
                if source is not tiles:
                    times = max(1, round(max(max(mine) / max(its), max(its) / max(mine))))
                    cure += (
                        f"; of a mask at another scale say how many of its image's pixels one is: mask_scale={times}"
                    )
                sizes = f"{page.file.path} is {size_words(mine)} pixels, {other.file.path} is {size_words(its)}"
                yield kind, f": {sizes}; {said}{cure}"
                break


def _other_scale(tiles: Any, number: int, other: Any, at: int) -> str:
    """What is wrong between a page and that of its mask, or of its image, by the scale that is given."""
    pair = [(tiles.opened_page(number), tiles.levels[number]), (other.opened_page(at), other.levels[at])]
    (mask, _), (image, level) = pair if tiles.follows else pair[::-1]
    if tiles.units.fits(image, level, mask):
        return ""
    y, x = tiles.units.scale_of(image, level, mask)
    wanted = f"{level.shape[0] / y:.6g} x {level.shape[1] / x:.6g}"
    return (
        f": {mask.file.path} is {size_words(mask.shape[:2])} pixels, where {image.file.path}, "
        f"{size_words(level.shape)} pixels, would have a mask of {wanted} by mask_scale={tiles.units.mask_scale!r}; "
        "correct mask_scale="
    )
