"""The formats of stores, each with what reads and what writes it in a room of its own."""

from __future__ import annotations

from pathlib import Path

from lazytiles.errors import StoreError
from lazytiles.images import open_plain, split_name
from lazytiles.stores.formats.base import Format
from lazytiles.stores.formats.blosc2 import Blosc2Format
from lazytiles.stores.formats.hdf5 import HDF5Format
from lazytiles.stores.formats.npy import NpyFormat
from lazytiles.stores.formats.tfrecord import TFRecordFormat
from lazytiles.stores.formats.zarr import ZarrFormat

FORMATS: dict[str, type[Format]] = {
    form.name: form for form in (HDF5Format, ZarrFormat, Blosc2Format, NpyFormat, TFRecordFormat)
}


def file_of(path: Path) -> Path:
    """The file or folder of a store, which may be named by a dataset in it.

    >>> file_of(Path("tiles.h5::images")).name
    'tiles.h5'
    """
    return Path(split_name(str(path))[0])


def format_of(path: Path) -> type[Format]:
    """The format that a path's ending names, a dataset behind ``::`` left out.

    >>> format_of(Path("tiles.zarr")).name
    'zarr'
    """
    name = file_of(path).name.lower()
    for form in FORMATS.values():
        if name.endswith(form.suffixes):
            return form
    known = ", ".join(suffix for form in FORMATS.values() for suffix in form.suffixes)
    raise StoreError(f"{path} names no format of stores; its name must end in one of {known}")


def format_at(path: Path) -> type[Format]:
    """The format of what lies at a path, whatever it is called."""
    if path.is_dir():
        return ZarrFormat
    with open(path, "rb", opener=open_plain) as file:
        start = file.read(16)
    marked = (form for form in FORMATS.values() if form.mark is not None and form.mark in start)
    return next(marked, None) or format_of(path)
