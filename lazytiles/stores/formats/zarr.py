"""Stores in Zarr 3, in which each chunk is a file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import RegionError, StoreError, require
from lazytiles.images import open_zarr, unlinked, write_new
from lazytiles.stores.formats.base import Format, Layout, Reader, crcs_of, refuse_holes

# Zarr's shape is set when the array is complete; chunks are named by position, so any large number does.
_ROOM = 2**40


@contextmanager
def _of_store() -> Iterator[None]:
    """Turns the errors of a region in a store into those of a store."""
    try:
        yield
    except RegionError as error:
        raise StoreError(str(error)) from error


class ZarrReader(Reader):
    """A Zarr store, or a killed writer's partial."""

    holds = False
    is_shared = True

    def __init__(self, path: Path, layout: Layout | None = None, notes: Sequence[int] = ()) -> None:
        self._path = path
        with _of_store():
            self._array = open_zarr(path, zarr_format=3)
        self.shape, self.dtype = self._array.shape, self._array.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        with _of_store():
            return np.asarray(self._array[start:stop])

    def members(self) -> Mapping[str, bytes]:
        place, found = self._path / "lazytiles", {}
        if place.is_symlink():
            raise StoreError(f"{place}: is a link, which may lead anywhere; refused")
        for member in sorted(place.iterdir()) if place.is_dir() else ():
            with open(member, "rb", opener=unlinked) as file:
                facts = os.fstat(file.fileno())
                refuse_holes(member, facts, facts.st_size)
                found[member.name] = file.read()
        return found


class ZarrFormat(Format):
    """Rows in a Zarr 3 array at the root of the directory, members as files under its ``lazytiles``."""

    name = "zarr"
    suffixes = (".zarr",)
    reader = ZarrReader
    is_scattered = True

    def create(self, path: Path, layout: Layout, length: int | None) -> None:
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
        crcs = crcs_of(rows, self._chunk)
        missing = len(crcs) * self._chunk - len(rows)
        if missing:
            rows = np.concatenate([rows, self._layout.blank(missing)])
        self._array[start : start + len(rows)] = rows
        return [(crc, 0) for crc in crcs]

    def finish(self, rows: int, members: Mapping[str, bytes]) -> None:
        self._set_length(rows)
        for leftover in self._path.rglob("*.partial"):
            leftover.unlink()
        place = self._path / "lazytiles"
        place.mkdir(exist_ok=True)
        for name, content in members.items():
            write_new(place / name, content)

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

    def _set_length(self, rows: int) -> None:
        description = self._path / "zarr.json"
        facts = json.loads(description.read_text())
        facts["shape"][0] = rows
        fresh = self._path / "zarr.json.partial"
        write_new(fresh, json.dumps(facts, indent=2).encode())
        fresh.replace(description)


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
