"""The arrays that pages of one file form, with named axes: OME, ImageJ, MetaMorph STK, LSM, tifffile, plain pages.

Everything is taken from the tags and the XML of this file; what they name beside it is never opened.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from lazytiles.errors import RegionError
from lazytiles.images.layouts.directories import MOST_PAGES, Directories, Leaf
from lazytiles.images.layouts.documents import elements
from lazytiles.images.layouts.scales import UNKNOWN, Spacing, imagej_spacing, length

_PLAIN_LETTERS = "RQP"
_MOST_TIFFDATA, _MOST_IMAGES, _MOST_PLANES = 2**18, 2**14, 2**20  # of one document


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Pages of a file that form one array."""

    name: str  # as the file has it
    axes: str  # letters and, in `lead`, lengths of the axes before rows and columns
    lead: tuple[int, ...]
    planes: tuple[Leaf, ...]  # in C order over `lead`; fewer where they have several `images` each, or `is_split`
    images: int = 1  # planes that lie one after the other behind each directory
    is_split: bool = False  # whether the samples of a page, stored plane by plane, are its last leading axis: channels
    channels: tuple[str, ...] = ()  # their names
    spacing: Spacing = UNKNOWN
    # The pages of each lower resolution, in the order of `planes`; None: as each page's own pyramid.
    smaller: tuple[tuple[Leaf, ...], ...] | None = None
    # (y, x) of each lower resolution, where the format knows better than the sizes of its pages.
    downsamples: tuple[tuple[float, float], ...] | None = None
    trouble: str = ""  # why it cannot be read as a whole

    def __str__(self) -> str:
        rows = self.planes[0].shape if self.planes else ()
        size = " x ".join(map(str, (*self.lead, *rows)))
        return f"{self.name!r} ({self.axes}YX, {size})" if self.name else f"({self.axes}YX, {size})"


def series_of(found: Directories, leaves: Sequence[Leaf]) -> list[Series]:
    """The series of a file that no slide scanner wrote, in its own order."""
    tiff, full = found.tiff, [leaf for leaf in leaves if not (leaf.is_reduced or leaf.is_mask)]
    first = leaves[0].model
    if first.is_ome:
        try:
            told = _ome(found, leaves)
        except RegionError as error:  # its pages can be read all the same
            return [_with_trouble(leaves, str(error).removeprefix(f"{found.key.path}: "))]
        if told:
            return told
    if not full:
        return _groups(leaves)
    if first.is_stk:
        return [_stk(tiff, full[0])]
    if first.is_lsm:
        told = _lsm(tiff, full)
        if told:
            return told
    if first.is_imagej:
        return [_imagej(tiff, full)]
    return _shaped(found, full)


