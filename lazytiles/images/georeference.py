"""Where on the ground an image lies, and which of its numbers mean nothing: what its tags say, taken as GDAL takes it.

GeoTIFF 1.1 (OGC 19-008r4) for the place; GDAL's own tags 42112 (metadata) and 42113 (nodata) for the numbers.
"""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import tifffile
from affine import Affine

from lazytiles.images.files import FileKey, open_plain, pool

Bounds = tuple[float, float, float, float]

_SCALE, _TIES, _MATRIX = 33550, 33922, 34264  # ModelPixelScale, ModelTiepoint, ModelTransformation
_KEYS, _DOUBLES, _TEXTS = 34735, 34736, 34737  # GeoKeyDirectory and what its keys refer to
_METADATA, NODATA = 42112, 42113
_PLACE = (_SCALE, _TIES, _MATRIX, _KEYS, _DOUBLES, _TEXTS, _METADATA)
_TYPES = {2: "S1", 3: "u2", 4: "u4", 11: "f4", 12: "f8"}
_MOST_BYTES = 2**24  # of a tag
_MODEL, _RASTER, _GEOGRAPHIC, _PROJECTED = 1024, 1025, 2048, 3072
_CITATIONS = (3073, 1026, 2049)  # of the projected system, the whole, and the geographic one
_USER_DEFINED = 32767
_WKT = re.compile(r"(?:PROJ|GEOG|GEOC|COMPD|LOCAL_)(?:CS|CRS)\[.*", re.DOTALL)
_ITEM = re.compile(r"<Item\b([^<>]*)>([^<]*)<")
_ATTRIBUTE = re.compile(r'(\w+)\s*=\s*"([^"]*)"')
_NUMBER = re.compile(r"[-+]?(?:nan|inf(?:inity)?|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(?!\S)", re.IGNORECASE)
_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Georeference:
    """The place of an image: its coordinate reference system, and which point of it each pixel covers.

    `crs` and `transform` are None where nothing is said.
    """

    crs: str | None = None  # "EPSG:32633"; WKT or the file's own words where the system is user-defined
    transform: Affine | None = None  # from (x, y) in pixels, counted from the upper left corner, to map units
    keys: tuple[tuple[int, int, int, Any], ...] = ()  # (code, type, count, value) of the GeoKey tags as stored

    def shifted(self, y0: float, x0: float, scale: tuple[float, float] = (1.0, 1.0)) -> Georeference:
        """The place of a window from this corner on, or of a level whose pixels take `scale` (y, x) of this image."""
        if self.transform is None:
            return self
        return replace(self, transform=self.transform @ Affine.translation(x0, y0) @ Affine.scale(scale[1], scale[0]))

    def bounds(self, shape: tuple[int, ...]) -> Bounds | None:
        """(left, bottom, right, top) in map units of an image (height, width); left < right and bottom < top."""
        if self.transform is None:
            return None
        height, width = shape[:2]
        corners = [self.transform @ corner for corner in ((0, 0), (width, 0), (0, height), (width, height))]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def shares_system(self, other: Georeference) -> bool:
        """Whether both have one coordinate reference system; user-defined ones are compared by all that they say."""
        if self.crs != other.crs or (self.crs or "").startswith("EPSG:"):
            return self.crs == other.crs
        own, its = ({k: v for k, v in _entries(one.keys).items() if k != _RASTER} for one in (self, other))
        return own == its

    def extratags(self) -> list[tuple[int, int, int, Any, bool]]:
        """The tags that say this place, as `tifffile.imwrite` takes them in ``extratags=``."""
        tags: list[tuple[int, int, int, Any, bool]] = [(*tag, True) for tag in self.keys]
        if self.transform is not None:
            at = self.transform
            if _entries(self.keys).get(_RASTER) == 2:
                at = at @ Affine.translation(0.5, 0.5)
            if at.b == at.d == 0 and at.e < 0:
                tags.append((_SCALE, 12, 3, (at.a, -at.e, 0.0), True))
                tags.append((_TIES, 12, 6, (0.0, 0.0, 0.0, at.c, at.f, 0.0), True))
            else:
                rows = (at.a, at.b, 0.0, at.c), (at.d, at.e, 0.0, at.f), (0.0,) * 4, (0.0, 0.0, 0.0, 1.0)
                tags.append((_MATRIX, 12, 16, sum(rows, ()), True))
        return sorted(tags)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its file the tags of a page lie that say where the page lies; they are read when it is asked for."""

    byteorder: str = "<"  # of the file
    tags: tuple[tuple[int, int, int, int], ...] = ()  # (code, type, count, offset of the value) of each
    scale: tuple[float, float] = (1.0, 1.0)  # of a level, pixels of the full resolution that one pixel takes, (y, x)


def place_of(page: tifffile.TiffPage, level: tifffile.TiffPage | None = None) -> Place:
    """The place of a page, or of a level of the pyramid that it heads."""
    codes = page.tags.keys()
    found = [page.tags[code] for code in _PLACE if code in codes]
    tags = tuple((tag.code, int(tag.dtype), tag.count, tag.valueoffset) for tag in found)
    scale = (1.0, 1.0)
    if level is not None:
        scale = page.imagelength / level.imagelength, page.imagewidth / level.imagewidth
    return Place(page.parent.byteorder, tags, scale)


def georeference_of(key: FileKey, place: Place) -> Georeference | None:
    """What the tags of a page say of its place, else a world file beside a local file; None where neither does."""
    told = _told(key, place)
    transform = told.transform or _world(key)
    if transform is None and (told.crs is None or any(tag[0] == _TIES for tag in place.tags)):
        return None  # of control points alone the system is theirs, not the pixels'
    return replace(told, transform=transform).shifted(0, 0, place.scale)


@lru_cache(1024)
def _told(key: FileKey, place: Place) -> Georeference:
    """The place by the tags alone, of the full resolution; control points alone give no transform."""
    found = ((code, _value(key, place.byteorder, *tag)) for code, *tag in place.tags if code != _METADATA)
    values = {code: value for code, value in found if value and isinstance(value, bytes) == (code == _TEXTS)}
    keys = tuple(
        (code, 2 if code == _TEXTS else 3 if code == _KEYS else 12, 0 if code == _TEXTS else len(value), value)
        for code, value in values.items()
        if code in (_KEYS, _DOUBLES, _TEXTS)
    )
    entries, transform = _entries(keys), None
    scale, ties, matrix = (values.get(code, ()) for code in (_SCALE, _TIES, _MATRIX))
    if len(scale) >= 2 and scale[0] and scale[1]:
        if len(ties) >= 6:
            a, e = scale[0], -abs(scale[1])
            transform = _sound(Affine(a, 0.0, ties[3] - ties[0] * a, 0.0, e, ties[4] - ties[1] * e))
    elif len(matrix) == 16:
        transform = _sound(Affine(matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7]))
    if transform is not None and entries.get(_RASTER) == 2:  # the centres of pixels are named, not their corners
        transform = transform @ Affine.translation(-0.5, -0.5)
    return Georeference(_crs(entries), transform, keys if _KEYS in values else ())


def _value(key: FileKey, byteorder: str, kind: int, count: int, offset: int) -> Any:
    """The value of a tag, a tuple of numbers or bytes; None of a type or size that makes no sense."""
    form = np.dtype(byteorder + _TYPES.get(kind, "V1"))
    size = count * form.itemsize
    if form.kind == "V" or not 0 < size <= _MOST_BYTES or offset + size > key.size:
        return None
    data = pool.read(key, offset, size)
    return data if kind == 2 else tuple(np.frombuffer(data, form).tolist())


def _entries(keys: tuple[tuple[int, int, int, Any], ...]) -> dict[int, Any]:
    """The GeoKeys by their number (GeoTIFF 1.1, section 7.1.2)."""
    stored = {code: value for code, _, _, value in keys}
    directory = stored.get(_KEYS, ())
    entries: dict[int, Any] = {}
    for at in range(4, min(len(directory) - 3, 4 * directory[3] + 4 if len(directory) > 3 else 0), 4):
        code, where, count, value = directory[at : at + 4]
        if where == _TEXTS:
            entries[code] = stored.get(_TEXTS, b"")[value : value + count].rstrip(b"|\0").decode("utf-8", "replace")
        elif where == 0:
            entries[code] = value
        elif where == _DOUBLES:
            entries[code] = stored.get(_DOUBLES, ())[value : value + count]
    return entries


def _crs(entries: dict[int, Any]) -> str | None:
    model, code = entries.get(_MODEL), entries.get(_PROJECTED, 0)
    if model in (2, 3) or not code:
        code = _USER_DEFINED if model == 1 else entries.get(_GEOGRAPHIC, 0)
    if isinstance(code, int) and 1024 <= code < _USER_DEFINED:
        return f"EPSG:{code}"
    if not code and _MODEL not in entries:
        return None
    texts = [entries[key] for key in _CITATIONS if isinstance(entries.get(key), str) and entries[key]]
    for text in texts:
        if found := _WKT.search(text):
            return found[0]
    return texts[0].partition("|")[0].removeprefix("GCS Name = ").strip() if texts else "user-defined" if code else None


def _sound(transform: Affine) -> Affine | None:
    is_sound = all(map(math.isfinite, transform[:6])) and transform.determinant != 0
    return transform if is_sound else None


def _world(key: FileKey) -> Affine | None:
    """What a world file beside a local image says: A, D, B, E of the transform, and the centre of the first pixel.

    A link is not followed: it may lead anywhere.
    """
    if key.is_remote:
        return None
    stem, extension = os.path.splitext(key.path)
    letters = extension[1:]
    names = [f"{letters[0]}{letters[-1]}w", f"{letters}w"] if len(letters) > 1 else []
    for name in (cased for each in (*names, "wld") for cased in (each.lower(), each.upper())):
        with suppress(OSError, ValueError):
            with open(open_plain(f"{stem}.{name}", links=False), encoding="latin-1") as file:
                words = file.read(4096).split()[:6]
            a, d, b, e, x, y = (float(word.replace(",", ".")) for word in words)
            if found := _sound(Affine(a, b, x, d, e, y)):
                return found @ Affine.translation(-0.5, -0.5)
    return None


def scale_offset_of(key: FileKey, place: Place, samples: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Scales and offsets of the samples by GDAL's metadata, one a sample each; None where nothing is said."""
    found = [_value(key, place.byteorder, *tag) for code, *tag in place.tags if code == _METADATA]
    told: dict[str, dict[int, float]] = {"scale": {}, "offset": {}}
    for attributes, text in _ITEM.findall(found[0].decode("utf-8", "replace") if found and found[0] else ""):
        named = dict(_ATTRIBUTE.findall(attributes))
        with suppress(ValueError, KeyError):
            told[named["role"]][int(named["sample"])] = float(text)
    if not any(told.values()):
        return None
    scales = tuple(told["scale"].get(k, 1.0) for k in range(samples))
    return scales, tuple(told["offset"].get(k, 0.0) for k in range(samples))


