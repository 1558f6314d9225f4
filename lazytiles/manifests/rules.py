"""Which tiles are worth keeping: pixels counted at full resolution, and tissue seen on a level of a pyramid."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.images import Region, judged, mask_of, thumbnail
from lazytiles.indexing import request

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Rule = Callable[[NDArray[Any]], bool]

_PART_BYTES = 8 * 2**20  # of an image that are judged at once; sums of them are up to 30 times as large
_FEWEST_PIXELS = 16  # along a tile on the level that tells its tissue first
_WIDE = 1024  # pixels of the longer side of the copy by which glass and tissue are told apart
_FRACTIONS, _MOMENTS = ("nodata", "valid"), ("std", "mean", "min", "max")
MEASURES = (*_FRACTIONS, "tissue", *_MOMENTS)
_COMPARISONS = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
_PART = re.compile(r"\s*([a-z]+)\s*(<=|>=|<|>)\s*(-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measure of a tile and its limit; of a measure that is no number it is never true."""

    measure: str
    sign: str
    limit: float

    def holds(self, values: Floats) -> Bools:
        """Whether it is so, value by value."""
        return np.asarray(_COMPARISONS[self.sign](values, self.limit), np.bool_)


def parse_rule(text: str) -> list[Comparison]:
    """A rule to keep tiles, from text; nothing is evaluated.

    Comparisons joined by ``and``: `nodata`, `valid` and `tissue` (fractions of the pixels), `std`, `mean`, `min`, `max`
    (of the valid values), ``<``, ``<=``, ``>``, ``>=``, and a number.

    >>> parse_rule("nodata<0.5 and std>=1")[1]
    Comparison(measure='std', sign='>=', limit=1.0)
    """
    parts = [_PART.fullmatch(part) for part in re.split(r"\band\b", text)]
    if not all(part and part[1] in MEASURES for part in parts):
        raise ValueError(
            f"keep rule {text!r}: comparisons such as 'nodata<0.5', joined by 'and', of {', '.join(MEASURES)}"
        )
    return [Comparison(part[1], part[2], float(part[3])) for part in parts if part]


