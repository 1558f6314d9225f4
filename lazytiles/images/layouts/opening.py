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
from lazytiles.images.layouts.directories import Directories, Leaf
from lazytiles.images.layouts.levels import Catalog, Level, catalog, needs_catalog, page_spacing, scanner_of
from lazytiles.images.layouts.multiscale import group_of, multiscale
from lazytiles.images.layouts.scales import Spacing, mpp_of
from lazytiles.images.layouts.series import Series
from lazytiles.images.page import Asked, Page, facts, page_at, parsed, stacked_plane
from lazytiles.images.pictures import planes_of, split_shape

_NOTHING: Spacing = (None, None, None)
_KEPT = 4  # stacks whose pages a worker process keeps, by one of which another is found


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What a region is made of.

    Parameters
    ----------
    pages : in C order over `lead`
    axes, lead : letters and lengths of the axes before rows and columns
    spacing : (z, y, x), micrometres
    bands : the samples that were asked for as channels, or None
    channels : names of the channels, where they have names
    """

    pages: Sequence[Page]
    axes: str = ""
    lead: tuple[int, ...] = ()
    spacing: Spacing = _NOTHING
    bands: tuple[int, ...] | None = None
    channels: tuple[str, ...] = ()


def open_pages(key: FileKey, asked: Asked) -> Opened:
    """The pages that a region is made of.

    Parameters
    ----------
    key : the file, as `identify` gave it
    asked : what of it
    """
    found = _chosen(key, _opened(key, asked), asked)
    mpp, pages = mpp_of(found.spacing), found.pages

    def known(k: int) -> Page:
        page = pages[k]
        if page.origin is not None and page.mpp == mpp and asked.fill is None:
            return page
        fill = page.fill if asked.fill is None or page.nodata is not None else _fill(page, asked.fill)
        return replace(page, mpp=mpp, fill=fill, origin=(asked, k) if page.origin is None else page.origin)

    return Opened(planes_of(len(pages), known), found.axes, found.lead, found.spacing, found.bands, found.channels)


def _fill(page: Page, fill: float) -> Any:
    """What missing segments of a page hold by request."""
    with np.errstate(invalid="ignore"):
        value = np.asarray(fill).astype(page.dtype)[()]
    if value != fill and fill == fill:
        raise RegionError(f"{page}: {page.dtype} samples cannot hold fill={fill}")
    return value


def reopened(key: FileKey, origin: tuple[Asked, int]) -> Page:
    """A page of a file that was opened before, maybe in another process, opened again by its `origin`.

    Raises
    ------
    RegionError : it is no longer the file that it was
    """
    pool.check(key)
    pool.identify(key.path)
    asked, k = origin
    return (_kept(key, asked) if asked.is_array else open_pages(key, asked).pages)[k]


@lru_cache(_KEPT)
def _kept(key: FileKey, asked: Asked) -> Sequence[Page]:
    return open_pages(key, asked).pages


def _opened(key: FileKey, asked: Asked) -> Opened:
    group = group_of(key)
    if group is not None:
        return _from_group(key, group, asked)
    other = other_pages(key, asked.inner, asked.page, asked.axes)
    if other is not None:
        if asked.level or asked.series:
            what = f"level {asked.level}" if asked.level else f"series {asked.series}"
            raise RegionError(f"{key.path}: has no {what}; it holds one array at one resolution")
        pages, axes, lead = other
        return Opened(pages, axes, lead, _by_hand(_NOTHING, asked))
    with parsed(key) as tiff:
        if asked.is_array:
            return _array(key, tiff, asked)
        return _image(key, tiff, asked)


def _by_hand(spacing: Spacing, asked: Asked, downsample: tuple[float, float] = (1.0, 1.0)) -> Spacing:
    """A spacing of full resolution, or that given by hand, at some level."""
    z, y, x = spacing if asked.mpp is None else (spacing[0], *asked.mpp)
    return z, y and y * downsample[0], x and x * downsample[1]


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
        page = facts(key, tags, str(number), mpp=mpp_of(spacing), origin=(asked, 0))
        return Opened([page], spacing=spacing)
    if number >= len(known.leaves):
        raise RegionError(f"{key.path}: has no page {number}; it has {len(known.leaves)}")
    series, plane = known.holder(number)
    levels = known.levels(series, plane)
    if asked.level >= len(levels):
        where = f"{key.path} page {number}"
        raise RegionError(f"{where}: has no level {asked.level}; it has levels 0 to {len(levels) - 1}")
    leaf = known.pyramid(series, plane)[asked.level]
    head = known.pyramid(series, plane)[0]
    page = known.directories.page(leaf, f"{number} level {asked.level}" if asked.level else str(number), head)
    told = series.spacing if any(series.spacing) else page_spacing(page_at(tiff, number))
    return Opened([page], spacing=_by_hand(told, asked, levels[asked.level].downsample))


def _array(key: FileKey, tiff: tifffile.TiffFile, asked: Asked) -> Opened:
    """A series of pages, or all of them."""
    known = catalog(Directories(key, tiff))
    if asked.page == "all":
        series = _every(key, known)
    elif asked.page is not None:
        raise ValueError("pass page= or series=, axes= and channels=, not both")
    else:
        number = asked.series or 0
        if number >= len(known.series):
            raise RegionError(f"{key.path}: has no series {number}; it has {_listed(known.series)}")
        series = known.series[number]
        if series.trouble:
            raise RegionError(f"{key.path} series {number}: {series.trouble}")
    planes = known.at_level(series, asked.level)
    suffix = f" level {asked.level}" if asked.level else ""
    head = series.planes[0]
    forms = {(id(own.model), id(leaf.model)): (own, leaf) for own, leaf in zip(series.planes, planes, strict=True)}
    first = known.directories.page(planes[0], head=head)
    for own, leaf in forms.values():
        other = known.directories.page(leaf, head=own)
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise RegionError(
                f"{other}: is {other.shape} {other.dtype}, page {first.number} is {first.shape} {first.dtype}; "
                "pages of one shape stack, open others by page=k"
            )
    images, samples = series.images, planes[0].model.samplesperpixel if series.is_split else 1

    def page(k: int) -> Page:
        at, sample = divmod(k, samples)
        at, image = divmod(at, images)
        found = known.directories.page(planes[at], f"{series.planes[at].number}{suffix}", series.planes[at])
        found = found if images == 1 else stacked_plane(found, image, images)
        return found if samples == 1 else found.separate(sample)

    pages = planes_of(len(planes) * images * samples, page)
    told = series.spacing if any(series.spacing) else page_spacing(page_at(tiff, int(head.number)))
    level = known.levels(series)[asked.level]
    axes, lead = _named(key, series, asked.axes, pages[0])
    if math.prod(lead) != len(pages):
        raise RegionError(f"{key.path}: {series} has {len(pages)} planes")
    return Opened(pages, axes, lead, _by_hand(told, asked, level.downsample), channels=series.channels)


def _every(key: FileKey, known: Catalog) -> Series:
    """All pages that are images of their own as one stack; those of several series are refused."""
    several = [one for one in known.series if not one.trouble]
    if len(several) > 1:
        one, other = several[0].planes[0], several[1].planes[0]
        head = f"{key.path}: its pages are"
        if one.shape != other.shape or one.kind != other.kind:
            head = (
                f"{key.path} page {other.number}: is {_shape(other)}, page {one.number} is {_shape(one)}; the pages are"
            )
        raise RegionError(
            f"{head} {_listed(several)}; pages of one shape stack: open a series by series=k, open others by page=k"
        )
    if several and several[0].images > 1:
        count = math.prod(several[0].lead)
        return replace(several[0], axes="P", lead=(count,), channels=())
    planes = tuple(leaf for leaf in known.leaves if not (leaf.is_reduced or leaf.is_mask))
    if not planes:
        raise RegionError(f"{key.path}: has no full-resolution page")
    known_smaller = several[0].smaller if several and set(several[0].planes) == set(planes) else None
    return Series("", "P", (len(planes),), planes, smaller=known_smaller)


def _shape(leaf: Leaf) -> str:
    return f"{(*leaf.shape, leaf.model.samplesperpixel)} {leaf.model.dtype}"


def _listed(series: Sequence[Series]) -> str:
    said = ", ".join(f"{k}: {one}" for k, one in enumerate(series[:6]))
    return f"{len(series)} series ({said}{', ...' if len(series) > 6 else ''})"


def _named(key: FileKey, series: Series, axes: str | None, page: Page) -> tuple[str, tuple[int, ...]]:
    """The leading axes of a series, renamed where they are given; those of length 1 may be named too."""
    if axes is None:
        return series.axes, series.lead
    shape = (*series.lead, *page.shape[: 2 + page.samples_axis])
    form = split_shape(f"{key.path} ({series.axes}YX{'S' * page.samples_axis})", shape, axes)
    return form.axes, form.lead


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
    if asked.level >= len(image.levels):
        raise RegionError(f"{key.path}: has no level {asked.level}; it has levels 0 to {len(image.levels) - 1}")
    below = Asked(axes=asked.axes or image.axes)
    array = image.arrays[asked.level]
    pages, axes, lead = other_pages(array, None, None, below.axes) or ([], "", ())

    def page(k: int) -> Page:
        return replace(pages[k], origin=(below, k))

    spacing = _by_hand(image.spacing, asked, image.levels[asked.level].downsample)
    return Opened(planes_of(len(pages), page), axes, lead, spacing, channels=image.channels)


def levels_of(key: FileKey, asked: Asked) -> tuple[tuple[Level, ...], dict[str, int]]:
    """The resolutions of what was asked for, and the numbers of the file's other images by their names."""
    group = group_of(key)
    if group is not None:
        return multiscale(key, group, asked.series or 0).levels, {}
    other = other_pages(key, asked.inner, asked.page, asked.axes)
    if other is not None:
        return (Level((other[0][0].shape[0], other[0][0].shape[1])),), {}
    with parsed(key) as tiff:
        known = catalog(Directories(key, tiff))
        if asked.is_array:
            series = _every(key, known) if asked.page == "all" else known.series[asked.series or 0]
            return known.levels(series), known.associated
        number = _number_of(key, tiff, asked.page, known)
        return known.levels(*known.holder(number)), known.associated


def images_beside(key: FileKey, asked: Asked) -> int:
    """How many images of one shape the series has that an image is one of, itself counted; 1 of what is no TIFF."""
    if asked.is_array or group_of(key) is not None or other_pages(key, asked.inner, asked.page, asked.axes) is not None:
        return 1
    with parsed(key) as tiff:
        known = catalog(Directories(key, tiff))
        return math.prod(known.holder(_number_of(key, tiff, asked.page, known))[0].lead)
