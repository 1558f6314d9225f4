"""Files beside TIFF as pages: `.npy`, and PNG, JPEG and their like, which are one segment each."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageMode

from lazytiles.config import settings
from lazytiles.errors import LimitError, RegionError
from lazytiles.images.files import FileKey
from lazytiles.images.georeference import Place
from lazytiles.images.page import MOST_SAMPLES, Page, readable
from lazytiles.images.page import _Ranges as Ranges

# First bytes of what Pillow may open: of formats that run programs (EPS) or have no mark (TGA) it may not.
_MARKS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"qoif", "QOI"),
    *((f"P{k}".encode(), "PPM") for k in "123456f"),
)
PICTURES = (*dict.fromkeys(name for _, name in _MARKS), "WEBP")
MOST_IMAGES = 2**20
_MANY = 1024  # pages that are made one by one
_LAST_AXIS = 16  # a last axis of at most this is samples, a longer one is columns

Pages = tuple[Sequence[Page], str, tuple[int, ...]]
"""The pages of a region in C order over its leading axes, the letters of these axes, and their lengths."""


class Planes(Sequence[Page]):
    """The pages of a long stack, each made from its number when it is first wanted."""

    def __init__(self, count: int, make: Callable[[int], Page]) -> None:
        self._count, self._make = count, make
        self._made: dict[int, Page] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: Any) -> Any:
        at = range(self._count)[k]
        if isinstance(at, range):
            return [self[j] for j in at]
        page = self._made.get(at)
        return self._made.setdefault(at, self._make(at)) if page is None else page


def planes_of(count: int, make: Callable[[int], Page]) -> Sequence[Page]:
    """The pages of a stack; few are made at once, so that what is wrong with them is known at once."""
    return Planes(count, make) if count > _MANY else [make(k) for k in range(count)]


def picture_format(head: bytes) -> str | None:
    r"""The format of a picture by its first bytes, None for all others.

    >>> picture_format(b"\x89PNG\r\n\x1a\n"), picture_format(b"II*\0")
    ('PNG', None)
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


@dataclass(frozen=True, slots=True)
class Form:
    """What the axes of an array are."""

    axes: str  # letters and, in `lead`, lengths of the axes before rows and columns
    lead: tuple[int, ...]
    inner: tuple[int, int, int]  # (height, width, samples)
    has_samples: bool  # whether an axis of samples comes last
    before: int  # how many axes of the array come before its rows


def split_shape(where: str, shape: Sequence[int], axes: str | None = None) -> Form:
    """Which axes of an array are rows, columns and samples; a RegionError where they do not fit.

    `axes` has a letter an axis, such as ``"TCZYX"``: rows and columns as ``YX``, then at most one axis longer than 1,
    the samples. By default arrays of 2 to 4 axes are `(H, W)`, `(H, W, S)` (S at most 16), `(P, H, W)` or
    `(P, H, W, S)`.

    >>> split_shape("a.npy", (5, 64, 32)).lead, split_shape("a.npy", (64, 32, 1, 6), "YXZC").inner
    ((5,), (64, 32, 6))
    >>> [split_shape("a.npy", shape).axes for shape in ((64, 64, 3), (3, 64, 64), (3, 64, 64, 2))]
    ['', 'P', 'P']
    """
    shape = tuple(shape)
    if axes is None:
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            raise RegionError(
                f"{where}: is an array of shape {shape}; without axes= a region has 2 to 4 axes, (H, W), (H, W, S), "
                '(Z, H, W) or (Z, H, W, S), and pixels; say what its axes are, such as axes="TCZYX"'
            )
        is_stack = len(shape) == 4 or (len(shape) == 3 and shape[2] > _LAST_AXIS)
        axes = "P" * is_stack + "YX"
        axes += "S" * (len(shape) - len(axes))
    at = axes.find("YX")
    before, after = axes[:at], axes[at + 2 :]
    sizes = dict(zip(axes, shape, strict=False))
    long = [letter for letter in after if sizes.get(letter, 1) > 1] or list(after[-1:])
    wrong = at < 0 or len(axes) != len(shape) or len(set(axes)) < len(axes) or min(shape, default=0) < 1
    if wrong or len(long) > 1 or "S" in before or not axes.isalpha():
        raise RegionError(
            f"{where}: axes={axes!r} for an array of shape {shape}; name one letter an axis, rows and columns as YX, "
            "and behind them at most one axis longer than 1, the samples: transpose the array where it is stored "
            "otherwise"
        )
    samples = sizes[long[0]] if long else 1
    if samples > MOST_SAMPLES:
        raise RegionError(f"{where}: {samples} samples a pixel; 1 to {MOST_SAMPLES} are supported")
    letters = before + "".join(letter for letter in after if letter not in long)
    lead = tuple(sizes[letter] for letter in letters)
    if math.prod(lead) > MOST_IMAGES:
        raise RegionError(f"{where}: an array of {math.prod(lead)} images; at most {MOST_IMAGES} are supported")
    return Form(letters, lead, (sizes["Y"], sizes["X"], samples), bool(long), len(before))


