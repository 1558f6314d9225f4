"""Which pages of a file a region is made of: one page, a level of its pyramid, or a stack."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lazytiles.errors import RegionError
from lazytiles.images.containers import other_pages
from lazytiles.images.files import FileKey, pool
from lazytiles.images.page import Page, facts, levels_of, page_at, parsed, stack_planes

Where = tuple[str | None, int | str, int]  # dataset, page, level


def open_pages(key: FileKey, inner: str | None, page: int | str, level: int) -> tuple[list[Page], bool]:
    """The pages that a region is made of, and whether they are a stack.

    Parameters
    ----------
    key, inner : the file and the dataset in it, as `identify` gave them
    page : which one, or ``"all"``
    level : of the pyramid that the page heads
    """
    pages, stacked = _pages_of(key, inner, page, level)
    return [replace(each, origin=(inner, page, level, k)) for k, each in enumerate(pages)], stacked


def reopened(key: FileKey, origin: tuple[str | None, int | str, int, int]) -> Page:
    """A page of a file that was opened before, maybe in another process, opened again by its `origin`.

    Raises
    ------
    RegionError : it is no longer the file that it was
    """
    pool.check(key)
    pool.identify(key.path)
    pages, _ = _pages_of(key, *origin[:3])
    return pages[origin[3]]


def _pages_of(key: FileKey, inner: str | None, page: int | str, level: int) -> tuple[list[Page], bool]:
    other = other_pages(key, inner, page)
    if other is not None:
        if level:
            raise RegionError(f"{key.path}: has no level {level}; it has levels 0 to 0")
        return other
    with parsed(key) as tiff:
        if page == "all":
            if level:
                raise RegionError(f"{key.path}: level={level} together with page='all' is not supported")
            return _all_pages(key, tiff), True
        if not level:
            return [facts(key, page_at(tiff, int(page)), str(page))], False
        levels = levels_of(tiff, int(page))
        if level >= len(levels):
            raise RegionError(f"{key.path} page {page}: has no level {level}; it has levels 0 to {len(levels) - 1}")
        return [facts(key, levels[level], f"{page} level {level}", head=levels[0])], False


def _all_pages(key: FileKey, tiff: Any) -> list[Page]:
    images = _images_in_one_page(tiff) if len(tiff.pages) == 1 else 1
    if images > 1:
        return stack_planes(facts(key, page_at(tiff, 0), "0"), images)
    pages = [(k, page_at(tiff, k)) for k in range(len(tiff.pages))]
    chosen = [facts(key, p, str(k)) for k, p in pages if not p.subfiletype & 5]  # neither overviews nor masks
    if not chosen:
        raise RegionError(f"{key.path}: has no full-resolution page")
    for other in chosen[1:]:
        if (other.shape, other.dtype) != (chosen[0].shape, chosen[0].dtype):
            raise RegionError(
                f"{other}: is {other.shape} {other.dtype}, page {chosen[0].number} is {chosen[0].shape} "
                f"{chosen[0].dtype}; pages of one shape stack, open others by page=k"
            )
    return chosen


def _images_in_one_page(tiff: Any) -> int:
    """How many images the only directory of a file stands for, as ImageJ and tifffile may write a stack."""
    if tiff.is_imagej and tiff.imagej_metadata:
        return int(tiff.imagej_metadata.get("images", 1))
    shaped = tiff.shaped_metadata
    if shaped and shaped[0].get("truncated"):
        return int(math.prod(shaped[0]["shape"])) // math.prod(page_at(tiff, 0).shape)
    return 1


def level_shapes(key: FileKey, inner: str | None, page: int | str, level: int) -> tuple[tuple[int, ...], ...]:
    """(height, width) of each level of the pyramid that a page heads, largest first."""
    other = other_pages(key, inner, page)
    if page == "all" or other is not None:
        return () if other is None or other[1] else (other[0][0].shape[:2],)
    with parsed(key) as tiff:
        return tuple((p.imagelength, p.imagewidth) for p in levels_of(tiff, int(page)))
