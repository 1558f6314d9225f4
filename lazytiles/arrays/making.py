"""Tiles of windows that are not read straight into their places: padded, mixed, resampled, scaled, or their validity.

Which pixels a window needs is worked out first (`on_its_own_grid`, `on_another_grid`); when they are there, `made`
makes the tile of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays.form import TileForm
from lazytiles.config import check_limit
from lazytiles.images import (
    Extent,
    Page,
    Windows,
    around,
    judged,
    may_be_invalid,
    resize,
    resize_valid,
    scaled,
    to_gray,
    to_rgb,
)
from lazytiles.indexing import LINE_MODES, needed, padded

_EXACT = 1e-6  # pixels by which whole ones may be missed


@dataclass(slots=True, eq=False)
class Whole:
    """A window that cannot be read straight into its place: the box of its pixels first, then what is made of them."""

    page: Page  # that it lies on
    window: tuple[int, int, int, int]  # what is shown, (y0, x0, y1, x1), pixels of the page
    box: Int64s  # what is read for it, the same inside the page
    places: tuple[Int64s, ...] = ()  # the pixels of the box that its rows and columns show, where it leaves the page
    # What of it becomes the tile, where that lies on another grid: (y0, x0, y1, x1), y1 < y0 where it is upside down.
    extent: Sequence[float] | None = None
    part: int = 0  # which part of the form it is
    pixels: NDArray[Any] | None = None  # of the box, in memory of their own

    def windows(self, bands: tuple[int, ...] | None) -> Windows:
        """What is read for it."""
        return Windows((self.page,), np.zeros(1, np.int64), self.box[None], bands)


def on_its_own_grid(page: Page, window: Sequence[int], form: TileForm) -> Whole:
    """What a window of whole pixels needs, and how its pixels are spread over the window."""
    y0, x0, y1, x1 = window
    height, width, _ = page.shape
    if y0 >= 0 and x0 >= 0 and y1 <= height and x1 <= width:
        return Whole(page, (y0, x0, y1, x1), np.array(window, np.int64))
    mode = form.pad or "constant"
    top, bottom, rows = needed(y0, y1, height, mode)
    left, right, columns = needed(x0, x1, width, mode)
    if mode in LINE_MODES:
        check_limit((bottom - top) * (right - left) * page.shape[2] * page.dtype.itemsize, "pad={!r} of {}", mode, page)
    return Whole(page, (y0, x0, y1, x1), np.array([top, left, bottom, right], np.int64), (rows, columns))


def is_whole(extents: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which extents, in pixels, are whole pixels and as many of them as a tile has."""
    near: NDArray[np.float64] = np.round(extents)
    whole = (abs(extents - near) <= _EXACT).all(axis=1) & (near[:, 2:] - near[:, :2] == size).all(axis=1)
    return np.asarray(whole)


def on_another_grid(page: Page, extent: Sequence[float], form: TileForm) -> Whole:
    """What an extent between pixels needs, with the margin of the kernel that resamples it."""
    y0, x0, y1, x1 = extent
    ordered = min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1)
    window = around(ordered, form.size, form.method, page.shape[:2])
    if form.pad is None:  # an image that ends within a pixel of the tile serves it with its last pixels
        height, width, _ = page.shape
        top, left = min(window[0], height - 1), min(window[1], width - 1)
        window = top, left, min(window[2], height), min(window[3], width)
    found = on_its_own_grid(page, window, form)
    found.extent = extent
    return found