def squeezed(axes: str, lead: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Axes without those of length 1.

    >>> squeezed("TCZ", (1, 3, 5))
    ('CZ', (3, 5))
    """
    kept = [k for k, n in enumerate(lead) if n != 1]
    return "".join(axes[k] for k in kept), tuple(lead[k] for k in kept)


def by_form(leaves: Sequence[Leaf]) -> list[list[Leaf]]:
    """Pages of one shape and kind together, in the order in which these come."""
    groups: dict[Any, list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault((leaf.shape, leaf.kind), []).append(leaf)
    return list(groups.values())


def _groups(full: Sequence[Leaf]) -> list[Series]:
    return [Series("", *squeezed("P", (len(group),)), tuple(group)) for group in by_form(full)]


def _shaped(found: Directories, full: Sequence[Leaf]) -> list[Series]:
    """Series that tifffile described by shape, and axes where it was told; all other pages by their form."""
    series: list[Series] = []
    plain: list[Leaf] = []
    k = 0
    while k < len(full):
        leaf = full[k]
        told = _shape_told(found.text(leaf))
        page = leaf.model
        each = math.prod(leaf.shape) * page.samplesperpixel
        count = math.prod(told["shape"]) // each if told and each else 0
        if not told or count < 1 or count > MOST_PAGES or math.prod(told["shape"]) % each:
            plain.append(leaf)
            k += 1
            continue
        own = 3 if page.samplesperpixel > 1 else 2
        lead = tuple(told["shape"][:-own])
        axes = str(told.get("axes", ""))
        axes = axes[: len(lead)] if len(axes) == len(told["shape"]) else ""
        if math.prod(lead) != count:
            lead, axes = (count,), ""
        if not axes or set(axes) & set("YXS") or len(set(axes)) < len(axes):
            _, lead = squeezed("." * len(lead), lead)
            lead = lead if len(lead) <= len(_PLAIN_LETTERS) else (count,)
            axes = _PLAIN_LETTERS[len(_PLAIN_LETTERS) - len(lead) :]
        axes, lead = squeezed(axes, lead)
        images = count if told.get("truncated") or count > len(full) - k else 1
        planes = tuple(full[k : k + (1 if images > 1 else count)])
        series.append(Series(str(told.get("name", "")), axes, lead, planes, images))
        k += len(planes)
    return sorted([*series, *_groups(plain)], key=lambda one: int(one.planes[0].number))


def _shape_told(text: str) -> dict[str, Any] | None:
    """What tifffile's description says of a series; None where it is none."""
    if not text.startswith('{"shape":'):
        return None
    try:
        told: dict[str, Any] = json.loads(text)
        told["shape"] = [int(n) for n in told["shape"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return told if min(told["shape"], default=0) > 0 else None


def _imagej(tiff: tifffile.TiffFile, full: Sequence[Leaf]) -> Series:
    """ImageJ's hyperstack: frames, slices, channels, unless it names another order."""
    told: dict[str, Any] = tiff.imagej_metadata or {}
    names = {"T": "frames", "Z": "slices", "C": "channels"}
    sizes = {letter: _number(told.get(name, 1)) for letter, name in names.items()}
    page = full[0].model
    if page.samplesperpixel > 1 and page.samplesperpixel == sizes["C"]:
        sizes["C"] = 1  # the samples of a page
    images = _number(told.get("images", 1)) if len(full) == 1 else len(full)
    order = str(told.get("order", "czt")).upper()[::-1]
    axes = order if sorted(order) == ["C", "T", "Z"] else "TZC"
    lead = tuple(sizes[letter] for letter in axes)
    count = math.prod(lead)
    if len(full) == 1 and images == 1:
        images = count
    if count != images:
        is_several = images > count and images % count == 0
        axes, lead = ("P" + axes, (images // count, *lead)) if is_several else ("P", (images,))
    axes, lead = squeezed(axes, lead)
    labels = told.get("Labels") if sizes["C"] == images else None
    channels = tuple(map(str, labels)) if isinstance(labels, list | tuple) and len(labels) == images else ()
    behind = images if len(full) == 1 else 1
    return Series("", axes, lead, tuple(full), behind, channels=channels, spacing=imagej_spacing(page, told))


def _number(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value <= MOST_PAGES else 1


def _stk(tiff: tifffile.TiffFile, leaf: Leaf) -> Series:
    """The planes behind the only directory of a MetaMorph stack (its tag UIC2 counts them)."""
    told: dict[str, Any] = tiff.stk_metadata or {}
    planes = int(told.get("NumberPlanes", 1))
    if not 0 < planes <= MOST_PAGES:
        raise RegionError(f"{tiff.filename}: {planes} planes make no sense")
    letter = "P"
    if planes > 1 and _all(np.asarray(told.get("ZDistance", 0)) != 0, planes):
        letter = "Z"
    elif planes > 1 and _all(np.diff(np.atleast_1d(np.asarray(told.get("TimeCreated", 0)))) != 0, planes - 1):
        letter = "T"
    return Series(str(told.get("Name", "")), *squeezed(letter, (planes,)), (leaf,), planes)


def _all(flags: NDArray[np.bool_], count: int) -> bool:
    return flags.size == count and bool(flags.all())


def _lsm(tiff: tifffile.TiffFile, full: Sequence[Leaf]) -> list[Series]:
    """Zeiss LSM: the axes of its scan, channels being the samples of a page."""
    told: dict[str, Any] = tiff.lsm_metadata or {}
    axes = tifffile.TIFF.CZ_LSMINFO_SCANTYPE.get(told.get("ScanType", -1), "")
    if not axes.endswith("YX"):
        return []
    page = full[0].model
    letters = axes[:-2].replace("C", "")
    for extra in "PM":
        letters = extra + letters if int(told.get(f"Dimension{extra}", 0)) > 0 else letters
    lead = tuple(int(told.get(tifffile.TIFF.CZ_LSMINFO_DIMENSIONS[letter], 1)) for letter in letters)
    if math.prod(lead) != len(full) or any((leaf.shape, leaf.kind) != (full[0].shape, full[0].kind) for leaf in full):
        return []
    is_split = page.planarconfig == 2 and page.samplesperpixel > 1
    if is_split:
        letters, lead = letters + "C", (*lead, page.samplesperpixel)
    letters, lead = squeezed(letters, lead)
    z, y, x = (length(told.get(f"VoxelSize{axis}"), "m") for axis in "ZYX")
    colors = told.get("ChannelColors", {})
    names = tuple(map(str, colors.get("ColorNames", ()))) if isinstance(colors, dict) else ()
    names = names if len(names) == page.samplesperpixel else ()
    return [Series(str(told.get("Name", "")), letters, lead, tuple(full), 1, is_split, names, (z, y, x))]


@dataclass(slots=True)
class _OmeImage:
    """One image of an OME-XML document, while it is read."""

    name: str
    order: str = "XYZCT"
    sizes: dict[str, int] = field(default_factory=dict)
    spacing: Spacing = UNKNOWN
    samples: int = 1
    channels: list[str] = field(default_factory=list)
    data: list[tuple[dict[str, str], str, str]] = field(default_factory=list)  # attributes, UUID, file


_OME = ("OME", "Image", "Pixels", "Channel", "TiffData", "BinaryOnly")


def _ome_images(where: str, text: str) -> tuple[list[_OmeImage], str, str]:
    """The images of a document, its own UUID, and the file that holds the document where this one does not."""
    images: list[_OmeImage] = []
    own, elsewhere, count = "", "", 0
    for name, told, said in elements(where, text, _OME, ("UUID",)):
        if name == "OME":
            own = told.get("UUID", "")
        elif name == "BinaryOnly":
            elsewhere = told.get("MetadataFile", "another file")
        elif name == "Image":
            if len(images) >= _MOST_IMAGES:
                raise RegionError(f"{where}: its OME-XML has more than {_MOST_IMAGES} images")
            images.append(_OmeImage(told.get("Name", "")))
        elif not images:
            continue
        elif name == "Pixels":
            one = images[-1]
            one.order = told.get("DimensionOrder", one.order)
            one.sizes = {axis: _size(where, told.get(f"Size{axis}", "1")) for axis in "TZC"}
            one.spacing = _physical(told)
        elif name == "Channel":
            images[-1].samples = max(images[-1].samples, _size(where, told.get("SamplesPerPixel", "1")))
            images[-1].channels.append(told.get("Name", ""))
        elif name == "TiffData":
            count += 1
            if count > _MOST_TIFFDATA:
                raise RegionError(f"{where}: its OME-XML has more than {_MOST_TIFFDATA} elements TiffData")
            images[-1].data.append((told, "", ""))
        elif images[-1].data:
            images[-1].data[-1] = (images[-1].data[-1][0], said, told.get("FileName", ""))
    return images, own, elsewhere


def _size(where: str, text: str) -> int:
    try:
        size = int(text)
    except ValueError:
        size = 0
    if not 0 < size < 2**31:
        raise RegionError(f"{where}: its OME-XML says a size of {text!r:.20}")
    return size


def ome_spacing(where: str, text: str) -> Spacing:
    """(z, y, x) in micrometres of the pixels of a document's first image."""
    first = next(elements(where, text, ("Pixels",)), None)
    return UNKNOWN if first is None else _physical(first[1])


def _physical(told: dict[str, str]) -> Spacing:
    z, y, x = (length(told.get(f"PhysicalSize{a}"), told.get(f"PhysicalSize{a}Unit", "µm")) for a in "ZYX")
    return z, y, x


def _ome(found: Directories, leaves: Sequence[Leaf]) -> list[Series]:
    """The images of an OME-TIFF, plane by plane where its TiffData says that they are (OME data model 2016-06)."""
    where = str(found.key.path)
    images, own, elsewhere = _ome_images(where, found.text(leaves[0]))
    if elsewhere:
        said = f"its OME-XML lies in {elsewhere!r}, and files that a file names are never opened"
        return [_with_trouble(leaves, said)]
    series, budget = [], _MOST_PLANES
    for image in images:
        if image.data or len(images) == 1:
            series.append(_ome_series(found, leaves, image, own, budget))
            budget -= math.prod(series[-1].lead)
    return series


def _with_trouble(leaves: Sequence[Leaf], trouble: str) -> Series:
    return Series("", "P", (len(leaves),), tuple(leaves), trouble=trouble)


def _ome_series(found: Directories, leaves: Sequence[Leaf], image: _OmeImage, own: str, most: int) -> Series:
    where, order = str(found.key.path), image.order[::-1][:3]
    sizes = {**image.sizes, "C": max(1, image.sizes.get("C", 1) // image.samples)}
    if sorted(order) != ["C", "T", "Z"] or not image.order.startswith("XY"):
        return _with_trouble(leaves, f"its OME-XML orders its dimensions as {image.order!r:.20}")
    lead = tuple(sizes.get(letter, 1) for letter in order)
    count, most = math.prod(lead), min(most, MOST_PAGES)
    if count > most:
        return _with_trouble(leaves, f"its OME-XML says {count} planes; at most {max(0, most)} are read")
    name = os.path.basename(where).lower()
    is_own = [(bool(own) and uuid == own) or os.path.basename(file).lower() == name for _, uuid, file in image.data]
    files = {file for (_, _, file), mine in zip(image.data, is_own, strict=True) if file and not mine}
    is_renamed = len(files) == 1 and not own and len(leaves) >= count
    places = [-1] * count  # of each plane, its directory
    for told, _, file in image.data or [({}, "", "")]:
        if file in files and not is_renamed:
            continue
        try:
            first = int(told.get("IFD", 0))
            number = int(told.get("PlaneCount", told.get("NumPlanes", 1 if "IFD" in told else len(leaves))))
            index = [int(told.get(f"First{letter}", 0)) for letter in order]
        except ValueError as error:
            raise RegionError(f"{where}: its OME-XML has a damaged TiffData element: {error}") from error
        if first >= 0 and all(0 <= k < n for k, n in zip(index, lead, strict=True)):
            at = (index[0] * lead[1] + index[1]) * lead[2] + index[2]
            number = max(0, min(number, count - at, len(leaves) - first))
            places[at : at + number] = range(first, first + number)
    names = [name or f"channel {k}" for k, name in enumerate(image.channels)] if any(image.channels) else []
    missing, trouble = places.count(-1), ""
    if missing and files:
        shown = ", ".join(sorted(files)[:3])
        trouble = (
            f"{missing} of its {count} planes lie in other files ({shown}{', ...' if len(files) > 3 else ''}), and "
            "files that a file names are never opened; open this file's pages by page=k, and those of the others by "
            "their own names, and join them with stack_regions([...])"
        )
    elif missing:
        trouble = f"its OME-XML says {count} planes, of which {missing} are not in the file; open pages by page=k"
    planes = tuple(leaves[k] for k in places if k >= 0)
    axes, kept = squeezed(order, lead)
    return Series(image.name, axes, kept, planes, channels=tuple(names), spacing=image.spacing, trouble=trouble)
