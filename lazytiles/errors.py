"""The exceptions: one hierarchy, each also the builtin it refines."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

_ADDRESS = re.compile(r"(https?://)(?:[^\s/@]*@)?([^\s?]*)(?:\?\S*?(?=[]:,;.)'\"]*(?:\s|$)))?")


# C0 and C1 controls, marks that turn the direction of text, line separators, halves of surrogate pairs.
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: object, *, lines: bool = False) -> str:
    r"""A text for people: what would command a terminal or hide in a page as escapes, addresses as `shown`.

    With `lines` line ends and tabs stay what they are.

    >>> visible("a\x1b[31m\u202eb\n")
    'a\\x1b[31m\\u202eb\\n'
    """

    def escaped(found: re.Match[str]) -> str:
        return found[0] if lines and found[0] in "\n\t" else found[0].encode("unicode_escape").decode("ascii")

    return _HIDDEN.sub(escaped, shown(str(text)))


def shown(text: str) -> str:
    """A text without what may be secret in its addresses: users, passwords, and queries, in which signatures stand.

    >>> shown("https://me:pw@host/a.tif?sig=x%2F: cannot be read")
    'https://host/a.tif: cannot be read'
    """
    return _ADDRESS.sub(r"\1\2", text) if "://" in text else text


class LazyTilesError(Exception):
    """Any error of lazytiles; control characters in its message are shown as escapes."""

    def __init__(self, *words: object) -> None:
        super().__init__(*(visible(word, lines=True) if isinstance(word, str) else word for word in words))


class ManifestError(LazyTilesError, ValueError):
    """The table is damaged, contradicts itself or asks for what is not there."""


class RegionError(LazyTilesError, OSError):
    """An image file cannot be opened or is not what its tags say."""


class SegmentError(RegionError):
    """One segment of a page cannot be read or decoded; its neighbours still can."""


class LimitError(LazyTilesError, ValueError):
    """A read would exceed a limit set by `configure`."""


class StoreError(LazyTilesError, OSError):
    """A store is incomplete, locked, damaged or would be overwritten."""


def unreadable(where: object, kind: str, error: BaseException) -> str:
    """The words for what a parser raised over a file: damage, but for memory that ran out.

    >>> unreadable("a.png", "PNG", ValueError("odd"))
    'a.png: not a readable PNG: ValueError: odd'
    """
    if isinstance(error, MemoryError):
        return f"{where}: memory ran out while it was read; the file may be sound: free memory and read it again"
    return f"{where}: not a readable {kind}: {type(error).__name__}: {error}"


def require(module: str, extra: str) -> ModuleType:
    """The optional module of that dotted name, or an `ImportError` that names the extra of lazytiles which brings it.

    >>> require("json", extra="none").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(
            f"{package} is not installed; it comes with the extra {extra!r}: pip install 'lazytiles[{extra}]'"
        ) from error
