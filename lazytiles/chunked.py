"""Stores in the formats of other libraries: HDF5, Zarr 3 and Blosc2."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import StoreError, require
from lazytiles.formats import Layout, crcs_of
from lazytiles.kinds import split_name

# Zarr's shape is set when the array is complete; chunks are named by position, so any large number does.
_ROOM = 2**40
DATASET = "data"


class HDF5Format:
    """Rows in a dataset of an HDF5 file, ``data`` if not named, and members in its group ``lazytiles``.

    Among the options, `dataset` names another, whose members lie in the group ``lazytiles/NAME``, and `others` the
    file whose other datasets are kept.
    """

    name = "hdf5"
    continues = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._name = self._options.pop("dataset", None) or DATASET
        self._others: Path | None = self._options.pop("others", None)
        self._file: Any = None

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        """See `Format.create`."""
        # No chunk cache: chunks go to the disk when they are written, and a full disk shows at once.
        # Single-writer mode keeps what has been flushed readable when the process is killed.
        h5py = require("h5py", extra="hdf5")
        self._path = path
        self._file = h5py.File(path, "w", libver=("v110", "v110"), rdcc_nbytes=0)
        self._data = self._file.create_dataset(
            self._name,
            shape=(0, *layout.shape),
            maxshape=(None, *layout.shape),
            chunks=(layout.chunk, *layout.shape),
            dtype=layout.dtype,
            **{"compression": "lzf", "fletcher32": True} | self._options,
        )
        self._file.swmr_mode = True

    def resume(self, path: Path, layout: Layout, notes: list[int]) -> None:
        """See `Format.resume`."""
        raise StoreError(f"{path} cannot be written on in place")

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        """See `Format.put`."""
        self._data.resize(start + len(rows), axis=0)
        crcs = crcs_of(rows, self._data.chunks[0])
        self._data[start : start + len(rows)] = rows
        return [(crc, 0) for crc in crcs]

    def sync(self) -> None:
        """See `Format.sync`."""
        self._data.flush()

    def finish(self, rows: int, members: Mapping[str, bytes]) -> str:
        """See `Format.finish`."""
        h5py = require("h5py", extra="hdf5")
        self.close()
        with h5py.File(self._path, "r+", libver=("v110", "v110"), rdcc_nbytes=0) as file:
            if self._others is not None and self._others.exists():
                with h5py.File(self._others, "r") as others:
                    _copy_others(h5py, others, file, self._name)
            if "labels.npy" in members and self._name == DATASET:
                labels = np.load(io.BytesIO(members["labels.npy"]))
                if labels.dtype.kind in "biufc":
                    file.create_dataset("labels", data=labels, fletcher32=labels.size > 0)
            group = file.require_group(_members_of(self._name))
            for name, content in members.items():
                group.create_dataset(name, data=np.frombuffer(content, np.uint8))
        return ""

    def adopt(self, store: Path, path: Path, chunks: int) -> bool:
        """Not possible: an HDF5 file that is written must be its writer's from the start."""
        return False

    def inherit(self, store: Path) -> None:
        """See `Format.inherit`."""
        with require("h5py", extra="hdf5").File(store, "r") as file:
            data = file[self._name]
            held = {"shuffle": data.shuffle, "fletcher32": data.fletcher32}
            if "compression" not in self._options:
                held |= {"compression": data.compression, "compression_opts": data.compression_opts}
        self._options = held | self._options

    def close(self) -> None:
        """Let go of what is open."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def _members_of(name: str) -> str:
    return "lazytiles" if name == DATASET else f"lazytiles/{name}"


def holds_dataset(path: Path, name: str | None) -> bool:
    """Whether an HDF5 file has a dataset, ``data`` if not named."""
    with require("h5py", extra="hdf5").File(path, "r") as file:
        return (name or DATASET) in file


def _copy_others(h5py: Any, source: Any, target: Any, dataset: str) -> None:
    """Copy what a file holds but a dataset and its members; links stay links."""
    members = f"/{_members_of(dataset)}"
    own = {f"/{dataset}"}
    if members in source:
        own |= {f"{members}/{name}" for name in source[members] if isinstance(source[members][name], h5py.Dataset)}
        own |= {"/labels"} if dataset == DATASET and "labels.npy" in source[members] else set()
    for name, value in source.attrs.items():
        target.attrs[name] = value
    pending = [(source, target)]
    while pending:
        group, copy = pending.pop()
        for name in group:
            path, link = f"{group.name.rstrip('/')}/{name}", group.get(name, getlink=True)
            if path in own:
                continue
            if not isinstance(link, h5py.HardLink):
                copy[name] = link
            elif isinstance(group[name], h5py.Group) and any(one.startswith(path + "/") for one in own):
                pending.append((group[name], copy.require_group(name)))
            else:
                group.copy(group[name], copy, name)


class HDF5Reader:
    """An HDF5 store, or a killed writer's partial, which only opens as one that is still written.

    The path may name a dataset, as in ``tiles.h5::images``.
    """

    holds = True

    def __init__(self, path: Path, *, torn: bool = False) -> None:
        h5py = require("h5py", extra="hdf5")
        name, inner = split_name(str(path))
        self._name = inner or DATASET
        self._file = h5py.File(name, "r", swmr=torn, rdcc_nbytes=0)
        if not isinstance(self._file.get(self._name), h5py.Dataset):
            there = ", ".join(sorted(self._file)) or "nothing"
            self._file.close()
            raise StoreError(f"{name} has no dataset {self._name!r}; it has {there}")
        self._data = self._file[self._name]
        self.shape: tuple[int, ...] = self._data.shape
        self.dtype: np.dtype[Any] = self._data.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See `Reader.read`."""
        return np.asarray(self._data[start:stop])

    def members(self) -> Mapping[str, bytes]:
        """See `Reader.members`."""
        h5py = require("h5py", extra="hdf5")
        group = self._file.get(_members_of(self._name), {})
        return {name: group[name][()].tobytes() for name in group if isinstance(group[name], h5py.Dataset)}

    def close(self) -> None:
        """Let go of what is open."""
        self._file.close()


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
            (place / name).write_bytes(content)
        self.close()
        return ""

    def adopt(self, store: Path, path: Path, chunks: int) -> bool:
        """Link the chunk files, but for those that will be written again: a link shares what is written."""
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
        fresh.write_text(json.dumps(facts, indent=2))
        fresh.replace(description)

    def close(self) -> None:
        """Let go of what is open."""
        self._array = None


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # A file system without links.
        shutil.copyfile(source, target)


