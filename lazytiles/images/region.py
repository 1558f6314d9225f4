"""`Region`: one image file as a lazy NumPy array."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.config import check_limit
from lazytiles.display import CHEAP_BYTES, stretched
from lazytiles.errors import shown
from lazytiles.images.bands import Bands, asked_bands, bands_read, to_gray
from lazytiles.images.containers import identify
from lazytiles.images.files import FileKey, pool
from lazytiles.images.georeference import Bounds, Georeference
from lazytiles.images.layouts.levels import Level, is_page_name
from lazytiles.images.layouts.opening import levels_of, open_pages
from lazytiles.images.page import Asked, Page
from lazytiles.images.pictures import Planes
from lazytiles.images.plan import Plan, Windows, planned
from lazytiles.images.reader import read_windows
from lazytiles.images.validity import Valid, scaled
from lazytiles.indexing import LazyArray, Request, by, into, request
from lazytiles.verbs import verb


class Region(LazyArray):
    """One image file as a lazy array `(H, W)` or `(H, W, S)`, or a stack of such images.

    Made by `open_region`. It takes every key that NumPy takes, and decodes only the segments under it.

    Attributes
    ----------
    shape : (height, width), pixels, with samples behind and the number of pages before where there are any
    dtype : of a sample, native byte order
    axes : a letter an axis: ``Y`` rows, ``X`` columns, ``S`` samples, before them ``T``, ``C``, ``Z`` as a series has
        them, or ``P`` pages
    chunks : the segment's shape, along the same axes
    lead : lengths of the axes before rows and columns
    levels : the resolutions of this image, each with `shape` and `downsample`, the full one first
    associated : page numbers of the file's other images by their names, such as ``"label"`` or ``"macro"``
    channels : names of the channels, where the file has names
    mpp : (y, x), micrometres from one pixel to the next, or None
    spacing : (z, y, x), micrometres from one sample to the next of a stack, or None
    path : the file
    scaled : whether numbers are what they mean, not what is stored

    Notes
    -----
    Any number of threads may read at once. A region holds no open file and no pixels; pickled, it
    carries its path and what was asked for, and refuses a file that has changed meanwhile.
    """

    def __init__(
        self,
        pages: Sequence[Page],
        *,
        axes: str = "",
        lead: tuple[int, ...] = (),
        bands: tuple[int, ...] | None,
        gray: bool,
        reopen: Any,
        has_samples: bool = False,
        scaled: bool = False,
        depth: float | None = None,
        channels: tuple[str, ...] = (),
    ) -> None:
        self.pages = pages if isinstance(pages, Planes) else tuple(pages)
        self.bands = bands
        self.gray = gray
        self.scaled = scaled
        self.lead = lead
        self.channels = channels
        self._letters, self._depth = axes, depth
        self._reopen = reopen
        self._levels: tuple[tuple[Level, ...], dict[str, int], int] | None = None
        first = self.pages[0]
        height, width, samples = first.shape
        wanted = 1 if gray else samples if bands is None else len(bands)
        self._has_samples = has_samples or ((first.samples_axis or wanted > 1) and not gray)
        self._inner = (height, width, wanted)
        self.dtype = np.dtype(np.float32) if scaled else first.dtype
        self.shape: tuple[int, ...] = lead + (self._inner if self._has_samples else self._inner[:2])
        self.axes = axes + ("YXS" if self._has_samples else "YX")
        segment = (*first.segment, 1 if first.planes > 1 else wanted)
        self.chunks: tuple[int, ...] = (1,) * len(lead) + segment[: 3 if self._has_samples else 2]

    @property
    def path(self) -> str:
        """The file."""
        return (self._reopen[0] if self._reopen else self.pages[0].file).path

    @property
    def levels(self) -> tuple[Level, ...]:
        """The resolutions of this image, each with `shape` and `downsample` (y, x), the full one first."""
        return self._catalog()[0]

    @property
    def associated(self) -> dict[str, int]:
        """Page numbers of the other images of the file by their names, which `open_region(path, page=name)` opens."""
        return dict(self._catalog()[1])

    @property
    def in_series(self) -> int:
        """How many images of one shape the series of its file has that this one is of; 1 where all are read."""
        return self._catalog()[2] if self._reopen and not self._reopen[1].is_array else 1

    @property
    def level(self) -> int:
        """Which of its levels it is."""
        return self._reopen[1].level if self._reopen else 0

    def at_level(self, level: int) -> Region:
        """The same image, with the same bands, at another of its levels."""
        if level == self.level:
            return self
        key, asked = self._reopen
        return _reopened(key, replace(asked, level=level), self.bands, self.gray, self._has_samples, self.scaled)

    def _catalog(self) -> tuple[tuple[Level, ...], dict[str, int], int]:
        if self._levels is None:
            self._levels = levels_of(*self._reopen) if self._reopen else ((Level(self._inner[:2]),), {}, 1)
        return self._levels

    @property
    def crs(self) -> str | None:
        """The coordinate reference system: ``"EPSG:32633"``, the file's own words where it is another, or None."""
        return self._place.crs

    @property
    def transform(self) -> Affine | None:
        """From (x, y) in pixels, counted from the upper left corner, to map units; None where nothing is said."""
        return self._place.transform

    @property
    def bounds(self) -> Bounds | None:
        """(left, bottom, right, top) in map units, or None."""
        return self._place.bounds(self._inner)

    def window_transform(self, box: Sequence[float]) -> Affine | None:
        """The transform of a window of the region.

        Parameters
        ----------
        box : (y0, x0, y1, x1), pixels

        Returns
        -------
        from (x, y) in pixels of the window to map units, or None
        """
        return self._place.shifted(box[0], box[1]).transform

    @property
    def _place(self) -> Georeference:
        return self.pages[0].georeference or Georeference()

    @property
    def nodata(self) -> Any:
        """The number that means nothing, as a scalar of the stored dtype; None where there is none that it holds."""
        return self.pages[0].nodata

    @property
    def scale_offset(self) -> tuple[Any, Any] | None:
        """(scale, offset), by which stored numbers become what they mean; tuples where bands differ; None without."""
        told = self.pages[0].scale_offset
        if told is None:
            return None
        scale, offset = (tuple(each[k] for k in self.bands or range(len(each))) for each in told)
        return (scale[0], offset[0]) if len(set(scale)) == len(set(offset)) == 1 else (scale, offset)

    @property
    def valid(self) -> Valid:
        """Which pixels hold something, a lazy boolean array (H, W): by a mask page, nodata, or alpha; never NaN."""
        return Valid(self)

    @property
    def mpp(self) -> tuple[float, float] | None:
        """(y, x), micrometres from one pixel to the next, by the file or by hand; None where neither says it."""
        return self.pages[0].mpp

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """(z, y, x), micrometres from one sample of a stack to the next; None where not all three are known."""
        return None if self._depth is None or self.mpp is None else (self._depth, *self.mpp)

    @property
    def inner_shape(self) -> tuple[int, int, int]:
        """(height, width, samples) of one image, the samples axis always there."""
        return self._inner

    def with_samples(self) -> Region:
        """The same image with its axis of samples, (H, W, S), also where there is but one sample a pixel."""
        how: Any = {"bands": self.bands, "gray": self.gray, "reopen": self._reopen, "depth": self._depth}
        how |= {"axes": self._letters, "lead": self.lead, "channels": self.channels}
        return Region(self.pages, **how, has_samples=True, scaled=self.scaled)

    def __getitem__(self, key: Any) -> Any:
        return self._read(self._request(key))

    def plan(self, key: Any = ...) -> Plan:
        """What `region[key]` would read: segments, bytes read, decoded and delivered; nothing is read.

        Parameters
        ----------
        key : anything NumPy takes
        """
        return planned(self._windows(self._request(key))[0])

    def take(self, indices: Int64s, out: NDArray[Any] | None = None, *, threads: int | None = None) -> NDArray[Any]:
        """The elements along the first axis at some positions, as one new array or in `out`."""
        return into(self._read(self._request(np.asarray(indices)), threads=threads), out)

    def to_dask(self, chunks: Any = None) -> Any:
        """The region as a dask array whose chunks follow its segments; no pixel is read.

        Parameters
        ----------
        chunks : as dask takes them; by default whole segments, joined to some 16 MiB
        """
        return verb("region_to_dask")(self, chunks)

    def plot(
        self, tiles: Any = None, *, bands: Sequence[int] | None = None, target: str = "target", ax: Any = None
    ) -> Any:
        """A thumbnail, with the windows of some tiles drawn over it; see `lazytiles.reports.plots.plot_region`."""
        return verb("plot_region")(self, tiles, bands=bands, target=target, ax=ax)

    def _facts(self) -> dict[str, str]:
        own = {"file": self.path, "axes": self.axes, "segments": by(self.chunks)}
        return super()._facts() | own | {"levels": ", ".join(by(level.shape) for level in self.levels)}

    def _glimpse(self, rows: Int64s | None = None) -> NDArray[np.uint8] | None:
        if rows is not None:
            return None
        small = thumbnail(self, longest=192, most_bytes=CHEAP_BYTES)
        return None if small is None else stretched(small)

    def __repr__(self) -> str:
        first = self.pages[0]
        return f"<Region {shown(self.path)!r}: {self.shape} {self.dtype}, segments of {first.segment}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (*self._reopen, self.bands, self.gray, self._has_samples, self.scaled)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        key = self.pages[0].file
        numbers = repr(self._reopen[1]) if self._reopen else tuple(page.number for page in self.pages)
        how = self.bands, self.gray, self.scaled
        return "lazytiles.Region", key.path, key.size, key.mtime_ns, numbers, *how, self.shape

    def _request(self, key: Any) -> Request:
        rows = len(self.lead)
        cells = (*self.pages[0].segment, None)[: len(self.axes) - rows]
        return request(key, self.shape, row_axes=rows, cells=cells)

    def windows(self, asked: Request) -> Windows:
        """The windows of a request, of all bands."""
        n = asked.n
        pages: Sequence[Page] = self.pages
        page = np.zeros(n, dtype=np.int64)
        if self.lead:
            used, page = np.unique(np.ravel_multi_index(asked.rows, self.lead), return_inverse=True)
            pages = tuple(self.pages[k] for k in used.tolist()) or self.pages[:1]
        (y0, y1), (x0, x1) = asked.box[:2]
        boxes = np.tile(np.array([y0, x0, y1, x1], dtype=np.int64), (n, 1))
        if asked.origins is not None:
            boxes += asked.origins[:, [0, 1, 0, 1]]
        return Windows(pages, page, boxes, None if self.gray else self.bands)

    def read(self, windows: Windows, *, threads: int | None = None) -> NDArray[Any]:
        """Windows of one size as one new array (n, h, w, C), gray and scaled as the region is."""
        page, (y0, x0, y1, x1) = self.pages[0], windows.boxes[0].tolist()
        samples = page.shape[2] if windows.bands is None else len(windows.bands)
        block = read_windows(windows, (y1 - y0, x1 - x0, samples), page.dtype, threads=threads)
        block = scaled(windows, block) if self.scaled else block
        return to_gray(block) if self.gray else block

    def _windows(self, asked: Request) -> tuple[Windows, tuple[int, int] | None]:
        """The windows of a request, and the samples to cut from what they hold (None: they hold just those)."""
        windows, bands, cut = self.windows(asked), self.bands, None
        if self._has_samples:
            low, high = asked.box[2]
            if asked.origins is not None and asked.origins[:, 2].any():
                low, high = 0, self._inner[2]
                cut = asked.box[2]
            if (low, high) != (0, self._inner[2]):
                bands = tuple(range(self.pages[0].shape[2]) if bands is None else bands)[low:high]
        return replace(windows, bands=None if self.gray else bands), cut

    def _read(self, asked: Request, *, threads: int | None = None) -> Any:
        shape = asked.block_shape
        check_limit(int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize, "a read of {} from {}", shape, self.path)
        windows, cut = self._windows(asked)
        if not all(shape):
            return asked.finish(np.empty(shape, self.dtype))
        block = self.read(windows, threads=threads)
        if cut is not None:
            assert asked.origins is not None
            chosen = asked.origins[:, 2, None] + np.arange(*cut)
            block = np.take_along_axis(block, chosen[:, None, None, :], axis=3)
        return asked.finish(block if self._has_samples else block[..., 0])


