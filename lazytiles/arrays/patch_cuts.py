"""Patches around pixels, cut from any source: plain arrays at once, others with as few reads as will do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.images import Region, Windows, read_windows, to_gray
from lazytiles.indexing import folded

READ_PIXELS = 2**20
FEW_RUNS = 4
MOST_CHANNELS = 4


def cut(source: Any, centers: Int64s, sizes: tuple[int, ...], mirrored: bool, out: NDArray[Any]) -> None:
    """Fill `out` with the patches around some pixels.

    Parameters
    ----------
    source : array-like with slices, its spatial axes first
    centers : int64, shape (n, axes): the pixel at index ``size // 2`` along each axis
    sizes : of a patch, pixels
    mirrored : whether what lies beyond the edges is the image mirrored there, edge pixels repeated, or zero
    out : array, shape (n, *sizes, *source.shape[axes:])
    """
    lines = [_lines(*of_axis, mirrored) for of_axis in zip(centers.T, sizes, source.shape, strict=False)]
    if isinstance(source, np.ndarray):
        out[...] = source[_open(lines)]
    else:
        _read(source, lines, out)
    if not mirrored:
        for axis, (center, size) in enumerate(zip(centers.T, sizes, strict=True)):
            line = center[:, None] + np.arange(-(size // 2), size - size // 2)
            patch, place = np.nonzero((line < 0) | (line >= source.shape[axis]))
            beyond: tuple[Any, ...] = (patch, *(slice(None),) * axis, place)
            out[beyond] = 0


def spatial_axes(source: Any) -> int:
    """How many of the first axes are spatial: what a region names, or all but a short last axis of three or more.

    >>> spatial_axes(np.zeros((9, 9, 3))), spatial_axes(np.zeros((9, 9, 9)))
    (2, 3)
    """
    names = getattr(source, "axes", None)
    if isinstance(names, str):
        return len(names) - ("S" in names)
    axes = len(source.shape)
    return axes - (axes > 2 and source.shape[-1] <= MOST_CHANNELS)


def _lines(center: Int64s, size: int, length: int, mirrored: bool) -> Int64s:
    """Where each line of each patch is found along one axis, shape (n, size)."""
    line = center[:, None] + np.arange(-(size // 2), size - size // 2)
    return folded(line, length, "reflect" if mirrored else "nearest")


def _open(lines: list[Int64s]) -> tuple[Int64s, ...]:
    """Index arrays (n, size) of each axis, shaped to select the patches of n pixels."""
    shapes = [[-1 if k == axis else 1 for k in range(len(lines))] for axis in range(len(lines))]
    return tuple(line.reshape(len(line), *shape) for line, shape in zip(lines, shapes, strict=True))


def _read(source: Any, lines: list[Int64s], out: NDArray[Any]) -> None:
    starts = np.stack([line.min(axis=1) for line in lines], axis=1)
    stops = np.stack([line.max(axis=1) + 1 for line in lines], axis=1)
    together = list(runs(starts, stops, READ_PIXELS))
    named = isinstance(source, Region) and len(lines) == spatial_axes(source)
    if named and len(together) > max(FEW_RUNS, len(out) // FEW_RUNS):
        _read_windows(source, lines, starts, out)
        return
    for which, low, high in together:
        hull = np.asarray(source[tuple(slice(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True))])
        out[which] = hull[_open([line[which] - first for line, first in zip(lines, low, strict=True)])]


def runs(starts: Int64s, stops: Int64s, budget: int) -> Iterator[tuple[Int64s, Int64s, Int64s]]:
    """Boxes put together with their neighbours where that reads little more than each by itself.

    Parameters
    ----------
    starts, stops : int64, shape (n, axes), half-open
    budget : pixels, at most, of what is read together

    Yields
    ------
    indices of the boxes of one run, and the start and stop of their hull
    """
    sizes = (stops - starts).prod(axis=1)
    members: list[int] = []
    low, high, own = starts[:0], stops[:0], 0
    for k in np.lexsort(starts.T[::-1]).tolist():
        if members:
            wide = np.minimum(low, starts[k]), np.maximum(high, stops[k])
            if (wide[1] - wide[0]).prod() <= min(2 * (own + sizes[k]), budget):
                (low, high), own = wide, own + int(sizes[k])
                members.append(k)
                continue
            yield np.array(members), low, high
        members, low, high, own = [k], starts[k], stops[k], int(sizes[k])
    if members:
        yield np.array(members), low, high


def _read_windows(region: Region, lines: list[Int64s], starts: Int64s, out: NDArray[Any]) -> None:
    """Windows of one size that hold the lines of each patch, in one plan: each segment is decoded once."""
    shape = np.array(region.shape[: len(lines)])
    sizes = np.minimum([line.shape[1] for line in lines], shape)
    corners = np.minimum(starts, shape - sizes)
    held = _windows(region, corners, tuple(sizes.tolist()))
    number = np.arange(len(out)).reshape(-1, *(1,) * len(lines))
    out[...] = held[(number, *_open([line - corners[:, [k]] for k, line in enumerate(lines)]))]


def _windows(region: Region, corners: Int64s, sizes: tuple[int, ...]) -> NDArray[Any]:
    """Windows of a region, or boxes of a stack, shape (n, *sizes) with samples behind where it has them."""
    height, width = sizes[-2:]
    depth = sizes[0] if len(sizes) == 3 else 1
    page = (corners[:, 0, None] if len(sizes) == 3 else np.zeros((len(corners), 1), np.int64)) + np.arange(depth)
    boxes = np.concatenate([corners[:, -2:], corners[:, -2:] + (height, width)], axis=1).repeat(depth, axis=0)
    bands = None if region.gray else region.bands
    samples = region.pages[0].shape[2] if bands is None else len(bands)
    windows = Windows(region.pages, page.ravel(), boxes, bands)
    block = read_windows(windows, (height, width, samples), region.dtype)
    if region.gray:
        block = to_gray(block)
    return block.reshape(len(corners), *sizes, *((-1,) if "S" in region.axes else ()))