class ZarrReader:
    """A Zarr store, or a killed writer's partial."""

    holds = False

    def __init__(self, path: Path) -> None:
        zarr = require("zarr", extra="zarr")
        self._path = path
        self._array = zarr.open_array(str(path), mode="r", zarr_format=3)
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype: np.dtype[Any] = self._array.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See `Reader.read`."""
        return np.asarray(self._array[start:stop])

    def members(self) -> Mapping[str, bytes]:
        """See `Reader.members`."""
        place = self._path / "lazytiles"
        return {p.name: p.read_bytes() for p in sorted(place.iterdir())} if place.is_dir() else {}

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
        # One thread: a child forked from a process with Blosc2 threads hangs.
        self._array = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
        self._owner = self._array.schunk
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype: np.dtype[Any] = self._array.dtype

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


class TornBlosc2Reader:
    """The chunks of a Blosc2 frame whose writer was killed: they lie one behind the other after its header.

    The frame's own table of offsets is rewritten behind the last chunk with every chunk, so that it may be
    torn; the journal's notes say where each chunk ends (C-Blosc2, `README_CFRAME_FORMAT.rst`).
    """

    holds = True

    def __init__(self, path: Path, layout: Layout, notes: list[int]) -> None:
        self._blosc2 = require("blosc2", extra="blosc2")
        self._file = path.open("rb")
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
            held = os.pread(self._file.fileno(), last - first, self._base + first)
            content = self._blosc2.decompress2(held)
            rows = np.frombuffer(content, self._layout.dtype, rows.size).reshape(rows.shape)
        return rows[: stop - start]

    def members(self) -> Mapping[str, bytes]:
        """See `Reader.members`."""
        return {}

    def close(self) -> None:
        """Let go of what is open."""
        self._file.close()
