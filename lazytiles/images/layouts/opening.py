"""What a region is made of: a page, a level of its pyramid, a series with named axes, or an array of another format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import tifffile

from lazytiles.errors import RegionError
from lazytiles.images.containers import other_pages
from lazytiles.images.files import FileKey, pool
from lazytiles.images.layouts.directories import Directories
from lazytiles.images.layouts.levels import Catalog, Level, catalog, needs_catalog, page_spacing, scanner_of
from lazytiles.images.layouts.multiscale import group_of, multiscale
from lazytiles.images.layouts.scales import UNKNOWN, Spacing, mpp_of
from lazytiles.images.layouts.series import Series
from lazytiles.images.page import Asked, Page, facts, page_at, parsed, stacked_plane
from lazytiles.images.pictures import planes_of, split_shape

_KEPT = 4  # stacks whose pages a worker process keeps, by one of which another is found


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What a region is made of."""

    pages: Sequence[Page]  # in C order over `lead`
    axes: str = ""  # letters and, in `lead`, lengths of the axes before rows and columns
    lead: tuple[int, ...] = ()
    spacing: Spacing = UNKNOWN
    bands: tuple[int, ...] | None = None  # the samples that were asked for as channels
    channels: tuple[str, ...] = ()  # their names, where they have names


def open_pages(key: FileKey, asked: Asked) -> Opened:
    """The pages that a region is made of; of the file that `identify` gave."""
    group = group_of(key)
    other = None if group is not None else other_pages(key, asked.inner, asked.page, asked.axes)
    if group is not None:
        found = _from_group(key, group, asked)
    elif other is not None:
        if asked.level or asked.series:
            what = f"level {asked.level}" if asked.level else f"series {asked.series}"
            raise RegionError(f"{key.path}: has no {what}; it holds one array at one resolution")
        found = Opened(*other, _by_hand(UNKNOWN, asked))
    else:
        with parsed(key) as tiff:
            found = (_array if asked.is_array else _image)(key, tiff, asked)
    found = _chosen(key, found, asked)
    mpp, pages, fill = mpp_of(found.spacing), found.pages, asked.fill

    def known(k: int) -> Page:
        page = pages[k]
        if page.origin is not None and page.mpp == mpp and fill is None:
            return page
        held: Any = page.fill
        if fill is not None and page.nodata is None:
            with np.errstate(invalid="ignore"):
                held = np.asarray(fill).astype(page.dtype)[()]
            if held != fill and fill == fill:
                raise RegionError(f"{page}: {page.dtype} samples cannot hold fill={fill}")
        return replace(page, mpp=mpp, fill=held, origin=page.origin or (asked, k))

    return replace(found, pages=planes_of(len(pages), known))


def reopened(key: FileKey, origin: tuple[Asked, int]) -> Page:
    """A page of a file that was opened before, maybe in another process; a file that has changed is refused."""
    pool.check(key)
    known = pool.identify(key.path)
    key = known if known == key else key  # the very object under which the file is open
    asked, k = origin
    return (_kept(key, asked) if asked.is_array else open_pages(key, asked).pages)[k]


@lru_cache(_KEPT)
def _kept(key: FileKey, asked: Asked) -> Sequence[Page]:
    return open_pages(key, asked).pages


def _by_hand(spacing: Spacing, asked: Asked, downsample: tuple[float, float] = (1.0, 1.0)) -> Spacing:
    """A spacing of full resolution, or that given by hand, at some level."""
    z, y, x = spacing if asked.mpp is None else (spacing[0], *asked.mpp)
    return z, y and y * downsample[0], x and x * downsample[1]


def _check_level(where: str, asked: Asked, count: int) -> None:
    if asked.level >= count:
        raise RegionError(f"{where}: has no level {asked.level}; it has levels 0 to {count - 1}")


def _number_of(key: FileKey, tiff: tifffile.TiffFile, page: int | str | None, known: Catalog | None) -> int:
    """The number of the page that is meant."""
    if isinstance(page, int):
        return page
    if known is None or (page is None and scanner_of(page_at(tiff, 0)) is None):
        return 0
    if page is None:
        return int(known.series[0].planes[0].number)
    if page not in known.associated:
        there = ", ".join(map(repr, known.associated)) or "no other images"
        raise RegionError(f"{key.path}: has no page {page!r}; beside its image it has {there}")
    return known.associated[page]


