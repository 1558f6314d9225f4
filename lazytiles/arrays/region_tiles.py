"""The tiles of one region as a source, and how tiles of several regions are read as one plan."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Fault, Int64s
from lazytiles.arrays.faults import check_page, faults_on
from lazytiles.arrays.form import ONE_PAGE, TileForm
from lazytiles.arrays.gather import Gather, is_straight
from lazytiles.arrays.making import is_whole
from lazytiles.arrays.reading import read_tiles
from lazytiles.arrays.relations import MapBoxes, Relation, Units, found_relation, level_of
from lazytiles.arrays.sources import Windowed
from lazytiles.errors import LazyTilesError, ManifestError, RegionError
from lazytiles.images import Level, Page, Region, cut_windows, has_invalid, slice_page
from lazytiles.indexing import request, token


class RegionTiles(Windowed):
    """Windows of one region, in one or several frames, as a source `(n, [frames,] [slices,] height, width, bands)`.

    Of each frame, and of it for each file, `regions` has what opens its region (called when a tile of it is first
    read), or None for what is missing and filled. `windows`, int64 (n, 4), (y0, x0, y1, x1), are pixels of the base,
    the image of the last frame's first part, or of its level 0; or they lie on the ground, and are known when the base
    is opened. `whole` ones are the images, whatever their size, and set when these are opened. With `timed` the frames
    are an axis of the samples. `units` in map units bring all images to the grid of the base by their georeference.
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
        super().__init__(name, tile_name, whole=whole)
        self.regions = tuple(regions)
        self.boxes = windows if isinstance(windows, MapBoxes) else None
        self._windows = None if isinstance(windows, MapBoxes) else windows
        self.form, self.timed, self.units = form, timed, units
        self.on_ground = units.kind == "map"
        frames = len(self.regions) // form.files
        self._pages: list[Page | None] = [None] * (frames * form.layout.planes * self.parts)
        self.levels: dict[int, Level] = {}  # of the pages of `there`: the shape of level 0, and how far down it is
        self._relations: dict[int, Relation | None] = {}
        self.is_sound = False  # whether every frame has been opened and no window leaves its region
        self.is_sliced = False  # whether every tile is nothing but a slice of an uncompressed page on this machine
        self._straight = False
        rows = len(windows.values) if isinstance(windows, MapBoxes) else len(windows)
        self.lead: tuple[int, ...] = ((frames,) if timed else ()) + form.layout.lead
        self.shape: tuple[int, ...] = (rows, *self.lead, *form.inner_shape)
        self.dtype = form.dtype

    @property
    def parts(self) -> int:
        """How many pages a plane of a tile is made of: the channels of each file."""
        return self.form.files * self.form.layout.channels

    @property
    def windows(self) -> Int64s:
        """(y0, x0, y1, x1) of each tile, pixels of the base, which is opened where only it can say them."""
        windows = self._windows
        if windows is None or (self.whole and self.is_bound):
            base, level = self._base()
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
        base, level = self._base()
        if base is None:
            return windows
        extents = np.multiply(self.form.size, self.units.ratio(base, level))
        return np.column_stack([windows[:, :2], windows[:, :2] + extents])

    def __getitem__(self, key: Any) -> Any:
        asked = request(key, self.shape, row_axes=1 + len(self.lead))
        return asked.finish(read_tiles([(self, np.arange(asked.n), asked.rows)], asked, self.form))

    def plane_of(self, places: tuple[Int64s, ...]) -> Int64s:
        """Which plane, of all frames, some places on the axes after the first are."""
        if not self.lead:
            return np.zeros(len(places[0]), np.int64)
        return np.asarray(np.ravel_multi_index(places[1:], self.lead), np.int64)

    def page(self, number: int) -> Page | None:
        """A page, plane by plane and of each part by part, opened now if it was not yet; None for a missing one."""
        opener = self.opener_of(number)
        function = self.regions[opener]
        if self._pages[number] is None and function is not None:
            with self._lock:
                if self._pages[number] is None:
                    self._open(opener, function())
            self._look()  # outside the lock: a mask looks at its image, and the image at its mask
        return self._pages[number]

    def opener_of(self, number: int) -> int:
        """What opens a page, as an index into `regions`."""
        layout = self.form.layout
        frame, file = number // (self.parts * layout.planes), number % self.parts // layout.channels
        return frame * self.form.files + file

    def first_of(self, opener: int, plane: int = 0) -> int:
        """The first page, of a plane, that an opener opens."""
        frame, file = divmod(opener, self.form.files)
        return (frame * self.form.layout.planes + plane) * self.parts + file * self.form.layout.channels

    def first_plane(self, number: int) -> int:
        """The page of the same part in the first plane of its region, which stands for all of them."""
        return self.first_of(self.opener_of(number)) + number % self.form.layout.channels

    def _open(self, opener: int, region: Region) -> None:
        """Take the pages of a region that was opened."""
        layout, first = self.form.layout, self.first_of(opener)
        if not self.follows:
            region = self.units.level_read(region)
        if len(region.pages) > 1 and layout == ONE_PAGE:
            raise RegionError(f"{region.path}: is a volume of {len(region.pages)} slices; use open_volumes")
        pages = layout.pages(region)
        for channel in range(layout.channels):
            check_page(pages[channel], self.form, first % self.parts + channel)
        level = level_of(region) if self.units.knows_levels else Level(pages[0].shape[:2])
        self.levels.update(dict.fromkeys(range(first, first + layout.channels), level))
        if self.whole and first % self.parts == 0:
            self._windows = self._whole(pages[0], level, slice(None))
        for plane in range(layout.planes):
            start = self.first_of(opener, plane)
            self._pages[start : start + layout.channels] = pages[plane * layout.channels :][: layout.channels]

    def _look(self) -> None:
        """See, with one more page open, whether all is sound and what may be read straight."""
        with suppress(LazyTilesError):  # who reads a tile is told
            for number in self.there():
                self.relation(number)  # which may open the base
        there = self.there()
        opened = {self.opener_of(number) for number in there}
        sound = len(opened) + self.regions.count(None) == len(self.regions)
        sound = sound and not any(True for number in there for _ in faults_on(self, number))
        straight = sliced = sound
        for number, page in there.items() if sound else ():
            windows = self.shown(number, slice(None))
            as_they_are = windows.dtype.kind != "f" and is_straight(windows, self.form.size, page.shape[:2]).all()
            straight = straight and bool(as_they_are)
            sliced = sliced and not page.file.is_remote and page.dtype == self.form.dtype
            sliced = sliced and self.relation(number) is None and not self.units.mpp
        self._straight = straight
        sliced = sliced and not self.form.is_made and None not in self.regions
        self.is_sliced = straight and sliced and all(page and page.raw_offsets is not None for page in self._pages)
        self.is_sound = sound

    def there(self) -> dict[int, Page]:
        """The pages that have been opened, by their number; of the planes of one region the first stands for all."""
        firsts = (number for number in range(len(self._pages)) if number == self.first_plane(number))
        return {number: page for number in firsts if (page := self._pages[number]) is not None}

    def base(self) -> Page | None:
        """The page whose whole pixels the windows count: the last frame's that is there, of masks their image's."""
        return self._base()[0]

    def _base(self) -> tuple[Page | None, Level]:
        """The base, which is opened, and its level."""
        owner = self._owner()
        number = owner.last()
        return (None, Level((0, 0))) if number is None else (owner.opened_page(number), owner.levels[number])

    def _owner(self) -> RegionTiles:
        """The tiles that have the base: themselves, of masks those of the images."""
        return self.partner if self.follows and self.partner is not None else self

    @property
    def is_scaled(self) -> bool:
        """Whether these are masks of a scale that is given."""
        return self.follows and self.units.mask_scale is not None

    @property
    def is_bound(self) -> bool:
        """Whether the windows count no pixels of these images, but of the base."""
        return self.on_ground or self.is_scaled or (self.follows and self.units.kind == "base")

    def relation(self, number: int) -> Relation | None:
        """How a page lies on the base; None where its pixels are those of the base; see `found_relation`."""
        number = self.first_plane(number)
        if number not in self._relations:
            self._relations[number] = found_relation(self, number)
        return self._relations[number]

    def base_of(self, number: int) -> tuple[Page | None, Level]:
        """The page on whose grid a page is brought, and its level.

        That of its frame's first part; the base, where all lie on the ground, and of masks of another scale.
        """
        if self.is_bound:
            return self._base()
        first = self.first_plane(number - number % self.parts)
        page = self.page(first)
        return page, Level((0, 0)) if page is None else self.levels[first]

    def _whole(self, base: Page, level: Level, rows: Int64s | slice) -> Int64s:
        """The windows of whole images, in pixels of the base, or of its level 0."""
        shape = level.shape if self.units.kind == "base" else base.shape[:2]
        return np.broadcast_to(np.array([0, 0, *shape], np.int64), (len(np.arange(len(self))[rows]), 4))

    def shown(self, number: int, rows: Int64s | slice) -> NDArray[Any]:
        """Windows as (y0, x0, y1, x1) of a page: whole pixels where its grid is that of the base, else floats."""
        page, relation = self.opened_page(number), self.relation(number)
        windows = self.exact_windows(rows)
        if self.whole and self.units.mpp is None:
            base, level = self.base_of(number)
            windows = self._whole(base or page, level, rows)
        if relation is not None:
            shift = relation.shift(page.shape)
            windows = relation.boxes(windows) if shift is None else windows + shift
        if windows.dtype.kind == "f" and len(windows) and is_whole(windows, self.form.size).all():
            return np.round(windows).astype(np.int64)
        return windows

    def grid(self) -> tuple[tuple[int, int], Int64s, tuple[float, float]]:
        """What maps of the tiles lie on: its extents, and the window of each tile, whole pixels of it.

        And how many pixels (y, x) of the page of the base one of them is: 1 unless the tiles are of so many
        micrometres.
        """
        owner, (page, level), scale = self._owner(), self._base(), (1.0, 1.0)
        assert page is not None
        if owner.units.kind != "base":
            return page.shape[:2], owner.windows, scale
        boxes = owner.base_windows
        if owner.units.mpp is not None:
            y, x = np.divide(owner.units.ratio(page, level), level.downsample).tolist()
            scale = y, x
            boxes = boxes / np.array(scale * 2)
        starts = np.floor(boxes[:, :2] + 0.5).astype(np.int64)
        extents = np.maximum(1, np.round(boxes[:, 2:] - boxes[:, :2])).astype(np.int64)
        height, width = (max(1, int(np.floor(n / each + 0.5))) for n, each in zip(page.shape, scale, strict=False))
        return (height, width), np.concatenate([starts, starts + extents], axis=1), scale

    @property
    def scratch_bytes(self) -> int:
        """Bytes that the pixels of the windows of one sample take at most, where tiles are made of them by resampling.

        Those of whole images are not known before they are opened, and are not counted.
        """
        form = self.form
        if self.whole or self._windows is None or not (form.resample or form.is_made or form.pad or form.area):
            return 0
        area = form.area or int((self._windows[:, 2:] - self._windows[:, :2]).prod(axis=1).max(initial=0))
        return math.prod(self.lead) * area * max(form.samples, 4 if form.is_mixed else 1) * form.dtype.itemsize

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
        planes = self.plane_of(places)
        for plane, page in enumerate(self._pages):
            assert page is not None
            chosen = np.flatnonzero(planes == plane) if len(self._pages) > 1 else slice(None)
            targets = (block[slot] for slot in slots[chosen].tolist())
            slice_page(page, boxes[chosen], self.form.bands, targets)

    def sized(self, number: int) -> tuple[int, int]:
        """The height and width of an image in the units of windows: of its level 0, or of the page that is open."""
        return self.levels[number].shape if self.units.kind == "base" else self.opened_page(number).shape[:2]

    def last(self) -> int | None:
        """The number of the first page of the last frame that is there, which is opened."""
        firsts = reversed(range(0, len(self._pages), self.parts * self.form.layout.planes))
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
        """Everything that would fail when tiles of this region are read, by its tags; opens every frame."""
        said: dict[str, NDArray[np.bool_]] = {}
        for number in sorted({self.first_plane(number) for number in range(len(self._pages))}):
            try:
                page = self.page(number)
            except LazyTilesError as error:
                yield "unreadable image", np.arange(len(self)) == 0, f": {error}"
                continue
            for kind, bad, cause in faults_on(self, number) if page is not None else ():
                new = bad & ~said.get(kind, np.zeros(len(self), np.bool_))
                said[kind] = bad | said.get(kind, bad)
                if new.any():
                    yield kind, new, cause

    def add_to(self, gather: Gather, rows: Int64s, planes: Int64s, slots: Int64s) -> None:
        """Put some of its tiles, each of one of the planes, on the way, or say why they cannot be read."""
        parts = self.parts
        for plane in np.unique(planes).tolist() if len(self._pages) > parts else [0] * bool(len(rows)):
            chosen = np.flatnonzero(planes == plane) if len(self._pages) > parts else slice(None)
            if self.regions[self.opener_of(plane * parts)] is None:
                gather.leave_out(slots[chosen])
                continue
            for part in range(parts):
                if not self.form.parts or self.form.parts[part][0]:
                    self._add_page(gather, plane * parts + part, rows[chosen], slots[chosen])

    def _add_page(self, gather: Gather, number: int, rows: Int64s, slots: Int64s) -> None:
        """Put what one page gives to some tiles on the way."""
        try:
            page = self.page(number)
            assert page is not None
            if not self.is_sound:
                good = np.ones(len(rows), np.bool_)
                for _, bad, cause in faults_on(self, self.first_plane(number), rows):
                    gather.fail(slots[bad], rows[bad], partial(self._refusal, cause))
                    good &= ~bad
                rows, slots = rows[good], slots[good]
            if len(rows):
                part = number % self.parts
                gather.add(page, self.shown(number, rows), slots, straight=self._straight, part=part)
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
        return twin

    @property
    def is_all_valid(self) -> bool:
        """Whether all is open, and no pixel of a tile can be invalid but by being NaN."""
        pages = self.there().items()
        if not self.is_sound or None in self.regions or any(has_invalid(page) for _, page in pages):
            return False
        shown = ((self.shown(number, slice(None)), page.shape[:2]) for number, page in pages)
        return all((windows[:, :2] >= 0).all() and (windows[:, 2:] <= shape).all() for windows, shape in shown)

    @property
    def base_windows(self) -> NDArray[Any]:
        """The windows in pixels of the page of the base, which is opened."""
        owner = self._owner()
        number = owner.last()
        relation = None if number is None or self.units.kind != "base" else owner.relation(number)
        return self.exact_windows() if relation is None else relation.boxes(self.exact_windows())

    def of_validity(self, kind: str) -> RegionTiles:
        """The same tiles, saying which of their pixels are valid, by ``"any"`` band or by ``"bands"``."""
        twin = copy.copy(self)
        twin.form = self.form.of_validity(kind)
        twin.dtype, twin.shape = twin.form.dtype, (len(self), *self.lead, *twin.form.inner_shape)
        twin._pages, twin._relations, twin.levels = list(self._pages), dict(self._relations), dict(self.levels)
        return twin

    def __dask_tokenize__(self) -> Any:
        paths = [o.args[0] if isinstance(o, partial) else None for o in self.regions]
        openers = [(o, stamp(p) if isinstance(p, str) else None) for o, p in zip(self.regions, paths, strict=True)]
        boxes = self._windows if self.boxes is None else (self.boxes.values, self.boxes.crs)
        return token("lazytiles.RegionTiles", openers, boxes, astuple(self.form), self.timed, astuple(self.units))

    def __getstate__(self) -> dict[str, Any]:
        closed: dict[str, Any] = dict.fromkeys(("is_sound", "is_sliced", "_straight"), False)
        closed |= {"_pages": [None] * len(self._pages), "_relations": {}, "levels": {}}
        return super().__getstate__() | closed | {"_windows": self._windows if self.boxes is None else None}


def stamp(path: str) -> tuple[int, int]:
    """(size, time of change in ns) of a file, by which another process knows it again; zeros if it is not local."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns
