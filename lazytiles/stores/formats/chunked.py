"""Stores in the formats of other libraries: Zarr 3 and Blosc2."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import check_chunk, settings
from lazytiles.errors import LimitError, RegionError, StoreError, require
from lazytiles.images import open_plain, open_zarr, unlinked, unpacked, write_new
from lazytiles.stores.formats.base import Layout, crcs_of

# Zarr's shape is set when the array is complete; chunks are named by position, so any large number does.
_ROOM = 2**40
_FRAME = 91  # bytes before the layers in the header of a Blosc2 frame,
_LAYERS = b"\xde\0\x01\xa4b2nd\xd2"  # which are to be one, that of an array


@contextmanager
def _of_store() -> Iterator[None]:
    """Turns the errors of a region in a store into those of a store."""
    try:
        yield
    except RegionError as error:
        raise StoreError(str(error)) from error


class ZarrFormat:
    """Rows in a Zarr 3 array at the root of the directory, members as files under its ``lazytiles``."""

    name = "zarr"
    continues = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._array: Any = None

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        """See `Format.create`."""
        zarr = require("zarr", extra="zarr")
        codecs = require("zarr.codecs", extra="zarr")
        options = dict(self._options)
        compressors = options.pop("compressors", codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"))
        compressors = [] if compressors is None else compressors
        chain = list(compressors) if isinstance(compressors, list | tuple) else [compressors]
        if not any(isinstance(codec, codecs.Crc32cCodec) for codec in chain):
            chain.append(codecs.Crc32cCodec())
        zarr.create_array(
            store=str(path),
            shape=(_ROOM, *layout.shape),
            chunks=(layout.chunk, *layout.shape),
            dtype=layout.dtype,
            compressors=chain,
            zarr_format=3,
            # A chunk of zeros is written too: one that is missing is then always damage.
            config={"write_empty_chunks": True},
            **options,
        )
        self.join(path, layout)

    def resume(self, path: Path, layout: Layout, notes: list[int]) -> None:
        """See `Format.resume`."""
        _refuse_links(path)
        self._path = path
        self._set_length(_ROOM)
        self.join(path, layout)

    def join(self, path: Path, layout: Layout) -> None:
        """Write into a partial that is there, as one of any number of processes."""
        zarr = require("zarr", extra="zarr")
        self._path = path
        self._chunk = layout.chunk
        self._layout = layout
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._array = zarr.open_array(str(path), mode="r+")

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        """See `Format.put`."""
        crcs = crcs_of(rows, self._chunk)
        missing = len(crcs) * self._chunk - len(rows)
        if missing:
            rows = np.concatenate([rows, self._layout.blank(missing)])
        self._array[start : start + len(rows)] = rows
        return [(crc, 0) for crc in crcs]

    def sync(self) -> None:
        """Nothing: every chunk is its own file, renamed when complete."""

    def finish(self, rows: int, members: Mapping[str, bytes]) -> str:
        """See `Format.finish`."""
        self._set_length(rows)
        for leftover in self._path.rglob("*.partial"):
            leftover.unlink()
        place = self._path / "lazytiles"
        place.mkdir(exist_ok=True)
        for name, content in members.items():
            write_new(place / name, content)
        self.close()
        return ""

    def adopt(self, store: Path, path: Path, chunks: int) -> bool:
        """Link the chunk files, but for those that will be written again: a link shares what is written."""
        _refuse_links(store)
        is_sharded = "sharding_indexed" in (store / "zarr.json").read_text()
        if is_sharded or not all((store / "c" / str(number)).exists() for number in range(chunks)):
            # Shards, or files of other names: which of them will be written again is the library's affair.
            shutil.copytree(store, path, ignore=shutil.ignore_patterns("lazytiles"))
            return True
        (path / "c").mkdir(parents=True)
        shutil.copyfile(store / "zarr.json", path / "zarr.json")
        for number in range(chunks):
            chunk, link = store / "c" / str(number), path / "c" / str(number)
            _link(chunk, link) if chunk.is_file() else shutil.copytree(chunk, link, copy_function=_link)
        return True

    def inherit(self, store: Path) -> None:
        """Nothing: the description of the array is copied."""

    def _set_length(self, rows: int) -> None:
        description = self._path / "zarr.json"
        facts = json.loads(description.read_text())
        facts["shape"][0] = rows
        fresh = self._path / "zarr.json.partial"
        write_new(fresh, json.dumps(facts, indent=2).encode())
        fresh.replace(description)

    def close(self) -> None:
        """Let go of what is open."""
        self._array = None


def _refuse_links(path: Path) -> None:
    """See that a directory, which may itself be the user's link, holds only directories and regular files."""
    for place in path.rglob("*"):
        if place.is_symlink() or not (place.is_file() or place.is_dir()):
            raise StoreError(f"{place}: is a link or no regular file, which may lead anywhere; refused")


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # A file system without links.
        shutil.copyfile(source, target)


