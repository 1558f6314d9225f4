"""Byte ranges of files as plain tuples: which are asked for together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

BLOCK_BYTES = 2**16  # the least that is asked for at once, and the gap across which ranges are joined
PORTION_BYTES = 128 * 2**20  # fetched ahead and held at once

Range: TypeAlias = tuple[str, int, int]  # address, first byte, byte behind the last


def joined(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order, those of one file joined that overlap or lie within 64 KiB of each other.

    >>> joined([("a", 70_000, 70_010), ("a", 0, 10), ("a", 200_000, 200_010), ("b", 5, 9), ("b", 0, 7)])
    [('a', 0, 10), ('a', 70000, 70010), ('a', 200000, 200010), ('b', 0, 9)]
    >>> joined([("a", 60_000, 70_010), ("a", 0, 10)])
    [('a', 0, 70010)]
    """
    made: list[Range] = []
    for url, start, end in sorted(ranges):
        if made and made[-1][0] == url and start <= made[-1][2] + BLOCK_BYTES:
            made[-1] = (url, made[-1][1], max(end, made[-1][2]))
        else:
            made.append((url, start, end))
    return made


def portions(wanted: Sequence[Sequence[Range]], most: int = PORTION_BYTES) -> list[range]:
    """Runs of items, one after the other, whose ranges are some 128 MiB at most; single items may be larger.

    >>> portions([[("a", 0, 60)], [("a", 0, 30), ("b", 0, 20)], [], [("a", 0, 200)]], most=100)
    [range(0, 1), range(1, 3), range(3, 4)]
    """
    parts, first, total = [], 0, 0
    for number, ranges in enumerate(wanted):
        size = sum(end - start for _, start, end in ranges)
        if total + size > most and number > first:
            parts.append(range(first, number))
            first, total = number, 0
        total += size
    return [*parts, range(first, len(wanted))] if len(wanted) > first else parts
