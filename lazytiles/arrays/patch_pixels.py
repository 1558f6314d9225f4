"""The pixels that patches lie around, by number and without a list of them, and the patches cut there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.images import Region, Windows
from lazytiles.indexing import folded, stream

Uint64s: TypeAlias = NDArray[np.uint64]

BLOCK_PIXELS = 2**14  # looked through for each pixel that is asked for
BLOCKS_COUNTED = 64
ROUNDS = 8
READ_PIXELS = 2**20
FEW_RUNS = 4
MOST_CHANNELS = 4


class MaskPixels:
    """The non-zero pixels of a mask, numbered in C order; only their count in each block of the mask is kept.

    The mask is array-like with `shape` and slices, such as an array or a `Region`; it is read block by block, now and
    when pixels are asked for, so it must not change.
    """

    def __init__(self, mask: Any) -> None:
        self.mask = mask
        self.shape: tuple[int, ...] = tuple(mask.shape)
        *leading, self._height, width = self.shape
        self._step = max(1, BLOCK_PIXELS // max(width, 1))
        self._per_plane = -(-self._height // self._step)
        counts = [np.empty(0, np.int64)]
        many = self._step * BLOCKS_COUNTED  # rows, which are read together
        for plane in range(math.prod(leading)):
            parts = [self._rows(plane, top, top + many) for top in range(0, self._height, many)]
            if parts:
                lines = np.concatenate([np.count_nonzero(part, axis=1) for part in parts])
                counts.append(np.add.reduceat(lines, np.arange(0, len(lines), self._step)))
        self._ends = np.cumsum(np.concatenate(counts))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, numbers: Int64s) -> Int64s:
        """Where the pixels of these numbers lie, shape (n, axes)."""
        blocks = np.searchsorted(self._ends, numbers, side="right")
        flat = np.empty(len(numbers), np.int64)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            plane, part = divmod(block, self._per_plane)
            top = part * self._step
            pixels = np.flatnonzero(self._rows(plane, top, top + self._step))
            first = (plane * self._height + top) * self.shape[-1]
            flat[here] = first + pixels[numbers[here] - (int(self._ends[block]) - len(pixels))]
        return positions(flat, self.shape)

    def _rows(self, plane: int, top: int, bottom: int) -> NDArray[Any]:
        leading = np.unravel_index(plane, self.shape[:-2]) if self.shape[:-2] else ()
        return np.asarray(self.mask[(*(int(k) for k in leading), slice(top, min(bottom, self._height)))])


class AllPixels:
    """All pixels of a shape, numbered in C order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return math.prod(self.shape)

    def at(self, numbers: Int64s) -> Int64s:
        """Where the pixels of these numbers lie, shape (n, axes)."""
        return positions(numbers, self.shape)


def positions(flat: Int64s, shape: tuple[int, ...]) -> Int64s:
    """Indices into an array of `shape`, shape (n, axes), of flat ones.

    >>> positions(np.array([0, 5]), (2, 3)).tolist()
    [[0, 0], [1, 2]]
    """
    return np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int64, copy=False)