def _image(key: FileKey, tiff: tifffile.TiffFile, asked: Asked) -> Opened:
    """One page, or a lower resolution of it."""
    first, known = page_at(tiff, 0), None
    if asked.level or isinstance(asked.page, str) or (not asked.page and needs_catalog(first)):
        known = catalog(Directories(key, tiff))
    number = _number_of(key, tiff, asked.page, known)
    if known is None:
        tags = page_at(tiff, number) if number else first
        spacing = _by_hand(page_spacing(tags), asked)
        page = facts(key, tags, str(number), mask_at=number, mpp=mpp_of(spacing), origin=(asked, 0))
        return Opened([page], spacing=spacing)
    if number >= len(known.leaves):
        raise RegionError(f"{key.path}: has no page {number}; it has {len(known.leaves)}")
    series, plane = known.holder(number)
    pyramid, levels = known.pyramid(series, plane), known.levels(series, plane)
    _check_level(f"{key.path} page {number}", asked, len(levels))
    name = f"{number} level {asked.level}" if asked.level else str(number)
    page = known.directories.page(pyramid[asked.level], name, pyramid[0])
    told = series.spacing if any(series.spacing) else page_spacing(page_at(tiff, number))
    return Opened([page], spacing=_by_hand(told, asked, levels[asked.level].downsample))


def _array(key: FileKey, tiff: tifffile.TiffFile, asked: Asked) -> Opened:
    """A series of pages, or all of them."""
    known = catalog(Directories(key, tiff))
    series = _series(key, known, asked)
    planes = list(series.planes)
    for k, own in enumerate(series.planes if asked.level else ()):
        pyramid = known.pyramid(series, k)
        _check_level(f"{key.path} page {own.number}", asked, len(pyramid))
        planes[k] = pyramid[asked.level]
    forms = {(id(own.model), id(leaf.model)): (own, leaf) for own, leaf in zip(series.planes, planes, strict=True)}
    first = known.directories.page(planes[0], head=series.planes[0])
    for own, leaf in forms.values():
        other = known.directories.page(leaf, head=own)
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise RegionError(
                f"{other}: is {other.shape} {other.dtype}, page {first.number} is {first.shape} {first.dtype}; "
                "pages of one shape stack, open others by page=k"
            )
    suffix = f" level {asked.level}" if asked.level else ""
    images, samples = series.images, planes[0].model.samplesperpixel if series.is_split else 1

    def page(k: int) -> Page:
        at, sample = divmod(k, samples)
        at, image = divmod(at, images)
        found = known.directories.page(planes[at], f"{series.planes[at].number}{suffix}", series.planes[at])
        found = found if images == 1 else stacked_plane(found, image, images)
        return found if samples == 1 else found.separate(sample)

    pages, axes, lead = planes_of(len(planes) * images * samples, page), series.axes, series.lead
    told = series.spacing if any(series.spacing) else page_spacing(page_at(tiff, int(series.planes[0].number)))
    level = known.levels(series)[asked.level]
    if asked.axes is not None:  # those of length 1 may be named too
        has_samples = pages[0].samples_axis
        shape = (*lead, *pages[0].shape[: 2 + has_samples])
        form = split_shape(f"{key.path} ({axes}YX{'S' * has_samples})", shape, asked.axes)
        axes, lead = form.axes, form.lead
    if math.prod(lead) != len(pages):
        raise RegionError(f"{key.path}: {series} has {len(pages)} planes")
    return Opened(pages, axes, lead, _by_hand(told, asked, level.downsample), channels=series.channels)


