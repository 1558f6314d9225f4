"""Volumes: slices in separate files as one, and the tiles of volumes as samples."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Fault, Int64s
from lazytiles.arrays.faults import outside
from lazytiles.arrays.sources import Windowed
from lazytiles.config import check_limit
from lazytiles.errors import LazyTilesError, ManifestError, RegionError
from lazytiles.images import Region, Windows, around, open_region, read_windows, resize, to_integers, valid_windows
from lazytiles.indexing import LazyArray, needed, padded, request, size_words, trimmed


class RegionStack(LazyArray):
    """Images in separate files as one lazy volume; made by `stack_regions`.

    Attributes
    ----------
    shape : with the slices along `axis`
    dtype : of a sample
    pages : of all slices, in their order
    axis : where the slices are
    axes : a letter an axis: ``Z`` slices, ``Y`` rows, ``X`` columns, ``S`` samples
    """

    def __init__(self, slices: Sequence[Region], axis: int) -> None:
        first = slices[0]
        for k, other in enumerate(slices):
            if other.bands != first.bands:
                raise RegionError(
                    f"slice {k} ({other.path}) gives its bands {other.bands}, slice 0 ({first.path}) {first.bands}; "
                    "convert the slices to one number of bands"
                )
            if (other.shape, other.dtype) != (first.shape, first.dtype):
                raise RegionError(
                    f"slice {k} ({other.path}) is {other.shape} {other.dtype}, slice 0 ({first.path}) is "
                    f"{first.shape} {first.dtype}; only images of one shape and dtype are stacked"
                )
        if not -first.ndim - 1 <= axis <= first.ndim:
            raise ValueError(f"axis={axis} for slices of {first.ndim} axes; it is 0 to {first.ndim}")
        self.axis = axis % (first.ndim + 1)
        self.slices = tuple(slices)
        self.pages = tuple(page for one in slices for page in one.pages)
        self.bands = first.bands
        self.dtype = first.dtype
        self._volume = Region(self.pages, axes="Z", lead=(len(slices),), bands=first.bands, gray=first.gray, reopen=())
        shape = list(first.shape)
        shape.insert(self.axis, len(slices))
        self.shape: tuple[int, ...] = tuple(shape)
        self.path = os.path.dirname(first.path)
        self.axes = f"{first.axes[: self.axis]}Z{first.axes[self.axis :]}"

    @property
    def inner_shape(self) -> tuple[int, int, int]:
        """(height, width, samples) of one slice."""
        return self._volume.inner_shape

    def __getitem__(self, key: Any) -> Any:
        if not self.axis:
            return self._volume[key]
        return _of_moved(self._volume, key, self.shape, 0, self.axis)

    def __reduce__(self) -> tuple[Any, ...]:
        return RegionStack, (self.slices, self.axis)

    def __repr__(self) -> str:
        return f"<RegionStack of {len(self.slices)} files in {self.path!r}: {self.shape} {self.dtype}>"


def _of_moved(source: Any, key: Any, shape: tuple[int, ...], at: int, to: int) -> Any:
    """What a key takes of an array of that shape, which is a source with the axis `at` moved to `to`."""
    asked = request(key, shape, row_axes=0)  # without cells all is in one box, read once or, for False, not at all
    cut = [slice(*ends) for ends in asked.box]
    cut.insert(at, cut.pop(to))
    return asked.finish(np.stack([np.moveaxis(source[tuple(cut)], at, to)])[: asked.n])


def stack_regions(paths: str | os.PathLike[str] | Iterable[Any], *, axis: int = 0, **options: Any) -> RegionStack:
    """Open slices in separate files as one lazy volume; tags are read, no pixel is decoded.

    Parameters
    ----------
    paths : a folder, all files of which are slices, in natural order: ``slice_2`` before ``slice_10`` (hidden files
        and folders in it are left out); or the paths of the slices in their order, or regions
    axis : where the slices are: 0 gives `(Z, H, W[, S])`, 2 gives `(H, W, Z[, S])`
    options : of `open_region`

    Returns
    -------
    RegionStack, which takes NumPy's keys

    Raises
    ------
    RegionError : no slices, or slices that differ in shape or dtype, or a file that is no image

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for k in (9, 10, 11):
    ...         np.save(f"{folder}/slice_{k}.npy", np.full((4, 5), k))
    ...     volume = stack_regions(folder)
    ...     print(volume.shape, volume[:, 0, 0])
    (3, 4, 5) [ 9 10 11]
    """
    if isinstance(paths, str | os.PathLike):
        folder = os.fspath(paths)
        if not os.path.isdir(folder):
            raise TypeError(f"stack_regions takes a folder of slices or their paths, a list, not one path ({folder})")
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
        if not names:
            raise RegionError(f"{folder} holds no files; a volume needs at least one slice")
        paths = [os.path.join(folder, name) for name in sorted(names, key=natural)]
    if isinstance(axis, bool):
        raise ValueError(f"axis is a number, not {axis}")
    slices = [p if isinstance(p, Region) else open_region(p, **options) for p in paths]
    if not slices:
        raise RegionError("a volume needs at least one slice")
    stacked = next((one for one in slices if one.lead), None)
    if stacked is not None:
        raise RegionError(f"{stacked.path} holds several slices itself; stack images of one page")
    return RegionStack(slices, axis)


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """What names are sorted by so that numbers in them count: ``a2`` before ``a10``.

    >>> sorted(["a10", "a2", "a1b"], key=natural)
    ['a1b', 'a2', 'a10']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


