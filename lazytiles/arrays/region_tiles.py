"""The tiles of one region as a source, and how tiles of several regions are read as one plan."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Fault, Int64s
from lazytiles.arrays.form import TileForm
from lazytiles.arrays.gather import Gather, is_straight
from lazytiles.arrays.making import is_whole
from lazytiles.arrays.reading import read_tiles
from lazytiles.arrays.relations import (
    MapBoxes,
    Relation,
    Units,
    apart,
    are_placed,
    by_place,
    by_size,
    level_of,
)
from lazytiles.errors import LazyTilesError, ManifestError, RegionError
from lazytiles.images import Level, Page, Region, bands_read, check_resample, cut_windows, has_invalid, slice_page
from lazytiles.indexing import LazyArray, box_words, request, token

_EXACT = 1e-6  # pixels by which a box may leave its image and still lie in it


class RegionTiles(LazyArray):
    """Windows of one region, in one or several frames, as a source `(n, [frames,] height, width, bands)`.

    Parameters
    ----------
    regions : for each frame, and of it for each part of the form, the function that opens its region (called when a
        tile of it is first read), or None for what is missing and filled
    windows : int64, shape (n, 4), (y0, x0, y1, x1), pixels of the base, the image of the last frame's first part, or of
        its level 0; or where they lie on the ground, which says so when the base is opened
    form : what every tile looks like
    timed : whether the frames are an axis of the samples
    name : of the region, for messages
    tile_name : the words for one of its windows, by its number
    whole : whether each window is the whole image, whatever its size; `windows` are then set when it is opened
    units : what the windows count; those in map units bring all images to the grid of the base by their georeference
    """

    def __init__(
        self,
        regions: Sequence[Callable[[], Region] | None],
        windows: Int64s | MapBoxes,
        form: TileForm,
        *,
        timed: bool,
        name: str,
        tile_name: Callable[[int], str],
        whole: bool = False,
        units: Units = Units(),  # noqa: B008  # frozen
    ) -> None:
        self.regions = tuple(regions)
        self.boxes = windows if isinstance(windows, MapBoxes) else None
        self._windows = None if isinstance(windows, MapBoxes) else windows
        self.form = form
        self.timed = timed
        self.whole = whole
        self.units = units
        self.on_ground = units.kind == "map"
        self.name = name
        self.tile_name = tile_name
        self.partner: RegionTiles | None = None  # the masks of these tiles, or the tiles of these masks
        self.follows = False  # whether these are masks, whose base is that of their partner
        self._pages: list[Page | None] = [None] * len(self.regions)
        self._levels: dict[int, Level] = {}  # of the pages that are open: the shape of level 0, and how far down it is
        self._relations: dict[int, Relation | None] = {}
        self.is_sound = False  # whether every frame has been opened and no window leaves its region
        self.is_sliced = False  # whether every tile is nothing but a slice of an uncompressed page on this machine
        self._straight = False
        self._lock = threading.RLock()
        rows = len(windows.values) if isinstance(windows, MapBoxes) else len(windows)
        frames = (len(self.regions) // self.parts,) if timed else ()
        self.shape: tuple[int, ...] = (rows, *frames, *form.inner_shape)
        self.dtype = form.dtype

    @property
    def parts(self) -> int:
        """How many files or pages a frame is made of."""
        return len(self.form.parts) or 1

    @property
    def windows(self) -> Int64s:
        """(y0, x0, y1, x1) of each tile, pixels of the base, which is opened where only it can say them.

        Raises
        ------
        RegionError : it cannot be opened, or does not say where on the ground it lies
        """
        windows = self._windows
        if windows is None or (self.whole and self._is_bound):
            base, level = self._base_of(0) if self._is_bound else (self.base(), Level((0, 0)))
            if base is None:
                raise RegionError(f"region {self.name}: no image of it is there that says where its boxes lie")
            if self.boxes is None:
                return self._whole(base, level, slice(None))
            windows = self._windows = self.boxes.windows(base)
        return windows

    def exact_windows(self, rows: Int64s | slice = slice(None)) -> NDArray[Any]:
        """What tiles show, in the units of `windows`: of tiles of so many micrometres, floats from the same corner."""
        windows = self.windows[rows]
        if self.units.mpp is None or not len(windows):
            return windows
        owner = self._owner()
        number = owner.last()
        if number is None:
            return windows
        ratio = self.units.ratio(owner.opened_page(number), owner._levels[number])
        return np.column_stack([windows[:, :2], windows[:, :2] + np.multiply(self.form.size, ratio)])

    def __getitem__(self, key: Any) -> Any:
        asked = request(key, self.shape, row_axes=1 + self.timed)
        return asked.finish(read_tiles([(self, np.arange(asked.n), asked.rows)], asked, self.form))

    def page(self, number: int) -> Page | None:
        """The page of a frame, or of a part of it, opened now if it was not yet; None for a missing one."""
        page = self._pages[number]
        opener = self.regions[number]
        if page is None and opener is not None:
            with self._lock:
                page = self._pages[number]
                if page is None:
                    page = self._pages[number] = self._open(opener, number)
            # Outside the lock: a mask looks at its image, and the image at its mask.
            self._look()
        return page

    def _look(self) -> None:
        """See, with one more page open, whether all is sound and what may be read straight."""
        with suppress(LazyTilesError):  # who reads a tile is told
            for number in self._there():
                self._relation(number)  # which may open the base
        there = self._there()
        sound = len(there) + self.regions.count(None) == len(self.regions)
        sound = sound and not any(True for number in there for _ in self._faults_of(number))
        straight = sliced = sound
        for number, page in there.items() if sound else ():
            windows = self._shown(number, slice(None))
            as_they_are = windows.dtype.kind != "f" and is_straight(windows, self.form.size, page.shape[:2]).all()
            straight = straight and bool(as_they_are)
            sliced = sliced and page.raw_offsets is not None and not page.file.is_remote
            sliced = sliced and page.dtype == self.form.dtype and self._relation(number) is None and not self.units.mpp
        self._straight = straight
        self.is_sliced = straight and sliced and not self.form.is_made and None not in self.regions
        self.is_sound = sound

    def _there(self) -> dict[int, Page]:
        """The pages that have been opened, by their number."""
        return {number: page for number, page in enumerate(self._pages) if page is not None}

    def base(self) -> Page | None:
        """The page whose whole pixels the windows count: the last frame's that is there, of masks their image's."""
        return self._owner().last_page()

    def _owner(self) -> RegionTiles:
        """The tiles that have the base: themselves, of masks those of the images."""
        return self.partner if self.follows and self.partner is not None else self

    @property
    def _is_scaled(self) -> bool:
        """Whether these are masks of a scale that is given."""
        return self.follows and self.units.mask_scale is not None

    @property
    def _is_bound(self) -> bool:
        """Whether the windows count no pixels of these images, but of the base."""
        return self.on_ground or self._is_scaled or (self.follows and self.units.kind == "base")

    def _relation(self, number: int) -> Relation | None:
        """How a page lies on the base; None where its pixels are those of the base.

        Raises
        ------
        RegionError : their grids cannot be brought together
        """
        if number not in self._relations:
            self._relations[number] = self._find_relation(number)
        return self._relations[number]

    def _find_relation(self, number: int) -> Relation | None:
        page = self.opened_page(number)
        base, level = self._base_of(number)
        is_base_level = self.units.kind == "base"
        if base is None or (base is page and not (is_base_level and level.downsample != (1, 1))):
            return None
        down = Relation((1 / level.downsample[0], 1 / level.downsample[1]))
        # What windows count is level 0 of the base, or the page of it that is open.
        to_top = Relation((1.0, 1.0) if is_base_level else level.downsample)
        to_base = down if is_base_level else Relation((1.0, 1.0))
        own = self._levels[number]
        from_own = Relation((1 / own.downsample[0], 1 / own.downsample[1]))
        if self._is_scaled:
            y, x = self.units.scale_of(base, level, page)
            found = Relation((1 / y, 1 / x)).after(to_top)
        elif base is page:
            found = to_base
        elif self.on_ground or are_placed(base, page):
            found = by_place(base, page).after(to_base)
        elif self._is_bound:  # `_disagreements` says where their extents differ
            found = from_own.after(to_top)
        else:
            found = from_own.after(by_size(base, page, level.shape, own.shape)).after(to_top)
        shift = found.shift(page.shape)
        if shift is None or self.whole:
            check_resample(page, self.form.method)
        return None if shift is not None and not shift.any() and page.shape[:2] == base.shape[:2] else found

    def _base_of(self, number: int) -> tuple[Page | None, Level]:
        """The page on whose grid a page is brought, and its level.

        That of its frame's first part; the base, where all lie on the ground, and of masks of another scale.
        """
        owner = self._owner() if self._is_bound else self
        at = owner.last() if self._is_bound else number - number % self.parts
        page = None if at is None else owner.page(at)
        return page, Level((0, 0)) if at is None or page is None else owner._levels[at]

    def _whole(self, base: Page, level: Level, rows: Int64s | slice) -> Int64s:
        """The windows of whole images, in pixels of the base, or of its level 0."""
        shape = level.shape if self.units.kind == "base" else base.shape[:2]
        return np.broadcast_to(np.array([0, 0, *shape], np.int64), (len(np.arange(len(self))[rows]), 4))

    def _shown(self, number: int, rows: Int64s | slice) -> NDArray[Any]:
        """Windows as (y0, x0, y1, x1) of a page: whole pixels where its grid is that of the base, else floats."""
        page, relation = self.opened_page(number), self._relation(number)
        windows = self.exact_windows(rows)
        if self.whole and self.units.mpp is None:
            base, level = self._base_of(number)
            windows = self._whole(base or page, level, rows)
        if relation is not None:
            shift = relation.shift(page.shape)
            windows = relation.boxes(windows) if shift is None else windows + shift
        if windows.dtype.kind == "f" and len(windows) and is_whole(windows, self.form.size).all():
            return np.round(windows).astype(np.int64)
        return windows

    def grid(self) -> tuple[tuple[int, int], Int64s, tuple[float, float]]:
        """What maps of the tiles lie on.

        Returns
        -------
        its extents; the window of each tile, whole pixels of it; and how many pixels (y, x) of the page of the base one
        of them is: 1 unless the tiles are of so many micrometres
        """
        owner = self._owner()
        number = owner.last()
        assert number is not None
        page = owner.opened_page(number)
        if self.units.kind != "base":
            return page.shape[:2], self.windows, (1.0, 1.0)
        scale, relation = (1.0, 1.0), owner._relation(number)
        boxes = owner.exact_windows() if relation is None else relation.boxes(owner.exact_windows())
        if self.units.mpp is not None:
            down = owner._levels[number].downsample
            y, x = self.units.ratio(page, owner._levels[number])
            scale = y / down[0], x / down[1]
            boxes = boxes / np.array(scale * 2)
        starts = np.floor(boxes[:, :2] + 0.5).astype(np.int64)
        extents = np.maximum(1, np.round(boxes[:, 2:] - boxes[:, :2])).astype(np.int64)
        height, width = (max(1, int(np.floor(n / each + 0.5))) for n, each in zip(page.shape, scale, strict=False))
        return (height, width), np.concatenate([starts, starts + extents], axis=1), scale

    @property
    def opened(self) -> list[Page]:
        """The pages of the frames that have been opened."""
        return list(self._there().values())

    @property
    def scratch_bytes(self) -> int:
        """Bytes that the pixels of the windows of one sample take at most, where tiles are made of them by resampling.

        Those of whole images are not known before they are opened, and are not counted.
        """
        form = self.form
        if self.whole or self._windows is None or not (form.resample or form.is_made or form.pad or form.area):
            return 0
        area = form.area or int((self._windows[:, 2:] - self._windows[:, :2]).prod(axis=1).max(initial=0))
        frames = len(self.regions) // self.parts if self.timed else 1
        return area * max(form.samples, 4 if form.is_mixed else 1) * form.dtype.itemsize * frames

    def sliced(self, box: Box, places: tuple[Int64s, ...]) -> NDArray[Any] | None:
        """Tiles, cut by a box of rows and columns, as one new array; None where it takes `slice_into`."""
        page = self._pages[0]
        if len(self._pages) > 1 or page is None or self.form.bands is not None:
            return None
        return cut_windows(page, self.windows.take(places[0], axis=0), box)

    def slice_into(self, block: NDArray[Any], box: Box, slots: Int64s, places: tuple[Int64s, ...]) -> None:
        """Write tiles, cut by a box of rows and columns, into some rows of a block; only where `is_sliced`."""
        (y0, y1), (x0, x1) = box
        boxes = self.windows[places[0]][:, [0, 1, 0, 1]] + np.array([y0, x0, y1, x1], dtype=np.int64)
        for frame, page in enumerate(self._pages):
            assert page is not None
            chosen = np.flatnonzero(places[1] == frame) if len(self._pages) > 1 else slice(None)
            targets = (block[slot] for slot in slots[chosen].tolist())
            slice_page(page, boxes[chosen], self.form.bands, targets)

    def _open(self, opener: Callable[[], Region], number: int) -> Page:
        region = opener()
        if not self.follows:
            region = self.units.level_read(region)
        page = region.pages[0]
        if len(region.pages) > 1:
            raise RegionError(f"{region.path}: is a volume of {len(region.pages)} slices; use open_volumes")
        form = self.form
        read = bands_read(page, form.asked, form.gray) if not form.parts else tuple(range(page.shape[2]))
        wanted = form.pixels or form.dtype
        samples = form.counts[number % self.parts] if form.parts else form.samples
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
        level = level_of(region) if self.units.knows_levels else Level(page.shape[:2])
        self._levels[number] = level
        if self.whole and number % self.parts == 0:
            self._windows = self._whole(page, level, slice(None))
        return page

    def describe(self, row: int) -> str:
        """The words for one of its windows, with its box as users write it."""
        if self.whole:
            return f"{self.tile_name(row)}, the whole of region {self.name}"
        return f"{self.tile_name(row)} with {self._box(row)} of region {self.name}"

    def _box(self, row: int) -> str:
        return box_words(self.windows[row]) if self.boxes is None else self.boxes.words(row)

    def _words(self, row: int, cause: str) -> str:
        box = "" if self.whole else f": {self._box(row)}"
        return f"{self.tile_name(row)}{box}{cause}"

    def _faults_of(self, number: int, rows: Int64s | slice = slice(None)) -> Iterator[Fault]:
        """What is wrong with all or some windows on a page that is open, by its tags."""
        page = self.opened_page(number)
        try:
            shown = self._shown(number, rows)
            windows = self.exact_windows(rows)
            shape = self._sized(number)
        except LazyTilesError as error:
            yield "other grid", np.ones(len(np.arange(len(self))[rows]), np.bool_), f": {error}"
            return
        every = np.ones(len(shown), np.bool_)
        if not len(shown):
            return
        if not self.on_ground and number % self.parts == 0:
            differing = list(self._disagreements(number))
            yield from ((kind, every, cause) for kind, cause in differing)
            if differing and self._is_bound:
                return
        form, size = self.form, f"{shape[0]} x {shape[1]}"
        if self.units.mpp is not None and not self.follows:
            yield from self._faults_of_extent(number, rows, windows)
        extents = windows[:, 2:] - windows[:, :2]
        if self.units.kind == "base":
            extents = np.maximum(1, np.round(extents / self._levels[number].downsample))
        is_sized = form.resample is None and number % self.parts == 0 and self.units.mpp is None
        is_sized = is_sized and (self.whole or self.boxes is not None or self.units.kind == "base")
        if is_sized and not (self._is_bound and not self.on_ground):
            other = (extents != form.size).any(axis=1)
            high, wide = extents[np.argmax(other)].astype(int).tolist()
            height, width = form.size
            cause = f": {page} is {size} pixels, the first image is {height} x {width}"
            if not self.whole:
                cause = f" is {high} x {wide} pixels of {page}, the first is {height} x {width}"
            if other.any():
                yield "mixed size", other, f"{cause}; pass size=(height, width) to resample them to one size"
        if self.whole and not self.on_ground:
            return
        low, high = shown[:, :2], shown[:, 2:]
        if shown.dtype.kind == "f":  # the centres of the outer pixels
            half = (high - low) / (2 * np.array(form.size))
            low, high = np.minimum(low, high) + abs(half), np.maximum(low, high) - abs(half)
        slack = 1.0 if self._is_scaled else _EXACT  # a mask may lack what would be a part of a pixel of it
        if form.pad is None:
            outside = np.asarray(((low < -_EXACT) | (high > np.array(page.shape[:2]) + slack)).any(axis=1))
            if self.units.kind == "base" and not self.follows:  # also by less than a pixel of the level that is read
                boxes = self.windows[rows]
                outside |= ((boxes[:, :2] < 0) | (boxes[:, 2:] > shape)).any(axis=1)
            cause = f' leaves region {self.name} ({page.file.path}, {size}); pass pad="reflect" or correct the box'
        else:
            outside = np.asarray(((high <= 0) | (low >= page.shape[:2])).any(axis=1))
            cause = f" does not meet region {self.name} ({page.file.path}, {size}): there is nothing to pad; correct it"
        if outside.any():
            yield "window outside", outside, cause

    def _faults_of_extent(self, number: int, rows: Int64s | slice, windows: NDArray[Any]) -> Iterator[Fault]:
        """Boxes whose extent is another than that of tiles of so many micrometres."""
        page, boxes = self.opened_page(number), self.windows[rows]
        other = np.asarray((abs(windows - boxes) > 1 + _EXACT).any(axis=1))
        if other.any():
            first = int(np.argmax(other))
            high, wide = (boxes[first, 2:] - boxes[first, :2]).tolist()
            wanted = " x ".join(f"{n:.6g}" for n in (windows[first, 2:] - windows[first, :2]).tolist())
            height, width = self.form.size
            said = f" is {high} x {wide} pixels of {page.file.path}, where {height} x {width} pixels of"
            cure = "correct it, or pass another size= or mpp="
            yield "other extent", other, f"{said} {self.units.mpp:g} micrometres are {wanted}; {cure}"

    def _sized(self, number: int) -> tuple[int, int]:
        """The height and width of an image in the units of windows: of its level 0, or of the page that is open."""
        return self._levels[number].shape if self.units.kind == "base" else self.opened_page(number).shape[:2]

    def _disagreements(self, number: int) -> Iterator[tuple[str, str]]:
        """What forbids to cut a page by the same boxes of pixels as the other frames, and as its mask or image."""
        page, beside = self.opened_page(number), list[tuple[RegionTiles, int]]()
        with suppress(LazyTilesError):  # what cannot be opened says so when it is read
            at = None if self.partner is None else self.partner.last()
            beside = [(self.partner, at)] if self.partner is not None and at is not None else []
        frames = [(self, other) for other in self._there() if other % self.parts == 0 and other != number]
        is_resized = self.whole and self.form.resample is not None and self.units.kind != "base"
        for kind, said, others in (
            ("frames differ", "the frames of a tile are cut by one box, ", [] if is_resized else frames),
            ("mask differs", "an image and its mask are cut by one box, ", beside),
        ):
            for tiles, at in others:
                other = tiles.opened_page(at)
                mine, its = self._sized(number), tiles._sized(at)
                if tiles is not self and self.units.mask_scale is not None:
                    if cause := self._other_scale(number, tiles, at):
                        yield kind, cause
                elif are_placed(page, other):
                    if self.units.kind != "base" and (far := apart(other, page)):
                        cure = (
                            "so they lie on one grid: bring them to one, or give boxes in map units with coordinates="
                        )
                        yield "other grid", f': {page.file.path} {far}; {said}{cure}"map"'
                        break
                elif mine != its:
                    cure = "so they have one extent" + (
                        ": bring them to one size and place" if others is frames else ""
                    )
                    if tiles is not self:
                        times = max(1, round(max(max(mine) / max(its), max(its) / max(mine))))
                        cure += f"; of a mask at another scale say what one of its pixels is: mask_scale={times}"
                    sizes = f"{page.file.path} is {_by(mine)} pixels, {other.file.path} is {_by(its)}"
                    yield kind, f": {sizes}; {said}{cure}"
                    break

    def _other_scale(self, number: int, tiles: RegionTiles, at: int) -> str:
        """What is wrong between a page and that of its mask, or of its image, by the scale that is given."""
        pair = [(self.opened_page(number), self._levels[number]), (tiles.opened_page(at), tiles._levels[at])]
        (mask, _), (image, level) = pair if self.follows else pair[::-1]
        if self.units.fits(image, level, mask):
            return ""
        y, x = self.units.scale_of(image, level, mask)
        wanted = f"{level.shape[0] / y:.6g} x {level.shape[1] / x:.6g}"
        return (
            f": {mask.file.path} is {_by(mask.shape[:2])} pixels, where {image.file.path}, {_by(level.shape)} pixels, "
            f"would have a mask of {wanted} by mask_scale={self.units.mask_scale!r}; correct mask_scale="
        )

    def pair(self, masks: RegionTiles) -> None:
        """Let tiles and the masks of the same windows see that they have one extent."""
        self.partner, masks.partner = masks, self
        masks.follows = True

    def last(self) -> int | None:
        """The number of the first page of the last frame that is there, which is opened."""
        firsts = reversed(range(0, len(self.regions), self.parts))
        return next((number for number in firsts if self.page(number) is not None), None)

    def last_page(self) -> Page | None:
        """The page of the last frame that is there."""
        number = self.last()
        return None if number is None else self._pages[number]

    def opened_page(self, number: int) -> Page:
        """A page that has been opened."""
        page = self._pages[number]
        assert page is not None
        return page

    def faults(self) -> Iterator[Fault]:
        """Everything that would fail when tiles of this region are read, by its tags; opens every frame.

        Yields
        ------
        the kind of fault, the mask of the tiles that have it, and the cause, to stand behind the words for a tile
        """
        said: dict[str, NDArray[np.bool_]] = {}
        for number in range(len(self.regions)):
            try:
                page = self.page(number)
            except LazyTilesError as error:
                yield "unreadable image", np.arange(len(self)) == 0, f": {error}"
                continue
            for kind, bad, cause in self._faults_of(number) if page is not None else ():
                new = bad & ~said.get(kind, np.zeros(len(self), np.bool_))
                said[kind] = bad | said.get(kind, bad)
                if new.any():
                    yield kind, new, cause

    def verify(self) -> list[str]:
        """`faults` as messages, of each kind the first."""
        found = ((kind, int(np.flatnonzero(bad)[0]), cause) for kind, bad, cause in self.faults())
        return [
            f"{self.describe(row)}{cause}" if kind == "unreadable image" else self._words(row, cause)
            for kind, row, cause in found
        ]

    def add_to(self, gather: Gather, rows: Int64s, frames: Int64s, slots: Int64s) -> None:
        """Put some of its tiles on the way, or say why they cannot be read."""
        parts = self.parts
        is_single = len(self.regions) == parts
        for frame in range(len(self.regions) // parts):
            chosen = slice(None) if is_single else np.flatnonzero(frames == frame)
            if not len(rows[chosen]):
                continue
            if self.regions[frame * parts] is None:
                gather.leave_out(slots[chosen])
                continue
            for part in range(parts):
                if self.form.parts and not self.form.parts[part][0]:
                    continue
                self._add_page(gather, frame * parts + part, rows[chosen], slots[chosen])

    def _add_page(self, gather: Gather, number: int, rows: Int64s, slots: Int64s) -> None:
        """Put what one page gives to some tiles on the way."""
        try:
            page = self.page(number)
            assert page is not None
            if not self.is_sound:
                good = np.ones(len(rows), np.bool_)
                for _, bad, cause in self._faults_of(number, rows):
                    gather.fail(slots[bad], rows[bad], partial(self._refusal, cause))
                    good &= ~bad
                rows, slots = rows[good], slots[good]
            if len(rows):
                part = number % self.parts
                gather.add(page, self._shown(number, rows), slots, straight=self._straight, part=part)
        except LazyTilesError as error:
            gather.fail(slots, rows, partial(self._unopened, error))

    def _unopened(self, error: LazyTilesError, row: int) -> LazyTilesError:
        named = type(error)(f"{self.describe(row)}: {error}")
        named.__cause__ = error
        return named

    def _refusal(self, cause: str, row: int) -> LazyTilesError:
        return ManifestError(self._words(row, cause))

    def part(self, rows: Int64s | slice, tile_name: Callable[[int], str]) -> RegionTiles:
        """Some of its windows as a source of their own, to be opened anew."""
        twin = copy.copy(self)
        twin._windows = None if self._windows is None else self._windows[rows]
        twin.boxes = None if self.boxes is None else self.boxes.part(rows)
        twin.shape = (len(np.arange(len(self))[rows]), *self.shape[1:])
        twin.tile_name = tile_name
        twin._relations = {}
        return twin

    @property
    def is_all_valid(self) -> bool:
        """Whether all is open, and no pixel of a tile can be invalid but by being NaN."""
        pages = self._there().items()
        if not self.is_sound or None in self.regions or any(has_invalid(page) for _, page in pages):
            return False
        shown = ((self._shown(number, slice(None)), page.shape[:2]) for number, page in pages)
        return all((windows[:, :2] >= 0).all() and (windows[:, 2:] <= shape).all() for windows, shape in shown)

    @property
    def base_windows(self) -> NDArray[Any]:
        """The windows in pixels of the page of the base, which is opened."""
        owner = self._owner()
        number = owner.last()
        relation = None if number is None or self.units.kind != "base" else owner._relation(number)
        return self.exact_windows() if relation is None else relation.boxes(self.exact_windows())

    def of_validity(self, kind: str) -> RegionTiles:
        """The same tiles, saying which of their pixels are valid, by ``"any"`` band or by ``"bands"``."""
        twin = copy.copy(self)
        twin.form = self.form.of_validity(kind)
        twin.dtype, twin.shape = twin.form.dtype, (*self.shape[: 1 + self.timed], *twin.form.inner_shape)
        twin.is_sliced = False
        twin._pages, twin._relations, twin._lock = list(self._pages), dict(self._relations), threading.RLock()
        twin._levels = dict(self._levels)
        return twin

    def __dask_tokenize__(self) -> Any:
        paths = [o.args[0] if isinstance(o, partial) else None for o in self.regions]
        openers = [(o, stamp(p) if isinstance(p, str) else None) for o, p in zip(self.regions, paths, strict=True)]
        boxes = self._windows if self.boxes is None else (self.boxes.values, self.boxes.crs)
        return token("lazytiles.RegionTiles", openers, boxes, astuple(self.form), self.timed, astuple(self.units))

    def __getstate__(self) -> dict[str, Any]:
        closed = dict.fromkeys(("is_sound", "is_sliced", "_straight"), False)
        found: dict[str, Any] = {"_windows": self._windows if self.boxes is None else None, "_relations": {}}
        found["_levels"] = {}
        return {**self.__dict__, **closed, **found, "_pages": [None] * len(self.regions), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __repr__(self) -> str:
        return f"<RegionTiles of {self.name!r}: {self.shape} {self.dtype}>"


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def stamp(path: str) -> tuple[int, int]:
    """(size, time of change in ns) of a file, by which another process knows it again; zeros if it is not local."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns
