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
from lazytiles.errors import LazyTilesError, LimitError, RegionError, unreadable
from lazytiles.images.codecs import JPEG, Codec, codec_of
from lazytiles.images.files import FileKey, pool
from lazytiles.images.georeference import (
    NODATA,
    Georeference,
    Place,
    georeference_of,
    parse_nodata,
    place_of,
    scale_offset_of,
)
from lazytiles.images.layouts.scales import Mpp

MOST_SAMPLES = 1024
MOST_SEGMENTS = 2**26
_INTEGER_TYPES = {1, 3, 4, 13, 16, 18}  # BYTE, SHORT, LONG, IFD, LONG8, IFD8
_OFFSETS, _COUNTS = (324, 273, 513), (325, 279, 514)


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a file is opened."""

    inner: str | None = None  # the dataset in it, as `identify` gave it
    page: int | str | None = None  # a number, "all", the name of an associated image; None: the slide, else the first
    series: int | None = None
    axes: str | None = None  # letters of an array's axes
    channels: tuple[int | str, ...] | None = None  # numbers and names; None for all
    level: int = 0
    mpp: Mpp | None = None  # (y, x) of full resolution, by hand
    fill: float | None = None  # what missing segments hold where the file has no nodata

    @property
    def is_array(self) -> bool:
        """Whether an array with axes is asked for, not an image."""
        return self.series is not None or self.axes is not None or self.channels is not None or self.page == "all"


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One image of one file: where its segments lie and how they are decoded."""

    file: FileKey
    number: str  # for messages, such as "0" or "0 level 2"
    shape: tuple[int, int, int]  # (height, width, samples), pixels
    dtype: np.dtype[Any]  # of one decoded sample, native byte order
    segment: tuple[int, int]  # (height, width), pixels, of a whole segment
    planes: int  # 1 when the samples of a pixel lie together, else one plane per sample
    offsets: Int64s  # bytes, one per segment; -1 of one that is damaged
    counts: Int64s  # bytes, one per segment; 0 of a missing (sparse) one
    fill: float  # what missing segments hold: nodata, or 0
    codec: Codec  # decodes one segment; None of an array that is stored as it is
    raw_offsets: tuple[int, ...] | None  # bytes, one per plane, where each is one uncompressed block
    stored_dtype: np.dtype[Any]  # with the byte order of the file
    samples_axis: bool  # whether users see a samples axis
    palette: bool = False  # whether samples are places in a table of colours
    is_ink: bool = False  # whether samples are amounts of ink: cyan, magenta, yellow and black
    nodata: Any = None  # the number that means nothing, a scalar of `dtype`
    alpha: int | None = None  # the sample that says how opaque a pixel is
    place: Place | None = None  # where its tags say where on the ground it is; None of files that cannot say it
    # Number and offset of the directory of its mask, of a page that was opened with its chain; of one opened alone its
    # own number, by which the mask is looked for.
    mask_at: int | tuple[int, int] | None = None
    mpp: tuple[float, float] | None = None  # (y, x), micrometres from one pixel to the next, by what the file says
    origin: Any = None  # by what it is opened again, in another process too; None where it cannot be

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
        return None if self.mask_at is None else _mask(self.file, self.mask_at, self.shape[:2])

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

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._key.size - self._at))
        buffer[:size] = pool.read(self._key, self._at, size)
        self._at += size
        return size


# tifffile warns of nodata values that it cannot take; here `parse_nodata` takes them.
_is_ours: ContextVar[bool] = ContextVar("lazytiles_parses", default=False)
logging.getLogger("tifffile").addFilter(lambda record: not (_is_ours.get() and "GDAL_NODATA" in record.getMessage()))


@contextmanager
def readable(key: FileKey, kind: str) -> Iterator[None]:
    """Turns what another library raises over a damaged file into `RegionError`."""
    try:
        yield
    except (LazyTilesError, ImportError):
        raise
    except Exception as error:
        raise RegionError(unreadable(key.path, kind, error)) from error


