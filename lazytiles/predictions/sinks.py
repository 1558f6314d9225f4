"""Where finished rows of a region go: arrays, `.npy`, tiled TIFF and Zarr, in order and only forward."""

from __future__ import annotations

import fcntl
import glob
import math
import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import tifffile
from numpy.typing import NDArray

from lazytiles.errors import LazyTilesError, StoreError, require
from lazytiles.images import descriptor, open_region
from lazytiles.stores import OLD, PARTIAL, ArraySink, cause_of, failed, placed, publish, recover, remove

Out: TypeAlias = Any
"""Nothing, an array, a path, or an object with `append(rows)` and `close()`."""

TILE = 256
_LETTERS = 12  # behind the mark of what is not complete: other than those of a store


class RowSink(Protocol):
    """Takes the rows of one array from first to last."""

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows; the array handed over is used again by the caller."""

    def close(self) -> Any:
        """All rows came: complete the store and return what reads it."""

    def abort(self) -> None:
        """No more rows will come: leave nothing half written behind."""


@runtime_checkable
class _Appends(Protocol):
    def append(self, rows: NDArray[Any]) -> None: ...
    def close(self) -> Any: ...


class Replacing(os.PathLike[str]):
    """A path whose file is replaced, once the new one is complete: by a task that runs again, or as the user asked.

    >>> os.fspath(Replacing("maps/1225.tif"))
    'maps/1225.tif'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def __fspath__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class FramesFirst:
    """An output whose frames are its first axis, though they come as an axis behind those of space."""

    out: Out


def open_sink(out: Out, shape: Sequence[int], dtype: np.dtype[Any], *, axes: int = 2) -> RowSink:
    """The sink for an `out` argument.

    Parameters
    ----------
    out : `None`, an array of that shape, a path that ends in .npy, .tif, .tiff or .zarr (its folder is made where
        there is none), an object with `append(rows)` and `close()`, or one of these as `FramesFirst`
    shape : of all rows together
    dtype : of the rows; what goes into an array is cast to its dtype, see `cast`
    axes : how many of the first axes are space: 2 for `(height, width, ...)`, 3 for `(depth, height, ...)`

    Raises
    ------
    ValueError : an array of another shape, or a path of no known kind
    StoreError : the path exists

    >>> sink = open_sink(None, (2, 3), np.dtype("uint8"))
    >>> sink.append(np.ones((2, 3), "uint8")); sink.close()
    array([[1, 1, 1],
           [1, 1, 1]], dtype=uint8)
    """
    shape, frames = tuple(shape), None
    if isinstance(out, FramesFirst):
        out, frames = out.out, axes
    if out is None:
        return ArraySink(np.empty(_laid_out(shape, frames), dtype), frames)
    check_out(out)
    if isinstance(out, (str, os.PathLike)):
        path = Path(out)
        return _File(path, FILES[path.suffix.lower()], shape, dtype, axes, frames)
    if hasattr(out, "__setitem__"):
        given, needed = tuple(out.shape), _laid_out(shape, frames)
        # A single channel needs no axis in an array of NumPy's: a view of it has one.
        if needed[-1] == 1 and given == needed[:-1] and isinstance(out, np.ndarray):
            out = out[..., np.newaxis]
        elif given != needed:
            raise ValueError(f"out= has shape {given}; {needed} is needed")
        return ArraySink(out, frames)
    return _Foreign(out)


def check_out(out: Out) -> None:
    """Refuse an output that cannot be written, before there is anything to write.

    Raises
    ------
    ValueError : a path of no known kind, or no output at all
    StoreError : the path exists, and is not given as `Replacing`
    """
    if isinstance(out, (str, os.PathLike)):
        path = Path(out)
        if path.suffix.lower() not in FILES:
            raise ValueError(f"{path}: rows can be written to {', '.join(FILES)}; choose one of these endings")
        recover(path)
        if path.exists() and not isinstance(out, Replacing):
            raise StoreError(f"{path} exists; remove it, choose another name, or pass overwrite=True")
    elif out is not None and not hasattr(out, "__setitem__") and not isinstance(out, _Appends):
        raise ValueError(f"out={out!r} is no array, path or object with append() and close()")


def _laid_out(shape: tuple[int, ...], frames: int | None) -> tuple[int, ...]:
    """The shape of an output whose frames, at that axis of the rows, come first."""
    return shape if frames is None else (shape[frames], *shape[:frames], *shape[frames + 1 :])


