"""Settings for the length of a test, and what the library did meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Self

import lazytiles as lt


@contextmanager
def within_limits(**limits: int | bool) -> Iterator[None]:
    """`configure` for a block, with an empty cache before and after it."""
    before = asdict(lt.settings())
    lt.clear_cache()
    lt.configure(**limits)
    try:
        yield
    finally:
        lt.configure(**before)
        lt.clear_cache()


def outcome(read: Callable[[], Any]) -> Any:
    """What a call gives, or the library's own error; any other exception is passed on."""
    try:
        return read()
    except lt.LazyTilesError as error:
        return error


class Counting:
    """What the counters have risen by since the block began: ``with Counting() as done: ...; done.segments``."""

    def __enter__(self) -> Self:
        self._before = dict(lt.counters())
        return self

    def __exit__(self, *_: object) -> None:
        self._after = dict(lt.counters())

    def _rise(self, name: str) -> int:
        return getattr(self, "_after", lt.counters())[name] - self._before[name]

    @property
    def segments(self) -> int:
        """Segments decoded."""
        return self._rise("segments_decoded")

    @property
    def nbytes(self) -> int:
        """Bytes read from image files."""
        return self._rise("bytes_read")

    @property
    def hits(self) -> int:
        """Segments found in the cache."""
        return self._rise("cache_hits")

    @property
    def files(self) -> int:
        """Descriptors opened."""
        return self._rise("files_opened")
