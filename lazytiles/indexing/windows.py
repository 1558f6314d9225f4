"""The window: a pixel box of any number of axes, a value without data; and many windows as one array.

Users write boxes ``(xmin, ymin, xmax, ymax)``; inside the library a window is ``(y0, x0, y1, x1)``: all
starts, then all stops, rows before columns, half-open, in pixels.  In three dimensions boxes are
``(xmin, ymin, zmin, xmax, ymax, zmax)`` and windows ``(z0, y0, x0, z1, y1, x1)``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lazytiles.aliases import Int64s


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open pixel box, at least one pixel in each axis; it may lie outside an image.

    Parameters
    ----------
    starts, stops : one whole number for each axis, pixels, ``start < stop``; kept as tuples

    Raises
    ------
    ValueError : as many starts as stops are not given, or a stop is not above its start

    >>> Window((10, 20), (14, 26)).shape
    (4, 6)
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(map(operator.index, self.starts)))
        object.__setattr__(self, "stops", tuple(map(operator.index, self.stops)))
        if len(self.starts) != len(self.stops) or not self.starts:
            raise ValueError(f"a window has as many starts as stops, not {self.starts} and {self.stops}")
        if any(start >= stop for start, stop in zip(self.starts, self.stops, strict=True)):
            raise ValueError(f"a window from {self.starts} to {self.stops} holds no pixel: each stop must be larger")

    @classmethod
    def from_box(cls, box: Sequence[int]) -> Window:
        """The window of a box ``(xmin, ymin, xmax, ymax)`` or ``(xmin, ymin, zmin, xmax, ymax, zmax)``.

        >>> Window.from_box((20, 10, 26, 14))
        Window(starts=(10, 20), stops=(14, 26))
        """
        half = len(box) // 2
        return cls(tuple(box[:half][::-1]), tuple(box[half:][::-1]))

    def to_box(self) -> tuple[int, ...]:
        """The box as users write it, x first; the inverse of `from_box`."""
        return (*self.starts[::-1], *self.stops[::-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return tuple(stop - start for start, stop in zip(self.starts, self.stops, strict=True))

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    def shift(self, offset: Sequence[int]) -> Window:
        """The window moved by so many pixels along each axis.

        >>> Window((0, 0), (4, 6)).shift((10, -2))
        Window(starts=(10, -2), stops=(14, 4))
        """
        return Window(
            tuple(start + move for start, move in zip(self.starts, offset, strict=True)),
            tuple(stop + move for stop, move in zip(self.stops, offset, strict=True)),
        )

    def intersect(self, other: Window) -> Window | None:
        """The pixels in both, or None where they share none.

        >>> Window((0, 0), (4, 6)).intersect(Window((2, 5), (9, 9)))
        Window(starts=(2, 5), stops=(4, 6))
        """
        starts = tuple(map(max, zip(self.starts, other.starts, strict=True)))
        stops = tuple(map(min, zip(self.stops, other.stops, strict=True)))
        return Window(starts, stops) if all(map(operator.lt, starts, stops)) else None

    def clip(self, shape: Sequence[int]) -> Window | None:
        """The part inside an image of that shape, or None where there is none.

        >>> Window((-2, 5), (3, 12)).clip((10, 10))
        Window(starts=(0, 5), stops=(3, 10))
        """
        return self.intersect(Window((0,) * len(shape), tuple(shape))) if all(shape) else None

    def is_inside(self, shape: Sequence[int]) -> bool:
        """Whether no pixel of it lies outside an image of that shape."""
        return min(self.starts) >= 0 and all(map(operator.le, self.stops, shape))

    def pad_amounts(self, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Pixels missing before and after along each axis, as `numpy.pad` takes them after `clip`.

        >>> Window((-2, 5), (3, 12)).pad_amounts((10, 10))
        ((2, 0), (0, 2))
        """
        return tuple(
            (min(max(-start, 0), stop - start), min(max(stop - length, 0), stop - start))
            for start, stop, length in zip(self.starts, self.stops, shape, strict=True)
        )

    def slices(self) -> tuple[slice, ...]:
        """The key that cuts it out of an image; only for a window that has no negative start.

        Raises
        ------
        ValueError : a start is negative, which NumPy would count from the end

        >>> np.arange(12).reshape(3, 4)[Window((1, 2), (3, 4)).slices()]
        array([[ 6,  7],
               [10, 11]])
        """
        if min(self.starts) < 0:
            raise ValueError(f"the window {self.to_box()} begins outside the image; clip it first")
        return tuple(map(slice, self.starts, self.stops))


