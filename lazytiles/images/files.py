"""Reading byte ranges of image files: identity, safe opening, a bounded pool of descriptors.

Every read of the library goes through `FilePool`. A file is opened without blocking and must be a
regular file; it is known by (device, inode, size, times of modification and of change), so that a file replaced or
overwritten during a run is an error and never a mixture of old and new pixels.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import resource
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lazytiles.config import count, settings
from lazytiles.errors import RegionError
from lazytiles.images.remote import is_remote, remote

_T = TypeVar("_T")
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def open_plain(path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, links: bool = True) -> int:
    """A descriptor of a regular file, never waiting for a FIFO or a device; also an `opener` of `open`.

    What is no regular file is an OSError; so is a link without `links`. A path of the user's own may be one.
    """
    fd = -1
    try:
        fd = os.open(path, flags | _FLAGS | (0 if links else getattr(os, "O_NOFOLLOW", 0)), 0o666)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
        return fd
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if links or not isinstance(error, OSError) or error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "is a link, which may lead anywhere; refused", os.fspath(path)) from None


unlinked = partial(open_plain, links=False)
"""The `opener` for files inside a store and beside it."""


@contextmanager
def descriptor(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor of a file or folder that is no link, closed whatever comes."""
    fd = -1
    try:
        fd = os.open(path, _FLAGS | getattr(os, "O_NOFOLLOW", 0))
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def write_new(path: Path, content: bytes) -> None:
    """Write a new file, in place of whatever has its name: never into a file that a link leads to."""
    path.unlink(missing_ok=True)
    with open(path, "xb", opener=unlinked) as file:
        file.write(content)