def one_page(
    key: FileKey,
    number: str,
    shape: tuple[int, int, int],  # (height, width, samples), pixels
    dtype: np.dtype[Any],
    *,
    samples_axis: bool,
    codec: Any = None,  # decodes one segment, called as `Codec` is; None for samples that are stored as they are
    segment: tuple[int, int] | None = None,  # (height, width), pixels; None: the whole image
    size: int | None = None,  # bytes from the file's start that each segment is decoded from; None: all
    raw: int | None = None,  # offset of plain samples, bytes; None for decoded ones
    stored: np.dtype[Any] | None = None,
) -> Page:
    """The facts of one image that is not a TIFF page."""
    segment = segment or shape[:2]
    nbytes = math.prod(segment) * shape[2] * dtype.itemsize
    limit = settings().max_segment_bytes
    if raw is None and max(nbytes, key.size if size is None else 0) > limit:
        raise LimitError(
            f"{key.path}: {nbytes} bytes, decoded as a whole from a file of {key.size}, max_segment_bytes is "
            f"{limit}; raise it with lazytiles.configure(max_segment_bytes=...)"
        )
    count = -(-shape[0] // segment[0]) * -(-shape[1] // segment[1])
    return Page(
        file=key,
        number=number,
        shape=shape,
        dtype=dtype,
        segment=segment,
        planes=1,
        offsets=np.full(count, raw or 0, np.int64),
        counts=np.full(count, nbytes if raw is not None else key.size if size is None else size, np.int64),
        fill=0,
        codec=codec,
        raw_offsets=None if raw is None else (raw,),
        stored_dtype=stored or dtype,
        samples_axis=samples_axis,
    )


def plain_dtype(where: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in native byte order, if it is numbers or booleans.

    >>> plain_dtype("a.npy", np.dtype(">u2"))
    dtype('uint16')
    """
    if dtype.kind not in "biufc" or dtype.hasobject:
        raise RegionError(f"{where}: holds {dtype}, not numbers; pickled objects are never loaded")
    return dtype.newbyteorder("=")


@dataclass(frozen=True, slots=True)
class Picture:
    """Decodes a whole picture."""

    format: str  # as Pillow names it
    frame: int  # which picture of the file
    shape: tuple[int, int, int]  # (height, width, samples) that its header promises, and the dtype
    dtype: np.dtype[Any]
    deep: bool  # whether it is a PNG of 16-bit colours, which Pillow would cut to 8
    strips: None = None
    ends_early: bool = False

    def __call__(self, data: bytes | memoryview, index: int, row: int, column: int) -> NDArray[Any]:
        """The picture as an array (height, width, samples)."""
        if self.format == "JPEG":
            check_end(bytes(data))
        if self.deep:
            array = imagecodecs.png_decode(bytes(data))
        else:
            with opened_picture(io.BytesIO(data), self.format) as image:
                image.seek(self.frame)
                array = np.asarray(image)
        array = array[..., np.newaxis] if array.ndim == 2 else array
        if array.shape != self.shape or array.dtype.newbyteorder("=") != self.dtype:
            raise ValueError(f"holds {array.shape} {array.dtype}, its header says {self.shape} {self.dtype}")
        return array.astype(self.dtype, copy=False)


def picture_pages(key: FileKey, head: bytes, format: str, page: int | str | None) -> Pages:  # noqa: A002
    """The pictures of a PNG, JPEG, GIF, BMP, PPM, WebP, JPEG 2000 or QOI file; only headers are read.

    Samples are what Pillow gives: palettes stay indices, an orientation in EXIF is not applied. PNG files of
    16-bit colours keep their 16 bits.
    """
    file = io.BufferedReader(Ranges(key))
    with readable(key, format), file, opened_picture(file, format) as image:
        frames = int(getattr(image, "n_frames", 1))
        if isinstance(page, str) and page != "all":
            raise RegionError(f"{key.path}: has no page {page!r}; it has {frames}, by number")
        numbers = range(frames) if page == "all" else [int(page or 0)]
        if numbers[-1] >= frames:
            raise RegionError(f"{key.path}: has no page {page}; it has {frames}")
        pages = [_picture(key, head, image, format, number) for number in numbers]
    for other in pages[1:]:
        if (other.shape, other.dtype) != (pages[0].shape, pages[0].dtype):
            raise RegionError(f"{other}: is {other.shape} {other.dtype}, page 0 is {pages[0].shape} {pages[0].dtype}")
    return (pages, "P", (len(pages),)) if page == "all" else (pages, "", ())


def _picture(key: FileKey, data: bytes, image: Image.Image, format: str, frame: int) -> Page:  # noqa: A002
    if frame:
        image.seek(frame)
    mode = ImageMode.getmode(image.mode)
    samples, dtype = len(mode.bands), np.dtype(mode.typestr).newbyteorder("=")
    deep = format == "PNG" and data[24] == 16 and data[25] in (2, 4, 6)
    if deep:
        samples, dtype = {2: 3, 4: 2, 6: 4}[data[25]], np.dtype(np.uint16)
        imagecodecs.png_decode  # noqa: B018  # imported now: a failure would look like damage later
    start = data.find(b"\xff\x4f\xff\x51") if format == "JPEG2000" else -1
    # Bits of the first component (ITU T.800, A.5.1).
    if samples > 1 and 0 <= start < len(data) - 42 and (data[start + 42] & 0x7F) + 1 > 8:
        raise RegionError(f"{key.path}: JPEG 2000 colours of more than 8 bits are cut by Pillow; refused")
    shape = (image.height, image.width, samples)
    codec = Picture(format, frame, shape, dtype, deep)
    page = one_page(key, str(frame), shape, dtype, codec=codec, samples_axis=samples > 1)
    alpha = samples - 1 if image.mode in ("LA", "RGBA") else None
    return replace(page, palette=image.mode in ("P", "PA"), is_ink=image.mode == "CMYK", alpha=alpha, place=Place())


def opened_picture(file: Any, format: str) -> Image.Image:  # noqa: A002
    """The picture in a binary file, by the plugin of its format, its pixels not decoded yet.

    `Image.open` would refuse it by a number of pixels for the whole process; ours is a number of bytes, which
    `one_page` checks.
    """
    if format not in Image.OPEN:
        Image.init()
    if format not in Image.OPEN:
        raise ValueError(f"this Pillow has no reader of {format}")
    return Image.OPEN[format][0](file, "")


def check_end(data: bytes) -> None:
    r"""See that a JPEG file is not cut short: its end marker comes behind its image, whatever trails it.

    >>> check_end(b"\xff\xd8\xff\xda\x00\x02")
    Traceback (most recent call last):
    ValueError: the JPEG stream is cut short: no end marker
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        at += 1 if data[at + 1] == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    if data.find(b"\xff\xd9", at) < 0:
        raise ValueError("the JPEG stream is cut short: no end marker")


def split_name(name: str) -> tuple[str, str | None]:
    """The file and, behind ``::``, the dataset in it.

    >>> split_name("scan.h5::entry/data"), split_name("a.tif")
    (('scan.h5', 'entry/data'), ('a.tif', None))
    """
    if "://" in name:
        return name, None
    path, mark, inner = name.partition("::")
    return (path, inner) if mark and not os.path.lexists(name) else (name, None)
