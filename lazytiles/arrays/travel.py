"""Views that go to other processes with the names of their files, not with what the files hold."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lazytiles.errors import require


class Travels:
    """Pickles what it has; memory maps and HDF5 datasets go by file and place, and are opened to read on arrival."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: _packed(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update((name, _unpacked(value)) for name, value in state.items())


@dataclass(frozen=True, slots=True)
class _ByName:
    """A source that lies in a file, closed."""

    open: Callable[..., Any]
    arguments: tuple[Any, ...]


def _packed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_packed, value))
    holder: Any = getattr(value, "base", None)
    if isinstance(value, np.memmap) and isinstance(holder, mmap.mmap) and value.filename is not None:
        # A slice of a map does not know its place in the file: it goes as the pixels that it is.
        order = "C" if value.flags.c_contiguous else "F"
        return _ByName(_memory_map, (os.fspath(value.filename), value.dtype, value.offset, value.shape, order))
    if type(value).__module__.startswith("h5py.") and value.file.driver != "core" and value.name:
        return _ByName(_dataset, (os.path.abspath(value.file.filename), value.name))
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_unpacked, value))
    return value.open(*value.arguments) if isinstance(value, _ByName) else value


def _memory_map(path: str, dtype: DTypeLike, offset: int, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    return np.memmap(path, dtype, "r", offset, shape, order)


def _dataset(path: str, name: str) -> Any:
    return require("h5py", extra="hdf5").File(path, "r")[name]
