"""Byte ranges of files behind an address (`https://`, `s3://`, `memory://`, …), through fsspec.

The verbs are those of `lazytiles.images.files`, which asks here whenever a path is an address. What a batch needs is
fetched ahead in one go: neighbouring ranges joined, all of them at once, failed ones again after a pause.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

from lazytiles.errors import LazyTilesError, RegionError, require, shown

BLOCK_BYTES = 2**16  # the least that is asked for at once, and the gap across which ranges are joined
PORTION_BYTES = 128 * 2**20  # fetched ahead and held at once

Range: TypeAlias = tuple[str, int, int]  # address, first byte, byte behind the last


def joined(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order, those of one file joined that overlap or lie within 64 KiB of each other.

    >>> joined([("a", 70_000, 70_010), ("a", 0, 10), ("a", 200_000, 200_010), ("b", 5, 9), ("b", 0, 7)])
    [('a', 0, 10), ('a', 70000, 70010), ('a', 200000, 200010), ('b', 0, 9)]
    >>> joined([("a", 60_000, 70_010), ("a", 0, 10)])
    [('a', 0, 70010)]
    """
    made: list[Range] = []
    for url, start, end in sorted(ranges):
        if made and made[-1][0] == url and start <= made[-1][2] + BLOCK_BYTES:
            made[-1] = (url, made[-1][1], max(end, made[-1][2]))
        else:
            made.append((url, start, end))
    return made


def portions(wanted: Sequence[Sequence[Range]], most: int = PORTION_BYTES) -> list[range]:
    """Runs of items, one after the other, whose ranges are some 128 MiB at most; single items may be larger.

    >>> portions([[("a", 0, 60)], [("a", 0, 30), ("b", 0, 20)], [], [("a", 0, 200)]], most=100)
    [range(0, 1), range(1, 3), range(3, 4)]
    """
    parts, first, total = [], 0, 0
    for number, ranges in enumerate(wanted):
        size = sum(end - start for _, start, end in ranges)
        if total + size > most and number > first:
            parts.append(range(first, number))
            first, total = number, 0
        total += size
    return [*parts, range(first, len(wanted))] if len(wanted) > first else parts


KEPT_BLOCKS = 256
FRESH_S = 10.0  # how long what a server said of a file is believed
ATTEMPTS = 6
FIRST_PAUSE_S = 0.05

_DIGESTS = ("ETag", "etag", "Content-MD5", "Digest", "md5Hash", "crc32c", "generation", "VersionId")
_MARKS = (*_DIGESTS, "Last-Modified", "LastModified", "last_modified", "mtime", "modified", "updated", "created")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError, TypeError)


# `::` chains file systems behind bare names at the start, and before an address; elsewhere it is a part of a name.
_CHAIN = re.compile(r"(^(?:\w+::)+|::(?=[a-z][\w+.-]*://))|::")
_COLONS = "\N{SYMBOL FOR UNIT SEPARATOR}" * 2


def is_remote(path: str) -> bool:
    """Whether a path is an address, for fsspec, and not a file of this machine.

    >>> is_remote("s3://bucket/a.tif"), is_remote("Images/a.tif")
    (True, False)
    """
    return "://" in path


@dataclass(frozen=True, slots=True)
class Known:
    """What a server says of a file: its size, a digest of its version, and when it said so."""

    size: int
    stamp: int
    at: float


