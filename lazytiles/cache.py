"""Decoded segments kept for later reads, within an exact budget of bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import settings
from lazytiles.files import FileKey, pool

SegmentKey: TypeAlias = tuple[FileKey, str, int]


class Pending:
    """A segment that some thread is decoding now."""

    __slots__ = ("array", "ready")

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.array: NDArray[Any] | None = None


class SegmentCache:
    """Least-recently-used decoded segments, keyed by (file identity, page, segment).

    Notes
    -----
    Arrays are read-only and own their bytes, so the budget is exact. Threads that miss the same
    segment at once decode it once: the first gets None from `claim` and must `settle` it, the
    others get a `Pending` to wait for. A decode that failed is not kept.
    """

    def __init__(self) -> None:
        self._arrays: OrderedDict[SegmentKey, NDArray[Any]] = OrderedDict()
        self._pending: dict[SegmentKey, Pending] = {}
        self._lock = threading.Lock()
        self.nbytes = 0

    def claim(self, key: SegmentKey) -> NDArray[Any] | Pending | None:
        """The array, or what to wait for, or None when the caller is to decode and `settle` it."""
        with self._lock:
            array = self._arrays.get(key)
            if array is not None:
                self._arrays.move_to_end(key)
                return array
            pending = self._pending.get(key)
            if pending is None:
                self._pending[key] = Pending()
            return pending

    def holds(self, key: SegmentKey) -> bool:
        """Whether a segment is kept now."""
        return key in self._arrays

    def settle(self, key: SegmentKey, array: NDArray[Any] | None) -> None:
        """Give what was decoded (None: it failed) to those who wait, and keep it within the budget."""
        if array is not None:
            array = array if _owns_its_bytes(array) else array.copy()
            array.flags.writeable = False
        budget = settings().cache_bytes
        with self._lock:
            pending = self._pending.pop(key, None)
            if array is not None and array.nbytes <= budget and key not in self._arrays:
                self._arrays[key] = array
                self.nbytes += array.nbytes
                while self.nbytes > budget:
                    self.nbytes -= self._arrays.popitem(last=False)[1].nbytes
        if pending is not None:
            pending.array = array
            pending.ready.set()

    def drop(self, file: FileKey, page: str, is_over: Callable[[int], bool]) -> None:
        """Forget those segments of a page that will not be asked for again."""
        with self._lock:
            for key in [k for k in self._arrays if k[0] == file and k[1] == page and is_over(k[2])]:
                self.nbytes -= self._arrays.pop(key).nbytes

    def clear(self) -> None:
        """Forget every array."""
        with self._lock:
            self._arrays.clear()
            self.nbytes = 0

    def forget(self) -> None:
        """Start anew in a forked child, where no other thread will settle what was pending."""
        self.__init__()  # type: ignore[misc]  # the same object stays imported everywhere


def _owns_its_bytes(array: NDArray[Any]) -> bool:
    """Whether keeping an array keeps no more memory than its own bytes."""
    base: Any = array.base
    if isinstance(base, np.ndarray):
        return base.nbytes == array.nbytes
    return base is None or (isinstance(base, bytes) and len(base) == array.nbytes)


cache = SegmentCache()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=cache.forget)


def clear_cache() -> None:
    """Forget every decoded segment and close every idle file.

    >>> clear_cache()
    """
    cache.clear()
    pool.clear()


def filled(shape: tuple[int, int, int], dtype: np.dtype[Any], value: float) -> NDArray[Any]:
    """A segment that the file leaves out, without a byte of memory for each pixel."""
    return np.broadcast_to(np.array(value, dtype=dtype), shape)
