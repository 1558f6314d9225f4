"""Which page of a file is the slide, which pages are its lower resolutions, and which are other images.

The layouts are those of the scanners (Aperio SVS, Hamamatsu NDPI, Leica SCN, Ventana BIF, Akoya QPTIFF, Philips TIFF),
of LSM, of GDAL's overviews (NewSubfileType 1 behind their page), and of OME's (SubIFDs). A level is a page of the
same image: the same dtype, samples and aspect.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import tifffile

from lazytiles.errors import RegionError
from lazytiles.images.layouts.directories import Directories, Leaf
from lazytiles.images.layouts.documents import elements
from lazytiles.images.layouts.scales import Mpp, Spacing, aperio_spacing, imagej_spacing, length, mpp_of, tagged_spacing
from lazytiles.images.layouts.series import Series, by_form, ome_spacing, series_of, squeezed
from lazytiles.images.page import page_at

NAMES = ("label", "macro", "thumbnail", "map")
_ASPECT = 0.02  # by which the ratios of heights and of widths may differ, beside one pixel of rounding
_SCAN_RES = re.compile(rb"\bScanRes\s*=\s*[\"']([0-9]*\.?[0-9]+)[\"']")


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of an image.

    Attributes
    ----------
    shape : (height, width), pixels, as it is stored
    downsample : (y, x), pixels of full resolution in one of its pixels
    """

    shape: tuple[int, int]
    downsample: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Catalog:
    """What the pages of a file are."""

    directories: Directories
    leaves: list[Leaf]  # all pages of the main chain
    series: list[Series]  # the arrays that they form; of a slide scanner's file the first is the slide
    associated: dict[str, int]  # numbers of the pages that are other images, by their names

    def pyramid(self, series: Series, plane: int) -> list[Leaf]:
        """A plane of a series in each of its resolutions, the full one first."""
        head = series.planes[plane]
        if series.smaller is not None:
            return [head, *(pages[plane] for pages in series.smaller)]
        if self.directories.is_lsm:  # each plane has a thumbnail in red, green and blue behind it
            return [head]
        candidates = self.directories.below(head)
        if not candidates and head.number.isdecimal():
            behind = (self.leaves[k] for k in range(int(head.number) + 1, len(self.leaves)))
            smaller = itertools.takewhile(lambda leaf: leaf.is_reduced or leaf.is_mask, behind)
            candidates = [leaf for leaf in smaller if not leaf.is_mask]
        fitting = {leaf.shape: leaf for leaf in reversed(candidates) if is_level(head, leaf)}
        return [head, *sorted(fitting.values(), key=lambda leaf: -leaf.shape[0] * leaf.shape[1])]

    def levels(self, series: Series, plane: int = 0) -> tuple[Level, ...]:
        """The resolutions of a series, by those of one of its planes."""
        pyramid = self.pyramid(series, plane)
        height, width = pyramid[0].shape
        scales = series.downsamples or [(height / leaf.shape[0], width / leaf.shape[1]) for leaf in pyramid[1:]]
        return tuple(map(Level, (leaf.shape for leaf in pyramid), [(1.0, 1.0), *scales]))

    def holder(self, number: int) -> tuple[Series, int]:
        """The series that a page of the main chain is a plane of, and which; else one of that page alone."""
        leaf = self.leaves[number]
        for series in self.series:
            if not (series.trouble or series.images > 1) and leaf in series.planes:
                return series, series.planes.index(leaf)
        is_level = leaf.is_reduced or any(leaf in pages for one in self.series for pages in one.smaller or ())
        alone = is_level or number in self.associated.values()
        return Series("", "", (), (leaf,), smaller=() if alone else None), 0


def is_page_name(name: str) -> bool:
    """Whether an associated image may have this name."""
    return name in NAMES or bool(re.fullmatch(r"page-[0-9]{1,7}", name))


def is_level(head: Leaf, leaf: Leaf, *, padded: bool = False) -> bool:
    """Whether a page may be a lower resolution of another: dtype, samples and aspect agree, and it is smaller."""
    (height, width), (rows, columns) = head.shape, leaf.shape
    if leaf.kind != head.kind or rows > height or columns > width or (rows, columns) == (height, width):
        return False
    if padded:
        return True
    down, across = ((n / (k + 1), n / (k - 1) if k > 1 else math.inf) for n, k in ((height, rows), (width, columns)))
    return down[0] * (1 - _ASPECT) <= across[1] and across[0] * (1 - _ASPECT) <= down[1]


