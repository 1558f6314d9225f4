"""Uncompressed pages: slices of a memory map, or rows read one by one; nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import settings
from lazytiles.errors import LazyTilesError, SegmentError
from lazytiles.files import pool
from lazytiles.page import Page
from lazytiles.plan import Failed, Target, Windows

_SMALL_SPAN = 2**16  # bytes of a row-wise read below which what lies between the rows is read along


def slice_windows(windows: Windows, numbers: Sequence[int], target: Target, failed: Failed) -> list[int]:
    """Write windows of uncompressed pages into their targets; the numbers of those that were written.

    Parameters
    ----------
    windows : on whatever pages
    numbers : which of them; their pages are uncompressed
    target : the array (height, width, bands) of a window, by its number
    failed : told which windows could not be read, and why
    """
    pages, bands = windows.pages, windows.bands
    mapped = settings().mmap
    maps: dict[int, list[NDArray[Any]]] = {}
    most_maps = max(1, pool.limit() // 2)  # each holds a descriptor of its own
    finished: list[int] = []
    boxes, places = windows.boxes.tolist(), windows.page.tolist()
    for number in numbers:
        at = places[number]
        y0, x0, y1, x1 = boxes[number]
        try:
            planes = maps.get(at)
            if planes is None and mapped and not pages[at].file.is_remote:
                if len(maps) >= most_maps:
                    maps.clear()
                planes = maps[at] = _mapped_planes(pages[at])
            cut = planes is not None
            if planes is None:
                planes = _row_planes(pages[at], y0, y1, x0, x1)
            part = planes[0][y0:y1, x0:x1] if cut else planes[0]
            if len(part) < y1 - y0:
                raise _cut_short(pages[at], y1)
        except LazyTilesError as error:
            failed([number], error)
            continue
        if len(planes) == 1:
            target(number)[...] = part if bands is None else part[..., list(bands)]
        else:
            parts = [plane[y0:y1, x0:x1, 0] if cut else plane[..., 0] for plane in planes]
            for k, band in enumerate(range(len(parts)) if bands is None else bands):
                target(number)[..., k] = parts[band]
        finished.append(number)
    return finished


def _cut_short(page: Page, row: int) -> SegmentError:
    return SegmentError(
        f"{page}: its rows end before row {row}: the file of {page.file.size} bytes is cut short; restore it or "
        "leave its windows out"
    )


def _mapped_planes(page: Page) -> list[NDArray[Any]]:
    """Each plane as an array over the file's map: as many rows of all as the file really holds."""
    assert page.raw_offsets is not None
    view = pool.map(page.file)
    height, width, _ = page.shape
    samples = page.segment_samples
    row_bytes = width * samples * page.dtype.itemsize
    rows = min(height, max(0, page.file.size - max(page.raw_offsets)) // row_bytes)
    shape = (rows, width, samples)
    if not rows:
        return [np.empty(shape, page.stored_dtype) for _ in page.raw_offsets]
    return [np.ndarray(shape, page.stored_dtype, view, offset) for offset in page.raw_offsets]


def row_ranges(page: Page, box: Sequence[int]) -> list[tuple[str, int, int]]:
    """The (path, first byte, end) of each row that a window (y0, x0, y1, x1) takes of an uncompressed page."""
    assert page.raw_offsets is not None
    y0, x0, y1, x1 = box
    pixel = page.segment_samples * page.dtype.itemsize
    starts = [o + (y * page.shape[1] + x0) * pixel for o in page.raw_offsets for y in range(y0, y1)]
    size = (x1 - x0) * pixel
    return [(page.file.path, start, start + size) for start in starts if start + size <= page.file.size]


def _row_planes(page: Page, y0: int, y1: int, x0: int, x1: int) -> list[NDArray[Any]]:
    """The rows of one window of each plane, read without a map."""
    assert page.raw_offsets is not None
    pixel = page.segment_samples * page.dtype.itemsize
    row_bytes = page.shape[1] * pixel
    shape = (y1 - y0, x1 - x0, page.segment_samples)
    size = (x1 - x0) * pixel
    planes = []
    for offset in page.raw_offsets:
        start = offset + y0 * row_bytes + x0 * pixel
        span = (y1 - y0 - 1) * row_bytes + size
        if start + span > page.file.size:
            planes.append(np.empty((0, *shape[1:]), page.stored_dtype))
        elif span <= _SMALL_SPAN or size == row_bytes:
            data = pool.read(page.file, start, span)
            strides = (row_bytes, pixel, page.dtype.itemsize)
            planes.append(np.ndarray(shape, page.stored_dtype, data, 0, strides))
        else:
            rows = [pool.read(page.file, start + k * row_bytes, size) for k in range(y1 - y0)]
            planes.append(np.frombuffer(b"".join(rows), page.stored_dtype).reshape(shape))
    return planes
