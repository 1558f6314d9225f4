"""What a format of stores is: how rows go into bytes under one name, and how they come out; and `.npy`.

Beside the rows a store carries *members*: named bytes such as its record, its labels and its table. Every
format has a place for them inside itself, so that a store is one name and one rename.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from imagecodecs import deflate_crc32
from numpy.typing import NDArray

from lazytiles.config import settings
from lazytiles.errors import StoreError
from lazytiles.images import open_plain, unlinked

RECORD = "record.json"

_PIECE_BYTES = 256 * 2**10


@dataclass(frozen=True, slots=True)
class Layout:
    """What the rows of a store are: the shape and dtype of one row, and how many rows make a chunk."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int

    def __post_init__(self) -> None:
        if self.dtype.kind not in "biufc" or not self.dtype.isnative:
            raise StoreError(f"a store holds native booleans and numbers, not {self.dtype}")
        if any(n < 1 for n in (*self.shape, self.chunk)):
            raise StoreError(f"a row of shape {self.shape} in chunks of {self.chunk} rows cannot be stored")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def blank(self, count: int) -> NDArray[Any]:
        """So many rows of zeros."""
        return np.zeros((count, *self.shape), self.dtype)


class Reader(Protocol):
    """A store, or what is left of a partial, open for reading; the first axis of its shape is the rows.

    `holds`: what was opened is read to the end, even when another store takes its name meanwhile.
    """

    holds: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then the shape of a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the rows."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The rows from start to stop."""

    def members(self) -> Mapping[str, bytes]:
        """All members by name."""

    def close(self) -> None:
        """Let go of what is open."""


class Format(Protocol):
    """One partial open for writing. `continues`: a partial left by a killed writer is written on as it is."""

    name: str
    continues: bool

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        """Start an empty partial, of so many rows in the end, or of None knows how many."""

    def resume(self, path: Path, layout: Layout, notes: list[int]) -> None:
        """Go on with a partial after the chunks of these notes; only where `continues`."""

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        """Write whole chunks (the last may be short) from row start on; the CRC-32 and a note of each chunk."""

    def sync(self) -> None:
        """Make what has been put survive the death of this process."""

    def finish(self, rows: int, members: Mapping[str, bytes]) -> str:
        """Set the length, add the members, the record last, and close.

        Returns what the name of the file that holds the members ends in, beside the store, or nothing where the
        store itself holds them.
        """

    def adopt(self, store: Path, path: Path, chunks: int) -> bool:
        """Make a partial from the first chunks of a store without reading them, ready for `resume`; or False."""

    def inherit(self, store: Path) -> None:
        """Take the options that were not given from a store that is appended to."""

    def close(self) -> None:
        """Let go of what is open, complete or not."""


def array_in(content: bytes) -> NDArray[Any]:
    """The array in the bytes of a ``.npy`` file, which must be all there, before memory is taken for it.

    Raises
    ------
    ValueError : cut short, too long, or of objects
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array of shape {shape} and {dtype} does not fill its {len(content)} bytes")
    flat: NDArray[Any] = np.frombuffer(content, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def crc_of(rows: NDArray[Any]) -> int:
    """The CRC-32 of the bytes of rows, in C order."""
    # The same number as zlib's, several times as fast: a writer's speed depends on it.
    content: Any = np.ascontiguousarray(rows)
    return int(deflate_crc32(content))


def crcs_of(rows: NDArray[Any], chunk: int) -> list[int]:
    """The CRC-32 of each chunk of rows."""
    return [crc_of(rows[first : first + chunk]) for first in range(0, len(rows), chunk)]


def first_difference(one: NDArray[Any], other: NDArray[Any]) -> int | None:
    """The first row in which two arrays of one shape and dtype differ in any byte; None where they are equal.

    >>> first_difference(np.array([1, 2, 3]), np.array([1, 2, 4]))
    2
    """
    if not len(one):
        return None
    first, second = (np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8) for rows in (one, other))
    differs = (first != second).any(axis=1)
    return int(differs.argmax()) if differs.any() else None


def members_of(path: Path, *, links: bool) -> dict[str, bytes]:
    """The members in the zip archive that a file is or ends with; none where there is none.

    Raises
    ------
    StoreError : they are packed, or claim more bytes than the file has
    """
    with open(path, "rb", opener=partial(open_plain, links=links)) as file:
        if not zipfile.is_zipfile(file):
            return {}
        with zipfile.ZipFile(file) as files:
            held = files.infolist()
            claimed = sum(max(one.file_size, one.compress_size) for one in held)
            if (
                any(one.compress_type != zipfile.ZIP_STORED for one in held)
                or claimed > os.fstat(file.fileno()).st_size
            ):
                raise StoreError(f"{path} is damaged: its members are packed or claim {claimed} bytes; none is read")
            return {one.filename: files.read(one) for one in held}


def zipped(members: Mapping[str, bytes]) -> bytes:
    """Members as the bytes of a zip archive, equal for equal members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as files:
        for name, content in members.items():
            files.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