class RemotePool:
    """Files behind addresses, known by what their server says of them.

    Notes
    -----
    Any number of threads may read at once. fsspec keeps connections, credentials and its one thread.

    Attributes
    ----------
    requests : how many answers were asked for so far: of files and of byte ranges
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._systems: OrderedDict[str, tuple[Any, str]] = OrderedDict()
        self._known: dict[str, Known | Exception] = {}
        self._blocks: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        # Of each file the ranges that have come, or why they have not: lists of (first byte, end, what came), rising.
        self._ahead: dict[str, list[list[tuple[int, int, bytes | Exception]]]] = {}
        self._ends: dict[str, int] = {}  # where files were seen to end
        self.requests = 0

    def identify(self, url: str) -> tuple[int, int]:
        """(size, digest of the version) of a file, and its first block on the way; RegionError where there is none."""
        with self._lock:
            self._known.pop(url, None)
        self._ask([url], with_head=True)
        known = self._known[url]
        if isinstance(known, Exception):
            raise _clear(url, known)
        return known.size, known.stamp

    def refresh(self, urls: Iterable[str]) -> None:
        """Ask again, all at once, of the files of which was not heard for a while."""
        since, known = time.monotonic() - FRESH_S, self._known
        if old := [url for url in dict.fromkeys(urls) if getattr(known.get(url), "at", since) <= since]:
            self._ask(old)

    def check(self, url: str, size: int, stamp: int) -> bool:
        """Whether the file is still the one of that size and version."""
        self.refresh([url])
        known = self._known[url]
        if isinstance(known, Exception):
            raise _clear(url, known)
        return (known.size, known.stamp) == (size, stamp)

    def read(self, url: str, stamp: int, size: int, start: int, end: int) -> bytes:
        """The bytes start..end of a file of `size` bytes: those fetched ahead, or small ones by whole blocks."""
        for spans in self._ahead.get(url, ()):
            at = bisect_right(spans, start, key=itemgetter(0)) - 1
            if at >= 0 and spans[at][1] >= end:
                begin, _, part = spans[at]
                if isinstance(part, Exception):
                    raise _clear(url, part)
                return part[start - begin : end - begin]
        if end - start > BLOCK_BYTES:
            return self._fetched((url, start, end))
        first, last = start // BLOCK_BYTES, (max(end, start + 1) - 1) // BLOCK_BYTES
        blocks = []
        for number in range(first, last + 1):
            key = (url, stamp, number)
            with self._lock:
                block = self._blocks.get(key)
                if block is not None:
                    self._blocks.move_to_end(key)
            if block is None:
                begin = number * BLOCK_BYTES
                block = self._fetched((url, begin, min(size, begin + BLOCK_BYTES)))
                self._keep(*key, block)
            blocks.append(block)
        return b"".join(blocks)[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES]

    @contextmanager
    def ahead(self, wanted: Iterable[Range]) -> Iterator[None]:
        """Fetch ranges, joined and at once; within the block `read` finds them."""
        ranges = joined(wanted)
        stores: dict[str, list[tuple[int, int, bytes | Exception]]] = {}
        for (url, start, end), part in zip(ranges, self._fetch(ranges), strict=True):
            stores.setdefault(url, []).append((start, end, part))
        try:
            with self._lock:
                for url, spans in stores.items():
                    self._ahead[url] = [*self._ahead.get(url, ()), spans]
            yield
        finally:
            with self._lock:
                for url, spans in stores.items():
                    self._ahead[url] = [other for other in self._ahead.get(url, ()) if other is not spans]
                    if not self._ahead[url]:
                        del self._ahead[url]

    def clear(self) -> None:
        """Forget blocks, and what servers have said."""
        with self._lock:
            self._blocks.clear()
            self._known.clear()

    def forget(self) -> None:
        """Start anew in a forked child, where fsspec's thread does not exist."""
        self.__init__()  # type: ignore[misc]  # the same object stays imported everywhere

    def _system(self, url: str) -> tuple[Any, str]:
        with self._lock:
            found = self._systems.get(url)
        if found is None:
            fsspec = require("fsspec", extra="remote")
            system = _result(fsspec.core.url_to_fs, _CHAIN.sub(lambda part: part[1] or _COLONS, url))
            if isinstance(system, ImportError):
                raise system
            if isinstance(system, Exception):
                raise RegionError(f"{url}: cannot be opened: {str(system).replace(url, shown(url))}")
            name = system[1].replace(_COLONS, "::")
            # A file has no fragments: what stands behind a # would be left out, and another file read.
            found = system[0], name.replace("#", "%23") if name.startswith(("http://", "https://")) else name
            with self._lock:
                self._systems[url] = found
                if len(self._systems) > 65536:
                    self._systems.popitem(last=False)
        return found

    def _ask(self, urls: Sequence[str], *, with_head: bool = False) -> None:
        """Note what servers say of some files, all asked at once."""
        infos = self._persistently(lambda ks: self._infos([urls[k] for k in ks], with_head=with_head), len(urls))
        for url, info in zip(urls, infos, strict=True):
            known = info if isinstance(info, Exception) else _known(url, info)
            if isinstance(known, Known) and isinstance(info.get("head"), bytes):
                head = _whole((url, 0, min(known.size, BLOCK_BYTES)), info["head"])
                if isinstance(head, bytes):
                    self._keep(url, known.stamp, 0, head)
                else:
                    known = head
            self._known[url] = known

    def _infos(self, urls: Sequence[str], *, with_head: bool) -> list[Any]:
        """What servers say of some files, or why they do not; all asked at once on fsspec's thread."""
        systems = [self._system(url) for url in urls]
        self.requests += len(urls) * (1 + with_head)
        afar = [k for k, (system, _) in enumerate(systems) if _is_async(system)]

        async def told(system: Any, path: str) -> Any:
            heads = [system._cat_file(path, start=0, end=BLOCK_BYTES)] if with_head else []
            info, *heads = await asyncio.gather(system._info(path), *heads, return_exceptions=True)
            if isinstance(info, BaseException):
                return info if isinstance(info, Exception) else RegionError(repr(info))
            return {**info, "head": heads[0] if heads else None}

        async def answers() -> list[Any]:
            return list(await asyncio.gather(*(told(*systems[k]) for k in afar)))

        sync = require("fsspec.asyn", extra="remote").sync
        found = dict(zip(afar, sync(systems[afar[0]][0].loop, answers) if afar else (), strict=True))
        for k, (system, path) in enumerate(systems):
            if k not in found:
                # filecache and blockcache would list its folder: the system behind them is asked
                is_cache = system.protocol in ("filecache", ("blockcache", "cached"))
                found[k] = _result((system.fs if is_cache else system).info, path)
        return [found[k] for k in range(len(urls))]

    def _keep(self, url: str, stamp: int, number: int, block: bytes) -> None:
        with self._lock:
            self._blocks[(url, stamp, number)] = block
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)

    def _fetched(self, wanted: Range) -> bytes:
        part = self._fetch([wanted])[0]
        if isinstance(part, Exception):
            raise _clear(wanted[0], part)
        return part

    def _fetch(self, ranges: Sequence[Range]) -> list[bytes | Exception]:
        """The bytes of ranges, or why they do not come; all asked for at once, failed ones again.

        With the first of a file beyond its first block comes its last byte, asked for as two: where the length that a
        server says is a lie, none or both come.
        """
        sizes = {url: known.size for url, _, _ in ranges if isinstance(known := self._known.get(url), Known)}
        lasts = [
            (url, size - 1, size)
            for url, size in sizes.items()
            if size > BLOCK_BYTES and self._ends.get(url) != size and _is_async(self._system(url)[0])
        ]
        asked = [*ranges, *lasts]

        def attempt(missing: list[int]) -> list[Any]:
            by_system: dict[int, list[int]] = {}
            systems = {k: self._system(asked[k][0]) for k in missing}
            for k in missing:
                by_system.setdefault(id(systems[k][0]), []).append(k)
            found: dict[int, Any] = {}
            for numbers in by_system.values():
                system = systems[numbers[0]][0]
                self.requests += len(numbers)
                starts, ends = [asked[k][1] for k in numbers], [asked[k][2] + (k >= len(ranges)) for k in numbers]
                paths = [systems[k][1] for k in numbers]
                parts = _result(system.cat_ranges, paths, starts, ends, on_error="return")
                parts = [parts] * len(numbers) if isinstance(parts, Exception) else parts
                found |= {k: _whole(asked[k], part) for k, part in zip(numbers, parts, strict=True)}
            return [found[k] for k in missing]

        parts = self._persistently(attempt, len(asked))
        lies = {}
        for (url, _, end), part in zip(lasts, parts[len(ranges) :], strict=True):
            if isinstance(part, Exception):
                lies[url] = part
            else:
                self._ends[url] = end
        return [lies.get(url, part) for (url, _, _), part in zip(ranges, parts, strict=False)]

    @staticmethod
    def _persistently(attempt: Any, n: int) -> list[Any]:
        """The n answers of `attempt`, which is asked again, after a pause, for those that are errors."""
        answers: list[Any] = [None] * n
        missing = list(range(n))
        for turn in range(ATTEMPTS):
            if turn:
                time.sleep(FIRST_PAUSE_S * 2 ** (turn - 1) * random.uniform(0.5, 1.5))
            for k, answer in zip(missing, attempt(missing), strict=True):
                answers[k] = answer
            missing = [k for k in missing if isinstance(answers[k], Exception) and not _is_final(answers[k])]
            if not missing:
                break
        return answers


