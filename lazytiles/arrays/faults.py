"""What is wrong with the windows of a region's tiles, by the tags of its images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Fault, Int64s
from lazytiles.arrays.form import TileForm
from lazytiles.arrays.relations import apart, are_placed
from lazytiles.errors import LazyTilesError, RegionError
from lazytiles.images import Page, bands_read, check_resample

_EXACT = 1e-6  # pixels by which a box may leave its image and still lie in it
_MOST_OFF = 1.0  # pixels of a tile by which its box may say another extent than it has


def check_page(page: Page, form: TileForm, part: int) -> None:
    """Refuse a page that is not as those of the other regions.

    Parameters
    ----------
    part : which of the form's parts it is

    Raises
    ------
    RegionError : saying what it holds
    """
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
    """What is wrong with all or some windows on a page that is open.

    Parameters
    ----------
    tiles : a `RegionTiles`
    number : of its page
    """
    page = tiles.there()[number]
    try:
        shown = tiles.shown(number, rows)
        windows = tiles.windows[rows]
    except LazyTilesError as error:
        yield "other grid", np.ones(len(np.arange(len(tiles))[rows]), np.bool_), f": {error}"
        return
    if not len(shown):
        return
    is_first = number % tiles.parts == 0
    if is_first and tiles.placing.coordinates != "map" and tiles.placing.mpp is None:
        every = np.ones(len(shown), np.bool_)
        yield from ((kind, every, cause) for kind, cause in _disagreements(tiles, page))
    if is_first and not tiles.follows:
        yield from _other_sizes(tiles, page, windows)
    if tiles.whole and tiles.placing.coordinates != "map":
        return
    form, size = tiles.form, f"{page.shape[0]} x {page.shape[1]}"
    low, high = shown[:, :2], shown[:, 2:]
    if shown.dtype.kind == "f":  # the centres of the outer pixels
        half = (high - low) / (2 * np.array(form.size))
        low, high = np.minimum(low, high) + abs(half), np.maximum(low, high) - abs(half)
    if form.pad is None:
        outside = np.asarray(((low < -_EXACT) | (high > np.array(page.shape[:2]) + _EXACT)).any(axis=1))
        cause = f' leaves region {tiles.name} ({page.file.path}, {size}); pass pad="reflect" or correct the box'
    else:
        outside = np.asarray(((high <= 0) | (low >= page.shape[:2])).any(axis=1))
        cause = f" does not meet region {tiles.name} ({page.file.path}, {size}): there is nothing to pad; correct it"
    if outside.any():
        yield "window outside", outside, cause


def _other_sizes(tiles: Any, page: Page, windows: Int64s) -> Iterator[Fault]:
    """Windows whose size is not that of a tile, where they are not resampled to it."""
    form, placing = tiles.form, tiles.placing
    if placing.mpp is None and (form.resample is not None or not (tiles.whole or placing.coordinates != "pixels")):
        return
    extents = (windows[:, 2:] - windows[:, :2]) / tiles.step
    if tiles.whole and placing.coordinates != "map":
        extents = np.broadcast_to(np.array(page.shape[:2], np.float64), extents.shape)
    most = _MOST_OFF if placing.coordinates == "base" else 0.0
    other: NDArray[np.bool_] = (abs(extents - form.size) > most).any(axis=1)
    if not other.any():
        return
    high, wide = np.round(extents[np.argmax(other)], 2).tolist()
    height, width = form.size
    if tiles.whole:
        size = f"{page.shape[0]} x {page.shape[1]}"
        cause = f": {page} is {size} pixels, the first image is {height} x {width}"
    elif placing.mpp is not None:
        cause = f" is {high:g} x {wide:g} pixels of {placing.mpp:g} micrometres in {page}, a tile is {height} x {width}"
        yield "mixed size", other, f"{cause}; correct it, or make the boxes by make_grid(mpp=...)"
        return
    else:
        cause = f" is {high:g} x {wide:g} pixels of {page}, the first is {height} x {width}"
    yield "mixed size", other, f"{cause}; pass size=(height, width) to resample them to one size"


def _disagreements(tiles: Any, page: Page) -> Iterator[tuple[str, str]]:
    """What forbids to cut a page by the same boxes of pixels as the other frames, and as its mask or image."""
    beside = None
    if tiles.partner is not None and tiles.placing.mask_scale is None:
        with suppress(LazyTilesError):  # what cannot be opened says so when it is read
            beside = tiles.partner.last_page()
    firsts = (one for number, one in tiles.there().items() if number % tiles.parts == 0)
    frames = [one for one in firsts if one is not page]
    is_resized = tiles.whole and tiles.form.resample is not None
    for kind, said, others in (
        ("frames differ", "the frames of a tile are cut by one box, ", [] if is_resized else frames),
        ("mask differs", "an image and its mask are cut by one box, ", [] if beside is None else [beside]),
    ):
        for other in others:
            if are_placed(page, other) and (far := apart(other, page)):
                cure = "so they lie on one grid: bring them to one, or give boxes in map units with coordinates="
                yield "other grid", f': {page.file.path} {far}; {said}{cure}"map"'
                break
            if other.shape[:2] != page.shape[:2] and not are_placed(page, other):
                cure = ": bring them to one size and place"
                if other is beside:
                    cure = "; of a mask that is coarser say how much, such as mask_scale=16"
                sizes = f"{page.file.path} is {page.shape[0]} x {page.shape[1]} pixels, {_sized(other)}"
                yield kind, f": {sizes}; {said}so they have one extent{cure}"
                break


def _sized(page: Page) -> str:
    return f"{page.file.path} is {page.shape[0]} x {page.shape[1]}"