class NpyFormat:
    """Rows in a plain ``.npy`` file; members in a zip archive behind them, which NumPy does not look at."""

    name = "npy"
    continues = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options:
            raise TypeError(f"a .npy file takes no options, but {sorted(options)} were given")
        self._file: Any = None

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        """See `Format.create`."""
        path.write_bytes(npy_header(layout, 0))
        self.resume(path, layout, [])

    def resume(self, path: Path, layout: Layout, notes: list[int]) -> None:
        """See `Format.resume`."""
        self._layout = layout
        self._start = len(npy_header(layout, 0))
        self._file = open(path, "r+b", buffering=0, opener=unlinked)  # noqa: SIM115  # closed by `close`

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        """See `Format.put`."""
        self._file.seek(self._start + start * self._layout.row_bytes)
        chunk = self._layout.chunk
        return [(self._write(rows[first : first + chunk]), 0) for first in range(0, len(rows), chunk)]

    def _write(self, rows: NDArray[Any]) -> int:
        """Write rows, and take their CRC-32 piece by piece while the processor's cache has them."""
        rest: Any = rows.reshape(-1).view(np.uint8).data
        at, crc = self._file.tell(), 0
        while rest:
            # Pieces end where the system's own pages do: others cost it a tenth more.
            piece = rest[: _PIECE_BYTES - at % _PIECE_BYTES]
            written = self._file.write(piece)
            crc = int(deflate_crc32(piece[:written], crc))
            rest, at = rest[written:], at + written
        return crc

    def sync(self) -> None:
        """Nothing: the rows are the system's when they have been put."""

    def finish(self, rows: int, members: Mapping[str, bytes]) -> str:
        """See `Format.finish`."""
        self._file.seek(0)
        write_all(self._file, np.frombuffer(npy_header(self._layout, rows), np.uint8))
        end = self._start + rows * self._layout.row_bytes
        self._file.truncate(end)
        self._file.seek(end)
        write_all(self._file, np.frombuffer(zipped(members), np.uint8))
        self.close()
        return ""

    def adopt(self, store: Path, path: Path, chunks: int) -> bool:
        """Copy the file: the members behind the rows are overwritten or cut off."""
        shutil.copyfile(store, path)
        return True

    def inherit(self, store: Path) -> None:
        """Nothing: there are no options."""

    def close(self) -> None:
        """Let go of what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


def npy_header(layout: Layout, rows: int) -> bytes:
    """The header of a ``.npy`` file of so many rows: of one length for any number of them."""
    buffer = io.BytesIO()
    facts = {"descr": layout.dtype.str, "fortran_order": False, "shape": (rows, *layout.shape)}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


def write_all(file: io.RawIOBase, rows: NDArray[Any]) -> None:
    """Write every byte of an array, however few the system takes at a time."""
    rest = rows.reshape(-1).view(np.uint8).data
    while rest:
        rest = rest[file.write(rest) :]


class NpyReader:
    """A ``.npy`` store, or a killed writer's partial; mapped, or read with `configure(mmap=False)`."""

    def __init__(self, path: Path, *, torn: bool = False) -> None:
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
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype[Any] = dtype
        self._start = start
        self._end = start + math.prod(shape) * dtype.itemsize

    def mapped(self) -> NDArray[Any] | None:
        """All rows, mapped; None where they are not. A map of a file that was cut short kills the process."""
        if self.rows is not None and self._map.size() < self._end:
            raise StoreError(f"{self._path} was cut short meanwhile; write it again")
        return self.rows

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See `Reader.read`."""
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
        """See `Reader.members`."""
        return members_of(self._path, links=True)

    def close(self) -> None:
        """Let go of what is open."""
        self.rows = self._map = None
