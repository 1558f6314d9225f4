"""Uncompressed pages: slices of a memory map, or rows read one by one; nothing is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.config import settings
from lazytiles.errors import LazyTilesError, SegmentError
from lazytiles.images.files import pool
from lazytiles.images.page import Page
from lazytiles.images.plan import Targets, Windows

_SMALL_SPAN = 2**16  # bytes of a row-wise read below which what lies between the rows is read along


def slice_windows(
    windows: Windows, numbers: Sequence[int], targets: Targets
) -> tuple[list[int], dict[int, LazyTilesError]]:
    """Write windows of these numbers, on uncompressed pages, into their targets.

    Gives the numbers of those that were written, and why the others could not be read.
    """
    pages, bands = windows.pages, windows.bands
    maps: dict[int, list[NDArray[Any]] | None] = {}
    most_maps = max(1, pool.limit() // 2)  # each holds a descriptor of its own
    written: list[int] = []
    failed: dict[int, LazyTilesError] = {}
    boxes, places = windows.boxes.tolist(), windows.page.tolist()
    for number in numbers:
        at = places[number]
        try:
            if at not in maps:
                if len(maps) >= most_maps:
                    maps.clear()
                maps[at] = _mapped_planes(pages[at])
            _slice(pages[at], maps[at], boxes[number], bands, targets[number])
            written.append(number)
        except LazyTilesError as error:
            failed[number] = error
    return written, failed


def slice_page(page: Page, boxes: Int64s, bands: tuple[int, ...] | None, targets: Iterable[NDArray[Any]]) -> None:
    """Write windows (y0, x0, y1, x1) of one uncompressed page into their targets, or raise what stands against it."""
    planes = _mapped_planes(page)
    if planes is None:
        pool.check(page.file)
    if planes is not None and len(planes) == 1 and bands is None and len(planes[0]) == page.shape[0]:
        plane = planes[0]  # the loop of most reads: nothing but slices
        for target, (y0, x0, y1, x1) in zip(targets, boxes.tolist(), strict=True):
            target[...] = plane[y0:y1, x0:x1]
    else:
        for target, box in zip(targets, boxes.tolist(), strict=True):
            _slice(page, planes, box, bands, target)


def cut_windows(page: Page, windows: Int64s, box: Sequence[tuple[int, int]]) -> NDArray[Any] | None:
    """A box of each of some windows as one new array (n, height, width, samples), by one call; None if it takes more.

    The page is uncompressed and on this machine. Windows, (y0, x0, y1, x1), lie inside it, and the box, (start, stop)
    of rows and columns, inside each of them.
    """
    assert page.raw_offsets is not None
    (height, width, samples), (row, pixel, itemsize), first = page.shape, page.strides, page.raw_offsets[0]
    is_whole = len(page.raw_offsets) == 1 and first + height * row <= page.file.size
    if not is_whole or not page.stored_dtype.isnative or not settings().mmap:
        return None
    (y0, y1), (x0, x1) = box
    shape = (height - y1 + 1, width - x1 + 1, y1 - y0, x1 - x0, samples)
    begin, strides = first + y0 * row + x0 * pixel, (row, pixel, row, pixel, itemsize)
    every = np.ndarray(shape, page.stored_dtype, pool.map(page.file), begin, strides)
    cut: NDArray[Any] = every[windows[:, 0], windows[:, 1]]
    return cut


def _slice(
    page: Page, planes: list[NDArray[Any]] | None, box: list[int], bands: tuple[int, ...] | None, target: NDArray[Any]
) -> None:
    """One window into its target, from the map or, without one, read row by row."""
    y0, x0, y1, x1 = box
    if planes is not None:
        parts = [plane[y0:y1, x0:x1] for plane in planes]
    else:
        assert page.raw_offsets is not None
        row, pixel, _ = page.strides
        size, span = (x1 - x0) * pixel, (y1 - y0 - 1) * row + (x1 - x0) * pixel
        shape, dtype, parts = (y1 - y0, x1 - x0, page.segment_samples), page.stored_dtype, []
        for offset in page.raw_offsets:
            start = offset + y0 * row + x0 * pixel
            if start + span > page.file.size:  # where one plane is cut short, all are
                parts = [np.empty((0, *shape[1:]), dtype)]
                break
            if span <= _SMALL_SPAN or size == row:
                parts.append(np.ndarray(shape, dtype, pool.read(page.file, start, span), 0, page.strides))
            else:
                rows = [pool.read(page.file, start + k * row, size) for k in range(y1 - y0)]
                parts.append(np.frombuffer(b"".join(rows), dtype).reshape(shape))
    if len(parts[0]) < y1 - y0:
        raise SegmentError(
            f"{page}: its rows end before row {y1}: the file of {page.file.size} bytes is cut short; restore it or "
            "leave its windows out"
        )
    if len(parts) == 1:
        target[...] = parts[0] if bands is None else parts[0][..., list(bands)]
    else:
        for k, band in enumerate(range(len(parts)) if bands is None else bands):
            target[..., k] = parts[band][..., 0]


def _mapped_planes(page: Page) -> list[NDArray[Any]] | None:
    """Each plane as an array over the file's map, as many rows of all as the file holds; None where none is wanted."""
    assert page.raw_offsets is not None
    if page.file.is_remote or not settings().mmap:
        return None
    view = pool.map(page.file)
    rows = min(page.shape[0], max(0, page.file.size - max(page.raw_offsets)) // page.strides[0])
    shape = (rows, page.shape[1], page.segment_samples)
    if not rows:
        return [np.empty(shape, page.stored_dtype) for _ in page.raw_offsets]
    return [np.ndarray(shape, page.stored_dtype, view, offset) for offset in page.raw_offsets]


def row_ranges(page: Page, box: Sequence[int]) -> list[tuple[str, int, int]]:
    """The (path, first byte, end) of each row that a window (y0, x0, y1, x1) takes of an uncompressed page."""
    assert page.raw_offsets is not None
    (y0, x0, y1, x1), (row, pixel, _) = box, page.strides
    starts = [offset + y * row + x0 * pixel for offset in page.raw_offsets for y in range(y0, y1)]
    size = (x1 - x0) * pixel
    return [(page.file.path, start, start + size) for start in starts if start + size <= page.file.size]