class ChannelsLast(LazyArray):
    """A region of the axes CZYX or ZCYX as a volume `(Z, H, W, C)`."""

    def __init__(self, region: Region) -> None:
        self.region, self.path, self.spacing = region, region.path, region.spacing
        self.dtype, self._at = region.dtype, region.axes.index("C")
        shape = list(region.shape)
        shape.append(shape.pop(self._at))
        self.shape: tuple[int, ...] = tuple(shape)
        self.axes = f"{region.axes.replace('C', '')}C"

    def __getitem__(self, key: Any) -> Any:
        return _of_moved(self.region, key, self.shape, self._at, -1)

    def __repr__(self) -> str:
        return f"<ChannelsLast of {self.region!r}>"


def open_volume(
    path: str | os.PathLike[str], *, page: int | str | None = None, **options: Any
) -> Region | ChannelsLast:
    """One file as a volume `(Z, H, W[, S])`: all of its pages, or a series with channels last.

    Options are those of `open_region`; without `series`, `axes` or `channels` all pages are slices. A file of more axes
    than a volume is a RegionError.
    """
    named = any(options.get(name) is not None for name in ("series", "axes", "channels"))
    region = open_region(path, page=page if named or page is not None else "all", **options)
    letters = region.axes.partition("Y")[0]
    if len(letters) == 2 and "C" in letters and "S" not in region.axes:
        return ChannelsLast(region)
    if len(letters) > 1:
        raise RegionError(
            f"{region.path}: has the axes {region.axes}, {region.shape}; a volume has slices, rows, columns and "
            "channels: choose a page, a series, or one channel of it"
        )
    return region


