"""Tiles written once to be read many times: `export`, `persist`, and what opens and verifies a store."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from lazytiles.arrays import MultiSourceArray
from lazytiles.errors import LazyTilesError, StoreError
from lazytiles.stores.beside import Beside, label_store
from lazytiles.stores.distributed import write_on
from lazytiles.stores.formats.base import Layout, crc_of
from lazytiles.stores.journal import is_interrupted, labels_path
from lazytiles.stores.record import file_of, kind_of
from lazytiles.stores.sink import StoreSink
from lazytiles.stores.store_array import StoreArray, refuse_other_rows, replaceable, tidy

Report: TypeAlias = Callable[[int, int], object]

_READ_BYTES = 64 * 2**20
_CHUNK_BYTES = 4 * 2**20


def open_store(path: str | os.PathLike[str], *, check: bool = True) -> MultiSourceArray:
    """A complete store as an array, with the labels, table and order written with it; no row is read.

    Parameters
    ----------
    path : what `export`, `persist` or a writer wrote
    check : whether each chunk's checksum is compared when it is first touched

    Raises
    ------
    StoreError : the store is missing, unfinished, damaged, or was not written by lazytiles

    Examples
    --------
    >>> import tempfile
    >>> tiles = MultiSourceArray([np.zeros((2, 3)), np.ones((3, 3))])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = export(tiles, f"{folder}/tiles.npy")
    ...     open_store(f"{folder}/tiles.npy").labels
    array([0, 0, 1, 1, 1])
    """
    store = StoreArray(path, check=check)
    try:
        return Beside.load(store).join(store)
    except (LazyTilesError, ImportError):
        raise
    except Exception as error:  # libraries raise anything over a damaged table
        raise StoreError(f"{path} is damaged: what stands beside its rows cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify_store` has found to be as it was written: so many rows in so many chunks."""

    path: Path
    format: str
    rows: int
    chunks: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.rows} rows in {self.chunks} chunks ({self.format}) are as they were written"


def verify_store(path: str | os.PathLike[str]) -> Verified:
    """Read every chunk and member of a store, and of its mask labels, and compare all checksums.

    Parameters
    ----------
    path : the store

    Returns
    -------
    what was verified; `nbytes` counts the bytes of the rows as they are in memory

    Raises
    ------
    StoreError : the store is missing, unfinished or damaged; the message names every damaged run of rows
        (the first 20, and how many there are)
    """
    store = StoreArray(path)
    try:
        damaged = []
        for number in range(len(store.opened.digests)):
            try:
                rows = store.raw(number)
            except StoreError:
                rows = None
            if rows is None or crc_of(rows) != store.opened.digests[number]:
                damaged.append(number)
        record = store.opened.record
        if damaged:
            runs = [f"{k * record.layout.chunk} to {min((k + 1) * record.layout.chunk, len(store))}" for k in damaged]
            more = f" and {len(runs) - 20} more" if len(runs) > 20 else ""
            raise StoreError(f"{path} is damaged in rows {', '.join(runs[:20])}{more}; write it again")
        if "labels" in record.about:
            label_store(store.path, record.about["labels"], check=True).close()
            verify_store(labels_path(store.path, int(record.about["labels"]["version"])))
        return Verified(store.path, record.kind, len(store), len(store.opened.digests), store.nbytes)
    finally:
        store.close()


def export(
    tiles: Any,
    path: str | os.PathLike[str],
    *,
    chunk: int | None = None,
    progress: bool | Report = False,
    threads: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    sync: bool = False,
    client: Any = None,
    **options: Any,
) -> MultiSourceArray:
    """Write the samples in their current order into a store, with labels and table, and open it.

    Parameters
    ----------
    tiles : a `MultiSourceArray`, or any source
    path : the store; its ending says the format: ``.zarr``, ``.h5``, ``.b2nd``, ``.npy`` or ``.tfrecord``
    chunk : samples of one chunk; by default 32, or fewer that have some 4 MiB
    progress : whether to draw a bar, or a function that is called with (samples written, all samples)
    threads : threads that decode
    overwrite : replace a store that is there, once the new one is complete
    resume : go on where a killed or failed export of the same samples stopped; one that is complete is opened
    sync : flush the finished store to the disk itself before it gets its name
    client : a `distributed.Client` whose workers write the chunks of a Zarr store; None works here
    options : for the format's library, such as compression

    Returns
    -------
    the store, as `open_store` opens it: sample i is ``tiles[i]``

    Raises
    ------
    StoreError : the store exists, is locked, or cannot be written; what is safe stays for `resume`
    RegionError, ManifestError : a sample cannot be read

    Notes
    -----
    While some samples are written, the next are read, each segment once for some 64 MiB of them: tiles that
    are not shuffled are exported fastest.
    """
    array = tiles if isinstance(tiles, MultiSourceArray) else MultiSourceArray([tiles])
    positions = np.arange(len(array), dtype=np.int64)
    job = Job(
        array,
        positions,
        Beside.of(array, positions, keep_open=client is None),
        threads,
        overwrite,
        resume,
        sync,
        options,
    )
    return job.run(Path(path), chunk, progress, client)


