"""Tiles written once to be read many times: `export`, `persist`, and what opens and verifies a store."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from lazytiles.arrays import KeptValid, MultiSourceArray
from lazytiles.errors import LazyTilesError, StoreError
from lazytiles.stores.companions import StoredCompanions, label_store
from lazytiles.stores.distributed import write_on
from lazytiles.stores.formats import file_of, format_of
from lazytiles.stores.formats.base import Layout, first_difference
from lazytiles.stores.journal import StoreLock, is_interrupted, labels_path, sweep
from lazytiles.stores.sink import StoreSink
from lazytiles.stores.store_array import StoreArray
from lazytiles.verbs import verb

OnProgress: TypeAlias = Callable[[int, int], object]

_READ_BYTES = 64 * 2**20
_CHUNK_BYTES = 4 * 2**20


def open_store(path: str | os.PathLike[str], *, check: bool = True) -> MultiSourceArray:
    """Open a complete store as an array, with the labels, table and order written with it; no row is read.

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
        return StoredCompanions.load(store).join(store)
    except (LazyTilesError, ImportError):
        raise
    except Exception as error:  # libraries raise anything over a damaged table
        raise StoreError(f"{path} is damaged: what stands beside its rows cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of `verify_store`: how many rows and chunks are as they were written."""

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
    with contextlib.closing(StoreArray(path)) as store:
        damaged = []
        for number in range(len(store.opened.digests)):
            try:
                store.checked(number)
            except StoreError:
                damaged.append(number)
        record = store.opened.record
        if damaged:
            runs = [f"{k * record.layout.chunk} to {min((k + 1) * record.layout.chunk, len(store))}" for k in damaged]
            more = f" and {len(runs) - 20} more" if len(runs) > 20 else ""
            raise StoreError(f"{path} is damaged in rows {', '.join(runs[:20])}{more}; write it again")
        if "labels" in record.about:
            label_store(store.path, record.about["labels"], check=True).close()
            verify_store(labels_path(store.path, int(record.about["labels"]["version"])))
        return Verified(store.path, record.form, len(store), len(store.opened.digests), store.nbytes)


def export(
    tiles: Any,
    path: str | os.PathLike[str],
    *,
    chunk: int | None = None,
    progress: bool | OnProgress = False,
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
    path : the store; its ending says the format: ``.zarr``, ``.h5``, ``.b2nd``, ``.npy`` or ``.tfrecord``. Or a GeoTIFF
        for each tile, named by columns of the table, such as ``"chips/{tile_id}.tif"``: it lies where its window
        lies, and mask tiles become ``"chips/{tile_id}.labels.tif"``
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
    the store, as `open_store` opens it, or the files: sample i is ``tiles[i]``

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
    if Path(path).suffix.lower() in (".tif", ".tiff"):
        if client is not None or chunk is not None or options:
            raise ValueError(f"{path}: a TIFF a tile takes no client=, chunk= or options of a format")
        how: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "sync": sync}
        files: MultiSourceArray = verb("export_tiffs")(array, path, progress=progress, threads=threads, **how)
        return files
    beside = StoredCompanions.of(array, keep_open=client is None)
    job = Job(array, _state_of(array), beside, threads, overwrite, resume, sync, options)
    job.write(Path(path), chunk, progress, client)
    return open_store(path)


def persist(
    tiles: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    chunk: int | None = None,
    progress: bool | OnProgress = False,
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
    StoreError : as `export`

    Examples
    --------
    >>> tiles = MultiSourceArray([np.arange(6).reshape(6, 1)]).shuffle(3)
    >>> kept = persist(tiles)
    >>> bool((kept[:] == tiles[:]).all()), bool((kept.reset_order()[:, 0] == np.arange(6)).all())
    (True, True)
    """
    array = tiles if isinstance(tiles, MultiSourceArray) else MultiSourceArray([tiles])
    still, order = array.copy().reset_order(), array.order
    beside = StoredCompanions.of(still, keep_open=client is None)
    if (np.diff(order) < 0).any():
        beside = replace(beside, order=order, seed=array.seed)
    job = Job(still, _state_of(still), beside, threads, overwrite, resume, sync, options)
    if path is None:
        return job.into_memory(progress)
    job.write(Path(path), chunk, progress, client)
    return open_store(path)


@dataclass(frozen=True, slots=True)
class Job:
    """Samples of any source on their way into memory or a store."""

    tiles: Any  # in the order in which they are written
    state: Any  # the beginning of a digest of what is written, to which what stands beside is added
    beside: StoredCompanions  # in that order
    threads: int | None
    overwrite: bool
    resume: bool
    sync: bool
    options: Mapping[str, Any]
    read_bytes: int | None = None  # at once, in whole chunks; None for 64 MiB

    def into_memory(self, progress: bool | OnProgress) -> MultiSourceArray:
        """All samples as one array, and mask labels as another."""
        tiles = self.tiles
        data = np.empty((len(tiles), *tiles.shape[1:]), tiles.dtype)
        with reporting(progress, len(tiles)) as report:
            for start, rows in self._read(0, 1):
                data[start : start + len(rows)] = rows
                report(start + len(rows), len(tiles))
        held = self.beside.held
        if isinstance(held.labels, MultiSourceArray):
            held = replace(held, labels=persist(held.labels, threads=self.threads))
        return replace(self.beside, held=replace(held, kept=self._kept())).join(data)

    def _kept(self) -> KeptValid | None:
        """Which values are valid, in the order of what is written, read where any may not be; None where unknown."""
        valid, count = getattr(self.tiles, "of_validity", lambda kind: None)("bands"), len(self.tiles)
        if valid is None or self.beside.held.places is None:
            return None
        if is_all_valid(self.tiles):
            return None if self.tiles.dtype.kind in "fc" else KeptValid.whole(count, valid.shape[1:])
        step = max(1, _READ_BYTES // max(1, valid.nbytes // max(1, count)))
        blocks = (valid[start : start + step] for start in range(0, count, step))
        return KeptValid.of(blocks, valid.shape[1:])

    def write(self, path: Path, chunk: int | None, progress: bool | OnProgress, client: Any = None) -> None:
        """All samples into a store, and mask labels into one beside it first."""
        form, file, tiles, labels = format_of(path), file_of(path), self.tiles, self.beside.held.labels
        if client is not None and not form.is_scattered:
            raise ValueError(f"{path}: only a Zarr store is written by many processes; name it .zarr, or leave client")
        if client is not None and self.options.get("shards") is not None:
            raise ValueError(f"{path}: many processes would write one shard at once; leave shards, or client")
        if file != path and isinstance(labels, MultiSourceArray):
            raise StoreError(f"{path}: mask labels lie in a store beside; write these tiles to a file of their own")
        if self.resume and not self.overwrite and (os.path.exists(file) or is_interrupted(file)):
            self._compare(path)
            return
        beside = replace(self.beside, held=replace(self.beside.held, kept=self._kept()))
        members, state = beside.members(), self.state.copy()
        for name, content in sorted(members.items()):
            state.update(name.encode() + hashlib.sha256(content).digest())
        fingerprint = state.hexdigest()[:32]
        row_bytes = max(1, Layout(tiles.shape[1:], tiles.dtype, 1).row_bytes)
        with StoreSink(
            path,
            form,
            {**self.options, "labels": labels} if form.takes_labels else self.options,
            chunk=min(32, max(1, _CHUNK_BYTES // row_bytes)) if chunk is None else chunk,
            overwrite=self.overwrite,
            resume=self.resume,
            length=len(tiles),
            fingerprint=fingerprint,
            members=members,
            about={**beside.about(), "fingerprint": fingerprint},
            sync=self.sync,
            scattered=client is not None,
        ) as sink:
            if isinstance(labels, MultiSourceArray):
                sink.about["labels"] = self._write_labels(labels, path, chunk)
            if sink.layout is None:
                sink.begin(tiles.shape[1:], tiles.dtype)
            with reporting(progress, len(tiles)) as report:
                if client is None:
                    self._fill(sink, report)
                else:
                    write_on(client, tiles.select(slice(None)), sink, report)

    def _write_labels(self, labels: MultiSourceArray, path: Path, chunk: int | None) -> dict[str, Any]:
        """Mask labels into their own store, named by a version that no store has yet; what the record says of it."""
        version = 1
        with contextlib.suppress(StoreError), contextlib.closing(StoreArray(path)) as store:
            version += store.opened.record.labels_version or 0
        place = labels_path(path, version)
        # Until the new store is complete, they are nobody's.
        self._of_labels(labels, overwrite=self.overwrite or not self.resume).write(place, chunk, False)
        with contextlib.closing(StoreArray(place)) as store:
            return {"version": version, "uid": store.opened.record.uid}

    def _of_labels(self, labels: MultiSourceArray, *, overwrite: bool) -> Job:
        return replace(self, tiles=labels, state=_state_of(labels), beside=StoredCompanions(), overwrite=overwrite)

    def _compare(self, path: Path) -> None:
        """Refuse a complete store that is damaged, or is not this very export."""

        def refused(why: object) -> StoreError:
            return StoreError(f"{path} exists; pass overwrite=True to replace it: {why}")

        try:
            store = StoreArray(path)
        except StoreError as error:
            raise refused(error) from error
        with contextlib.closing(store):
            if (store.shape, store.dtype) != (self.tiles.shape, self.tiles.dtype):
                is_, be = (f"{array.shape} {array.dtype}" for array in (store, self.tiles))
                raise refused(f"row 0 is the first that would be written otherwise now: {is_} would be {be}")
            try:
                other = self.beside.difference(StoredCompanions.load(store))
            except StoreError as error:
                raise refused(error) from error
            if other is not None:
                raise refused(f"the {other} would be written otherwise now")
            with contextlib.closing(self._read(0, store.chunks[0])) as blocks:
                for start, rows in blocks:
                    try:
                        row = first_difference(store.afresh(start, start + len(rows)), rows)
                    except StoreError as error:
                        raise refused(error) from error
                    if row is not None:
                        raise refused(f"row {start + row} is the first that would be written otherwise now")
            version, file = store.opened.record.labels_version, file_of(path)
            if version is not None:
                self._of_labels(self.beside.held.labels, overwrite=False)._compare(labels_path(path, version))
            # What its writer has left beside it goes, unless another one is at it.
            with contextlib.suppress(OSError), contextlib.closing(StoreLock(file)):
                sweep(file, store.opened.reader.side, version, labels_too=file == path)

    def _fill(self, sink: StoreSink, report: OnProgress) -> None:
        assert sink.layout is not None  # for mypy: it is fixed
        chunk = sink.layout.chunk
        if sink.rows:
            with contextlib.closing(self._read(0, chunk, sink.rows)) as blocks:
                sink.compare(blocks)
        with contextlib.closing(self._read(sink.rows, chunk)) as blocks:
            for start, rows in blocks:
                sink.append(rows)
                report(start + len(rows), len(self.tiles))
        sink.close()

    def _read(self, first: int, chunk: int, last: int | None = None) -> Generator[tuple[int, NDArray[Any]], None, None]:
        """Blocks of whole chunks from sample `first` on; while one is used the next is read."""
        tiles = self.tiles
        last = len(tiles) if last is None else last
        most = _READ_BYTES if self.read_bytes is None else self.read_bytes
        step = max(1, most // max(1, chunk * tiles.nbytes // max(1, len(tiles)))) * chunk
        how = {} if self.threads is None else {"threads": self.threads}

        def block(start: int) -> NDArray[Any]:
            found: NDArray[Any] = tiles.take(np.arange(start, min(last, start + step)), **how)
            return found

        with ThreadPoolExecutor(1, thread_name_prefix="lazytiles-export") as pool:
            ahead = [pool.submit(block, first)] if first < last else []
            for start in range(first, last, step):
                rows = ahead.pop().result()
                if start + step < last:
                    ahead.append(pool.submit(block, start + step))
                yield start, rows


def is_all_valid(tiles: MultiSourceArray) -> bool:
    """Whether no pixel of some tiles can be invalid but by being NaN; the tags of all their images are read."""
    if not all(hasattr(source, "faults") for source in tiles.sources):
        return False
    fresh = map(copy.copy, tiles.sources)  # what is opened here is forgotten
    # Looking for faults opens every frame.
    return all(not any(True for _ in source.faults()) and source.is_all_valid for source in fresh)


def _state_of(tiles: MultiSourceArray) -> Any:
    """A digest of which samples an export is of: their layout, sources and order."""
    sources = [identity(source) for source in tiles.sources]
    state = hashlib.sha256(repr((tiles.shape, tiles.dtype.str, sources)).encode())
    state.update(tiles.index_pairs.tobytes())
    return state


def identity(source: Any) -> str:
    """A source by what it says of itself: arrays in memory by their layout, as reading them all would be slow."""
    own = getattr(source, "__dask_tokenize__", None)
    return repr((type(source).__name__, source.shape, str(source.dtype)) if own is None else own())


@contextlib.contextmanager
def reporting(progress: bool | OnProgress, total: int, said: str = "writing tiles") -> Iterator[OnProgress]:
    """Where to report (tiles done, all tiles): a function that is given, a bar drawn for True, nowhere for False."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        with Progress() as bar:
            task = bar.add_task(said, total=total)
            yield lambda done, total: bar.update(task, completed=done)
