"""Stores in TensorFlow's TFRecord framing, one `tf.train.Example` a sample, written without TensorFlow.

Framing: length as uint64, its masked CRC-32C, the bytes, their masked CRC-32C, all little-endian (TensorFlow,
`tensorflow/core/lib/io/record_writer.h`). An Example is a protocol buffer
(`tensorflow/core/example/example.proto`); the features here are ``shape`` (int64 list), ``dtype`` (its NumPy
name), ``label`` (int64 or float list, text, or the bytes of a mask) and last ``data``, the bytes in C order.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import StoreError, require
from lazytiles.images import open_plain, unlinked, write_new
from lazytiles.stores.formats.base import RECORD, Format, Layout, Reader, crc_of, members_of, write_all, zipped
from lazytiles.stores.journal import PARTIAL, SIDE

# The members lie in a zip archive beside the records, as a reader of records would stumble over them. Its name
# carries the version of the store, which the last record ends in as the feature "store": 16 hexadecimal digits.
_NO_VERSION = "0" * 16  # of a store without records


def crc32c(content: bytes) -> int:
    """The CRC-32C of bytes as TFRecord masks it."""
    value: int = require("google_crc32c", extra="tfrecord").value(content)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    """A number as a protocol buffer writes it.

    >>> varint(300).hex()
    'ac02'
    """
    number &= 2**64 - 1
    content = bytearray()
    while number > 127:
        content.append(number & 127 | 128)
        number >>= 7
    return bytes((*content, number))


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values: Any) -> bytes:
    """A `tf.train.Feature` of bytes, text, integers or floating-point numbers."""
    if isinstance(values, bytes):
        return field(1, field(1, values))
    array = np.asarray(values)
    if array.ndim > 1:
        return field(1, field(1, array.tobytes()))
    array = array.reshape(-1)
    if array.dtype.kind == "f":
        return field(2, field(1, array.astype("<f4").tobytes()))
    if array.dtype.kind in "biu":
        return field(3, field(1, b"".join(varint(int(value)) for value in array)))
    if array.dtype.kind == "U":
        return field(1, b"".join(field(1, str(value).encode()) for value in array))
    raise StoreError(f"a TFRecord holds numbers and text, not {array.dtype}")


def entry(name: str, content: bytes) -> bytes:
    """One entry of the map `tf.train.Features.feature`."""
    return field(1, field(1, name.encode()) + field(2, content))


def framed(content: bytes) -> bytes:
    """Bytes as one record."""
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", crc32c(length)) + content + struct.pack("<I", crc32c(content))


def _mark_of(version: str) -> bytes:
    return entry("store", feature(version.encode()))


def _side_of(path: Path) -> Path | None:
    """The file with the members of a TFRecord store: the one that its last record names."""
    with open(path, "rb", opener=open_plain) as file:
        size = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), 64, max(0, size - 64))[:-4]
    version = tail[-16:].decode("ascii", errors="replace") if size else _NO_VERSION
    if not size or tail.endswith(_mark_of(version)):
        named = path.with_name(f"{path.name}.{version}{SIDE}")
        if named.is_file():
            return named
    # Its last bytes may be damaged, which is said best by what knows how they were.
    others = [p for p in path.parent.iterdir() if p.name.startswith(path.name + ".") and p.name.endswith(SIDE)]
    return others[0] if len(others) == 1 and PARTIAL not in others[0].name else None


class TFRecordReader(Reader):
    """A TFRecord store; or, with a layout and notes, what a killed writer left of one."""

    holds = False

    def __init__(self, path: Path, layout: Layout | None = None, notes: Sequence[int] = ()) -> None:
        self._path = path
        self._members: dict[str, bytes] = {}
        self._links = layout is None  # a store may be the user's link, a partial may not
        side = _side_of(path) if layout is None else None
        self.side = "" if side is None else side.name[len(path.name) :]
        if side is not None:
            self._members = members_of(side, links=False)
            facts = json.loads(self._members[RECORD])
            layout = Layout.of(facts)
            self.shape = (facts["rows"], *layout.shape)
            notes = np.frombuffer(self._members["ends.bin"], np.int64).tolist()
            if len(notes) != -(-facts["rows"] // layout.chunk) or notes != sorted(notes):
                raise StoreError(f"{path}: {len(notes)} ends of chunks of {facts['rows']} rows make no sense")
        self._layout = Layout((), np.dtype(np.uint8), 1) if layout is None else layout
        self._ends = [0, *notes]
        if self._members and path.stat().st_size != self._ends[-1]:
            raise StoreError(f"{path}: {self._ends[-1]} bytes expected, {path.stat().st_size} are there")
        self.dtype = self._layout.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        chunk = self._layout.chunk
        parts = [self._chunk(number) for number in range(start // chunk, -(-stop // chunk))]
        if not parts:
            return self._layout.blank(0)
        skipped = start - start // chunk * chunk
        return np.concatenate(parts)[skipped : skipped + stop - start]

    def _chunk(self, number: int) -> NDArray[Any]:
        first, last = self._ends[number], self._ends[number + 1]
        with open(self._path, "rb", opener=partial(open_plain, links=self._links)) as file:
            if not 0 <= first <= last <= os.fstat(file.fileno()).st_size:
                raise StoreError(f"bytes {first} to {last} lie outside the file")
            content = os.pread(file.fileno(), last - first, first)
        layout = self._layout
        rows: list[NDArray[Any]] = []
        at = 0
        while at < len(content):
            end = at + 12 + struct.unpack_from("<Q", content, at)[0]
            # The checksum of the rows leaves out the label and all else that a record has.
            if content[at : end + 4] != framed(content[at + 12 : end]):
                raise StoreError(f"record {number * layout.chunk + len(rows)} is damaged")
            # Stores of before members had versions bear no mark.
            marked = self.side not in ("", SIDE) and first + end + 4 == self._ends[-1]
            data = end - len(_mark_of(_NO_VERSION)) if marked else end
            rows.append(np.frombuffer(content[data - layout.row_bytes : data], layout.dtype))
            at = end + 4
        return np.stack(rows).reshape(-1, *layout.shape)

    def members(self) -> Mapping[str, bytes]:
        return self._members


class TFRecordFormat(Format):
    """Samples and labels as records; `labels` among the options is an array or a lazy one, in step."""

    name = "tfrecord"
    suffixes = (".tfrecord", ".tfrecords")
    reader = TFRecordReader
    takes_options = False
    takes_labels = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__({name: value for name, value in options.items() if name != "labels"})
        self._labels = options.get("labels")

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        path.touch()
        self.resume(path, layout, [])

    def resume(self, path: Path, layout: Layout, notes: list[int]) -> None:
        # A note is the length of the file after a chunk.
        self._path = path
        self._layout = layout
        self._ends = [0, *notes]
        self._head = entry("shape", feature(layout.shape)) + entry("dtype", feature(layout.dtype.name.encode()))
        self._file = open(path, "r+b", buffering=0, opener=unlinked)  # noqa: SIM115  # closed by `close`
        self._file.truncate(self._ends[-1])
        self._file.seek(self._ends[-1])

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        notes, chunk = [], self._layout.chunk
        for first in range(0, len(rows), chunk):
            part = rows[first : first + chunk]
            labels = None if self._labels is None else self._labels[start + first : start + first + len(part)]
            records = []
            for k, row in enumerate(part):
                given = b"" if labels is None else entry("label", feature(labels[k]))
                records.append(framed(field(1, self._head + given + entry("data", feature(row.tobytes())))))
            content = b"".join(records)
            write_all(self._file, content)
            self._ends.append(self._ends[-1] + len(content))
            notes.append((crc_of(part), self._ends[-1]))
        return notes

    def finish(self, rows: int, members: Mapping[str, bytes]) -> None:
        # The version is a digest of rows and members.
        self._file.truncate(self._ends[-1])
        contents = {name: content for name, content in members.items() if name != RECORD}
        version = hashlib.sha256(zipped(contents)).hexdigest()[:16] if rows else _NO_VERSION
        if rows:
            # The last record is written again, with the version of the store behind its data.
            first, at = self._ends[-2], 0
            chunk = os.pread(self._file.fileno(), self._ends[-1] - first, first)
            while (stop := at + 16 + struct.unpack_from("<Q", chunk, at)[0]) < len(chunk):
                at = stop
            size_at = at + 13
            while chunk[size_at] > 127:  # the length of its only field, which takes the rest
                size_at += 1
            marked = framed(field(1, chunk[size_at + 1 : stop - 4] + _mark_of(version)))
            self._file.seek(first + at)
            write_all(self._file, marked)
            self._ends[-1] = first + at + len(marked)
        ends = np.array(self._ends[1:], np.int64).tobytes()
        self.side = f".{version}{SIDE}"
        write_new(self._path.with_name(self._path.name + self.side), zipped({**members, "ends.bin": ends}))
        self.close()

    def adopt(self, store: Path, path: Path, chunks: int) -> bool:
        """Not possible: labels of further rows have no place to come from."""
        raise StoreError(f"{store}: a TFRecord store cannot be appended to; export it again")
