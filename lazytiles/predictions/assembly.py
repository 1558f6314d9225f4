"""One scan while its tiles come in: which tiles it has, where they lie, and what they become."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray

from lazytiles.aliases import Int64s
from lazytiles.config import settings
from lazytiles.images import Page, pool, resize, segment_cache
from lazytiles.indexing import box_words, boxes_from_windows
from lazytiles.predictions.canvas import Canvas
from lazytiles.predictions.sinks import FramesFirst, RowSink, open_sink
from lazytiles.stores import Ground, cast, ground_of, region_name, windows_in

Array = NDArray[Any]

_STEP = 128  # pixels: the cache is searched no more often


@dataclass(frozen=True, slots=True)
class Options:
    """What is wanted of every scan; see `predict`."""

    blend: str
    fill: Any
    dtype: DTypeLike | None
    with_x: bool
    paint: bool


@dataclass(frozen=True, slots=True, eq=False)
class ScanTiles:
    """The tiles of one scan, in the order in which they are read: source by source, from top to bottom."""

    id: Any  # of the region, or the value that its regions share
    positions: Int64s  # in the current order of the tiles
    numbers: Int64s  # their places in the manifest
    parts: tuple[tuple[Any, Int64s], ...]  # sources, each with the indices of its tiles
    stacked: bool  # whether each source is one slice of the scan

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def is_flat(self) -> bool:
        """Whether the scan has an axis of slices that its tiles lack."""
        return self.stacked or getattr(self.parts[0][0], "flat", False)

    def place(self) -> tuple[tuple[int, ...], Int64s] | None:
        """Extents of the scan and the window of each tile in it; None where samples are plain arrays."""
        found = [windows_in(*part) for part in self.parts]
        spaces = [part[0] for part in found if part is not None]
        if len(spaces) < len(found):
            return None
        if not self.stacked:
            return spaces[0], found[0][1]  # type: ignore[index]  # None was excluded above
        other = next((k for k, space in enumerate(spaces) if space != spaces[0] or len(space) != 2), None)
        if other is not None:
            raise ValueError(
                f"scan {self.id}: region {region_name(self.parts[other][0], other)} is {spaces[other]} pixels, the "
                f"first {spaces[0]}; only images of one size are stacked as slices"
            )
        windows = [np.insert(part[1], (0, 2), (k, k + 1), axis=1) for k, part in enumerate(found) if part is not None]
        return (len(spaces), *spaces[0]), np.concatenate(windows)


def scans_of(tiles: Any, by: str | None) -> list[ScanTiles]:
    """The scans of an array of tiles, in the manifest's order: the values of a column, or each region (source)."""
    if not len(tiles):
        return []
    regions, places = tiles.places
    pairs, numbers = places[:, :2], places[:, 2]
    group = pairs[:, 0]
    if by is not None:
        if tiles.table is None or by not in tiles.table:
            there = "no table" if tiles.table is None else ", ".join(map(str, tiles.table.columns))
            raise ValueError(f"by={by!r} is no column of the table; there are {there}")
        # The values count in the order of the first source that has them.
        codes = pd.factorize(tiles.table[by])[0]
        first = np.full(codes.max() + 2, len(codes), np.int64)
        np.minimum.at(first, codes, pairs[:, 0])
        group = np.argsort(np.argsort(first, kind="stable"))[codes]
    order = np.lexsort((numbers, pairs[:, 0], group))
    scans = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    sources = [np.split(scan, np.flatnonzero(np.diff(pairs[scan, 0])) + 1) for scan in scans]
    stacked = any(len(parts) > 1 for parts in sources)
    found = []
    for parts in sources:
        rows = []
        for part in parts:
            windows = getattr(regions[pairs[part[0], 0]], "windows", None)
            if windows is not None:
                here = windows[pairs[part, 1]]
                part = part[np.lexsort((numbers[part], *here.T[: here.shape[1] // 2][::-1]))]
            rows.append(part)
        positions = np.concatenate(rows)
        number = int(pairs[positions[0], 0])
        name = region_name(regions[number], number) if by is None else tiles.table[by].iloc[int(positions[0])]
        held = tuple((regions[pairs[part[0], 0]], pairs[part, 1]) for part in rows)
        found.append(ScanTiles(name, positions, numbers[positions], held, stacked))
    return found


def _is_above(page: Page, row: int, segment: int) -> bool:
    rows, columns = page.grid
    return segment // columns % rows < row // page.segment[0]


class Assembly:
    """One scan in the making: batches go in, a mapping comes out. `goal` is where its map goes.

    There may be labels, one row per tile of the scan; `tiles` is the array, for the shape of a sample and its table.
    """

    def __init__(self, scan: ScanTiles, tiles: Any, labels: Array | None, options: Options, goal: Any) -> None:
        self._scan, self._labels, self._options, self._goal = scan, labels, options, goal
        self._ids = None if tiles.table is None else tiles.table.get("tile_id")
        self._sample = tuple(tiles.shape[1:])
        self._place = scan.place()
        self._ground = Ground() if self._place is None else ground_of(scan.parts[0][0])
        self._rows: list[Array] = []
        self._canvases: dict[str, Canvas] = {}
        self._windows: dict[str, Int64s] = {}  # in pixels of each map
        self._sinks: dict[str, RowSink] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._moved: set[str] = set()
        self._added = 0
        # A region larger than the cache would fill it with segments that no later tile of the scan touches, and gain
        # nothing: they would be gone before they are read again.
        source, budget = scan.parts[0][0], settings().cache_bytes
        regions = () if scan.stacked else getattr(source, "regions", ())
        pages = [source.page(frame) for frame in range(len(regions))]
        self._large = [p for p in pages if p is not None and math.prod(p.shape) * p.dtype.itemsize > budget]
        self._row = 0  # of these, above which segments have left the cache, and bytes the memory map
        self.seconds = 0.0

    @property
    def missing(self) -> int:
        """Tiles that have not come yet."""
        return len(self._scan) - self._added

    def add(self, batch: Mapping[str, Array], start: int) -> int:
        """Take the rows of a batch (x, y, maybe masks) from `start` on that belong to this scan; how many these are."""
        count = min(self.missing, len(batch["y"]) - start)
        here = {name: np.asarray(values)[start : start + count] for name, values in batch.items()}
        for name in [name for name in ("y", "masks", "x") if name in here and (name != "x" or self._options.with_x)]:
            values, is_y = here[name], name == "y"
            if values.ndim <= 2:
                if is_y and self._goal is not None and (self._place is None or not self._options.paint):
                    raise ValueError(
                        f"the model gives {values.shape[1:] or 'one number'} a tile, a table and no map that out= "
                        "could take; leave out= away, or pass paint=True for a map of windows"
                    )
                self._rows.append(values)
            elif self._place is None:
                if name not in self._sinks:
                    dtype = np.dtype(self._options.dtype or values.dtype) if is_y else values.dtype
                    shape = (len(self._scan), *values.shape[1:])
                    self._sinks[name] = open_sink(self._goal if is_y else None, shape, dtype, axes=3)
                    self._dtypes[name] = dtype
                self._sinks[name].append(cast(values, self._dtypes[name]))
            else:
                self._stitch(name, values, here["x"], *self._place)
        self._added += count
        self._forget_passed()
        return count

    def _forget_passed(self) -> None:
        """Let go of the rows of large pages that lie behind: tiles come from top to bottom."""
        if self._place is None or not self._large or self._added >= len(self._place[1]):
            return
        row = int(self._place[1][self._added, 0])
        if row - self._row < _STEP:
            return
        for page in self._large:
            if page.raw_offsets is None:
                segment_cache.drop(page.key, partial(_is_above, page, row))
                continue
            line = page.strides[0]
            for offset in page.raw_offsets:
                pool.release(page.file, offset + self._row * line, offset + row * line)
        self._row = row

    def _stitch(self, name: str, values: Array, x: Array, space: tuple[int, ...], windows: Int64s) -> None:
        axes = len(space) - self._scan.is_flat
        tile = self._sample[-1 - axes : -1]
        timed = len(self._sample) > axes + 1
        step: tuple[int, ...] | None = (1,) * axes
        if timed and values.shape[1] == self._sample[0] and values.shape[2 : 2 + axes] == tile:
            self._moved.add(name)
            values = np.moveaxis(values, 1, 1 + axes)  # frames behind the axes of space
        else:
            step = _steps(tile, values.shape[1 : 1 + axes])
        if step is None or (max(step) > 1 and values.ndim < 2 + axes):  # rows of numbers, such as boxes, are no map
            raise ValueError(
                f"the model gives {values.shape[1:]} for tiles of {self._sample}; a map has the height and width of "
                "its tile, or a whole part of them and channels; a class or number has shape (n, k) or (n,)"
            )
        if self._scan.is_flat:
            values, step = values[:, np.newaxis], (1, *step)
        if name not in self._canvases:
            off = np.flatnonzero((windows[:, : len(step)] % step).any(axis=1))
            if off.size:
                raise ValueError(
                    f"each pixel that the model gives stands for {' x '.join(map(str, step))} pixels, but "
                    f"{box_words(windows[off[0]])} does not begin at a multiple of these; make the grid with such a "
                    "stride, and pad= at the edges"
                )
            self._windows[name] = -(-windows // (*step, *step))
            small = tuple(-(-n // k) for n, k in zip(space, step, strict=True))
            self._canvases[name] = self._canvas(name, small, self._windows[name], values.dtype, step)
        here, axes = self._windows[name][self._added : self._added + len(values)], len(space)
        extents = here[:, axes:] - here[:, :axes]
        source = None if self._ground.nodata is None else x[:, -1] if timed else x
        if source is not None and self._scan.is_flat:
            source = source[:, np.newaxis]
        if (extents == values.shape[1 : 1 + axes]).all():
            same = source is not None and source.shape[1 : 1 + axes] == values.shape[1 : 1 + axes]
            self._canvases[name].add(boxes_from_windows(here), values, source=source if same else None)
            return
        for k, (window, extent) in enumerate(zip(here, extents.tolist(), strict=True)):
            back = _resized(values[k], extent, nearest=name == "masks" or values.dtype.kind != "f")[np.newaxis]
            seen = None if source is None else _resized(source[k], extent, nearest=True)[np.newaxis]
            self._canvases[name].add(boxes_from_windows(window[np.newaxis]), back, source=seen)

    def _canvas(
        self, name: str, space: tuple[int, ...], windows: Int64s, dtype: np.dtype[Any], step: tuple[int, ...]
    ) -> Canvas:
        how: dict[str, Any] = {"blend": "crop", "fill": None if dtype.kind in "fc" else 0, "out": None}
        if name in ("y", "map"):
            o, ground = self._options, self._ground.shifted(0, 0, (float(step[-2]), float(step[-1])))
            how = {"blend": o.blend, "dtype": o.dtype, "fill": o.fill, "out": self._goal, "like": ground}
        how["out"] = FramesFirst(how["out"]) if name in self._moved else how["out"]
        return Canvas(space, boxes=boxes_from_windows(windows), **how)

    def finish(self, seconds: float) -> dict[str, Any]:
        """The scan, once all its tiles have come; so long after its `seconds` were last counted."""
        found: dict[str, Any] = {"id": self._scan.id}
        if self._options.with_x:
            found["x"] = self._whole("x")
        if self._rows:
            values = np.concatenate(self._rows)
            if self._options.paint and self._place is not None:
                (space, windows), axes = self._place, len(self._place[0])
                canvas = self._canvases["map"] = self._canvas("map", space, windows, values.dtype, (1,) * axes)
                for window, value in zip(windows, values, strict=True):
                    extents = tuple((window[axes:] - window[:axes]).tolist())
                    one = value if value.ndim and value.size > 1 else value.reshape(())
                    canvas.add(boxes_from_windows(window[np.newaxis]), np.broadcast_to(one, (1, *extents, *one.shape)))
                found["map"] = canvas.finish()
            order = np.argsort(self._scan.numbers, kind="stable")
            index = pd.Index(self._scan.numbers[order], name="number")
            if self._ids is not None:
                index = pd.Index(self._ids.iloc[self._scan.positions[order]], name="tile_id")
            if self._labels is not None:
                found["y_true"] = self._labels[order]
            single = values.ndim == 1 or values.shape[1] == 1
            columns = ["prediction"] if single else list(range(values.shape[1]))
            found["y_pred"] = pd.DataFrame(values[order].reshape(len(values), -1), index, columns)
        else:
            if "masks" in self._canvases or "masks" in self._sinks:
                found["y_true"] = self._whole("masks")
            elif self._place is None and self._labels is not None:
                found["y_true"] = self._labels
            found["y_pred"] = self._whole("y")
        found["seconds"] = self.seconds + seconds
        return found

    def _whole(self, name: str) -> Any:
        return self._sinks[name].close() if name in self._sinks else self._canvases[name].finish()

    def close(self) -> None:
        """Give up: leave no half-written file."""
        for canvas in self._canvases.values():
            canvas.close()
        for sink in self._sinks.values():
            sink.abort()


def _steps(tile: Sequence[int], given: Sequence[int]) -> tuple[int, ...] | None:
    """How many pixels of a tile each pixel of its map stands for; None where that is no whole number along each axis.

    >>> _steps((256, 256), (64, 128)), _steps((256, 256), (200, 200))
    ((4, 2), None)
    """
    if len(given) < len(tile) or any(not n or m % n for m, n in zip(tile, given, strict=True)):
        return None
    return tuple(m // n for m, n in zip(tile, given, strict=True))


def _resized(value: Array, extents: Sequence[int], *, nearest: bool) -> Array:
    """A map of a tile back at the size of its window."""
    *slices, height, width = extents
    if slices not in ([], [1]):
        raise ValueError("tiles of volumes are not resampled; their maps have the size of their window")
    flat = value.reshape(*value.shape[len(slices) : len(slices) + 2], -1)
    back = resize(flat, (height, width), "nearest" if nearest else "bilinear")
    return back.reshape(*extents, *value.shape[len(extents) :])
