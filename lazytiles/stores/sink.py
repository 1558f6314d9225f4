"""The sink of a store: rows go into a partial beside it, and the partial becomes the store."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import check_chunk
from lazytiles.errors import StoreError
from lazytiles.images import split_name
from lazytiles.stores.formats.base import RECORD, Format, Layout, Reader, crc_of, crcs_of, first_difference, saved
from lazytiles.stores.journal import (
    Entry,
    Journal,
    StoreLock,
    cause_of,
    failed,
    partials,
    publish,
    recover,
    sweep,
    sync_tree,
)
from lazytiles.stores.record import Opened, Record, intact, open_complete

_STEP_BYTES = 64 * 2**20
_COMMIT_S = 0.5


class StoreSink:
    """Rows into one store, whole chunks at a time: a `Sink` that is all or nothing.

    With mode ``"a"`` it appends to a complete store, or makes it; `overwrite` replaces one, once this is complete.
    `resume` goes on with what a killed writer left, unless the fingerprint of what is written is another.
    Beside its rows, of which `length` says how many there will be, the finished store carries `members` and `about`.
    If it is scattered, chunks come in any order, from other processes, and are told of by `place`.
    With `sync` it is flushed to the disk itself before it gets its name.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        form: type[Format],
        options: Mapping[str, Any],
        *,
        chunk: int,
        mode: str = "w",
        overwrite: bool = False,
        resume: bool = False,
        length: int | None = None,
        fingerprint: str = "",
        members: Mapping[str, bytes] | None = None,
        about: Mapping[str, Any] | None = None,
        sync: bool = False,
        scattered: bool = False,
    ) -> None:
        if mode not in ("w", "a") or (mode == "a" and overwrite):
            raise ValueError(f"mode must be 'w' or 'a', and 'a' never overwrites; not mode={mode!r}")
        file, self._inner = split_name(os.fspath(path))
        self.path = Path(file)
        self._format = form(form.placed(os.fspath(path), self._inner, options, mode))
        self._members, self.about = dict(members or {}), dict(about or {})
        self._length, self._sync, self._overwrite = length, sync, overwrite
        self.is_complete = False  # whether a complete store is all that is asked for
        self._header: dict[str, Any] = {
            "format": form.name,
            "chunk": chunk,
            "fingerprint": fingerprint,
            "base": "",
            "base_rows": 0,
            "scattered": scattered,
            "dataset": self._inner or "",
        }
        self.layout: Layout | None = None
        self.rows = 0
        self.tail = b""
        self._journal: Journal | None = None
        self._committed_at = time.monotonic()
        self._lock: StoreLock | None = None
        # A forked child leaves what is open to its parent.
        self._dropped = weakref.finalize(self, _let_go, self._format, os.getpid())
        try:
            with self._clean("opening"):
                if not self.path.parent.is_dir():
                    raise StoreError(f"{path}: there is no directory {self.path.parent}; make it first")
                self._lock = StoreLock(self.path)
                self._start(mode, resume)
        except BaseException:
            self.abort()
            raise

    def _start(self, mode: str, resume: bool) -> None:
        recover(self.path)
        base: Opened | None = None
        if self.path.exists() and not self._overwrite and (mode == "w" or self._format.is_in(self.path)):
            if mode == "w" and (not resume or self._left() is not None):
                raise StoreError(f"{self.path} exists; pass overwrite=True to replace it, mode='a' to append")
            base = open_complete(self._named(self.path))
        try:
            if base is not None and mode == "w":
                self._take(base)
                return
            if base is not None:
                record = base.record
                extra = sorted(set(base.members) - {RECORD, "digests.npy"})
                if extra := extra + ["mask labels"] * ("labels" in record.about):
                    raise StoreError(
                        f"{self.path} carries {', '.join(extra)}, which would no longer fit its rows; export it again"
                    )
                self._header |= {"base": record.uid, "base_rows": record.rows, "chunk": record.layout.chunk}
                self._format.inherit(self.path)
            left = self._left() if resume else None
            carried = left is not None and self._carry_on(left)
            if base is not None and not carried:
                self._append_to(base)
        finally:
            if base is not None:
                base.reader.close()

    def _left(self) -> Journal | None:
        """What a killed writer of the same rows left of the store."""
        mine = self._header.items()
        return next((j for j in partials(self.path) if j.partial.exists() and mine <= j.header.items()), None)

    def _named(self, file: Path) -> Path:
        return file if self._inner is None else Path(f"{file}::{self._inner}")

    def _take(self, base: Opened) -> None:
        """Have a complete store as it is: what a writer left that was killed after its last rename."""
        record = base.record
        mine = (self._header["fingerprint"], self._header["chunk"], self._length or record.rows)
        if mine != (record.about.get("fingerprint", ""), record.layout.chunk, record.rows):
            raise StoreError(
                f"{self.path} exists and is complete, with {record.rows} rows in chunks of {record.layout.chunk} "
                "of another writer; pass overwrite=True to replace it, mode='a' to append"
            )
        start = 0
        for crc in base.digests.tolist():
            stop = min(start + record.layout.chunk, record.rows)
            if crc_of(base.reader.read(start, stop)) != crc:
                raise StoreError(f"{self.path} is damaged in rows {start} to {stop}; pass overwrite=True to replace it")
            start = stop
        self.layout, self.rows, self.is_complete = record.layout, record.rows, True
        self._format.side = base.reader.side

    def begin(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Fix the layout and start the partial."""
        layout = Layout(shape, dtype, self._header["chunk"])
        check_chunk(self.path, (layout.chunk, *layout.shape), layout.dtype)
        with self._clean("starting"):
            self._format.create(self._new_partial(layout), layout, self._length)

    def _new_partial(self, layout: Layout) -> Path:
        self.layout = layout
        self._journal = Journal.create(self.path, self._header | layout.facts())
        return self._journal.partial

    def _carry_on(self, left: Journal) -> bool:
        """Take over what of a partial is still as it was written; False if the store itself has more."""
        layout, scattered = Layout.of(left.header), self._header["scattered"]
        check_chunk(self.path, (layout.chunk, *layout.shape), layout.dtype)
        reader = self._reader_of(left, layout)
        try:
            good = [] if reader is None else list(intact(reader, left.entries, layout, scattered=scattered))
            tail = left.load_tail() if len(good) == len(left.entries) else b""
            if reader is not None and good and good[-1].stop % layout.chunk and not scattered:
                # A store of these rows could not be completed; rows that come now belong into its last chunk.
                stop = good.pop().stop
                tail = reader.read(good[-1].stop if good else 0, stop).tobytes()
            rows = (good[-1].stop if good else 0) + len(tail) // layout.row_bytes
            if rows < self._header["base_rows"]:
                return False
            if self._format.continues and reader is not None:
                left.rewrite(good)
                self.layout, self._journal = layout, left
                self._format.resume(left.partial, layout, [entry.note for entry in good])
                self.rows = left.rows
                self._keep_tail(tail)
            else:
                self.begin(layout.shape, layout.dtype)
                if reader is not None:
                    self._copy(reader, good)
                    self._commit()
                self._keep_tail(tail)
                left.discard()
        finally:
            if reader is not None:
                reader.close()
        return True

    def _reader_of(self, left: Journal, layout: Layout) -> Reader | None:
        try:
            reader = self._format.torn_reader or self._format.reader
            return reader(self._named(left.partial), layout, [entry.note for entry in left.entries])
        except ImportError:
            raise
        except Exception:  # A torn partial can fail in any way; then nothing of it is used.
            return None

    def _append_to(self, base: Opened) -> None:
        """Start from the rows of a complete store; its last chunk, if short, is taken back as the tail."""
        record = base.record
        whole = record.rows // record.layout.chunk
        entries = [Entry((k + 1) * record.layout.chunk, int(crc)) for k, crc in enumerate(base.digests[:whole])]
        tail = base.reader.read(whole * record.layout.chunk, record.rows)
        if crc_of(tail) != (int(base.digests[whole]) if len(tail) else 0):
            raise StoreError(f"{self.path} is damaged in its last {len(tail)} rows; it is not appended to")
        with self._clean("copying what is there"):
            partial = self._new_partial(record.layout)
            if self._format.adopt(self.path, partial, whole):
                self._format.resume(partial, record.layout, [0] * whole)
                self._started().rewrite(entries)
                self.rows = self._started().rows
            else:
                self._format.create(partial, record.layout, self._length)
                self._copy(base.reader, entries)
            self._keep_tail(tail.tobytes())

    def _copy(self, reader: Reader, entries: list[Entry]) -> None:
        for entry in entries:
            rows = reader.read(self.rows, entry.stop)
            if crc_of(rows) != entry.crc:
                raise StoreError(f"{self.path} is damaged in rows {self.rows} to {entry.stop}")
            self.append(rows)

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows, shape (n, *row shape), C-contiguous, behind those that are there.

        n is a whole number of chunks in every call but the last. What is safe stays in the partial if one fails.
        """
        if self.is_complete:
            raise StoreError(f"{self.path} is complete with {self.rows} rows; pass mode='a' to append")
        if self.layout is None:
            self.begin(rows.shape[1:], rows.dtype)
        assert self.layout is not None  # for mypy: begin has set it
        chunk = self.layout.chunk
        step = chunk * max(1, _STEP_BYTES // max(1, chunk * self.layout.row_bytes))
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            stop = self.rows + len(part)
            with self._clean(f"writing rows {self.rows} to {stop}"):
                journal = self._started()
                for crc, note in self._format.put(self.rows, part):
                    self.rows = min(self.rows + chunk, stop)
                    journal.note(Entry(self.rows, crc, note))
                if time.monotonic() - self._committed_at > _COMMIT_S:
                    self._commit()

    def _started(self) -> Journal:
        if self._journal is None or self._lock is None:
            raise StoreError(f"{self.path} is closed; open a new writer")
        return self._journal

    def _commit(self) -> None:
        journal = self._started()
        self._format.sync()
        journal.commit()
        self._committed_at = time.monotonic()

    def compare(self, blocks: Iterable[tuple[int, NDArray[Any]]]) -> None:
        """Refuse to go on with a partial unless its rows are these, and name the first that is another.

        With `overwrite` it is begun anew instead. The blocks, each with the number of its first row, are whole
        chunks, but for the last of the store.
        """
        journal, layout = self._started(), self.layout
        assert layout is not None  # for mypy: a partial that goes on has one
        held = {entry.stop: entry.crc for entry in journal.entries}
        for start, rows in blocks:
            for number, crc in enumerate(crcs_of(rows, layout.chunk)):
                part = rows[number * layout.chunk :][: layout.chunk]
                first = start + number * layout.chunk
                stop = first + len(part)
                if held.get(stop, crc) == crc:
                    continue
                if self._overwrite:
                    with self._clean("starting again"):
                        self._format.close()
                        journal.discard()
                        self.rows, self.tail = 0, b""
                    self.begin(layout.shape, layout.dtype)
                    return
                self.abort()
                where, reader = f"one of the rows {first} to {stop}", self._reader_of(journal, layout)
                if reader is not None:
                    with contextlib.closing(reader), contextlib.suppress(Exception):  # The chunk is named at least.
                        row = first_difference(reader.read(first, stop), part)
                        where = where if row is None else f"row {first + row}"
                raise StoreError(
                    f"{self.path}: {where} of what is there already ({journal.partial.name}) is not as it would be "
                    "written now, so this is another export; pass overwrite=True to begin anew"
                )

    def flush(self, tail: NDArray[Any]) -> None:
        """Make every row survive the death of this process; `tail` is the rows after the last whole chunk."""
        if self._journal is not None:
            with self._clean("flushing"):
                self._commit()
                self._keep_tail(tail.tobytes())

    def place(self, start: int, crcs: Sequence[int]) -> None:
        """Account for chunks from row `start` on that `lazytiles.stores.distributed.write_block` has written."""
        length, chunk = self._length or 0, self._header["chunk"]
        with self._clean("accounting"):
            for k, crc in enumerate(crcs):
                self._started().note(Entry(min(start + (k + 1) * chunk, length), crc))
            self._commit()

    @property
    def missing(self) -> list[int]:
        """The first row of every chunk of a store of known length that is not there yet."""
        chunk = self._header["chunk"]
        there = {(entry.stop - 1) // chunk for entry in self._started().entries}
        return [k * chunk for k in range(-(-(self._length or 0) // chunk)) if k not in there]

    @property
    def partial(self) -> Path:
        """Where the rows are until the store is complete."""
        return self._started().partial

    def _keep_tail(self, tail: bytes) -> None:
        self.tail = tail
        self._started().save_tail(tail)

    def close(self) -> None:
        """Complete the store and give it its name; a second call does nothing. If it fails the partial stays."""
        if self._lock is None:
            return
        try:
            if not self.is_complete:
                if self.layout is None:
                    raise StoreError(f"{self.path}: nothing to store: no rows came and no shape and dtype are given")
                if self._header["scattered"]:
                    self.rows = (self._length or 0) if not self.missing else 0
                if self._length is not None and self.rows != self._length:
                    raise StoreError(
                        f"{self.path} is incomplete: {self.rows} of {self._length} rows were written; "
                        "write on with resume=True"
                    )
                with self._clean("completing the store"):
                    self._commit()
                    journal = self._started()
                    crcs = {entry.stop: entry.crc for entry in journal.entries}
                    digests = saved(np.array([crcs[stop] for stop in sorted(crcs)], np.uint32))
                    members = {**self._members, "digests.npy": digests}
                    sums = {name: zlib.crc32(content) for name, content in members.items()}
                    record = Record(self._format.name, self.rows, self.layout, secrets.token_hex(8), sums, self.about)
                    self._format.finish(self.rows, {**members, RECORD: record.dump()})
                    if self._sync:
                        sync_tree(journal.partial)
                    publish(journal.partial, self.path, self._format.side)
                    self._journal = None
            with contextlib.suppress(OSError):  # The store is complete; what is left beside it goes another time.
                version, all_is_new = self.about.get("labels", {}).get("version"), not self.is_complete
                sweep(self.path, self._format.side, version, labels_too=all_is_new and self._inner is None)
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave the store as it was; what is safe stays in the partial, for `resume`."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            journal, self._journal = self._journal, None
            with contextlib.suppress(Exception):
                if journal is not None:
                    self._format.sync()
                    journal.commit()
            self._dropped()
            with contextlib.suppress(OSError):
                # A partial that holds nothing which the store has not is not worth keeping.
                tail = len(journal.load_tail()) // self.layout.row_bytes if journal and self.layout else 0
                if journal is not None and journal.rows + tail <= int(self._header["base_rows"]):
                    journal.discard()
        finally:
            lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    @contextlib.contextmanager
    def _clean(self, doing: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            journal = self._journal
            self.abort()
            if isinstance(error, StoreError | ImportError | TypeError) or not isinstance(error, Exception):
                raise
            what = f"{self.path}: {doing} failed: {cause_of(error)}"
            safe = "" if journal is None else f"; {journal.rows} rows are safe in the unfinished partial"
            then = "try again" if journal is None else "write on with resume=True"
            raise failed(f"{what}{safe}: make room or mend the cause, then {then}", error) from error


def _let_go(form: Format, process: int) -> None:
    if os.getpid() == process:
        with contextlib.suppress(Exception):
            form.close()
