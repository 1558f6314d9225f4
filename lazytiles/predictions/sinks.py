"""Where finished rows of a region go: arrays, `.npy`, tiled TIFF and Zarr, in order and only forward."""

from __future__ import annotations

import fcntl
import glob
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import LazyTilesError, StoreError, require
from lazytiles.images import descriptor, open_region
from lazytiles.stores import (
    OLD,
    PARTIAL,
    TILE,
    ArraySink,
    BufferedWriter,
    Ground,
    Pyramid,
    Sink,
    cause_of,
    failed,
    publish,
    recover,
    remove,
)

Out: TypeAlias = Any
"""Nothing, an array, a path, or an object with `append(rows)` and `close()`."""

_LETTERS = 12  # behind the mark of what is not complete: other than those of a store


class RowSink(Sink, Protocol):
    """Takes the rows of one array, which the caller uses again, from first to last; `close` returns what reads them."""

    def abort(self) -> None:
        """No more rows will come: leave nothing half written behind."""


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


def open_sink(
    out: Out, shape: Sequence[int], dtype: np.dtype[Any], *, axes: int = 2, ground: Ground | None = None
) -> RowSink:
    """The sink for an `out` argument: see `check_out`; the folder of a path is made where there is none.

    Shape and dtype are those of all rows together, the first `axes` of the shape space: 2 for `(height, width, ...)`, 3
    for `(depth, height, ...)`. What goes into an array is cast to its dtype; a TIFF says that it lies on `ground`.

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
        return FILES[path.suffix.lower()](path, shape, dtype, axes, frames, ground or Ground())
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

    It is None, an array, a path of a known kind that does not exist or is given as `Replacing`, or an object with
    `append(rows)` and `close()`.
    """
    if isinstance(out, (str, os.PathLike)):
        path = Path(out)
        if path.suffix.lower() not in FILES:
            raise ValueError(f"{path}: rows can be written to {', '.join(FILES)}; choose one of these endings")
        try:
            recover(path)
        except OSError as error:
            raise failed(f"{path}: opening failed: {cause_of(error)}", error) from error
        if path.exists() and not isinstance(out, Replacing):
            raise StoreError(f"{path} exists; remove it, choose another name, or pass overwrite=True")
    elif out is not None and not hasattr(out, "__setitem__") and not (hasattr(out, "append") and hasattr(out, "close")):
        raise ValueError(f"out={out!r} is no array, path or object with append() and close()")


def _laid_out(shape: tuple[int, ...], frames: int | None) -> tuple[int, ...]:
    """The shape of an output whose frames, at that axis of the rows, come first."""
    return shape if frames is None else (shape[frames], *shape[:frames], *shape[frames + 1 :])


def sweep(path: Path, *, dead: bool = False) -> None:
    """Remove what other runs left beside a file; with `dead` only what is not locked, as nobody writes it any more."""
    for left in path.parent.glob(f"{glob.escape(path.name)}{PARTIAL}{'?' * _LETTERS}"):
        with suppress(OSError), descriptor(left) as fd:
            if dead:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(left)


class _Foreign:
    """The caller's own sink, given rows that it may keep."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def append(self, rows: NDArray[Any]) -> None:
        self._sink.append(rows.copy())

    def close(self) -> Any:
        self._sink.close()
        return self._sink

    def abort(self) -> None:
        """The sink is the caller's to close."""


def _partial_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex[:_LETTERS]}")


