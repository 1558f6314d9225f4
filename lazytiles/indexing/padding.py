"""Padding: which pixels of an axis a window shows where it leaves them, as NumPy's modes say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s

PAD_MODES = ("constant", "edge", "reflect", "symmetric", "wrap")
LINE_MODES = ("linear_ramp", "maximum", "mean", "median", "minimum")  # worked out from whole lines of an image


def needed(start: int, stop: int, length: int, mode: str) -> tuple[int, int, Int64s]:
    """What a window needs of an axis of `length` pixels, and which of it each of its places shows.

    Gives the first pixel and the one behind the last, both 0 for none; and int64, shape (stop - start,), for each place
    the number of its pixel among them, -1 where it shows none. With a mode of `LINE_MODES` places go on beyond what is
    needed, and `padded` works out what they show.

    >>> needed(-2, 3, 4, "reflect"), needed(-1, 2, 4, "constant")
    ((0, 3, array([2, 1, 0, 1, 2])), (0, 2, array([-1,  0,  1])))
    """
    if mode in LINE_MODES:
        first, last = (start, stop) if start >= 0 and stop <= length else (0, length)
        return first, last, np.arange(start - first, stop - first)
    if mode == "constant":
        shown = np.arange(start, stop)
        shown[(shown < 0) | (shown >= length)] = -1
    else:
        # NumPy itself says what each mode shows, also where a window is larger than the axis.
        before, after = max(0, -start), max(0, stop - length)
        wide = np.pad(np.arange(length), (before, after), mode=mode)  # type: ignore[call-overload]  # checked mode
        shown = wide[start + before : stop + before]
    there = shown[shown >= 0]
    if not len(there):
        return 0, 0, shown
    first = int(there.min())
    return first, int(there.max()) + 1, np.where(shown < 0, -1, shown - first)


def padded(pixels: NDArray[Any], places: Sequence[Int64s], mode: str | None, fill: Any = 0) -> NDArray[Any]:
    """The pixels that windows need where their places want them; the fill where a place wants none.

    The pixels and places are what `needed` told of the first axes; the fill is one value, or one for each of the last
    axis.

    >>> first, last, shown = needed(-2, 5, 4, "reflect")
    >>> padded(np.arange(10, 14)[first:last], [shown], "reflect")
    array([12, 11, 10, 11, 12, 13, 12])
    """
    axes = len(places)
    if mode in LINE_MODES:
        beyond = [
            (max(0, -int(line[0])), max(0, int(line[-1]) + 1 - length))
            for line, length in zip(places, pixels.shape, strict=False)
        ]
        wide = np.pad(pixels, [*beyond, *[(0, 0)] * (pixels.ndim - axes)], mode=mode)  # type: ignore[call-overload]
        starts = [int(line[0]) + before for line, (before, _) in zip(places, beyond, strict=True)]
        cut: NDArray[Any] = wide[tuple(slice(a, a + len(line)) for a, line in zip(starts, places, strict=True))]
        return cut
    out = np.empty((*map(len, places), *pixels.shape[axes:]), pixels.dtype)
    out[...] = fill
    if pixels.size:
        there = [np.flatnonzero(line >= 0) for line in places]
        out[np.ix_(*there)] = pixels[np.ix_(*(line[at] for line, at in zip(places, there, strict=True)))]
    return out


def folded(index: Int64s, length: int, fill: str) -> Int64s:
    """Indices beyond an axis brought back inside: mirrored there by "reflect", else those of the nearest edge.

    >>> folded(np.arange(-3, 6), 3, "reflect").tolist()
    [2, 1, 0, 0, 1, 2, 2, 1, 0]
    """
    if fill != "reflect":
        return np.minimum(np.maximum(index, 0), length - 1)
    turn = index % (2 * length)
    return np.minimum(turn, 2 * length - 1 - turn)
