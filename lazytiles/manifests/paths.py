"""From a manifest's ids to image paths: one component each, inside the image folder, there, and as they were."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.errors import ManifestError
from lazytiles.images import split_name
from lazytiles.indexing import region_column
from lazytiles.manifests.columns import first_of, joint_codes
from lazytiles.manifests.problems import IDS, Problems, tile_words

_SEPARATOR = re.compile(r"[/\\\x00-\x1f\x7f]")


def template_columns(template: str) -> list[str]:
    """The columns that a path template names, in order; each is the plain name of a column, without format.

    >>> template_columns("{label_id}/{region_id}.tif")
    ['label_id', 'region_id']
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ManifestError(f"path template {template!r}: {error}") from error
    fields = [(name, form or conversion) for _, name, form, conversion in parts if name is not None]
    if any(more or not name.isidentifier() for name, more in fields):
        raise ManifestError(
            f"path template {template!r}: a field is the name of a column, such as {{region_id}}, alone"
        )
    plain = "".join(literal + ("x" if name is not None else "") for literal, name, _, _ in parts)
    if plain.startswith("/") or "\\" in plain or "\0" in plain or ".." in PurePosixPath(plain).parts or not plain:
        raise ManifestError(f"path template {template!r}: a path inside the image folder, with / and without ..")
    return [name for name, _ in fields]


def default_template(table: pd.DataFrame) -> str:
    """Where an image lies when nothing is said: its `path`, or its region's file in its label's folder.

    >>> default_template(pd.DataFrame({"region_id": ["a"], "label_id": ["2018"]}))
    '{label_id}/{region_id}.tif'
    """
    if "path" in table:
        return "{path}"
    return "{label_id}/{region_id}.tif" if "label_id" in table else "{region_id}.tif"


def folder_of(manifest: pd.DataFrame | str | os.PathLike[str]) -> str:
    """Where the images of a manifest lie unless another folder is named: beside its file, or here."""
    return "." if isinstance(manifest, pd.DataFrame) else os.path.dirname(os.fspath(manifest)) or "."


def region_names(table: pd.DataFrame) -> pd.Series:
    """The values of that column, as categories."""
    return table[region_column(table)].astype("category")


def resolve_paths(
    table: pd.DataFrame,
    template: str,
    image_dir: str | os.PathLike[str] | None,
    *,
    follow_symlinks: bool = True,
    problems: Problems | None = None,
    rows: Int64s | None = None,
    name_row: Callable[[int], str] | None = None,
    may_lack: bool = False,
) -> tuple[Int64s, list[str]]:
    """The image of every row: an index into the list of the different paths, and that list.

    Behind an address nothing is looked at. What is wrong is raised as one error, or with `problems` noted there, and
    the path is then empty; ids that `read_manifest` noted there are not noted again. Without `image_dir` it is the
    current folder; `rows` are the numbers of the rows, where the table is a part of another, and `name_row` has the
    words for one, by default its tile.

    >>> codes, paths = resolve_paths(pd.DataFrame({"region_id": ["b", "a", "b"]}), "{region_id}.tif", "s3://x")
    >>> codes.tolist(), paths
    ([0, 1, 0], ['s3://x/b.tif', 's3://x/a.tif'])
    """
    columns = checked_columns(table.columns, template)
    codes, values = _different(table, columns)
    found = problems if problems is not None else Problems("the manifest")
    first = first_of(codes, len(values))
    first = first if rows is None else rows[first]
    words = name_row or (lambda row: f"{tile_words(table, row)}: ")
    unsafe: set[str] = set()
    for name, column in zip(columns, zip(*values, strict=True), strict=True) if values else ():
        for k, value in enumerate(column):
            parts = [value] if name in IDS else value.split("/")  # a column of files may name folders
            if value in unsafe or all(map(is_component, parts)):
                continue
            unsafe.add(value)
            if f"bad {name}" not in found.counts and not (value == "" and "repeated header" in found.counts):
                said = (
                    f"{name} {value[:60]!r}: a part of a path is one name, without / or \\ or .. or control characters"
                )
                found.add("path leaves the folder", f"{words(int(first[k]))}{said}", int(first[k]))
    # A path that leaves the folder has no place in it, whoever goes on with the others.
    names = [
        "" if not unsafe.isdisjoint(row) else template.format(**dict(zip(columns, row, strict=True))) for row in values
    ]
    folder = os.fspath(image_dir if image_dir is not None else ".")
    if problems is None:
        found.raise_any()
    if "://" in folder:
        return codes, [name and address_of(folder, name) for name in names]
    if not os.path.isdir(folder):
        raise ManifestError(f"{folder}: there is no such image folder")
    for k, kind, text in _faults_of_files(folder, names, follow_symlinks):
        if kind != "missing image":
            names[k] = ""
        elif may_lack:
            continue
        found.add(kind, f"{words(int(first[k]))}{text}", int(first[k]))
    if problems is None:
        found.raise_any()
    return codes, [name and os.path.join(folder, name) for name in names]


def checked_columns(have: Collection[str], template: str) -> list[str]:
    """The columns that a path template names, each of which a table must have."""
    columns = template_columns(template)
    if absent := [name for name in columns if name not in have]:
        raise ManifestError(f"path template {template!r}: there is no column {absent[0]}; there are {', '.join(have)}")
    return columns


def is_web(path: str) -> bool:
    """Whether a path is the address of a web server, which lists no folders and takes names quoted."""
    return path.rpartition("::")[2].startswith(("http://", "https://"))


