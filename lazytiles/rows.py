"""Where finished rows of a region go: arrays, `.npy`, tiled TIFF and Zarr, in order and only forward."""

from __future__ import annotations

import glob
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import tifffile
from numpy.typing import NDArray

from lazytiles.errors import StoreError, require
from lazytiles.region import open_region

Out: TypeAlias = Any
"""Nothing, an array, a path, or an object with `append(rows)` and `close()`."""

TILE = 256
PARTIAL = ".partial-"  # and some letters: the ending of what is not complete


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


class Rerun(os.PathLike[str]):
    """A path that one task alone writes, perhaps twice: what lies there already is the work of its first run.

    >>> os.fspath(Rerun("maps/1225.tif"))
    'maps/1225.tif'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def __fspath__(self) -> str:
        return self.path


def open_sink(out: Out, shape: Sequence[int], dtype: np.dtype[Any], *, axes: int = 2) -> RowSink:
    """The sink for an `out` argument.

    Parameters
    ----------
    out : `None`, an array of that shape, a path that ends in .npy, .tif, .tiff or .zarr (its folder is made where
        there is none), or an object with `append(rows)` and `close()`
    shape : of all rows together
    dtype : of the rows
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
    shape = tuple(shape)
    if out is None:
        return ArraySink(np.empty(shape, dtype))
    if isinstance(out, (str, os.PathLike)):
        path = Path(out)
        kind = FILES.get(path.suffix.lower())
        if kind is None:
            raise ValueError(f"{path}: rows can be written to {', '.join(FILES)}; choose one of these endings")
        if not isinstance(out, Rerun):
            refuse_existing(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return kind(path, shape, dtype, axes)
    if hasattr(out, "__setitem__"):
        given = tuple(out.shape)
        if given != shape and given != (shape[:-1] if shape[-1] == 1 else None):
            raise ValueError(f"out= has shape {given}; {shape} is needed")
        return ArraySink(out)
    if isinstance(out, _Appends):
        return _Foreign(out)
    raise ValueError(f"out={out!r} is no array, path or object with append() and close()")


def refuse_existing(path: Path) -> None:
    """Maps never replace what is there.

    Raises
    ------
    StoreError : the path exists
    """
    if path.exists():
        raise StoreError(f"{path} exists; remove it or choose another name")


def sweep(path: Path) -> None:
    """Remove what killed processes left beside a finished file."""
    for left in path.parent.glob(f"{glob.escape(path.name)}{PARTIAL}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


class ArraySink:
    """Rows into anything that takes `array[start:stop] = rows`.

    >>> sink = ArraySink(np.zeros((2, 2)))
    >>> sink.append(np.ones((1, 2))); sink.close()
    array([[1., 1.],
           [0., 0.]])
    """

    def __init__(self, array: Any) -> None:
        self.array, self._row = array, 0

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        self.array[self._row : self._row + len(rows)] = rows.reshape(len(rows), *self.array.shape[1:])
        self._row += len(rows)

    def close(self) -> Any:
        """The array."""
        flush = getattr(self.array, "flush", None)
        if flush is not None:
            flush()
        return self.array

    def abort(self) -> None:
        """The array is the caller's and stays as it is."""


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


class _Partial:
    """A file beside the final one, renamed when it is complete."""

    def __init__(self, path: Path) -> None:
        self.path, self._beside = path, _beside(path)
        # Not closed by a with-block: it lives as long as the sink that owns it.
        self.file = open(self._beside, "x+b")  # noqa: SIM115

    def publish(self) -> None:
        self.file.close()
        os.replace(self._beside, self.path)

    def discard(self) -> None:
        self.file.close()
        self._beside.unlink(missing_ok=True)


class NpySink:
    """Rows into one `.npy` file, written front to back, never mapped."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int) -> None:
        self._partial = _Partial(path)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(self._partial.file, header)

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        self._partial.file.write(np.ascontiguousarray(rows).data)

    def close(self) -> Any:
        """The file, mapped for reading."""
        self._partial.publish()
        return np.load(self._partial.path, mmap_mode="r", allow_pickle=False)

    def abort(self) -> None:
        """Remove what was written."""
        self._partial.discard()


class TiffSink:
    """Rows into one tiled TIFF, deflated: `(H, W)`, `(H, W, C)` or, with one page a slice, `(Z, H, W[, C])`.

    Tiles are deflated into a file beside the final one as soon as their rows are complete; the TIFF, whose
    tables need all lengths first, is put together from them at the end. At most one row of tiles is held.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int) -> None:
        if len(shape) > axes + 1:
            raise ValueError(f"{path}: a TIFF holds one row of channels a pixel, not values of shape {shape[axes:]}")
        self._volume = axes == 3
        self._shape = shape[:axes] if shape[axes:] == (1,) else shape
        self._dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype
        self._spool = _Partial(path)
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
                self._spool.file.write(packed)

    def _packed(self) -> Iterator[bytes]:
        self._spool.file.seek(0)
        for length in self._lengths:
            yield self._spool.file.read(length)

    def close(self) -> Any:
        """The finished file as a region."""
        if self._count:
            self._deflate(self._held[: self._count])
        final = _Partial(self._spool.path)
        try:
            tifffile.imwrite(
                final.file,
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
        except BaseException:
            final.discard()
            raise
        finally:
            self._spool.discard()
        final.publish()
        return open_region(self._spool.path, page="all" if self._volume else 0)

    def abort(self) -> None:
        """Remove what was written."""
        self._spool.discard()


class ZarrSink:
    """Rows into one Zarr array, whole chunks at a time; named `NAME.zarr` only when it is complete."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], axes: int) -> None:
        zarr = require("zarr", extra="zarr")
        self._path, self._partial = path, _beside(path)
        chunks = [1] * (axes - 2) + [min(TILE, n) for n in shape[axes - 2 : axes]] + list(shape[axes:])
        self._array = zarr.create_array(str(self._partial), shape=shape, dtype=dtype, chunks=tuple(chunks))
        self._step, self._row, self._held = chunks[0], 0, np.empty((0, *shape[1:]), dtype)

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows; those that do not fill a chunk wait for the next."""
        joined = np.concatenate([self._held, rows])
        whole = len(joined) - len(joined) % self._step
        self._write(joined[:whole])
        self._held = joined[whole:].copy()

    def _write(self, rows: NDArray[Any]) -> None:
        if len(rows):
            self._array[self._row : self._row + len(rows)] = rows
            self._row += len(rows)

    def close(self) -> Any:
        """The array, open for reading."""
        self._write(self._held)
        if self._path.exists():  # of the first run of the same task, see `Rerun`
            os.replace(self._path, _beside(self._path))
        os.replace(self._partial, self._path)
        return require("zarr", extra="zarr").open_array(str(self._path), mode="r")

    def abort(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._partial, ignore_errors=True)


FILES: dict[str, Callable[[Path, tuple[int, ...], np.dtype[Any], int], RowSink]] = {
    ".npy": NpySink,
    ".tif": TiffSink,
    ".tiff": TiffSink,
    ".zarr": ZarrSink,
}


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex[:12]}")
