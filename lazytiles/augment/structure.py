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
    """The images and masks of a batch, images first, with the paths at which they stand in its structure.

    Parameters
    ----------
    boxes : paths of arrays that are boxes, and neither image nor mask

    Raises
    ------
    ValueError : there is no image, images differ in number or size, or an array may be label or mask
    """
    arrays = [(path, np.asarray(item)) for path, item in walk(batch) if item is not None and path not in boxes]
    found = [Leaf(path, a, True) for path, a in arrays if a.ndim >= 3 and _is_image(path, batch, images, masks)]
    if not found:
        raise ValueError(f"no images in the batch of {describe(arrays)}; name them with images=")
    first = found[0].array.shape
    pixels = [_pixels(leaf.array.shape, channel_axis) for leaf in found]
    if len(set(pixels)) > 1:
        raise ValueError(f"images of one batch must agree in number, height and width, but are {describe(arrays)}")
    rest = [(path, a) for path, a in arrays if path not in {leaf.path for leaf in found}]
    return found + [Leaf(path, a, False) for path, a in rest if _is_mask(path, a, first, channel_axis, images, masks)]


def find_boxes(batch: Any, boxes: Mapping[Any, Boxes] | Boxes | None) -> dict[Path, Boxes]:
    """The arrays of a batch that are boxes, by their paths.

    Parameters
    ----------
    boxes : by name, position in the batch or whole path; or of the labels: what is called "boxes" or "bboxes",
        else item 1 of a tuple or "y" of a dict

    Raises
    ------
    ValueError : there is no such array, or the labels are several
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


def _is_image(path: Path, batch: Any, images: Names, masks: Names) -> bool:
    if images is not None:
        return _is_named(path, images)
    if masks is not None and _is_named(path, masks):
        return False
    if isinstance(batch, Mapping):
        return path[0] in IMAGE_NAMES
    return not path or path[0] == 0


def _is_mask(
    path: Path,
    array: NDArray[Any],
    image: tuple[int, ...],
    channel_axis: int | None,
    images: Names,
    masks: Names,
) -> bool:
    if masks is not None and _is_named(path, masks):
        if len(array) == image[0]:
            return True
        raise ValueError(f"{len(array)} masks for {image[0]} images: {path[-1]!r} has shape {array.shape}")
    if masks is not None:
        return False
    if array.ndim <= 2 or images is not None:
        return False
    fits = len(array) == image[0] and mask_readings(array.shape[1:], image[1:], channel_axis)
    named = isinstance(path[0], int) or path[0] in TARGET_NAMES
    if not (fits and named):
        raise ValueError(
            f"item {path[-1]!r} of shape {array.shape} is neither a label, (N,) or (N, k), nor surely a mask "
            f"of the images of shape {image}; name the items with images= and masks=, masks=() for none"
        )
    return True


def _is_named(path: Path, names: Collection[str | int]) -> bool:
    return any(key in names for key in path)


def _pixels(shape: tuple[int, ...], channel_axis: int | None) -> tuple[int, int, int]:
    axes = spatial_axes(len(shape) - 1, channel_axis)
    return shape[0], shape[1 + axes[0]], shape[1 + axes[1]]


def describe(arrays: list[tuple[Path, NDArray[Any]]]) -> str:
    """The shapes of a batch's arrays, for messages."""
    return ", ".join(f"{'/'.join(map(str, path)) or 'array'} {a.shape}" for path, a in arrays) or "nothing"
