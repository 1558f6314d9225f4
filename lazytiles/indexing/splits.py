"""Splits and folds by group and by class, and the pairs of windows that leak from one side to the other.

The rules are functions of arrays and a seed; `split_rows`, `kfold_rows` and `leakage` apply them to anything
that has a length, an `order` and a `table` as `MultiSourceArray` has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lazytiles.aliases import Int64s
from lazytiles.indexing.orders import permutation, ranks_of
from lazytiles.indexing.overlaps import Ground, overlapping_pairs, pairs_on_ground
from lazytiles.indexing.windows import boxes_from_windows, shared_pixels

_EVERYWHERE = 2**30  # the end of a window that is a whole image of a size not known


def split_groups(
    groups: ArrayLike | None, fraction: float, *, seed: int, n: int, stratify: ArrayLike | None = None
) -> tuple[Int64s, Int64s]:
    """Two disjoint parts of n samples, the first of about ``fraction * n``; no group is in both.

    Without groups the first part are the first samples of a permutation, with `stratify` those of each class. With
    groups each in turn, in the order of a permutation, joins the first part if that brings the part nearer to its size;
    with `stratify`, nearer to its size in each class (squared distances, relative to the classes).  Neither part is
    left empty.

    Groups have the shape (n,); classes (n,), or (n, k) with distinct rows as the classes. Gives int64 positions,
    ascending, together ``0..n-1``. A ValueError says that the fraction is not above 0 and below 1, that there are fewer
    than two samples or groups, or that an array has another length.

    >>> first, second = split_groups(["a", "a", "b", "b", "c", "c"], 2 / 3, seed=0, n=6)
    >>> first, second
    (array([0, 1, 2, 3]), array([4, 5]))
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} is the share of the first part: above 0 and below 1")
    classes = _column(stratify, n, "stratify")
    if groups is None:
        _require(n, 2, "samples")
        order = permutation(n, seed, purpose="split")
        total = min(max(round(fraction * n), 1), n - 1)
        sizes = np.bincount(classes)
        share = total * sizes / n
        taken = np.floor(share).astype(np.int64)  # of each class, and one more where the remainders are largest
        taken[np.argsort(taken - share, kind="stable")[: total - int(taken.sum())]] += 1
        by_class = order[np.argsort(classes[order], kind="stable")]
        place = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        first = np.zeros(n, dtype=np.bool_)
        first[by_class[place < np.repeat(taken, sizes)]] = True
    else:
        members, counts = _counted(groups, classes, n, 2)
        order = permutation(len(counts), seed, purpose="split")
        totals = counts.sum(axis=0)
        lacking = fraction * totals
        joins = np.zeros(len(counts), dtype=np.bool_)
        for group, mine in zip(order.tolist(), counts[order], strict=True):
            if (mine * (mine - 2 * lacking) / totals).sum() < 0:
                joins[group] = True
                lacking = lacking - mine
        if joins.all() or not joins.any():
            smallest = order[np.argmin(counts.sum(axis=1)[order])]
            joins[smallest] = not joins[smallest]
        first = joins[members]
    return np.flatnonzero(first), np.flatnonzero(~first)


def kfold_indices(
    k: int, n: int, *, seed: int, groups: ArrayLike | None = None, stratify: ArrayLike | None = None
) -> list[tuple[Int64s, Int64s]]:
    """k pairs (rest, fold) of n samples: the folds are disjoint and complete; no group is in two of them.

    Without groups the folds differ by at most one sample, in each class too.  With groups each, from the largest to the
    smallest, joins the fold that has fewest of its classes, then fewest samples. k is at least 2 and at most the number
    of groups (or samples); positions are int64, ascending, and the rest is as in `split_groups`.

    >>> [fold.tolist() for _, fold in kfold_indices(3, 6, seed=0, groups=[0, 0, 1, 1, 2, 2])]
    [[4, 5], [2, 3], [0, 1]]
    """
    if k < 2:
        raise ValueError(f"{k} folds: at least 2 are needed")
    classes = _column(stratify, n, "stratify")
    if groups is None:
        _require(n, k, "samples")
        order = permutation(n, seed, purpose="kfold")
        fold = np.empty(n, dtype=np.int64)
        fold[order[np.argsort(classes[order], kind="stable")]] = np.arange(n) % k
    else:
        members, counts = _counted(groups, classes, n, k)
        order = permutation(len(counts), seed, purpose="kfold")
        totals = counts.sum(axis=0)
        have = np.zeros((k, counts.shape[1]))
        fold_of = np.empty(len(counts), dtype=np.int64)
        for group in order[np.argsort(-counts.sum(axis=1)[order], kind="stable")].tolist():
            crowding = (have * (counts[group] / totals)).sum(axis=1)
            best = np.lexsort([have.sum(axis=1), crowding])[0]
            have[best] += counts[group]
            fold_of[group] = best
        fold = fold_of[members]
    return [(np.flatnonzero(fold != part), np.flatnonzero(fold == part)) for part in range(k)]


