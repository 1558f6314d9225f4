"""The images of a folder or of a list, here or behind an address: where they lie, and how a manifest names them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from lazytiles.errors import ManifestError
from lazytiles.images import datasets, is_remote, listed, split_name
from lazytiles.manifests.paths import address_of, is_web

_TIFFS = ".tif .tiff .btf .tf2 .tf8 .svs .ndpi .scn .bif .qptiff .lsm .stk"
_PICTURES = (
    ".png .jpg .jpeg .jpe .jfif .gif .bmp .dib .webp .jp2 .j2k .jpf .jpx .j2c .jpc .qoi .ppm .pgm .pbm .pnm .pfm"
)
_STORES = (".h5", ".hdf5", ".zarr")
SUFFIXES = (*f"{_TIFFS} {_PICTURES} .npy".split(), *_STORES)
"""How the names of images end; `open_region` looks at their bytes alone."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was found, and its ids."""

    path: str  # by which it opens
    place: str | None  # the path relative to the folder of all; None of a region without a file
    region_id: str
    label_id: str | None = None


def find_images(folder: str | os.PathLike[str]) -> list[Found]:
    """The images of a folder and of all folders in it, by name; a file alone is itself.

    Hidden ones are left out. Each array of two axes or more in an HDF5 file or a Zarr group is an image. Behind an
    address, HDF5 and Zarr are left out, and a web server (HTTP) is not asked what it holds.
    """
    root = os.fspath(folder)
    if is_remote(root):
        if is_web(root):
            raise ManifestError(f"{root}: a folder behind an address is not listed; pass its images' own")
        places = sorted(name for name in listed(root) if _is_image(name) and not name.lower().endswith(_STORES))
        found = [(address_of(root, place), place) for place in places]
    elif os.path.isdir(root) and not root.rstrip("/").lower().endswith(".zarr"):
        found = []
        for path in sorted(_files_in(Path(root), ())):
            arrays = datasets(str(path)) if path.suffix.lower() in _STORES else [""]
            inner = [f"::{name}" if name else "" for name in arrays]
            found += [(f"{path}{name}", f"{path.relative_to(root).as_posix()}{name}") for name in inner]
    elif os.path.exists(root):
        return name_images([root])
    else:
        raise ManifestError(f"{root}: there is no such image folder")
    if not found:
        raise ManifestError(f"{root}: there are no images ({', '.join(SUFFIXES)}) in it or in its folders")
    return _named([path for path, _ in found], [place for _, place in found], whole=True)


def name_images(paths: Sequence[str]) -> list[Found]:
    """Some images by their paths or addresses, whose folder is the one that holds them all."""
    parts = []
    for path in paths:  # the folders of each, and its name with what stands behind ``::``; without a query
        if not is_remote(path):
            file, inner = split_name(path)
            *folders, name = Path(os.path.abspath(file)).as_posix().split("/")
            parts.append((folders, name if inner is None else f"{name}::{inner}"))
            continue
        *folders, name = path.partition("?")[0].split("/") if is_web(path) else path.split("/")
        parts.append((folders, unquote(name) if is_web(path) else name))
    together = zip(*(folders for folders, _ in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, together))
    places = ["/".join([*folders[shared:], name]) for folders, name in parts]
    return _named(paths, places, whole=False)


def _files_in(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """The files and Zarr stores whose names are those of images; links are followed, but not in circles."""
    real = os.path.realpath(folder)
    try:
        entries = [] if real in above else list(os.scandir(folder))
    except PermissionError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        is_store = entry.name.lower().endswith(".zarr")
        if entry.is_dir() and not is_store:
            yield from _files_in(folder / entry.name, (*above, real))
        elif _is_image(entry.name):
            yield folder / entry.name


def _is_image(name: str) -> bool:
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    return name.lower().endswith(SUFFIXES) and not is_hidden


def _named(paths: Sequence[str], places: Sequence[str], *, whole: bool) -> list[Found]:
    """The ids of images from their places: the file's name, and the folder above several of one name as the label.

    Of a whole folder, folders directly in it are labels whatever is in them.
    """
    split = [split_name(place) for place in places]
    files = [PurePosixPath(file) for file, _ in split]
    times = Counter(files)
    names = [
        file.stem if inner is None or times[file] == 1 else f"{file.stem}_{inner.replace('/', '_')}"
        for file, (_, inner) in zip(files, split, strict=True)
    ]
    is_framed = len(set(names)) < len(names) or (whole and all(len(file.parts) == 2 for file in files))
    labels = [file.parts[-2] if is_framed and len(file.parts) > 1 else None for file in files]
    if len(set(zip(names, labels, strict=True))) < len(names):  # folders further up tell them apart
        names = ["_".join([*file.parts[:-2], name]) for file, name in zip(files, names, strict=True)]
    return [Found(*one) for one in zip(paths, places, names, labels, strict=True)]
