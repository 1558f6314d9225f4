"""Patches around pixels under a mask: as a source, and as stores of one array per class."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays.patch_pixels import AllPixels, MaskPixels, Scatter, cut, spatial_axes
from lazytiles.arrays.view import held
from lazytiles.config import check_limit
from lazytiles.indexing import LazyArray, Seed, seed_of, size_words, trimmed

ITERATED_ROWS = 64


class PatchGenerator(LazyArray):
    """The patches around the pixels under a mask, as a lazy source: patch k is ``patches[k]``.

    The patch of pixel p has ``source[p]`` at index ``size // 2`` along every axis, for odd and even sizes: it
    is ``padded[p : p + size]`` of the source padded by ``size // 2`` before and ``(size - 1) // 2`` behind.

    Parameters
    ----------
    source : array-like with `shape`, `dtype` and slices, such as an array, a memmap, a dataset or a `Region`:
        an image (H, W), with channels (H, W, C), or a volume (D, H, W), with channels (D, H, W, C)
    patch_size : pixels along each spatial axis, (height, width) or (depth, height, width); one number means
        the same along all, which are then those of the mask, or without one those that a `Region` names, or
        all but a last axis of at most 4, which is channels
    mask : array-like of the source's spatial shape: patches around its non-zero pixels only; None for all
        pixels.  Must not change
    random : whether patches come in the random order of `seed`, else in that of the pixels, row by row
    mirrored : what lies beyond the edges: True mirrors the image, edge pixels repeated (`numpy.pad`'s
        "symmetric"), False is zero
    max_num : at most so many patches: the first ones of the order
    seed : of the order; None draws a fresh one

    Attributes
    ----------
    shape : (patches, *patch size, channels if there are any)
    dtype : the source's, native byte order
    seed : of the order, None if it is not random

    Raises
    ------
    ValueError : sizes that fit neither source nor mask

    Notes
    -----
    Takes no memory per patch: the pixels are counted once, block by block, and the order is computed where it
    is asked for.  A batch reads neighbouring patches together.  Any number of threads may read at once;
    pickles with its source.

    >>> patches = PatchGenerator(np.arange(12).reshape(3, 4), 3, mirrored=False)
    >>> patches
    <PatchGenerator of 12 patches 3 x 3 int64 from (3, 4), zeros beyond the edges>
    >>> patches[0].tolist()
    [[0, 0, 0], [0, 0, 1], [0, 4, 5]]
    """

    def __init__(
        self,
        source: Any,
        patch_size: int | Sequence[int],
        mask: Any = None,
        random: bool = False,
        mirrored: bool = True,
        max_num: int | None = None,
        seed: Seed = None,
    ) -> None:
        self.source = source = held(source)
        shape = tuple(source.shape)
        given: Any = patch_size
        if not np.ndim(patch_size):
            given = [patch_size] * (spatial_axes(source) if mask is None else len(mask.shape))
        self.patch_size = sizes = tuple(map(operator.index, given))
        if not (2 <= len(sizes) <= len(shape)) or min(sizes) < 1 or any(type(size) is bool for size in given):
            raise ValueError(
                f"patch_size={patch_size!r} does not fit a source of shape {shape}: give pixels, at least 1, or "
                "one number for each spatial axis, (height, width) or (depth, height, width)"
            )
        spatial = shape[: len(sizes)]
        if mask is not None and tuple(mask.shape) != spatial:
            raise ValueError(
                f"a mask of shape {tuple(mask.shape)} does not fit patches {sizes} of a source of shape {shape}: "
                f"it must have the source's spatial shape {spatial}"
            )
        self.mirrored = mirrored
        self._pixels = AllPixels(spatial) if mask is None else MaskPixels(held(mask))
        count = len(self._pixels)
        if max_num is not None and operator.index(max_num) < 0:
            raise ValueError(f"max_num must be at least 0 patches, not {max_num}")
        if count and 0 in shape:
            raise ValueError(f"a source of shape {shape} has no pixels")
        self.seed = seed_of(seed) if random else None
        self._scatter = None if self.seed is None else Scatter(count, self.seed)
        taken = count if max_num is None else min(max_num, count)
        self.shape: tuple[int, ...] = (taken, *sizes, *shape[len(sizes) :])
        self.dtype = np.dtype(source.dtype).newbyteorder("=")

    def centers(self, indices: Any = None) -> Int64s:
        """The pixels of the source that patches lie around.

        Parameters
        ----------
        indices : ints, shape (n,), each in ``range(len(self))``; None for all

        Returns
        -------
        int64 array, shape (n, spatial axes)

        >>> PatchGenerator(np.zeros((3, 3)), 3, mask=np.eye(3)).centers([2, 0]).tolist()
        [[2, 2], [0, 0]]
        """
        numbers = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        return self._pixels.at(numbers if self._scatter is None else self._scatter(numbers))

    def take(self, indices: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The patches of these indices, in their order, as one array.

        Parameters
        ----------
        indices : ints, shape (n,); negative ones count from the end
        out : array of the result's shape and dtype to write into

        Raises
        ------
        IndexError : an index beyond the patches
        LimitError : more bytes than `max_window_bytes`
        """
        numbers = np.asarray(indices, dtype=np.int64)
        if len(numbers) and not (-len(self) <= numbers.min() and numbers.max() < len(self)):
            raise IndexError(f"indices {numbers.min()} to {numbers.max()} asked for of {len(self)} patches")
        shape = (len(numbers), *self.shape[1:])
        if out is None:
            nbytes = math.prod(shape) * self.dtype.itemsize
            check_limit(nbytes, "a batch of {} patches of {}", shape[0], shape[1:])
            out = np.empty(shape, self.dtype)
        if len(numbers):
            cut(self.source, self.centers(numbers % len(self)), self.patch_size, self.mirrored, out)
        return out

    def read_box(self, rows: Int64s, box: tuple[tuple[int, int], ...], origins: Int64s | None) -> NDArray[Any]:
        """Patches cut by a box, which moves by the `origins` of each if there are any."""
        return trimmed(self.take(rows), box, origins)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for start in range(0, len(self), ITERATED_ROWS):
            yield from self.take(np.arange(start, min(start + ITERATED_ROWS, len(self))))

    def _facts(self) -> dict[str, str]:
        return super()._facts() | {"order": "of the pixels" if self.seed is None else f"of seed {self.seed}"}

    def __repr__(self) -> str:
        edge = "mirrored" if self.mirrored else "zeros"
        order = "" if self.seed is None else f", in the order of seed {self.seed}"
        return (
            f"<PatchGenerator of {len(self)} patches {size_words(self.shape[1:])} {self.dtype} "
            f"from {tuple(self.source.shape)}, {edge} beyond the edges{order}>"
        )