def _is_async(system: Any) -> bool:
    return isinstance(system, require("fsspec.asyn", extra="remote").AsyncFileSystem)


def _is_final(error: Exception) -> bool:
    """Whether asking again is of no use."""
    said = _cause(error)
    if isinstance(error, FileNotFoundError) and not isinstance(said, FileNotFoundError):
        return getattr(said, "status", None) in (401, 403, 404, 410)
    return isinstance(error, _FINAL)


def _result(function: Any, *args: Any, **options: Any) -> Any:
    try:
        return function(*args, **options)
    except Exception as error:
        return error


def _known(url: str, info: dict[str, Any]) -> Known | Exception:
    size = info.get("size")
    if info.get("type") == "directory":
        return IsADirectoryError(f"{url}: is a folder, not a file")
    if size is None:
        return RegionError(
            f"{url}: the server does not say how long it is; read it through a local copy: simplecache::{url}"
        )
    said = [repr((name, info[name])) for name in _MARKS if info.get(name) is not None]
    digest = hashlib.sha256("".join(said).encode()).digest()
    return Known(int(size), int.from_bytes(digest[:7], "big"), time.monotonic())


def _whole(wanted: Range, part: Any) -> bytes | Exception:
    """The bytes of a range if they are as many as were asked for."""
    if getattr(part, "status", None) == 416:  # of HTTP: nothing lies there
        part = b""
    if not isinstance(part, bytes):
        return part if isinstance(part, Exception) else RegionError(f"no bytes but {type(part).__name__}")
    url, start, end = wanted
    if len(part) != end - start:
        return RegionError(
            f"{url}: bytes {start} to {end} were asked for and {len(part)} came: the server lies about the file's "
            f"length or does not serve byte ranges; read it through a local copy: simplecache::{url}"
        )
    return part


