"""What makes a store old or new and never something between: lock, partial, journal, rename.

A store ``NAME`` is written as ``NAME.partial-…`` beside it and renamed when it is complete. What is already
safe in the partial stands in ``NAME.partial-….journal``, so that a killed writer can be continued.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lazytiles.errors import StoreError

PARTIAL = ".partial-"
OLD = ".old-"
JOURNAL = ".journal"
TAIL = ".tail"


class StoreLock:
    """The right to write one store, held by one writer at a time and let go when its process dies.

    Parameters
    ----------
    path : the store; the lock is the file ``NAME.lock`` beside it

    Raises
    ------
    StoreError : another writer holds it
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        self._descriptor: int | None = None
        while self._descriptor is None:
            self._descriptor = self._try(path)

    def _try(self, path: Path) -> int | None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us unlinks the file; a lock on an unlinked file locks nothing.
            if not _same_file(descriptor, self._path):
                os.close(descriptor)
                return None
            # Padded and not truncated: some file systems wait for the disk after a truncation.
            os.pwrite(descriptor, str(os.getpid()).encode().ljust(32), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"{path} is being written by another writer (process {holder}, lock {self._path.name}); "
                "wait for it or write to another path"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StoreError(f"{path} cannot be locked: {error}") from error
        return descriptor

    def release(self) -> None:
        """Let the next writer in; a second call does nothing."""
        if self._descriptor is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class Entry:
    """One chunk safe in the partial: the row after its last, its CRC-32, and the format's own note."""

    stop: int
    crc: int
    note: int = 0


class Journal:
    """The append-only account of one partial: a header, then one line for each chunk that is safe in it.

    Parameters
    ----------
    partial : the partial's path; the journal lies beside it
    header : what the partial is: its format, layout and the fingerprint of what is being written
    entries : the chunks already safe in it
    """

    def __init__(self, partial: Path, header: Mapping[str, Any], entries: list[Entry] | None = None) -> None:
        self.partial = partial
        self.header = dict(header)
        self.entries = [] if entries is None else entries
        self._pending: list[Entry] = []

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """A new journal for a new partial of the store `path`, written before the partial is."""
        journal = cls(path.with_name(f"{path.name}{PARTIAL}{secrets.token_hex(4)}"), header)
        journal.path.write_text(json.dumps(journal.header) + "\n")
        return journal

    @classmethod
    def read(cls, partial: Path) -> Self | None:
        """The journal of a partial, without a torn last line, or None when it has no readable header."""
        try:
            lines = partial.with_name(partial.name + JOURNAL).read_text().split("\n")[:-1]
            header = json.loads(lines[0])
            entries = [Entry(*map(int, line.split())) for line in lines[1:]]
        except (OSError, IndexError, TypeError, ValueError):
            return None
        return cls(partial, header, entries)

    @property
    def path(self) -> Path:
        """Where the journal lies."""
        return self.partial.with_name(self.partial.name + JOURNAL)

    @property
    def rows(self) -> int:
        """How many rows are safe."""
        return self.entries[-1].stop if self.entries else 0

    def note(self, entry: Entry) -> None:
        """Remember a chunk that has been put; `commit` makes it count."""
        self._pending.append(entry)

    def commit(self) -> None:
        """Write down every remembered chunk: call it once their bytes survive the death of this process."""
        if self._pending:
            with self.path.open("a") as file:
                file.write("".join(f"{e.stop} {e.crc} {e.note}\n" for e in self._pending))
            self.entries += self._pending
            self._pending = []

    def rewrite(self, entries: list[Entry]) -> None:
        """Keep these entries only: the resumed partial's longest prefix that is as it was written."""
        self.entries = list(entries)
        self._pending = []
        lines = [json.dumps(self.header), *(f"{e.stop} {e.crc} {e.note}" for e in entries), ""]
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text("\n".join(lines))
        fresh.replace(self.path)

    def save_tail(self, rows: bytes) -> None:
        """Keep the rows after the last whole chunk, or nothing when there are none."""
        target = self.partial.with_name(self.partial.name + TAIL)
        if not rows:
            target.unlink(missing_ok=True)
            return
        fresh = target.with_name(target.name + ".new")
        fresh.write_bytes(f"{self.rows} {zlib.crc32(rows)}\n".encode() + rows)
        fresh.replace(target)

    def load_tail(self) -> bytes:
        """The rows that `save_tail` kept, if they follow the last chunk of the journal."""
        with contextlib.suppress(FileNotFoundError):
            head, _, rows = self.partial.with_name(self.partial.name + TAIL).read_bytes().partition(b"\n")
            if head == f"{self.rows} {zlib.crc32(rows)}".encode():
                return rows
        return b""

    def discard(self) -> None:
        """Remove the partial with all that belongs to it."""
        remove(self.partial)
        for suffix in (JOURNAL, TAIL, JOURNAL + ".new", TAIL + ".new"):
            self.partial.with_name(self.partial.name + suffix).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def partials(path: Path) -> list[Journal]:
    """The unfinished partials of a store that have a journal, the one with most rows first."""
    found = [Journal.read(p) for p in _beside(path, PARTIAL) if "." not in p.name[len(path.name) + 1 :]]
    whole = [journal for journal in found if journal is not None]
    return sorted(whole, key=lambda j: (-j.rows, -len(j.load_tail()), j.path))


def _beside(path: Path, mark: str) -> Iterator[Path]:
    if path.parent.is_dir():
        for name in sorted(os.listdir(path.parent)):
            if name.startswith(path.name + mark):
                yield path.parent / name


def sweep(path: Path) -> None:
    """Remove what earlier writers of a store left beside it; only with the lock, when the store is there."""
    for leftover in (*_beside(path, PARTIAL), *_beside(path, OLD)):
        remove(leftover)


def publish(partial: Path, path: Path, *, beside: str) -> None:
    """Give a complete partial its name, in one rename where the system can, replacing what had it.

    A format that cannot hold its members keeps them in a file with the ending `beside`. That gets its name
    last, and the store is incomplete until it has.

    A directory cannot be replaced in one step: the old one steps aside first, and `recover` puts it back
    should the process die between the two renames.
    """
    side, new_side = path.with_name(path.name + beside), partial.with_name(partial.name + beside)
    side.unlink(missing_ok=True)
    if not path.is_dir():
        partial.replace(path)
        if new_side.exists():
            new_side.replace(side)
        return
    aside = path.with_name(path.name + OLD + secrets.token_hex(4))
    path.rename(aside)
    partial.rename(path)


def is_interrupted(path: Path) -> bool:
    """Whether a store is missing because its replacement was interrupted."""
    return not path.exists() and any(_beside(path, OLD))


def recover(path: Path) -> None:
    """Undo a replacement that was interrupted between its two renames; call it with the lock."""
    if not path.exists():
        for aside in _beside(path, OLD):
            aside.rename(path)
            return


def sync_tree(path: Path) -> None:
    """Ask the system to put a file, or every file of a directory, on the disk itself."""
    for place in [*path.rglob("*"), path] if path.is_dir() else [path]:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
