"""A source for tests of what stands above reading."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from lazytiles.errors import LazyTilesError, RegionError


class Planned:
    """A source that plans several batches together, as lazytiles' own do; some rows cannot be read."""

    def __init__(self, array: np.ndarray, *, bad: tuple[int, ...] = (), pause_s: float = 0) -> None:
        self.array, self.bad, self.pause_s = array, bad, pause_s
        self.shape, self.dtype = array.shape, array.dtype
        self.read = 0  # batches
        self.blocks: list[list[np.ndarray]] = []  # the rows of the batches that were planned together

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]

    def name_of(self, position: int) -> str:
        return f"tile t{position:03}"

    def take(self, indices: np.ndarray, out: None = None, *, threads: int | None = None) -> np.ndarray:
        self.read += 1
        time.sleep(self.pause_s)
        for row in indices:
            if row in self.bad:
                raise RegionError(f"tile t{row:03}: box (0, 0, 4, 4) leaves region r.tif")
        return self.array[indices]

    def take_batches(self, batches, done, *, threads=None, stop=None) -> None:
        self.blocks.append(list(batches))
        for k, rows in enumerate(batches):
            if stop is not None and stop.is_set():
                return
            try:
                done(k, self.take(rows))
            except LazyTilesError as error:
                done(k, error)
