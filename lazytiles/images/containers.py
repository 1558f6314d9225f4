"""HDF5 and Zarr arrays as pages: each chunk is a segment, read through the library that wrote it."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import check_chunk
from lazytiles.errors import RegionError, require
from lazytiles.images.cache import segment_cache
from lazytiles.images.files import FileKey, open_plain, pool
from lazytiles.images.page import Page, readable
from lazytiles.images.pictures import (
    PICTURES,
    Pages,
    one_page,
    picture_format,
    picture_pages,
    plain_dtype,
    planes_of,
    split_name,
    split_shape,
)

_ZARR = ("zarr.json", ".zarray")
GROUPS = ("zarr.json", ".zattrs", ".zgroup")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_HEAD = 65536  # bytes
_WHOLE = 512  # segments of an array without chunks, pixels
_BLOSC = (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05")  # versions of its format, the first byte of a chunk
_DEFLATE = 1032  # the most bytes that one of a deflate stream unpacks to
_SOUND: set[tuple[Any, ...]] = set()  # chunks of HDF5 files that are known to be no bombs
_MOST_SOUND = 2**16
MOST_FACTS = 4 * 2**20  # bytes of a file of metadata
_SLACK = 4  # times a chunk's own bytes, by which codecs in a row may make them more


def identify(name: str) -> tuple[FileKey, str | None]:
    """The file that a name means, opened and known, and the dataset in it.

    A Zarr array is known by its metadata file, and ``store.zarr::inner`` names an array in a group.
    """
    path, inner = split_name(name)
    folder = path if inner is None else os.path.join(path, inner)
    try:
        return pool.identify(path), inner
    except RegionError:  # asked before whether it is a folder, each file would cost a look more
        if not os.path.isdir(path):
            raise
    if inner is not None and not os.path.realpath(folder).startswith(os.path.realpath(path) + os.sep):
        raise RegionError(f"{name}: the array does not lie in {path}")
    facts = (os.path.join(folder, name) for name in dict.fromkeys(_ZARR + GROUPS))
    return pool.identify(next(filter(os.path.isfile, facts), folder)), inner


def other_pages(key: FileKey, inner: str | None, page: int | str | None, axes: str | None = None) -> Pages | None:
    """The pages of a file that is not a TIFF, and its leading axes; None for a TIFF.

    `identify` gave `key` and `inner`, `split_shape` says what `axes` are. Files of pictures have several pages; arrays
    have one, whose slices are always stacked.
    """
    head = pool.read(key, 0, min(key.size, 16))
    if inner is None and head.startswith((b"II", b"MM")):
        return None
    is_zarr = os.path.basename(key.path) in _ZARR
    if is_zarr or head.startswith(_HDF5):
        inner = None if is_zarr else inner
        with opened(key, inner) as array, readable(key, "Zarr array" if is_zarr else "HDF5 file"):
            is_mapped = not (is_zarr or array.chunks or array.dtype.kind == "b")
            offset = array.id.get_offset() if is_mapped else None
            pages = array_pages(key, inner, array.shape, array.dtype, axes, chunks=array.chunks, offset=offset)
    elif inner is not None:
        raise RegionError(f"{key.path}: is no HDF5 file, so there is no dataset {inner!r} in it")
    elif head.startswith(_NPY):
        pages = npy_pages(key, axes)
    elif (picture := picture_format(head)) is not None:
        if axes is not None:
            said = f"axes={axes!r} are of arrays and TIFFs; a {picture} file has rows and columns"
            raise RegionError(f"{key.path}: {said}")
        return picture_pages(key, _head(key), picture, page)
    else:
        said = f"begins with {head[:8]!r}" if head else "is empty"
        raise RegionError(f"{key.path}: {said}; TIFF, {', '.join(PICTURES)}, .npy, HDF5 and Zarr are read")
    if page not in (None, 0, "all"):
        raise RegionError(f"{key.path}: holds one array, no page {page}; slices are taken by an index")
    return pages


@dataclass(frozen=True, slots=True)
class Chunks:
    """Decodes segments by reading an array through its library; decoded chunks are shared by its slices."""

    key: FileKey
    inner: str | None  # the dataset in the file
    slices: tuple[tuple[int, int], ...]  # of each axis before the rows: which slice the page is, how many a chunk has
    shape: tuple[int, int, int]  # (height, width, samples) of the page
    segment: tuple[int, int]  # (height, width), pixels
    dtype: np.dtype[Any]  # native
    strips: None = None
    ends_early: bool = False

    def __call__(self, data: bytes | memoryview, index: int, row: int, column: int) -> NDArray[Any]:
        """The segment as an array (height, width, samples)."""
        first = tuple(at // depth * depth for at, depth in self.slices)
        y, x = row * self.segment[0], column * self.segment[1]
        height, width = min(self.segment[0], self.shape[0] - y), min(self.segment[1], self.shape[1] - x)
        lead = [slice(start, start + depth) for start, (_, depth) in zip(first, self.slices, strict=True)]

        def decoded() -> NDArray[Any]:
            with opened(self.key, self.inner) as array:
                if hasattr(array, "compression") and array.chunks is not None:
                    self._refuse_bombs(array, (*first, y, x))
                block = np.asarray(array[(*lead, slice(y, y + self.segment[0]), slice(x, x + self.segment[1]))])
                # Of a mapped file a copy is kept, never the map.
                block = block.astype(self.dtype, copy=isinstance(array, np.memmap))
            return block.reshape(*block.shape[: len(lead)], height, width, self.shape[2])

        name = (self.key, f"{self.inner} chunk {first}", index)
        is_shared = any(depth > 1 for _, depth in self.slices)
        chunk = segment_cache.once(name, decoded) if is_shared else decoded()
        slab: NDArray[Any] = chunk[tuple(at - start for start, (at, _) in zip(first, self.slices, strict=True))]
        return slab

    def _refuse_bombs(self, array: Any, place: tuple[int, ...]) -> None:
        """Look once at each chunk of a segment, of which there are several where its samples are in several."""
        behind = zip(array.shape[len(place) :], array.chunks[len(place) :], strict=True)
        for more in itertools.product(*(range(0, n, step) for n, step in behind)):
            chunk = (self.key, self.inner, *place, *more)
            if chunk not in _SOUND:
                refuse_bomb(self.key.path, array, (*place, *more))
                if len(_SOUND) >= _MOST_SOUND:
                    _SOUND.clear()
                _SOUND.add(chunk)


def refuse_bomb(where: object, array: Any, place: tuple[int, ...]) -> None:
    """Refuse a chunk of an HDF5 dataset that has more bytes than it should, packed or not.

    The filters take what memory they need for it. Its place is its first index along each axis.
    """
    if not array.compression:
        return
    most, stored = math.prod(array.chunks) * array.dtype.itemsize, array.id.get_chunk_info_by_coord(place)
    is_bomb = stored.size > 2 * most + 2**16
    if array.compression == "gzip" and not is_bomb and stored.size * _DEFLATE > _SLACK * most:
        # Not by `read_direct_chunk`: h5py does not lock it against other calls, so with threads it fails or crashes.
        packed = os.pread(array.file.id.get_vfd_handle(), stored.size, stored.byte_offset)
        is_bomb = _inflated(packed, most + 1, most + 16) > most + 16
    if is_bomb:
        raise RegionError(f"{where}: is damaged: its chunk at {place} has more than {most} bytes")


@contextmanager
def opened(key: FileKey, inner: str | None) -> Iterator[Any]:
    """The array of a file, open for as long as the block lasts; one that lies in another file is refused."""
    if os.path.basename(key.path) in _ZARR:
        with readable(key, "Zarr array"):
            array = open_zarr(os.path.dirname(key.path))
        yield array
    elif pool.read(key, 0, len(_NPY)) == _NPY:
        yield np.load(key.path, mmap_mode="r", allow_pickle=False)
    else:
        h5py = require("h5py", extra="hdf5")
        with readable(key, "HDF5 file"):
            file = h5py.File(key.path, "r")
        with file:
            with readable(key, "HDF5 file"):
                array = _dataset(h5py, key, file, inner)
            yield array


def open_zarr(folder: str | os.PathLike[str], **options: Any) -> Any:
    """The Zarr array in a folder, to be read; of its files only regular ones inside the folder are opened.

    A link, another kind of file, or a codec that runs what it finds is a RegionError, in a chunk when that is read; a
    chunk that exceeds `max_segment_bytes` decoded is a LimitError.
    """
    zarr = require("zarr", extra="zarr")
    store = _inside()(os.fspath(folder), read_only=True)
    array = zarr.open_array(store=store, mode="r", **options)
    facts = array.metadata.to_dict()
    if "pickle" in str([facts.get(name) for name in ("codecs", "filters", "compressor", "compressors")]):
        raise RegionError(f"{folder}: is packed by a codec that runs what it finds (pickle); refused")
    check_chunk(folder, array.chunks, np.dtype(array.dtype))
    store.packed = _Packed.of(array, facts)
    return array


@dataclass(frozen=True, slots=True)
class _Packed:
    """How the chunks of a Zarr array lie in its files."""

    most: int  # bytes of a chunk
    count: int  # chunks of a file
    packer: str | None  # what packs them last, by its name in the metadata, if anything does
    # Bytes of a shard's table: 16 a chunk, and what checks them; 0 where each chunk is a file, or it is packed too.
    index: int = 0
    is_first: bool = False  # whether the table comes before the chunks

    @classmethod
    def of(cls, array: Any, facts: dict[str, Any]) -> _Packed:
        most, count = math.prod(array.chunks) * np.dtype(array.dtype).itemsize, 1
        codecs, index, is_first = facts.get("codecs", [facts.get("compressor")]), 0, False
        if array.shards:
            count = math.prod(array.shards) // math.prod(array.chunks)
            shard: dict[str, Any] = next(codec["configuration"] for codec in codecs if "shard" in codec["name"])
            codecs, is_first = shard["codecs"], "start" in str(shard["index_location"])
            names = [codec["name"] for codec in shard["index_codecs"]]
            index = {("bytes",): 16 * count, ("bytes", "crc32c"): 16 * count + 4}.get(tuple(names), 0)
        packed = [codec.get("name", codec.get("id")) for codec in codecs if codec and "crc32c" not in str(codec)]
        return cls(most, count, packed[-1] if packed else None, index, is_first)

    @property
    def limit(self) -> int:
        """Bytes that are too many for a chunk, however it is packed."""
        return _SLACK * max(self.most, 2**16)

    def check(self, path: str, held: memoryview, *, is_file: bool) -> None:
        """Refuse a chunk, or a file of them, that unpacks to more than it should."""
        parts = [held]
        if self.index and is_file:
            table = held[: self.index] if self.is_first else held[-self.index :]
            spans = np.frombuffer(table[: 16 * self.count], "<u8").reshape(-1, 2).tolist()
            parts = [held[start : start + size] for start, size in spans if start + size <= len(held)]
        for part in parts:
            claimed = 0
            if self.packer in ("blosc", "zstd"):
                claimed = unpacked(bytes(part[:32]))
            elif self.packer in ("gzip", "zlib") and len(part) * _DEFLATE > self.limit:
                claimed = _inflated(part, self.most + 2**16, self.limit)
            if claimed > self.limit:
                raise RegionError(
                    f"{path}: is damaged: {self.most} bytes at most are expected, and {claimed} are claimed"
                )


def _inflated(data: Any, step: int, limit: int) -> int:
    """How many bytes some streams of gzip or zlib, one behind the other, unpack to, counted to a limit."""
    total = 0
    with suppress(zlib.error):  # what could not be packed smaller is stored as it is; else the codec will say it
        while len(data) and total <= limit:
            unpacker = zlib.decompressobj(47)
            while len(data) and total <= limit and not unpacker.eof:
                total += len(unpacker.decompress(data, step))
                data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    return total


@lru_cache(maxsize=1)
def _inside() -> Any:
    """A Zarr store that opens only regular files in its folder, and no chunk that unpacks to more than one."""
    local = require("zarr.storage", extra="zarr").LocalStore

    class Inside(local):  # type: ignore[misc,valid-type]
        packed: _Packed | None = None  # once it is known

        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            path, packed = os.path.join(self.root, key), self.packed
            is_facts = os.path.basename(path).startswith((".z", "zarr.json"))
            if os.path.lexists(path) and not os.path.isdir(path):
                most = MOST_FACTS if is_facts else packed.count * packed.limit if packed is not None else None
                _check_member(path, os.fspath(self.root), most)
            held = await super().get(key, prototype, byte_range)
            if held is not None and packed is not None and not is_facts:
                packed.check(path, memoryview(held.as_numpy_array()).cast("B"), is_file=byte_range is None)
            return held

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
            return [await self.get(key, prototype, span) for key, span in key_ranges]

    return Inside


def _check_member(path: str, folder: str, most: int | None) -> None:
    """Refuse what a Zarr array has no business to be: a link, a FIFO, a file of more bytes than its chunks have."""
    if os.path.realpath(path) != os.path.join(os.path.realpath(folder), os.path.relpath(path, folder)):
        raise RegionError(f"{path}: goes through a link, which may lead anywhere; refused")
    try:
        fd = open_plain(path, links=False)
    except OSError as error:
        raise RegionError(f"{path}: cannot be opened: {error}") from error
    size = os.fstat(fd).st_size
    os.close(fd)
    if most is not None and size > most:
        raise RegionError(f"{path}: is damaged: {most} bytes at most are expected, and {size} are there")


def unpacked(head: bytes) -> int:
    r"""How many bytes a chunk says that it unpacks to, by its first 32 bytes: of Zstandard and Blosc; else 0.

    RFC 8878 section 3.1.1.1; C-Blosc2, `README_CHUNK_FORMAT.rst`.

    >>> unpacked(b"\x28\xb5\x2f\xfd\xa0\x00\x00\x01\x00"), unpacked(b"\x02\x01\x21\x01\x00\x10\x00\x00")
    (65536, 4096)
    """
    if head[:4] == b"\x28\xb5\x2f\xfd" and len(head) > 4:
        flags = head[4]
        at = 5 + (0 if flags & 32 else 1) + (0, 1, 2, 4)[flags & 3]
        size = (1 if flags & 32 else 0, 2, 4, 8)[flags >> 6]
        return int.from_bytes(head[at : at + size], "little") + (256 if size == 2 else 0)
    return int.from_bytes(head[4:8], "little") if head[:1] in _BLOSC and len(head) >= 8 else 0


def _dataset(h5py: Any, key: FileKey, file: Any, inner: str | None) -> Any:
    at = file
    for part in (inner or "").strip("/").split("/"):
        link = at.get(part, getlink=True) if isinstance(at, h5py.Group) and part else None
        if isinstance(link, h5py.ExternalLink):
            raise RegionError(f"{key.path}: dataset {inner!r} lies in another file, {link.filename}; refused")
        if isinstance(link, h5py.SoftLink):
            raise RegionError(f"{key.path}: {part!r} is a link to {link.path}; name that dataset itself")
        at = None if link is None else at[part]
    if not isinstance(at, h5py.Dataset):
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        there = ", ".join(found[:8]) or "none"
        raise RegionError(
            f"{key.path}: has no dataset {inner!r}; it has {there}: name one, as in {os.path.basename(key.path)}::NAME"
        )
    if at.is_virtual or at.external:
        raise RegionError(f"{key.path}: dataset {inner!r} lies in other files; refused")
    return at


def datasets(path: str) -> list[str]:
    """The arrays of two axes or more in an HDF5 file or a Zarr store, by name; of those that lazytiles wrote, none.

    A Zarr store that opens as a whole, an array or the levels of one image (NGFF), is the empty name.
    """
    if os.path.isdir(path):
        return sorted(_zarr_arrays(path))
    h5py, found = require("h5py", extra="hdf5"), list[str]()

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim > 1 and item.dtype.kind in "biufc":
            found.append(name)

    key = pool.identify(path)
    with readable(key, "HDF5 file"), h5py.File(path, "r") as file:
        if "lazytiles" not in file:
            file.visititems(look)  # which follows no links
    return sorted(found)


def _zarr_arrays(store: str) -> Iterator[str]:
    for at, folders, files in os.walk(store):
        facts: dict[str, Any] = {}
        for name in {*_ZARR, ".zattrs"}.intersection(files):
            key = pool.identify(os.path.join(at, name))
            with readable(key, "Zarr store"):
                facts |= json.loads(pool.read(key, 0, min(key.size, MOST_FACTS)))
        attributes = facts.get("attributes", {})
        is_image = "multiscales" in facts or "multiscales" in attributes.get("ome", attributes)
        if (is_image or len(facts.get("shape", ())) > 1) and "lazytiles" not in folders:
            yield "" if at == store else os.path.relpath(at, store).replace(os.sep, "/")
        if is_image or "shape" in facts:
            folders.clear()


def npy_pages(key: FileKey, axes: str | None = None) -> Pages:
    """The slices of a `.npy` file, mapped; of a local one that is stored column by column, gathered block by block."""
    file = io.BytesIO(_head(key))
    with readable(key, ".npy file"):
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, stored = read(file)
    _check_room(key, math.prod(shape) * plain_dtype(key.path, stored).itemsize, file.tell())
    offset = None if fortran and len(shape) > 1 else file.tell()
    if offset is None and key.is_remote:
        raise RegionError(
            f"{key.path}: is stored column by column (Fortran order), which is read from local files only; save "
            "np.ascontiguousarray of it instead"
        )
    return array_pages(key, None, shape, stored, axes, offset=offset)


def _head(key: FileKey) -> bytes:
    return pool.read(key, 0, min(key.size, _HEAD))


def _check_room(key: FileKey, nbytes: int, offset: int) -> None:
    """Refuse a file that ends before its samples do."""
    if offset + nbytes > key.size:
        raise RegionError(f"{key.path}: {nbytes} bytes at {offset} are cut short: the file has {key.size}")


def array_pages(
    key: FileKey,
    inner: str | None,
    shape: tuple[int, ...],
    stored: np.dtype[Any],
    axes: str | None,
    *,
    chunks: tuple[int, ...] | None = None,
    offset: int | None = None,
) -> Pages:
    """The slices of an array: mapped where its samples lie one after the other, in C order, else chunk by chunk.

    Its dtype in the file is `stored`; a mapped one has an `offset`, bytes, of its first sample.
    """
    name = "" if inner is None else f"::{inner}"
    dtype = plain_dtype(f"{key.path}{name}", stored)
    form = split_shape(f"{key.path}{name}", shape, axes)
    size, count, (height, width, _) = math.prod(form.inner) * dtype.itemsize, math.prod(form.lead), form.inner
    if chunks is None:
        chunks = (1,) * form.before + (_WHOLE,) * 2
    segment, depths = (min(chunks[form.before], height), min(chunks[form.before + 1], width)), chunks[: form.before]
    if offset is not None:
        _check_room(key, count * size, offset)
    else:  # chunks that are too large with all their slices are refused as large ones of one slice are
        deep = (segment[0] * math.prod(depths), segment[1])
        one_page(key, f"{key.path}{name}", form.inner, dtype, samples_axis=False, segment=deep, size=1)

    def page(k: int) -> Page:
        how: dict[str, Any]
        index = tuple(map(int, np.unravel_index(k, form.lead)))
        if offset is not None:
            how = {"raw": offset + k * size, "stored": stored}
        else:
            slices = tuple(zip(index[: form.before], depths, strict=True))
            codec = Chunks(key, inner, slices, form.inner, segment, dtype)
            how = {"codec": codec, "segment": segment, "size": 1}
        number = f"{name}{list(index) if index else ''}"
        return one_page(key, number, form.inner, dtype, samples_axis=form.has_samples, **how)

    return planes_of(count, page), form.axes, form.lead