def windows_from_boxes(boxes: ArrayLike) -> Int64s:
    """Windows of boxes: ``(n, 4)`` or ``(n, 6)``, x first, to starts and stops, rows first.

    >>> windows_from_boxes([(20, 10, 26, 14)])
    array([[10, 20, 14, 26]])
    """
    return _halves_reversed(boxes)


def boxes_from_windows(windows: ArrayLike) -> Int64s:
    """Boxes as users write them; the inverse of `windows_from_boxes`.

    >>> boxes_from_windows([(10, 20, 14, 26)])
    array([[20, 10, 26, 14]])
    """
    return _halves_reversed(windows)


def check_inside(windows: ArrayLike, shapes: ArrayLike) -> NDArray[np.bool_]:
    """Which windows hold a pixel and lie wholly inside their image.

    Parameters
    ----------
    windows : int array, shape (n, 2d)
    shapes : int array, shape (d,) or (n, d), pixels

    Returns
    -------
    bool array, shape (n,)

    >>> check_inside([(0, 0, 5, 5), (0, -1, 5, 5), (6, 6, 11, 10)], (10, 10))
    array([ True, False, False])
    """
    starts, stops = _halves(windows)
    return np.asarray(((starts >= 0) & (starts < stops) & (stops <= np.asarray(shapes))).all(axis=1))


def clip_windows(windows: ArrayLike, shapes: ArrayLike) -> Int64s:
    """The parts of windows inside their images; one that has none becomes empty at the nearest edge.

    Parameters
    ----------
    windows : int array, shape (n, 2d)
    shapes : int array, shape (d,) or (n, d), pixels

    Returns
    -------
    int64 array, shape (n, 2d)

    >>> clip_windows([(-2, 5, 3, 12), (20, 0, 25, 5)], (10, 10))
    array([[ 0,  5,  3, 10],
           [10,  0, 10,  5]])
    """
    starts, stops = _halves(windows)
    limit = np.asarray(shapes, dtype=np.int64)
    return np.concatenate([np.clip(starts, 0, limit), np.clip(stops, 0, limit)], axis=1)


def shared_pixels(windows: ArrayLike, others: ArrayLike) -> Int64s:
    """How many pixels each window shares with the other in the same row; 0 where they do not meet.

    >>> shared_pixels([(0, 0, 4, 4), (0, 0, 4, 4)], [(2, 3, 6, 7), (4, 0, 8, 4)])
    array([2, 0])
    """
    (starts, stops), (other_starts, other_stops) = _halves(windows), _halves(others)
    extents = np.minimum(stops, other_stops) - np.maximum(starts, other_starts)
    return np.asarray(np.maximum(extents, 0).prod(axis=1), dtype=np.int64)


def _halves(windows: ArrayLike) -> tuple[Int64s, Int64s]:
    given = np.asarray(windows)
    if given.ndim != 2 or given.shape[1] % 2:
        raise ValueError(f"windows have the shape (n, 4) or (n, 6), starts then stops, not {given.shape}")
    if given.size and given.dtype.kind not in "iu":
        raise ValueError(f"windows are whole pixels, not {given.dtype}")
    values, axes = given.astype(np.int64, copy=False), given.shape[1] // 2
    return values[:, :axes], values[:, axes:]


def _halves_reversed(windows: ArrayLike) -> Int64s:
    starts, stops = _halves(windows)
    return np.concatenate([starts[:, ::-1], stops[:, ::-1]], axis=1)
