"""Which windows of two tables share pixels, without comparing all with all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lazytiles.aliases import Int64s
from lazytiles.indexing.orders import ranks_of
from lazytiles.indexing.windows import shared_pixels

_CANDIDATES = 2**21  # pairs compared at once


def overlapping_pairs(windows_a: ArrayLike, regions_a: ArrayLike, windows_b: ArrayLike, regions_b: ArrayLike) -> Int64s:
    """All pairs (i, j) for which window i of a and window j of b share a pixel of one region.

    Windows are filed under cells as large as the larger of the two sizes, so that only neighbours are
    compared; windows of very different sizes are filed apart.

    Parameters
    ----------
    windows_a, windows_b : int arrays, shapes (n, 2d) and (m, 2d), starts then stops, half-open, pixels
    regions_a, regions_b : arrays, shapes (n,) and (m,); ids of one kind

    Returns
    -------
    int64 array, shape (pairs, 2), sorted

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
