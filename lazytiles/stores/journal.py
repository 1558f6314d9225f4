"""What makes a store old or new and never something between: lock, partial, journal, rename.

A store ``NAME`` is written as ``NAME.partial-…`` beside it and renamed when it is complete. What is already
safe in the partial stands in ``NAME.partial-….journal``, so that a killed writer can be continued.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import re
import secrets
import shutil
import weakref
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lazytiles.config import settings
from lazytiles.errors import StoreError
from lazytiles.images import descriptor, unlinked, write_new
from lazytiles.stores.formats.base import Layout

PARTIAL = ".partial-"
OLD = ".old-"
JOURNAL = ".journal"
TAIL = ".tail"
SIDE = ".meta"  # of a file beside a store that holds its members
LABELS = ".labels-"
_MOST_JOURNAL = 16 * 2**20  # bytes, of some 600,000 chunks


class StoreLock:
    """The right to write one store, held by one writer at a time: the file ``NAME.lock`` beside it.

    It ends with `release`, with this object or with its process, whichever comes first. A forked child never
    holds it.
    """

    def __init__(self, path: Path) -> None:
        name, own, looked, is_ours = path.with_name(path.name + ".lock"), str(os.getpid()), False, False
        while not is_ours:
            with contextlib.ExitStack() as closing:
                try:
                    file = closing.enter_context(open(unlinked(name, os.O_RDWR | os.O_CREAT), "r+b", buffering=0))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # The holder before us unlinks the file; a lock on an unlinked file locks nothing.
                    with contextlib.suppress(FileNotFoundError):
                        is_ours = os.path.samestat(os.fstat(file.fileno()), name.stat())
                    if is_ours:
                        # Padded and not truncated: some file systems wait for the disk after a truncation.
                        os.pwrite(file.fileno(), own.encode().ljust(32), 0)
                        closing.pop_all()  # it lives as long as the lock
                except BlockingIOError:
                    holder = os.pread(file.fileno(), 32, 0).decode(errors="replace").strip() or "unknown"
                    if holder == own and not looked:
                        looked = True
                        gc.collect()  # A writer that nobody can reach any more holds its lock until it is collected.
                        continue
                    cure = "close() or abort() it" if holder == own else "wait for it"
                    raise StoreError(
                        f"{path} is being written by another writer (process {holder}, lock {name.name}); "
                        f"{cure}, or write to another path"
                    ) from None
                except OSError as error:
                    raise failed(f"{path} cannot be locked: {cause_of(error)}", error) from error
        # An object, so that the lock goes when nobody holds it any more.
        self._file = file
        self._end = weakref.finalize(self, _unlock, file, name, os.getpid())
        _LOCKS.add(self)

    def release(self) -> None:
        """Let the next writer in; a second call does nothing."""
        self._end()

    close = release  # for contextlib.closing


_LOCKS: weakref.WeakSet[StoreLock] = weakref.WeakSet()


def _forget_locks() -> None:
    """In a forked child: they are the parent's alone."""
    for lock in list(_LOCKS):
        lock._file.close()


os.register_at_fork(after_in_child=_forget_locks)


def _unlock(file: Any, name: Path, process: int) -> None:
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            name.unlink()
    file.close()


def cause_of(error: BaseException) -> str:
    """What an error of the system or of a library says, in one line."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.partition("\n")[0].strip() or type(error).__name__


def failed(message: str, error: BaseException) -> StoreError:
    """A StoreError with the number of the system's error that it comes from."""
    failure = StoreError(message)
    failure.errno = getattr(error, "errno", None)
    return failure


@dataclass(frozen=True, slots=True)
class Entry:
    """One chunk safe in the partial: the row after its last, its CRC-32, and the format's own note."""

    stop: int
    crc: int
    note: int = 0


