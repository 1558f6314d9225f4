"""Sources in tandem: equal rows of several arrays, read together and given back in the form they came in."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.arrays import held
from lazytiles.config import count
from lazytiles.errors import LazyTilesError
from lazytiles.trees import Structure, leaves, mapped, rebuilt

Rows = NDArray[np.int64]
Array = NDArray[Any]
Done = Callable[[int, "Array | LazyTilesError"], None]

_NAMED = 3  # samples that one message names at most
_LABEL_AXES = 2  # NumPy arrays of so many axes are labels, weights or columns, and small


def native(array: Any) -> Array:
    """The same values, C-contiguous and in the byte order of this machine; a copy only where needed.

    >>> native(np.arange(2, dtype=">i2")).dtype == np.dtype("int16")
    True
    """
    array = np.asarray(array)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def as_source(value: Any) -> Any:
    """A source as it is now (see `lazytiles.arrays.view.held`), if it can serve as one.

    >>> as_source([1, 2])
    Traceback (most recent call last):
    TypeError: a source has a shape, a dtype and indexing, as NumPy arrays do; list has not
    """
    source = held(value)
    if not all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__")) or not source.shape:
        raise TypeError(
            f"a source has a shape, a dtype and indexing, as NumPy arrays do; {type(value).__name__} has not"
        )
    if not all(isinstance(length, int | np.integer) for length in source.shape):
        raise TypeError(f"a {type(value).__name__} of shape {source.shape} is no source: its samples have no one shape")
    return source


def has_own_take(source: Any) -> bool:
    """Whether a source reads batches by the protocol's ``take(indices, out=None)``.

    The `take` of NumPy and its like has an `axis` and flattens where none is given: it is another.
    """
    try:
        return "axis" not in inspect.signature(source.take).parameters
    except (AttributeError, TypeError, ValueError):  # none, or a built-in one, as of tensors
        return False


def read_rows(source: Any, rows: Rows) -> Array:
    """Rows of a source, in that order, as a fresh array that shares no memory with it, shape (n, *source.shape[1:]).

    It is C-contiguous and in native byte order. `rows`, int64, shape (n,), may repeat and go back; sources that are no
    NumPy arrays and have no ``take(indices)`` are asked for each row once, in rising order (as h5py wants them).

    >>> read_rows(np.arange(10, 20), np.array([3, 0, 3]))
    array([13, 10, 13])
    """
    if isinstance(source, np.ndarray):
        return native(np.take(np.asarray(source), rows, axis=0))
    if has_own_take(source):
        return native(source.take(rows))
    if len(rows) == 0:
        return np.empty((0, *source.shape[1:]), np.dtype(source.dtype).newbyteorder("="))
    unique, inverse = np.unique(rows, return_inverse=True)
    lo, hi = int(unique[0]), int(unique[-1]) + 1
    block = native(source[lo:hi] if hi - lo == len(unique) else source[unique])
    if block.shape != (len(unique), *source.shape[1:]):
        raise LazyTilesError(
            f"{type(source).__name__} gave an array of shape {block.shape} for {len(unique)} rows "
            f"of shape {tuple(source.shape[1:])}"
        )
    if np.array_equal(inverse, np.arange(len(rows))) and block.flags.owndata and block.flags.writeable:
        return block
    return np.take(block, inverse, axis=0)


class Alive:
    """One finished batch in the counter ``batches_alive``, until the last of its tracked arrays is gone."""

    __slots__ = ("_held", "_lock")

    def __init__(self) -> None:
        self._held = 0
        self._lock = threading.RLock()

    def track(self, batch: Structure) -> None:
        """Count the batch for as long as one of its arrays lives."""
        for array in leaves(batch):
            if not isinstance(array, np.ndarray):
                continue
            with self._lock:
                if self._held == 0:
                    count("batches_alive", 1)
                self._held += 1
            weakref.finalize(array, self._release).atexit = False

    def _release(self) -> None:
        with self._lock:
            self._held -= 1
            if self._held == 0:
                count("batches_alive", -1)


class Tandem:
    """Sources of one length, in tuples, lists and dicts, that are read row by row together.

    They are held as they are now: reordering an array later, or writing into an array of labels (NumPy's, of one or two
    axes), changes nothing here. Arrays of images in memory are not copied. Sources that are neither NumPy's nor able to
    read batches themselves are read by one thread at a time, unless a number of threads is given. `readers` are
    processes that decode, None for the setting of that name.

    >>> Tandem((np.zeros((4, 2)), np.arange(4))).read(np.array([1, 3]))
    (array([[0., 0.], [0., 0.]]), array([1, 3]))
    """

    def __init__(self, data: Structure, *, threads: int | None = None, readers: int | None = None) -> None:
        sources = [as_source(leaf) for leaf in leaves(data)]
        self.sources: list[Any] = [s.copy() if type(s) is np.ndarray and s.ndim <= _LABEL_AXES else s for s in sources]
        if not self.sources:
            raise TypeError(f"there is no source in {data!r}")
        lengths = [int(source.shape[0]) for source in self.sources]
        if len(set(lengths)) > 1:
            raise ValueError(f"sources in tandem need one length, these have {', '.join(map(str, lengths))}")
        self.samples = lengths[0]
        self.threads = threads
        self._how: dict[str, Any] = {"threads": threads} | ({} if readers is None else {"readers": readers})
        self._form = rebuilt(data, iter(range(len(self.sources))))
        # The sources that plan several batches together (lazytiles' own arrays over image files).
        self.planned = tuple(
            k for k, s in enumerate(self.sources) if hasattr(s, "take_batches") and getattr(s, "plans_batches", True)
        )
        # Whether all the others lie in memory, so that reading them is not worth a thread.
        self.is_light = all(k in self.planned or type(s) is np.ndarray for k, s in enumerate(self.sources))
        self._turn = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._turn = threading.Lock()

    @property
    def data(self) -> Structure:
        """The sources as they are held, in the form in which they were given."""
        return rebuilt(self._form, iter(self.sources))

    def groups(self) -> Rows | None:
        """The number of the source that each sample lies in, of the first array that is made of several; or None."""
        found = (getattr(source, "region_ids", None) for source in self.sources)
        return next((numbers for numbers in found if numbers is not None), None)

    def read(self, rows: Rows, given: Mapping[int, Array] | None = None) -> Structure:
        """The batch of these rows; `given` holds the arrays of sources that are read already, by number."""
        arrays = dict(given or {})
        for k, source in enumerate(self.sources):
            alone = self.threads is None and not isinstance(source, np.ndarray)
            if k in self.planned and k not in arrays:
                arrays[k] = native(source.take(rows, **self._how))
            elif k not in arrays:
                with self._turn if alone else nullcontext():
                    arrays[k] = read_rows(source, rows)
        return mapped(self._form, lambda _, k: arrays[k])

    def read_planned(self, which: int, batches: Sequence[Rows], done: Done, stop: threading.Event) -> None:
        """Several batches of one planned source as one plan; see ``MultiSourceArray.take_batches``."""
        self.sources[which].take_batches(batches, done, stop=stop, **self._how)

    def verify(self) -> None:
        """Let every source that can do so check that all its samples can be read; an error names those that cannot."""
        for source in self.sources:
            if hasattr(source, "verify"):
                source.verify()

    def sample_bytes(self, which: Sequence[int]) -> int:
        """Bytes of memory that one sample of these sources takes while it is read."""
        return sum(
            int(np.prod(self.sources[k].shape[1:], dtype=object)) * np.dtype(self.sources[k].dtype).itemsize
            + getattr(self.sources[k], "scratch_bytes", 0)
            for k in which
        )

    def name(self, rows: Rows) -> str:
        """The samples of a batch as messages call them, such as ``"tile 4879221, tile 4879222"``."""
        namer = next((s.name_of for s in self.sources if hasattr(s, "name_of")), "sample {}".format)
        names = [namer(int(row)) for row in rows[:_NAMED]]
        more = len(rows) - len(names)
        return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def batch_error(place: str, names: str, error: BaseException) -> LazyTilesError:
    """An error of a batch that says what happened, then in which batch, whatever raised it.

    One of the library's own stays of its kind.

    >>> str(batch_error("transform of batch 3 of epoch 0", "tile 17", ValueError("odd")))
    'ValueError: odd (transform of batch 3 of epoch 0: tile 17)'
    """
    where = f"{place}: {names}" if names else place
    if isinstance(error, LazyTilesError):
        failure = type(error)(f"{error} ({where})")
    else:
        failure = LazyTilesError(f"{type(error).__name__}: {error} ({where})")
    failure.__cause__ = error
    return failure
