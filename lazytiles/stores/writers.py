"""Buffered writers: any number of rows in, whole chunks out, and a store that is complete or not there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lazytiles.errors import LazyTilesError, StoreError
from lazytiles.stores.formats import FORMATS, format_of
from lazytiles.stores.sink import StoreSink


class RowsError(LazyTilesError, ValueError, TypeError):
    """Rows of another shape, dtype or number than the writer takes."""


class Sink(Protocol):
    """Where rows go: anything with these two methods."""

    def append(self, rows: NDArray[Any]) -> object:
        """Take an array of shape (n, *row shape)."""

    def close(self) -> object:
        """Finish."""


def cast(block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values as another dtype: rounded and clipped to its range where it holds integers, never wrapped round.

    >>> cast(np.array([300.7, -1, 1.5]), np.dtype("uint8"))
    array([255,   0,   2], dtype=uint8)
    """
    if block.dtype == dtype:
        return block
    if block.dtype.kind not in "biuf" or dtype.kind not in "biu":
        return block.astype(dtype)
    if block.dtype.kind == "f" and np.isnan(block).any():
        raise ValueError(f"the values hold NaN, which {dtype} cannot; choose a floating dtype= or out=")
    if dtype.kind == "b":
        return block >= 0.5
    limits = np.iinfo(dtype)
    if block.dtype.kind != "f":
        given = np.iinfo(block.dtype if block.dtype.kind != "b" else np.uint8)
        return block.clip(max(limits.min, given.min), min(limits.max, given.max)).astype(dtype)
    # In double precision, which holds the limits of 32 bits; those of 64 bits are set as they are.
    rounded = np.rint(block, dtype=np.float64)
    clipped: NDArray[Any] = rounded.clip(limits.min, np.nextafter(float(limits.max), 0)).astype(dtype)
    clipped[rounded >= float(limits.max)] = limits.max
    return clipped


class ArraySink:
    """Rows into anything that takes `array[start:stop] = rows`, cast to its dtype; the axis `frames` of them in front.

    >>> sink = ArraySink(np.zeros((2, 2)))
    >>> sink.append(np.ones((1, 2))); sink.close()
    array([[1., 1.],
           [0., 0.]])
    """

    def __init__(self, array: Any, frames: int | None = None) -> None:
        self.array, self._frames, self._row = array, frames, 0

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows."""
        place: Any = slice(self._row, self._row + len(rows))
        values = rows
        if self._frames is not None:
            place, values = (slice(None), place), np.moveaxis(rows, self._frames, 0)
        self.array[place] = cast(values, np.dtype(getattr(self.array, "dtype", values.dtype)))
        self._row += len(rows)

    def close(self) -> Any:
        """The array."""
        getattr(self.array, "flush", lambda: None)()
        return self.array

    def abort(self) -> None:
        """The array is the caller's and stays as it is."""