def sweep(path: Path, *, dead: bool = False) -> None:
    """Remove what other runs left beside a finished file.

    Parameters
    ----------
    path : the file
    dead : only that of processes that have ended: what is still written is locked
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}{PARTIAL}{'?' * _LETTERS}"):
        with suppress(OSError), descriptor(left) as fd:
            if dead:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(left)


class _Foreign:
    """The caller's own sink, given rows that it may keep."""

    def __init__(self, sink: _Appends) -> None:
        self._sink = sink

    def append(self, rows: NDArray[Any]) -> None:
        self._sink.append(rows.copy())

    def close(self) -> Any:
        self._sink.close()
        return self._sink

    def abort(self) -> None:
        """The sink is the caller's to close."""


class FileSink(Protocol):
    """Takes the rows of one file from first to last; what they lie in gets its name from others."""

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""

    def close(self) -> None:
        """All rows came: complete what they lie in."""

    def opened(self, path: Path) -> Any:
        """What reads the file, once it has its name."""


class Partial:
    """A file or folder beside the final one, renamed when it is complete; locked, so that `sweep` leaves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex[:_LETTERS]}")
        self._closing = ExitStack()

    def file(self) -> Any:
        """The new file, open for writing and reading."""
        file = self._closing.enter_context(open(self.name, "x+b"))  # noqa: SIM115
        with suppress(OSError):  # A file system without locks.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    def hold(self) -> None:
        """Lock the folder that has been made."""
        fd = self._closing.enter_context(descriptor(self.name))
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def publish(self) -> None:
        """Give it its name."""
        self._closing.close()
        publish(self.name, self.path, "")

    def discard(self) -> None:
        """Remove it, if it is still there."""
        with suppress(OSError):
            self._closing.close()
        with suppress(OSError):
            remove(self.name)


Kind: TypeAlias = Callable[[Partial, tuple[int, ...], np.dtype[Any], int, int | None], FileSink]


class _File:
    """The sink of a file: its errors name the file and what was done, and nothing unfinished stays after one."""

    def __init__(self, path: Path, kind: Kind, shape: tuple[int, ...], dtype: np.dtype[Any], *places: Any) -> None:
        self._partial, self._row = Partial(path), 0
        with self._clean("starting"):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path, dead=True)
            self._sink = kind(self._partial, shape, dtype, *places)

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        with self._clean(f"writing rows {self._row} to {self._row + len(rows)}"):
            self._sink.append(rows)
        self._row += len(rows)

    def close(self) -> Any:
        """Complete the file, give it its name, and open it."""
        with self._clean("completing the file"):
            self._sink.close()
            self._partial.publish()
            for left in self._partial.path.parent.glob(f"{glob.escape(self._partial.path.name)}{OLD}*"):
                remove(left)
            return self._sink.opened(self._partial.path)

    def abort(self) -> None:
        """Remove what was written."""
        self._partial.discard()

    @contextmanager
    def _clean(self, doing: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.abort()
            if not isinstance(error, OSError) or isinstance(error, LazyTilesError):
                raise
            path = self._partial.path
            raise failed(
                f"{path}: {doing} failed: {cause_of(error)}; nothing of it stays: make room or mend the cause, then "
                "predict again",
                error,
            ) from error


class NpySink:
    """Rows into one `.npy` file, each frame front to back, never mapped."""

    def __init__(
        self, partial: Partial, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int, frames: int | None = None
    ) -> None:
        self._file, self._frames, self._row = partial.file(), frames, 0
        whole = _laid_out(shape, frames)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": whole}
        np.lib.format.write_array_header_2_0(self._file, header)
        self._first, self._row_bytes = self._file.tell(), math.prod(shape[1:]) * dtype.itemsize
        if frames is not None:
            self._row_bytes //= shape[frames]
        self._frame_bytes = shape[0] * self._row_bytes

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        blocks = rows[np.newaxis] if self._frames is None else np.moveaxis(rows, self._frames, 0)
        for frame, block in enumerate(blocks):
            self._file.seek(self._first + frame * self._frame_bytes + self._row * self._row_bytes)
            self._file.write(np.ascontiguousarray(block).data)
        self._row += len(rows)

    def close(self) -> None:
        """Let the system have all of it."""
        self._file.flush()

    def opened(self, path: Path) -> Any:
        """The file, mapped for reading."""
        return np.load(path, mmap_mode="r", allow_pickle=False)


class TiffSink:
    """Rows into one tiled TIFF, deflated: `(H, W)`, `(H, W, C)` or, with one page a slice, `(Z, H, W[, C])`.

    Tiles are deflated into a file beside the final one as soon as their rows are complete; the TIFF, whose
    tables need all lengths first, is put together from them at the end. At most one row of tiles is held.
    """

    def __init__(
        self, partial: Partial, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int, frames: int | None = None
    ) -> None:
        if len(shape) > axes + 1 or frames is not None:
            raise ValueError(
                f"{partial.path}: a TIFF holds one row of channels a pixel, not values of shape {shape[axes:]}; "
                "choose .npy or .zarr"
            )
        self._volume, self._has_axis = axes == 3, len(shape) > axes
        self._shape = shape[:axes] if shape[axes:] == (1,) else shape
        self._dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype
        self._partial, self._spool = partial, partial.file()
        self._lengths: list[int] = []
        self._held = np.empty((0 if self._volume else TILE, *self._shape[1:]), self._dtype)
        self._count = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows (slices, of a volume)."""
        rows = np.ascontiguousarray(rows, self._dtype).reshape(len(rows), *self._shape[1:])
        if self._volume:
            for page in rows:
                self._deflate(page)
            return
        at = 0
        while at < len(rows):
            if not self._count and len(rows) - at >= TILE:
                self._deflate(rows[at : at + TILE])
                at += TILE
                continue
            step = min(TILE - self._count, len(rows) - at)
            self._held[self._count : self._count + step] = rows[at : at + step]
            self._count, at = (self._count + step) % TILE, at + step
            if not self._count:
                self._deflate(self._held)

    def _deflate(self, page: NDArray[Any]) -> None:
        pixel = page.shape[2:]
        for y in range(0, page.shape[0], TILE):
            for x in range(0, page.shape[1], TILE):
                part = page[y : y + TILE, x : x + TILE]
                tile = np.zeros((TILE, TILE, *pixel), self._dtype)
                tile[: part.shape[0], : part.shape[1]] = part
                packed = zlib.compress(tile.data, 1)
                self._lengths.append(len(packed))
                self._spool.write(packed)

    def _packed(self) -> Iterator[bytes]:
        self._spool.seek(0)
        for length in self._lengths:
            yield self._spool.read(length)

    def close(self) -> None:
        """Put the TIFF together, in the place of its tiles."""
        if self._count:
            self._deflate(self._held[: self._count])
        final = Partial(self._partial.path)
        try:
            tifffile.imwrite(
                final.file(),
                self._packed(),
                shape=self._shape,
                dtype=self._dtype,
                tile=(TILE, TILE),
                photometric="minisblack",
                planarconfig="contig" if len(self._shape) > 2 + self._volume else None,
                compression="zlib",
                metadata=None,
                bigtiff=sum(self._lengths) > 3 * 2**30,
            )
            os.replace(final.name, self._partial.name)
        finally:
            final.discard()

    def opened(self, path: Path) -> Any:
        """The finished file as a region."""
        region = open_region(path, page="all" if self._volume else 0)
        return region.with_samples() if self._has_axis else region


