"""Transforms of whole batches, for `transform=` of `BatchFlow` and `KerasAdapter`: one draw per sample."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.augment.boxes import Boxes
from lazytiles.augment.geometry import Placement, move_image, move_mask
from lazytiles.augment.recipe import Amount, PerAxis, Recipe
from lazytiles.augment.structure import Leaf, Names, find_boxes, find_leaves
from lazytiles.augment.transform import mask_axes_of, spatial_axes
from lazytiles.indexing import samples_of, seed_of
from lazytiles.trees import Path, mapped, walk

# Functions that carry their own random state are seeded and called one at a time.
_seeded = threading.RLock()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Augment:
    """The transform of batches that gives every sample a `random_transform` of its own.

    A batch is an array of images, ``(x,)``, ``(x, y)``, ``(x, y, w)`` as tuple or list, or a dict.  Of `x`
    (in a dict "x", "image" or "images"), itself an array, tuple or dict, arrays of three axes or more are
    images and others stay as they are.  All the rest is a label and stays as it is if it has one or two axes,
    (N,) or (N, k); is a mask and moves with its image if its axes are the image's pixels, with or without
    channels; and is refused if it is neither or could be both.  `images` and `masks` say it outright.

    In a flow each sample has its own generator, by its place in the order of the epoch. With any other `rng` sample
    ``i`` gets what a loop of `random_transform_stack` over the samples with this one `rng` would give it. Leading axes
    of a sample, such as frames, share one draw.

    Parameters
    ----------
    rotation, shift, shear, zoom, intensity, flip, warp, crop, fill, cval : as for `random_transform`
    channel_axis : the channels' axis in one sample, such as -1 (last) or -3 (before rows and columns), or
        None
    images, masks : keys in a dict and positions in a tuple, of the batch or of its inputs; all others then
        stay as they are
    boxes : labels that are boxes in pixels of the image, and move with it: ``"xyxy"``, ``"xywh"``, ``"cxcywh"``,
        ``"xyhw"``, or ``"xy"`` for points, of all numbers of the labels (N, k) or (N, boxes, 4); or a mapping from keys
        and positions to formats. Known without it of tiles with `scale_boxes` and their labels in one flow; () says
        that no labels are boxes. A turned box becomes the bounds of its corners; boxes are cut at the edges of the
        image, and one that leaves it becomes 0, 0, 0, 0; a point may lie outside

    Raises
    ------
    ValueError : at birth, a parameter out of its range; when called, an array that is neither label nor mask, or labels
        that are no boxes of the format; points under a warp

    Notes
    -----
    Frozen and without state: one object serves any number of threads. Never writes to a batch.

    >>> augment = Augment(flip=(False, 1.0))
    >>> x, y = augment((np.arange(4).reshape(1, 2, 2, 1), np.array([7])), np.random.default_rng(0))
    >>> x[0, ..., 0].tolist(), y.tolist()
    ([[1, 0], [3, 2]], [7])
    >>> augment
    Augment(flip=(False, 1.0))
    """

    rotation: Amount = 0
    shift: PerAxis = (0, 0)
    shear: PerAxis = 0
    zoom: PerAxis = 0
    intensity: Amount = 0
    flip: tuple[float, float] = (False, False)
    warp: float | tuple[float, int | tuple[int, int]] | None = None
    crop: int | tuple[int, int] | None = None
    fill: str | tuple[str, str] = "nearest"
    cval: float | tuple[float, float] = 0
    channel_axis: int | None = -1
    images: Names = None
    masks: Names = None
    boxes: Any = None
    recipe: Recipe = field(init=False, compare=False)

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.init:
                object.__setattr__(self, f.name, _plain(getattr(self, f.name)))
        self._boxes()  # refuses a format that is none
        parameters = {f.name: getattr(self, f.name) for f in fields(self)[:10]}
        object.__setattr__(self, "recipe", Recipe.of(**parameters))

    def __call__(self, batch: Any, rng: np.random.Generator) -> Any:
        """The batch, in the same structure, with its images and masks transformed."""
        boxes = find_boxes(batch, self._boxes())
        leaves = find_leaves(batch, self.channel_axis, self.images, self.masks, boxes)
        images = [leaf for leaf in leaves if leaf.is_image]
        first = images[0].array.shape[1:]
        axes = spatial_axes(len(first), self.channel_axis)
        size = (first[axes[0]], first[axes[1]])
        own = samples_of(rng, len(images[0].array))
        places = [self.recipe.place(random.random(self.recipe.draws), size) for random in own]
        moved: dict[Path, NDArray[Any]] = {}
        for leaf in leaves:
            shape = list(leaf.array.shape[1:])
            move: Callable[..., NDArray[Any]]
            if leaf.is_image:
                move, part, axes = move_image, 0, spatial_axes(len(shape), self.channel_axis)
            else:
                move, part, axes = move_mask, 1, mask_axes_of(tuple(shape), first, self.channel_axis)
            shape[axes[0]], shape[axes[1]] = self.recipe.size((shape[axes[0]], shape[axes[1]]))
            out = moved[leaf.path] = np.empty((len(places), *shape), leaf.array.dtype)
            for i, place in enumerate(places):
                out[i] = move(leaf.array[i], axes, place, self.recipe.fill[part], self.recipe.cval[part])
        for path, labels in walk(batch):
            if path not in boxes:
                continue
            form = boxes[path]
            if form.format == "xy" and any(place.warp is not None for place in places):
                raise ValueError("a warp does not move points; leave warp= away, or the labels that are points")
            way = Placement.moved_points if form.format == "xy" else Placement.moved_boxes
            moves = [None if place.is_still else partial(way, place) for place in places]
            moved[path] = form.moved(np.asarray(labels), moves)
        return mapped(batch, lambda path, leaf: moved.get(path, leaf))

    @property
    def is_geometric(self) -> bool:
        """Whether it moves anything, or only changes values."""
        r = self.recipe
        is_turned = {r.rotation, *r.shift, *r.shear} != {(0, 0)} or {*r.zoom} != {(1, 1)}
        return is_turned or any(r.flip) or bool(r.jitter) or r.crop is not None

    def _boxes(self) -> Mapping[Any, Boxes] | Boxes | None:
        if self.boxes is None or isinstance(self.boxes, str):
            return None if self.boxes is None else Boxes(self.boxes)
        return {key: form if isinstance(form, Boxes) else Boxes(form) for key, form in self.boxes}

    def __repr__(self) -> str:
        given = [f for f in fields(self) if f.init and getattr(self, f.name) != f.default]
        return f"Augment({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


@dataclass(frozen=True, slots=True)
class ImageFunction:
    """The transform of batches that calls ``fn(image=..., mask=...) -> dict`` for every sample.

    The form of Albumentations' pipelines and of many functions like them, which `transform=` takes as they
    are; this class is for saying more, such as `images`.  The mask is passed if the batch
    has one, and taken from the answer; which array is the mask follows the rules of `Augment`.  Frames are
    passed as channels of one image, ``(H, W, frames * C)``, so that one draw serves them all.

    Parameters
    ----------
    fn : gets arrays of its own, the image as (H, W, C) and the mask in its shape.  If it has a parameter
        `rng`, that is a `Generator` of this sample; else, if it has `set_random_seed`, that is called before
        each sample with a seed from the batch's `rng` (under one lock, threads take turns); else repeating
        its results is its own affair
    images, masks : as for `Augment`; they name one image array and at most one mask array
    boxes : () says that the function moves nothing, so that labels that are boxes may stay as they are

    Raises
    ------
    ValueError : when called, more than one image or mask array, an answer that lacks them, or answers of
        different shapes; in a flow of tiles whose labels are boxes, which no such function moves

    >>> def brighten(image, mask=None):
    ...     return {"image": image + 1, "mask": mask}
    >>> ImageFunction(brighten)(np.zeros((2, 2, 2, 1)), np.random.default_rng(0)).sum()
    np.float64(8.0)
    """

    fn: Callable[..., Mapping[str, Any]]
    images: Names = field(default=None, kw_only=True)
    masks: Names = field(default=None, kw_only=True)
    boxes: tuple[()] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.boxes is not None and len(self.boxes):
            raise ValueError(f"boxes={self.boxes!r}: a function of images moves no boxes; () says that none must move")

    def __call__(self, batch: Any, rng: np.random.Generator) -> Any:
        """The batch, in the same structure, with its images and mask transformed."""
        leaves = find_leaves(batch, -1, self.images, self.masks)
        images = [leaf for leaf in leaves if leaf.is_image]
        masks = [leaf for leaf in leaves if not leaf.is_image]
        if len(images) != 1 or len(masks) > 1:
            raise ValueError(
                f"ImageFunction takes one image array and at most one mask array, but the batch has "
                f"{len(images)} and {len(masks)}; name them with images= and masks="
            )
        seeds = [seed_of(random) % 2**31 for random in samples_of(rng, len(images[0].array))]
        samples = [self._sample(leaves, i, seed) for i, seed in enumerate(seeds)]
        moved: dict[Path, NDArray[Any]] = {}
        for k, leaf in enumerate(leaves):
            rows = [sample[k] for sample in samples]
            if shapes := sorted({row.shape for row in rows if row.shape != rows[0].shape}):
                raise ValueError(
                    f"samples of one batch came back in the shapes {rows[0].shape} and {shapes[0]}; "
                    "let the function end in a crop or resize to one size"
                )
            moved[leaf.path] = np.stack(rows) if rows else leaf.array.copy()
        return mapped(batch, lambda path, leaf: moved.get(path, leaf))

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    def _sample(self, leaves: list[Leaf], i: int, seed: int) -> list[NDArray[Any]]:
        """What the function makes of one sample's image, and of its mask where there is one."""
        given = {"image" if leaf.is_image else "mask": leaf.array[i].copy() for leaf in leaves}
        frames = given["image"].shape[:-3]
        if frames:  # (..., H, W, C) to (H, W, frames * C), one frame after the other
            stack = np.moveaxis(given["image"], (-3, -2), (0, 1))
            given["image"] = np.ascontiguousarray(stack.reshape(*stack.shape[:2], -1))
        if "rng" in _parameters(self.fn):
            answer = self.fn(**given, rng=np.random.default_rng(seed))
        elif hasattr(self.fn, "set_random_seed"):
            with _seeded:
                self.fn.set_random_seed(seed)
                answer = self.fn(**given)
        else:
            answer = self.fn(**given)
        found = answer if isinstance(answer, Mapping) else {}
        if missing := [name for name in given if found.get(name) is None]:
            raise ValueError(f"{self.fn!r} gave no {' and no '.join(missing)}; it must answer with a dict of them")
        image, *mask = (np.asarray(found[name]) for name in given)
        if frames:
            image = np.moveaxis(image.reshape(*image.shape[:2], *frames, -1), (0, 1), (-3, -2))
        return [image, *mask]


