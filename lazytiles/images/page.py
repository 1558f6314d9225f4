"""The facts of one TIFF page, checked once, as small arrays; no open file stays behind.

tifffile parses the directory; what it would let pass silently (tables too short, damaged types,
dimensions of zero) is refused here, by name. The layout of the numbers follows TIFF 6.0: segments
are numbered row-major, plane after plane (section 15), strips being tiles as wide as the image.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.config import settings
from lazytiles.errors import LimitError, RegionError, unreadable
from lazytiles.images.codecs import JPEG, Codec, codec_of
from lazytiles.images.files import FileKey, pool
from lazytiles.images.georeference import (
    Georeference,
    Place,
    georeference_of,
    nodata_of,
    place_of,
    scale_offset_of,
)
from lazytiles.images.layouts.scales import Mpp

MOST_SAMPLES = 1024
MOST_SEGMENTS = 2**26
_INTEGER_TYPES = {1, 3, 4, 13, 16, 18}  # BYTE, SHORT, LONG, IFD, LONG8, IFD8
_WHOLE_BYTES = {8, 16, 32, 64, 128}
_OFFSETS, _COUNTS = (324, 273, 513), (325, 279, 514)


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a file is opened.

    Parameters
    ----------
    inner : the dataset in it, as `identify` gave it
    page : its number, ``"all"``, the name of an associated image, or None: the slide, else the first
    series : its number, or None
    axes : letters of an array's axes, or None
    channels : numbers and names, or None: all
    level : which resolution
    mpp : (y, x) of full resolution, by hand
    fill : what missing segments hold where the file has no nodata
    """

    inner: str | None = None
    page: int | str | None = None
    series: int | None = None
    axes: str | None = None
    channels: tuple[int | str, ...] | None = None
    level: int = 0
    mpp: Mpp | None = None
    fill: float | None = None

    @property
    def is_array(self) -> bool:
        """Whether an array with axes is asked for, not an image."""
        return self.series is not None or self.axes is not None or self.channels is not None or self.page == "all"


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One image of one file: where its segments lie and how they are decoded.

    Parameters
    ----------
    file : identity of the file
    number : which page, for messages, such as ``"0"`` or ``"0 level 2"``
    shape : (height, width, samples), pixels
    dtype : of one decoded sample, native byte order
    segment : (height, width), pixels, of a whole segment
    planes : 1 when the samples of a pixel lie together, else one plane per sample
    offsets, counts : int64, bytes, one per segment; a count of 0 is a missing (sparse) segment, an offset of -1
        one that is damaged
    fill : what missing segments hold: nodata, or 0
    codec : decodes one segment
    raw_offsets : bytes, one per plane, when the page is one uncompressed block per plane; else None
    stored_dtype : dtype with the byte order of the file
    samples_axis : whether users see a samples axis
    palette : whether samples are places in a table of colours
    is_ink : whether samples are amounts of ink: cyan, magenta, yellow and black
    nodata : the number that means nothing, a scalar of `dtype`; None where there is none
    alpha : the sample that says how opaque a pixel is; None where there is none
    place : where the tags lie that say where on the ground it is; None of a kind of file that cannot say it
    directory : which directory of a TIFF's main chain it is; None for others
    mpp : (y, x), micrometres from one pixel to the next, by what the file says; None where it says nothing
    origin : by what it is opened again from its file, in another process too; None where it cannot be
    """

    file: FileKey
    number: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    segment: tuple[int, int]
    planes: int
    offsets: Int64s
    counts: Int64s
    fill: float
    codec: Codec
    raw_offsets: tuple[int, ...] | None
    stored_dtype: np.dtype[Any]
    samples_axis: bool
    palette: bool = False
    is_ink: bool = False
    nodata: Any = None
    alpha: int | None = None
    place: Place | None = None
    directory: int | None = None
    mpp: tuple[float, float] | None = None
    origin: Any = None

    @property
    def georeference(self) -> Georeference | None:
        """Where on the ground it is, read from its file; None where that says neither a CRS nor a transform."""
        return None if self.place is None else georeference_of(self.file, self.place)

    @property
    def scale_offset(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Scale and offset of each sample, by which stored numbers become what they mean; None where none are told."""
        return None if self.place is None else scale_offset_of(self.file, self.place, self.shape[2])

    @property
    def mask(self) -> Page | None:
        """The page of its file whose pixels say which of its own are valid; None where there is none."""
        return None if self.directory is None else _mask_at(self.file, self.directory, self.shape[:2])

    @property
    def key(self) -> tuple[FileKey, str]:
        """What its decoded segments are kept under."""
        return self.file, self.number

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of segments in one plane."""
        return -(-self.shape[0] // self.segment[0]), -(-self.shape[1] // self.segment[1])

    @property
    def segment_samples(self) -> int:
        """Samples of a pixel that lie in one segment."""
        return 1 if self.planes > 1 else self.shape[2]

    @property
    def segment_bytes(self) -> int:
        """Bytes of one whole segment, decoded."""
        return self.segment[0] * self.segment[1] * self.segment_samples * self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, int, int]:
        """Bytes from one row, pixel and sample to the next, in a plane of an uncompressed page."""
        pixel = self.segment_samples * self.dtype.itemsize
        return self.shape[1] * pixel, pixel, self.dtype.itemsize

    @property
    def is_cut(self) -> NDArray[np.bool_]:
        """Which segments lie outside the file, by its tags, and so are damaged or cut off."""
        counts = np.minimum(self.counts, self.segment_bytes) if self.raw_offsets is not None else self.counts
        cut: NDArray[np.bool_] = (self.offsets < 0) | ((counts > 0) & (self.offsets + counts > self.file.size))
        return cut

    @property
    def geometry(self) -> tuple[int, int, int, int, int, int, int, int]:
        """Segment height and width, grid rows and columns, planes, raw (0 or 1), samples, bytes a sample."""
        rows, columns = self.grid
        raw = int(self.raw_offsets is not None)
        return (*self.segment, rows, columns, self.planes, raw, self.shape[2], self.dtype.itemsize)

    def separate(self, k: int) -> Page:
        """A page of one sample, the k-th, of a page that stores its samples plane by plane."""
        n = math.prod(self.grid)
        return replace(
            self,
            number=f"{self.number} sample {k}",
            shape=(*self.shape[:2], 1),
            planes=1,
            offsets=self.offsets[k * n : (k + 1) * n],
            counts=self.counts[k * n : (k + 1) * n],
            raw_offsets=None if self.raw_offsets is None else self.raw_offsets[k : k + 1],
            samples_axis=False,
        )

    def __str__(self) -> str:
        return f"{self.file.path} page {self.number}"


class _Ranges(io.RawIOBase):
    """A seekable binary file over positioned reads, as tifffile wants one to parse tags."""

    def __init__(self, key: FileKey) -> None:
        self._key = key
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._key.size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._key.size - self._at))
        buffer[:size] = pool.read(self._key, self._at, size)
        self._at += size
        return size


# tifffile warns of nodata values that it cannot take; here `nodata_of` takes them.
_is_ours: ContextVar[bool] = ContextVar("lazytiles_parses", default=False)
logging.getLogger("tifffile").addFilter(lambda record: not (_is_ours.get() and "GDAL_NODATA" in record.getMessage()))


@contextmanager
def parsed(key: FileKey) -> Iterator[tifffile.TiffFile]:
    """The directories of a file, every failure of the parser turned into `RegionError`."""
    name = key.path
    if name.lower().endswith(".ndpi") and int.from_bytes(pool.read(key, 4, 8), "little") > key.size:
        name += ".tif"  # by its name tifffile would read offsets of 64 bits, as real ones have
    before = _is_ours.set(True)
    try:
        with io.BufferedReader(_Ranges(key), 16384) as file, tifffile.TiffFile(file, name=name) as tiff:
            yield tiff
    except (RegionError, LimitError, ImportError):
        raise
    except (Exception, RecursionError) as error:
        raise RegionError(unreadable(key.path, "TIFF", error)) from error
    finally:
        _is_ours.reset(before)


def page_at(tiff: tifffile.TiffFile, index: int) -> tifffile.TiffPage:
    """The k-th image of the file's main chain."""
    try:
        page = tiff.pages[index]
        return page if isinstance(page, tifffile.TiffPage) else page.aspage()
    except IndexError:
        raise RegionError(f"{tiff.filename}: has no page {index}; it has {len(tiff.pages)}") from None