class ZarrSink:
    """Rows into one Zarr array, whole chunks at a time; named `NAME.zarr` only when it is complete."""

    def __init__(
        self, partial: Partial, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int, frames: int | None = None
    ) -> None:
        zarr = require("zarr", extra="zarr")
        self._frames = frames
        chunks = (*[1] * (axes - 2), *(min(TILE, n) for n in shape[axes - 2 : axes]), *shape[axes:])
        whole, stored = _laid_out(shape, frames), _laid_out(chunks, frames)
        self._array = zarr.create_array(str(partial.name), shape=whole, dtype=dtype, chunks=stored)
        partial.hold()
        self._step, self._row, self._held = chunks[0], 0, np.empty((0, *shape[1:]), dtype)

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows; those that do not fill a chunk wait for the next."""
        joined = np.concatenate([self._held, rows])
        whole = len(joined) - len(joined) % self._step
        self._write(joined[:whole])
        self._held = joined[whole:].copy()

    def _write(self, rows: NDArray[Any]) -> None:
        if len(rows):
            place, values = placed(rows, self._row, self._frames)
            self._array[place] = values
            self._row += len(rows)

    def close(self) -> None:
        """Write what is held."""
        self._write(self._held)

    def opened(self, path: Path) -> Any:
        """The array, open for reading."""
        return require("zarr", extra="zarr").open_array(str(path), mode="r")


FILES: dict[str, Kind] = {
    ".npy": NpySink,
    ".tif": TiffSink,
    ".tiff": TiffSink,
    ".zarr": ZarrSink,
}