@contextmanager
def parsed(key: FileKey) -> Iterator[tifffile.TiffFile]:
    """The directories of a file."""
    name = key.path
    if name.lower().endswith(".ndpi") and int.from_bytes(pool.read(key, 4, 8), "little") > key.size:
        name += ".tif"  # by its name tifffile would read offsets of 64 bits, as real ones have
    before = _is_ours.set(True)
    try:
        file = io.BufferedReader(_Ranges(key), 16384)
        with readable(key, "TIFF"), file, tifffile.TiffFile(file, name=name) as tiff:
            yield tiff
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
def _mask(key: FileKey, at: int | tuple[int, int], extent: tuple[int, int]) -> Page | None:
    """The mask of a page, at a known directory; else of its extent among masks and overviews behind a full image."""
    with parsed(key) as tiff:
        if isinstance(at, tuple):
            number = at[0]
            tiff.filehandle.seek(at[1])
            page = tifffile.TiffPage(tiff, number)
        else:
            head = at
            while head and page_at(tiff, head).subfiletype & 5:
                head -= 1
            for number in itertools.count(head + 1):
                try:
                    page = page_at(tiff, number)
                except RegionError:
                    return None
                if not page.subfiletype & 5:
                    return None
                if page.subfiletype & 4 and (page.imagelength, page.imagewidth) == extent:
                    break
        return replace(facts(key, page, str(number)), origin=(Asked(page=number), 0))


def facts(
    key: FileKey,
    page: tifffile.TiffPage,
    number: str,
    *,
    head: tifffile.TiffPage | None = None,
    **more: Any,  # of `Page`, such as its origin
) -> Page:
    """Check a parsed page and take from it what reading needs; place and nodata of a level are those of its `head`.

    A page that is damaged or that no decoder gets right is a RegionError, one of segments larger than
    `max_segment_bytes` a LimitError.
    """
    where = f"{key.path} page {number}"
    shape, dtype = _form(where, page)
    planes = shape[2] if page.planarconfig == 2 else 1
    strip = min(page.rowsperstrip or shape[0], shape[0]), shape[1]
    segment = (page.tilelength, page.tilewidth) if page.is_tiled else strip
    if min(segment) < 1 or max(segment) >= 2**31:
        raise RegionError(f"{where}: segments of {segment[0]} x {segment[1]} pixels make no sense")
    expected = planes * -(-shape[0] // segment[0]) * -(-shape[1] // segment[1])
    if expected > MOST_SEGMENTS:
        raise LimitError(f"{where}: {expected} segments; at most {MOST_SEGMENTS} are supported")
    stored: list[Any] = []
    for codes in (_OFFSETS, _COUNTS) if page.jpegheader is None else ():
        tag = next((page.tags[code] for code in codes if code in page.tags), None)
        if tag is not None and int(tag.dtype) not in _INTEGER_TYPES:
            raise RegionError(f"{where}: the tag {tag.name} has the damaged type {tag.dtype!r}")
        table = () if tag is None else tag.value
        stored.append((table,) if isinstance(table, int) else table)
    starts, sizes = stored or (page.dataoffsets, page.databytecounts)  # of NDPI, of restart intervals
    offsets, counts, raw = _laid_out(where, page, starts, sizes, shape, segment, dtype)
    nodata = parse_nodata((head or page).tags.valueof(NODATA), dtype)
    # Opacity in a layout in which GDAL takes it as the mask of the other samples.
    is_opacity = any(extra in (1, 2) for extra in page.extrasamples[-1:])
    has_alpha = is_opacity and shape[2] in (2, 4) and dtype in (np.uint8, np.uint16)
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
        raw_offsets=raw,
        stored_dtype=dtype.newbyteorder(page.parent.byteorder),
        samples_axis=len(page.shape) == 3,
        palette=page.photometric == 3,
        is_ink=page.photometric == 5,
        nodata=nodata,
        alpha=shape[2] - 1 if has_alpha else None,
        place=place_of(page) if head is None else place_of(head, page),
        **more,
    )
    return _bounded(found)


def _form(where: str, page: tifffile.TiffPage) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """(height, width, samples) and dtype of a page whose tags make sense, and whose samples are what they seem."""
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
    is_ycbcr = page.compression == 33003 or (page.photometric == 6 and page.compression not in JPEG)
    if is_ycbcr or page.photometric in (8, 9, 10):
        what = "Y, Cb and Cr, and not as JPEG" if is_ycbcr else "L, a and b"
        raise RegionError(
            f"{where}: stores {what} (PhotometricInterpretation {int(page.photometric)}, compression "
            f"{int(page.compression)}), which would pass for red, green and blue; refused: convert it to RGB"
        )
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
    if page.predictor == 2 and bits not in {8, 16, 32, 64, 128}:
        raise RegionError(f"{where}: the horizontal predictor on {bits}-bit samples is refused")
    return (page.imagelength, page.imagewidth, page.samplesperpixel), dtype.newbyteorder("=")


