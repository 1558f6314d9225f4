"""What every lazy array of the library has in common."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.display import png
from lazytiles.errors import LazyTilesError, visible


class LazyArray:
    """The face of a lazy array: all that follows from `shape`, `dtype` and `__getitem__`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

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

    def __getitem__(self, key: Any) -> Any:
        raise NotImplementedError

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

    def _glimpse(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint8] | None:
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
        image = "" if picture is None else f'<td><img src="{png(picture)}" alt="thumbnail" style="max-width:16em"></td>'
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
