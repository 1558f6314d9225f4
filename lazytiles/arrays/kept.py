"""Which values of written tiles are valid: what their images said when they were read, packed tile by tile."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Int64s
from lazytiles.indexing import LazyArray, token, trimmed


class KeptValid(LazyArray):
    """Which values of some tiles are valid, boolean (n, *inner), bands last; or with the kind ``"any"`` which pixels.

    In `packed`, uint8, tile k has the bytes ``ends[k]:ends[k + 1]``, none where it is wholly valid.
    """

    def __init__(self, packed: NDArray[np.uint8], ends: Int64s, inner: tuple[int, ...]) -> None:
        self.packed, self.ends, self.inner = packed, ends, inner
        self._rows = np.arange(len(ends) - 1)
        self.kind = "bands"
        self.shape = (len(self._rows), *inner)
        self.dtype = np.dtype(np.bool_)

    @classmethod
    def of(cls, blocks: Iterable[NDArray[np.bool_]], inner: tuple[int, ...]) -> KeptValid:
        """Of tiles that come in blocks, each (n, *inner)."""
        texts = [
            b"" if one.all() else zlib.compress(np.packbits(one).tobytes(), 1) for block in blocks for one in block
        ]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(texts), np.uint8), ends, inner)

    @classmethod
    def whole(cls, n: int, inner: tuple[int, ...]) -> KeptValid:
        """Of tiles that are wholly valid."""
        return cls(np.empty(0, np.uint8), np.zeros(n + 1, np.int64), inner)

    def at(self, rows: Int64s) -> KeptValid:
        """Of some tiles."""
        twin = copy.copy(self)
        twin._rows = self._rows[rows]
        twin.shape = (len(twin._rows), *self.shape[1:])
        return twin

    def of_validity(self, kind: str) -> KeptValid:
        """By ``"any"`` band or by ``"bands"``."""
        twin = copy.copy(self)
        twin.kind = kind
        twin.shape = (len(self), *(self.inner[:-1] if kind == "any" else self.inner))
        return twin

    def read_box(self, rows: Int64s, box: Box, origins: Int64s | None) -> NDArray[Any]:
        """Read a box out of each of some samples; see `Region.read_box`."""
        size = int(np.prod(self.inner))
        out = np.ones((len(rows), *self.shape[1:]), np.bool_)
        for slot, row in enumerate(self._rows[rows].tolist()):
            start, stop = self.ends[row : row + 2].tolist()
            if start != stop:
                # No more than a tile takes is unpacked, whatever a damaged store says.
                bits = zlib.decompressobj().decompress(self.packed[start:stop].tobytes(), -(-size // 8))
                values = np.unpackbits(np.frombuffer(bits, np.uint8), count=size).astype(np.bool_).reshape(self.inner)
                out[slot] = values.any(axis=-1) if self.kind == "any" else values
        return trimmed(out, box, origins)

    def __dask_tokenize__(self) -> Any:
        return token("lazytiles.KeptValid", self.packed, self.ends, self._rows, self.kind, self.inner)

    def __repr__(self) -> str:
        return f"<KeptValid: {self.shape} bool>"
