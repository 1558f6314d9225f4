"""Tilings of a shape: one law for an axis, composed over the axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from lazytiles.aliases import Int64s

Edge = Literal["shift", "pad", "drop", "partial"]
EDGES: tuple[Edge, ...] = get_args(Edge)


def cuts(length: int, size: int | None, stride: int | None = None, edge: Edge = "shift") -> Int64s:
    """The intervals that a window of one size takes along one axis, int64 (k, 2), pixels, half-open, ascending.

    They begin at 0, stride, 2 stride, … until the axis is covered; the edge policy says what becomes of those that end
    behind it: ``"shift"`` moves the last back inside, ``"pad"`` lets it end behind the axis, ``"drop"`` leaves it out,
    ``"partial"`` cuts it. With `stride` at most `size`, every pixel lies in an interval under ``"shift"``, ``"pad"``
    and ``"partial"``; with `stride` equal to `size` in exactly one under ``"partial"``.

    A size of None is the whole axis, a stride of None is the size. A ValueError says that a number is not positive, the
    policy unknown, or a size above the length under ``"shift"``.

    >>> cuts(10, 4).tolist(), cuts(10, 4, edge="partial").tolist()
    ([[0, 4], [4, 8], [6, 10]], [[0, 4], [4, 8], [8, 10]])
    """
    if edge not in EDGES:
        raise ValueError(f"edge is {edge!r}; it is one of {', '.join(map(repr, EDGES))}")
    if size is None:
        return np.array([[0, length]], np.int64)
    stride = size if stride is None else stride
    if min(length, size, stride) < 1:
        raise ValueError(f"length {length}, size {size} and stride {stride}: each is 1 pixel or more")
    if size > length and edge == "shift":
        raise ValueError(
            f'a window of {size} pixels cannot be shifted into {length}; pass edge="pad", "partial" or "drop"'
        )
    # Until the end is covered, and no interval that lies behind it (with stride > size).
    count = min(1 + -(-max(length - size, 0) // stride), -(-length // stride))
    starts = np.arange(count, dtype=np.int64) * stride
    if edge == "shift":
        starts = np.minimum(starts, length - size)
    elif edge == "drop":
        starts = starts[starts + size <= length]
    stops = starts + size
    return np.stack([starts, np.minimum(stops, length) if edge == "partial" else stops], axis=1)


def _per_axis(value: Any, axes: int, name: str) -> list[Any]:
    if any(type(part) is bool for part in (value if isinstance(value, Sequence) else [value])):
        raise ValueError(f"{name} is numbers of pixels, not {value!r}")
    if value is None or isinstance(value, int | np.integer | str):
        return [value] * axes
    if len(value) != axes:
        kind = "words" if name == "edge" else "numbers"
        raise ValueError(f"{name} {tuple(value)} has {len(value)} {kind} for {axes} axes")
    return list(value)


def tiling(
    shape: Sequence[int],
    size: int | Sequence[int | None] | None,
    *,
    stride: int | Sequence[int | None] | None = None,
    edge: Edge | Sequence[Edge] = "shift",
) -> Int64s:
    """The windows of a regular grid over a shape: the product of the cuts of its axes, row-major.

    Size, stride and edge are as in `cuts`, one for all or one an axis; the windows are int64 (n, 2 d), the beginnings
    along the axes, then the ends; for an image (y0, x0, y1, x1).

    >>> tiling((4, 6), (4, 3)).tolist()
    [[0, 0, 4, 3], [0, 3, 4, 6]]
    """
    axes_given = (("size", size), ("stride", stride), ("edge", edge))
    along = [_per_axis(value, len(shape), name) for name, value in axes_given]
    axes = [cuts(*one) for one in zip(shape, *along, strict=True)]
    places = np.indices([len(axis) for axis in axes]).reshape(len(axes), -1)
    ends = [[axis[place, k] for axis, place in zip(axes, places, strict=True)] for k in (0, 1)]
    return np.stack(ends[0] + ends[1], axis=1)


def coverage(windows: ArrayLike, shape: Sequence[int]) -> Int64s:
    """How many windows, (n, 2 d), half-open, cover each pixel of a shape, int64; parts outside are not counted.

    >>> coverage([[0, 3], [2, 5]], (5,)).tolist()
    [1, 1, 2, 1, 1]
    """
    boxes = np.asarray(windows, np.int64).reshape(-1, 2 * len(shape))
    bounds = np.array(shape, np.int64)
    low, high = (np.clip(part, 0, bounds) for part in np.split(boxes, 2, axis=1))
    steps = np.zeros(tuple(bounds + 1), np.int64)
    for corner in itertools.product((False, True), repeat=len(shape)):
        place = np.where(corner, np.maximum(high, low), low)
        np.add.at(steps, tuple(place.T), (-1) ** sum(corner))
    for axis in range(len(shape)):
        np.cumsum(steps, axis=axis, out=steps)
    return steps[tuple(slice(0, length) for length in shape)]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How windows cover a shape: fewest and most per pixel, and the fraction of pixels under at least one."""

    fewest: int
    most: int
    fraction: float

    def __str__(self) -> str:
        times = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        return f"each pixel {times} times, {self.fraction:.1%} covered"


def cover(windows: ArrayLike, shape: Sequence[int]) -> Coverage:
    """As `coverage`, summed up: exact, and without an array as large as the image.

    >>> print(cover(tiling((10, 10), 4), (10, 10)))
    each pixel 1 to 4 times, 100.0% covered
    """
    axes = len(shape)
    boxes = np.asarray(windows, np.int64).reshape(-1, 2 * axes)
    cells, edges = np.empty_like(boxes), []
    for axis, length in enumerate(shape):
        ends = np.clip(boxes[:, [axis, axis + axes]], 0, length)
        edges.append(np.unique([0, length, *ends.ravel()]))
        cells[:, [axis, axis + axes]] = np.searchsorted(edges[-1], ends)
    counts = coverage(cells, [len(edge) - 1 for edge in edges])
    pixels = np.ones(counts.shape)
    for axis, edge in enumerate(edges):
        pixels *= np.diff(edge).reshape([-1 if k == axis else 1 for k in range(axes)])
    return Coverage(int(counts.min()), int(counts.max()), float(pixels[counts > 0].sum() / pixels.sum()))
