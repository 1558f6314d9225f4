"""Memory of batches that is used again.

The system clears and maps each new page when it is first touched, which takes several times as long as a copy to it.
Where several threads allocate, as beside TensorFlow, the C library gives arrays of this size back as soon as they are
dropped, so that all their pages are new ones the next time.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST = 2**16  # bytes; of smaller arrays the C library uses the memory again by itself
_LIMIT = 64 * 2**20  # bytes that wait for their next use
_LINE = 64  # bytes; arrays begin at a multiple of it
_EIGHTHS = 4  # bits of a size that count: sizes are rounded up to eighths of a power of two


class _Loan:
    """Memory in use by an array and its views; when the last of them is gone, it waits for the next array."""

    __slots__ = ("__array_interface__", "_memory", "_shelf")

    def __init__(self, shelf: Shelf, memory: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        begin = memory.__array_interface__["data"][0]
        place = (begin + -begin % _LINE, False)
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": place}
        self._memory, self._shelf = memory, shelf

    def __del__(self) -> None:
        self._shelf.put(self._memory)


class Shelf:
    """Memory that waits for its next use.

    Parameters
    ----------
    limit : bytes that wait at most; beyond it, what has waited the longest goes first

    >>> shelf = Shelf(2**20)
    >>> array = shelf.empty((300, 400), np.dtype("float32"))
    >>> array.shape, shelf.nbytes
    ((300, 400), 0)
    >>> del array
    >>> shelf.nbytes
    491584
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._waiting: list[NDArray[np.uint8]] = []
        self._lock = threading.RLock()  # memory may come back at any moment, also within a call of this thread

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array with whatever values, as of `np.empty`; the last of its views gives its memory back."""
        nbytes = math.prod(shape) * dtype.itemsize
        step = 1 << max(0, nbytes.bit_length() - _EIGHTHS)
        size = -(-nbytes // step) * step + _LINE
        if nbytes < _LEAST or size > self.limit:
            return np.empty(shape, dtype)
        with self._lock:
            same = next((k for k in reversed(range(len(self._waiting))) if self._waiting[k].nbytes == size), None)
            memory = np.empty(size, np.uint8) if same is None else self._waiting.pop(same)
            self.nbytes -= 0 if same is None else size
        return np.asarray(_Loan(self, memory, shape, dtype))

    def put(self, memory: NDArray[np.uint8]) -> None:
        """Let memory wait that nobody uses any more."""
        with self._lock:
            self._waiting.append(memory)
            self.nbytes += memory.nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self._waiting.pop(0).nbytes

    def clear(self) -> None:
        """Give all that waits back to the system."""
        with self._lock:
            self._waiting.clear()
            self.nbytes = 0

    def forget(self) -> None:
        """Start anew in a forked child, where the lock may be held by a thread that is not there."""
        self.__init__(self.limit)  # type: ignore[misc]  # the same object stays imported everywhere


shelf = Shelf(_LIMIT)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shelf.forget)
