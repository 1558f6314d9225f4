"""Multiscale images in Zarr groups, as OME-Zarr stores them (NGFF 0.4 and 0.5): axes, levels, scale, channels."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from lazytiles.errors import RegionError
from lazytiles.images.containers import GROUPS, MOST_FACTS, identify
from lazytiles.images.files import FileKey, pool
from lazytiles.images.layouts.levels import Level
from lazytiles.images.layouts.scales import Spacing, length
from lazytiles.images.page import readable

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Multiscale:
    """One image of a group."""

    arrays: tuple[FileKey, ...]  # the metadata file of each resolution, the full one first
    axes: str  # a letter an axis
    levels: tuple[Level, ...]
    spacing: Spacing  # (z, y, x) of the full resolution
    channels: tuple[str, ...]  # their names


def group_of(key: FileKey) -> Facts | None:
    """What a Zarr group says of itself; None for anything else."""
    name = os.path.basename(key.path)
    if name not in GROUPS:
        return None
    facts = _facts(key)
    if name != "zarr.json":
        return facts
    if facts.get("node_type") != "group":
        return None
    attributes = facts.get("attributes", {})
    inner = attributes.get("ome", attributes) if isinstance(attributes, dict) else {}
    return inner if isinstance(inner, dict) else {}


def _facts(key: FileKey) -> Facts:
    if key.size > MOST_FACTS:
        raise RegionError(f"{key.path}: {key.size} bytes of metadata; at most {MOST_FACTS} are read")
    with readable(key, "Zarr metadata file"):
        facts = json.loads(pool.read(key, 0, key.size))
    if not isinstance(facts, dict):
        raise RegionError(f"{key.path}: not a readable Zarr metadata file: it holds no object")
    return facts


def multiscale(key: FileKey, group: Facts, number: int) -> Multiscale:
    """The image of that number of a group; of its arrays only those inside its folder are opened."""
    folder = os.path.dirname(key.path)
    images = group.get("multiscales")
    if not isinstance(images, list) or not images:
        inner = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())[:8]
        raise RegionError(
            f"{folder}: is a Zarr group, neither an array nor a multiscale image (NGFF); it holds "
            f"{', '.join(inner) or 'nothing'}: name one, as in {os.path.basename(folder)}::NAME"
        )
    if number >= len(images):
        raise RegionError(f"{folder}: has no series {number}; it has {len(images)}")
    try:
        image = images[number]
        axes_told = image.get("axes", "tczyx")
        names = [axis if isinstance(axis, str) else axis["name"] for axis in axes_told]
        units = ["" if isinstance(axis, str) else str(axis.get("unit", "")) for axis in axes_told]
        axes = "".join(str(name).upper() for name in names)
        if len(axes) != len(names):
            raise ValueError(f"axes {names}, of which one has more than a letter")
        arrays = tuple(_array(folder, str(one["path"])) for one in image["datasets"])
        shapes = [[int(n) for n in _facts(array)["shape"]] for array in arrays]
        y, x = axes.index("Y"), axes.index("X")
        outer = _scale(image, len(axes))
        scales = [_scale(one, len(axes)) for one in image["datasets"]]
        told = [scale for scale in scales if scale is not None]
        levels = []
        for k, shape in enumerate(shapes):
            down = shapes[0][y] / shape[y], shapes[0][x] / shape[x]
            if len(told) == len(shapes):
                down = told[k][y] / told[0][y], told[k][x] / told[0][x]
            levels.append(Level((shape[y], shape[x]), down))
        steps = zip(axes, scales[0] or (), outer or [1.0] * len(axes), units, strict=False)
        known = {axis: length(inner * factor, unit) for axis, inner, factor, unit in steps}
        spacing = known.get("Z"), known.get("Y"), known.get("X")
        omero = group.get("omero", {})
        named = omero.get("channels", []) if isinstance(omero, dict) else []
        channels = tuple(str(one.get("label", f"channel {k}")) for k, one in enumerate(named))
        return Multiscale(arrays, axes, tuple(levels), spacing, channels)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise RegionError(
            f"{key.path}: its multiscale metadata make no sense: {type(error).__name__}: {error}"
        ) from error


def _scale(one: Facts, axes: int) -> list[float] | None:
    """The factors of a list of transformations, where it has them."""
    for step in one.get("coordinateTransformations") or []:
        if step.get("type") == "scale" and isinstance(step.get("scale"), list):
            factors = [float(n) for n in step["scale"]]
            if len(factors) == axes and min(factors) > 0:
                return factors
    return None


def _array(folder: str, path: str) -> FileKey:
    inside = os.path.realpath(os.path.join(folder, path))
    if path.startswith(("/", "\\")) or ".." in path or not inside.startswith(os.path.realpath(folder) + os.sep):
        raise RegionError(f"{folder}: the array {path!r:.80} does not lie in it; refused")
    key, _ = identify(os.path.join(folder, path))
    if os.path.basename(key.path) not in ("zarr.json", ".zarray"):
        raise RegionError(f"{folder}: {path!r:.80} is no Zarr array")
    return key
