"""Digests of images, in a file that `sha256sum --check` reads too: damage that no codec can see."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from lazytiles.errors import ManifestError
from lazytiles.problems import Problems


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
    progress: Callable[[str, int, int], None] | None = None,
) -> Problems:
    """Which images are no longer the bytes that a digest file says.

    Raises
    ------
    ManifestError : the file is no digest file, or names a file outside the folder
    """
    problems = Problems(os.fspath(path))
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition("  ")
        parts = Path(name).parts
        if len(digest) != 64 or not name or Path(name).is_absolute() or ".." in parts:
            raise ManifestError(f"{path}: line {number}: a SHA-256 and a path inside the image folder are expected")
        image = os.path.join(image_dir, name)
        if not os.path.isfile(image):
            problems.add("missing image", f"{image} is missing")
        elif sha256(image) != digest:
            problems.add("changed image", f"{image} has changed since its digest was taken")
        if progress:
            progress("verifying", number, len(lines))
    return problems