@dataclass(frozen=True, slots=True)
class Scatter:
    """A permutation of ``range(n)`` by a seed, computed where it is asked for: no memory, whatever n.

    Numbers are cells of a grid of about ``sqrt(n)`` by ``sqrt(n)``; each round moves every row of the grid,
    or every column, round by a hash of its number (a Feistel network), and what lands beyond n walks on until
    it is inside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    >>> Scatter(10, 42)(np.arange(10)).tolist()
    [6, 5, 1, 0, 3, 4, 2, 8, 9, 7]
    """

    n: int
    seed: int

    def __call__(self, numbers: Int64s) -> Int64s:
        """The places of these numbers, each in ``range(n)``."""
        moved = numbers.astype(np.uint64)
        side = math.isqrt(max(self.n - 1, 0)) + 1
        rows, columns = np.uint64(side), np.uint64(-(-self.n // side))
        keys = stream("patches", self.seed).random_raw(ROUNDS)
        outside = np.arange(len(moved))
        while len(outside):
            row, column = moved[outside] // columns, moved[outside] % columns
            for down, across in keys.reshape(-1, 2):
                row = (row + _hashed(column, down) % rows) % rows
                column = (column + _hashed(row, across) % columns) % columns
            moved[outside] = row * columns + column
            outside = outside[moved[outside] >= self.n]
        return moved.astype(np.int64)


def _hashed(values: Uint64s, key: np.uint64) -> Uint64s:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) over values and a key."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15) ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: Uint64s = mixed ^ (mixed >> np.uint64(31))
    return hashed


def cut(source: Any, centers: Int64s, sizes: tuple[int, ...], mirrored: bool, out: NDArray[Any]) -> None:
    """Fill `out`, shape (n, *sizes, *source.shape[axes:]), with the patches around some pixels.

    Each of `centers`, int64 (n, axes), is at index ``size // 2`` along the axes, the first ones of the source. What
    lies beyond its edges is `mirrored`, edge pixels repeated, or zero.
    """
    wanted = [c[:, None] + np.arange(-(size // 2), size - size // 2) for c, size in zip(centers.T, sizes, strict=True)]
    fill = "reflect" if mirrored else "nearest"
    lines = [folded(line, length, fill) for line, length in zip(wanted, source.shape, strict=False)]
    if isinstance(source, np.ndarray):
        out[...] = source[_open(lines)]
    else:
        _read(source, lines, out)
    if not mirrored:
        for axis, line in enumerate(wanted):
            patch, place = np.nonzero((line < 0) | (line >= source.shape[axis]))
            beyond: tuple[Any, ...] = (patch, *(slice(None),) * axis, place)
            out[beyond] = 0


def spatial_axes(source: Any) -> int:
    """How many of the first axes are spatial: what a region names, or all but a short last axis of three or more.

    >>> spatial_axes(np.zeros((9, 9, 3))), spatial_axes(np.zeros((9, 9, 9)))
    (2, 3)
    """
    names = getattr(source, "axes", None)
    if isinstance(names, str):
        return len(names) - ("S" in names)
    axes = len(source.shape)
    return axes - (axes > 2 and source.shape[-1] <= MOST_CHANNELS)


def _open(lines: list[Int64s]) -> tuple[Int64s, ...]:
    """Index arrays (n, size) of each axis, shaped to select the patches of n pixels."""
    shapes = [[-1 if k == axis else 1 for k in range(len(lines))] for axis in range(len(lines))]
    return tuple(line.reshape(len(line), *shape) for line, shape in zip(lines, shapes, strict=True))


def _read(source: Any, lines: list[Int64s], out: NDArray[Any]) -> None:
    """Fill `out` with the patches that these lines of each axis make, neighbours together."""
    starts = np.stack([line.min(axis=1) for line in lines], axis=1)
    stops = np.stack([line.max(axis=1) + 1 for line in lines], axis=1)
    together = list(runs(starts, stops, READ_PIXELS))
    named = isinstance(source, Region) and len(lines) == spatial_axes(source)
    if not named or len(together) <= max(FEW_RUNS, len(out) // FEW_RUNS):
        for which, low, high in together:
            hull = np.asarray(source[tuple(slice(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True))])
            out[which] = hull[_open([line[which] - first for line, first in zip(lines, low, strict=True)])]
        return
    # Windows of one size that hold the lines of each patch, in one plan: each segment is decoded once.
    shape = np.array(source.shape[: len(lines)])
    sizes = np.minimum([line.shape[1] for line in lines], shape)
    corners = np.minimum(starts, shape - sizes)
    depth = int(sizes[0]) if len(sizes) == 3 else 1
    page = (corners[:, 0, None] if len(sizes) == 3 else np.zeros((len(out), 1), np.int64)) + np.arange(depth)
    boxes = np.concatenate([corners[:, -2:], corners[:, -2:] + sizes[-2:]], axis=1).repeat(depth, axis=0)
    block = source.read(Windows(source.pages, page.ravel(), boxes, None if source.gray else source.bands))
    held = block.reshape(len(out), *sizes, *((-1,) if "S" in source.axes else ()))
    number = np.arange(len(out)).reshape(-1, *(1,) * len(lines))
    out[...] = held[(number, *_open([line - corners[:, [k]] for k, line in enumerate(lines)]))]


def runs(starts: Int64s, stops: Int64s, budget: int) -> Iterator[tuple[Int64s, Int64s, Int64s]]:
    """Boxes put together with their neighbours where that reads little more than each by itself, and at most a budget.

    `starts` and `stops` are int64 (n, axes), pixels. Yields the indices of the boxes of one run, and the start and stop
    of their hull.
    """
    sizes = (stops - starts).prod(axis=1)
    members: list[int] = []
    low, high, own = starts[:0], stops[:0], 0
    for k in np.lexsort(starts.T[::-1]).tolist():
        if members:
            wide = np.minimum(low, starts[k]), np.maximum(high, stops[k])
            if (wide[1] - wide[0]).prod() <= min(2 * (own + sizes[k]), budget):
                (low, high), own = wide, own + int(sizes[k])
                members.append(k)
                continue
            yield np.array(members), low, high
        members, low, high, own = [k], starts[k], stops[k], int(sizes[k])
    if members:
        yield np.array(members), low, high
