"""Regions and tiles as dask arrays: graphs made from tags and tables alone, pixels read where the tasks run.

A task carries what it reads (paths, their sizes and times, windows) in under 2 kB, and no open file. The
process that runs it opens each region once and reads through its own cache and descriptors.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import math
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.arrays.region_tiles import RegionTiles, stamp
from lazytiles.errors import RegionError
from lazytiles.images import Region, pool

if TYPE_CHECKING:
    import dask.array as da


CHUNK_BYTES = 16 * 2**20
TASK_BYTES = 1500  # of the packed windows of a task; the rest of 2 kB is dask's
FEW_SAMPLES = 8  # a region, below which a chunk takes several regions
MOST_OPEN = 1024  # regions whose tags a worker keeps


@dataclass(frozen=True, slots=True)
class Known:
    """An image as a task carries it: what opens it, and how to tell that it is still the same file."""

    function: Callable[..., Region]
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()
    stamp: tuple[int, int] = (0, 0)  # zeros: the function looks itself, or nobody can tell

    def __call__(self) -> Region:
        """The image, opened once in a process; a LazyTilesError where it has changed since the graph was built."""
        region = _opened(self)
        try:
            pool.check(region.pages[0].file)
        except RegionError:  # it was opened before it became what the graph means, or has changed since
            _opened.cache_clear()
            return _opened(self)
        return region


@lru_cache(MOST_OPEN)
def _opened(known: Known) -> Region:
    region = known.function(*known.args, **dict(known.options))
    key = region.pages[0].file
    if known.stamp[0] and (key.size, key.mtime_ns) != known.stamp:
        raise key.changed()
    return region


def region_to_dask(region: Any, chunks: Any = None) -> da.Array:
    """A region, or another lazy array of images, as a dask array of the same shape and dtype; no pixel is read.

    Chunks are as dask takes them; by default segments joined to some 16 MiB. The name is a function of file and view,
    so two of one region share their tasks.

    >>> from lazytiles import open_region
    >>> from lazytiles.cli.demo import make_data
    >>> make_data("made", regions=1, size=64, tile=32)
    >>> array = open_region("made/Images/2016/1225.tif").to_dask(chunks=(32, 64, 3))
    >>> array.numblocks, bool((array == np.asarray(open_region("made/Images/2016/1225.tif"))).all().compute())
    ((2, 1, 1), True)
    """
    array = importlib.import_module("dask.array")
    if chunks is None:  # whole segments, rows of them first
        page = region.pages[0] if isinstance(region, Region) else None
        steps, axes = list(region.chunks), region.axes
        if page is not None and page.raw_offsets is not None:
            steps[axes.index("Y")] = 1  # uncompressed rows are read one by one
        room = CHUNK_BYTES // max(1, math.prod(steps) * region.dtype.itemsize)
        inner = [axes.index(letter) for letter in "SXY" if letter in axes]
        for axis in [*inner, *(k for k in reversed(range(len(steps))) if k not in inner)]:
            times = max(1, min(room, -(-region.shape[axis] // steps[axis])))
            steps[axis] = min(region.shape[axis], steps[axis] * times)
            room //= times
        chunks = tuple(steps)
    chunks = _normal(array, chunks, region, tuple((step,) for step in region.chunks))
    if not isinstance(region, Region) or not region._reopen:
        return array.from_array(region, chunks=chunks, meta=_meta(region), asarray=False)
    function, (key, *rest) = region.__reduce__()
    # Each host numbers the files of a shared file system in its own way.
    known = Known(function, (replace(key, device=0, inode=0, ctime_ns=0), *rest))
    name = f"lazytiles-region-{hashlib.sha256(repr((known.args, chunks)).encode()).hexdigest()[:32]}"
    starts = [np.cumsum([0, *sizes]).tolist() for sizes in chunks]
    graph = {}
    for block in np.ndindex(*map(len, chunks)):
        part = tuple(slice(at[k], at[k + 1]) for at, k in zip(starts, block, strict=True))
        graph[(name, *block)] = (read_part, known, part)
    return array.Array(graph, name, chunks, dtype=region.dtype, meta=_meta(region))


def _normal(array: Any, chunks: Any, source: Any, previous: Any = None) -> tuple[tuple[int, ...], ...]:
    """Chunks as dask writes them; a text such as "1 MiB" says bytes, "auto" means some 16 MiB."""
    limit = CHUNK_BYTES if not isinstance(chunks, str) or chunks == "auto" else None
    try:
        found: tuple[tuple[int, ...], ...] = array.core.normalize_chunks(
            chunks, source.shape, limit, source.dtype, previous
        )
    except ZeroDivisionError:
        raise ValueError(f"chunks={chunks!r} do not fit the shape {tuple(source.shape)}: a size is 0") from None
    return found


def _meta(source: Any) -> NDArray[Any]:
    return np.empty((0,) * len(source.shape), source.dtype)


def read_part(known: Known, key: tuple[slice, ...]) -> NDArray[Any]:
    """A block of a region, in the process that wants it."""
    part: NDArray[Any] = known()[key]
    return part


def tiles_to_dask(tiles: MultiSourceArray, chunks: Any = None) -> da.Array:
    """The samples as a dask array in their current order; no pixel is read and no image is opened.

    Where the order follows the regions, each chunk holds tiles of one region, or of a few small ones. Where it
    does not (the array is shuffled, or the table mixes its regions) the chunks lie by region underneath and
    `dask.array.take` puts the samples into their order on top. That is right, but every chunk of the result may
    depend on every chunk underneath: call ``reset_order()`` first where the order does not matter.

    `chunks` are samples of a chunk, or as dask takes them for all axes; by default some 16 MiB, of one region, and few
    enough that a task stays under 2 kB. Chunks that hold the same tiles have the same names.
    """
    array = importlib.import_module("dask.array")
    pairs = tiles.index_pairs
    sources = int(np.count_nonzero(np.diff(pairs[:, 0]))) + 1
    if not len(tiles):
        return array.empty(tiles.shape, dtype=tiles.dtype, chunks=tiles.shape)
    follows = sources <= 2 * len(np.unique(pairs[:, 0]))
    sizes = None
    if chunks is not None:
        if isinstance(chunks, int | np.integer) and chunks > 0:
            chunks = (chunks, *tiles.shape[1:])
        chunks = _normal(array, chunks, tiles)
        sizes = chunks[0] if follows else None
    order = np.arange(len(tiles)) if follows else np.lexsort((pairs[:, 1], pairs[:, 0]))
    base = _in_order(array, tiles, order, pairs[order], sizes)
    if not follows:
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        base = array.take(base, back, axis=0)
    return base if chunks is None else base.rechunk(chunks)


def _in_order(
    array: Any, tiles: MultiSourceArray, order: Int64s, pairs: Int64s, sizes: Sequence[int] | None
) -> da.Array:
    """The samples `pairs`, which stand at the positions `order`, as one dask array."""
    if tiles.form is None or not all(_is_plain(source) for source in tiles.sources):
        return _joined(array, tiles, pairs)
    packer = _Packer(tiles, order, pairs)
    if sizes is None:
        cuts = _cuts(pairs[:, 0], tiles.nbytes // len(tiles))
    else:
        cuts = [(stop - n, stop) for n, stop in zip(sizes, np.cumsum(sizes).tolist(), strict=True) if n]
    parts = [part for cut in cuts for part in packer.packed(*cut, split=sizes is None)]
    name = f"lazytiles-tiles-{packer.digest.hexdigest()[:32]}"
    tail = (0,) * (len(tiles.shape) - 1)
    graph = {(name, k, *tail): (read_tiles_of, data) for k, (_, data) in enumerate(parts)}
    chunks = (tuple(length for length, _ in parts), *((n,) for n in tiles.shape[1:]))
    return array.Array(graph, name, chunks, dtype=tiles.dtype, meta=_meta(tiles))


def _is_plain(source: Any) -> bool:
    """Whether a source is windows of images, each opened by its path."""
    openers = getattr(source, "regions", ())
    return isinstance(source, RegionTiles) and all(
        opener is None or (isinstance(opener, partial) and isinstance(opener.args[0], str)) for opener in openers
    )


def _joined(array: Any, tiles: MultiSourceArray, pairs: Int64s) -> da.Array:
    """Samples of other sources: each run of one source by its own dask array."""
    made: dict[int, Any] = {}
    runs = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    parts = []
    for start, stop in zip(runs.tolist(), [*runs[1:].tolist(), len(pairs)], strict=True):
        number, rows = int(pairs[start, 0]), pairs[start:stop, 1]
        if number not in made:
            source = tiles.sources[number]
            own = getattr(source, "to_dask", None)
            made[number] = array.from_array(source, asarray=False) if own is None else own()
        whole = np.array_equal(rows, np.arange(len(made[number])))
        parts.append(made[number] if whole else array.take(made[number], rows, axis=0))
    joined = array.concatenate(parts, axis=0)
    return joined if joined.dtype == tiles.dtype else joined.astype(tiles.dtype)


def _cuts(source: Int64s, sample_bytes: int) -> list[tuple[int, int]]:
    """Parts of at most some 16 MiB, (start, stop), each of one region; of several where regions hold few samples."""
    most = max(1, CHUNK_BYTES // max(1, sample_bytes))
    runs = np.flatnonzero(np.diff(source, prepend=-1)).tolist()
    joins = len(source) < FEW_SAMPLES * len(runs)
    cuts: list[tuple[int, int]] = []
    begin = 0
    for start, stop in itertools.pairwise([*runs, len(source)]):
        if start > begin and (stop - begin > most or not joins):
            cuts.append((begin, start))
            begin = start
        if stop - begin > most:
            edges = np.linspace(begin, stop, -(-(stop - begin) // most) + 1).astype(int).tolist()
            cuts += itertools.pairwise(edges)
            begin = stop
    return cuts if begin == len(source) else [*cuts, (begin, len(source))]


class _Packer:
    """Turns samples into what a task carries: their windows as sources of their own, pickled and compressed."""

    def __init__(self, tiles: MultiSourceArray, order: Int64s, pairs: Int64s) -> None:
        self.tiles, self.pairs = tiles, pairs
        table = tiles.table
        self.names = None if table is None or "tile_id" not in table else table["tile_id"].iloc[order].array
        self.digest = hashlib.sha256()  # of all that has been packed
        self.known: dict[int, RegionTiles] = {}
        self.each = 0.0  # bytes of a sample, of those packed last

    def packed(self, start: int, stop: int, *, split: bool) -> Iterator[tuple[int, bytes]]:
        """(samples, bytes) of the samples start..stop, halved until a task stays small if it may be `split`."""
        # What would be too large, if it packs as what came before, is not tried.
        may_split = split and stop - start > 1
        data = None if may_split and (stop - start) * self.each > TASK_BYTES else self._pack(start, stop)
        if data is not None:
            self.each = 0.9 * len(data) / (stop - start)
        if data is not None and (not may_split or len(data) <= TASK_BYTES):
            self.digest.update(data)
            yield stop - start, data
            return
        middle = (start + stop) // 2
        yield from self.packed(start, middle, split=True)
        yield from self.packed(middle, stop, split=True)

    def _pack(self, start: int, stop: int) -> bytes:
        pairs = self.pairs[start:stop]
        begins = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1)).tolist()
        parts = []
        for begin, end in itertools.pairwise([*begins, len(pairs)]):
            names = () if self.names is None else self.names[start + begin : start + end].to_numpy(object)
            source = self._known(int(pairs[begin, 0]))
            parts.append(source.part(pairs[begin:end, 1], _Names(tuple(map(str, names)))))
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, protocol=5)
        pickler.fast = True  # the bytes of equal parts are equal, whichever of their strings are one object
        pickler.dump(parts)
        return zlib.compress(buffer.getvalue(), 4)

    def _known(self, number: int) -> RegionTiles:
        """A source whose images are opened once in a process, and tell if they are not those of now."""
        found = self.known.get(number)
        if found is None:
            source = self.tiles.sources[number]
            found = self.known[number] = source.part(slice(None), source.tile_name)
            found.regions = _known(source)
            if source.partner is not None:  # the mask, or the image, whose extent must be the same
                found.partner = source.partner.part(slice(0), _Names(()))
                found.partner.regions, found.partner.partner = _known(source.partner), None
        return found


def _known(source: RegionTiles) -> tuple[Known | None, ...]:
    openers: Any = source.regions  # each None or a partial with a path, see `_is_plain`
    return tuple(
        None if o is None else Known(o.func, o.args, tuple(sorted(o.keywords.items())), stamp(o.args[0]))
        for o in openers
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """The words for the samples of a task."""

    names: tuple[str, ...]

    def __call__(self, number: int) -> str:
        return f"tile {self.names[number]}" if self.names else f"sample {number}"


def read_tiles_of(data: bytes) -> NDArray[Any]:
    """The tiles of one task, packed, in the process that wants them."""
    # The scheduler unpickles this function and the key in the same way.
    tiles = MultiSourceArray(pickle.loads(zlib.decompress(data)))  # noqa: S301
    return tiles.take(np.arange(len(tiles)), threads=1)