class ZarrReader:
    """A Zarr store, or a killed writer's partial."""

    holds = False

    def __init__(self, path: Path) -> None:
        self._path = path
        with _of_store():
            self._array = open_zarr(path, zarr_format=3)
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype: np.dtype[Any] = self._array.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See `Reader.read`."""
        with _of_store():
            return np.asarray(self._array[start:stop])

    def members(self) -> Mapping[str, bytes]:
        """See `Reader.members`."""
        place, found = self._path / "lazytiles", {}
        if place.is_symlink():
            raise StoreError(f"{place}: is a link, which may lead anywhere; refused")
        for member in sorted(place.iterdir()) if place.is_dir() else ():
            with open(member, "rb", opener=unlinked) as file:
                found[member.name] = file.read()
        return found

    def close(self) -> None:
        """Nothing: files are open only while they are read."""


class Blosc2Format:
    """Rows in a contiguous Blosc2 array, members in the variable-length metadata of its frame."""

    name = "blosc2"
    continues = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._array: Any = None

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        """See `Format.create`."""
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

    def resume(self, path: Path, layout: Layout, notes: list[int]) -> None:
        """See `Format.resume`."""
        raise StoreError(f"{path} cannot be written on in place")

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        """See `Format.put`."""
        notes = []
        crcs = crcs_of(rows, self._layout.chunk)
        for first in range(0, len(rows), self._layout.chunk):
            part = rows[first : first + self._layout.chunk]
            at = start + first
            if at + len(part) > len(self._array):
                self._array.resize((at + len(part), *self._layout.shape))
            self._array[at : at + len(part)] = part
            notes.append(int(self._array.schunk.cbytes))
        return list(zip(crcs, notes, strict=True))

    def sync(self) -> None:
        """Nothing: a chunk is in the file, behind the earlier ones, when it has been put."""

    def finish(self, rows: int, members: Mapping[str, bytes]) -> str:
        """See `Format.finish`."""
        if len(self._array) != rows:
            self._array.resize((rows, *self._layout.shape))
        # The metadata object does not keep its owner alive.
        owner = self._array.schunk
        for name, content in members.items():
            owner.vlmeta[name] = content
        self.close()
        return ""

    def adopt(self, store: Path, path: Path, chunks: int) -> bool:
        """Not possible: a frame is one file that its writer rewrites in part."""
        return False

    def inherit(self, store: Path) -> None:
        """See `Format.inherit`."""
        array = require("blosc2", extra="blosc2").open(str(store), mode="r")
        self._options = {"cparams": array.schunk.cparams} | self._options

    def close(self) -> None:
        """Let go of what is open."""
        self._array = None


class Blosc2Reader:
    """A Blosc2 store."""

    holds = False

    def __init__(self, path: Path) -> None:
        blosc2 = require("blosc2", extra="blosc2")
        _check_frame(path)
        # One thread: a child forked from a process with Blosc2 threads hangs.
        self._array = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
        self._owner = self._array.schunk
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype: np.dtype[Any] = self._array.dtype
        chunks, blocks = self._array.chunks, self._array.blocks
        check_chunk(path, chunks, self.dtype)
        whole = math.prod(-(-c // b) * b for c, b in zip(chunks, blocks, strict=True)) * self.dtype.itemsize
        if self._owner.chunksize != whole:
            raise StoreError(f"{path} is damaged: its chunks of {whole} bytes claim {self._owner.chunksize}")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See `Reader.read`."""
        return np.asarray(self._array[start:stop])

    def members(self) -> Mapping[str, bytes]:
        """See `Reader.members`."""
        meta = self._owner.vlmeta
        return {str(name): bytes(meta[name]) for name in meta}

    def close(self) -> None:
        """Let go of what is open."""
        self._array = self._owner = None


def _check_frame(path: Path) -> None:
    """See that a Blosc2 frame holds an array and small members before the library runs or unpacks what it holds.

    Its layers say what an opened frame becomes, of which some are expressions that are run; its members say
    themselves what they unpack to (C-Blosc2, `README_CFRAME_FORMAT.rst`).

    Raises
    ------
    StoreError : it is something else, or damaged
    LimitError : its members unpack to more than `max_segment_bytes`
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


class TornBlosc2Reader:
    """The chunks of a Blosc2 frame whose writer was killed: they lie one behind the other after its header.

    The frame's own table of offsets is rewritten behind the last chunk with every chunk, so that it may be
    torn; the journal's notes say where each chunk ends (C-Blosc2, `README_CFRAME_FORMAT.rst`).
    """

    holds = True

    def __init__(self, path: Path, layout: Layout, notes: list[int]) -> None:
        self._blosc2 = require("blosc2", extra="blosc2")
        self._file = open(path, "rb", opener=unlinked)  # noqa: SIM115  # closed by `close`
        self._layout = layout
        self._ends = [0, *notes]
        self.shape = (len(notes) * layout.chunk, *layout.shape)
        self.dtype = layout.dtype
        self._base = struct.unpack(">i", os.pread(self._file.fileno(), 4, 11))[0]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See `Reader.read`."""
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

    def members(self) -> Mapping[str, bytes]:
        """See `Reader.members`."""
        return {}

    def close(self) -> None:
        """Let go of what is open."""
        self._file.close()