def persist(
    tiles: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    chunk: int | None = None,
    progress: bool | Report = False,
    threads: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    sync: bool = False,
    client: Any = None,
    **options: Any,
) -> MultiSourceArray:
    """Read every sample once, into memory or a store, and give back the same array over that.

    Parameters
    ----------
    tiles : a `MultiSourceArray`, or any source
    path : a store as for `export`, or None for memory
    chunk, progress, threads, overwrite, resume, sync, client, options : as for `export`

    Returns
    -------
    array with the same samples, labels, table, order and seed: sample i is ``tiles[i]`` now, and
    after both are shuffled by one seed

    Raises
    ------
    as `export`

    Examples
    --------
    >>> tiles = MultiSourceArray([np.arange(6).reshape(6, 1)]).shuffle(3)
    >>> kept = persist(tiles)
    >>> bool((kept[:] == tiles[:]).all()), bool((kept.reset_order()[:, 0] == np.arange(6)).all())
    (True, True)
    """
    array = tiles if isinstance(tiles, MultiSourceArray) else MultiSourceArray([tiles])
    order = array.order
    unsorted = bool((np.diff(order) < 0).any())
    positions = np.argsort(order, kind="stable")
    beside = Beside.of(array, positions, keep_open=client is None)
    if unsorted:
        beside = replace(beside, order=order, seed=array.seed)
    job = Job(array, positions, beside, threads, overwrite, resume, sync, options)
    return job.into_memory(progress) if path is None else job.run(Path(path), chunk, progress, client)