def scanner_of(first: tifffile.TiffPage) -> str | None:
    """Whose slide scanner wrote a file, by the tags of its first page; None for all other files."""
    description = first.description
    if description.startswith("Aperio "):
        return "svs" if first.is_tiled else None
    if description[-10:].strip().endswith("</scn>"):
        return "scn"
    if first.software.startswith(("PerkinElmer-QPI", "Philips DP")):
        return "qpi" if first.is_qpi else "philips" if first.is_philips else None
    if 65420 in first.tags and first.is_ndpi:
        return "ndpi"
    return "bif" if 700 in first.tags and first.is_bif else None


def needs_catalog(first: tifffile.TiffPage) -> bool:
    """Whether the tags of the first page do not say alone which page is the slide, or of what scale it is."""
    return scanner_of(first) not in (None, "svs", "qpi") or bool(first.is_lsm)


def catalog(found: Directories) -> Catalog:
    """What the pages of a file are, by the format that wrote it."""
    leaves = found.chain()
    scanner = scanner_of(page_at(found.tiff, 0))
    if scanner is None:
        series = series_of(found, leaves)
        return Catalog(found, leaves, series, _other_pages(leaves, series))
    slide, names, others = _LAYOUTS[scanner](found, leaves)
    series = [slide, *others]
    held = {leaf.number for one in series for pages in (one.planes, *(one.smaller or ())) for leaf in pages}
    for k, leaf in enumerate(leaves):
        if leaf.number not in held and k not in names.values() and not leaf.is_mask:
            names[f"page-{k}"] = k
    alone = {name: leaves[k] for name, k in names.items() if leaves[k].number not in held}
    series += [Series(name, "", (), (leaf,), smaller=()) for name, leaf in alone.items()]
    return Catalog(found, leaves, series, dict(sorted(names.items(), key=lambda item: item[1])))


def _other_pages(leaves: Sequence[Leaf], series: Sequence[Series]) -> dict[str, int]:
    """The pages of the main chain that are neither planes of a series nor their levels nor masks."""
    first = leaves[0].model
    images = [one for k, one in enumerate(series) if not k or len(one.planes) > 1 or first.is_ome]
    planes = {leaf.number for one in images for leaf in one.planes}
    named: dict[str, int] = {}
    head = None
    for k, leaf in enumerate(leaves):
        if leaf.is_mask or leaf.number in planes:
            head = head if leaf.is_mask else leaf
        elif first.is_lsm or not leaf.is_reduced or head is None or not is_level(head, leaf):
            head = head if leaf.is_reduced else leaf
            if not first.is_lsm or not named:
                named["thumbnail" if first.is_lsm else f"page-{k}"] = k
    return named


Layout = tuple[Series, dict[str, int], Sequence[Series]]
"""The slide, the other images by their names, and other series."""


def _stacked(name: str, letter: str, planes: Sequence[Leaf], sizes: Sequence[Sequence[Leaf]], **more: Any) -> Series:
    """A slide of one or several planes (focal planes, channels), with those resolutions that have all of them."""
    head = planes[0]
    fitting = {
        pages[0].shape: tuple(pages) for pages in sizes if len(pages) == len(planes) and is_level(head, pages[0])
    }
    smaller = tuple(sorted(fitting.values(), key=lambda pages: -pages[0].shape[0] * pages[0].shape[1]))
    return Series(name, *squeezed(letter, (len(planes),)), tuple(planes), smaller=smaller, **more)


def _svs(found: Directories, leaves: list[Leaf]) -> Layout:
    """Aperio: the slide and its levels are tiled; behind it come a thumbnail, and last a label and a macro photo."""
    names: dict[str, int] = {}
    tiled = [leaves[0]]
    for k, leaf in enumerate(leaves[1:], 1):
        said = re.search(r"\n\s*(label|macro)\b", found.text(leaf))
        kind = said[1] if said else {1: "label", 9: "macro"}.get(int(leaf.model.subfiletype), "")
        if leaf.model.is_tiled and not said and leaf.model.subfiletype != 9:
            tiled.append(leaf)
        elif kind and kind not in names and (k > 1 or said):
            names[kind] = k
        elif "thumbnail" not in names and not said:
            names["thumbnail"] = k
    planes, *sizes = by_form(tiled)
    return _stacked("Baseline", "Z", planes, sizes, spacing=aperio_spacing(found.text(leaves[0]))), names, ()


