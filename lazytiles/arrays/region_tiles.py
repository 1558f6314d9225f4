"""The tiles of one region as a source, and how tiles of several regions are read as one plan."""

from __future__ import annotations

import copy
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Fault, Int64s
from lazytiles.arrays.gather import Gather, TileForm, is_straight
from lazytiles.config import check_limit, count
from lazytiles.errors import LazyTilesError, ManifestError, RegionError
from lazytiles.images import Page, Region, bands_read, check_resample, cut_windows, is_remote, slice_page
from lazytiles.indexing import LazyArray, Request, box_words, request, token


class RegionTiles(LazyArray):
    """Windows of one region, in one or several frames, as a source `(n, [frames,] height, width, bands)`.

    Parameters
    ----------
    regions : for each frame the function that opens its region (called when a tile of it is first read), or None
        for a frame that is missing and filled with zeros
    windows : int64, shape (n, 4), (y0, x0, y1, x1), pixels
    form : what every tile looks like
    timed : whether the frames are an axis of the samples
    name : of the region, for messages
    tile_name : the words for one of its windows, by its number
    whole : whether each window is the whole image, whatever its size; `windows` are then set when it is opened
    """

    def __init__(
        self,
        regions: Sequence[Callable[[], Region] | None],
        windows: Int64s,
        form: TileForm,
        *,
        timed: bool,
        name: str,
        tile_name: Callable[[int], str],
        whole: bool = False,
    ) -> None:
        self.regions = tuple(regions)
        self.windows = windows
        self.form = form
        self.timed = timed
        self.whole = whole
        self.name = name
        self.tile_name = tile_name
        self.partner: RegionTiles | None = None  # the masks of these tiles, or the tiles of these masks
        self._pages: list[Page | None] = [None] * len(self.regions)
        self.is_sound = False  # whether every frame has been opened and no window leaves its region
        self.is_sliced = False  # whether every tile is nothing but a slice of an uncompressed page on this machine
        self._straight = False
        self._lock = threading.RLock()
        frames = (len(self.regions),) if timed else ()
        self.shape: tuple[int, ...] = (len(windows), *frames, *form.size, form.samples)
        self.dtype = form.dtype

    def __getitem__(self, key: Any) -> Any:
        asked = request(key, self.shape, row_axes=1 + self.timed)
        return asked.finish(read_tiles([(self, np.arange(asked.n), asked.rows)], asked, self.form))

    def page(self, frame: int) -> Page | None:
        """The page of a frame, opened now if it was not yet; None for a missing frame."""
        page = self._pages[frame]
        opener = self.regions[frame]
        if page is None and opener is not None:
            with self._lock:
                page = self._pages[frame]
                if page is None:
                    page = self._pages[frame] = self._open(opener)
            # Outside the lock: a mask looks at its image, and the image at its mask.
            opened, form = self.opened, self.form
            sound = len(opened) + self.regions.count(None) == len(self.regions)
            sound = sound and not any(True for one in opened for _ in self._faults_of(one))
            self._straight = sound and all(is_straight(self.windows, form.size, p.shape[:2]).all() for p in opened)
            local = all(p is not None and p.raw_offsets is not None and not p.file.is_remote for p in self._pages)
            self.is_sliced = local and self._straight and not form.is_mixed
            self.is_sound = sound
        return page

    @property
    def opened(self) -> list[Page]:
        """The pages of the frames that have been opened."""
        return [page for page in self._pages if page is not None]

    @property
    def scratch_bytes(self) -> int:
        """Bytes that the pixels of the windows of one sample take at most, where tiles are made of them by resampling.

        Those of whole images are not known before they are opened, and are not counted.
        """
        form = self.form
        if self.whole or not (form.resample or form.is_mixed or form.pad):
            return 0
        area = int((self.windows[:, 2:] - self.windows[:, :2]).prod(axis=1).max(initial=0))
        frames = len(self.regions) if self.timed else 1
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

    def _open(self, opener: Callable[[], Region]) -> Page:
        region = opener()
        page = region.pages[0]
        if len(region.pages) > 1:
            raise RegionError(f"{region.path}: is a volume of {len(region.pages)} slices; use open_volumes")
        form = self.form
        read = bands_read(page, form.asked, form.gray)
        if page.dtype != form.dtype or (form.asked is None and not form.gray and len(read) != form.samples):
            raise RegionError(
                f"{page}: holds {page.shape[2]} bands of {page.dtype}, the other regions hold {form.samples} of "
                f"{form.dtype}; regions of one array must agree: convert it, or choose bands=[...]"
                + (', bands="rgb" or gray=True' if page.shape[2] in (1, 3, 4) and form.samples in (1, 3, 4) else "")
            )
        if form.bands is not None and read != form.bands:
            raise RegionError(
                f"{page}: has {page.shape[2]} bands, of which bands={list(form.asked or ())} are {list(read)}, but "
                f"{list(form.bands)} of the other regions; count the bands from the first, 0"
            )
        check_resample(page, form.resample)
        if self.whole:
            self.windows = np.broadcast_to(np.array([0, 0, *page.shape[:2]], dtype=np.int64), self.windows.shape)
        return page

    def describe(self, row: int) -> str:
        """The words for one of its windows, with its box as users write it."""
        if self.whole:
            return f"{self.tile_name(row)}, the whole of region {self.name}"
        return f"{self.tile_name(row)} with {box_words(self.windows[row])} of region {self.name}"

    def _words(self, row: int, cause: str) -> str:
        box = "" if self.whole else f": {box_words(self.windows[row])}"
        return f"{self.tile_name(row)}{box}{cause}"

    def _faults_of(self, page: Page, rows: Int64s | None = None) -> Iterator[Fault]:
        """What is wrong with all or some windows of a page that is open, by its tags."""
        windows = self.windows if rows is None else self.windows[rows]
        every = np.ones(len(windows), np.bool_)
        if not len(windows):
            return
        size = f"{page.shape[0]} x {page.shape[1]}"
        is_resized = self.whole and self.form.resample is not None
        others = (one for one in self.opened if one.shape[:2] != page.shape[:2])
        others = (one for one in others if not (one.georeference and page.georeference))
        other, beside = next(others, None), None
        with suppress(LazyTilesError):  # what cannot be opened says so when it is read
            beside = None if self.partner is None else self.partner.last_page()
        if other is not None and not is_resized:
            cause = f": {page.file.path} is {size} pixels, {_sized(other)}; the frames of a tile are cut by one box, "
            yield "frames differ", every, cause + "so they have one extent: bring them to one size and place"
        if beside is not None and beside.shape[:2] != page.shape[:2]:
            cause = f": {page.file.path} is {size} pixels, {_sized(beside)}; an image and its mask are cut by one box, "
            yield "mask differs", every, cause + "so they have one extent"
        if self.whole:
            if not is_resized and page.shape[:2] != self.form.size:
                height, width = self.form.size
                cause = f": {page} is {size} pixels, the first image is {height} x {width}; pass size=(height, width) "
                yield "mixed size", every, cause + "to resample them to one size"
            return
        low, high = windows[:, :2], windows[:, 2:]
        if self.form.pad is None:
            outside = np.asarray(((low < 0) | (high > page.shape[:2])).any(axis=1))
            cause = f' leaves region {self.name} ({page.file.path}, {size}); pass pad="reflect" or correct the box'
        else:
            outside = np.asarray(((high <= 0) | (low >= page.shape[:2])).any(axis=1))
            cause = f" does not meet region {self.name} ({page.file.path}, {size}): there is nothing to pad; correct it"
        if outside.any():
            yield "window outside", outside, cause

    def pair(self, masks: RegionTiles) -> None:
        """Let tiles and the masks of the same windows see that they have one extent."""
        self.partner, masks.partner = masks, self

    def last_page(self) -> Page | None:
        """The page of the last frame that is there."""
        frames = reversed(range(len(self.regions)))
        return next((page for page in map(self.page, frames) if page is not None), None)

    def faults(self) -> Iterator[Fault]:
        """Everything that would fail when tiles of this region are read, by its tags; opens every frame.

        Yields
        ------
        the kind of fault, the mask of the tiles that have it, and the cause, to stand behind the words for a tile
        """
        said: dict[str, NDArray[np.bool_]] = {}
        for frame in range(len(self.regions)):
            try:
                page = self.page(frame)
            except LazyTilesError as error:
                yield "unreadable image", np.arange(len(self)) == 0, f": {error}"
                continue
            for kind, bad, cause in self._faults_of(page) if page is not None else ():
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
        single = len(self.regions) == 1
        for frame in range(len(self.regions)) if not single else (0,):
            chosen = slice(None) if single else np.flatnonzero(frames == frame)
            wanted, places = rows[chosen], slots[chosen]
            if not len(wanted):
                continue
            try:
                page = self.page(frame)
            except LazyTilesError as error:
                gather.fail(places, wanted, partial(self._unopened, error))
                continue
            if page is None:
                gather.leave_out(places)
                continue
            if not self.is_sound:
                good = np.ones(len(wanted), np.bool_)
                for _, bad, cause in self._faults_of(page, wanted):
                    gather.fail(places[bad], wanted[bad], partial(self._refusal, cause))
                    good &= ~bad
                wanted, places = wanted[good], places[good]
            gather.add(page, self.windows[wanted], places, straight=self._straight)

    def _unopened(self, error: LazyTilesError, row: int) -> LazyTilesError:
        named = type(error)(f"{self.describe(row)}: {error}")
        named.__cause__ = error
        return named

    def _refusal(self, cause: str, row: int) -> LazyTilesError:
        return ManifestError(self._words(row, cause))

    def part(self, rows: Int64s | slice, tile_name: Callable[[int], str]) -> RegionTiles:
        """Some of its windows as a source of their own, to be opened anew."""
        twin = copy.copy(self)
        twin.windows = self.windows[rows]
        twin.shape = (len(twin.windows), *self.shape[1:])
        twin.tile_name = tile_name
        return twin

    def __dask_tokenize__(self) -> Any:
        paths = [o.args[0] if isinstance(o, partial) else None for o in self.regions]
        openers = [(o, stamp(p) if isinstance(p, str) else None) for o, p in zip(self.regions, paths, strict=True)]
        return token("lazytiles.RegionTiles", openers, self.windows, astuple(self.form), self.timed)

    def __getstate__(self) -> dict[str, Any]:
        closed = dict.fromkeys(("is_sound", "is_sliced", "_straight"), False)
        return {**self.__dict__, **closed, "_pages": [None] * len(self.regions), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __repr__(self) -> str:
        return f"<RegionTiles of {self.name!r}: {self.shape} {self.dtype}>"


def _sized(page: Page) -> str:
    return f"{page.file.path} is {page.shape[0]} x {page.shape[1]}"


def stamp(path: str) -> tuple[int, int]:
    """(size, time of change in ns) of a file, by which another process knows it again; zeros if it is not local."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


Parts: TypeAlias = "Sequence[tuple[RegionTiles, Int64s, tuple[Int64s, ...]]]"


def gathered(parts: Parts, box: Box, origins: Int64s | None, form: TileForm) -> Gather:
    """Tiles of some regions on their way into blocks.

    Parameters
    ----------
    parts : for each region its tiles, the slots that they fill, and their rows (and frames) in the region
    box, origins : what is wanted of each tile, as in `Request`
    """
    where: list[tuple[RegionTiles, Int64s, Int64s]] = []

    def name(slot: int) -> str:
        for tiles, slots, rows in where:
            hit = np.flatnonzero(slots == slot)
            if len(hit):
                return tiles.describe(int(rows[hit[0]]))
        return "tile"

    open_ahead(tiles for tiles, _, _ in parts)
    gather = Gather(form, box, origins, name)
    for tiles, slots, places in parts:
        frames = places[1] if tiles.timed else np.zeros(len(slots), dtype=np.int64)
        where.append((tiles, slots, places[0]))
        tiles.add_to(gather, places[0], frames, slots)
    return gather


def open_ahead(sources: Iterable[Any]) -> None:
    """Open together the regions behind addresses among some sources; what fails says so when it is read."""
    waiting = [
        (tiles, frame)
        for tiles in sources
        if isinstance(tiles, RegionTiles) and not tiles.is_sound
        for frame, opener in enumerate(tiles.regions)
        if isinstance(opener, partial) and opener.args and is_remote(str(opener.args[0]))
    ]
    if len(waiting) > 1:
        with ThreadPoolExecutor(min(32, len(waiting)), thread_name_prefix="lazytiles-open") as threads:
            for opened in [threads.submit(tiles.page, frame) for tiles, frame in waiting]:
                with suppress(LazyTilesError):
                    opened.result()


def read_tiles(
    parts: Parts,
    asked: Request,
    form: TileForm,
    *,
    out: NDArray[Any] | None = None,
    threads: int | None = None,
    readers: int | None = None,
) -> NDArray[Any]:
    """The block of a request over the tiles of some regions; the first error met is raised."""
    shape = asked.block_shape
    check_limit(math.prod(shape) * form.dtype.itemsize, "a read of {}", shape)
    if all(shape):
        short = _slices(parts, asked, form, shape, out)
        if short is not None:
            return short
    gather = gathered(parts, asked.box, asked.origins, form)
    gather.raise_any()
    if not all(shape):
        return np.empty(shape, form.dtype) if out is None else out.reshape(shape)
    ((_, block),) = gather.read([shape[0]], out=out, threads=threads, readers=readers)
    if isinstance(block, LazyTilesError):
        raise block
    return block


def _slices(
    parts: Parts, asked: Request, form: TileForm, shape: tuple[int, ...], out: NDArray[Any] | None
) -> NDArray[Any] | None:
    """The block by the short way of uncompressed pages, where there is nothing to plan; None: take the long one.

    The long way is also for what fails here: it says which tile it was.
    """
    if asked.origins is not None or asked.box[2] != (0, form.samples):
        return None
    for tiles, _, _ in parts:
        if not tiles.is_sliced:
            return None
    try:
        block = parts[0][0].sliced(asked.box[:2], parts[0][2]) if len(parts) == 1 and out is None else None
        if block is None:
            block = np.empty(shape, form.dtype) if out is None else out.reshape(shape)
            for tiles, slots, places in parts:
                tiles.slice_into(block, asked.box[:2], slots, places)
    except LazyTilesError:
        return None
    count("bytes_read", block.nbytes)
    return block