class FileSink:
    """The sink of a file or folder: it is written beside its place, and renamed when it is complete.

    Errors name the file and what was done, and nothing unfinished stays after one. What is written is locked, so that
    `sweep` leaves it. Where it lies, `ground`, may be set until it is closed.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int, frames: int | None, ground: Ground
    ) -> None:
        self.path, self.partial = path, _partial_of(path)
        self.frames, self.ground, self.row = frames, ground, 0
        self._closing = ExitStack()
        with self._clean("starting"):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path, dead=True)
            self.start(shape, dtype, axes)

    def new_file(self, name: Path) -> Any:
        """A new file, open for writing and reading, and locked."""
        file = self._closing.enter_context(open(name, "x+b"))  # noqa: SIM115
        self._lock(file)
        return file

    def _lock(self, file: Any) -> None:
        with suppress(OSError):  # A file system without locks.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def start(self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int) -> None:
        """Make the partial."""
        raise NotImplementedError

    def write(self, rows: NDArray[Any]) -> None:
        """Write the rows from `row` on."""
        raise NotImplementedError

    def complete(self) -> None:
        """All rows came: complete what they lie in."""
        raise NotImplementedError

    def opened(self) -> Any:
        """What reads the file, once it has its name."""
        raise NotImplementedError

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        with self._clean(f"writing rows {self.row} to {self.row + len(rows)}"):
            self.write(rows)
        self.row += len(rows)

    def close(self) -> Any:
        """Complete the file, give it its name, and open it."""
        with self._clean("completing the file"):
            self.complete()
            self._closing.close()
            publish(self.partial, self.path, "")
            for left in self.path.parent.glob(f"{glob.escape(self.path.name)}{OLD}*"):
                remove(left)
            return self.opened()

    def abort(self) -> None:
        """Remove what was written."""
        with suppress(OSError):
            self._closing.close()
        with suppress(OSError):
            remove(self.partial)

    @contextmanager
    def _clean(self, doing: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.abort()
            if not isinstance(error, OSError) or isinstance(error, LazyTilesError):
                raise
            raise failed(
                f"{self.path}: {doing} failed: {cause_of(error)}; nothing of it stays: make room or mend the cause, "
                "then predict again",
                error,
            ) from error


class _Npy(FileSink):
    """Rows into one `.npy` file, each frame front to back, never mapped."""

    def start(self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int) -> None:
        self._file, whole = self.new_file(self.partial), _laid_out(shape, self.frames)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": whole}
        np.lib.format.write_array_header_2_0(self._file, header)
        row = whole[1 if self.frames is None else 2 :]
        self._first, self._row_bytes = self._file.tell(), math.prod(row) * dtype.itemsize
        self._frame_bytes = shape[0] * self._row_bytes

    def write(self, rows: NDArray[Any]) -> None:
        blocks = rows[np.newaxis] if self.frames is None else np.moveaxis(rows, self.frames, 0)
        for frame, block in enumerate(blocks):
            self._file.seek(self._first + frame * self._frame_bytes + self.row * self._row_bytes)
            self._file.write(np.ascontiguousarray(block).data)

    def complete(self) -> None:
        self._file.flush()

    def opened(self) -> Any:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


class _Tiff(FileSink):
    """Rows into one tiled TIFF with overviews: `(H, W)`, `(H, W, C)` or, with one page a slice, `(Z, H, W[, C])`.

    It says where it lies, see `Pyramid`, which packs its rows in the place of the file.
    """

    def start(self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int) -> None:
        if len(shape) > axes + 1 or self.frames is not None:
            raise ValueError(
                f"{self.path}: a TIFF holds one row of channels a pixel, not values of shape {shape[axes:]}; "
                "choose .npy or .zarr"
            )
        self._volume, self._has_axis, self._dtype = axes == 3, len(shape) > axes, dtype
        stored = shape[:axes] if shape[axes:] == (1,) else shape
        self._pyramid = Pyramid(self.new_file(self.partial), stored, dtype, is_volume=self._volume)

    def write(self, rows: NDArray[Any]) -> None:
        self._pyramid.append(rows, self.ground.nodata)

    def complete(self) -> None:
        final = _partial_of(self.path)
        ground = self.ground
        if ground.nodata is None and self._dtype.kind == "f":
            ground = replace(ground, nodata=np.nan)
        try:
            self._pyramid.finish(self.new_file(final), ground)
            os.replace(final, self.partial)
        finally:
            remove(final)

    def opened(self) -> Any:
        region = open_region(self.path, page="all" if self._volume else 0)
        return region.with_samples() if self._has_axis else region


class _Zarr(FileSink):
    """Rows into one Zarr array, whole chunks at a time."""

    def start(self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int) -> None:
        zarr = require("zarr", extra="zarr")
        chunks = (*[1] * (axes - 2), *(min(TILE, n) for n in shape[axes - 2 : axes]), *shape[axes:])
        whole, stored = _laid_out(shape, self.frames), _laid_out(chunks, self.frames)
        array = zarr.create_array(str(self.partial), shape=whole, dtype=dtype, chunks=stored)
        self._lock(self._closing.enter_context(descriptor(self.partial)))
        self._writer = BufferedWriter(ArraySink(array, self.frames), chunk=chunks[0])

    def write(self, rows: NDArray[Any]) -> None:
        self._writer.write(rows)

    def complete(self) -> None:
        self._writer.close()

    def opened(self) -> Any:
        return require("zarr", extra="zarr").open_array(str(self.path), mode="r")


FILES: dict[str, type[FileSink]] = {".npy": _Npy, ".tif": _Tiff, ".tiff": _Tiff, ".zarr": _Zarr}