class BufferedWriter:
    """Write rows in pieces of any size; the sink gets them in order, in whole chunks, and the rest when it is closed.

    Parameters
    ----------
    sink : array with `shape`, `dtype` and item assignment (NumPy's, a memory map, a dataset of HDF5 or Zarr), whose
        rows are written from the first on; or object with `append(rows)` and `close()`. If that has `flush(tail)`
        too, flushing tells it of the rows that do not fill a chunk yet; if it has `abort()`, an exception calls
        that instead of `close`
    chunk : rows of one chunk
    shape : of one row; by default the array's, or that of the first rows written
    dtype : of the rows; by default the array's, or that of the first rows written
    length : rows that will be written in all; by default as many as the array has, or any number

    Raises
    ------
    RowsError : a sink that is neither, an array that cannot be written to, or one of another shape or dtype

    Notes
    -----
    Rows are never cast, but for their byte order. `write` may be called from several threads; the rows of
    one call stay together. What is written is copied or handed on before `write` returns.

    Examples
    --------
    >>> class Shapes:
    ...     def append(self, rows):
    ...         print(rows.shape)
    ...
    ...     def close(self):
    ...         print("closed")
    >>> with BufferedWriter(Shapes(), chunk=4) as writer:
    ...     for n in (3, 6, 1):
    ...         writer.write(np.zeros((n, 2)))
    (4, 2)
    (4, 2)
    (2, 2)
    closed
    >>> rows = np.zeros((4, 2))
    >>> with BufferedWriter(rows) as writer:
    ...     writer.write(np.ones((3, 2)))
    >>> rows[:, 0]
    array([1., 1., 1., 0.])
    """

    def __init__(
        self,
        sink: Any,
        *,
        chunk: int = 32,
        shape: Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        length: int | None = None,
    ) -> None:
        _check_counts(chunk, length)
        if hasattr(sink, "__setitem__") and hasattr(sink, "shape") and hasattr(sink, "dtype"):
            if not sink.shape:
                raise RowsError("a scalar has no rows to write into")
            whole, kind = tuple(sink.shape), np.dtype(sink.dtype)
            if kind.kind not in "biufc" or 0 in whole[1:]:
                raise RowsError(f"rows of dtype {kind} and row shape {whole[1:]} cannot be stored")
            writable = getattr(getattr(sink, "flags", None), "writeable", True)
            mode = getattr(getattr(sink, "file", None), "mode", "r+")  # of an h5py dataset
            if not writable or mode == "r" or getattr(sink, "read_only", False):
                raise RowsError(f"the array of shape {whole} is read-only; open it for writing, such as with mode 'r+'")
            length = whole[0] if length is None else length
            if (shape is not None and tuple(shape) != whole[1:]) or length > whole[0]:
                asked = (length, *(whole[1:] if shape is None else shape))
                raise RowsError(f"the array has shape {whole}; rows of shape {asked} do not fit into it")
            if dtype is not None and np.dtype(dtype).newbyteorder("=") != kind.newbyteorder("="):
                raise RowsError(f"the array has dtype {kind}, not {np.dtype(dtype)}")
            sink, shape, dtype = ArraySink(sink), whole[1:], kind
        elif not (callable(getattr(sink, "append", None)) and callable(getattr(sink, "close", None))):
            raise RowsError(
                f"a {type(sink).__name__} takes no rows: an array is needed, or an object with append(rows) and close()"
            )
        self._sink: Sink = sink
        self._chunk = int(chunk)
        self._shape = None if shape is None else tuple(int(n) for n in shape)
        self._dtype = None if dtype is None else np.dtype(dtype).newbyteorder("=")
        self._length = length
        self._held: list[NDArray[Any]] = []
        self._held_rows = 0
        self._rows = 0
        self._open = True
        self._full = False  # whether the store was complete already
        self._broken = False
        self._lock = threading.RLock()  # abort() takes it again after an exception while it is left

    def write(self, rows: ArrayLike) -> None:
        """Write rows behind those written before.

        Parameters
        ----------
        rows : array of shape (n, *row shape), any n, of the writer's dtype

        Raises
        ------
        RowsError : another shape or dtype, or more rows than `length`; nothing of them is written
        StoreError : the sink cannot write, such as on a full disk
        """
        given = np.asarray(rows)
        with self._lock:
            if not self._open:
                raise RowsError("the writer is closed; open a new one")
            self._check(given)
            rows_ = np.ascontiguousarray(given, dtype=self._dtype)
            with self._whole_or_broken():
                self._rows += len(rows_)
                self._take(rows_)

    @contextmanager
    def _whole_or_broken(self) -> Iterator[None]:
        """Rows that were handed on in part cannot be handed on again: the writer ends, and its lock with it."""
        try:
            yield
        except BaseException:
            self._open, self._broken = False, True
            getattr(self._sink, "abort", self._sink.close)()
            raise

    def _check(self, rows: NDArray[Any]) -> None:
        if self._full and len(rows):
            raise RowsError(f"the store is complete with {self._rows} rows; pass mode='a' to append")
        if rows.ndim == 0:
            raise RowsError("rows must have a leading axis of rows, but a scalar was given")
        shape = rows.shape[1:] if self._shape is None else self._shape
        if rows.shape[1:] != shape:
            hint = "; for a single row pass row[None]" if rows.shape == shape else ""
            raise RowsError(f"rows of shape {rows.shape} given, but the store takes {('n', *shape)}{hint}")
        dtype = rows.dtype.newbyteorder("=") if self._dtype is None else self._dtype
        if rows.dtype.newbyteorder("=") != dtype:
            raise RowsError(
                f"rows of dtype {rows.dtype} given, but the store takes {dtype}; "
                f"cast them first: rows.astype({dtype.name!r})"
            )
        if dtype.kind not in "biufc" or 0 in shape:
            raise RowsError(f"rows of dtype {dtype} and row shape {shape} cannot be stored")
        if self._length is not None and self._rows + len(rows) > self._length:
            raise RowsError(
                f"{len(rows)} rows after row {self._rows} would pass the length of {self._length} rows; "
                "make the writer without length to let it grow"
            )
        self._shape, self._dtype = shape, dtype

    def _take(self, rows: NDArray[Any]) -> None:
        while len(rows):
            # What is held is filled up to a chunk; where nothing is, whole chunks go as they are.
            whole = len(rows) // self._chunk * self._chunk
            if whole and not self._held:
                self._sink.append(rows[:whole])
                rows = rows[whole:]
                continue
            part = rows[: self._chunk - self._held_rows]
            self._held.append(part.copy())
            self._held_rows += len(part)
            rows = rows[len(part) :]
            if self._held_rows == self._chunk:
                self._sink.append(self._let_go())

    def _let_go(self) -> NDArray[Any]:
        rows = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        self._held, self._held_rows = [], 0
        return rows

    def flush(self) -> None:
        """Hand the rows that wait to the sink; one that can keeps them safe from the death of this process.

        A chunk that is not full stays in the buffer as well, so that the sink gets whole chunks.
        """
        with self._lock:
            if self._open and self._dtype is not None and self._shape is not None:
                with self._whole_or_broken():
                    rows = self._let_go() if self._held else np.empty((0, *self._shape), self._dtype)
                    keep = getattr(self._sink, "flush", None)
                    if keep is not None:
                        keep(rows)
                    if keep is None and len(rows):
                        self._sink.append(rows)
                    elif len(rows):
                        self._held, self._held_rows = [rows], len(rows)

    def close(self) -> None:
        """Write the rest and close the sink; a second call does nothing.

        Raises
        ------
        StoreError : the store cannot be completed, or an earlier write has failed
        """
        with self._lock:
            if self._broken:
                self._broken = False
                raise StoreError(f"{self!r} is not complete: an earlier write failed; open a new writer")
            if not self._open:
                return
            with self._whole_or_broken():
                if self._held:
                    self._sink.append(self._let_go())
                self._sink.close()
                self._open = False

    def abort(self) -> None:
        """Stop without completing the store."""
        with self._lock:
            self._broken = False
            if self._open:
                self._open = False
                getattr(self._sink, "abort", self._sink.close)()

    def __len__(self) -> int:
        return self._rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        of = "" if self._length is None else f" of {self._length}"
        return f"<{type(self).__name__} {self._rows}{of} rows of {self._shape} {self._dtype}, {state}>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be pickled: one process writes a store; make the writer there")


