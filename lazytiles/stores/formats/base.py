"""What a format of stores is: how rows go into bytes under one name, and how they come out.

Beside the rows a store carries *members*: named bytes such as its record, its labels and its table. Every
format has a place for them inside itself, so that a store is one name and one rename.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from imagecodecs import deflate_crc32
from numpy.typing import NDArray

from lazytiles.errors import StoreError
from lazytiles.images import open_plain

_SMALL = 64 * 2**20  # bytes of members that are read without asking whether they are there
_MOST_HOLES = 100  # times what more of them take on the disk, which some file systems pack

RECORD = "record.json"


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

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Layout:
        """The layout of which these are the `facts`."""
        return cls(tuple(map(int, facts["shape"])), np.dtype(facts["dtype"]), int(facts["chunk"]))

    def facts(self) -> dict[str, Any]:
        """It as JSON takes it."""
        return {"shape": list(self.shape), "dtype": self.dtype.str, "chunk": self.chunk}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def blank(self, count: int) -> NDArray[Any]:
        """So many rows of zeros."""
        return np.zeros((count, *self.shape), self.dtype)


class Reader:
    """A store open for reading; or, with a layout and the notes of its chunks, the partial of a killed writer."""

    holds = True  # what was opened is read to the end, even when another store takes its name meanwhile
    is_packed = True  # a chunk that was read is worth keeping
    is_shared = False  # any number of threads may read at once
    side = ""  # what the name of a file beside the store that holds its members ends in
    shape: tuple[int, ...]  # the first axis is the rows
    dtype: np.dtype[Any]
    _file: Any = None

    def __init__(self, path: Path, layout: Layout | None = None, notes: Sequence[int] = ()) -> None:
        raise NotImplementedError

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The rows from start to stop."""
        raise NotImplementedError

    def mapped(self) -> NDArray[Any] | None:
        """All rows, mapped; None where they are not."""
        return None

    def members(self) -> Mapping[str, bytes]:
        """All members by name."""
        return {}

    def close(self) -> None:
        """Let go of what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Format:
    """One format of stores: what is known of it, and as an object one partial that is open for writing.

    Its options are for the format's library.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    mark: ClassVar[bytes | None] = None  # among the first bytes of a file
    reader: ClassVar[type[Reader]]
    torn_reader: ClassVar[type[Reader] | None] = None  # of partials, if it is another
    continues: ClassVar[bool] = True  # a partial left by a killed writer is written on as it is
    has_datasets: ClassVar[bool] = False  # several stores in one file
    is_scattered: ClassVar[bool] = False  # many processes may write chunks in any order
    takes_options: ClassVar[bool] = True
    takes_labels: ClassVar[bool] = False  # labels are among the options, and lie with each row
    side = ""  # see `Reader.side`; known when the partial is finished

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options and not self.takes_options:
            raise TypeError(f"a {self.suffixes[0]} file takes no options, but {sorted(options)} were given")
        self._options = dict(options)
        self._file: Any = None

    @classmethod
    def placed(cls, path: str, inner: str | None, options: Mapping[str, Any], mode: str) -> Mapping[str, Any]:
        """The options of a writer into the dataset `inner` of a file, None if it names none."""
        if inner is not None:
            raise StoreError(f"{path}: only an HDF5 file has datasets; leave ::{inner}")
        return options

    def is_in(self, path: Path) -> bool:
        """Whether a file that exists has the store."""
        return True

    def inherit(self, store: Path) -> None:
        """Take the options that were not given from a store that is appended to."""

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        """Start an empty partial, of so many rows in the end, or of None knows how many."""
        raise NotImplementedError

    def resume(self, path: Path, layout: Layout, notes: list[int]) -> None:
        """Go on with a partial after the chunks of these notes; only where `continues`."""
        raise NotImplementedError

    def adopt(self, store: Path, path: Path, chunks: int) -> bool:
        """Make a partial from the first chunks of a store without reading them, ready for `resume`; or False."""
        return False

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        """Write whole chunks (the last may be short) from row start on; the CRC-32 and a note of each chunk."""
        raise NotImplementedError

    def sync(self) -> None:
        """Make what has been put survive the death of this process; nothing where the system has it by then."""

    def finish(self, rows: int, members: Mapping[str, bytes]) -> None:
        """Set the length, add the members, the record last, and close."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is open, complete or not."""
        if self._file is not None:
            self._file.close()
            self._file = None


def array_in(content: bytes) -> NDArray[Any]:
    """The array in the bytes of a ``.npy`` file, or a ValueError before memory is taken for what is not there."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array of shape {shape} and {dtype} does not fill its {len(content)} bytes")
    flat: NDArray[Any] = np.frombuffer(content, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def saved(values: NDArray[Any]) -> bytes:
    """An array as the bytes of a ``.npy`` file."""
    if values.dtype.kind == "O":
        # Text only: objects of other kinds would need pickle, which runs code when it is loaded.
        if not all(isinstance(value, str) for value in values.reshape(-1)):
            raise StoreError("labels that are neither numbers nor text cannot be stored")
        values = values.astype(np.str_)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


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
    """The members in the zip archive that a file is or ends with; none where there is none."""
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
            refuse_holes(path, os.fstat(file.fileno()), claimed)
            return {one.filename: files.read(one) for one in held}


def refuse_holes(path: Path, facts: os.stat_result, nbytes: int) -> None:
    """See that so many bytes of members lie in a file, and are not holes in it that cost whoever made it nothing."""
    if nbytes > max(_SMALL, _MOST_HOLES * 512 * facts.st_blocks):
        raise StoreError(f"{path} is damaged: of {nbytes} bytes of members hardly any are there")


def zipped(members: Mapping[str, bytes]) -> bytes:
    """Members as the bytes of a zip archive, equal for equal members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as files:
        for name, content in members.items():
            files.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def write_all(file: io.RawIOBase, content: bytes) -> None:
    """Write every byte, however few the system takes at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