def judge(region: Region, windows: Int64s, keep: str | Rule) -> Bools:
    """Which windows of an image, int64 (n, 4) or (n, 6) in its pixels, a rule keeps; parts outside are not judged.

    `tissue` is looked for on smaller levels of the image first.
    """
    lead, cut = _split(region, windows.shape[1] // 2)
    boxes = np.clip(windows, 0, [*cut] * 2)
    if not isinstance(keep, str):
        places = [(*[slice(None)] * len(lead), *map(slice, *np.split(box, 2))) for box in boxes]
        return np.array([bool(keep(region[place])) for place in places], bool)
    kept, rule = np.ones(len(boxes), bool), parse_rule(keep)
    for one in rule:
        if one.measure == "tissue" and kept.any():
            kept[kept] = _has_tissue(region, boxes[kept], one)
    rest = [one for one in rule if one.measure != "tissue"]
    if rest and kept.any():
        found = _measured(region, boxes[kept], {one.measure for one in rest})
        kept[kept] = np.logical_and.reduce([one.holds(found[one.measure]) for one in rest])
    return kept


def _split(region: Region, axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lengths of the axes along which a tile takes all, and of those that windows are cut along."""
    stop = region.axes.index("X") + 1
    return region.shape[: stop - axes], region.shape[stop - axes : stop]


def _parts(region: Region, boxes: NDArray[Any]) -> Iterator[tuple[Int64s, NDArray[Any], Bools, Int64s]]:
    """Pieces of an image of whole segments, each read once, as far as boxes lie in them.

    Of each its beginning along the axes of the boxes; pixels (height, width, samples); which of them are valid; and
    the numbers of its boxes.
    """
    axes = boxes.shape[1] // 2
    low, high = np.floor(boxes[:, :axes]).astype(np.int64), np.ceil(boxes[:, axes:]).astype(np.int64)
    (lead, shape), page, rows = _split(region, axes), region.pages[0], region.axes.index("Y")
    most = max(1, _PART_BYTES // (page.segment_bytes * page.planes))
    across = min(math.isqrt(most), page.grid[1])
    step = np.array([1] * (axes - 2) + [page.segment[0] * (most // across), page.segment[1] * across])
    for start in itertools.product(*(range(0, n, k) for n, k in zip(shape, step.tolist(), strict=True))):
        members = np.flatnonzero(((low < start + step) & (high > start)).all(axis=1))
        if not len(members):
            continue
        first = np.maximum(low[members].min(axis=0), start)
        last = np.minimum(high[members].max(axis=0), np.minimum(start + step, shape))
        for place in np.ndindex(*lead):
            key = (*place, *map(slice, first.tolist(), last.tolist()))
            asked = request(key, region.shape[: rows + 2], row_axes=rows, cells=region.chunks[rows : rows + 2])
            windows = region.windows(asked)
            pixels = region.read(windows)
            yield first, pixels[0], judged(windows, pixels)[0], members


def _sums(marks: NDArray[Any], first: Int64s, boxes: NDArray[Any]) -> Floats:
    """The sum of marks (height, width), which begin at `first`, in each box; of pixels partly in it, the part."""
    table = np.zeros((marks.shape[0] + 1, marks.shape[1] + 1))
    table[1:, 1:] = marks
    table.cumsum(axis=0, out=table).cumsum(axis=1, out=table)
    axes = boxes.shape[1] // 2

    def corner(y: Floats, x: Floats) -> Floats:
        at = [np.clip(one, 0, n) for one, n in zip((y, x), marks.shape, strict=True)]
        (top, left) = whole = [np.minimum(one.astype(np.int64), n - 1) for one, n in zip(at, marks.shape, strict=True)]
        down, right = (one - k for one, k in zip(at, whole, strict=True))
        upper = table[top, left] * (1 - right) + table[top, left + 1] * right
        lower = table[top + 1, left] * (1 - right) + table[top + 1, left + 1] * right
        return np.asarray(upper * (1 - down) + lower * down)

    y0, x0 = (boxes[:, axes - 2 : axes] - first[-2:]).T
    y1, x1 = (boxes[:, -2:] - first[-2:]).T
    return np.asarray(corner(y1, x1) - corner(y0, x1) - corner(y1, x0) + corner(y0, x0))


def _areas(boxes: NDArray[Any]) -> Floats:
    axes = boxes.shape[1] // 2
    return np.asarray(np.maximum((boxes[:, axes:] - boxes[:, :axes]).prod(axis=1), 1e-9), np.float64)


def _measured(region: Region, boxes: Int64s, wanted: set[str]) -> dict[str, Floats]:
    """Measures of some boxes at the resolution of the region, in one pass; of tiles without values they are NaN."""
    page, slices = region.pages[0], math.prod(_split(region, boxes.shape[1] // 2)[0])
    tells = page.nodata is not None or mask_of(page) is not None
    counts, moments = np.zeros((2, len(boxes))), np.zeros((5, len(boxes)))
    for first, pixels, valid, members in _parts(region, boxes):
        if not wanted.isdisjoint(_FRACTIONS):
            some = np.asarray(valid.any(axis=-1))
            # A file that names no nodata may still have left pixels out.
            empty = np.asarray(~some if tells else ((pixels == 0) | ~valid).all(axis=-1))
            for counted, marks in zip(counts, (some, empty), strict=True):
                counted[members] += _sums(marks, first, boxes[members])
        for row in members.tolist() if not wanted.isdisjoint(_MOMENTS) else ():
            (y0, x0), (y1, x1) = np.maximum(boxes[row].reshape(2, -1)[:, -2:] - first[-2:], 0).tolist()
            values = pixels[y0:y1, x0:x1][valid[y0:y1, x0:x1]]
            if not values.size:
                continue
            # Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979)
            count, mean, squares, least, most = moments[:, row]
            total, apart = count + values.size, values.mean(dtype=np.float64) - mean
            squares += values.var(dtype=np.float64) * values.size + apart**2 * count * values.size / total
            ends = (values.min(), values.max())
            least, most = (min(least, ends[0]), max(most, ends[1])) if count else ends
            moments[:, row] = total, mean + apart * values.size / total, squares, least, most
    valid_part, empty_part = counts / (_areas(boxes) * slices)
    count, mean, squares, least, most = np.where(moments[0] > 0, moments, np.nan)
    deviation = np.sqrt(squares / count)
    return {"valid": valid_part, "nodata": empty_part, "std": deviation, "mean": mean, "min": least, "max": most}


_PALE, _DEEP = 0.05, 0.15  # between which the least saturation of tissue lies
_DARK = 0.15  # of the glass's brightness: what is darker is no tissue
_TINTED, _TINTED_BESIDE_WHITE = 0.2, 0.14  # the most saturation of glass


@dataclass(frozen=True, slots=True)
class Stain:
    """Tells tissue from glass in one slide: by the saturation of its colours relative to those of the glass.

    Glass is the brightest colour of the slide beside pure white and pure black, which are fill, if it is a tint at
    most; else white. The least saturation of tissue is Otsu's threshold (IEEE Trans. SMC 9, 1979), not below 0.05, as
    noise is, and not above 0.15, where pale tissue would part from deep; the least brightness is 0.15 of that of glass.
    """

    glass: tuple[float, float, float]  # its red, green and blue
    threshold: float  # the least saturation of tissue

    @classmethod
    def of(cls, pixels: NDArray[Any]) -> Stain:
        """From a small copy of a slide, shape (height, width, 3 or more)."""
        colours = pixels.reshape(-1, pixels.shape[-1])[:, :3]
        top = np.iinfo(colours.dtype).max if colours.dtype.kind in "ui" else np.inf
        is_white, is_black = (colours == top).all(axis=1), ~(colours > 0).any(axis=1)
        colours = colours.astype(np.float64)
        own = colours[~(is_white | is_black)]
        glass = np.full(3, float(top if is_white.any() else max(colours.max(initial=0), 1)))
        if len(own):
            bright = own.mean(axis=1)
            bright = own[bright >= 0.95 * np.quantile(bright, 0.99)]
            most = _TINTED_BESIDE_WHITE if is_white.any() else _TINTED
            is_tint = np.ptp(bright, axis=1) <= most * bright.max(axis=1)
            glass = np.median(bright[is_tint], axis=0) if 2 * is_tint.sum() > len(bright) else glass
        found = cls((float(glass[0]), float(glass[1]), float(glass[2])), 0)
        saturation, value = found.seen(colours)
        return cls(found.glass, float(np.clip(otsu(saturation[value >= _DARK]), _PALE, _DEEP)))

    def seen(self, pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Saturation and brightness of pixels (..., 3 or more), relative to the glass, 0 to 1."""
        red, green, blue = (np.minimum(pixels[..., k] * np.float32(1 / top), 1) for k, top in enumerate(self.glass))
        high = np.maximum(np.maximum(red, green), blue)
        low = np.minimum(np.minimum(red, green), blue)
        return 1 - low / np.maximum(high, np.float32(1e-12)), high

    def __call__(self, pixels: NDArray[Any]) -> Bools:
        """Which pixels are tissue."""
        saturation, value = self.seen(pixels)
        return np.asarray((saturation > self.threshold) & (value >= _DARK))


def otsu(values: NDArray[Any]) -> float:
    """The threshold that parts values between 0 and 1 into the two classes furthest from each other.

    >>> round(otsu(np.array([0.1, 0.1, 0.1, 0.5, 0.5])), 2)
    0.3
    """
    counts, edges = np.histogram(values, 256, (0, 1))
    below = counts.cumsum()[:-1]
    total, above = counts.sum(), counts.sum() - below
    sums = (counts * (edges[1:] + edges[:-1]) / 2).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2 * below * above
    best = np.nan_to_num(between)
    return float(edges[1:-1][best >= best.max() * (1 - 1e-9)].mean()) if total and best.max() > 0 else 0.0


def _has_tissue(base: Region, boxes: Int64s, asked: Comparison) -> Bools:
    """Which boxes have as much tissue as asked for, from the smallest level of enough pixels.

    Along its borders, what one pixel of a level is may be another at full resolution: where these could change the
    answer the next finer level is asked.
    """
    if not base.axes.endswith("S") or base.inner_shape[2] < 3:
        raise ValueError("the rule 'tissue' needs images of red, green and blue; use 'std' or 'mean'")
    levels = base.levels[base.level :]
    axes = boxes.shape[1] // 2
    lead, _ = _split(base, axes)
    scales = [np.r_[np.ones(axes - 2), np.divide(one.downsample, levels[0].downsample)] for one in levels]
    sides, slices = (boxes[:, -2:] - boxes[:, axes - 2 : axes]).min(), math.prod(lead)
    first = max((k for k, scale in enumerate(scales) if sides >= _FEWEST_PIXELS * scale.max()), default=0)
    small = thumbnail(base, longest=_WIDE)
    assert small is not None
    stain, kept, pending = Stain.of(small), np.zeros(len(boxes), bool), np.arange(len(boxes))
    for k in range(first, -1, -1):
        region = base.at_level(base.level + k)
        mine = np.clip(boxes[pending] / np.tile(scales[k], 2), 0, [*_split(region, axes)[1]] * 2)
        sums = np.zeros((2, len(mine)))
        for start, pixels, valid, members in _parts(region, mine):
            tissue = stain(pixels) & valid.any(axis=-1)
            for row, marks in enumerate((tissue, _borders(tissue)) if k else (tissue,)):
                sums[row, members] += _sums(marks, start, mine[members])
        fraction, unsure = np.round(sums / (_areas(mine) * slices), 9)  # parts of pixels do not sum up exactly
        kept[pending] = asked.holds(fraction)
        pending = pending[asked.holds(fraction - unsure) != asked.holds(fraction + unsure)]
        if not len(pending):
            break
    return kept


def _borders(mask: Bools) -> Bools:
    """Pixels beside one of the other kind."""
    found = np.zeros_like(mask)
    for axis in (0, 1):
        here, there = (np.moveaxis(one, axis, 0) for one in (found, mask))
        differ = there[1:] != there[:-1]
        here[1:] |= differ
        here[:-1] |= differ
    return found