class Journal:
    """The append-only account of one partial, beside it: a header, then one line for each chunk that is safe in it.

    The header says what the partial is: its format, layout and the fingerprint of what is being written.
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
        write_new(journal.path, (json.dumps(journal.header) + "\n").encode())
        return journal

    @classmethod
    def read(cls, partial: Path) -> Self | None:
        """The journal of a partial, without a torn last line; None when none could have been written as it stands."""
        try:
            with open(partial.with_name(partial.name + JOURNAL), "rb", opener=unlinked) as file:
                text = file.read(_MOST_JOURNAL + 1)
            if len(text) > _MOST_JOURNAL:
                return None
            lines = text.decode().split("\n")[:-1]
            header = json.loads(lines[0])
            chunk = Layout.of(header).chunk
            entries = [Entry(*map(int, line.split())) for line in lines[1:]]
            rows = entries[-1].stop if entries else 0
            in_order = header["scattered"] or (
                len(entries) == -(-rows // chunk)
                and all(entry.stop == min((k + 1) * chunk, rows) for k, entry in enumerate(entries))
            )
            bounded = all(e.stop > 0 and 0 <= e.crc < 2**32 and 0 <= e.note < 2**63 for e in entries)
        except (OSError, LookupError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        is_sound = bool(in_order) and bounded and not partial.is_symlink()
        return cls(partial, header, entries) if is_sound else None

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
            with open(self.path, "a", opener=unlinked) as file:
                file.write("".join(f"{e.stop} {e.crc} {e.note}\n" for e in self._pending))
            self.entries += self._pending
            self._pending = []

    def rewrite(self, entries: list[Entry]) -> None:
        """Keep these entries only: the resumed partial's longest prefix that is as it was written."""
        self.entries = list(entries)
        self._pending = []
        lines = [json.dumps(self.header), *(f"{e.stop} {e.crc} {e.note}" for e in entries), ""]
        fresh = self.path.with_name(self.path.name + ".new")
        write_new(fresh, "\n".join(lines).encode())
        fresh.replace(self.path)

    def save_tail(self, rows: bytes) -> None:
        """Keep the rows after the last whole chunk, or nothing when there are none."""
        target = self.partial.with_name(self.partial.name + TAIL)
        if not rows:
            target.unlink(missing_ok=True)
            return
        fresh = target.with_name(target.name + ".new")
        write_new(fresh, f"{self.rows} {zlib.crc32(rows)}\n".encode() + rows)
        fresh.replace(target)

    def load_tail(self) -> bytes:
        """The rows that `save_tail` kept, if they follow the last chunk of the journal."""
        tail = self.partial.with_name(self.partial.name + TAIL)
        with contextlib.suppress(OSError), open(tail, "rb", opener=unlinked) as file:
            head, _, rows = file.read(settings().max_segment_bytes + 64).partition(b"\n")  # less than a chunk
            if head == f"{self.rows} {zlib.crc32(rows)}".encode():
                return rows
        return b""

    def discard(self) -> None:
        """Remove the partial with all that belongs to it."""
        remove(self.partial)
        for leftover in list(_beside(self.partial, ".")):
            remove(leftover)


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


def labels_path(path: Path, version: int) -> Path:
    """Where the mask labels of a store lie that were written with one version of it; those of old had none, 0."""
    return path.with_name(
        f"{path.stem}{LABELS}{version}{path.suffix}" if version else f"{path.stem}.labels{path.suffix}"
    )


def sweep(path: Path, side: str, labels: int | None, *, labels_too: bool) -> None:
    """Remove what earlier writers of a store left beside it; only with the lock, when the store is there.

    What stays is the file with its members whose name ends in `side`, and its mask labels of version `labels`; those
    of other versions go with `labels_too`.
    """
    for leftover in (*_beside(path, PARTIAL), *_beside(path, OLD)):
        remove(leftover)
    unfinished = f"(({re.escape(PARTIAL)}|{re.escape(OLD)}).+)?"
    version = re.compile(re.escape(path.stem + LABELS) + r"(\d+)" + re.escape(path.suffix) + unfinished)
    meta = re.compile(re.escape(path.name) + r"(\.[0-9a-f]{16})?" + re.escape(SIDE))
    for name in os.listdir(path.parent):
        found = version.fullmatch(name) if labels_too else None
        if (found and found[1] != str(labels)) or (meta.fullmatch(name) and name != path.name + side):
            remove(path.with_name(name))


def publish(partial: Path, path: Path, side: str) -> None:
    """Give a complete partial its name, in one rename where the system can, replacing what had it.

    A format that cannot hold its members keeps them in a file with the ending `side`, which carries the version
    of the store: it gets its name first, and is that of no store until the rename of the store itself.

    A directory cannot be replaced in one step: the old one steps aside first, and `recover` puts it back
    should the process die between the two renames.
    """
    if side:
        partial.with_name(partial.name + side).replace(path.with_name(path.name + side))
    if not path.is_dir():
        partial.replace(path)
        return
    aside = path.with_name(path.name + OLD + secrets.token_hex(4))
    path.rename(aside)
    try:
        partial.rename(path)
    except BaseException:
        recover(path)
        raise


def is_interrupted(path: Path) -> bool:
    """Whether a store is missing because its replacement was interrupted."""
    try:
        return not path.exists() and any(_beside(path, OLD))
    except OSError:  # Whoever opens the store says it best.
        return False


def recover(path: Path) -> None:
    """Undo a replacement that was interrupted between its two renames; call it with the lock."""
    if not path.exists():
        for aside in _beside(path, OLD):
            aside.rename(path)
            return


def sync_tree(path: Path) -> None:
    """Ask the system to put a file, or every file of a directory, on the disk itself."""
    for place in [*path.rglob("*"), path] if path.is_dir() else [path]:
        with descriptor(place) as fd:
            os.fsync(fd)
