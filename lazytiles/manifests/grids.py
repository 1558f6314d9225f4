"""`make_grid`: from images to a manifest of regular tiles, with a rule for those worth keeping."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lazytiles.aliases import Int64s
from lazytiles.errors import ManifestError
from lazytiles.images import Region, open_region
from lazytiles.indexing import Edge, size_words, tiling
from lazytiles.manifests.folders import Found, find_images, name_images
from lazytiles.manifests.paths import default_template, is_component
from lazytiles.manifests.problems import BOX_2D, BOX_3D, Problems
from lazytiles.manifests.rules import Floats, Rule, judge, parse_rule

COORDINATES = ("pixels", "base", "map")
_NEAR = 1e-6  # pixels by which a place may miss an edge and still be on it


@dataclass(frozen=True, slots=True)
class Division:
    """How images are divided: what `make_grid` is asked for, in its order."""

    size: Any
    stride: Any = None
    edge: Edge | Sequence[Edge] = "shift"
    keep: str | Rule | None = None
    coordinates: str | None = None
    page: int | str | None = None
    series: int | None = None
    axes: str | None = None
    channels: Sequence[int | str] | None = None
    level: int = 0
    mpp: float | None = None
    source_mpp: float | tuple[float, float] | None = None

    def __post_init__(self) -> None:
        sizes = self.sizes
        if len(sizes) not in (2, 3) or any(type(length) is bool for length in sizes):
            raise ValueError(f"size {tuple(sizes)}: (height, width) or (depth, height, width)")
        if self.coordinates not in (None, *COORDINATES):
            raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}, not {self.coordinates!r}")
        if len(sizes) == 3 and (self.place != "pixels" or self.level):
            raise ValueError("tiles of volumes are boxes in their own pixels, without coordinates=, level= and mpp=")
        if self.mpp is not None and (self.level or self.place != "base" or not self.mpp > 0):
            raise ValueError("mpp= is micrometres a pixel, above 0, and its boxes are in pixels of level 0")
        if isinstance(self.keep, str):
            parse_rule(self.keep)

    @property
    def sizes(self) -> list[Any]:
        """Of a tile along each axis, pixels; None is the whole axis."""
        return [self.size] * 2 if isinstance(self.size, int | np.integer) else list(self.size)

    @property
    def place(self) -> str:
        """What the boxes are in."""
        return self.coordinates or ("pixels" if self.mpp is None else "base")

    def open(self, path: str) -> Region:
        """An image, at the level that is divided."""
        chosen = {"page": self.page, "series": self.series, "axes": self.axes, "channels": self.channels}
        if len(self.sizes) == 3 and all(value is None for value in chosen.values()):
            chosen["page"] = "all"
        return open_region(path, level=self.level, mpp=self.source_mpp, **chosen)  # type: ignore[arg-type]

    def tiles(self, shape: Sequence[int], mpp: tuple[float, float] | None) -> Int64s:
        """The windows of an image, pixels; of so many micrometres where these are asked for."""
        size, stride = self.sizes, self.stride
        if self.mpp is not None and mpp is not None:
            pixels = [self.mpp / each for each in mpp]
            # Whole pixels that a tile touches.
            size = [n and max(1, math.ceil(n * each - _NEAR)) for n, each in zip(size, pixels, strict=True)]
            if stride is not None:
                strides = [stride] * 2 if isinstance(stride, int | np.integer) else stride
                stride = [n and max(1, round(n * each)) for n, each in zip(strides, pixels, strict=True)]
        return tiling(shape, size, stride=stride, edge=self.edge)


@dataclass(frozen=True, slots=True)
class Site:
    """One image to be divided."""

    found: Found
    shape: tuple[int, ...]  # of the axes that are cut, pixels of the level that is divided
    region: Region | None  # where it was given open
    downsample: tuple[float, float]  # (y, x) pixels of level 0 a pixel
    mpp: tuple[float, float] | None  # (y, x) micrometres a pixel, where they are asked for
    ground: Any  # its georeference, where it is asked for


def _moved(boxes: Any, transform: Any) -> Floats:
    """Boxes (y0, x0, y1, x1) by an affine transform that does not turn them: to map units, or to other pixels."""
    a, _, c, _, e, f = transform[:6]
    one, other = np.split(np.asarray(boxes) * [e, a, e, a] + [f, c, f, c], 2, axis=-1)
    return np.concatenate([np.minimum(one, other), np.maximum(one, other)], axis=-1)


def make_grid(
    regions: object,
    size: int | Sequence[int | None],
    *,
    stride: int | Sequence[int | None] | None = None,
    edge: Edge | Sequence[Edge] = "shift",
    keep: str | Rule | None = None,
    coordinates: str | None = None,
    page: int | str | None = None,
    series: int | None = None,
    axes: str | None = None,
    channels: Sequence[int | str] | None = None,
    level: int = 0,
    mpp: float | None = None,
    source_mpp: float | tuple[float, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Make a manifest of regular tiles over some images.

    A tile is named after its region and the pixel where it begins. Where several images have one name, the folder
    above each is its `label_id`, and each tile has one row in each. `open_tiles` opens the table with the same folder,
    and with the same `level`, `mpp`, `coordinates` and pages.

    Parameters
    ----------
    regions : a folder of images and of folders of images, here or behind an address; paths or addresses of images,
        whose folder is the one that holds them all; regions; or a mapping of region ids to shapes or arrays
    size : (height, width) or (depth, height, width) of a tile, pixels; None is the whole axis; one number is
        a square
    stride : from one tile to the next, pixels; None is `size`, so that tiles do not overlap
    edge : what becomes of tiles that end outside: ``"shift"`` moves them inside, ``"pad"`` lets them (open
        them with ``pad=``), ``"drop"`` leaves them out, ``"partial"`` cuts them; one word, or one an axis
    keep : which tiles stay: a function of a tile's pixels, or text such as ``"nodata<0.5"``, ``"std>4"``,
        ``"tissue>0.1"``; parts are joined by ``and``. Pixels are counted at the resolution that is divided; tissue is
        looked for on the smallest level that shows it
    coordinates : what the boxes are in: ``"pixels"`` of the level that is divided (the default); ``"base"``, pixels of
        level 0 (the default with `mpp`); or ``"map"``, the units of each image's own map. Sizes stay in pixels. With
        ``"map"`` the grid of a region is that of its last image, over the ground that all its images share
    page, series, axes, channels : what of each file is divided, as for `open_region`; volumes are all pages of a file
    level : which resolution of each pyramid is divided; sizes are in its pixels
    mpp : micrometres a pixel: sizes are in pixels of that scale, on each slide by its own
    source_mpp : micrometres a pixel of the images, or (y, x), instead of what they say themselves
    progress : called with images done and images in all

    Returns
    -------
    DataFrame with `tile_id`, `region_id`, `label_id` (where images have one), `path` (where the default path of
    `open_tiles` would not find the images) and the box columns

    Raises
    ------
    ManifestError : no images, images of one region that differ in shape, a tile larger than its image, an image
        without the place or the micrometres that are asked for
    RegionError : an image cannot be opened

    Examples
    --------
    >>> make_grid({"a": (64, 96)}, (64, 64), edge="shift")[["tile_id", "xmin", "xmax"]].to_numpy().tolist()
    [['a_0_0', 0, 64], ['a_0_32', 32, 96]]
    """
    division = Division(size, stride, edge, keep, coordinates, page, series, axes, channels, level, mpp, source_mpp)
    return Grid.over(regions, division, progress).table()


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The tiles of some images."""

    place: str  # what boxes in the table are in
    sites: dict[str, list[Site]]  # the images, by region; of a region, the last one's pixels count
    windows: dict[str, Int64s]  # of each region, shape (n, 4) or (n, 6), pixels

    @classmethod
    def over(cls, regions: object, division: Division, progress: Callable[[int, int], None] | None = None) -> Grid:
        """Divide images, and leave out the tiles that the rule does not keep in all images of their region."""
        problems = Problems("the images")
        sites = find_sites(regions, division, problems)
        problems.raise_any()
        windows = {}
        for region, several in sites.items():
            first, shape = _common(several, division.place, problems)
            try:
                windows[region] = division.tiles(shape, several[-1].mpp) + first
            except ValueError as error:
                if "shifted" not in str(error):
                    raise
                problems.add("too small", f"region {region} ({size_words(shape)}): {error}")
        problems.raise_any()
        every = [(site, several[-1]) for several in sites.values() for site in several]
        for done, (site, last) in enumerate(every):
            if division.keep is not None:
                region = site.found.region_id
                if site.region is None and not site.found.path:
                    raise ManifestError(f"region {region}: a rule to keep tiles needs its image")
                own = windows[region]  # in pixels of the last image
                if division.place == "map":
                    own = np.round(_moved(own, ~site.ground.transform @ last.ground.transform)).astype(np.int64)
                image = division.open(site.found.path) if site.region is None else site.region
                windows[region] = windows[region][judge(image, own, division.keep)]
            if progress:
                progress(done + 1, len(every))
        return cls(division.place, sites, windows)

    def table(self) -> pd.DataFrame:
        """The tiles as a manifest, one row in each image."""
        tiles, boxes = [], []
        sites = [site for several in self.sites.values() for site in several]
        counts = [len(self.windows[site.found.region_id]) for site in sites]
        for region, several in self.sites.items():
            window, last = self.windows[region], several[-1]
            axes = window.shape[1] // 2
            names = ["_".join([region, *map(str, start)]) for start in window[:, :axes].tolist()]
            box = _moved(window, last.ground.transform) if self.place == "map" else window
            if self.place == "base":
                box = np.round(window * (last.downsample * 2)).astype(np.int64)
            tiles += names * len(several)
            # Rows before columns inside, x before y in a manifest.
            boxes += [np.concatenate([box[:, axes - 1 :: -1], box[:, : axes - 1 : -1]], axis=1)] * len(several)
        block = np.concatenate(boxes) if boxes else np.zeros((0, 4), np.int64)

        def column(values: Iterable[Any]) -> pd.Categorical:
            return pd.Categorical(np.repeat(np.array(list(values), object), counts))

        table = pd.DataFrame({"tile_id": tiles, "region_id": column(site.found.region_id for site in sites)})
        if any(site.found.label_id is not None for site in sites):
            table["label_id"] = column(site.found.label_id for site in sites)
        usual, places = default_template(table), [site.found.place for site in sites]
        names = [usual.format(region_id=site.found.region_id, label_id=site.found.label_id) for site in sites]
        if places != names and None not in places:
            table["path"] = column(places)
        for k, name in enumerate(BOX_2D if block.shape[1] == 4 else BOX_3D):
            table[name] = block[:, k] if self.place == "map" else block[:, k].astype(np.int32)
        return table


def find_sites(regions: object, division: Division, problems: Problems) -> dict[str, list[Site]]:
    """The images to be divided, by region; their tags are read."""
    given: Sequence[Any]
    if isinstance(regions, str | os.PathLike):
        found = find_images(regions)
        given = [None] * len(found)
    elif isinstance(regions, Mapping):
        if wrong := [name for name in regions if not is_component(str(name))]:
            raise ManifestError(f"region {wrong[0]!r}: an id is one name, without / or \\ or ..")
        given = list(regions.values())
        paths = [one.path if isinstance(one, Region) else "" for one in given]
        places = [one.place for one in name_images(paths)] if all(paths) else [None] * len(paths)
        found = [Found(*one) for one in zip(paths, places, map(str, regions), strict=True)]
    elif isinstance(regions, Iterable):
        items: list[Any] = list(regions)
        given = [None if isinstance(item, str | os.PathLike) else item for item in items]
        found = name_images(
            [os.fspath(item) if one is None else item.path for item, one in zip(items, given, strict=True)]
        )
    else:
        raise TypeError(f"regions is a folder, paths, regions or a mapping, not {type(regions).__name__}")
    sites: dict[str, list[Site]] = {}
    for one, item in zip(found, given, strict=True):
        region = division.open(one.path) if item is None else item
        shape, axes = tuple(getattr(region, "shape", None) or region), len(division.sizes)
        is_image = isinstance(region, Region)
        cut = shape[: region.axes.index("X") + 1][-axes:] if is_image else shape[:axes]
        if len(cut) < axes:
            raise ManifestError(
                f"region {one.region_id}: its shape {shape} has fewer than the {axes} axes of the tiles"
            )
        name = one.path or f"region {one.region_id}"
        ground = region.pages[0].georeference if is_image and division.place == "map" else None
        if division.place == "map":
            cure = "leave out coordinates='map'"
            if ground is None or ground.transform is None:
                problems.add("no place", f"{name}: does not say where on the map it lies; {cure}")
            elif ground.transform.b or ground.transform.d:
                problems.add("rotated", f"{name}: is rotated on its map, where boxes are not; {cure}")
        mpp = None if division.mpp is None else division.source_mpp or getattr(region, "mpp", None)
        if division.mpp is not None and mpp is None:
            problems.add("no micrometres", f"{name}: does not say how many micrometres a pixel is; pass source_mpp=")
        is_smaller = division.place == "base" and is_image and region.level
        site = Site(
            one,
            tuple(map(int, cut)),
            item if is_image else None,
            region.levels[region.level].downsample if is_smaller else (1.0, 1.0),
            (mpp, mpp) if isinstance(mpp, float | int) else mpp,
            ground,
        )
        sites.setdefault(one.region_id, []).append(site)
    return sites


def _common(sites: Sequence[Site], place: str, problems: Problems) -> tuple[Int64s, tuple[int, ...]]:
    """What is divided of the last image of a region: its beginning, twice, and its extent.

    On the map it is what all images of the region share, elsewhere all of it.
    """
    last, region = sites[-1], sites[-1].found.region_id
    low, high = np.zeros(len(last.shape), np.int64), np.array(last.shape)
    labels: dict[str | None, Site] = {}
    for site in sites:
        if (other := labels.setdefault(site.found.label_id, site)) is not site:
            problems.add("region twice", f"region {region}: both {other.found.path} and {site.found.path}")
        names = [f"region {region}: {site.found.path}", last.found.path]
        if place != "map":
            if site.shape != last.shape:
                problems.add(
                    "shapes differ", f"{names[0]} is {size_words(site.shape)}, {names[1]} is {size_words(last.shape)}"
                )
        elif not last.ground.shares_system(site.ground):
            problems.add("maps differ", f"{names[0]} lies on {site.ground.crs}, {names[1]} on {last.ground.crs}")
        else:
            box = _moved([0, 0, *site.shape], ~last.ground.transform @ site.ground.transform)
            low = np.maximum(low, np.ceil(box[:2] - _NEAR).astype(np.int64))
            high = np.minimum(high, np.floor(box[2:] + _NEAR).astype(np.int64))
            if (high <= low).any():
                problems.add("no common ground", f"{names[0]} and {names[1]} share no ground")
                return np.zeros(4, np.int64), last.shape
    return np.tile(low, 2), tuple((high - low).tolist())
