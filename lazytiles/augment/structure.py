"""What the arrays of a batch are: images, their masks, or labels that no transform touches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.augment.boxes import Boxes
from lazytiles.augment.transform import mask_readings, spatial_axes
from lazytiles.trees import Path, walk

Names: TypeAlias = Collection[str | int] | None

IMAGE_NAMES = ("x", "image", "images")
BOX_NAMES = ("boxes", "bboxes")
TARGET_NAMES = ("y", "mask", "masks", "w", "sample_weight")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of a batch, where it stands in the structure, and what it is."""

    path: Path
    array: NDArray[Any]
    is_image: bool


def find_leaves(
    batch: Any, channel_axis: int | None, images: Names, masks: Names, boxes: Collection[Path] = ()
) -> list[Leaf]:
    """The images and masks of a batch, images first; what stands at the paths of `boxes` is neither.

    Refused are a batch without images, images that differ in number or size, and what may be label or mask.
    """
    arrays = [(path, np.asarray(item)) for path, item in walk(batch) if item is not None and path not in boxes]
    found = []
    for path, array in arrays:
        if images is not None:
            is_image = _is_named(path, images)
        elif _is_named(path, masks):
            is_image = False
        else:
            is_image = path[0] in IMAGE_NAMES if isinstance(batch, Mapping) else path[:1] in ((), (0,))
        if is_image and array.ndim >= 3:
            found.append(Leaf(path, array, True))
    if not found:
        raise ValueError(f"no images in the batch of {describe(arrays)}; name them with images=")
    shapes = [leaf.array.shape for leaf in found]
    axes = [spatial_axes(len(shape) - 1, channel_axis) for shape in shapes]
    if len({(n, shape[k], shape[j]) for (n, *shape), (k, j) in zip(shapes, axes, strict=True)}) > 1:
        raise ValueError(f"images of one batch must agree in number, height and width, but are {describe(arrays)}")
    (count, *image), places = shapes[0], {leaf.path for leaf in found}
    for path, array in arrays:
        if path in places:
            continue
        is_mask = _is_named(path, masks)
        if is_mask and len(array) != count:
            raise ValueError(f"{len(array)} masks for {count} images: {path[-1]!r} has shape {array.shape}")
        if images is None and masks is None and array.ndim > 2:
            fits = len(array) == count and mask_readings(array.shape[1:], tuple(image), channel_axis)
            is_mask = bool(fits) and (isinstance(path[0], int) or path[0] in TARGET_NAMES)
            if not is_mask:
                raise ValueError(
                    f"item {path[-1]!r} of shape {array.shape} is neither a label, (N,) or (N, k), nor surely a mask "
                    f"of the images of shape {shapes[0]}; name the items with images= and masks=, masks=() for none"
                )
        if is_mask:
            found.append(Leaf(path, array, False))
    return found


def find_boxes(batch: Any, boxes: Mapping[Any, Boxes] | Boxes | None) -> dict[Path, Boxes]:
    """The arrays of a batch that are boxes, by their paths.

    They are given by name, position in the batch or whole path, or one form for the labels: what is called "boxes" or
    "bboxes", else item 1 of a tuple or "y" of a dict.
    """
    if boxes is None:
        return {}
    arrays = [path for path, item in walk(batch) if item is not None]
    if isinstance(boxes, Boxes):
        named = [path for path in arrays if any(key in BOX_NAMES for key in path)]
        found = named or [path for path in arrays if path and path[0] in (1, "y")]
        if len(found) != 1:
            raise ValueError(
                f"boxes={boxes.format!r} are the labels of a batch (x, y), of which there are {len(found)} arrays; "
                "name the array of boxes: boxes={'name': format}"
            )
        return {found[0]: boxes}
    chosen: dict[Path, Boxes] = {}
    for key, form in boxes.items():
        of = [path for path in arrays if path == key or path[:1] == (key,) or (isinstance(key, str) and key in path)]
        if len(of) != 1:
            raise ValueError(f"boxes={{{key!r}: ...}}: the batch has {len(of)} such arrays, not one")
        chosen[of[0]] = form
    return chosen


def _is_named(path: Path, names: Names) -> bool:
    return names is not None and any(key in names for key in path)


def describe(arrays: list[tuple[Path, NDArray[Any]]]) -> str:
    """The shapes of a batch's arrays, for messages."""
    return ", ".join(f"{'/'.join(map(str, path)) or 'array'} {a.shape}" for path, a in arrays) or "nothing"