@dataclass(frozen=True, slots=True)
class FileKey:
    """The identity of one file at one moment; two equal keys mean the same bytes.

    `ctime_ns`, when its bytes or its name, owner or mode changed, cannot be set back as `mtime_ns` can; it is 0 where
    the file system does not keep it.
    """

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int = 0
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Keys are looked up for every segment that is read.
        object.__setattr__(self, "_hash", hash((self.path, self.inode, self.mtime_ns)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def is_remote(self) -> bool:
        """Whether it lies behind an address; `mtime_ns` is then a digest of what the server says of its version."""
        return not self.inode and is_remote(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileKey, (self.path, self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns)

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> FileKey:
        """The identity of what the system says of a path."""
        ctime_ns = max(0, status.st_ctime_ns) if os.name == "posix" else 0  # elsewhere it is that of its creation
        return cls(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, ctime_ns)

    def changed(self) -> RegionError:
        """The error that says that this file is no longer what it was."""
        return RegionError(
            f"{self.path} was replaced, truncated or overwritten since it was opened; open the tiles again"
        )


@dataclass(slots=True)
class _Handle:
    """One open file: descriptor, map made on demand, and how many readers are on it.

    Whoever opens the file gets the same key: that very object is found without a comparison.
    """

    key: FileKey
    fd: int
    readers: int = 0
    view: mmap.mmap | None = None

    def close(self) -> None:
        # Arrays over the map may be alive; the mapping goes when the last of them does.
        self.view = None
        os.close(self.fd)


class FilePool:
    """Least-recently-used descriptors, at most `open_files` and a quarter of the process's limit.

    Notes
    -----
    Any number of threads may read at once: reads are positioned (`os.pread`) and share no offset.
    A forked child starts with an empty pool.
    """

    def __init__(self) -> None:
        self._handles: OrderedDict[FileKey, _Handle] = OrderedDict()
        self._lock = threading.RLock()

    def limit(self) -> int:
        """Descriptors that may be open at once."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        quarter = soft // 4 if soft != resource.RLIM_INFINITY else settings().open_files
        return max(1, min(settings().open_files, quarter))

    def identify(self, path: str) -> FileKey:
        """Open a file, see that it is a regular one (RegionError) and keep it open for the reads that follow."""
        if is_remote(path):
            count("files_opened")
            return FileKey(path, 0, 0, *remote.identify(path))
        return self._opened(path)[0]

    def check(self, key: FileKey) -> None:
        """Raise `RegionError` if the file of that name is no longer the one that was opened."""
        if key.is_remote:
            if not remote.check(key.path, key.size, key.mtime_ns):
                raise key.changed()
            return
        try:
            status = os.stat(key.path)
        except OSError as error:
            raise RegionError(f"{key.path} cannot be read any more ({error.strerror}); open the tiles again") from error
        same = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_dev)
        if same != (key.inode, key.size, key.mtime_ns, key.device) or (
            key.ctime_ns and key.ctime_ns != status.st_ctime_ns
        ):
            raise key.changed()

    def read(self, key: FileKey, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; a RegionError where the file ends before, has changed or fails."""
        if offset < 0 or size < 0 or offset + size > key.size:
            raise RegionError(f"{key.path}: bytes {offset} to {offset + size} lie outside the file of {key.size} bytes")
        if key.is_remote:
            return remote.read(key.path, key.mtime_ns, key.size, offset, offset + size)
        handle = self._acquire(key)
        try:
            data = os.pread(handle.fd, size, offset)
            if len(data) == size:
                return data
            parts, missing = [data], size - len(data)
            while missing and parts[-1]:
                parts.append(os.pread(handle.fd, min(missing, 0x7FFFF000), offset + size - missing))
                missing -= len(parts[-1])
        except OSError as error:
            raise RegionError(f"{key.path}: reading {size} bytes at {offset} failed: {error}") from error
        finally:
            with self._lock:
                handle.readers -= 1
        if missing:
            raise key.changed()
        return b"".join(parts)

    def map(self, key: FileKey) -> mmap.mmap:
        """The whole file as a read-only memory map, its identity checked anew."""
        self.check(key)
        with self._lock:
            known = self._handles.get(key)
            if known is not None and known.view is not None:
                self._handles.move_to_end(key)
                return known.view
        with self._reading(key) as handle:
            if handle.view is None:
                try:  # it duplicates its descriptor
                    handle.view = self._with_room(lambda: mmap.mmap(handle.fd, key.size, prot=mmap.PROT_READ))
                except (OSError, ValueError) as error:
                    hint = "pass mmap=False to lazytiles.configure"
                    raise RegionError(f"{key.path}: cannot be mapped: {error}; {hint}") from error
            return handle.view

    def _with_room(self, make: Callable[[], _T]) -> _T:
        """What a call gives, called again with all idle descriptors closed where the process has too many."""
        try:
            return make()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.clear()
            return make()

    def release(self, key: FileKey, start: int, stop: int) -> None:
        """Give back the memory of mapped bytes; they are read anew where they are wanted again."""
        with self._reading(key) as handle:
            start, stop = start - start % mmap.PAGESIZE, stop - stop % mmap.PAGESIZE
            if handle.view is not None and stop > start:
                handle.view.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def advise(self, key: FileKey, ranges: Sequence[tuple[int, int]]) -> None:
        """Tell the system which (offset, size) will be read soon."""
        if hasattr(os, "posix_fadvise"):
            with self._reading(key) as handle:
                for offset, size in ranges:
                    os.posix_fadvise(handle.fd, offset, size, os.POSIX_FADV_WILLNEED)

    def is_in_memory(self, key: FileKey, offset: int) -> bool:
        """Whether the system has a byte of a file at hand; not where it cannot say so."""
        try:
            with self._reading(key) as handle:
                return os.preadv(handle.fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except (AttributeError, OSError):  # BlockingIOError where it would have to be fetched
            return False

    def clear(self) -> None:
        """Close every descriptor that nobody is reading from, and forget what servers have said."""
        remote.clear()
        with self._lock:
            for key in [k for k, h in self._handles.items() if not h.readers]:
                self._handles.pop(key).close()

    @contextmanager
    def _reading(self, key: FileKey) -> Iterator[_Handle]:
        handle = self._acquire(key)
        try:
            yield handle
        finally:
            with self._lock:
                handle.readers -= 1

    def _acquire(self, key: FileKey) -> _Handle:
        with self._lock:
            handle = self._handles.get(key)
            if handle is not None:
                self._handles.move_to_end(key)
                handle.readers += 1
                return handle
        return self._opened(key.path, key)[1]

    def _opened(self, path: str, wanted: FileKey | None = None) -> tuple[FileKey, _Handle]:
        """A file opened now, and its handle in the pool, with one reader more where it is the wanted one."""
        count("files_opened")
        try:
            fd = self._with_room(lambda: open_plain(path))
        except (OSError, ValueError) as error:
            raise RegionError(f"{path}: cannot be opened: {error}") from error
        handle: _Handle | None = None
        try:
            key = FileKey.of(path, os.fstat(fd))
            if wanted is not None and key != wanted:
                raise wanted.changed()
            with self._lock:
                handle = self._handles.get(key)
                if handle is None:
                    key = wanted or key
                    handle = self._handles[key] = _Handle(key, fd)
                self._handles.move_to_end(key)
                handle.readers += wanted is not None
                surplus = len(self._handles) - self.limit()
                if surplus > 0:
                    idle = (known for known, one in self._handles.items() if not one.readers)
                    for known in list(itertools.islice(idle, surplus)):
                        self._handles.pop(known).close()
                return handle.key, handle
        finally:
            if handle is None or handle.fd != fd:
                os.close(fd)

    def forget(self) -> None:
        """Start anew in a forked child, where the lock may have been held by another thread."""
        remote.forget()
        handles, self._handles, self._lock = self._handles, OrderedDict(), threading.RLock()
        for handle in handles.values():
            handle.close()


pool = FilePool()
os.register_at_fork(after_in_child=pool.forget)