def _series(key: FileKey, known: Catalog, asked: Asked) -> Series:
    """The series that is asked for, or all pages that are images of their own as one stack."""
    number, several = asked.series or 0, [one for one in known.series if not one.trouble]
    if asked.page not in (None, "all"):
        raise ValueError("pass page= or series=, axes= and channels=, not both")
    if asked.page is None:
        if number >= len(known.series):
            raise RegionError(f"{key.path}: has no series {number}; it has {_listed(known.series)}")
        series = known.series[number]
        if series.trouble:
            raise RegionError(f"{key.path} series {number}: {series.trouble}")
        return series
    if len(several) > 1:
        one, other = several[0].planes[0], several[1].planes[0]
        head = f"{key.path}: its pages are"
        if one.shape != other.shape or one.kind != other.kind:
            is_one, is_other = (f"is {(*at.shape, at.model.samplesperpixel)} {at.model.dtype}" for at in (one, other))
            head = f"{key.path} page {other.number}: {is_other}, page {one.number} {is_one}; the pages are"
        raise RegionError(
            f"{head} {_listed(several)}; pages of one shape stack: open a series by series=k, open others by page=k"
        )
    if several and several[0].images > 1:
        return replace(several[0], axes="P", lead=(math.prod(several[0].lead),), channels=())
    planes = tuple(leaf for leaf in known.leaves if not (leaf.is_reduced or leaf.is_mask))
    if not planes:
        raise RegionError(f"{key.path}: has no full-resolution page")
    smaller = several[0].smaller if several and set(several[0].planes) == set(planes) else None
    return Series("", "P", (len(planes),), planes, smaller=smaller)


def _listed(series: Sequence[Series]) -> str:
    said = ", ".join(f"{k}: {one}" for k, one in enumerate(series[:6]))
    return f"{len(series)} series ({said}{', ...' if len(series) > 6 else ''})"


def _chosen(key: FileKey, found: Opened, asked: Asked) -> Opened:
    """The channels that were asked for: along the axis C, else one a page of a plain stack, else the samples."""
    if asked.channels is None:
        return found
    if found.axes == "P" and found.pages[0].shape[2] == 1:
        found = replace(found, axes="C")
    at = found.axes.find("C")
    samples = found.pages[0].shape[2]
    count = found.lead[at] if at >= 0 else samples
    places = []
    for channel in asked.channels:
        place = found.channels.index(channel) if channel in found.channels else channel
        if not isinstance(place, int) or not -count <= place < count:
            names = f", named {', '.join(map(repr, found.channels))}" if found.channels else ""
            raise RegionError(f"{key.path}: has no channel {channel!r}; it has channels 0 to {count - 1}{names}")
        places.append(place % count)
    if at < 0:
        return found if places == list(range(count)) else replace(found, bands=tuple(places))
    order = np.arange(len(found.pages)).reshape(found.lead).take(places, axis=at)
    at_places = order.ravel().tolist()
    pages = planes_of(len(at_places), lambda k: found.pages[at_places[k]])
    kept = tuple(found.channels[k] for k in places) if len(found.channels) == count else ()
    return replace(found, pages=pages, lead=order.shape, channels=kept)


def _from_group(key: FileKey, group: Any, asked: Asked) -> Opened:
    """One resolution of a multiscale image (NGFF)."""
    image = multiscale(key, group, asked.series or 0)
    if asked.page not in (None, 0, "all"):
        raise RegionError(f"{key.path}: holds one array, no page {asked.page}; slices are taken by an index")
    _check_level(key.path, asked, len(image.levels))
    below = Asked(axes=asked.axes or image.axes)
    array = image.arrays[asked.level]
    found, axes, lead = other_pages(array, None, None, below.axes) or ([], "", ())
    pages = planes_of(len(found), lambda k: replace(found[k], origin=(below, k)))
    spacing = _by_hand(image.spacing, asked, image.levels[asked.level].downsample)
    return Opened(pages, axes, lead, spacing, channels=image.channels)


def levels_of(key: FileKey, asked: Asked) -> tuple[tuple[Level, ...], dict[str, int], int]:
    """The resolutions of what was asked for, the numbers of the file's other images by their names, and how many images
    of one shape the series has that an image is one of, itself counted; 1 of what is no TIFF.
    """
    group = group_of(key)
    if group is not None:
        return multiscale(key, group, asked.series or 0).levels, {}, 1
    other = other_pages(key, asked.inner, asked.page, asked.axes)
    if other is not None:
        return (Level(other[0][0].shape[:2]),), {}, 1
    with parsed(key) as tiff:
        known = catalog(Directories(key, tiff))
        if asked.is_array:
            return known.levels(_series(key, known, asked)), known.associated, 1
        series, plane = known.holder(_number_of(key, tiff, asked.page, known))
        return known.levels(series, plane), known.associated, math.prod(series.lead)