@dataclass(frozen=True, slots=True)
class Sampling:
    """How boxes of volumes become tiles of another size."""

    size: tuple[int, int, int]  # (depth, height, width) of a tile, voxels
    # (z, y, x), micrometres, of a tile's voxels, which then begin at the box's first corner; None: the box is the tile.
    spacing: tuple[float, float, float] | None = None
    source: tuple[float, float, float] | None = None  # spacing of the volumes, by hand
    method: str = "bilinear"  # of `resize`

    def stops(self, volume: Any, windows: Int64s) -> NDArray[np.float64]:
        """Where the boxes of tiles end in a volume, voxels, shape (n, 3); refused where it does not say its spacing."""
        if self.spacing is None:
            return windows[:, 3:].astype(np.float64)
        own = self.source or getattr(volume, "spacing", None)
        if own is None:
            where = getattr(volume, "path", "an array")
            raise RegionError(f"{where}: does not say its spacing; pass source_spacing=(z, y, x), micrometres")
        ends: NDArray[np.float64] = windows[:, :3] + np.array(self.size) * np.divide(self.spacing, own)
        return ends

    def hull(self, low: Int64s, high: NDArray[np.float64], shape: Sequence[int]) -> Int64s:
        """The voxels that a tile is made of, (z0, y0, x0, z1, y1, x1), with the margins of the kernel."""
        ends = [
            around((a, a, b, b), (n, n), self.method, (length, length))
            for a, b, n, length in zip(low.tolist(), high.tolist(), self.size, shape, strict=False)
        ]
        return np.array([end[0] for end in ends] + [end[2] for end in ends])

    def __call__(self, block: NDArray[Any], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[Any]:
        """A tile from a block (depth, height, width, bands) of which the box low to high becomes it."""
        depth, height, width = self.size
        exact = block if self.method == "nearest" or block.dtype.kind == "f" else block.astype(np.float64)
        box = (low[1], low[2], high[1], high[2])
        flat = np.stack([resize(one, (height, width), self.method, box=box) for one in exact])
        columns = flat.reshape(len(flat), height * width, -1)
        deep = resize(columns, (depth, height * width), self.method, box=(low[0], 0, high[0], height * width))
        tile = deep.reshape(depth, height, width, -1)
        return tile if tile.dtype == block.dtype else to_integers(tile, block.dtype)


class VolumeTiles(Windowed):
    """Boxes of one volume as a source `(n, depth, height, width, bands)`.

    The `opener` gives the volume, an array-like `(Z, H, W[, S])`, when its first tile is read. Its `windows`, int64 (n,
    6), (z0, y0, x0, z1, y1, x1), pixels, have one extent; `whole` ones are the volume, which then must have it. With
    `context` so many neighbouring slices on either side are added as bands, repeated at the ends; tiles are then
    `(height, width, (2 context + 1) bands)`. `sampling` says how boxes become tiles of another size; None: they are the
    tiles.
    """

    def __init__(
        self,
        opener: Callable[[], Any],
        windows: Int64s,
        samples: int,
        dtype: Any,
        *,
        pad: str | None = None,
        context: int | None = None,
        name: str = "",
        tile_name: Callable[[int], str] = "tile {}".format,
        whole: bool = False,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__(name, tile_name, whole=whole)
        self.opener, self.pad, self.context, self.samples = opener, pad, context, samples
        self._windows = windows
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self._volume: Any = None
        self._judges = False  # whether these are not voxels, but which of them are valid
        self.sampling = sampling
        self._extent = tuple((windows[0, 3:] - windows[0, :3]).tolist())
        if sampling is not None and context is not None:
            raise ValueError("pass context= or size= and spacing=, not both")
        if context is not None and (isinstance(context, bool) or context < 0):
            raise ValueError(f"context={context}: how many neighbouring slices on either side, 0 or more")
        if context is not None and self._extent[0] != 1:
            raise ManifestError(f"context={context} needs boxes of one slice, not of {self._extent[0]}")
        height, width = self._extent[1:]
        extent = self._extent if sampling is None else sampling.size
        inner = (*extent, samples) if context is None else (height, width, (2 * context + 1) * samples)
        self.shape: tuple[int, ...] = (len(windows), *inner)

    @property
    def flat(self) -> bool:
        """Whether samples have no axis of slices."""
        return self.context is not None

    @property
    def space(self) -> tuple[int, ...]:
        """(depth, height, width) of the volume, which is opened for it."""
        return tuple(self.volume().shape[:3])

    def volume(self) -> Any:
        """The volume, opened now if it was not yet."""
        with self._lock:
            if self._volume is None:
                volume = self.opener()
                bands = (*volume.shape, 1)[3] if 3 <= len(volume.shape) <= 4 else None
                other = np.dtype(volume.dtype).newbyteorder("=") != self.dtype and not self._judges
                if bands != self.samples or other:
                    raise RegionError(
                        f"region {self.name}: is {tuple(volume.shape)} {volume.dtype}; volumes of (Z, H, W) with "
                        f"{self.samples} bands of {self.dtype} are expected, as the first is"
                    )
                if self.whole and self.sampling is None and tuple(volume.shape[:3]) != self._extent:
                    raise RegionError(
                        f"region {self.name}: is {tuple(volume.shape)}, the first is {self._extent}; without boxes "
                        "all volumes have one extent"
                    )
                if self.sampling is not None and self.sampling.method != "nearest" and _may_be_empty(volume):
                    raise RegionError(
                        f"{volume.path}: has voxels that are no data, which {self.sampling.method} would mix with "
                        'others; pass resample="nearest"'
                    )
                if self.whole:
                    self._windows = np.tile([0, 0, 0, *volume.shape[:3]], (len(self.windows), 1))
                self._volume = volume
            return self._volume

    def of_validity(self, kind: str) -> VolumeTiles | None:
        """Which values of the same boxes are valid, by ``"bands"``; None for other kinds, and of resampled boxes."""
        if kind != "bands" or self.sampling is not None:
            return None
        twin = copy.copy(self)
        twin.dtype, twin.pad = np.dtype(np.bool_), self.pad and "constant"
        twin._judges = True
        return twin

    @property
    def is_all_valid(self) -> bool:
        """Whether no voxel of a box can be invalid but by being NaN; the volume is opened for it."""
        first = 0 if self.context is None else 1  # neighbouring slices are repeated at the ends
        low, high = self.windows[:, first:3], self.windows[:, 3 + first :]
        inside = (low >= 0).all() and (high <= self.space[first:]).all()
        return bool(inside) and not _may_be_empty(self.volume())

    def read_box(self, rows: Int64s, box: Box, origins: Int64s | None) -> NDArray[Any]:
        """Read a box out of each of some samples; see `Region.read_box`."""
        shape = (len(rows), *self.shape[1:])
        check_limit(math.prod(shape) * self.dtype.itemsize, "a read of {} from region {}", shape, self.name)
        out = np.empty(shape, self.dtype)
        volume, wide = self.volume(), self.windows[rows].copy()
        for _, bad, cause in self._faults_of(volume, rows):
            raise ManifestError(self._words(int(rows[np.flatnonzero(bad)[0]]), cause))
        if self.sampling is not None:
            for k, (window, high) in enumerate(zip(wide, self.sampling.stops(volume, wide), strict=True)):
                hull = self.sampling.hull(window[:3], high, volume.shape)
                size = hull[3:] - hull[:3]
                check_limit(int(np.prod(size)) * self.samples * 8, "a box of {} voxels", size)
                out[k] = self.sampling(self._padded(volume, hull), window[:3] - hull[:3], high - hull[:3])
            return trimmed(out, box, origins)
        wide[:, 0] -= self.context or 0
        wide[:, 3] += self.context or 0
        whole = np.flatnonzero((wide[:, :3] >= 0).all(axis=1) & (wide[:, 3:] <= volume.shape[:3]).all(axis=1))
        blocks: dict[int, NDArray[Any]] = {}
        if len(whole):
            blocks.update(zip(whole.tolist(), _cuts(volume, wide[whole], self.samples, self._judges), strict=True))
        for k, window in enumerate(wide):
            block = blocks[k] if k in blocks else self._padded(volume, window)
            out[k] = block if self.context is None else np.moveaxis(block, 0, 2).reshape(*block.shape[1:3], -1)
        return trimmed(out, box, origins)

    def _padded(self, volume: Any, window: Int64s) -> NDArray[Any]:
        mode = self.pad or "edge"
        along = zip(window[:3].tolist(), window[3:].tolist(), volume.shape, strict=False)
        starts, stops, places = zip(*(needed(a, b, n, mode) for a, b, n in along), strict=True)
        if any(start == stop for start, stop in zip(starts, stops, strict=True)):
            return np.zeros((*map(len, places), self.samples), self.dtype)
        (near,) = _cuts(volume, np.array([[*starts, *stops]]), self.samples, self._judges)
        return padded(near, places, None)

    def _faults_of(self, volume: Any, rows: Int64s | None = None) -> Iterator[Fault]:
        """What is wrong with all or some boxes of the open volume."""
        windows = self.windows if rows is None else self.windows[rows]
        if not len(windows):
            return
        space = tuple(volume.shape[:3])
        if self.sampling is not None and self.sampling.spacing is not None:
            stops = self.sampling.stops(volume, windows)
            off = np.asarray((np.abs(stops - windows[:, 3:]) > 1).any(axis=1))
            if off.any():
                sides = " x ".join(f"{n:.1f}" for n in (stops - windows[:, :3])[np.flatnonzero(off)[0]])
                yield "extent differs", off, f": tiles of that size and spacing are {sides} voxels; correct the box"
        other = None
        with suppress(LazyTilesError):  # what cannot be opened says so when it is read
            other = None if self.partner is None else self.partner.volume()
        if other is not None and tuple(other.shape[:3]) != space:
            cause = f": {self._named(volume)}, {self._named(other)}; a volume and its mask are cut by one box, "
            yield "mask differs", np.ones(len(windows), np.bool_), cause + "so they have one extent"
        first = 0 if self.context is None else 1  # neighbouring slices are repeated at the ends
        region, wrong = f"region {self.name} ({size_words(space)})", np.zeros(len(windows), np.bool_)
        if self.pad is None:
            wrong, cause = outside(windows[:, first:3], windows[:, 3 + first :], space[first:], None, region)
            if wrong.any():
                yield "window outside", wrong, cause
        apart, cause = outside(windows[:, :3], windows[:, 3:], space, "edge", region)
        if (apart & ~wrong).any():
            yield "window outside", apart & ~wrong, cause

    def _named(self, volume: Any) -> str:
        path = getattr(volume, "path", None) or f"an array of region {self.name}"
        return f"{path} is {size_words(volume.shape[:3])} voxels"

    def faults(self) -> Iterator[Fault]:
        """Everything that would fail when boxes of this volume are read, by its tags, for which it is opened."""
        try:
            volume = self.volume()
        except LazyTilesError as error:
            yield "unreadable image", np.arange(len(self)) == 0, f": {error}"
            return
        yield from self._faults_of(volume)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_volume": None}


def _may_be_empty(volume: Any) -> bool:
    """Whether the files of a volume say that some of its numbers are no data."""
    pages: Any = getattr(volume, "pages", ())
    told = any(page.nodata is not None or page.alpha is not None for page in pages)
    return told or (len(pages) > 0 and pages[0].mask is not None)


def _cuts(volume: Any, windows: Int64s, samples: int, judges: bool) -> NDArray[Any] | list[NDArray[Any]]:
    """Boxes inside a volume, `(n, depth, height, width, samples)`, or which of their values are valid.

    Those of files are read as one plan; arrays hold nothing but values, of which NaN is not valid.
    """
    pages = getattr(volume, "pages", None)
    if pages is None or len(pages) != volume.shape[0] or getattr(volume, "gray", False):
        blocks = [np.asarray(volume[z0:z1, y0:y1, x0:x1]) for z0, y0, x0, z1, y1, x1 in windows.tolist()]
        found: list[Any] = [block.reshape(*block.shape[:3], samples) for block in blocks]
        return [block == block for block in found] if judges else found
    depth, height, width = (windows[0, 3:] - windows[0, :3]).tolist()
    slices = (windows[:, :1] + np.arange(depth)).ravel()
    boxes = np.repeat(windows[:, [1, 2, 4, 5]], depth, axis=0)
    asked = Windows(pages, slices, boxes, volume.bands)
    read = valid_windows(asked) if judges else read_windows(asked, (height, width, samples), volume.dtype)
    return read.reshape(len(windows), depth, height, width, samples)
