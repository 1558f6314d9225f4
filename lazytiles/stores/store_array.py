"""The rows of a complete store as a source: `StoreArray`."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.config import check_limit
from lazytiles.errors import StoreError
from lazytiles.images import FileKey, segment_cache
from lazytiles.indexing import LazyArray, each_at
from lazytiles.stores.formats import file_of
from lazytiles.stores.formats.base import crc_of
from lazytiles.stores.journal import StoreLock, failed, is_interrupted, recover
from lazytiles.stores.record import Opened, open_complete


class StoreArray(LazyArray):
    """The rows of one complete store as a source, lazily; every chunk is checked when it is first touched.

    Parameters
    ----------
    path : the store
    check : whether the CRC-32 of a chunk is compared with the store's record the first time that this object
        touches it; what was checked is then read at full speed

    Raises
    ------
    StoreError : the store is missing, unfinished or damaged; also when a damaged chunk is read

    Notes
    -----
    Any number of threads may read. Chunks of compressed stores go through the cache of
    `configure(cache_bytes=)`; a ``.npy`` store is mapped. Pickling keeps the path: the store must be the same
    one when it is opened again.

    Examples
    --------
    >>> import tempfile
    >>> from lazytiles.stores.writers import StoreWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with StoreWriter(f"{folder}/rows.npy", chunk=4) as writer:
    ...         writer.write(np.arange(10))
    ...     StoreArray(f"{folder}/rows.npy")[-2:]
    array([8, 9])
    """

    def __init__(self, path: str | os.PathLike[str], *, check: bool = True) -> None:
        self.path = Path(path)
        self._file = file_of(self.path)
        self.check = check
        self._uid: str | None = None
        self._open()

    def _open(self) -> None:
        if is_interrupted(self._file):  # its replacement, between two renames
            # Where a writer is at it, or nothing can be written here, the store is missing.
            with contextlib.suppress(OSError), contextlib.closing(StoreLock(self._file)):
                recover(self._file)
        opened = open_complete(self.path)
        if self._uid not in (None, opened.record.uid):
            opened.reader.close()
            raise StoreError(f"{self.path} was replaced or removed meanwhile; open it again")
        self._uid = opened.record.uid
        self._opened = opened
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._layout = opened.record.layout
        self._key = _file_key(self._file)
        self.shape: tuple[int, ...] = (opened.record.rows, *self._layout.shape)
        self.dtype = self._layout.dtype
        self._seen = np.full(len(opened.digests), not self.check)

    @property
    def opened(self) -> Opened:
        """The open store: opened anew after a fork, where a handle would be shared with the parent."""
        if self._process != os.getpid():
            self._open()
        return self._opened

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of a chunk."""
        return (self._layout.chunk, *self._layout.shape)

    def read_box(self, rows: Int64s, box: tuple[tuple[int, int], ...], origins: Int64s | None = None) -> NDArray[Any]:
        """Read a box out of each of some samples; see `Region.read_box`."""
        shape = (len(rows), *(stop - start for start, stop in box))
        check_limit(math.prod(shape) * self.dtype.itemsize, "a read of {}", shape)
        out = np.empty(shape, self.dtype)
        cut = tuple(slice(start, stop) for start, stop in box)
        mapped = self.opened.reader.mapped() if origins is None else None
        if mapped is not None:
            if not self._seen.all():
                touched = np.zeros(len(self._seen), np.bool_)
                touched[rows // self._layout.chunk] = True
                for number in np.flatnonzero(touched & ~self._seen).tolist():
                    self.checked(number)
            return np.take(mapped[(slice(None), *cut)], rows, axis=0, out=out, mode="clip")
        chunk = rows // self._layout.chunk
        by_chunk = np.argsort(chunk, kind="stable")
        for slots in np.split(by_chunk, np.flatnonzero(np.diff(chunk[by_chunk])) + 1):
            if not len(slots):
                continue
            number = int(chunk[slots[0]])
            block = self.chunk(number)
            inside = rows[slots] - number * self._layout.chunk
            if origins is None:
                out[slots] = block[(slice(None), *cut)][inside]
            else:
                out[slots] = each_at(block, inside, box, origins[slots])
        return out

    def chunk(self, number: int) -> NDArray[Any]:
        """One chunk, from the cache or the store; not to be written to."""
        if not self.opened.reader.is_packed:
            return self.checked(number)
        return segment_cache.once((self._key, f"store {self._uid}", number), lambda: self.checked(number))

    def afresh(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows from the store anew, past the cache, which does not notice that a chunk's file has changed."""
        first, last = start // self._layout.chunk, -(-stop // self._layout.chunk)
        chunks = np.concatenate([self.checked(number) for number in range(first, last)])
        return chunks[start - first * self._layout.chunk :][: stop - start]

    def checked(self, number: int) -> NDArray[Any]:
        """One chunk from the store, compared with its checksum unless it was before or none is to be."""
        start = number * self._layout.chunk
        stop = min(start + self._layout.chunk, self.shape[0])
        try:
            reader = self.opened.reader
            with contextlib.nullcontext() if reader.is_shared else self._lock:
                block = reader.read(start, stop)
        except ImportError:  # of a codec: no damage
            raise
        except Exception as error:  # Libraries raise anything over damaged bytes.
            self._check_identity()
            raise failed(
                f"{self.path}: rows {start} to {stop} cannot be read: {error or type(error).__name__}", error
            ) from error
        self._check_identity()
        if not self._seen[number]:
            if crc_of(block) != self.opened.digests[number]:
                raise StoreError(
                    f"{self.path}: rows {start} to {start + len(block)} are damaged: their checksum is not "
                    "the one in the store's record; write the store again"
                )
            self._seen[number] = True
        return block

    def _check_identity(self) -> None:
        if not self._opened.reader.holds and _file_key(self._file) != self._key:
            raise StoreError(f"{self.path} was replaced or removed meanwhile; open it again")

    def close(self) -> None:
        """Let go of what is open; reading opens it again."""
        if self._process == os.getpid():
            self._opened.reader.close()
            self._process = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": self._file, "check": self.check, "_uid": self._uid}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __dask_tokenize__(self) -> tuple[str, str, str | None]:
        return "lazytiles.StoreArray", str(self.path), self._uid

    def __repr__(self) -> str:
        return f"<StoreArray {self.path}: {self.shape} {self.dtype}>"


def _file_key(path: Path) -> FileKey:
    try:
        facts = path.stat()
    except OSError as error:
        raise failed(f"{path} was replaced or removed meanwhile; open it again", error) from error
    return FileKey.of(str(path), facts)