def open_region(
    path: str | os.PathLike[str],
    *,
    page: int | str | None = None,
    series: int | None = None,
    level: int = 0,
    axes: str | None = None,
    channels: Sequence[int | str] | None = None,
    bands: Bands = None,
    gray: bool = False,
    scaled: bool = False,
    mpp: float | tuple[float, float] | None = None,
    fill: float | None = None,
) -> Region:
    """Open one image file as a lazy array; its tags are read and checked, no pixel is decoded.

    Parameters
    ----------
    path : the file: a TIFF, PNG, JPEG and the like, ``.npy``, a Zarr array or a multiscale group of them (OME-Zarr),
        or ``file.h5::dataset``
    page : which image of the file: its number; the name of an associated image, such as ``"macro"``; ``"all"`` to
        stack images of one shape along a leading axis. By default the slide where a scanner's format says which page
        that is, else the first page
    series : which series of pages, as an array with `axes`
    level : which resolution; 0 is full resolution
    axes : a letter an axis of an array or a series, such as ``"TCZYX"``: rows and columns are ``YX``, behind them come
        samples at most
    channels : which channels, in this order, by number or by the file's name for them; a TIFF is then read as its
        first series
    bands : which samples, in this order; default all; or ``"rgb"``: red, green and blue of an image of one, three or
        four samples, gray repeated and opacity left out
    gray : whether red, green and blue become one luminance band
    scaled : whether numbers are made what they mean: float32 by the file's scale and offset, NaN where nodata
    mpp : micrometres from one pixel to the next at full resolution, where the file says nothing or something wrong:
        a number, or (y, x)
    fill : what segments hold that the file leaves out, such as 255 for the white of a slide; nodata where the file has
        such a value. Default 0

    Returns
    -------
    Region of shape (H, W) or (H, W, S), samples last however the file stores them, the axes of a series before them

    Raises
    ------
    RegionError : missing, not a regular file, damaged, or of a kind that no decoder gets right
    LimitError : its segments are larger than `max_segment_bytes`
    """
    name = os.fspath(path)
    if not (page is None or page == "all" or (isinstance(page, str) and is_page_name(page))):
        page = _from_zero("page", page, " or 'all', or the name of an associated image such as 'macro'")
    key, inner = identify(name)
    asked = Asked(
        inner=inner,
        page=page,
        series=None if series is None else _from_zero("series", series, ""),
        axes=None if axes is None else _letters(axes),
        channels=None if channels is None else _channels(channels),
        level=_from_zero("level", level, ""),
        mpp=None if mpp is None else _micrometres(mpp),
        fill=None if fill is None else float(fill),
    )
    if asked.page is not None and asked.series is not None:
        raise ValueError(f"pass page={page!r} or series={series}, not both")
    chosen = asked_bands(bands)
    if chosen is not None and asked.channels is not None:
        raise ValueError("pass bands= or channels=, not both")
    return _region(key, asked, chosen, gray, scaled)


