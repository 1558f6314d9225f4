"""What a complete store says of itself, and opening one only when it is as it says."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import check_chunk
from lazytiles.errors import LazyTilesError, StoreError
from lazytiles.stores.formats import file_of, format_at
from lazytiles.stores.formats.base import RECORD, Layout, Reader, array_in, crc_of
from lazytiles.stores.journal import PARTIAL, Entry, cause_of, failed, partials

VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What a complete store says of itself; written last, and checked against what is there.

    `members` has the CRC-32 of every other member, `digests` that of every chunk of rows.
    """

    form: str
    rows: int
    layout: Layout
    uid: str
    members: Mapping[str, int]
    about: Mapping[str, Any]

    @property
    def labels_version(self) -> int | None:
        """The version of the mask labels beside the store; None where it has none."""
        return self.about["labels"]["version"] if "labels" in self.about else None

    def dump(self) -> bytes:
        """The record as JSON, with a CRC-32 of itself."""
        facts = {
            "lazytiles": VERSION,
            "format": self.form,
            "rows": self.rows,
            **self.layout.facts(),
            "uid": self.uid,
            "members": dict(self.members),
            "about": dict(self.about),
            "complete": True,
        }
        facts["crc32"] = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
        return json.dumps(facts, indent=1).encode()

    @classmethod
    def load(cls, content: bytes, path: Path) -> Record:
        """The record back from its JSON, or a StoreError when it is not as it was written."""
        try:
            facts = json.loads(content)
            crc = facts.pop("crc32")
            whole = zlib.crc32(json.dumps(facts, sort_keys=True).encode()) == crc and facts["complete"] is True
            if whole and facts["lazytiles"] == VERSION:
                layout = Layout.of(facts)
                kinds = {"format": str, "rows": int, "uid": str, "members": dict, "about": dict, "chunk": int}
                if isinstance(uid := facts["about"].get("labels"), str):  # of a store of before labels had versions
                    facts["about"]["labels"] = {"version": 0, "uid": uid}
                if all(isinstance(facts[name], kind) for name, kind in kinds.items()) and facts["rows"] >= 0:
                    return cls(facts["format"], facts["rows"], layout, facts["uid"], facts["members"], facts["about"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise StoreError(f"{path}: the store's record is damaged: {error}") from error
        raise StoreError(f"{path}: the store's record is damaged or of a later version of lazytiles")


@dataclass(frozen=True, slots=True)
class Opened:
    """A complete store, open: its reader, its record, its members and the CRC-32 of each chunk."""

    path: Path
    reader: Reader
    record: Record
    members: Mapping[str, bytes]
    digests: NDArray[np.uint32]


def open_complete(path: Path) -> Opened:
    """Open a store if it is there, complete, and as its record says; no row is read."""
    file = file_of(path)
    try:
        if not file.exists():
            left = partials(file)
            raise StoreError(
                f"{file} is incomplete: its writer has not finished, and {left[0].partial.name} holds {left[0].rows} "
                "rows; write on with resume=True"
                if left
                else f"there is no store {file}"
            )
        if PARTIAL in file.name:
            raise StoreError(f"{path} is an unfinished partial, not a store; finish it with resume=True")
        form = format_at(file)
    except StoreError:
        raise
    except OSError as error:
        raise failed(f"{path} cannot be opened: {cause_of(error)}", error) from error
    if file != path and not form.has_datasets:
        raise StoreError(f"{path}: only an HDF5 file has datasets; this is a {form.name} store")
    try:
        reader = form.reader(path)
        try:
            members = reader.members()
            if RECORD not in members:
                raise StoreError(
                    f"{path} is incomplete or was not written by lazytiles: it has no record "
                    f"(open foreign arrays with their own library)"
                )
            record = Record.load(members[RECORD], path)
            check_chunk(path, (record.layout.chunk, *record.layout.shape), record.layout.dtype)
            given = (form.name, reader.shape, reader.dtype)
            expected = (record.form, (record.rows, *record.layout.shape), record.layout.dtype)
            if given != expected:
                raise StoreError(f"{path} is damaged: its record says {expected}, the array is {given}")
            for name, crc in record.members.items():
                if name not in members or zlib.crc32(members[name]) != crc:
                    raise StoreError(f"{path} is damaged: its {name} is missing or not as it was written")
            digests = array_in(members["digests.npy"])
            chunks = -(-record.rows // record.layout.chunk)
            if "digests.npy" not in record.members or digests.shape != (chunks,) or digests.dtype != np.uint32:
                raise StoreError(
                    f"{path} is damaged: it has {digests.dtype} digests of shape {digests.shape} for the {chunks} "
                    f"chunks of its {record.rows} rows"
                )
        except BaseException:
            reader.close()
            raise
    except (LazyTilesError, ImportError):
        raise
    except Exception as error:
        raise failed(f"{path} cannot be opened as a {form.name} store: {error}", error) from error
    return Opened(path, reader, record, members, digests)


def intact(reader: Reader, entries: list[Entry], layout: Layout, *, scattered: bool) -> Iterator[Entry]:
    """The entries whose chunk is as it was written; up to the first that is not, but for scattered ones."""
    start = 0
    for entry in {entry.stop: entry for entry in entries}.values():
        start = (entry.stop - 1) // layout.chunk * layout.chunk if scattered else start
        good = False
        with contextlib.suppress(Exception):  # Torn bytes can fail in any way a codec can.
            rows = reader.read(start, entry.stop)
            good = rows.shape == (entry.stop - start, *layout.shape) and crc_of(rows) == entry.crc
        if good:
            yield entry
            start = entry.stop
        elif not scattered:
            return
