"""What every lazy array of the library has in common."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


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

    def _repr_html_(self) -> str:
        from lazytiles.reports.plots import array_html  # pictures are made only where they are looked at

        return array_html(self)


def token(*parts: Any) -> Any:
    """What `__dask_tokenize__` gives for something made of these parts: equal for equal ones, in any process."""
    return importlib.import_module("dask.base").normalize_token(parts)
