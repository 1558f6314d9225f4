"""Digests of images, in a file that `sha256sum --check` reads too: damage that no codec can see."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lazytiles.errors import ManifestError
from lazytiles.manifests.problems import Problems


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(digests: Mapping[str, str], path: str | os.PathLike[str], image_dir: str | os.PathLike[str]) -> None:
    """The digests as a file that `sha256sum --check` reads too, with paths relative to the image folder."""
    lines = [f"{digest}  {os.path.relpath(image, image_dir)}\n" for image, digest in digests.items()]
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_digests(path: str | os.PathLike[str], image_dir: str | os.PathLike[str]) -> dict[str, str]:
    """The digest of each image that a file of them names, by its path in the image folder.

    Raises
    ------
    ManifestError : the file is no digest file, or names a file outside the folder
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}") from error
    digests = {}
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition("  ")
        parts = Path(name).parts
        if len(digest) != 64 or not name or Path(name).is_absolute() or ".." in parts:
            raise ManifestError(f"{path}: line {number}: a SHA-256 and a path inside the image folder are expected")
        digests[os.path.join(image_dir, name)] = digest
    return digests


def verify_digests(
    path: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    images: Iterable[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Problems:
    """Which images are no longer the bytes that a digest file says.

    Parameters
    ----------
    path : as `write_digests` writes it
    image_dir : the folder of the images
    images : paths of the images that are compared, of which each must have a digest; default all in the file
    progress : called with what is being done, how much is done, and of how much

    Raises
    ------
    ManifestError : the file is no digest file, or names a file outside the folder
    """
    problems = Problems(os.fspath(path))
    digests = read_digests(path, image_dir)
    known = {os.path.normpath(image): digest for image, digest in digests.items()}
    wanted = list(dict.fromkeys(images if images is not None else digests))
    for number, image in enumerate(wanted, 1):
        digest = known.get(os.path.normpath(image))
        if not os.path.isfile(image):
            problems.add("missing image", f"{image} is missing")
        elif digest is None:
            problems.add("no digest", f"{image} has no digest in this file; lazytiles check --digest takes them anew")
        elif sha256(image) != digest:
            problems.add("changed image", f"{image} has changed since its digest was taken")
        if progress:
            progress("verifying", number, len(wanted))
    return problems
