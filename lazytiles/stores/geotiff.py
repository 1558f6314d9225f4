"""Tiled, deflated TIFFs that say where they lie, with overviews, written from top to bottom.

The overviews are pages of half the size behind their page, as GDAL writes them: GDAL, QGIS, OpenSlide, ASAP and
tifffile read them as levels, which SubIFDs are not for all of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import tifffile
from affine import Affine
from imagecodecs import deflate_encode
from numpy.typing import NDArray

from lazytiles.images import Georeference, Page

TILE = 256
_MOST_BYTES = 3 * 2**30  # of a classic TIFF: its tables need some of the 4 GiB too
_NODATA_TAG = 42113


@dataclass(frozen=True, slots=True)
class Ground:
    """Where an image lies and how large its pixels are; None of what it does not say."""

    georeference: Georeference | None = None
    mpp: tuple[float, float] | None = None  # micrometres a pixel, (y, x)
    nodata: Any = None  # what marks its pixels that hold nothing, a NumPy scalar of its dtype

    @classmethod
    def of(cls, page: Page | None) -> Ground:
        """That of a page."""
        return cls() if page is None else cls(page.georeference, page.mpp, page.nodata)

    def shifted(self, y0: int, x0: int, scale: tuple[float, float] = (1.0, 1.0)) -> Ground:
        """That of a window from a corner on, of which each pixel is so many (y, x) of this."""
        placed = self.georeference and self.georeference.shifted(y0, x0, scale)
        mpp = self.mpp and (self.mpp[0] * scale[0], self.mpp[1] * scale[1])
        return Ground(placed, mpp, self.nodata)

    def record(self, systems: dict[Any, int]) -> dict[str, Any]:
        """It as JSON takes it, its coordinate system by the number that it has, or gets, among `systems`."""
        said: dict[str, Any] = {}
        if self.georeference is not None:
            place = self.georeference
            tags = tuple((*key, v.decode("latin-1") if isinstance(v, bytes) else v) for *key, v in place.keys)
            said["system"] = systems.setdefault((place.crs, tags), len(systems))
            said["transform"] = place.transform and place.transform[:6]
        if self.mpp is not None:
            said["mpp"] = self.mpp
        if self.nodata is not None:
            said["nodata"] = self.nodata.dtype.str, str(self.nodata)
        return said

    @classmethod
    def recorded(cls, said: dict[str, Any], systems: Sequence[Any]) -> Ground:
        """What `record` made this of."""
        place = None
        if "system" in said:
            crs, tags = systems[said["system"]]
            keys = [(*tag[:3], tag[3].encode("latin-1") if isinstance(tag[3], str) else tuple(tag[3])) for tag in tags]
            transform = said["transform"] and Affine(*map(float, said["transform"]))
            place = Georeference(crs, transform, tuple(keys))
        dtype, text = said.get("nodata", ("u1", None))
        y, x = said.get("mpp", (0, 0))
        return cls(place, (float(y), float(x)) if y else None, None if text is None else np.dtype(dtype).type(text))

    def tags(self, dtype: np.dtype[Any]) -> dict[str, Any]:
        """What `tifffile` writes it by, for an image of that dtype."""
        found: dict[str, Any] = {"extratags": self.georeference.extratags() if self.georeference else []}
        if self.nodata is not None:
            text = repr(dtype.type(self.nodata).item())
            found["extratags"] = [*found["extratags"], (_NODATA_TAG, "s", 0, text, False)]
        if self.mpp:
            found |= {"resolution": (1e4 / self.mpp[1], 1e4 / self.mpp[0]), "resolutionunit": "CENTIMETER"}
        return found


class Pyramid:
    """Rows of an image on their way into a TIFF and its overviews, each pixel of which stands for four.

    Of integers it is the first of them, so that classes stay classes; of other numbers the mean of those that hold
    something. Tiles are deflated into a file of their own as soon as their rows are complete, as the tables of a
    TIFF need all lengths first: `spool`, empty and open for writing and reading. At most one row of tiles of each
    level is in memory. The shape is (height, width[, samples]), of a volume with the slices before, each a page without
    overviews; booleans become 0 and 1.
    """

    def __init__(
        self, spool: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any], *, is_volume: bool = False
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
        self._spool, self._is_volume = spool, is_volume
        # Of floats it would serve as well, but not every reader knows the predictor that they need.
        self._predicts = self.dtype.kind in "iu" and self.dtype.itemsize <= 4
        self._places: list[tuple[int, int]] = []
        # Tiles are multiples of 16 (TIFF 6.0, section 15); of a small image there is one.
        self._tile = tuple(min(TILE, -(-n // 16) * 16) for n in shape[is_volume : is_volume + 2])
        self._tile_bytes = math.prod((*self._tile, *shape[is_volume + 2 :])) * self.dtype.itemsize
        self._held = np.empty((0 if is_volume else self._tile[0], *shape[1:]), self.dtype)
        self._count = 0
        self._below: Pyramid | None = None
        if not is_volume and max(shape[:2]) > TILE:
            smaller = (-(-shape[0] // 2), -(-shape[1] // 2), *shape[2:])
            self._below = Pyramid(spool, smaller, self.dtype)

    def append(self, rows: NDArray[Any], nodata: Any = None) -> None:
        """Write the next rows (slices, of a volume); where they are `nodata` they hold nothing."""
        rows = np.ascontiguousarray(rows, self.dtype).reshape(len(rows), *self.shape[1:])
        if self._is_volume:
            for page in rows:
                self._put(page, nodata)
            return
        while len(rows):
            part = rows[: len(self._held) - self._count]
            self._held[self._count : self._count + len(part)] = part
            self._count, rows = (self._count + len(part)) % len(self._held), rows[len(part) :]
            if not self._count:
                self._put(self._held, nodata)

    def _put(self, page: NDArray[Any], nodata: Any) -> None:
        """Deflate the tiles of a row of tiles, or of a whole slice, and hand their halves on."""
        small = None
        if self._below is not None:
            small = np.empty((-(-len(page) // 2), *self._below.shape[1:]), self.dtype)
        height, width = self._tile
        for y in range(0, page.shape[0], height):
            for x in range(0, page.shape[1], width):
                part = page[y : y + height, x : x + width]
                buffer = bytearray(self._tile_bytes)
                tile = np.frombuffer(buffer, self.dtype).reshape(height, width, *page.shape[2:])
                tile[: part.shape[0], : part.shape[1]] = part
                if self._predicts:
                    tile[:, 1:] -= tile[:, :-1]
                packed = deflate_encode(buffer, 1)
                self._places.append((self._spool.seek(0, 2), len(packed)))
                self._spool.write(packed)
                del tile, buffer, packed
                if small is not None:
                    small[:, x // 2 : (x + width) // 2] = halved(part, nodata)
        if self._below is not None and small is not None:
            self._below.append(small, nodata)

    def finish(self, file: BinaryIO, ground: Ground) -> None:
        """Put the TIFF together from all rows, which have come."""
        levels = []
        here: Pyramid | None = self
        while here is not None:
            if here._count:
                here._put(here._held[: here._count], ground.nodata)
            levels.append(here)
            here = here._below
        size = sum(length for level in levels for _, length in level._places)
        with tifffile.TiffWriter(file, bigtiff=size > _MOST_BYTES) as tiff:
            for k, level in enumerate(levels):
                scale = (self.shape[0] / level.shape[0], self.shape[1] / level.shape[1])
                tags = (replace(ground.shifted(0, 0, scale), georeference=None) if k else ground).tags(self.dtype)
                pixel = self.shape[2 + self._is_volume :]
                tiff.write(
                    level._stored(),
                    shape=level.shape,
                    dtype=self.dtype,
                    tile=level._tile,
                    photometric="rgb" if pixel == (3,) and self.dtype == np.uint8 else "minisblack",
                    planarconfig="contig" if pixel else None,
                    compression="zlib",
                    predictor=2 if self._predicts else None,
                    subfiletype=int(k > 0),
                    software=False,
                    metadata=None,
                    **tags,
                )

    def _stored(self) -> Iterator[bytes]:
        for start, length in self._places:
            self._spool.seek(start)
            yield self._spool.read(length)


def halved(image: NDArray[Any], nodata: Any = None) -> NDArray[Any]:
    """An image (h, w[, samples]) of which each pixel stands for four, or for two or one at an odd edge.

    Of integers it is the first of the four, else the mean of those that are neither nodata nor NaN, if any.

    >>> halved(np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]]))
    array([[ 2., nan]])
    """
    if image.dtype.kind not in "fc":
        return image[::2, ::2]
    valid = ~np.isnan(image)
    if nodata is not None:
        valid &= image != nodata
    precise, count = np.result_type(image.dtype, np.float32), _summed(valid.view(np.uint8))
    with np.errstate(invalid="ignore", over="ignore"):
        mean = _summed(np.where(valid, image, precise.type(0))) / count.astype(precise)
        mean[count == 0] = np.nan if nodata is None else nodata
        found: NDArray[Any] = mean.astype(image.dtype, copy=False)
        return found


def _summed(values: NDArray[Any]) -> NDArray[Any]:
    """The sums of neighbours, two by two along both axes; a last one without a neighbour alone."""
    if values.shape[0] % 2 or values.shape[1] % 2:
        values = np.pad(values, [(0, n % 2) for n in values.shape[:2]] + [(0, 0)] * (values.ndim - 2))
    lines = values[::2] + values[1::2]
    sums: NDArray[Any] = lines[:, ::2] + lines[:, 1::2]
    return sums
