"""The pixels under a mask by number, without a list of them, and orders without an array of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.indexing import stream

Uint64s: TypeAlias = NDArray[np.uint64]

BLOCK_PIXELS = 2**14  # looked through for each pixel that is asked for
BLOCKS_COUNTED = 64
ROUNDS = 8


class MaskPixels:
    """The non-zero pixels of a mask, numbered in C order; only their count in each block of the mask is kept.

    Parameters
    ----------
    mask : array-like with `shape` and slices, such as an array or a `Region`; read block by block, now and
        when pixels are asked for, so it must not change
    """

    def __init__(self, mask: Any) -> None:
        self.mask = mask
        self.shape: tuple[int, ...] = tuple(mask.shape)
        *leading, self._height, width = self.shape
        self._step = max(1, BLOCK_PIXELS // max(width, 1))
        self._per_plane = -(-self._height // self._step)
        counts = [self._counts(plane) for plane in range(math.prod(leading))]
        self._ends = np.cumsum(np.concatenate(counts)) if counts else np.empty(0, np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, numbers: Int64s) -> Int64s:
        """Where the pixels of these numbers lie, shape (n, axes)."""
        blocks = np.searchsorted(self._ends, numbers, side="right")
        flat = np.empty(len(numbers), np.int64)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            pixels = np.flatnonzero(self._block(block))
            before = int(self._ends[block]) - len(pixels)
            flat[here] = pixels[numbers[here] - before] + self._first(block)
        return positions(flat, self.shape)

    def _counts(self, plane: int) -> Int64s:
        """Pixels in each block of a plane, many blocks to a read."""
        step = self._step * BLOCKS_COUNTED
        parts = [self._rows(plane, top, top + step) for top in range(0, self._height, step)]
        lines = np.concatenate([np.count_nonzero(part, axis=1) for part in parts] or [np.empty(0, np.int64)])
        return np.add.reduceat(lines, np.arange(0, len(lines), self._step)) if len(lines) else lines

    def _block(self, number: int) -> NDArray[Any]:
        plane, part = divmod(number, self._per_plane)
        return self._rows(plane, part * self._step, (part + 1) * self._step)

    def _rows(self, plane: int, top: int, bottom: int) -> NDArray[Any]:
        leading = np.unravel_index(plane, self.shape[:-2]) if self.shape[:-2] else ()
        return np.asarray(self.mask[(*(int(k) for k in leading), slice(top, min(bottom, self._height)))])

    def _first(self, number: int) -> int:
        plane, part = divmod(number, self._per_plane)
        return (plane * self._height + part * self._step) * self.shape[-1]


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

    Attributes
    ----------
    n : how many
    seed : any whole number

    >>> Scatter(10, 42)(np.arange(10)).tolist()
    [6, 5, 1, 0, 3, 4, 2, 8, 9, 7]
    """

    n: int
    seed: int

    def __call__(self, numbers: Int64s) -> Int64s:
        """The places of these numbers, each in ``range(n)``."""
        moved = numbers.astype(np.uint64)
        rows = math.isqrt(max(self.n - 1, 0)) + 1
        columns = -(-self.n // rows)
        keys = stream("patches", self.seed).random_raw(ROUNDS)
        outside = np.arange(len(moved))
        while len(outside):
            moved[outside] = _shuffled(moved[outside], np.uint64(rows), np.uint64(columns), keys)
            outside = outside[moved[outside] >= self.n]
        return moved.astype(np.int64)


def _shuffled(numbers: Uint64s, rows: np.uint64, columns: np.uint64, keys: Uint64s) -> Uint64s:
    row, column = numbers // columns, numbers % columns
    for down, across in keys.reshape(-1, 2):
        row = (row + _hashed(column, down) % rows) % rows
        column = (column + _hashed(row, across) % columns) % columns
    return row * columns + column


def _hashed(values: Uint64s, key: np.uint64) -> Uint64s:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) over values and a key."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15) ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: Uint64s = mixed ^ (mixed >> np.uint64(31))
    return hashed
