"""A NumPy key taken apart axis by axis, with NumPy's own answer to every key that it refuses."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np

from lazytiles.aliases import Int64s

NEW = -1  # labels of result dimensions: an axis number, a new axis, or all the dimensions of the points
POINTS = -2

Axis: TypeAlias = int | tuple[int, int, int] | Int64s  # an index, (start, step, count), or indices to broadcast


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """What a key says of each axis, and in which order the result has its dimensions."""

    axes: list[Axis]  # all indices non-negative
    dims: list[int]  # labels of the result's dimensions in order: axis numbers, `NEW`, `POINTS` for all of `points`
    points: tuple[int, ...] | None  # the shape that the advanced indices broadcast to, or None where there are none
    keeps_array: bool  # an ellipsis was given: a result without dimensions is an array, not a scalar


def parse(key: Any, shape: tuple[int, ...]) -> ParsedKey:
    """A key on an array of that shape, axis by axis; one that NumPy refuses is refused in NumPy's own words.

    >>> parse((..., None, -1), (4, 3))
    ParsedKey(axes=[(0, 1, 4), 2], dims=[0, -1], points=None, keeps_array=True)
    """
    with suppress(IndexError, TypeError, ValueError, OverflowError):
        return _parse(key, shape)
    return refuse(key, shape)


def refuse(key: Any, shape: Sequence[int]) -> NoReturn:
    """Let NumPy say what is wrong with the key."""
    _doubt(key, shape)
    raise IndexError(f"lazytiles does not understand the index {key!r} on an array of shape {tuple(shape)}")


def select_rows(key: Any, n: int) -> Int64s:
    """The positions, int64 (k,), in ``0..n-1`` that a key on a first axis of length n names, in its order.

    The key is an integer (for one position), a slice, one-dimensional integers or mask, or Ellipsis. An IndexError says
    that a position lies outside, or that a mask has another length or a key more than one axis.

    >>> select_rows(slice(None, None, -2), 5)
    array([4, 2, 0])
    >>> select_rows([True, False, True], 3)
    array([0, 2])
    """
    parsed = parse(key, (n,))
    (axis,) = parsed.axes
    if isinstance(axis, int):
        axis = (axis, 1, 1)
    if isinstance(axis, tuple):
        axis = progression(axis)
    if axis.ndim != 1 or NEW in parsed.dims or (parsed.points is not None and parsed.points != axis.shape):
        raise IndexError(
            f"a selection of samples has one axis (a slice, integers or a mask over {n} samples), not {key!r}"
        )
    return axis


def plain_indices(key: Any, size: int) -> Int64s | None:
    """Non-negative positions of a plain one-dimensional list, integer array or mask; None if in any doubt.

    >>> plain_indices([3, -1], 10)
    array([3, 9])
    """
    try:
        given = np.asarray(key)
    except (TypeError, ValueError):
        return None
    if given.ndim != 1 or not len(given):
        return None
    if given.dtype == np.bool_:
        return np.flatnonzero(given) if len(given) == size else None
    if given.dtype.kind not in "iu":
        return None
    indices = given.astype(np.int64)
    if int(indices.view(np.uint64).max()) < size:
        return indices
    if indices.min() < -size or indices.max() >= size:
        return None
    indices[indices < 0] += size
    return indices


def progression(axis: tuple[int, int, int]) -> Int64s:
    """The indices ``start, start + step, ...`` of ``(start, step, count)``."""
    start, step, count = axis
    return np.arange(start, start + step * count, step, dtype=np.int64)


def as_progression(key: slice, size: int) -> tuple[int, int, int]:
    """What a slice takes of an axis, as ``(start, step, count)``; a step that is not taken may be of any size.

    >>> as_progression(slice(1, None, -(2**70)), 5)
    (1, 1, 1)
    """
    start, stop, step = key.indices(size)
    count = len(range(start, stop, step))
    return start, step if count > 1 else 1, count


def is_integer(entry: Any) -> bool:
    """Whether an element of a key is one whole number; NumPy counts durations among its integers.

    >>> is_integer(np.uint8(3)), is_integer(True), is_integer(np.timedelta64(3, "s"))
    (True, False, False)
    """
    return isinstance(entry, int | np.integer) and not isinstance(entry, bool | np.timedelta64)


def extent(axis: Axis) -> tuple[int, int]:
    """The contiguous part ``(start, stop)`` of an axis that holds all that a key names of it."""
    if isinstance(axis, int):
        return axis, axis + 1
    if isinstance(axis, tuple):
        start, step, count = axis
        last = start + step * (count - 1)
        return (min(start, last), max(start, last) + 1) if count else (0, 0)
    return (int(axis.min()), int(axis.max()) + 1) if axis.size else (0, 0)


def _doubt(key: Any, shape: Sequence[int]) -> None:
    """Raise what NumPy raises for this key on an array of this shape, if it does."""
    np.broadcast_to(np.empty((), dtype=np.bool_), tuple(shape))[key]


def _entry(entry: Any) -> Any:
    """One element of a key as None, Ellipsis, a slice, an int, or an array of booleans or int64."""
    if entry is None or entry is Ellipsis or isinstance(entry, slice):
        return entry
    if is_integer(entry):
        return int(entry)
    array = np.asarray(entry)
    if array.size == 0 and not isinstance(entry, np.ndarray):
        return array.astype(np.int64)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False) if array.ndim else int(array)
    if array.ndim == 0 and not isinstance(entry, np.ndarray):
        return operator.index(entry)
    raise IndexError


def _width(entry: Any) -> int:
    """How many axes of the array an element of a key takes."""
    if entry is None or entry is Ellipsis:
        return 0
    return entry.ndim if isinstance(entry, np.ndarray) and entry.dtype == np.bool_ else 1


def _parse(key: Any, shape: tuple[int, ...]) -> ParsedKey:
    entries = [_entry(entry) for entry in (key if isinstance(key, tuple) else (key,))]
    ellipses = sum(entry is Ellipsis for entry in entries)
    if not ellipses:
        entries.append(Ellipsis)
    missing = len(shape) - sum(map(_width, entries))
    if missing < 0 or ellipses > 1:
        raise IndexError
    axes: list[Axis] = []
    dims: list[int] = []
    arrays: list[Int64s] = []
    advanced: list[tuple[int, int]] = []  # (number of the entry, its place among the dimensions)
    for number, entry in enumerate(entries):
        here = len(axes)
        if entry is None:
            dims.append(NEW)
        elif entry is Ellipsis or isinstance(entry, slice):
            count, span = (missing, slice(None)) if entry is Ellipsis else (1, entry)
            dims += range(here, here + count)
            axes += [as_progression(span, size) for size in shape[here : here + count]]
        else:
            advanced.append((number, len(dims)))
            found = _indices(entry, shape[here:], key, shape)
            axes += found[: _width(entry)]
            arrays += [index for index in found if not isinstance(index, int)]
    points = np.broadcast_shapes(*(array.shape for array in arrays)) if arrays else None
    if points is not None:
        (first, place), (last, _) = advanced[0], advanced[-1]
        # NumPy puts the points at the indices where they stand together, else in front.
        dims.insert(place if last - first == len(advanced) - 1 else 0, POINTS)
        if math.prod(points) == 0:
            axes = [np.zeros(points, np.int64) if isinstance(axis, np.ndarray) else axis for axis in axes]
    return ParsedKey(axes, dims, points, ellipses > 0)


def _indices(entry: Any, sizes: tuple[int, ...], key: Any, shape: tuple[int, ...]) -> list[Any]:
    """The index or index arrays of one entry, one for each axis it takes (or one array for no axis)."""
    if isinstance(entry, int):
        if not -sizes[0] <= entry < sizes[0]:
            raise IndexError
        return [entry % sizes[0]]
    if entry.dtype != np.bool_:
        if entry.size and (entry.min() < -sizes[0] or entry.max() >= sizes[0]):
            _doubt(key, shape)  # NumPy lets it pass where the result is empty
        return [np.where(entry < 0, entry + sizes[0], entry)]
    if entry.ndim == 0:
        return [np.zeros(int(entry), dtype=np.int64)]
    if entry.shape != sizes[: entry.ndim]:
        _doubt(key, shape)  # NumPy lets some empty masks pass
    return list(entry.nonzero())