class Leak(NamedTuple):
    """Two tiles, one of each side, that share pixels of a region, or ground in two regions.

    Attributes
    ----------
    tile_a, tile_b : the tiles, by `tile_id`
    region_id : the region of the first
    box_a, box_b : their boxes ``(xmin, ymin, xmax, ymax)``, pixels
    shared_pixels : how many pixels they share; of two regions, the shared ground in pixels of the first
    region_b : the region of the second
    """

    tile_a: str
    tile_b: str
    region_id: str
    box_a: tuple[int, ...]
    box_b: tuple[int, ...]
    shared_pixels: int
    region_b: str


def region_column(table: Any) -> str:
    """The column of a table that tells the images of one frame apart: `region_id`, else `path`, else `tile_id`."""
    return next((name for name in ("region_id", "path") if name in table), "tile_id")


def leakage(a: Any, b: Any) -> list[Leak]:
    """Find the pairs of tiles of two arrays, such as two sides of a split, whose windows share pixels or ground.

    Frames make no difference: the same place at another time is the same place. Windows of different regions are
    compared where their images say where on the ground they lie, for which each image is opened.

    Parameters
    ----------
    a, b : arrays from `open_tiles`, or parts of them

    Returns
    -------
    list of Leak, by position in a, then in b; empty where nothing leaks

    Raises
    ------
    ValueError : an array has no windows, because it was not opened from a manifest
    """
    one, other = _places(a, "first"), _places(b, "second")
    i, j = _shared(one, other).T
    left, right = one.windows[i], other.windows[j]
    shared = np.where(one.regions[i] == other.regions[j], shared_pixels(left, right), 0)
    if one.ground is not None and other.ground is not None:
        mine, its = one.ground.at(i), other.ground.at(j)
        low, high = np.maximum(mine.boxes[:, :2], its.boxes[:, :2]), np.minimum(mine.boxes[:, 2:], its.boxes[:, 2:])
        pixels = np.round(np.maximum(high - low, 0).prod(axis=1) / mine.pixels**2)
        shared = np.where(shared == 0, np.maximum(np.nan_to_num(pixels), 1).astype(np.int64), shared)
    columns = (
        one.names[i].tolist(),
        other.names[j].tolist(),
        one.regions[i].tolist(),
        map(tuple, boxes_from_windows(left).tolist()),
        map(tuple, boxes_from_windows(right).tolist()),
        shared.tolist(),
        other.regions[j].tolist(),
    )
    return [Leak(*row) for row in zip(*columns, strict=True)]


class _Places(NamedTuple):
    """Where the samples of an array lie, in its current order: windows, region ids, tile ids and the ground."""

    windows: Int64s
    regions: NDArray[Any]
    names: NDArray[Any]
    ground: Ground | None


def _shared(a: _Places, b: _Places) -> Int64s:
    """The pairs of rows that share pixels of one region, or ground."""
    pairs = overlapping_pairs(a.windows, a.regions, b.windows, b.regions)
    if a.ground is not None and b.ground is not None:
        pairs = np.unique(np.concatenate([pairs, pairs_on_ground(a.ground, b.ground)]), axis=0)
    return pairs


def ground_groups(array: Any) -> Int64s:
    """A number for the group of each sample, in the current order, that does not depend on it.

    Windows that overlap are in one group, and so are those that others between them join.
    """
    places, n = _places(array, ""), len(array)
    i, j = _shared(places, places).T
    links = coo_array((np.ones(len(i), np.bool_), (i, j)), shape=(n, n))
    count, groups = connected_components(links, directed=False)
    first: Int64s = np.full(count, n, np.int64)
    np.minimum.at(first, groups, np.asarray(array.order))
    numbers: Int64s = first[groups]
    return numbers


def split_rows(
    array: Any, fraction: float, *, by: Any = None, stratify: Any = None, seed: int = 0
) -> tuple[Int64s, Int64s]:
    """Positions in the current order of the two parts of an array; the parts do not depend on that order.

    The array has a length, `order`, `table`, `labels` and `region_ids`. `by` is a table column or ``"source"``, whose
    equal values stay together; ``"ground"`` keeps windows together that overlap, in one region or on the ground.
    `stratify` is a column or ``"labels"``, whose shares both parts keep; either may be one value a sample.
    """
    groups, classes, order = _in_first_order(array, by, stratify)
    first, _ = split_groups(groups, fraction, seed=seed, n=len(array), stratify=classes)
    return _sides(first, order)[::-1]


