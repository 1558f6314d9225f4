"""A NumPy key as three things: the rows to read, the box to read of each, and what to do with the block.

A lazy array is a stack of *rows* (samples, frames, pages: its first `row_axes` axes, read one by one) of
which a *box* is read (its other axes, cut by a contiguous extent).  `request` says for a key which rows and
which box hold everything that NumPy would give; `Request.finish` makes of what was read what NumPy gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Int64s
from lazytiles.indexing.keys import (
    NEW,
    POINTS,
    ParsedKey,
    as_progression,
    extent,
    is_integer,
    parse,
    plain_indices,
    progression,
    refuse,
)

_SMALL_GATHER = 16  # pixels: an extent so small is read whole (band lists)
_GATHER_RATIO = 4  # an extent is read whole if its points are at least one in so many
_BIG_BLOCK = 2**22  # elements: above it, rows of pixels that a step leaves out are not read into memory


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Request:
    """What to read for a key, and how the result is made of it.

    Row ``k`` of the block is ``source[rows[0][k], rows[1][k], ...]`` cut by ``box``, moved by ``origins[k]``
    where there are origins.
    """

    rows: tuple[Int64s, ...]  # for each row axis, shape (n,), non-negative
    box: Box  # of each box axis, inside the shape; with origins all starts are 0
    origins: Int64s | None  # shape (n, number of box axes), the start of each row's box
    n: int  # number of rows to read (1 where there are no row axes and no origins)
    _split: tuple[int, ...] | None = None
    _index: tuple[Any, ...] | None = None
    _gather: tuple[Any, ...] | None = None
    _axes: tuple[int, ...] | None = None
    _new: tuple[Any, ...] | None = None

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape ``(n, *extents)`` of the block that `finish` takes."""
        return (self.n, *(stop - start for start, stop in self.box))

    def finish(self, block: NDArray[Any]) -> Any:
        """What NumPy would have given for the key; the block itself, or a view of it, wherever that is the same.

        The block has the shape `block_shape`, row by row what was asked for.
        """
        result: Any = block
        if self._split is not None:
            result = result.reshape(self._split)
        if self._index is not None:
            result = result[self._index]
        if self._gather is not None:
            result = result[self._gather]
        if self._axes is not None:
            result = result.transpose(self._axes)
        if self._new is not None:
            result = result[self._new]
        return result

    def __repr__(self) -> str:
        extents = " x ".join(str(extent) for extent in self.block_shape[1:]) or "1"
        moved = "" if self.origins is None else ", each at its own origin"
        return f"<Request: {self.n} rows of {extents}{moved}>"


def request(key: Any, shape: Sequence[int], *, row_axes: int, cells: Sequence[int | None] | None = None) -> Request:
    """The rows and the box that hold ``array[key]`` for an array of that shape, and how it is made of them.

    The first `row_axes` axes are read one by one; the others are box axes, of each of which `cells` has the edge of a
    segment, pixels (None: it is never divided). Where a key leaves segments out (advanced indices, steps longer than a
    segment), every row gets its own origin. A key that NumPy refuses is refused in NumPy's own words.

    >>> asked = request((slice(2, 4), ..., [2, 0]), (10, 64, 64, 3), row_axes=1)
    >>> asked
    <Request: 2 rows of 64 x 64 x 3>
    >>> asked.finish(np.zeros(asked.block_shape)).shape
    (2, 64, 64, 2)
    """
    sizes, kind = tuple(shape), type(key)
    if row_axes > 0:  # the usual keys, on the first axis alone, take the short way
        size = sizes[0]
        if kind is list or kind is np.ndarray:
            indices = plain_indices(key, size)
            if indices is not None:
                return _whole_rows(indices, sizes, row_axes)
        elif kind is slice:
            return _whole_rows(progression(as_progression(key, size)), sizes, row_axes)
        elif kind is int or is_integer(key):
            if not -size <= key < size:
                refuse(key, shape)
            return _whole_rows(np.array([key % size], dtype=np.int64), sizes, row_axes, drop=True)
    edges: list[int | None] = [None] * row_axes
    edges += cells if cells is not None else [None] * (len(shape) - row_axes)
    return _lay_out(parse(key, sizes), row_axes, edges)