def _from_zero(name: str, value: Any, others: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name} must be an index from 0{others}, not {value!r}")
    return int(value)


def _letters(axes: Any) -> str:
    if not isinstance(axes, str) or not axes.isalpha():
        raise ValueError(f'axes are a letter an axis, such as "CZYX", not {axes!r}')
    return axes.upper()


def _channels(channels: Any) -> tuple[int | str, ...]:
    one = isinstance(channels, str) or not isinstance(channels, Sequence | np.ndarray)
    found = () if one else tuple(k if isinstance(k, str) else operator.index(k) for k in channels)
    if not found or any(isinstance(k, bool | np.bool_) for k in channels):
        raise ValueError(f'channels are a list of numbers and names, such as [0, "DAPI"], not {channels!r}')
    return found


def _micrometres(mpp: Any) -> tuple[float, float]:
    pair = mpp if isinstance(mpp, Sequence) and not isinstance(mpp, str) else (mpp, mpp)
    try:
        y, x = (float(each) for each in pair)
    except (TypeError, ValueError):
        y = x = 0.0
    if not (0 < y < np.inf and 0 < x < np.inf):
        raise ValueError(f"mpp is a number of micrometres above 0, or a pair (y, x), not {mpp!r}")
    return y, x


def _region(key: FileKey, asked: Asked, bands: tuple[int, ...] | str | None, gray: bool, scaled: bool) -> Region:
    found = open_pages(key, asked)
    bands = found.bands if found.bands is not None else bands
    if bands is not None and gray:
        raise ValueError("pass bands= or gray=True, not both")
    first = found.pages[0]
    read = bands_read(first, bands, gray)
    if bands == "rgb" and first.shape[2] <= 2:
        read = (0, 0, 0)
    chosen = None if bands is None else read
    how: Any = {"axes": found.axes, "lead": found.lead, "depth": found.spacing[0], "channels": found.channels}
    return Region(found.pages, bands=chosen, gray=gray, reopen=(key, asked), scaled=scaled, **how)


