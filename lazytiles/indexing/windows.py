"""Many windows as one array: pixel boxes of any number of axes.

Users write boxes ``(xmin, ymin, xmax, ymax)``; inside the library a window is ``(y0, x0, y1, x1)``: all
starts, then all stops, rows before columns, half-open, in pixels.  In three dimensions boxes are
``(xmin, ymin, zmin, xmax, ymax, zmax)`` and windows ``(z0, y0, x0, z1, y1, x1)``.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from lazytiles.aliases import Int64s


def windows_from_boxes(boxes: ArrayLike) -> Int64s:
    """Windows of boxes: ``(n, 4)`` or ``(n, 6)``, x first, to starts and stops, rows first.

    >>> windows_from_boxes([(20, 10, 26, 14)])
    array([[10, 20, 14, 26]])
    """
    starts, stops = _halves(boxes)
    return np.concatenate([starts[:, ::-1], stops[:, ::-1]], axis=1)


boxes_from_windows = windows_from_boxes  # the inverse: each half is turned round again


def box_words(window: Int64s) -> str:
    """One window in the words of its box, such as ``"box (20, 10, 26, 14)"``."""
    return f"box ({', '.join(map(str, boxes_from_windows(window[None])[0].tolist()))})"


def size_words(size: Iterable[int]) -> str:
    """A size in words, such as ``"64 x 48"``."""
    return " x ".join(map(str, size))


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