def _whole_rows(chosen: Int64s, shape: tuple[int, ...], row_axes: int, *, drop: bool = False) -> Request:
    """The request of positions on the first axis, with all of the others."""
    box, inner = _whole(shape, row_axes)
    n = len(chosen)
    if row_axes == 1:
        return Request((chosen,), box, None, n, None, (0,) if drop else None)
    each = len(inner[0])
    if not drop:  # np.tile takes longer than all the rest of a short key
        blocks = [np.empty((n, each), dtype=np.int64) for _ in inner]
        for block, row in zip(blocks, inner, strict=True):
            block[:] = row
        inner = tuple(block.reshape(-1) for block in blocks)
    rows = (chosen.repeat(each), *inner)
    return Request(rows, box, None, n * each, shape[1:] if drop else (n, *shape[1:]))


@lru_cache(maxsize=256)
def _whole(shape: tuple[int, ...], row_axes: int) -> tuple[Box, tuple[Int64s, ...]]:
    """The box of everything, and the rows that lie under one position of the first axis."""
    lengths = shape[1:row_axes]
    inner = [_spread(np.arange(length, dtype=np.int64), k, lengths) for k, length in enumerate(lengths)]
    for row in inner:
        row.flags.writeable = False
    return tuple((0, size) for size in shape[row_axes:]), tuple(inner)


def _spread(values: Int64s, place: int, lengths: Sequence[int]) -> Int64s:
    """Values along one of several axes, repeated over the others, flat."""
    shaped = values.reshape([-1 if k == place else 1 for k in range(len(lengths))])
    return np.broadcast_to(shaped, lengths).reshape(-1)


def _stepped(parsed: ParsedKey, row_axes: int, edges: list[int | None]) -> set[int]:
    """The box axes of which single lines are read: steps leap over segments, or the block would be huge."""
    leaps = set()
    elements = 1
    for axis, edge in zip(parsed.axes, edges, strict=True):
        if isinstance(axis, tuple):
            start, stop = extent(axis)
            elements *= axis[2] if edge is None else stop - start
    for number in range(row_axes, len(parsed.axes)):
        axis, edge = parsed.axes[number], edges[number]
        if isinstance(axis, tuple) and edge is not None and axis[2] > 1:
            big = number == row_axes and abs(axis[1]) >= _GATHER_RATIO and elements > _BIG_BLOCK
            if abs(axis[1]) > edge or big:
                leaps.add(number)
    return leaps