def _ndpi(found: Directories, leaves: list[Leaf]) -> Layout:
    """Hamamatsu: each page says through which lens it was seen; -1 is the macro photo, -2 the map of the scan."""
    lens = [leaf.model.tags.valueof(65421, default=1.0) for leaf in leaves]
    names = {name: lens.index(value) for value, name in ((-1.0, "macro"), (-2.0, "map")) if value in lens}
    groups = by_form([leaf for leaf, seen in zip(leaves, lens, strict=True) if seen > 0] or leaves[:1])
    groups.sort(key=lambda pages: -pages[0].shape[0] * pages[0].shape[1])
    groups = [sorted(pages, key=lambda leaf: int(leaf.model.tags.valueof(65424, default=0))) for pages in groups]
    return _stacked("Baseline", "Z", groups[0], groups[1:], spacing=tagged_spacing(groups[0][0].model)), names, ()


def _philips(found: Directories, leaves: list[Leaf]) -> Layout:
    """Philips: tiled pages are levels, each padded to whole tiles; their scales are powers of two."""
    names, tiled = {}, []
    for k, leaf in enumerate(leaves):
        kind = found.text(leaf)[:5].lower()
        if kind in ("label", "macro"):
            names[kind] = k
        elif leaf.model.is_tiled:
            tiled.append(leaf)
    every, levels = [], list[Mpp]()  # spacings (y, x) that the document says, and those of them that are of levels
    is_level_next = False
    for name, said, text in elements(found.key.path, found.text(leaves[0]), ("DataObject",), ("Attribute",)):
        if name == "DataObject":
            is_level_next = said.get("ObjectType") == "PixelDataRepresentation"
        elif said.get("Name") == "DICOM_PIXEL_SPACING":
            y, x = ([*(length(part, "mm") for part in text.replace('"', " ").split()), None, None])[:2]
            mpp = mpp_of((None, y, x))
            if mpp is not None:
                every.append(mpp)
                levels += [mpp] if is_level_next else []
    told = levels or every[:1]
    head = tiled[0] if tiled else leaves[0]
    smaller, scales = [], []
    for k, leaf in enumerate(tiled[1:], 1):
        ratio = told[k][0] / told[0][0] if len(told) == len(tiled) else 2.0**k
        scale = float(2 ** max(0, round(ratio).bit_length() - 1)) if ratio >= 1 else 1.0
        if is_level(head, leaf, padded=True):
            smaller.append((leaf,))
            scales.append((scale, scale))
    spacing: Spacing = (None, *told[0]) if told else tagged_spacing(head.model)
    slide = Series("Baseline", "", (), (head,), smaller=tuple(smaller), downsamples=tuple(scales), spacing=spacing)
    return slide, names, ()


def _scn(found: Directories, leaves: list[Leaf]) -> Layout:
    """Leica: a document says which pages each image has; the slide is the largest of them, another is the photo."""
    names: dict[str, int] = {}
    images: list[dict[str, Any]] = []
    whole: tuple[str | None, str | None] = (None, None)
    words = ("collection", "image", "pixels", "dimension", "view", "supplementalImage")
    for name, told, _ in elements(found.key.path, found.text(leaves[0]), words):
        if name == "collection":
            whole = told.get("sizeX"), told.get("sizeY")
        elif name == "image":
            images.append({"name": told.get("name", ""), "pages": {}, "view": (None, None)})
        elif name == "supplementalImage":
            number, kind = _ifd(found, leaves, told), told.get("type", "")
            names[kind if kind in NAMES else f"page-{number}"] = number
        elif images and name == "view":
            images[-1]["view"] = told.get("sizeX"), told.get("sizeY")
        elif images and name == "dimension":
            place = tuple(int(told.get(axis, 0)) for axis in "czr")
            images[-1]["pages"][place] = leaves[_ifd(found, leaves, told)]
    series = [(_scn_series(image), image["view"] == whole) for image in images if image["pages"]]
    if not series:
        raise RegionError(f"{found.key.path}: its SCN document names no image")
    series.sort(key=lambda pair: -pair[0].planes[0].shape[0] * pair[0].planes[0].shape[1])
    photos = [one for one, covers in series[1:] if covers or len(series) == 2]
    if photos:
        names["macro"] = int(photos[0].planes[0].number)
    return series[0][0], names, [one for one, _ in series[1:]]


