"""One segment's bytes to an array: decoded, and compared with what the page promises.

tifffile's decoders do the work. Beside them stand the checks that they leave out (an image codec's
own header before it is decoded, the end of a JPEG stream) and libtiff's LZW decoder, which is faster.
"""

from __future__ import annotations

import itertools
import math
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from tifffile.tifffile import jpeg_decode_colorspace

Colors = tuple[int | str | None, int | str | None]  # of a JPEG stream and of its pixels, as imagecodecs names them

_LINE = 32  # bytes of the widest store of libjpeg-turbo


class Frame(NamedTuple):
    """What the frame header of a JPEG stream says (ITU T.81 B.2.2)."""

    shape: tuple[int, int, int]  # (height, width, samples)
    names: bytes  # the components' ids
    factors: bytes  # and sampling factors
    end: int  # of the header in the stream


def jpeg_frame(data: bytes | memoryview) -> Frame | None:
    """The frame header of a JPEG stream, or None."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, samples = struct.unpack_from(">HHB", data, at + 5)
            end = at + 10 + 3 * samples
            names, factors = bytes(data[at + 10 : end : 3]), bytes(data[at + 11 : end : 3])
            return Frame((height, width, samples), names, factors, end)
        if marker == 0xDA:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _has_end(data: bytes | memoryview) -> bool:
    """Whether a JPEG stream has its end marker; bytes that fill its place may follow."""
    return b"\xff\xd9" in bytes(data[-64:])


_GRAY, _RGB = ("gray", "gray"), ("rgb", "rgb")  # color spaces that libjpeg does not convert
JPEG = frozenset({6, 7, 34892, 33007})
CCITT = frozenset({2, 3, 4})
DEFLATE = frozenset({8, 32946})
LZW = 5
PACKBITS = 32773
ZSTD = 50000
# Of which many segments are decoded together, and with which predictors.
_STRIPS = {LZW: (1, 2, 3), **dict.fromkeys(DEFLATE, (1, 2)), ZSTD: (1, 2), PACKBITS: (1,)}
LERC = 34887
_MOST_CODECS = 256
_SURPLUS = 2**24  # bytes beyond a segment, and as many as it has, that are unpacked to see the end of a deflate stream
# What imagecodecs imports at its first use, beside what tifffile's decoder of a page asks for when it is made.
_LATE = {LZW: ("tiff_decode", "bitorder_decode"), **dict.fromkeys(JPEG, ("jpeg8_decode", "ljpeg_decode"))}

Decoder = Callable[..., tuple[Any, tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """How the segments of a page are decoded."""

    compression: int  # TIFF's number
    segment: tuple[int, int, int]  # (height, width, samples) of a whole segment
    image: tuple[int, int]  # (height, width) of the page, pixels
    tiled: bool  # whether segments overhang the page (tiles) or end with it (strips)
    dtype: np.dtype[Any]  # of a decoded sample
    decode: Decoder  # tifffile's, of one segment
    tables: bytes | None  # JPEG tables and header shared by the segments
    header: bytes | None
    colors: Colors
    strips: tuple[int, Literal["<", ">"]] | None  # predictor and byte order, where `decode_run` decodes many segments
    stored_row: tuple[int, int]  # bytes of a row and the fill order, for LZW streams that libtiff cannot decode alone
    nodata: Any  # what pixels become that a LERC stream calls invalid; None of whole numbers where there is none

    @property
    def ends_early(self) -> bool:
        """Whether `decode_run` alone decodes it, and the upper rows of a segment without those below."""
        return self.strips is not None and self.compression == LZW

    def __call__(self, data: bytes | memoryview, index: int, row: int, column: int) -> NDArray[Any]:
        """One segment as an array (height, width, samples) that covers its part of the page; not if it `ends_early`.

        Its number in the page and its place in the grid are told; what is wrong with its bytes is a ValueError.
        """
        (height, width, _), image = self.segment, self.image
        needed = min(height, image[0] - row * height), min(width, image[1] - column * width)  # inside the page
        decode = self._jpeg if self.compression in JPEG else self._decoded
        array = decode(bytes(data), index, needed)
        if self.compression in CCITT:
            array = array.astype(np.bool_)
        if array.dtype != self.dtype:
            raise ValueError(f"holds {array.dtype} samples, the page says {self.dtype}")
        if array.ndim != 3 or array.shape[2] != self.segment[2]:
            raise ValueError(f"holds an array of shape {array.shape}, the page says {self.segment}")
        if array.shape[0] < needed[0] or array.shape[1] < needed[1]:
            raise ValueError(f"holds {array.shape[:2]} pixels, {needed} are needed")
        return array

    def _decoded(self, data: bytes, index: int, needed: tuple[int, int]) -> NDArray[Any]:
        if self.compression == LERC or self.compression in tifffile.TIFF.IMAGE_COMPRESSIONS:
            return self._image(data, needed)
        if self.compression == LZW:
            # imagecodecs follows codes that were never defined, and crashes: libtiff's pixels are packed anew for it.
            width, fill_order = self.stored_row
            shape = (self.segment[0] if self.tiled else needed[0], width, 1)
            data = data if fill_order == 1 else bytes(imagecodecs.bitorder_decode(data))
            rows = imagecodecs.tiff_decode(wrap_lzw([data], [len(data)], shape, shape[0], np.dtype(np.uint8), 1, "<"))
            data = bytes(imagecodecs.lzw_encode(rows.tobytes()))
            data = data if fill_order == 1 else bytes(imagecodecs.bitorder_encode(data))
        try:
            array = self.decode(data, index)[0]
        except Exception:
            if self.compression not in DEFLATE:
                raise
            array = self.decode(zlib.compress(_begin(data, math.prod(self.segment) * self.dtype.itemsize), 0), index)[0]
        decoded: NDArray[Any] = array[0]
        return decoded

    def _jpeg(self, data: bytes, index: int, needed: tuple[int, int]) -> NDArray[Any]:
        """A JPEG stream, seen to be complete and as large as its tile before it is decoded (ITU T.81 B.2)."""
        if not _has_end(data):
            raise ValueError("the JPEG stream is cut short: no end marker")
        frame = jpeg_frame(data)
        if frame is not None:
            (height, width, samples), segment = frame.shape, self.segment
            if not (needed[0] <= height <= segment[0] + 15 and needed[1] <= width <= segment[1] + 15):
                raise ValueError(f"the JPEG frame is {height} x {width}, the tags say {segment[0]} x {segment[1]}")
            if samples != segment[2]:
                raise ValueError(f"the JPEG frame has {samples} samples a pixel, the tags say {segment[2]}")
            colors = self._colors_of(frame)
            if colors is not None:
                try:
                    out = _off_the_lines(frame.shape, self.dtype)
                    self._turbo(data, colors, out)
                    return out
                except Exception:  # tifffile, below, knows other kinds of streams, or says what is wrong
                    if frame.names == b"RGB":  # but not that they are that
                        raise
        decoded: NDArray[Any] = self.decode(data, index, jpegtables=self.tables, jpegheader=self.header)[0][0]
        return decoded

    def _colors_of(self, frame: Frame) -> Colors | None:
        """Between which colours libjpeg-turbo converts a stream; None where it cannot be left to it."""
        if frame.names == b"RGB":  # the stream itself says so, whatever the page's tags say
            return _RGB
        if self.header is not None:
            return None
        # tifffile would make colours of bands that are none; what is subsampled is Y, Cb and Cr all the same.
        is_verbatim = self.colors in (_GRAY, _RGB)
        if is_verbatim and len(set(frame.factors)) > 1:
            return (None, None) if frame.shape == self.segment else None
        return self.colors if is_verbatim or frame.shape == self.segment else None

    def _turbo(self, data: bytes | memoryview, colors: Colors, out: NDArray[Any]) -> None:
        """A JPEG stream by libjpeg-turbo, into an array of the shape of its frame."""
        target, stream = out if out.shape[2] > 1 else out[..., 0], cast(bytes, data)  # any buffer will do
        imagecodecs.jpeg8_decode(stream, tables=self.tables, colorspace=colors[0], outcolorspace=colors[1], out=target)

    def _image(self, data: bytes, needed: tuple[int, int]) -> NDArray[Any]:
        """An image codec, held to the extent that the tags give: it refuses before it allocates."""
        decompress = tifffile.TIFF.DECOMPRESSORS[self.compression]
        options = {"hasalpha": True} if self.compression == 50001 and self.segment[2] == 4 else {}
        options = {"masks": True} if self.compression == LERC else options
        extents = {self.segment[:2], needed, (needed[0], self.segment[1])}
        reason: Exception = ValueError("no extent fits")
        for height, width in sorted(extents, reverse=True):
            out = np.empty((height, width, self.segment[2]), self.dtype)
            try:
                given = decompress(data, out=out if self.segment[2] > 1 else out[..., 0], **options)
            except ValueError as error:
                reason = error
                continue
            mask = given[1] if self.compression == LERC else None
            if mask is not None and not mask.all():
                if self.nodata is None:
                    raise ValueError(f"its LERC mask calls pixels invalid, and no nodata value says so of {self.dtype}")
                out[~mask] = self.nodata
            return out
        raise reason

    def decode_run(self, datas: Sequence[bytes | memoryview], sizes: Sequence[int], rows: int) -> NDArray[Any]:
        """Segments with `strips` one below the other as one array (rows, width, samples).

        Their stored bytes come in any division, with the sizes of each. All but the last are whole; the array ends
        after so many pixel rows of all of them.
        """
        assert self.strips is not None
        height, width, samples = self.segment
        predictor, byteorder = self.strips
        if self.compression == LZW:  # by one call of libtiff
            shape = rows, width, samples
            wrapped = wrap_lzw(datas, sizes, shape, height, self.dtype, predictor, byteorder)
            array: NDArray[Any] = imagecodecs.tiff_decode(wrapped)
            return array.reshape(shape)
        data = datas[0] if len(datas) == 1 else b"".join(datas)
        if self.compression in JPEG:
            return self._jpegs(data, sizes, rows)
        stack = np.empty((rows, width, samples), self.dtype.newbyteorder(byteorder))
        plain = stack.reshape(-1).view(np.uint8)
        decompress, size = tifffile.TIFF.DECOMPRESSORS[self.compression], height * width * samples * stack.itemsize
        parts = [data] if self.compression == ZSTD and _are_frames(data, sizes) else divided(data, sizes)
        for k, part in enumerate(parts):
            target = plain[k * size : (k + 1) * size] if len(parts) > 1 else plain
            if len(decompress(part, out=target)) < len(target):
                raise ValueError(f"segment {k} of the run is cut short")
        stack = stack.astype(self.dtype, copy=False)
        if predictor == 2:
            stack = tifffile.TIFF.UNPREDICTORS[predictor](stack, axis=-2, out=stack)
        return stack

    def _jpegs(self, data: bytes | memoryview, sizes: Sequence[int], rows: int) -> NDArray[Any]:
        """`decode_run` of JPEG streams that begin alike, up to the end of frame headers that say what the tags say."""
        height, width, samples = self.segment
        frame = jpeg_frame(data)
        colors = None if frame is None else self._colors_of(frame)
        if frame is None or colors is None or frame.shape != self.segment:
            raise ValueError("the JPEG stream is of another kind than its page")
        streams, head = divided(data, sizes), bytes(data[: frame.end])
        if any(stream[: frame.end] != head or not _has_end(stream) for stream in streams):
            raise ValueError("the JPEG streams of the run differ, or one is cut short")
        stack = _off_the_lines((rows, width, samples), self.dtype)
        for k, stream in enumerate(streams):
            self._turbo(stream, colors, stack[k * height : (k + 1) * height])
        return stack


def _off_the_lines(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A new array for libjpeg-turbo, which writes rows past the processor's caches that begin at its widest store.

    Pixels that are read again at once come much faster (by a third and more) from rows that begin elsewhere.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + _LINE, np.uint8)
    begin = (_LINE // 2 - memory.__array_interface__["data"][0]) % _LINE
    out: NDArray[Any] = memory[begin : begin + nbytes].view(dtype).reshape(shape)
    return out


def _begin(data: bytes, limit: int) -> bytes:
    """The first bytes of what a deflate stream unpacks to, at most `limit`, whose checksum at its end is right."""
    stream = zlib.decompressobj()
    begin, more = stream.decompress(data, limit), 0
    while not stream.eof and stream.unconsumed_tail:
        more += len(stream.decompress(stream.unconsumed_tail, _SURPLUS))
        if more > _SURPLUS + limit:
            raise ValueError("the deflate stream unpacks to far more than its segment holds")
    if not stream.eof:
        raise ValueError("the deflate stream is cut short: it has no end")
    return begin


def _are_frames(data: bytes | memoryview, sizes: Sequence[int]) -> bool:
    """Whether streams of Zstandard begin alike, each with a frame that says what it holds (RFC 8878, 3.1.1.1).

    One call decodes such frames one after the other. It refuses a frame that holds more or less than it says.
    """
    kind = data[4] if len(data) > 4 else 0
    begin = 5 + (not kind & 0x20) + (0, 1, 2, 4)[kind & 3]  # where the size of the content stands
    end = begin + (kind >> 5 & 1, 2, 4, 8)[kind >> 6]
    head = bytes(data[:end])
    starts = itertools.accumulate(sizes[:-1], initial=0)
    is_said = head[:4] == b"\x28\xb5\x2f\xfd" and end > begin
    return is_said and all(data[at : at + end] == head for at in starts)


def divided(data: Any, sizes: Sequence[int]) -> list[memoryview]:
    """The bytes of each of some segments that lie side by side."""
    view = memoryview(data)
    return [view[end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]


def codec_of(page: tifffile.TiffPage, dtype: np.dtype[Any], nodata: Any = None) -> Codec:
    """The codec of a parsed page; pages of one layout share tifffile's decoder.

    All that will decode it is imported now: an import that failed in a read would look like damage.
    """
    for name in _LATE.get(int(page.compression), ("bitorder_decode",)):
        getattr(imagecodecs, name)
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    tiled = bool(page.is_tiled)
    height = page.tilelength if tiled else min(page.rowsperstrip or page.imagelength, page.imagelength)
    segment = (height, page.tilewidth if tiled else page.imagewidth, samples)
    colors: Colors  # planes, and bands that are no colours, stay
    if page.planarconfig == 2:
        colors = _GRAY
    elif page.photometric in (0, 1) and page.samplesperpixel == 3:
        colors = _RGB
    else:
        colors = jpeg_decode_colorspace(page.photometric, page.planarconfig, page.extrasamples, page.is_jfif)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 0
    is_whole = bits in {8, 16, 32, 64} and bits == dtype.itemsize * 8 and page.sampleformat in {1, 2, 3}
    is_jpeg = page.compression == 7 and page.jpegheader is None and dtype == np.uint8
    is_known = int(page.predictor) in _STRIPS.get(int(page.compression), ())
    is_plain = is_known and is_whole and page.fillorder == 1 and not page.is_subsampled
    return Codec(
        compression=int(page.compression),
        segment=segment,
        image=(page.imagelength, page.imagewidth),
        tiled=tiled,
        dtype=dtype,
        decode=_shared_decoder(page),
        tables=page.jpegtables,
        header=page.jpegheader,
        colors=colors,
        strips=(int(page.predictor), page.parent.byteorder) if is_plain or is_jpeg else None,
        stored_row=(-(-segment[1] * samples * bits // 8), int(page.fillorder)),
        nodata=np.nan if dtype.kind == "f" else nodata,
    )


_decoders: OrderedDict[tuple[Any, ...], Decoder] = OrderedDict()
_decoders_lock = threading.RLock()


def _shared_decoder(page: tifffile.TiffPage) -> Decoder:
    key = (
        (page.shaped, page.is_tiled, page.tilelength, page.tilewidth, page.rowsperstrip, page.samplesperpixel),
        (page.parent.byteorder, page.bitspersample, int(page.sampleformat), page.fillorder, page.predictor),
        (page.compression, page.extrasamples, page.photometric, page.planarconfig, page.subsampling),
        (repr(page.nodata), page.is_jfif, page.tags.valueof(292)),
    )
    with _decoders_lock:
        decoder = _decoders.get(key)
        if decoder is None:
            decoder = _decoders[key] = page.decode
            while len(_decoders) > _MOST_CODECS:
                _decoders.popitem(last=False)
        _decoders.move_to_end(key)
    return decoder


def wrap_lzw(
    datas: Sequence[bytes | memoryview],
    sizes: Sequence[int],
    shape: tuple[int, int, int],
    strip_rows: int,
    dtype: np.dtype[Any],
    predictor: int,
    byteorder: str,
) -> bytes:
    """LZW segments as the strips of a TIFF in memory (TIFF 6.0 sections 2 and 13).

    Their stored bytes come from top to bottom, in any division. The shape is (rows, width, samples) of all of them
    together; each but the last has `strip_rows`.
    """
    before, after = _lzw_head(shape, strip_rows, dtype.kind, dtype.itemsize, predictor, byteorder, len(sizes))
    if len(sizes) > 1:
        counts = np.array(sizes, dtype=np.int64)
        offsets = len(before) + 8 * len(sizes) + np.cumsum(counts) - counts
        table = np.concatenate([offsets, counts]).astype(byteorder + "u4").tobytes()
    else:
        table = struct.pack(byteorder + "I", sizes[0])
    return b"".join([before, table, after, *datas])


@lru_cache(maxsize=4096)
def _lzw_head(
    shape: tuple[int, int, int], strip_rows: int, kind: str, itemsize: int, predictor: int, byteorder: str, n: int
) -> tuple[bytes, bytes]:
    """What stands before and after the table of n strips in `wrap_lzw`: header, directory, sample formats.

    The table (offsets, then sizes) stands behind the directory; of a single strip it is the size alone, inside it.
    """
    rows, width, samples = shape
    words = [itemsize * 8] * samples, [{"u": 1, "i": 2, "f": 3}[kind]] * samples
    bits, formats = (struct.pack(f"{byteorder}{samples}H", *each) for each in words)
    directory = 8
    arrays = directory + 2 + 11 * 12 + 4
    end = arrays + 4 * samples

    def entry(code: int, kind: int, count: int, value: int | bytes) -> bytes:
        field = value if isinstance(value, bytes) else struct.pack(byteorder + ("I" if kind == 4 else "H"), value)
        return struct.pack(byteorder + "HHI", code, kind, count) + field.ljust(4, b"\0")

    def shorts(code: int, values: bytes, place: int) -> bytes:
        return entry(code, 3, samples, values if samples <= 2 else struct.pack(byteorder + "I", place))

    entries = [
        entry(256, 4, 1, width),
        entry(257, 4, 1, rows),
        shorts(258, bits, arrays),
        entry(259, 3, 1, LZW),
        entry(262, 3, 1, 1),
        entry(273, 4, n, end),
        entry(277, 3, 1, samples),
        entry(278, 4, 1, strip_rows),
        entry(279, 4, n, end + 4 * n),
        entry(317, 3, 1, predictor),
        shorts(339, formats, arrays + 2 * samples),
    ]
    mark = b"II*\0" if byteorder == "<" else b"MM\0*"
    head = mark + struct.pack(byteorder + "IH", directory, len(entries)) + b"".join(entries) + bytes(4) + bits + formats
    cut = directory + 2 + 8 * 12 + 8 if n == 1 else len(head)
    return head[:cut], head[cut + 4 :]