def _is_dense(coords: dict[int, Int64s], row_axes: int, edges: list[int | None]) -> bool:
    """Whether to read the extent of the points whole: they leave no segment out, and not much else."""
    boxed = [axis for axis in coords if axis >= row_axes]
    if not boxed or all(edges[axis] is None for axis in boxed):
        return bool(boxed)
    size = len(coords[boxed[0]])
    if size == 0:
        return True
    lows = {axis: int(coords[axis].min()) for axis in coords}
    volume = math.prod(int(coords[axis].max()) + 1 - lows[axis] for axis in boxed)
    rows = [coords[axis] for axis in coords if axis < row_axes]
    cells = [coords[axis] // (edges[axis] or 1 << 62) for axis in boxed]
    wanted = _distinct(rows) * math.prod(int(cell.max() - cell.min()) + 1 for cell in cells)
    small = volume <= _SMALL_GATHER or volume * _distinct(rows) <= _GATHER_RATIO * size
    return small and _distinct(rows + cells) == wanted


def _distinct(columns: list[Int64s]) -> int:
    """How many different tuples the columns hold."""
    return len(np.unique(_ravel(columns)[0])) if columns else 1


def _ravel(columns: list[Int64s]) -> tuple[Int64s, list[int]]:
    """Tuples of small non-negative numbers as one number each, and the sizes to take them apart again."""
    sizes = [int(column.max()) + 1 if len(column) else 1 for column in columns]
    return np.ravel_multi_index(columns, sizes).astype(np.int64, copy=False), sizes


def _lay_out(parsed: ParsedKey, row_axes: int, edges: list[int | None]) -> Request:
    """Which rows, box and origins hold the key, then the steps from the block to the result."""
    axes, shaped = parsed.axes, parsed.points or ()
    coords = {
        number: np.broadcast_to(axis, shaped).reshape(-1)
        for number, axis in enumerate(axes)
        if isinstance(axis, np.ndarray)
    }
    dense = _is_dense(coords, row_axes, edges)
    gathered = {axis: coords.pop(axis) for axis in list(coords) if dense and axis >= row_axes}
    inverse = None
    points = math.prod(shaped)
    if gathered and coords:
        flat, sizes = _ravel(list(coords.values()))
        unique, inverse = np.unique(flat, return_inverse=True)  # each row once, and the row of every point
        coords = dict(zip(coords, np.unravel_index(unique, sizes), strict=True))
        points = len(unique)
    leads = _stepped(parsed, row_axes, edges) | set(range(row_axes))
    dims = [d for d in parsed.dims if d in leads or (d == POINTS and (coords or not gathered))]
    counts = [axis[2] if isinstance(axis, tuple) else 1 for axis in axes]
    lengths = [points if d == POINTS else counts[d] for d in dims]
    columns: dict[int, Int64s] = {}  # for each axis that differs from row to row, its index in every row
    for place, d in enumerate(dims):
        if d == POINTS:
            columns.update({axis: _spread(values, place, lengths) for axis, values in coords.items()})
        else:
            axis = axes[d]
            assert isinstance(axis, tuple)
            columns[d] = _spread(progression(axis), place, lengths)
    boxed = range(row_axes, len(axes))
    box = tuple((0, 1) if axis in columns else extent(axes[axis]) for axis in boxed)
    origins = None
    if any(axis in columns for axis in boxed):
        starts = [columns.get(axis, start) for axis, (start, _) in zip(boxed, box, strict=True)]
        origins = np.stack(np.broadcast_arrays(*starts), axis=1).astype(np.int64, copy=False)
        box = tuple((0, stop - start) for start, stop in box)
    n = math.prod(lengths)
    rows = tuple(columns[k] if k in columns else np.full(n, axes[k], dtype=np.int64) for k in range(row_axes))
    extents = [stop - start for start, stop in box]
    return Request(rows, box, origins, n, *_steps(parsed, dims, lengths, extents, set(columns), gathered, inverse))


_Label: TypeAlias = tuple[int, int]  # an axis and 0, or POINTS and which of the points' dimensions


def _steps(
    parsed: ParsedKey,
    dims: list[int],
    lengths: list[int],
    extents: list[int],
    single: set[int],
    gathered: dict[int, Int64s],
    inverse: Int64s | None,
) -> tuple[Any, ...]:
    """The five steps of `Request.finish`: split the rows, index, gather, order the axes, add new axes.

    The rows of the block enumerate `dims` of these lengths; axes that are `single` have an index of their own in each.
    Points are taken of the `gathered` axes afterwards, by `inverse` of the rows, where each row is asked for once.
    """
    shaped = parsed.points or ()
    points = [(POINTS, k) for k in range(len(shaped))]
    labels: list[_Label] = []
    split: list[int] = []
    for d, length in zip(dims, lengths, strict=True):
        several = d == POINTS and inverse is None
        split += shaped if several else [length]
        labels += points if several else [(d, 0)]
    index: list[Any] = [slice(None)] * len(labels)
    for axis in range(len(parsed.axes) - len(extents), len(parsed.axes)):
        found = parsed.axes[axis]
        if axis in single or isinstance(found, int):
            index.append(0)
            continue
        index.append(slice(None, None, found[1]) if isinstance(found, tuple) and found[1] != 1 else slice(None))
        labels.append((axis, 0))
    if not any(d != NEW for d in parsed.dims) and (parsed.keeps_array or parsed.dims):
        index.append(Ellipsis)
    gather = None
    if gathered:  # the key that takes points out of extents read whole, and the labels after it, as NumPy places them
        taken: dict[_Label, Int64s] = {
            (axis, 0): (values - extent(values)[0]).reshape(shaped) for axis, values in gathered.items()
        }
        if inverse is not None:
            taken[POINTS, 0] = inverse.reshape(shaped)
        gather = tuple(taken.get(label, slice(None)) for label in labels)
        places = [place for place, label in enumerate(labels) if label in taken]
        before = places[0] if places[-1] - places[0] == len(places) - 1 else 0
        rest = [label for label in labels if label not in taken]
        labels = [*rest[:before], *points, *rest[before:]]
    wanted = [label for d in parsed.dims if d != NEW for label in (points if d == POINTS else [(d, 0)])]
    order = tuple(labels.index(label) for label in wanted)
    new: list[Any] = []
    for d in parsed.dims:
        new += [None] if d == NEW else [slice(None)] * (len(shaped) if d == POINTS else 1)
    return (
        (*split, *extents) if split != [math.prod(lengths)] else None,
        tuple(index) if not wanted or any(step != slice(None) for step in index) else None,
        gather,
        order if order != tuple(range(len(order))) else None,
        tuple(new) if None in new else None,
    )
