"""Stores in Blosc2 frames, and what a killed writer leaves of one."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import check_chunk, settings
from lazytiles.errors import LimitError, StoreError, require
from lazytiles.images import open_plain, unlinked, unpacked
from lazytiles.stores.formats.base import Format, Layout, Reader, crc_of

_FRAME = 91  # bytes before the layers in the header of a Blosc2 frame,
_LAYERS = b"\xde\0\x01\xa4b2nd\xd2"  # which are to be one, that of an array


class Blosc2Reader(Reader):
    """A Blosc2 store."""

    holds = False

    def __init__(self, path: Path, layout: Layout | None = None, notes: Sequence[int] = ()) -> None:
        blosc2 = require("blosc2", extra="blosc2")
        _check_frame(path)
        # One thread: a child forked from a process with Blosc2 threads hangs.
        self._array = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
        self._owner = self._array.schunk
        self.shape, self.dtype = self._array.shape, self._array.dtype
        chunks, blocks = self._array.chunks, self._array.blocks
        check_chunk(path, chunks, self.dtype)
        whole = math.prod(-(-c // b) * b for c, b in zip(chunks, blocks, strict=True)) * self.dtype.itemsize
        if self._owner.chunksize != whole:
            raise StoreError(f"{path} is damaged: its chunks of {whole} bytes claim {self._owner.chunksize}")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self._array[start:stop])

    def members(self) -> Mapping[str, bytes]:
        meta = self._owner.vlmeta
        return {str(name): bytes(meta[name]) for name in meta}

    def close(self) -> None:
        self._array = self._owner = None


def _check_frame(path: Path) -> None:
    """See that a Blosc2 frame holds an array and small members before the library runs or unpacks what it holds.

    Its layers say what an opened frame becomes, of which some are expressions that are run; its members say
    themselves what they unpack to (C-Blosc2, `README_CFRAME_FORMAT.rst`).
    """
    with open(path, "rb", opener=open_plain) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_FRAME + len(_LAYERS))
        if head[2:10] != b"b2frame\0" or head[_FRAME:] != _LAYERS:
            raise StoreError(f"{path} is no Blosc2 array, or damaged")
        end = os.pread(file.fileno(), 23, size - 23)
        length = int.from_bytes(end[1:5], "big") if end[:1] == b"\xce" else 0
        if not 0 < length < size:
            raise StoreError(f"{path} is damaged: it does not end as a Blosc2 array does")
        trailer = os.pread(file.fileno(), length, size - length)
    nbytes, at = 0, 9
    for _ in range(int.from_bytes(trailer[7:9], "big")):
        at += 2 + trailer[at + 1] if trailer[at] == 0xD9 else 1 + (trailer[at] & 31)
        place = int.from_bytes(trailer[at + 1 : at + 5], "big")
        nbytes += int.from_bytes(trailer[place + 9 : place + 13], "little")
        at += 5
    if nbytes > settings().max_segment_bytes:
        raise LimitError(
            f"{path}: its members unpack to {nbytes} bytes, max_segment_bytes is {settings().max_segment_bytes}; "
            "raise it with lazytiles.configure(max_segment_bytes=...)"
        )


class TornBlosc2Reader(Reader):
    """The chunks of a Blosc2 frame whose writer was killed: they lie one behind the other after its header.

    The frame's own table of offsets is rewritten behind the last chunk with every chunk, so that it may be
    torn; the journal's notes say where each chunk ends (C-Blosc2, `README_CFRAME_FORMAT.rst`).
    """

    def __init__(self, path: Path, layout: Layout | None = None, notes: Sequence[int] = ()) -> None:
        assert layout is not None  # for mypy: a partial has one
        self._blosc2 = require("blosc2", extra="blosc2")
        self._file = open(path, "rb", opener=unlinked)  # noqa: SIM115  # closed by `close`
        self._layout = layout
        self._ends = [0, *notes]
        self.shape = (len(notes) * layout.chunk, *layout.shape)
        self.dtype = layout.dtype
        self._base = struct.unpack(">i", os.pread(self._file.fileno(), 4, 11))[0]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        chunk = start // self._layout.chunk
        first, last = self._ends[chunk], self._ends[chunk + 1]
        rows = self._layout.blank(self._layout.chunk)
        if last > first:
            if last > os.fstat(self._file.fileno()).st_size:
                raise StoreError(f"chunk {chunk} is cut short")
            held = os.pread(self._file.fileno(), last - first, self._base + first)
            if unpacked(held[:32]) > rows.nbytes:
                raise StoreError(f"chunk {chunk} claims to unpack to more than its rows")
            content = self._blosc2.decompress2(held)
            rows = np.frombuffer(content, self._layout.dtype, rows.size).reshape(rows.shape)
        return rows[: stop - start]


class Blosc2Format(Format):
    """Rows in a contiguous Blosc2 array, members in the variable-length metadata of its frame."""

    name = "blosc2"
    suffixes = (".b2nd",)
    mark = b"b2frame"
    reader = Blosc2Reader
    torn_reader = TornBlosc2Reader
    continues = False
    _array: Any = None

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        blosc2 = require("blosc2", extra="blosc2")
        self._layout = layout
        self._array = blosc2.empty(
            # Room for a chunk at least: older versions cut the chunks down to an empty array.
            (max(length or 0, layout.chunk), *layout.shape),
            dtype=layout.dtype,
            chunks=(layout.chunk, *layout.shape),
            urlpath=str(path),
            mode="w",
            contiguous=True,
            **{"cparams": blosc2.CParams(codec=blosc2.Codec.LZ4)} | self._options,
        )

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        notes, chunk = [], self._layout.chunk
        for first in range(0, len(rows), chunk):
            part, at = rows[first : first + chunk], start + first
            if at + len(part) > len(self._array):
                self._array.resize((at + len(part), *self._layout.shape))
            self._array[at : at + len(part)] = part
            notes.append((crc_of(part), int(self._array.schunk.cbytes)))
        return notes

    def finish(self, rows: int, members: Mapping[str, bytes]) -> None:
        if len(self._array) != rows:
            self._array.resize((rows, *self._layout.shape))
        # The metadata object does not keep its owner alive.
        owner = self._array.schunk
        for name, content in members.items():
            owner.vlmeta[name] = content
        self.close()

    def inherit(self, store: Path) -> None:
        array = require("blosc2", extra="blosc2").open(str(store), mode="r")
        self._options = {"cparams": array.schunk.cparams} | self._options

    def close(self) -> None:
        self._array = None