@dataclass(frozen=True, slots=True)
class Job:
    """Samples on their way into memory or a store."""

    tiles: MultiSourceArray
    positions: NDArray[np.int64]
    beside: Beside
    threads: int | None
    overwrite: bool
    resume: bool
    sync: bool
    options: dict[str, Any]

    def into_memory(self, progress: bool | Report) -> MultiSourceArray:
        """All samples as one array, and mask labels as another."""
        tiles = self.tiles
        data = np.empty((len(tiles), *tiles.shape[1:]), tiles.dtype)
        with reporting(progress, len(tiles)) as report:
            for start, rows in self._read(0, 1):
                data[start : start + len(rows)] = rows
                report(start + len(rows), len(tiles))
        kept = self.beside.companions
        if isinstance(kept.labels, MultiSourceArray):
            kept = replace(kept, labels=persist(kept.labels, threads=self.threads))
        return replace(self.beside, companions=kept).join(data)

    def run(self, path: Path, chunk: int | None, progress: bool | Report, client: Any = None) -> MultiSourceArray:
        """All samples into a store, and mask labels into one beside it first."""
        if client is not None and kind_of(path).name != "zarr":
            raise ValueError(f"{path}: only a Zarr store is written by many processes; name it .zarr, or leave client")
        if client is not None and self.options.get("shards") is not None:
            raise ValueError(f"{path}: many processes would write one shard at once; leave shards, or client")
        file = file_of(path)
        if file != path and isinstance(self.beside.companions.labels, MultiSourceArray):
            raise StoreError(f"{path}: mask labels lie in a store beside; write these tiles to a file of their own")
        if self.resume and not self.overwrite and (os.path.exists(file) or is_interrupted(file)):
            self._compare(path)
            return open_store(path)
        with self._sink(path, chunk, scattered=client is not None) as sink:
            labels = self.beside.companions.labels
            if isinstance(labels, MultiSourceArray):
                sink.about["labels"] = self._write_labels(labels, path, chunk)
            if sink.layout is None:
                sink.begin(self.tiles.shape[1:], self.tiles.dtype)
            if client is None:
                self._fill(sink, progress)
            else:
                with reporting(progress, len(self.tiles)) as report:
                    write_on(client, self.tiles.select(self.positions), sink, report)
        return open_store(path)

    def _sink(self, path: Path, chunk: int | None, *, scattered: bool) -> StoreSink:
        """Where the samples go; the store is locked."""
        tiles, kind = self.tiles, kind_of(path)
        row_bytes = max(1, Layout(tiles.shape[1:], tiles.dtype, 1).row_bytes)
        members, labels = self.beside.members(), self.beside.companions.labels
        fingerprint = _fingerprint(tiles, self.positions, members)
        return StoreSink(
            path,
            kind,
            self.options | ({"labels": labels} if kind.name == "tfrecord" else {}),
            chunk=min(32, max(1, _CHUNK_BYTES // row_bytes)) if chunk is None else chunk,
            overwrite=self.overwrite,
            resume=self.resume,
            length=len(tiles),
            fingerprint=fingerprint,
            members=members,
            about={**self.beside.about(), "fingerprint": fingerprint},
            sync=self.sync,
            scattered=scattered,
        )

    def _write_labels(self, labels: MultiSourceArray, path: Path, chunk: int | None) -> dict[str, Any]:
        """Mask labels into their own store, named by a version that no store has yet; what the record says of it."""
        version = 1 + _labels_version(path)
        overwrite = self.overwrite or not self.resume  # Until the new store is complete, they are nobody's.
        store: StoreArray = self._of_labels(labels, overwrite).run(labels_path(path, version), chunk, False).sources[0]
        return {"version": version, "uid": store.opened.record.uid}

    def _of_labels(self, labels: MultiSourceArray, overwrite: bool) -> Job:
        every = np.arange(len(labels), dtype=np.int64)
        return Job(labels, every, Beside(), self.threads, overwrite, self.resume, self.sync, self.options)

    def _compare(self, path: Path) -> None:
        """Refuse a complete store that is damaged, or is not this very export."""
        try:
            store = StoreArray(path)
        except StoreError as error:
            raise replaceable(path, error) from error
        with contextlib.closing(store):
            if (store.shape, store.dtype) != (self.tiles.shape, self.tiles.dtype):
                is_, be = (f"{array.shape} {array.dtype}" for array in (store, self.tiles))
                raise replaceable(path, f"row 0 is the first that would be written otherwise now: {is_} would be {be}")
            try:
                other = self.beside.difference(Beside.load(store))
            except StoreError as error:
                raise replaceable(path, error) from error
            if other is not None:
                raise replaceable(path, f"the {other} would be written otherwise now")
            with contextlib.closing(self._read(0, store.chunks[0])) as blocks:
                refuse_other_rows(store, blocks)
            if "labels" in store.opened.record.about:
                about = store.opened.record.about["labels"]
                self._of_labels(self.beside.companions.labels, False)._compare(labels_path(path, about["version"]))
            tidy(store)

    def _fill(self, sink: StoreSink, progress: bool | Report) -> None:
        total = len(self.tiles)
        assert sink.layout is not None  # for mypy: it is fixed
        chunk = sink.layout.chunk
        if sink.rows:
            with contextlib.closing(self._read(0, chunk, sink.rows)) as blocks:
                sink.compare(blocks)
        with reporting(progress, total) as report, contextlib.closing(self._read(sink.rows, chunk)) as blocks:
            for start, rows in blocks:
                sink.append(rows)
                report(start + len(rows), total)
        sink.close()

    def _read(self, first: int, chunk: int, last: int | None = None) -> Generator[tuple[int, NDArray[Any]], None, None]:
        """Blocks of whole chunks from sample `first` on; while one is used the next is read."""
        tiles = self.tiles
        last = len(tiles) if last is None else last
        step = max(1, _READ_BYTES // max(1, chunk * tiles.nbytes // max(1, len(tiles)))) * chunk
        starts = list(range(first, last, step))
        if not starts:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="lazytiles-export") as pool:
            read = [pool.submit(self._block, starts[0], min(last, starts[0] + step))]
            for k, start in enumerate(starts):
                rows = read.pop().result()
                if k + 1 < len(starts):
                    read.append(pool.submit(self._block, starts[k + 1], min(last, starts[k + 1] + step)))
                yield start, rows

    def _block(self, start: int, stop: int) -> NDArray[Any]:
        return self.tiles.take(self.positions[start:stop], threads=self.threads)


def _labels_version(path: Path) -> int:
    """The version of the mask labels of the store that is there; 0 where it has none or cannot be opened."""
    try:
        with contextlib.closing(StoreArray(path)) as store:
            return int(store.opened.record.about.get("labels", {}).get("version", 0))
    except StoreError:
        return 0


def _fingerprint(tiles: MultiSourceArray, positions: NDArray[np.int64], members: dict[str, bytes]) -> str:
    """What an export is of: layout, sources, which samples in which order, and all that stands beside them."""
    sources = [identity(source) for source in tiles.sources]
    state = hashlib.sha256(repr((tiles.shape, tiles.dtype.str, sources)).encode())
    state.update(np.ascontiguousarray(tiles.index_pairs[positions]).tobytes())
    for name, content in sorted(members.items()):
        state.update(name.encode() + hashlib.sha256(content).digest())
    return state.hexdigest()[:32]


def identity(source: Any) -> str:
    """A source by what it says of itself: arrays in memory by their layout, as reading them all would be slow."""
    own = getattr(source, "__dask_tokenize__", None)
    return repr((type(source).__name__, source.shape, str(source.dtype)) if own is None else own())


@contextlib.contextmanager
def reporting(progress: bool | Report, total: int, said: str = "writing tiles") -> Iterator[Report]:
    """Where to report (tiles done, all tiles): a function that is given, a bar drawn for True, nowhere for False."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        with Progress() as bar:
            task = bar.add_task(said, total=total)
            yield lambda done, total: bar.update(task, completed=done)