@lru_cache(256)
def parse_nodata(text: Any, dtype: np.dtype[Any]) -> Any:
    """The number that means nothing, by the words of its tag: a scalar of a dtype; None where it cannot hold one.

    >>> parse_nodata("-3.40282346638529e+38", np.dtype(np.float32)), parse_nodata("some", np.dtype(np.float32))
    (np.float32(-3.4028235e+38), None)
    >>> parse_nodata("18446744073709551615", np.dtype(np.uint64)), parse_nodata("-1", np.dtype(np.uint8))
    (np.uint64(18446744073709551615), None)
    """
    found = _NUMBER.match(text.strip().replace(",", ".")) if isinstance(text, str) else None
    if found is None:
        return None
    if dtype.kind in "fc":
        value = float(found[0])
        if dtype.itemsize == (4 if dtype.kind == "f" else 8) and abs(abs(value) - _FLOAT_MAX) < 1e-10 * _FLOAT_MAX:
            value = math.copysign(_FLOAT_MAX, value)  # written with fewer digits, it may lie a little beyond
        with np.errstate(over="ignore"):
            held = dtype.type(value)
        return None if np.isinf(held) and not math.isinf(value) else held
    try:
        whole = int(found[0])
    except ValueError:
        if not float(found[0]).is_integer():
            return None
        whole = int(float(found[0]))
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return cast(Any, dtype.type(whole)) if low <= whole <= high else None
