"""What an array of many sources is given: the sources, what those of windows share, how all agree, and positions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lazytiles.aliases import Fault, Int64s
from lazytiles.arrays.relations import MapBoxes
from lazytiles.indexing import LazyArray, box_words, permutation


class Windowed(LazyArray):
    """Windows of one region as a source, and the words for them: what tiles of images and of volumes share.

    `name` is the region's; `tile_name` has the words for one of the windows, by its number.
    """

    _windows: Int64s | None
    boxes: MapBoxes | None = None  # where windows are boxes on the ground

    def __init__(self, name: str, tile_name: Callable[[int], str], *, whole: bool) -> None:
        self.name, self.tile_name, self.whole = name, tile_name, whole
        self.partner: Any = None  # the masks of these tiles, or the tiles of these masks
        self.follows = False  # whether these are masks, whose base is that of their partner
        self._lock = threading.RLock()

    @property
    def windows(self) -> Int64s:
        """Starts, then stops of each tile, pixels."""
        assert self._windows is not None
        return self._windows

    def pair(self, masks: Windowed) -> None:
        """Let tiles and the masks of the same windows see that they have one extent."""
        self.partner, masks.partner, masks.follows = masks, self, True

    def describe(self, row: int) -> str:
        """The words for one of its windows, with its box as users write it."""
        shown = ", the whole" if self.whole else f" with {self._box(row)}"
        return f"{self.tile_name(row)}{shown} of region {self.name}"

    def _box(self, row: int) -> str:
        return box_words(self.windows[row]) if self.boxes is None else self.boxes.words(row)

    def _words(self, row: int, cause: str) -> str:
        box = "" if self.whole else f": {self._box(row)}"
        return f"{self.tile_name(row)}{box}{cause}"

    def faults(self) -> Iterator[Fault]:
        """Everything that would fail when tiles of this region are read, by its tags; opens all that it has."""
        raise NotImplementedError

    def verify(self) -> list[str]:
        """`faults` as messages, of each kind the first."""
        found = ((kind, int(np.flatnonzero(bad)[0]), cause) for kind, bad, cause in self.faults())
        return [
            f"{self.describe(row)}{cause}" if kind == "unreadable image" else self._words(row, cause)
            for kind, row, cause in found
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name!r}: {self.shape} {self.dtype}>"


def positions(indices: Any) -> Int64s:
    """Positions as an int64 array of one axis, or `IndexError`."""
    given = np.asarray(indices)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise IndexError(f"positions are integers of shape (n,), not {given.dtype} of shape {given.shape}")
    return given.astype(np.int64)


def listed(sources: Any) -> tuple[Any, ...]:
    """The given sources; one array in place of a list of them is refused: it would be a source a sample."""
    if hasattr(sources, "shape") and hasattr(sources, "dtype"):
        raise ValueError(
            f"sources is one array of shape {tuple(sources.shape)}, which would make each of its samples a source; "
            "pass a list of arrays: [array]"
        )
    if isinstance(sources, str | bytes | Mapping | pd.DataFrame):
        raise ValueError(f"sources is a list of arrays, not one {type(sources).__name__}")
    found = tuple(sources)
    if not found:
        raise ValueError("an array of many sources needs at least one source")
    return found


def agreement(sources: Sequence[Any], dtype: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The sample shape and dtype that all sources share."""
    first = sources[0]
    for k, source in enumerate(sources):
        if not getattr(source, "shape", ()) or not hasattr(source, "dtype"):
            raise ValueError(
                f"source {k} ({type(source).__name__}) has no samples: it needs a shape (n, …) and a dtype; "
                "of a list make an array by np.asarray, of a path a region by open_region"
            )
    wanted = np.dtype(first.dtype if dtype is None else dtype).newbyteorder("=")
    for k, source in enumerate(sources):
        if tuple(source.shape[1:]) != tuple(first.shape[1:]):
            raise ValueError(
                f"source {k} has samples of shape {tuple(source.shape[1:])}, source 0 of {tuple(first.shape[1:])}"
            )
        own = np.dtype(source.dtype).newbyteorder("=")
        if dtype is None and own != wanted:
            raise ValueError(f"source {k} is {own}, source 0 is {wanted}; pass dtype= to cast them all")
    return tuple(first.shape[1:]), wanted


def limited(lengths: Int64s, maxlen: int, seed: int | None) -> Int64s:
    """At most `maxlen` positions of each source: the first, or by a seed a random choice in rising order."""
    if isinstance(maxlen, bool) or not isinstance(maxlen, int | np.integer) or maxlen < 1:
        raise ValueError(f"maxlen must be a number of at least 1, not {maxlen!r}")
    starts = np.cumsum(lengths) - lengths
    kept = []
    for k, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        inside = np.arange(length, dtype=np.int64)
        if seed is not None and length > maxlen:
            inside = np.sort(permutation(length, seed, epoch=k)[:maxlen])
        kept.append(start + inside[:maxlen])
    return np.concatenate(kept)


def positions_of(pairs: Any, rows: Int64s, starts: Int64s) -> Int64s:
    """Where the samples of some (source, index) pairs stand among the samples that an array holds, refused for others.

    The samples held, `rows`, are numbered through all sources, of which `starts` has the first ones, and the total.
    """
    given = np.asarray(pairs)
    if given.shape != (len(rows), 2) or given.dtype.kind not in "iu":
        raise ValueError(f"index pairs of {len(rows)} samples are integers of shape ({len(rows)}, 2)")
    if not len(rows):
        return np.empty(0, np.int64)
    source, index = given.astype(np.int64).T
    lengths = np.diff(starts)
    if source.min() < 0 or source.max() >= len(lengths):
        raise ValueError(f"index pairs name sources outside 0 to {len(lengths) - 1}")
    if (index < 0).any() or (index >= lengths[source]).any():
        raise ValueError("index pairs name samples outside their source")
    wanted = starts[source] + index
    found = np.empty(len(rows), np.int64)
    found[np.argsort(wanted, kind="stable")] = np.argsort(rows, kind="stable")
    if (rows[found] != wanted).any():
        raise ValueError("index pairs name samples that this array does not hold, or not so often")
    return found