def address_of(folder: str, name: str) -> str:
    """The address of a file in a folder behind an address; for HTTP its name is quoted, and goes before the query.

    >>> address_of("s3://bucket/images", "a#1.tif"), address_of("https://host/images?sig=x", "a#1.tif")
    ('s3://bucket/images/a#1.tif', 'https://host/images/a%231.tif?sig=x')
    """
    query = ""
    if is_web(folder):
        folder, mark, rest = folder.partition("?")
        name, query = quote(name), mark + rest
    return f"{folder}{'' if folder.endswith('/') else '/'}{name}{query}"


def _different(table: pd.DataFrame, columns: Sequence[str]) -> tuple[Int64s, list[tuple[str, ...]]]:
    """The different combinations of the columns' values as text, by first appearance."""
    parts: list[tuple[NDArray[Any], list[str]]] = []
    for name in columns:
        column = table[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            part, values = column.cat.codes.to_numpy(), column.cat.categories
        else:
            part, values = pd.factorize(column)
        parts.append((part, [str(value) for value in values]))
    codes = joint_codes([part for part, _ in parts]) if parts else np.zeros(len(table), np.int64)
    first = first_of(codes, int(codes.max(initial=-1)) + 1)
    rows = [[values[k] if k >= 0 else "" for k in part[first].tolist()] for part, values in parts]
    return codes, list(zip(*rows, strict=True)) if rows else [()] * len(first)


def is_component(value: str) -> bool:
    r"""Whether a text is one component of a path, and so cannot lead out of a folder.

    >>> [is_component(text) for text in ("001", "ré gion 北", "..", "a/b", "a\\b", "")]
    [True, True, False, False, False, False]
    """
    return value.strip() not in {"", ".", ".."} and not _SEPARATOR.search(value)


def _faults_of_files(folder: str, names: Sequence[str], follow_symlinks: bool) -> Iterator[tuple[int, str, str]]:
    """The number of each path that cannot be read, the kind of what is wrong, and the words for it."""
    is_link, hint = cache(os.path.islink), _Hints(folder)
    for k, name in enumerate(names):
        if not name:
            continue
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            name, _ = split_name(name)  # a dataset behind :: lies in this file
            path = os.path.join(folder, name)
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            yield k, "missing image", f"{path} is missing{hint(name)}"
            continue
        is_store = stat.S_ISDIR(status.st_mode) and name.rstrip("/").endswith(".zarr")
        parts = PurePosixPath(name).parts
        if not stat.S_ISREG(status.st_mode) and not is_store:
            yield k, "not a file", f"{path} is not a regular file"
        elif not follow_symlinks and any(is_link(os.path.join(folder, *parts[:n])) for n in range(1, len(parts) + 1)):
            yield k, "link", f"{path} goes through a link (follow_symlinks=False)"


class _Hints:
    """Which files were probably meant; each folder is looked at once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.listings: dict[str, list[str]] = {}
        self.told: set[str] = set()

    def __call__(self, name: str) -> str:
        """The words that follow the path of a file that is missing."""
        folder, stem = os.path.split(name)
        if folder not in self.listings:
            try:
                self.listings[folder] = sorted(os.listdir(os.path.join(self.root, folder)))
            except (OSError, ValueError):
                self.listings[folder] = []
                return f": there is no folder {folder}" if folder else ""
        there, wanted = self.listings[folder], stem.partition(".")[0]
        for other in there:
            base = other.partition(".")[0]
            if base != wanted and base.lstrip("0") == wanted.lstrip("0") and base.isdigit():
                return (
                    f", but {os.path.join(folder, other)} is there: were the ids read as numbers? "
                    "Read the manifest with dtype=str, so that 001 stays 001"
                )
        for other in there:
            if other.partition(".")[0].lower() == wanted.strip().lower():
                return f", but {os.path.join(folder, other)} is there"
        if folder in self.told or not there:
            return ""
        self.told.add(folder)
        return f"; there is {os.path.join(folder, there[0])}: path= says how the files are named"


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(digests: Mapping[str, str], path: str | os.PathLike[str], image_dir: str | os.PathLike[str]) -> None:
    """The digests as a file that `sha256sum --check` reads too, with paths relative to the image folder."""
    lines = [f"{digest}  {os.path.relpath(image, image_dir)}\n" for image, digest in digests.items()]
    Path(path).write_text("".join(lines), encoding="utf-8")


def verify_digests(
    path: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    images: Iterable[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Problems:
    """Which images, all or some that must have a digest, are no longer the bytes that a file of digests says.

    Something else than such a file, or one that names a file outside the folder, is a `ManifestError`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}") from error
    named, digests = [], {}
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ManifestError(f"{path}: line {number}: a SHA-256 and a path inside the image folder are expected")
        named.append(os.path.join(image_dir, name))
        digests[os.path.normpath(named[-1])] = digest
    problems = Problems(os.fspath(path))
    wanted = list(dict.fromkeys(images if images is not None else named))
    for number, image in enumerate(wanted, 1):
        found = digests.get(os.path.normpath(image))
        if not os.path.isfile(image):
            problems.add("missing image", f"{image} is missing")
        elif found is None:
            problems.add("no digest", f"{image} has no digest in this file; lazytiles check --digest takes them anew")
        elif sha256(image) != found:
            problems.add("changed image", f"{image} has changed since its digest was taken")
        if progress:
            progress("verifying", number, len(wanted))
    return problems