def _reopened(
    key: FileKey, asked: Asked, bands: tuple[int, ...] | None, gray: bool, has_samples: bool, scaled: bool
) -> Region:
    here = pool.identify(key.path)
    # Device and inode are left out: each host numbers those of a shared file system in its own way.
    if (here.size, here.mtime_ns) != (key.size, key.mtime_ns):
        raise key.changed()
    region = _region(here, asked, None if asked.channels is not None else bands, gray, scaled)
    return region.with_samples() if has_samples else region


def thumbnail(region: Region, *, longest: int = 512, most_bytes: int | None = None) -> NDArray[Any] | None:
    """A small version of an image, from an overview where it has one.

    Parameters
    ----------
    region : the image; of a stack, its first page
    longest : pixels of the longer side, at most
    most_bytes : give None back instead of decoding more than this

    Returns
    -------
    array, shape (h, w, C)
    """
    source = region
    if not region.lead and not region.level and region._reopen:
        fitting = [k for k, level in enumerate(region.levels) if max(level.shape) >= longest]
        source = region.at_level(fitting[-1] if fitting else len(region.levels) - 1)
    if most_bytes is not None and source.nbytes > most_bytes:
        return None
    first = (0,) * len(source.lead)
    height, width = source.inner_shape[:2]
    step = max(1, -(-max(height, width) // longest))
    rows = max(step, (8 * 2**20 // max(1, source.nbytes // max(1, height))) // step * step)
    rows = max(rows, -(-source.chunks[len(first)] // step) * step)
    parts = [source[(*first, slice(y, y + rows))][::step, ::step] for y in range(0, height, rows)]
    small = np.concatenate(parts)
    return small if small.ndim == 3 else small[..., None]