def made(form: TileForm, whole: Whole, pixels: NDArray[Any], bands: tuple[int, ...] | None, fill: Any) -> NDArray[Any]:
    """The tile that the pixels of its window give, shape (*form.size, bands), or fewer bands where it is a part of it.

    `pixels`, (height, width, samples), are those of the window's box, and `bands` which samples of the page they are,
    None for all. `fill` is what padding by "constant" holds: one value, or one a band.
    """
    page = whole.page
    if form.parts:
        bands = form.parts[whole.part][0]
        pixels = pixels[..., list(bands)]
    if form.valid:
        return _validity(form, whole, pixels, bands)
    is_resized = whole.extent is not None or _size_of(whole) != form.size
    method = (form.method if whole.extent is not None else form.resample) or "nearest"
    is_mixing = is_resized and method != "nearest" and (form.scaled or may_be_invalid(page))
    valid = None
    if form.scaled:
        pixels = scaled(whole.windows(bands), pixels[None])[0]
    if is_mixing:
        valid = ~np.isnan(pixels) if form.scaled else judged(whole.windows(bands), pixels[None])[0]
    steps: list[Any] = [_mixed, partial(_padded, whole=whole, fill=fill)]
    for step in steps[::-1] if form.pad in LINE_MODES else steps:  # these look at whole lines of each sample
        pixels, valid = step(form, pixels, valid)
    if not is_resized:
        return pixels
    is_outside = is_mixing and bool(whole.places) and form.pad in (None, "constant")
    (pixels, valid, inside), box = _turned(whole, pixels, valid, _inside(whole) if is_outside else None)
    if not is_mixing:
        return resize(pixels, form.size, method, box=box)
    empty = np.nan if form.scaled or (page.nodata is None and pixels.dtype.kind == "f") else page.nodata
    tile = resize(pixels, form.size, method, box=box, valid=valid, empty=0 if empty is None else empty)
    if is_outside:
        outside = ~resize(inside, form.size, "nearest", box=box)
        tile = np.where(outside, np.asarray(fill, tile.dtype), tile)
    return tile


def _validity(form: TileForm, whole: Whole, pixels: NDArray[Any], bands: tuple[int, ...] | None) -> NDArray[np.bool_]:
    """Which values of a tile are valid, band by band; or, where one value a pixel is asked for, whether any is."""
    y0, x0, y1, x1 = whole.window
    inside = _inside(whole)
    valid = inside.repeat(pixels.shape[2], axis=2)
    if may_be_invalid(whole.page):
        top, left = whole.box[:2].tolist()
        rows, columns = slice(max(y0, 0), min(y1, whole.page.shape[0])), slice(max(x0, 0), min(x1, whole.page.shape[1]))
        known = judged(whole.windows(bands), pixels[None])[0]
        valid[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0] = known[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
    _, valid = _mixed(form, None, valid)
    (valid,), box = _turned(whole, valid)
    method = (form.method if whole.extent is not None else form.resample) or "nearest"
    tile = resize_valid(valid, form.size, method, box=box)
    return np.asarray(tile.any(axis=2, keepdims=True)) if form.valid == "any" else tile


def _size_of(whole: Whole) -> tuple[int, int]:
    y0, x0, y1, x1 = whole.window
    return y1 - y0, x1 - x0


def _inside(whole: Whole) -> NDArray[np.bool_]:
    """Which pixels of a window lie in its image, (height, width, 1)."""
    y0, x0, y1, x1 = whole.window
    rows, columns = np.arange(y0, y1)[:, None, None], np.arange(x0, x1)[:, None]
    height, width, _ = whole.page.shape
    inside: NDArray[np.bool_] = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return inside


def _mixed(form: TileForm, pixels: Any, valid: Any) -> tuple[Any, Any]:
    """Bands of pixels, and whether they are valid: all that a band is made of must be."""
    if not form.is_mixed:
        return pixels, valid
    mix = to_gray if form.gray else to_rgb
    if valid is not None:
        valid = valid[..., : 1 if valid.shape[2] <= 2 else 3].all(axis=2, keepdims=True) if form.gray else to_rgb(valid)
    return None if pixels is None else mix(pixels), valid


def _padded(form: TileForm, pixels: Any, valid: Any, *, whole: Whole, fill: Any) -> tuple[Any, Any]:
    """Pixels spread over their window, and whether they may be mixed."""
    if not whole.places:
        return pixels, valid
    if valid is not None:
        sizes = valid.shape[:2]
        shown = (np.where((line < 0) | (line >= n), -1, line) for line, n in zip(whole.places, sizes, strict=True))
        valid = padded(valid, list(shown), None, form.pad in LINE_MODES)
    return padded(pixels, whole.places, form.pad, fill), valid


def _turned(whole: Whole, *arrays: Any) -> tuple[list[Any], Extent | None]:
    """Arrays over a window with its rows and columns as the tile has them, and what of them becomes the tile."""
    found = list(arrays)
    if whole.extent is None:
        return found, None
    box = [end - start for end, start in zip(whole.extent, whole.window[:2] * 2, strict=True)]
    for axis, length in enumerate(_size_of(whole)):
        if box[axis] > box[axis + 2]:
            found = [None if one is None else np.flip(one, axis) for one in found]
            box[axis], box[axis + 2] = length - box[axis], length - box[axis + 2]
    return found, (box[0], box[1], box[2], box[3])
