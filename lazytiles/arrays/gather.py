"""Tiles of many regions on their way into batches: one plan, resized and padded where they need it.

`RegionTiles` says where its windows lie; `Gather` collects those that some batches want, from any
number of regions and frames, and reads them together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Int64s
from lazytiles.arrays.form import TileForm
from lazytiles.arrays.making import Whole, is_whole, made, on_another_grid, on_its_own_grid
from lazytiles.buffers import Memory, Placed, shared_shelf, shelf
from lazytiles.config import settings
from lazytiles.errors import LazyTilesError
from lazytiles.images import Page, Plan, Targets, Windows, carry_out, is_sendable, may_be_invalid, planned
from lazytiles.threads import do_all

_ARENA_BYTES = 16 * 2**20
_ARENAS = 16


class Gather:
    """Windows for a number of blocks, each `(n, height, width, bands)`, to be read as one plan.

    Of each tile the extents `box` (y, x, band) are wanted, moved by `origins`, int64 (total, 3), if there are any;
    `name` has the words that an error calls a row by.
    """

    def __init__(self, form: TileForm, box: Box, origins: Int64s | None, name: Callable[[int], str]) -> None:
        bandless = form.valid == "any"
        self.form = form
        self.box = (*box, (0, 1)) if bandless else box
        self.origins = np.column_stack([origins, 0 * origins[:, 0]]) if bandless and origins is not None else origins
        self._moves_bands = self.origins is not None and bool(self.origins[:, 2].any())
        self.name = name
        self.pages: list[Page] = []
        self._numbers: dict[int, int] = {}
        self._page: list[int] = []
        self._windows: list[Int64s] = []
        self._slots: list[Int64s] = []
        self._whole: dict[int, Whole] = {}
        self._absent: list[Int64s] = []
        self._failed: list[tuple[Int64s, Int64s, Callable[[int], LazyTilesError]]] = []
        self._count = 0

    @property
    def bands(self) -> tuple[int, ...] | None:
        """Which samples of the images are read."""
        if self.form.reads_all:
            return None
        if self.form.valid == "any":
            return self.form.bands
        low, high = (0, self.form.samples) if self._moves_bands else self.box[2]
        if (low, high) == (0, self.form.samples):
            return self.form.bands
        every = range(self.form.samples) if self.form.bands is None else self.form.bands
        return tuple(every)[low:high]

    def add(self, page: Page, windows: NDArray[Any], slots: Int64s, *, straight: bool = False, part: int = 0) -> None:
        """Windows (y0, x0, y1, x1) of a page, any size, maybe leaving it, and the rows of the blocks they fill.

        With `straight` all have a tile's size and lie inside the page. Windows of floats lie on another grid than the
        pixels, and are resampled to a tile's size where they are no whole pixels.
        """
        number = self._numbers.setdefault(id(page), len(self.pages))
        if number == len(self.pages):
            self.pages.append(page)
        made = self.form.is_made or self._moves_bands or page.dtype != self.form.dtype
        wholes: dict[int, Whole] = {}
        if windows.dtype.kind == "f":
            exact, windows = windows, np.round(windows).astype(np.int64)
            for k in np.flatnonzero(~is_whole(exact, self.form.size)).tolist():
                wholes[k] = on_another_grid(page, exact[k].tolist(), self.form)
                windows[k] = wholes[k].window
        if made or not straight:
            left = np.ones(len(windows), np.bool_) if made else ~is_straight(windows, self.form.size, page.shape[:2])
            for k in np.flatnonzero(left).tolist():
                if k not in wholes:
                    wholes[k] = on_its_own_grid(page, windows[k].tolist(), self.form)
        for k, whole in wholes.items():
            whole.part = part
            if self.form.valid and not may_be_invalid(page):  # then nothing is read
                whole.box = np.zeros(4, np.int64)
            self._whole[self._count + k] = whole
        self._page.append(number)
        self._windows.append(windows)
        self._slots.append(slots)
        self._count += len(slots)

    def leave_out(self, slots: Int64s) -> None:
        """Rows of the blocks whose image is missing; they hold the fill."""
        self._absent.append(slots)

    def fail(self, slots: Int64s, rows: Int64s, error_of: Callable[[int], LazyTilesError]) -> None:
        """Rows of the blocks that cannot be read, and what gives the error of one by its row in the region."""
        self._failed.append((slots, rows, error_of))

    def failures(self, lengths: Sequence[int]) -> dict[int, LazyTilesError]:
        """The first error of each block that cannot be completed, by the block's number; see `read`."""
        ends, found = np.cumsum(lengths), dict[int, LazyTilesError]()
        for slots, rows, error_of in self._failed:
            numbers, first = np.unique(np.searchsorted(ends, slots, side="right"), return_index=True)
            for number, k in zip(numbers.tolist(), first.tolist(), strict=True):
                if number not in found:
                    found[number] = error_of(int(rows[k]))
        return found

    def raise_any(self) -> None:
        """Raise the first error, if anything cannot be read."""
        for error in self.failures([np.iinfo(np.int64).max]).values():
            raise error

    def windows(self) -> Windows:
        """What has been collected."""
        if not self._count:
            return Windows((), np.empty(0, np.int64), np.empty((0, 4), np.int64), self.bands)
        (y0, y1), (x0, x1) = self.box[:2]
        boxes = np.concatenate(self._windows)[:, [0, 1, 0, 1]] + np.array([y0, x0, y1, x1], dtype=np.int64)
        if self.origins is not None:
            boxes += self.origins[np.concatenate(self._slots)][:, [0, 1, 0, 1]]
        for k, whole in self._whole.items():
            boxes[k] = whole.box
        page = np.repeat(np.array(self._page, dtype=np.int64), [len(slots) for slots in self._slots])
        return Windows(self.pages, page, boxes, self.bands)

    def plan(self) -> Plan:
        """What will be read for it; what cannot be read is raised."""
        self.raise_any()
        return planned(self.windows())

    def read(
        self,
        lengths: Sequence[int],
        *,
        out: NDArray[Any] | None = None,
        threads: int | None = None,
        readers: int | None = None,
        stop: threading.Event | None = None,
        aside: bool = False,
    ) -> Iterator[tuple[int, NDArray[Any] | LazyTilesError]]:
        """Read blocks of so many rows, whose rows are the slots one after the other.

        `out` is the memory of all blocks, contiguous; None makes new ones. `readers` processes decode, where that is
        worth it; None as configured. The rest is as in `lazytiles.images.reader.carry_out`.

        Yields
        ------
        (number of a block, its array (rows, height, width, bands) or why it cannot be completed), each block once, as
        they are ready
        """
        slots = np.concatenate(self._slots) if self._slots else np.empty(0, np.int64)
        number = np.repeat(np.arange(len(lengths)), lengths)[slots]
        windows = self.windows()
        plan = planned(windows, number if len(lengths) > 1 else None)
        readers = settings().readers if readers is None else readers
        alike = len({page.dtype for page in self.pages}) == 1
        is_sent = out is None and bool(readers) and alike and is_sendable(plan)
        blocks: list[Any] = self._blocks(lengths, out, is_sent=is_sent, is_kept=aside)
        own = [row for block in blocks for row in block]
        if self.form.parts and self.form.valid == "any":
            for block in blocks:
                block[...] = False
        for absent in self._absent:
            for slot in absent.tolist():
                own[slot][...] = self._fill(slot)
        own = [own[slot] for slot in slots.tolist()]
        placed = self._placed(blocks, slots, windows) if is_sent else None
        targets = own if not self._whole else _Scratch(own, self._whole, windows)
        members: list[Int64s] = []
        if self._whole:
            ends = np.cumsum(np.bincount(plan.batch, minlength=len(lengths)))[:-1]
            members = np.split(np.argsort(plan.batch, kind="stable"), ends)
        for batch in np.flatnonzero(np.bincount(number, minlength=len(lengths)) == 0).tolist():
            yield batch, blocks[batch]
            blocks[batch] = None
        options: dict[str, Any] = {"threads": threads, "stop": stop, "aside": aside}
        for batch, failed in carry_out(plan, targets, placed=placed, readers=readers, **options):
            result, blocks[batch] = blocks[batch], None
            try:
                for window, reason in failed.items():
                    raise type(reason)(f"{self.name(int(slots[window]))}: {reason}") from reason
                if self._whole:
                    self._finish(members[batch].tolist(), targets, own, slots, threads)
            except LazyTilesError as reason:
                result = reason
            yield batch, result
            del result  # a batch that its consumer dropped is not kept alive here

    def _blocks(
        self, lengths: Sequence[int], out: NDArray[Any] | None, *, is_sent: bool, is_kept: bool
    ) -> list[NDArray[Any]]:
        inner = tuple(stop - start for start, stop in self.box)
        if out is None and not is_sent:
            return [(shelf.empty if is_kept else np.empty)((n, *inner), self.form.dtype) for n in lengths]
        if out is not None:
            arenas = [out.reshape(sum(lengths), *inner)]
        else:  # neighbouring blocks share one memory: each is open in every process that reads
            most = max(_ARENA_BYTES, sum(lengths) * self._row_bytes // _ARENAS)
            rows: list[int] = []
            for n in filter(None, lengths):
                if rows and (rows[-1] + n) * self._row_bytes <= most:
                    rows[-1] += n
                else:
                    rows.append(n)
            arenas = [shared_shelf.empty((n, *inner), self.form.dtype) for n in rows]
        blocks = []
        for n in lengths:
            if len(arenas[0]) < n:
                del arenas[0]
            blocks.append(arenas[0][:n])
            arenas[0] = arenas[0][n:]
        return blocks

    @property
    def _row_bytes(self) -> int:
        return math.prod(stop - start for start, stop in self.box) * self.form.dtype.itemsize

    def _placed(self, blocks: Sequence[NDArray[Any]], slots: Int64s, windows: Windows) -> Placed:
        """Where the windows go, in the shared memory of the blocks and of what is only on its way to them."""
        row, memories, starts, offsets = self._row_bytes, list[Memory](), list[int](), list[int]()
        first = 0
        for block in blocks:
            if not len(block):
                continue
            place = shared_shelf.place(block)
            if not memories or place.memory is not memories[-1]:
                memories.append(place.memory)
                starts.append(first)
                offsets.append(place.offset)
            first += len(block)
        at = np.searchsorted(starts, slots, side="right") - 1
        where = np.empty((len(slots), 5), np.int64)
        where[:, 0] = at
        where[:, 1] = (slots - np.array(starts)[at]) * row + np.array(offsets)[at]
        where[:, 2:] = [stop - start for start, stop in self.box]
        if self._whole:
            number = np.array(sorted(self._whole))
            y0, x0, y1, x1 = windows.boxes[number].T
            samples = [self._whole[k].page.shape[2] if windows.bands is None else len(windows.bands) for k in number]
            shapes = np.column_stack([y1 - y0, x1 - x0, samples])
            dtype = self.pages[0].dtype  # of all of them
            sizes = shapes.prod(axis=1) * dtype.itemsize
            begins = np.cumsum(sizes) - sizes
            scratch = shared_shelf.empty((max(1, int(sizes.sum())),), np.dtype(np.uint8))
            place = shared_shelf.place(scratch)
            for k, begin, shape in zip(number.tolist(), begins.tolist(), shapes.tolist(), strict=True):
                self._whole[k].pixels = np.ndarray(shape, dtype, scratch, begin)
            where[number] = np.column_stack([np.full(len(number), len(memories)), begins + place.offset, shapes])
            memories.append(place.memory)
        return Placed(tuple(memories), where)

    def _finish(
        self, windows: Sequence[int], targets: Targets, own: Sequence[NDArray[Any]], slots: Int64s, threads: int | None
    ) -> None:
        """Make tiles of the windows that were not read straight into their places, and put there what is wanted."""
        whole = [window for window in windows if window in self._whole]
        form, bands, lock = self.form, self.bands, threading.Lock()

        def finish(k: int) -> None:
            window = whole[k]
            one, row, slot = self._whole[window], own[window], int(slots[window])
            try:
                tile = made(form, one, targets[window], bands, self._fill(slot, one))
            except LazyTilesError as error:
                raise type(error)(f"{self.name(slot)}: {error}") from error
            del self._whole[window]
            starts = [start for start, _ in self.box]
            if self.origins is not None:
                starts = (self.origins[slot] + starts).tolist()
            cut = tuple(slice(s, s + b - a) for s, (a, b) in zip(starts, self.box, strict=True))
            if not form.parts:
                row[...] = tile[cut if form.reads_all or self._moves_bands else cut[:2]]
            elif form.valid == "any":
                with lock:  # another part of the tile may be written by another thread
                    row |= tile[cut]
            else:
                at = np.array(form.parts[one.part][1]) - starts[2]
                there = (at >= 0) & (at < row.shape[2])
                row[..., at[there]] = tile[cut[:2]][..., there]

        do_all(finish, len(whole), threads)

    def _fill(self, slot: int, whole: Whole | None = None) -> Any:
        """What a row holds where no image says it: one value, or one for each of its bands or those of a window."""
        fill = self.form.fill
        if len(fill) == 1:
            return fill[0]
        if whole is not None and self.form.parts:
            return np.array(fill)[list(self.form.parts[whole.part][1])]
        if whole is not None and (self.form.reads_all or self._moves_bands):
            return np.array(fill)
        start = 0 if self.origins is None else int(self.origins[slot, 2])
        return np.array(fill)[slice(*(start + end for end in self.box[2]))]


class _Scratch:
    """Where windows are read to: into their rows, or into memory of their own where more is to be done with them."""

    def __init__(self, own: Sequence[NDArray[Any]], whole: Mapping[int, Whole], windows: Windows) -> None:
        self._own, self._whole, self._windows = own, whole, windows
        self._lock = threading.Lock()

    def __getitem__(self, window: int) -> NDArray[Any]:
        whole = self._whole.get(window)
        if whole is None:
            return self._own[window]
        with self._lock:
            if whole.pixels is None:
                y0, x0, y1, x1 = self._windows.boxes[window].tolist()
                bands = self._windows.bands
                samples = whole.page.shape[2] if bands is None else len(bands)
                whole.pixels = np.empty((y1 - y0, x1 - x0, samples), whole.page.dtype)
            return whole.pixels


def is_straight(windows: Int64s, size: tuple[int, int], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Which windows have a tile's size and lie inside a page of that shape: their pixels are the tile's."""
    sized = (windows[:, 2:] - windows[:, :2] == size).all(axis=1)
    inside = (windows[:, :2] >= 0).all(axis=1) & (windows[:, 2:] <= shape).all(axis=1)
    straight: NDArray[np.bool_] = sized & inside
    return straight
