"""Memory of batches that is used again, in this process alone or shared with the processes that read into it.

The system clears and maps each new page when it is first touched, which takes several times as long as a copy to it.
Where several threads allocate, as beside TensorFlow, the C library gives arrays of this size back as soon as they are
dropped, so that all their pages are new ones the next time; memory that other processes map is new to each of them.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import tempfile
import threading
import weakref
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEAST = 2**16  # bytes; of smaller arrays the C library uses the memory again by itself
_LIMIT = 256 * 2**20  # bytes that wait for their next use: as much as is read ahead by default
_MOST_FILES = 64  # shared memories that wait: each holds two descriptors; a batch or a plan is one
_LINE = 64  # bytes; arrays begin at a multiple of it
_EIGHTHS = 4  # bits of a size that count: sizes are rounded up to eighths of a power of two

_numbers = itertools.count()
_generation = 0  # forks so far: what a child may still see is not used again


class Memory:
    """Bytes for one array at a time; shared ones belong to a file without a name, whose descriptor `fd` can be sent.

    No two of a process have the same `number`.
    """

    def __init__(self, nbytes: int, *, shared: bool) -> None:
        self.number, self.nbytes, self.generation = next(_numbers), nbytes, _generation
        self.fd: int | None = None
        if not shared:
            self._bytes: Any = np.empty(nbytes, np.uint8)
            return
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("lazytiles", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        os.ftruncate(self.fd, nbytes)
        self._bytes = mmap.mmap(self.fd, nbytes)
        weakref.finalize(self, os.close, self.fd).atexit = False

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The first bytes as an array, which the last of its views keeps alive."""
        # A memoryview ends the chain of bases: views refer to this array, not to what lies below.
        flat = np.frombuffer(memoryview(self._bytes), np.uint8)
        begin = -flat.__array_interface__["data"][0] % _LINE
        return np.frombuffer(memoryview(self._bytes)[begin : begin + math.prod(shape) * dtype.itemsize], dtype)


class Place(NamedTuple):
    """Where an array lies in shared memory, which must outlive it: bytes from its begin."""

    memory: Memory
    offset: int


class Placed(NamedTuple):
    """Where some arrays lie in shared memory."""

    memories: tuple[Memory, ...]
    where: NDArray[np.int64]  # shape (n, 5): number in `memories`, first byte, height, width, bands


class Shelf:
    """Memory that waits for its next use; of more than `limit` bytes, what has waited the longest goes first.

    >>> shelf = Shelf(2**20)
    >>> array = shelf.empty((300, 400), np.dtype("float32"))
    >>> array.shape, shelf.nbytes
    ((300, 400), 0)
    >>> del array
    >>> shelf.nbytes
    491584
    """

    def __init__(self, limit: int, *, shared: bool = False) -> None:
        self.limit, self.shared = limit, shared
        self.nbytes = 0
        self._waiting: list[Memory] = []
        self._lent: dict[int, Memory] = {}  # by the address of the array
        self._lock = threading.RLock()  # memory may come back at any moment, also within a call of this thread

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array with whatever values, as of `np.empty`; the last of its views gives its memory back."""
        nbytes = math.prod(shape) * dtype.itemsize
        step = 1 << max(0, nbytes.bit_length() - _EIGHTHS)
        size = -(-nbytes // step) * step + _LINE
        if not self.shared and (nbytes < _LEAST or size > self.limit):
            return np.empty(shape, dtype)
        with self._lock:
            same = next((k for k in reversed(range(len(self._waiting))) if self._waiting[k].nbytes == size), None)
            memory = Memory(size, shared=self.shared) if same is None else self._waiting.pop(same)
            self.nbytes -= 0 if same is None else size
            array = memory.array(shape, dtype)
            address = array.__array_interface__["data"][0]
            self._lent[address] = memory
            # A generation is that of the loan: what is lent when the process forks is not used again.
            memory.generation = _generation
            weakref.finalize(array, self._back, address, os.getpid()).atexit = False
        return array.reshape(shape)

    def place(self, array: NDArray[Any]) -> Place:
        """Where an array that was lent here lies, or a view of one."""
        owner: Any = array.base if isinstance(array.base, np.ndarray) else array
        address = array.__array_interface__["data"][0]
        with self._lock:
            memory = self._lent[owner.__array_interface__["data"][0]]
        return Place(memory, address - np.frombuffer(memory._bytes, np.uint8).__array_interface__["data"][0])

    def _back(self, address: int, process: int) -> None:
        with self._lock:
            memory = self._lent.pop(address, None)
            is_alone = not self.shared or (process == os.getpid() and memory and memory.generation == _generation)
            if memory is None or not is_alone:
                return
            self._waiting.append(memory)
            self.nbytes += memory.nbytes
            while self.nbytes > self.limit or (self.shared and len(self._waiting) > _MOST_FILES):
                self.nbytes -= self._waiting.pop(0).nbytes

    def clear(self) -> None:
        """Give all that waits back to the system."""
        with self._lock:
            self._waiting.clear()
            self.nbytes = 0

    def forget(self) -> None:
        """Start anew in a forked child, where the lock may be held by a thread that is not there."""
        self.__init__(self.limit, shared=self.shared)  # type: ignore[misc]  # the same object is imported everywhere


def _forked() -> None:
    global _generation
    _generation += 1


shelf = Shelf(_LIMIT)
shared_shelf = Shelf(_LIMIT, shared=True)
os.register_at_fork(after_in_child=shelf.forget, after_in_parent=_forked)
os.register_at_fork(after_in_child=shared_shelf.forget)