def twin_page(page: Page, tags: tifffile.TiffPage, starts: Sequence[int], sizes: Sequence[int]) -> Page:
    """A page that differs from another of its file only in where its segments lie: its tables as they are stored.

    The other is given checked, with the number of this one, and as it was parsed.
    """
    offsets, counts, raw = _laid_out(str(page), tags, starts, sizes, page.shape, page.segment, page.dtype)
    return _bounded(replace(page, offsets=offsets, counts=counts, raw_offsets=raw))


def _bounded(page: Page) -> Page:
    """The page, whose segments are not too large to be decoded; those of uncompressed planes never are."""
    most = settings().max_segment_bytes
    if page.raw_offsets is None and page.segment_bytes > most:
        said = f"one segment is {page.segment_bytes} bytes decoded, max_segment_bytes is {most}"
        raise LimitError(f"{page}: {said}; raise it with lazytiles.configure(max_segment_bytes=...)")
    return page


def _laid_out(
    where: str,
    tags: tifffile.TiffPage,
    starts: Sequence[int],
    sizes: Sequence[int],
    shape: tuple[int, int, int],
    segment: tuple[int, int],
    dtype: np.dtype[Any],
) -> tuple[Int64s, Int64s, tuple[int, ...] | None]:
    """Offsets and byte counts of segments, and where each plane begins if its strips are plain and in a row."""
    (height, width, samples), (rows, columns) = shape, segment
    planes, together = (samples, 1) if tags.planarconfig == 2 else (1, samples)
    expected = planes * -(-height // rows) * -(-width // columns)
    offsets = _checked(where, "offsets", starts, expected)
    tops = np.arange(expected // planes, dtype=np.int64) * rows  # of strips
    heights = np.minimum(rows, height - tops)
    if tags.jpegheader is not None:
        counts = _checked(where, "byte counts", sizes, expected)
    elif tags.compression == 1 and not tags.is_tiled:
        # What a writer claims for plain rows is often wrong; what they need is known.
        counts = np.tile(heights * -(-width * together * int(tags.bitspersample) // 8), planes)
        if sizes:
            counts = np.minimum(_checked(where, "byte counts", sizes, expected), counts)
    else:
        is_fax = tags.compression in {2, 3, 4} and expected == 1
        if not sizes and not is_fax:
            raise RegionError(f"{where}: the byte counts of its {expected} segments are missing")
        counts = _checked(where, "byte counts", sizes or tags.databytecounts, expected)
        if is_fax and counts[0] == 0:
            counts = _checked(where, "byte counts", tags.databytecounts, expected)
        offsets[(offsets == 0) & (counts > 0)] = -1  # only a byte count of 0 means sparse
    raw = None
    plain = tags.compression == 1 and tags.predictor == 1 and tags.fillorder == 1 and not tags.is_subsampled
    exact = tags.bitspersample == dtype.itemsize * 8 and tags.sampleformat not in {5}
    if plain and exact and not (tags.is_tiled and (columns != width or height % rows)):
        row_bytes = width * together * dtype.itemsize
        table, held = offsets.reshape(planes, -1), counts.reshape(planes, -1)
        is_one = (table[:, :1] > 0).all() and (table - table[:, :1] == tops * row_bytes).all()
        if is_one and (held >= heights * row_bytes).all():
            raw = tuple(table[:, 0].tolist())
    return offsets, counts, raw


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


def stacked_plane(page: Page, k: int, count: int) -> Page:
    """The k-th image of a stack that has one directory and stores its images one after the other."""
    if page.raw_offsets is None:
        raise RegionError(f"{page}: a stack of {count} images in one page must be uncompressed")
    size = math.prod(page.shape) * page.dtype.itemsize
    if max(page.raw_offsets) + size // page.planes + (count - 1) * size > page.file.size:
        raise RegionError(f"{page}: {count} images of {size} bytes do not fit the file")
    start = tuple(offset + k * size for offset in page.raw_offsets)
    return replace(page, number=f"{page.number} plane {k}", raw_offsets=start)