def with_boxes(transform: Any, data: Any) -> Any:
    """The transform of the batches of some data, told which of their arrays are boxes.

    Tiles whose labels are boxes know it (`MultiSourceArray.boxes`); the array among the data that holds their labels is
    found by its values.

    Parameters
    ----------
    transform : any; one that is no `Augment` or function of images, or was told, is given back
    data : sources, in tuples, lists and dicts

    Raises
    ------
    ValueError : tiles with boxes, a geometric `Augment`, and labels that are not those of the tiles but could be boxes;
        boxes and a function of images, which cannot move them
    """
    made = as_transform(transform) if callable(transform) else transform
    if isinstance(made, ImageFunction):
        if made.boxes is None and _known_boxes(data)[0]:
            raise ValueError(
                "the labels are boxes, and a function of one image would leave them where they are: use Augment, or a "
                "function of the whole batch, (batch, rng) -> batch; for a function that moves nothing say "
                "ImageFunction(fn, boxes=())"
            )
        return transform
    if not isinstance(transform, Augment) or transform.boxes is not None or not transform.is_geometric:
        return transform
    found, others = _known_boxes(data)
    if others and not found:
        path, shape = others[0]
        raise ValueError(
            f"the tiles' labels are boxes, but {'/'.join(map(str, path))}, of shape {shape}, is not those; "
            "say which numbers are boxes by Augment(boxes=...), boxes=() for none"
        )
    return replace(transform, boxes=tuple(found.items())) if found else transform