def _check_counts(chunk: int, length: int | None) -> None:
    if chunk < 1:
        raise RowsError(f"chunk must be at least 1 row, not {chunk}")
    if length is not None and length < 0:
        raise RowsError(f"length must be at least 0 rows, not {length}")


class StoreWriter(BufferedWriter):
    """Write a store in the format that its path's ending names; what the writers of all formats share.

    Parameters
    ----------
    path : the store, or ``file.h5::dataset``; it is there only once the writer is closed. Its directory must exist.
    shape, dtype : of one row; by default those of the first rows written
    length : rows in all, or None to grow; closing with fewer is an error
    chunk : rows of one chunk, best the batch size in which it will be read
    mode : ``"w"``, a new store; ``"a"``, behind the rows of a complete store, whose chunk, row shape and
        dtype then hold, or a new one
    overwrite : replace a store that is there, once the new one is complete
    resume : go on where a killed or failed writer of the same rows stopped: `len(writer)` rows are there
        already and are not to be written again, which are all rows where it was complete. Without such a writer it
        starts from the beginning.
    sync : flush the finished store to the disk itself before it gets its name, against a loss of power
    options : for the format's library, such as compression

    Raises
    ------
    StoreError : the store exists, is locked by another writer, or cannot be written
    RowsError : rows of another shape or dtype than the store that is continued
    ImportError : the format's library is not installed

    Notes
    -----
    The store is written as ``NAME.partial-…`` beside it and renamed when it is complete: a killed process, a
    full disk or an exception in the ``with`` block leave the old state, and `resume` goes on from what a
    journal beside the partial knows to be safe. `docs/do/exporting.md` describes the layout.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with StoreWriter(f"{folder}/rows.npy", (2,), "f4", chunk=4) as writer:
    ...         writer.write(np.ones((7, 2), "f4"))
    ...     with StoreWriter(f"{folder}/rows.npy", mode="a") as writer:
    ...         writer.write(np.zeros((3, 2), "f4"))
    ...         writer
    ...     np.load(f"{folder}/rows.npy").shape
    <StoreWriter 10 rows of (2,) float32, open>
    (10, 2)
    """

    _form = ""

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        *,
        length: int | None = None,
        chunk: int = 32,
        mode: str = "w",
        overwrite: bool = False,
        resume: bool = False,
        sync: bool = False,
        **options: Any,
    ) -> None:
        _check_counts(chunk, length)
        form = FORMATS[self._form] if self._form else format_of(Path(path))
        how: dict[str, Any] = {"mode": mode, "overwrite": overwrite, "resume": resume, "sync": sync}
        sink = StoreSink(path, form, options, chunk=int(chunk), length=length, **how)
        self.path = sink.path  # the store that is written
        try:
            super().__init__(sink, chunk=chunk, shape=shape, dtype=dtype, length=length)
            layout = sink.layout
            if layout is not None:  # of a killed writer, or of the store that is appended to
                self._chunk = layout.chunk
                tail = np.frombuffer(sink.tail, layout.dtype).reshape(-1, *layout.shape)
                self._rows = sink.rows
                self._check(tail)
                self._rows += len(tail)
                self._take(tail)
                self._full = sink.is_complete
            elif self._shape is not None and self._dtype is not None:
                sink.begin(self._shape, self._dtype)
        except BaseException:
            sink.abort()
            raise


