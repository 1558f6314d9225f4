"""What every lazy array of the library has in common."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Box, Int64s
from lazytiles.display import png
from lazytiles.errors import LazyTilesError, visible
from lazytiles.indexing.requests import request


class LazyArray:
    """The face of a lazy array: all that follows from `shape`, `dtype` and `read_box`, or `__getitem__` for others."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read_box(self, rows: Int64s, box: Box, origins: Int64s | None) -> NDArray[Any]:
        """Read a box out of each of some samples: ``self[rows[k]][box]``, the box moved by ``origins[k]``.

        Parameters
        ----------
        rows : int64, shape (n,), non-negative, in any order, repetitions allowed
        box : (start, stop) for each axis but the first
        origins : int64, shape (n, axes - 1), added to the starts, or None

        Returns
        -------
        new array, shape (n, *extents), native byte order
        """
        if origins is not None:
            return each_at(self, rows, box, origins)
        cut: tuple[Any, ...] = (rows, *(slice(start, stop) for start, stop in box))
        block: NDArray[Any] = self[cut]
        return block

    def __getitem__(self, key: Any) -> Any:
        asked = request(key, self.shape, row_axes=1)
        return asked.finish(self.read_box(asked.rows[0], asked.box, asked.origins))

    def take(self, indices: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The samples at some positions, as one new array or in `out`."""
        block: NDArray[Any] = self[np.asarray(indices, dtype=np.int64)]
        return into(block, out)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array, read."""
        return int(self.size * self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a lazy array is always read into a new one; copy=False cannot be kept")
        whole: NDArray[Any] = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _facts(self) -> dict[str, str]:
        """What a notebook says of the array, by name."""
        return {"shape": by(self.shape), "dtype": str(self.dtype), "size": in_bytes(self.nbytes)}

    def _glimpse(self, rows: Int64s | None = None) -> NDArray[np.uint8] | None:
        """A small picture of some rows, uint8 (h, w, 3), or None where there is none or it would cost much."""
        return None

    def _repr_html_(self) -> str:
        left = 'style="text-align:left"'
        rows = "".join(
            f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(visible(value))}</td></tr>"
            for name, value in self._facts().items()
        )
        try:
            picture = self._glimpse()
        except (LazyTilesError, ValueError, TypeError):
            picture = None  # A repr never raises: an image that cannot be read is said by the read itself.
        style = "min-width:10em;max-width:16em;image-rendering:pixelated"
        image = "" if picture is None else f'<td><img src="{png(picture)}" alt="thumbnail" style="{style}"></td>'
        kind = escape(type(self).__name__)
        return f"<table><tr><td><b>{kind}</b><table>{rows}</table></td>{image}</tr></table>"


def by(shape: Sequence[int]) -> str:
    """A shape in words, such as ``"64 × 64 × 3"``."""
    return " × ".join(str(length) for length in shape)


def in_bytes(count: int) -> str:
    """A number of bytes in a unit that suits it, such as ``"1.5 MiB"``."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def token(*parts: Any) -> Any:
    """What `__dask_tokenize__` gives for something made of these parts: equal for equal ones, in any process."""
    return importlib.import_module("dask.base").normalize_token(parts)


def each_at(source: Any, rows: Int64s, box: Box, origins: Int64s) -> NDArray[Any]:
    """Rows of anything with `dtype` and slices, each cut by the box at its own origin; arguments as for `read_box`."""
    out = np.empty((len(rows), *(stop - start for start, stop in box)), np.dtype(source.dtype).newbyteorder("="))
    for k, (row, origin) in enumerate(zip(rows.tolist(), origins.tolist(), strict=True)):
        cut: tuple[Any, ...] = tuple(slice(a + o, b + o) for (a, b), o in zip(box, origin, strict=True))
        out[k] = source[(row, *cut)]
    return out


def trimmed(block: NDArray[Any], box: Box, origins: Int64s | None) -> NDArray[Any]:
    """Samples that have been read, each cut by the box at its own origin, if it has one; see `LazyArray.read_box`."""
    if origins is not None:
        return each_at(block, np.arange(len(block)), box, origins)
    part: NDArray[Any] = block[(slice(None), *(slice(start, stop) for start, stop in box))]
    return part


def into(block: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """The block, or `out` filled with it; another shape or dtype is refused."""
    if out is None:
        return block
    fits(out, block.shape, block.dtype)
    out[...] = block
    return out


def fits(out: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an `out` of another shape or dtype than the samples that are to be written into it."""
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out is {out.shape} {out.dtype}, the samples are {shape} {dtype}")