def _known_boxes(data: Any) -> tuple[dict[Path, Boxes], list[tuple[Path, tuple[int, ...]]]]:
    """The arrays of boxes among the data that tiles beside them know, and others that could be, with their shapes."""
    leaves = [(path, source) for path, source in walk(data) if source is not None]
    found: dict[Path, Boxes] = {}
    others: list[tuple[Path, tuple[int, ...]]] = []
    for _, tiles in leaves:
        whole = getattr(tiles, "source", tiles)  # of a view
        boxes = getattr(whole, "boxes", None)
        if not isinstance(boxes, Boxes):
            continue
        labels = whole.labels if whole is tiles else whole.labels[tiles.samples]
        for path, other in leaves:
            shape = tuple(getattr(other, "shape", ()))
            if other is tiles or len(shape) not in (2, 3) or path[:1] in ((0,), ("x",)) or shape[-1] < boxes.count:
                continue
            if shape == labels.shape and np.array_equal(np.asarray(other), labels.astype(other.dtype)):
                found[path] = boxes
            elif np.dtype(other.dtype).kind in "iuf":
                others.append((path, shape))
    return found, others


def _plain(value: Any) -> Any:
    """Lists, arrays and mappings as tuples, so that an `Augment` can be compared, hashed and shown."""
    if isinstance(value, Mapping):
        return tuple((key, _plain(form)) for key, form in value.items())
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def as_transform(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A callable as a transform of batches, ``(batch, rng) -> batch``.

    A function of images, which has a parameter `image` or takes names only, becomes an `ImageFunction`
    (Albumentations' objects are told by their ``force_apply`` or `set_random_seed`). A function of a batch alone, which
    has one parameter without a default and none named `rng`, is called without one. Any other is a transform already.

    >>> type(as_transform(lambda image, mask: {"image": image, "mask": mask})).__name__
    'ImageFunction'
    >>> as_transform(lambda batch: batch + 1)(np.zeros(2), np.random.default_rng(0))
    array([1., 1.])
    >>> as_transform(np.add)
    <ufunc 'add'>
    """
    parameters = _parameters(fn)
    kinds = {p.kind for p in parameters.values()}
    is_of_images = hasattr(fn, "set_random_seed") or not {"image", "force_apply"}.isdisjoint(parameters)
    if is_of_images or kinds == {inspect.Parameter.VAR_KEYWORD}:
        return ImageFunction(fn)
    if isinstance(fn, np.ufunc):
        return _WithoutRandom(fn) if fn.nin == 1 else fn
    if "rng" in parameters or inspect.Parameter.VAR_POSITIONAL in kinds:
        return fn
    by_place = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    is_alone = len(by_place) == 1 or sum(p.default is p.empty for p in by_place) == 1
    return _WithoutRandom(fn) if is_alone else fn


@dataclass(frozen=True, slots=True)
class _WithoutRandom:
    """A function of a batch as a transform."""

    fn: Callable[[Any], Any]

    def __call__(self, batch: Any, rng: np.random.Generator) -> Any:
        return self.fn(batch)


def _parameters(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return {}