def _cause(error: Exception) -> BaseException:
    """What went wrong: fsspec calls every failure of HTTP a missing file, and keeps its cause."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error


def _is_refused(error: Exception) -> bool:
    said = _cause(error)
    return isinstance(said, PermissionError) or getattr(said, "status", None) in (401, 403)


def _clear(url: str, error: Exception) -> LazyTilesError | ImportError:
    """An error of ours that names the file."""
    if isinstance(error, LazyTilesError | ImportError):
        return error
    said = _cause(error)
    words = shown(f"{type(said).__name__}: {said}".replace(url, shown(url)))
    if _is_refused(error):
        made = RegionError(f"{url}: access is refused ({words}); is it signed in, and the address not out of date?")
    elif isinstance(error, FileNotFoundError) and _is_final(error):
        made = RegionError(f"{url}: cannot be opened: there is no such file")
    else:
        times = "" if _is_final(error) else f" after {ATTEMPTS} attempts"
        made = RegionError(f"{url}: cannot be read{times}: {words}")
    made.__cause__ = OSError(words)  # its words alone: the error itself would print the whole address
    return made


remote = RemotePool()


def are_there(urls: Sequence[str]) -> list[bool]:
    """Whether the files behind some addresses are there; all are asked of at once.

    A server that refuses, or cannot be reached, is a RegionError.
    """
    remote.refresh(urls)
    there = []
    for url in urls:
        known = remote._known[url]
        is_missing = isinstance(known, FileNotFoundError) and _is_final(known) and not _is_refused(known)
        if isinstance(known, Exception) and not is_missing and not isinstance(known, IsADirectoryError):
            raise _clear(url, known)
        there.append(not is_missing)
    return there


def listed(url: str) -> list[str]:
    """The files in a folder behind an address and in all folders in it, relative to it.

    A server that does not say it is a RegionError.
    """
    system, path = remote._system(url)
    names = _result(system.find, path)
    if isinstance(names, Exception):
        raise _clear(url, names)
    root = path.rstrip("/") + "/"
    return [name[len(root) :] for name in names if name.startswith(root)]
