"""Which windows of two tables share pixels or ground, without comparing all with all."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lazytiles.aliases import Int64s
from lazytiles.errors import require
from lazytiles.indexing.orders import ranks_of
from lazytiles.indexing.windows import shared_pixels

_CANDIDATES = 2**21  # pairs compared at once
_PART = 64  # of a pixel, to which places on the ground are rounded where they are compared


class Ground(NamedTuple):
    """Where samples lie on the ground."""

    systems: tuple[Any, ...]  # georeferences of the different reference systems; each has `crs` and `shares_system`
    system: Int64s  # shape (n,), which of them a sample has; -1 where its image says no place
    boxes: NDArray[np.float64]  # shape (n, 4), (left, bottom, right, top), map units
    pixels: NDArray[np.float64]  # shape (n,), the side of a pixel, map units

    def at(self, rows: Int64s) -> Ground:
        """Of some samples."""
        return Ground(self.systems, self.system[rows], self.boxes[rows], self.pixels[rows])


def pairs_on_ground(a: Ground, b: Ground) -> Int64s:
    """All pairs (i, j), int64, sorted, of samples that share more than a thirtieth of a pixel of ground both ways.

    Boxes of another system are brought to that of the others by pyproj; without it they are not compared, and a
    warning says so.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    for own, place in enumerate(a.systems):
        for other, its_place in enumerate(b.systems):
            i, j = np.flatnonzero(a.system == own), np.flatnonzero(b.system == other)
            if not len(i) or not len(j):
                continue
            boxes = b.boxes[j]
            if not place.shares_system(its_place):
                if place.crs is None or its_place.crs is None:
                    continue
                try:
                    boxes = brought(boxes, its_place.crs, place.crs)
                except ImportError:
                    warnings.warn(
                        f"samples in {its_place.crs} are not compared with those in {place.crs}; "
                        "pip install 'lazytiles[geo]' lets them be",
                        stacklevel=3,
                    )
                    continue
            unit = a.pixels[i].min() / _PART
            is_there = np.isfinite(boxes).all(axis=1)
            j, one, two = j[is_there], _in_parts(a.boxes[i], unit), _in_parts(boxes[is_there], unit)
            near, far = overlapping_pairs(one, np.zeros(len(i)), two, np.zeros(len(j))).T
            found.append(np.stack([i[near], j[far]], axis=1))
    pairs: Int64s = np.unique(np.concatenate(found), axis=0)
    return pairs


def _in_parts(boxes: NDArray[np.float64], unit: float) -> Int64s:
    """Boxes in whole units, each side moved inwards by one, so that neighbours do not share what rounding moves."""
    parts: Int64s = np.round(boxes / unit).astype(np.int64) + np.array([1, 1, -1, -1])
    return parts


def brought(boxes: NDArray[np.float64], crs: str, wanted: str) -> NDArray[np.float64]:
    """The boxes around some boxes (left, bottom, right, top) in another system; ImportError without pyproj."""
    transformer = require("pyproj", extra="geo").Transformer.from_crs(crs, wanted, always_xy=True)
    x, y = transformer.transform(boxes[:, [0, 2, 0, 2]], boxes[:, [1, 1, 3, 3]])
    return np.column_stack([x.min(axis=1), y.min(axis=1), x.max(axis=1), y.max(axis=1)])


def overlapping_pairs(windows_a: ArrayLike, regions_a: ArrayLike, windows_b: ArrayLike, regions_b: ArrayLike) -> Int64s:
    """All pairs (i, j), int64, sorted, for which window i of a and window j of b share a pixel of one region.

    Windows are filed under cells as large as the larger of the two sizes, so that only neighbours are
    compared; windows of very different sizes are filed apart. They are ints, shapes (n, 2d) and (m, 2d), starts then
    stops, half-open, pixels; regions are ids of one kind, shapes (n,) and (m,).

    >>> overlapping_pairs([(0, 0, 4, 4), (9, 9, 12, 12)], ["r", "r"], [(3, 3, 5, 5)], ["r"])
    array([[0, 0]])
    """
    a, b = np.asarray(windows_a, dtype=np.int64), np.asarray(windows_b, dtype=np.int64)
    regions = ranks_of(np.concatenate([np.asarray(regions_a), np.asarray(regions_b)]))
    inside_a, inside_b = regions[: len(a)], regions[len(a) :]
    found = [np.empty((0, 2), dtype=np.int64)]
    sizes_a, sizes_b = _size_classes(a), _size_classes(b)
    for size_a in np.unique(sizes_a).tolist():
        for size_b in np.unique(sizes_b).tolist():
            i, j = np.flatnonzero(sizes_a == size_a), np.flatnonzero(sizes_b == size_b)
            pairs = _neighbours(a[i], inside_a[i], b[j], inside_b[j], 2 ** max(size_a, size_b))
            found += [np.stack([i[p], j[q]], axis=1) for p, q in pairs]
    pairs_found = np.concatenate(found)
    return pairs_found[np.lexsort(pairs_found.T[::-1])]


def _size_classes(windows: Int64s) -> Int64s:
    """The power of two that is not below a window's longest side, as its exponent."""
    axes = windows.shape[1] // 2
    longest = (windows[:, axes:] - windows[:, :axes]).max(axis=1, initial=1)
    return np.asarray(np.ceil(np.log2(longest)), dtype=np.int64)


def _neighbours(
    a: Int64s, regions_a: Int64s, b: Int64s, regions_b: Int64s, edge: int
) -> Iterator[tuple[Int64s, Int64s]]:
    """The overlapping pairs of windows no longer than an edge: b is filed under the cell of its start."""
    axes = a.shape[1] // 2
    first, last = (a[:, :axes] - edge + 1) // edge, (a[:, axes:] - 1) // edge
    filed = [np.unique(regions_b), *(np.unique(column) for column in (b[:, :axes] // edge).T)]
    keys, _ = _filing(filed, [regions_b, *(b[:, :axes] // edge).T])
    by_key = np.argsort(keys, kind="stable")
    keys = keys[by_key]
    for offset in itertools.product(range(3), repeat=axes):
        cells = first + np.array(offset)
        wanted, known = _filing(filed, [regions_a, *cells.T])
        i = np.flatnonzero(known & (cells <= last).all(axis=1))
        low = np.searchsorted(keys, wanted[i], side="left")
        counts = np.searchsorted(keys, wanted[i], side="right") - low
        for part in _parts(counts):
            p = np.repeat(i[part], counts[part])
            within = np.arange(len(p)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
            q = by_key[np.repeat(low[part], counts[part]) + within]
            meet = shared_pixels(a[p], b[q]) > 0
            yield p[meet], q[meet]


def _filing(filed: list[Int64s], columns: list[Int64s]) -> tuple[Int64s, NDArray[np.bool_]]:
    """One number for each row of columns, by the values filed of each; and which rows have only such."""
    number = np.zeros(len(columns[0]), dtype=np.int64)
    known = np.ones(len(columns[0]), dtype=np.bool_)
    for values, column in zip(filed, columns, strict=True):
        place = np.minimum(np.searchsorted(values, column), len(values) - 1)
        known &= values[place] == column
        number = number * len(values) + place
    return number, known


def _parts(counts: Int64s) -> Iterator[slice]:
    """Runs of rows that have about `_CANDIDATES` candidates together."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + _CANDIDATES, side="right")), start + 1)
        yield slice(start, stop)
        start = stop
