"""`make_grid`: from images to a manifest of regular tiles, with a rule for those worth keeping."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.errors import ManifestError, shown
from lazytiles.images import Region, is_remote, open_region
from lazytiles.indexing import Edge, tiling
from lazytiles.manifests.paths import is_component
from lazytiles.manifests.problems import BOX_2D, BOX_3D, Problems

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy")
_MOST_OVERVIEW_BYTES = 256 * 2**20
_FEWEST_PIXELS = 8  # of a tile on the overview that judges it

Rule = Callable[[NDArray[Any]], bool]


@dataclass(frozen=True, slots=True)
class Site:
    """One image to be divided: its ids, its shape along the axes that are cut, and its file, if any."""

    region_id: str
    label_id: str | None
    shape: tuple[int, ...]
    path: str | None = None


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder and of the folders directly in it, by name.

    Raises
    ------
    ManifestError : there is no such folder, or no image in it
    """
    root = Path(folder)
    if not root.is_dir():
        raise ManifestError(f"{root}: there is no such image folder")
    found = [path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.suffix.lower() in SUFFIXES]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if not found:
        raise ManifestError(f"{root}: there are no images ({', '.join(SUFFIXES)}) in it or in its folders")
    return sorted(found)


def make_grid(
    regions: object,
    size: int | Sequence[int | None],
    *,
    stride: int | Sequence[int | None] | None = None,
    edge: Edge | Sequence[Edge] = "shift",
    keep: str | Rule | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Make a manifest of regular tiles over some images.

    A tile is named after its region and where it begins. With yearly folders of images, each tile has one row
    per folder, which is its `label_id`.

    Parameters
    ----------
    regions : a folder of images, or of folders of images (each one `label_id`); paths of images; regions;
        or a mapping of region ids to shapes or arrays
    size : (height, width) or (depth, height, width) of a tile, pixels; None is the whole axis; one number is
        a square
    stride : from one tile to the next, pixels; None is `size`, so that tiles do not overlap
    edge : what becomes of tiles that end outside: ``"shift"`` moves them inside, ``"pad"`` lets them (open
        them with ``pad=``), ``"drop"`` leaves them out, ``"partial"`` cuts them; one word, or one an axis
    keep : which tiles stay: a function of a tile's pixels, or text such as ``"nodata<0.5"``, ``"std>4"``,
        ``"tissue>0.1"``, judged on an overview where the image has one; parts are joined by ``and``
    progress : called with images done and images in all

    Returns
    -------
    DataFrame with `tile_id`, `region_id`, `label_id` (where there are several folders) and the box columns

    Raises
    ------
    ManifestError : no images, images of one region that differ in shape, a tile larger than its image
    RegionError : an image cannot be opened

    Examples
    --------
    >>> make_grid({"a": (64, 96)}, (64, 64), edge="shift")[["tile_id", "xmin", "xmax"]].to_numpy().tolist()
    [['a_0_0', 0, 64], ['a_0_32', 32, 96]]
    """
    sizes = [size, size] if isinstance(size, int | np.integer) else list(size)
    if len(sizes) not in (2, 3) or any(type(length) is bool for length in sizes):
        raise ValueError(f"size {tuple(sizes)}: (height, width) or (depth, height, width)")
    sites = find_sites(regions, len(sizes))
    windows = _windows(sites, sizes, stride, edge)
    kept = {region: np.ones(len(boxes), bool) for region, boxes in windows.items()}
    for done, site in enumerate(sites):
        if keep is not None:
            if site.path is None:
                raise ManifestError(f"region {site.region_id}: a rule to keep tiles needs its image")
            kept[site.region_id] &= judge(site.path, windows[site.region_id], keep)
        if progress:
            progress(done + 1, len(sites))
    return _manifest(sites, {region: boxes[kept[region]] for region, boxes in windows.items()})


def _windows(
    sites: Sequence[Site], sizes: Sequence[int | None], stride: Any, edge: Edge | Sequence[Edge]
) -> dict[str, Int64s]:
    """The tiles of each region, once for all its frames."""
    found: dict[str, Int64s] = {}
    first: dict[str, Site] = {}
    problems = Problems("the images")
    for site in sites:
        known = first.setdefault(site.region_id, site)
        if known.shape != site.shape:
            problems.add(
                "shapes differ",
                f"region {site.region_id}: {site.path} is {_by(site.shape)}, {known.path} is {_by(known.shape)}",
            )
        if known.label_id == site.label_id and known is not site:
            problems.add("region twice", f"region {site.region_id}: both {known.path} and {site.path}")
        if known is site:
            try:
                found[site.region_id] = tiling(site.shape, sizes, stride=stride, edge=edge)
            except ValueError as error:
                if "shifted" not in str(error):
                    raise
                problems.add("too small", f"region {site.region_id} ({_by(site.shape)}): {error}")
    problems.raise_any()
    return found


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)


def find_sites(regions: object, axes: int) -> list[Site]:
    """The images to be divided, with their ids and shapes; their tags are read.

    Parameters
    ----------
    regions : as for `make_grid`
    axes : 2 for images, 3 for volumes
    """
    if isinstance(regions, str | os.PathLike):
        if is_remote(os.fspath(regions)):
            raise ManifestError(f"{os.fspath(regions)}: a folder behind an address is not listed; pass its images' own")
        root = Path(regions)
        return _sites_of_paths(find_images(root) if not root.is_file() else [root], axes, root)
    if isinstance(regions, Mapping):
        if wrong := [name for name in regions if not is_component(str(name))]:
            raise ManifestError(f"region {wrong[0]!r}: an id is one name, without / or \\ or ..")
        named = [(str(name), value) for name, value in regions.items()]
    elif isinstance(regions, Iterable):
        items: list[Any] = list(regions)
        if all(isinstance(item, Site) for item in items):
            return items
        if any(isinstance(item, str) and is_remote(item) for item in items):
            items = [_opened(item, axes) for item in items]
        if all(isinstance(item, str | os.PathLike) for item in items):
            return _sites_of_paths([Path(item) for item in items], axes, None)
        named = [(Path(shown(item.path)).stem, item) for item in items]
    else:
        raise TypeError(f"regions is a folder, paths, regions or a mapping, not {type(regions).__name__}")
    return [Site(name, None, _cut_axes(name, one, axes), getattr(one, "path", None)) for name, one in named]


def _sites_of_paths(paths: Sequence[Path], axes: int, root: Path | None) -> list[Site]:
    """A folder above several images of one name is a frame."""
    stems = [path.stem for path in paths]
    framed = len(set(stems)) < len(stems) or (root is not None and all(path.parent != root for path in paths))
    framed = framed and (root is None or not root.is_file())
    found = []
    for path in paths:
        label = path.parent.name if framed and path.parent != root else None
        found.append(Site(path.stem, label, _cut_axes(path.stem, _opened(path, axes), axes), str(path)))
    return found


def _opened(path: str | Path, axes: int) -> Region:
    return open_region(path) if axes == 2 else open_region(path, page="all")


def _cut_axes(name: str, region: Any, axes: int) -> tuple[int, ...]:
    """The axes that tiles are cut along: rows and columns, and before them the pages of a volume."""
    shape = tuple(getattr(region, "shape", None) or region)
    if isinstance(region, Region):
        shape = shape[: region.axes.index("X") + 1]
        cut = shape[-axes:]
    else:
        cut = shape[:axes]
    if len(cut) < axes:
        raise ManifestError(f"region {name}: its shape {shape} has fewer than the {axes} axes of the tiles")
    return tuple(int(length) for length in cut)


def _manifest(sites: Sequence[Site], windows: dict[str, Int64s]) -> pd.DataFrame:
    labels: dict[str, list[str | None]] = {}
    for site in sites:
        labels.setdefault(site.region_id, []).append(site.label_id)
    tiles, regions, label_ids, boxes = [], [], [], []
    for region, box in windows.items():
        axes = box.shape[1] // 2
        starts = box[:, :axes].tolist()
        names = ["_".join([region, *map(str, start)]) for start in starts]
        for label in labels[region]:
            tiles += names
            regions += [region] * len(box)
            label_ids += [label] * len(box)
            # Rows before columns inside, x before y in a manifest.
            boxes.append(np.concatenate([box[:, axes - 1 :: -1], box[:, : axes - 1 : -1]], axis=1))
    columns = BOX_2D if not boxes or boxes[0].shape[1] == 4 else BOX_3D
    block = np.concatenate(boxes) if boxes else np.zeros((0, len(columns)), np.int64)
    table = pd.DataFrame({"tile_id": tiles, "region_id": pd.Categorical(regions)})
    if any(label is not None for label in label_ids):
        table["label_id"] = pd.Categorical(label_ids)
    for k, name in enumerate(columns):
        table[name] = block[:, k].astype(np.int32)
    return table


_MEASURES: dict[str, Callable[[NDArray[Any], float], float]] = {
    "nodata": lambda tile, fill: float(((tile != tile) | (tile == fill)).mean()),  # NaN is not itself
    "tissue": lambda tile, fill: float(_is_tissue(tile).mean()),
    "std": lambda tile, fill: float(tile.std(dtype=np.float64)),
    "mean": lambda tile, fill: float(tile.mean(dtype=np.float64)),
    "min": lambda tile, fill: float(tile.min()),
    "max": lambda tile, fill: float(tile.max()),
}
_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_PART = re.compile(r"\s*([a-z]+)\s*(<=|>=|<|>)\s*(-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*")


def parse_rule(text: str) -> Callable[[NDArray[Any], float], bool]:
    """A rule to keep tiles, from text; nothing is evaluated.

    Parameters
    ----------
    text : comparisons joined by ``and``: `nodata` and `tissue` (fractions of the pixels), `std`, `mean`,
        `min`, `max` (of the pixel values), ``<``, ``<=``, ``>``, ``>=``, and a number

    Returns
    -------
    function of a tile's pixels and the value that means no data

    Raises
    ------
    ValueError : the text is no rule

    Examples
    --------
    >>> parse_rule("nodata<0.5 and std>=1")(np.array([[0, 7], [3, 9]]), 0)
    True
    """
    parts = [_PART.fullmatch(part) for part in re.split(r"\band\b", text)]
    if not all(part and part[1] in _MEASURES for part in parts):
        raise ValueError(
            f"keep rule {text!r}: comparisons such as 'nodata<0.5', joined by 'and', of {', '.join(_MEASURES)}"
        )
    rules = [(_MEASURES[part[1]], _COMPARISONS[part[2]], float(part[3])) for part in parts if part]
    return lambda tile, fill: all(compare(measure(tile, fill), limit) for measure, compare, limit in rules)


def _is_tissue(tile: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels whose colours differ by more than a twentieth of the brightest: stained, not glass."""
    if tile.ndim < 3 or tile.shape[-1] < 3:
        raise ValueError("the rule 'tissue' needs images of red, green and blue; use 'std' or 'mean'")
    colours = tile[..., :3].astype(np.float64)
    high = colours.max(axis=-1)
    return np.asarray(high - colours.min(axis=-1) > 0.05 * np.maximum(high, 1e-12))


def judge(path: str, windows: Int64s, keep: str | Rule) -> NDArray[np.bool_]:
    """Which windows of an image a rule keeps, judged on its smallest overview of enough pixels.

    Parameters
    ----------
    path : the image
    windows : int64, shape (n, 4) or (n, 6), full-resolution pixels; parts outside are not judged
    keep : text as in `parse_rule`, or a function of a tile's pixels (at full resolution)

    Returns
    -------
    bool array, shape (n,)
    """
    if not len(windows):
        return np.ones(0, bool)
    axes = windows.shape[1] // 2
    rule = parse_rule(keep) if isinstance(keep, str) else (lambda tile, fill: bool(keep(tile)))
    region = _opened(path, axes)
    scale = np.ones(2 * axes)
    if axes == 2 and isinstance(keep, str):
        smallest, levels = int((windows[:, 2:] - windows[:, :2]).min()), region.levels
        enough = (k for k, one in enumerate(levels) if smallest / max(one.downsample) >= _FEWEST_PIXELS)
        level = max(enough, default=0)
        region = open_region(path, level=level) if level else region
        scale = np.array(levels[level].downsample * 2)
    limits = np.array([*region.shape[:axes]] * 2)
    boxes = np.clip(np.round(windows / scale).astype(np.int64), 0, limits)
    boxes[:, axes:] = np.maximum(boxes[:, axes:], boxes[:, :axes] + 1)
    pixels = np.asarray(region) if region.nbytes <= _MOST_OVERVIEW_BYTES else region
    fill = region.pages[0].fill
    return np.array([rule(pixels[tuple(map(slice, box[:axes], box[axes:]))], fill) for box in boxes.tolist()], bool)
