"""Stores in HDF5, and what a killed writer leaves of one."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import check_chunk
from lazytiles.errors import StoreError, require
from lazytiles.images import open_plain, refuse_bomb, split_name
from lazytiles.stores.formats.base import Format, Layout, Reader, crcs_of, refuse_holes

_WORD = 2**32 - 1
_SUPERBLOCK = 48  # bytes, of its version 3 with addresses of 8
DATASET = "data"


def _group_of(name: str) -> str:
    """The group of the members of a dataset."""
    return "lazytiles" if name == DATASET else f"lazytiles/{name}"


def _opened(path: Path) -> Any:
    os.close(open_plain(path))
    return require("h5py", extra="hdf5").File(path, "r", rdcc_nbytes=0)


def _in_file(group: Any, name: str) -> Any:
    """What a group holds under a name, None for nothing; a StoreError for what may lie in other files."""
    h5py = require("h5py", extra="hdf5")
    for part in name.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise StoreError(f"{group.file.filename}: {name!r} is a link, so that it may lie in other files; refused")
        group = group[part]
    return group


def _copy_others(h5py: Any, source: Any, target: Any, dataset: str) -> None:
    """Copy what a file holds but a dataset and its members; links stay links."""
    members = f"/{_group_of(dataset)}"
    own, held = {f"/{dataset}"}, _in_file(source, members[1:])
    if held is not None:
        own |= {f"{members}/{name}" for name in held if isinstance(_in_file(held, name), h5py.Dataset)}
        own |= {"/labels"} if dataset == DATASET and "labels.npy" in held else set()
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


class HDF5Reader(Reader):
    """An HDF5 store, or a killed writer's partial; the path may name a dataset, as in ``tiles.h5::images``."""

    def __init__(self, path: Path, layout: Layout | None = None, notes: Sequence[int] = ()) -> None:
        file, inner = split_name(str(path))
        self._path, self._name = Path(file), inner or DATASET
        if layout is not None:
            _end_writing(self._path)
        self._file = _opened(self._path)
        try:
            self._data = self._own(self._file, self._name)
            self.shape, self.dtype = self._data.shape, self._data.dtype
            if self._data.chunks is not None:
                check_chunk(path, self._data.chunks, self.dtype)
        except BaseException:
            self.close()
            raise
        self._sound: set[int] = set()  # chunks that are known not to unpack to more than they should

    def _own(self, group: Any, name: str) -> Any:
        """A dataset that lies in this file."""
        h5py = require("h5py", extra="hdf5")
        item = _in_file(group, name)
        if not isinstance(item, h5py.Dataset):
            there = ", ".join(sorted(group)) or "nothing"
            raise StoreError(f"{self._path} has no dataset {name!r}; it has {there}")
        if item.is_virtual or item.external:
            raise StoreError(f"{self._path}: its dataset {name!r} is virtual or external, in other files; refused")
        return item

    def read(self, start: int, stop: int) -> NDArray[Any]:
        chunks = self._data.chunks
        if chunks is not None:
            for number in {*range(start // chunks[0], -(-stop // chunks[0]))} - self._sound:
                inner = (range(0, n, c) for n, c in zip(self.shape[1:], chunks[1:], strict=True))
                for place in itertools.product((number * chunks[0],), *inner):
                    refuse_bomb(self._path, self._data, place)
                self._sound.add(number)
        return np.asarray(self._data[start:stop])

    def members(self) -> Mapping[str, bytes]:
        h5py = require("h5py", extra="hdf5")
        group, found = _in_file(self._file, _group_of(self._name)), {}
        for name in () if group is None else group:
            if isinstance(_in_file(group, name), h5py.Group):
                continue  # the members of another dataset
            held = self._own(group, name)
            if held.dtype != np.uint8 or held.chunks is not None or held.id.get_storage_size() != held.size:
                raise StoreError(
                    f"{self._path} is damaged: its {name} claims {held.size} {held.dtype} that are not there"
                )
            refuse_holes(self._path, os.stat(self._path), held.size)
            found[name] = held[()].tobytes()
        return found


class HDF5Format(Format):
    """Rows in a dataset of an HDF5 file, ``data`` if not named, and members in its group ``lazytiles``.

    Among the options, `dataset` names another, whose members lie in the group ``lazytiles/NAME``, and `others` the
    file whose other datasets are kept.
    """

    name = "hdf5"
    suffixes = (".h5", ".hdf5")
    mark = b"\x89HDF"
    reader = HDF5Reader
    continues = False
    has_datasets = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._name = self._options.pop("dataset", None) or DATASET
        self._others: Path | None = self._options.pop("others", None)

    @classmethod
    def placed(cls, path: str, inner: str | None, options: Mapping[str, Any], mode: str) -> Mapping[str, Any]:
        # What else is in the file stays, unless a file of one dataset is written anew.
        if inner is not None and inner.split("/")[0] in ("", "lazytiles", "labels"):
            raise StoreError(f"{path}: a dataset is named behind ::, such as images, but not lazytiles or labels")
        others = Path(split_name(path)[0]) if inner is not None or mode == "a" else None
        return {**options, "dataset": inner, "others": others}

    def is_in(self, path: Path) -> bool:
        with _opened(path) as file:
            return _in_file(file, self._name) is not None

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
        # No chunk cache: chunks go to the disk when they are written, and a full disk shows at once.
        # Single-writer mode keeps what has been flushed readable when the process is killed.
        h5py = require("h5py", extra="hdf5")
        self._path = path
        self._file = h5py.File(path, "x", libver=("v110", "v110"), rdcc_nbytes=0)
        self._data = self._file.create_dataset(
            self._name,
            shape=(0, *layout.shape),
            maxshape=(None, *layout.shape),
            chunks=(layout.chunk, *layout.shape),
            dtype=layout.dtype,
            **{"compression": "lzf", "fletcher32": True} | self._options,
        )
        self._file.swmr_mode = True

    def put(self, start: int, rows: NDArray[Any]) -> list[tuple[int, int]]:
        self._data.resize(start + len(rows), axis=0)
        crcs = crcs_of(rows, self._data.chunks[0])
        self._data[start : start + len(rows)] = rows
        return [(crc, 0) for crc in crcs]

    def sync(self) -> None:
        self._data.flush()

    def finish(self, rows: int, members: Mapping[str, bytes]) -> None:
        h5py = require("h5py", extra="hdf5")
        self.close()
        with h5py.File(self._path, "r+", libver=("v110", "v110"), rdcc_nbytes=0) as file:
            if self._others is not None and self._others.exists():
                with _opened(self._others) as others:
                    _copy_others(h5py, others, file, self._name)
            if "labels.npy" in members and self._name == DATASET:
                labels = np.load(io.BytesIO(members["labels.npy"]))
                if labels.dtype.kind in "biufc":
                    file.create_dataset("labels", data=labels, fletcher32=labels.size > 0)
            group = file.require_group(_group_of(self._name))
            for name, content in members.items():
                group.create_dataset(name, data=np.frombuffer(content, np.uint8))

    def inherit(self, store: Path) -> None:
        with _opened(store) as file:
            data = file[self._name]
            held = {"shuffle": data.shuffle, "fletcher32": data.fletcher32}
            if "compression" not in self._options:
                held |= {"compression": data.compression, "compression_opts": data.compression_opts}
        self._options = held | self._options


def _end_writing(path: Path) -> None:
    """Say in a killed writer's file that nobody writes it any more, as the tool ``h5clear`` does.

    Opened as one that is still written (in single-writer mode), HDF5 asks for ever anew for bytes that are damaged.
    Its first bytes are those of the HDF5 file format, II.A, version 3.
    """
    fd = open_plain(path, os.O_RDWR, links=False)
    try:
        block, size = bytearray(os.pread(fd, _SUPERBLOCK, 0)), os.fstat(fd).st_size
        mode = (b"\x89HDF\r\n\x1a\n", 3, 8)
        is_sound = len(block) == _SUPERBLOCK and (bytes(block[:8]), block[8], block[9]) == mode
        if not is_sound or lookup3(bytes(block[:-4])) != int.from_bytes(block[-4:], "little"):
            raise StoreError(f"{path}: its first bytes are damaged")
        block[11] = 0
        block[28:36] = size.to_bytes(8, "little")
        block[-4:] = lookup3(bytes(block[:-4])).to_bytes(4, "little")
        os.pwrite(fd, bytes(block), 0)
    finally:
        os.close(fd)


def lookup3(content: bytes) -> int:
    """Bob Jenkins' checksum `hashlittle`, which HDF5 has over its metadata.

    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """
    state = [0xDEADBEEF + len(content) & _WORD] * 3
    words = [int.from_bytes(content[at : at + 4], "little") for at in range(0, len(content), 4)]
    words += [0] * (-len(words) % 3)

    def rotated(word: int, bits: int) -> int:
        return (word << bits | word >> 32 - bits) & _WORD

    for first in range(0, len(words), 3):
        state = [one + word & _WORD for one, word in zip(state, words[first : first + 3], strict=True)]
        for k, bits in enumerate((4, 6, 8, 16, 19, 4) if first + 3 < len(words) else ()):
            this, before, after = k % 3, (k - 1) % 3, (k + 1) % 3
            state[this] = (state[this] - state[before] & _WORD) ^ rotated(state[before], bits)
            state[before] = state[before] + state[after] & _WORD
    state = [state[2], *state[:2]]
    for k, bits in enumerate((14, 11, 25, 16, 4, 14, 24)):
        this, before = k % 3, (k - 1) % 3
        state[this] = (state[this] ^ state[before]) - rotated(state[before], bits) & _WORD
    return state[0]
