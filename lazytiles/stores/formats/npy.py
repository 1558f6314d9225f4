"""Stores in plain ``.npy`` files."""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import deflate_crc32
from numpy.typing import NDArray

from lazytiles.config import settings
from lazytiles.errors import StoreError
from lazytiles.images import open_plain, unlinked
from lazytiles.stores.formats.base import Format, Layout, Reader, members_of, write_all, zipped

_PIECE_BYTES = 256 * 2**10


class NpyReader(Reader):
    """A ``.npy`` store, or a killed writer's partial; mapped, or read with `configure(mmap=False)`."""

    is_packed = False

    def __init__(self, path: Path, layout: Layout | None = None, notes: Sequence[int] = ()) -> None:
        torn = layout is not None
        self._path = path
        self._opener = partial(open_plain, links=not torn)
        with open(path, "rb", opener=self._opener) as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            size = os.fstat(file.fileno()).st_size
        if dtype.hasobject:
            raise StoreError(f"{path} holds {dtype}, not numbers; pickled objects are never loaded")
        room = (size - start) // max(1, math.prod(shape[1:]) * dtype.itemsize)
        # A partial's header says 0 rows until it is complete.
        shape = (room if torn else shape[0], *shape[1:])
        if room < shape[0]:
            raise StoreError(f"{path} is cut short: {shape[0]} rows expected, {room} are there")
        self.rows: NDArray[Any] | None = None
        self.holds = bool(settings().mmap and shape[0])
        if self.holds:
            with open(path, "rb", opener=self._opener) as file:
                mapped: Any = np.memmap(file, dtype, "r", start, shape)
            self._map: Any = mapped.base
            # A plain array of it: each operation on a memmap runs Python code of its class.
            self.rows = mapped.view(np.ndarray)
        self.shape, self.dtype = shape, dtype
        self._start = start
        self._end = start + math.prod(shape) * dtype.itemsize

    def mapped(self) -> NDArray[Any] | None:
        # A map of a file that was cut short kills the process.
        if self.rows is not None and self._map.size() < self._end:
            raise StoreError(f"{self._path} was cut short meanwhile; write it again")
        return self.rows

    def read(self, start: int, stop: int) -> NDArray[Any]:
        rows = self.mapped()
        if rows is not None:
            return rows[start:stop]
        row = math.prod(self.shape[1:])
        stop = min(stop, self.shape[0])
        at = self._start + start * row * self.dtype.itemsize
        with open(self._path, "rb", opener=self._opener) as file:
            held = np.fromfile(file, self.dtype, (stop - start) * row, offset=at)
        return held.reshape(stop - start, *self.shape[1:])

    def members(self) -> Mapping[str, bytes]:
        return members_of(self._path, links=True)

    def close(self) -> None:
        self.rows = self._map = None


class NpyFormat(Format):
    """Rows in a plain ``.npy`` file; members in a zip archive behind them, which NumPy does not look at."""

    name = "npy"
    suffixes = (".npy",)
    mark = b"\x93NUMPY"
    reader = NpyReader
    takes_options = False

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        path.write_bytes(npy_header(layout, 0))
        self.resume(path, layout, [])

    def resume(self, path: Path, layout: Layout, notes: list[int]) -> None:
        self._layout = layout
        self._start = len(npy_header(layout, 0))
        self._file = open(path, "r+b", buffering=0, opener=unlinked)  # noqa: SIM115  # closed by `close`

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        at, notes = self._start + start * self._layout.row_bytes, []
        self._file.seek(at)
        for first in range(0, len(rows), self._layout.chunk):
            rest: Any = rows[first : first + self._layout.chunk].reshape(-1).view(np.uint8).data
            crc = 0
            while rest:
                # Pieces end where the system's own pages do: others cost it a tenth more. The CRC-32 of each is taken
                # while the processor's cache has it.
                piece = rest[: _PIECE_BYTES - at % _PIECE_BYTES]
                written = self._file.write(piece)
                crc = int(deflate_crc32(piece[:written], crc))
                rest, at = rest[written:], at + written
            notes.append((crc, 0))
        return notes

    def finish(self, rows: int, members: Mapping[str, bytes]) -> None:
        self._file.seek(0)
        write_all(self._file, npy_header(self._layout, rows))
        end = self._start + rows * self._layout.row_bytes
        self._file.truncate(end)
        self._file.seek(end)
        write_all(self._file, zipped(members))
        self.close()

    def adopt(self, store: Path, path: Path, chunks: int) -> bool:
        """Copy the file: the members behind the rows are overwritten or cut off."""
        shutil.copyfile(store, path)
        return True


def npy_header(layout: Layout, rows: int) -> bytes:
    """The header of a ``.npy`` file of so many rows: of one length for any number of them."""
    buffer = io.BytesIO()
    facts = {"descr": layout.dtype.str, "fortran_order": False, "shape": (rows, *layout.shape)}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()