@lru_cache(1024)
def _mask_at(key: FileKey, directory: int, extent: tuple[int, int]) -> Page | None:
    """The mask of a page: of its extent, among the masks and overviews that follow a full image."""
    with parsed(key) as tiff:
        head = directory
        while head and page_at(tiff, head).subfiletype & 5:
            head -= 1
        for k in itertools.count(head + 1):
            try:
                page = page_at(tiff, k)
            except RegionError:
                return None
            if not page.subfiletype & 5:
                return None
            if page.subfiletype & 4 and (page.imagelength, page.imagewidth) == extent:
                return replace(facts(key, page, str(k)), origin=(Asked(page=k), 0))
    return None


def facts(
    key: FileKey,
    page: tifffile.TiffPage,
    number: str,
    *,
    head: tifffile.TiffPage | None = None,
    mpp: Mpp | None = None,
    origin: Any = None,
) -> Page:
    """Check a parsed page and take from it what reading needs.

    Parameters
    ----------
    key, page, number : the file, its page, and the page's name
    head : of a level, the page at full resolution: place and nodata are its
    mpp, origin : of the page, as `Page` has them

    Raises
    ------
    RegionError : a page that is damaged or that no decoder gets right
    LimitError : segments larger than `max_segment_bytes`
    """
    where = f"{key.path} page {number}"
    shape = _dimensions(where, page)
    _refuse_colours(where, page)
    dtype = _sample_type(where, page)
    planes = shape[2] if page.planarconfig == 2 else 1
    strip = min(page.rowsperstrip or shape[0], shape[0]), shape[1]
    segment = (page.tilelength, page.tilewidth) if page.is_tiled else strip
    if min(segment) < 1 or max(segment) >= 2**31:
        raise RegionError(f"{where}: segments of {segment[0]} x {segment[1]} pixels make no sense")
    expected = planes * -(-shape[0] // segment[0]) * -(-shape[1] // segment[1])
    if expected > MOST_SEGMENTS:
        raise LimitError(f"{where}: {expected} segments; at most {MOST_SEGMENTS} are supported")
    stored = None if page.jpegheader is not None else (_table(where, page, _OFFSETS), _table(where, page, _COUNTS))
    offsets, counts = _tables(where, page, stored, expected, segment, shape, planes)
    nodata = nodata_of(head or page, dtype)
    found = Page(
        file=key,
        number=number,
        shape=shape,
        dtype=dtype,
        segment=segment,
        planes=planes,
        offsets=offsets,
        counts=counts,
        fill=0 if nodata is None else nodata,
        codec=codec_of(page, dtype, nodata),
        raw_offsets=_raw_offsets(page, shape, segment, planes, dtype, (offsets, counts)),
        stored_dtype=dtype.newbyteorder(page.parent.byteorder),
        samples_axis=len(page.shape) == 3,
        palette=page.photometric == 3,
        is_ink=page.photometric == 5,
        nodata=nodata,
        alpha=_alpha(page, dtype),
        place=place_of(page) if head is None else place_of(head, page),
        directory=page.index if len(page.treeindex) == 1 else None,
        mpp=mpp,
        origin=origin,
    )
    return _bounded(found)


def twin_page(page: Page, tags: tifffile.TiffPage, number: str, offsets: Sequence[int], counts: Sequence[int]) -> Page:
    """A page that differs from another of its file only in where its segments lie.

    Parameters
    ----------
    page, tags, number : the other, checked and as it was parsed; what messages call this one
    offsets, counts : its tables as they are stored
    """
    expected = page.planes * page.grid[0] * page.grid[1]
    where, stored = f"{page.file.path} page {number}", (offsets, counts)
    tables = _tables(where, tags, stored, expected, page.segment, page.shape, page.planes)
    raw = _raw_offsets(tags, page.shape, page.segment, page.planes, page.dtype, tables)
    return _bounded(replace(page, number=number, offsets=tables[0], counts=tables[1], raw_offsets=raw))


def _alpha(page: tifffile.TiffPage, dtype: np.dtype[Any]) -> int | None:
    """The last sample, where it is opacity in a layout in which GDAL takes it as the mask of the others."""
    samples, extra = page.samplesperpixel, page.extrasamples
    is_alpha = samples in (2, 4) and bool(extra) and extra[-1] in (1, 2) and dtype in (np.uint8, np.uint16)
    return samples - 1 if is_alpha else None


def stacked_plane(page: Page, k: int, count: int) -> Page:
    """The k-th image of a stack that has one directory and stores its images one after the other."""
    if page.raw_offsets is None:
        raise RegionError(f"{page}: a stack of {count} images in one page must be uncompressed")
    size = math.prod(page.shape) * page.dtype.itemsize
    if max(page.raw_offsets) + size // page.planes + (count - 1) * size > page.file.size:
        raise RegionError(f"{page}: {count} images of {size} bytes do not fit the file")
    start = tuple(offset + k * size for offset in page.raw_offsets)
    return replace(page, number=f"{page.number} plane {k}", raw_offsets=start)


def _bounded(page: Page) -> Page:
    """The page, whose segments are not too large to be decoded; those of uncompressed planes never are."""
    most = settings().max_segment_bytes
    if page.raw_offsets is None and page.segment_bytes > most:
        said = f"one segment is {page.segment_bytes} bytes decoded, max_segment_bytes is {most}"
        raise LimitError(f"{page}: {said}; raise it with lazytiles.configure(max_segment_bytes=...)")
    return page


def _dimensions(where: str, page: tifffile.TiffPage) -> tuple[int, int, int]:
    for code, name in ((256, "ImageWidth"), (257, "ImageLength")):
        tag = page.tags.get(code)
        if tag is None:
            raise RegionError(f"{where}: the tag {name} is missing")
        if int(tag.dtype) not in _INTEGER_TYPES or tag.count != 1 or not isinstance(tag.value, int):
            raise RegionError(f"{where}: the tag {name} is damaged: {tag.value!r:.60}")
    if not (0 < page.imagewidth < 2**31 and 0 < page.imagelength < 2**31):
        raise RegionError(f"{where}: {page.imagelength} x {page.imagewidth} pixels make no sense")
    if page.imagedepth != 1 or page.tiledepth != 1:
        raise RegionError(f"{where}: volumes within one page (ImageDepth {page.imagedepth}) are not supported")
    if not 1 <= page.samplesperpixel <= MOST_SAMPLES:
        raise RegionError(f"{where}: {page.samplesperpixel} samples a pixel; 1 to {MOST_SAMPLES} are supported")
    return page.imagelength, page.imagewidth, page.samplesperpixel


def _refuse_colours(where: str, page: tifffile.TiffPage) -> None:
    """Refuse samples that are neither gray nor red, green and blue, and that no codec converts."""
    is_ycbcr = page.compression == 33003 or (page.photometric == 6 and page.compression not in JPEG)
    if not is_ycbcr and page.photometric not in (8, 9, 10):
        return
    what = "Y, Cb and Cr, and not as JPEG" if is_ycbcr else "L, a and b"
    raise RegionError(
        f"{where}: stores {what} (PhotometricInterpretation {int(page.photometric)}, compression "
        f"{int(page.compression)}), which would pass for red, green and blue; refused: convert it to RGB"
    )


def _sample_type(where: str, page: tifffile.TiffPage) -> np.dtype[Any]:
    bits = page.bitspersample
    if page.dtype is None or not isinstance(bits, int) or bits < 1:
        raise RegionError(f"{where}: samples of {bits} bits in format {page.sampleformat!r} are not supported")
    form = page.tags.valueof(339)
    if isinstance(form, tuple) and len(set(form)) > 1:
        raise RegionError(f"{where}: samples of mixed formats {form} are not supported")
    dtype = np.dtype(page.dtype)
    if bits == 24 and dtype.kind in "ui" and page.parent.byteorder == "<":
        raise RegionError(f"{where}: little-endian 24-bit integers are decoded wrongly by tifffile; refused")
    if page.predictor == 3 and dtype.kind != "f":
        raise RegionError(f"{where}: the floating-point predictor on {dtype} samples is refused")
    if page.predictor == 2 and bits not in _WHOLE_BYTES:
        raise RegionError(f"{where}: the horizontal predictor on {bits}-bit samples is refused")
    return dtype.newbyteorder("=")


def _tables(
    where: str,
    page: tifffile.TiffPage,
    tables: tuple[Sequence[int], Sequence[int]] | None,
    expected: int,
    segment: tuple[int, int],
    shape: tuple[int, int, int],
    planes: int,
) -> tuple[Int64s, Int64s]:
    if tables is None:  # NDPI: tifffile has derived tables of restart intervals
        offsets = _checked(where, "offsets", page.dataoffsets, expected)
        return offsets, _checked(where, "byte counts", page.databytecounts, expected)
    offsets, stored = _checked(where, "offsets", tables[0], expected), tables[1]
    if page.compression == 1 and not page.is_tiled:
        # What a writer claims for plain rows is often wrong; what they need is known.
        rows = np.minimum(segment[0], shape[0] - segment[0] * np.arange(expected // planes))
        samples = 1 if planes > 1 else shape[2]
        row_bytes = -(-shape[1] * samples * int(page.bitspersample) // 8)
        needed = np.tile(rows.astype(np.int64) * row_bytes, planes)
        counts = _checked(where, "byte counts", stored, expected) if stored else needed
        return offsets, np.minimum(counts, needed)
    if not stored:
        if page.compression not in {2, 3, 4} or expected != 1:
            raise RegionError(f"{where}: the byte counts of its {expected} segments are missing")
        stored = page.databytecounts
    counts = _checked(where, "byte counts", stored, expected)
    if page.compression in {2, 3, 4} and expected == 1 and counts[0] == 0:
        counts = _checked(where, "byte counts", page.databytecounts, expected)
    offsets[(offsets == 0) & (counts > 0)] = -1  # only a byte count of 0 means sparse
    return offsets, counts


def _table(where: str, page: tifffile.TiffPage, codes: Sequence[int]) -> Sequence[int]:
    for code in codes:
        tag = page.tags.get(code)
        if tag is not None:
            if int(tag.dtype) not in _INTEGER_TYPES:
                raise RegionError(f"{where}: the tag {tag.name} has the damaged type {tag.dtype!r}")
            value = tag.value
            return (value,) if isinstance(value, int) else value
    return ()


def _checked(where: str, name: str, values: Sequence[int], expected: int) -> Int64s:
    if len(values) < expected:
        raise RegionError(f"{where}: {expected} segments expected, {len(values)} {name} found")
    try:
        table = np.array(values[:expected], dtype=np.int64)
    except (OverflowError, ValueError, TypeError) as error:
        raise RegionError(f"{where}: its {name} are damaged: {error}") from error
    if table.min() < 0:
        raise RegionError(f"{where}: negative {name}")
    return table


def _raw_offsets(
    tags: tifffile.TiffPage, shape: tuple[int, int, int], segment: tuple[int, int], planes: int, dtype: Any, tables: Any
) -> tuple[int, ...] | None:
    """Where each plane begins, if all its strips lie one after the other as plain samples."""
    plain = tags.compression == 1 and tags.predictor == 1 and tags.fillorder == 1 and not tags.is_subsampled
    exact = tags.bitspersample == dtype.itemsize * 8 and tags.sampleformat not in {5}
    (height, width, samples), (rows, columns) = shape, segment
    if not (plain and exact) or (tags.is_tiled and (columns != width or height % rows)):
        return None
    row_bytes = width * samples * dtype.itemsize // planes
    table, sizes = (each.reshape(planes, -1) for each in tables)
    tops = np.arange(table.shape[1], dtype=np.int64) * rows
    needed = np.minimum(rows, height - tops) * row_bytes
    if (table[:, :1] <= 0).any() or (table - table[:, :1] != tops * row_bytes).any() or (sizes < needed).any():
        return None
    return tuple(int(offset) for offset in table[:, 0])