def _ifd(found: Directories, leaves: Sequence[Leaf], told: dict[str, str]) -> int:
    text = told.get("ifd", "")
    if not text.isdecimal() or int(text) >= len(leaves):
        raise RegionError(f"{found.key.path}: its SCN document names page {text!r:.20}; it has {len(leaves)}")
    return int(text)


def _scn_series(image: dict[str, Any]) -> Series:
    """One image: channels and focal planes at each resolution."""
    pages: dict[tuple[int, ...], Leaf] = image["pages"]
    depths = sorted({place[:2] for place in pages})
    lead = (len({c for c, _ in depths}), len({z for _, z in depths}))
    steps = sorted({r for _, _, r in pages})
    sizes = [[pages[(*at, r)] for at in depths if (*at, r) in pages] for r in steps]
    sizes.sort(key=lambda group: -group[0].shape[0] * group[0].shape[1])
    axes = squeezed("CZ", lead if lead[0] * lead[1] == len(sizes[0]) else (len(sizes[0]), 1))
    sides = (length(n, "nm") for n in reversed(image["view"]))
    y, x = (side and side / n for side, n in zip(sides, sizes[0][0].shape, strict=True))
    slide = _stacked(image["name"], "C", sizes[0], sizes[1:], spacing=(None, y, x))
    return replace(slide, axes=axes[0], lead=axes[1])


def _bif(found: Directories, leaves: list[Leaf]) -> Layout:
    """Ventana: descriptions say which page is which; the tiles of neighbouring fields are not stitched."""
    names: dict[str, int] = {}
    groups: dict[int, list[Leaf]] = {}
    for k, leaf in enumerate(leaves):
        said = found.text(leaf)
        level = re.search(r"\blevel=(\d{1,3})\b", said)
        if level:
            groups.setdefault(int(level[1]), []).append(leaf)
        elif said.startswith(("Label", "Thumbnail")):
            names.setdefault("label" if said.startswith("Label") else "thumbnail", k)
    if not groups:
        return Series("Baseline", "", (), (leaves[0],), smaller=()), names, ()
    planes, *sizes = (groups[k] for k in sorted(groups))
    xmp = leaves[0].model.tags.valueof(700)
    told = _SCAN_RES.search(xmp) if isinstance(xmp, bytes) else None
    mpp = length(told[1].decode(), "µm") if told else None
    return _stacked("Baseline", "Z", planes, sizes, spacing=(None, mpp, mpp)), names, ()


def _qpi(found: Directories, leaves: list[Leaf]) -> Layout:
    """Akoya: a page for each channel at each resolution, and pages of other types, as their descriptions say."""
    known = {"Thumbnail": "thumbnail", "Overview": "macro", "Label": "label"}
    names: dict[str, int] = {}
    full, reduced, channels = [], [], []
    for k, leaf in enumerate(leaves):
        text, words = found.text(leaf), dict[str, str]()
        if text.lstrip().startswith("<"):
            for name, _, said in elements(found.key.path, text, (), ("ImageType", "Name")):
                words.setdefault(name, said)
        is_full = leaf.shape == leaves[0].shape
        kind = words.get("ImageType") or ("FullResolution" if is_full else "ReducedResolution")
        if kind in known:
            names.setdefault(known[kind], k)
        elif kind == "FullResolution":
            full.append(leaf)
            channels.append(words.get("Name", ""))
        elif kind == "ReducedResolution":
            reduced.append(leaf)
    planes = full or leaves[:1]
    named = tuple(channels) if all(channels) and len(channels) > 1 else ()
    slide = _stacked("Baseline", "C", planes, by_form(reduced), channels=named, spacing=tagged_spacing(planes[0].model))
    return slide, names, ()


_LAYOUTS = {"svs": _svs, "ndpi": _ndpi, "scn": _scn, "bif": _bif, "qpi": _qpi, "philips": _philips}


def page_spacing(page: tifffile.TiffPage) -> Spacing:
    """(z, y, x) of a page by what the file's tags say; of a page behind the first, by its resolution tags alone."""
    tiff, description = page.parent, "" if page.index else page.description
    if description.startswith("Aperio "):
        return aperio_spacing(description)
    if description[-10:].strip().endswith("OME>"):
        with suppress(RegionError):  # of a document that is damaged
            return ome_spacing(tiff.filename, description)
    if description.startswith("ImageJ=") or (description and page.is_imagej):
        return imagej_spacing(page, tiff.imagej_metadata or {})
    return tagged_spacing(page)