class HDF5Writer(StoreWriter):
    """Write a dataset of an HDF5 file, by default LZF-compressed, with Fletcher-32 checksums.

    It is ``data``, or the one that the path names, such as ``"tiles.h5::images"``: then a file that is there keeps
    its other datasets, also with `overwrite`. ``mode="a"`` makes a further dataset in a file that has others, or
    appends. Takes what `StoreWriter` takes; further options are those of `h5py.Group.create_dataset`, such as
    ``compression="gzip"``, ``compression_opts=4`` or ``shuffle=True``.

    Examples
    --------
    >>> import tempfile, h5py
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with HDF5Writer(f"{folder}/rows.h5", chunk=4) as writer:
    ...         writer.write(np.ones((10, 2), "f4"))
    ...     with h5py.File(f"{folder}/rows.h5") as file:
    ...         file["data"]
    <HDF5 dataset "data": shape (10, 2), type "<f4">
    """

    _form = "hdf5"


class ZarrWriter(StoreWriter):
    """Write a Zarr 3 array, by default compressed by Blosc LZ4, with a CRC-32C behind every chunk.

    Takes what `StoreWriter` takes; further options are those of `zarr.create_array`, such as
    ``compressors=zarr.codecs.ZstdCodec(level=3)`` (None for none) or ``filters=``.

    Examples
    --------
    >>> import tempfile, zarr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ZarrWriter(f"{folder}/rows.zarr", chunk=4) as writer:
    ...         writer.write(np.ones((10, 2), "f4"))
    ...     zarr.open_array(f"{folder}/rows.zarr", mode="r").shape
    (10, 2)
    """

    _form = "zarr"


class Blosc2Writer(StoreWriter):
    """Write a Blosc2 array (``.b2nd``), by default compressed by LZ4; the record has a CRC-32 of every chunk.

    Takes what `StoreWriter` takes; further options are those of `blosc2.empty`, such as
    ``cparams=blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=3)``.

    Examples
    --------
    >>> import tempfile, blosc2
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Blosc2Writer(f"{folder}/rows.b2nd", chunk=4) as writer:
    ...         writer.write(np.ones((10, 2), "f4"))
    ...     blosc2.open(f"{folder}/rows.b2nd", mode="r").shape
    (10, 2)
    """

    _form = "blosc2"


class NpyWriter(StoreWriter):
    """Write a plain ``.npy`` file, which `numpy.load` maps; the record has a CRC-32 of every chunk.

    Takes what `StoreWriter` takes, and no further options.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with NpyWriter(f"{folder}/rows.npy", chunk=4) as writer:
    ...         writer.write(np.ones((10, 2), "f4"))
    ...     np.load(f"{folder}/rows.npy", mmap_mode="r").shape
    (10, 2)
    """

    _form = "npy"