def kfold_rows(
    array: Any, k: int, *, by: Any = None, stratify: Any = None, seed: int = 0
) -> Iterator[tuple[Int64s, Int64s]]:
    """Positions in the current order of k training and test parts; options as for `split_rows`."""
    groups, classes, order = _in_first_order(array, by, stratify)
    folds = kfold_indices(k, len(array), seed=seed, groups=groups, stratify=classes)
    return (_sides(fold, order) for _, fold in folds)


def _sides(chosen: Int64s, order: Int64s) -> tuple[Int64s, Int64s]:
    """Where in an order the samples stand that were not chosen, and those that were."""
    side = np.zeros(len(order), dtype=np.bool_)
    side[chosen] = True
    return np.flatnonzero(~side[order]), np.flatnonzero(side[order])


def _in_first_order(array: Any, by: Any, stratify: Any) -> tuple[Any, Any, Int64s]:
    """Groups, classes and the order that puts them in the current one."""
    order = np.asarray(array.order)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    named = _named(array, by, "by", "source"), _named(array, stratify, "stratify", "labels")
    groups, classes = (None if values is None else values[place] for values in named)
    return groups, classes, order


def _named(array: Any, name: Any, option: str, own: str) -> NDArray[Any] | None:
    """The values an option names: a column, the sources, the labels, or an array in the current order."""
    if name is None:
        return None
    table = array.table
    if not isinstance(name, str):
        values = np.asarray(name)
        if not values.ndim or len(values) != len(array):
            raise ValueError(f"{option} is a column of the table, {own!r}, or one value a sample; not {name!r:.60}")
        return values
    if table is not None and name in table.columns:
        column = table[name]
        codes = getattr(getattr(column, "cat", None), "codes", None)
        if option != "by" or codes is None or (codes < 0).any():
            return np.asarray(column)
        # For categories the place of each in their order, which groups alike in less memory.
        _, ranks = np.unique(np.asarray(column.cat.categories), return_inverse=True)
        places: NDArray[Any] = ranks.astype(np.int32)[codes.to_numpy()]
        return places
    if (option, name) == ("by", "ground"):
        return ground_groups(array)
    if name != own:
        columns = [] if table is None else [str(column) for column in table.columns]
        raise ValueError(
            f"{option}={name!r} is no column of the table; there are {[*columns, own]}"
            + (' and "ground"' if option == "by" else "")
        )
    values = array.region_ids if own == "source" else array.labels
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{option}={name!r}: the labels are no array that could be counted")
    return values


def _places(array: Any, side: str) -> _Places:
    windows, table = getattr(array, "sample_windows", None), getattr(array, "table", None)
    if windows is None or table is None or region_column(table) not in table.columns:
        said = 'by="ground" is for' if not side else f"the {side} array has no windows: leakage compares"
        raise ValueError(f"{said} arrays that open_tiles made")
    whole = (windows == 0).all(axis=1)
    axes = windows.shape[1] // 2
    windows = np.where(whole[:, None], np.repeat([0, _EVERYWHERE], axes), windows)
    names = table["tile_id"] if "tile_id" in table.columns else np.arange(len(windows))
    regions = np.asarray(table[region_column(table)]).astype(str)
    return _Places(windows, regions, np.asarray(names).astype(str), getattr(array, "ground", None))


def _column(values: ArrayLike | None, n: int, name: str) -> Int64s:
    """The ranks of a column of n values; without a column all are one."""
    if values is None:
        return np.zeros(n, dtype=np.int64)
    ranks = ranks_of(values)
    if len(ranks) != n:
        raise ValueError(f"{name} has {len(ranks)} values for {n} samples")
    return ranks


def _require(have: int, need: int, what: str) -> None:
    if have < need:
        raise ValueError(f"there are only {have} {what}: {need} parts that share none are not possible")


def _counted(groups: ArrayLike, classes: Int64s, n: int, parts: int) -> tuple[Int64s, NDArray[np.float64]]:
    """The group of each sample, and the samples of each class in each group, shape (groups, classes)."""
    members = _column(groups, n, "groups")
    width = int(classes.max()) + 1 if len(classes) else 1
    height = int(members.max()) + 1 if len(members) else 0
    _require(height, parts, "groups")
    flat = np.bincount(members * width + classes, minlength=height * width)
    return members, flat.reshape(height, width).astype(np.float64)
