"""One random transform of one image, its frames and its mask: arrays and a `Generator` in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lazytiles.augment.geometry import move_image, move_mask
from lazytiles.augment.recipe import Amount, PerAxis, Recipe


def random_transform(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    rotation: Amount = 0,
    shift: PerAxis = (0, 0),
    shear: PerAxis = 0,
    zoom: PerAxis = 0,
    intensity: Amount = 0,
    flip: tuple[float, float] = (False, False),
    warp: float | tuple[float, int | tuple[int, int]] | None = None,
    crop: int | tuple[int, int] | None = None,
    fill: str | tuple[str, str] = "nearest",
    cval: float | tuple[float, float] = 0,
    channel_axis: int | None = -1,
    rng: np.random.Generator,
) -> Any:
    """Transform one image, and its mask, by one random transform that is drawn from `rng`.

    About the centre flip, zoom, shear and rotate, then shift, warp and crop: all in one bilinear resampling
    (nearest neighbour for the mask).  What moves pixels onto pixels copies them: identity parameters give the
    input's values bit for bit, and flips, quarter turns of square images and whole shifts those of NumPy.
    Integers are rounded (ties to even) and saturate where `intensity` takes them beyond their dtype; those of
    64 bits are interpolated in float64.  The inputs are never written to.

    Parameters
    ----------
    x : the image, shape (H, W, C), or (H, W) without channels; any number of channels, numbers or booleans
    y : the mask, shape (H, W) or (H, W, K), any dtype; None if there is none
    rotation : degrees, counter-clockwise as `numpy.rot90`; a number r draws from -r to r, a pair (low, high)
        from low to high
    shift : (rows, columns), each a number s (-s to s) or a pair (low, high); below 1 in magnitude a fraction
        of the image's height or width, else pixels, and whole pixels where the bounds are integers; positive
        is down and to the right
    shear : degrees, below 90, along the rows; a number or a pair, or a pair that contains a pair: (of columns
        down, of rows across)
    zoom : a number z draws a factor from 1 - z to 1 + z, a pair from low to high, above 1 enlarges; one
        factor for both axes; a pair that contains a pair is (rows, columns), drawn apart
    intensity : added to all values of the image; a number a draws from -a to a, a pair from low to high
    flip : (rows, columns): upside down, left to right; True flips every second time, a number is the
        probability
    warp : (jitter, points): standard deviation of the control points of a cubic B-spline, below 1 a fraction
        of height and width, else pixels; how many points, n or (rows, columns), at least 2; a number is a
        jitter of 3 x 3 points
    crop : (height, width) in pixels of a random crop of what was transformed
    fill : "nearest", "reflect" (the edge pixel repeats, ``b a | a b``, as in SciPy) or "constant" for what
        lies outside; or a pair (image's, mask's)
    cval : the value of "constant"; or a pair (image's, mask's)
    channel_axis : the axis of `x`, and of a `y` of as many axes, that is not spatial; None if there is none
    rng : the only source of randomness; how many numbers are taken depends on `warp` alone

    Returns
    -------
    the image, or (image, mask) where a mask was given: new C-contiguous arrays of the inputs' dtypes

    Raises
    ------
    ValueError : a parameter out of its range, or a mask of another height or width
    TypeError : an image that is not of numbers or booleans, or `rng` is no generator

    >>> image = np.arange(9).reshape(3, 3, 1)
    >>> turned = random_transform(image, rotation=(90, 90), rng=np.random.default_rng(0))
    >>> np.array_equal(turned, np.rot90(image))
    True
    """
    image = np.asarray(x)
    is_bare = image.ndim == 2
    if is_bare:
        image, channel_axis = image[..., None], -1
    if image.ndim != 3 or channel_axis is None:
        raise ValueError(
            f"one image has 2 axes, or 3 with its channels, but x has shape {image.shape} and "
            f"channel_axis={channel_axis}; for frames and stacks call random_transform_stack"
        )
    moved = random_transform_stack(
        image, y, channel_axis=channel_axis, rng=rng, rotation=rotation, shift=shift, shear=shear, zoom=zoom,
        intensity=intensity, flip=flip, warp=warp, crop=crop, fill=fill, cval=cval,
    )  # fmt: skip
    if not is_bare:
        return moved
    return moved[..., 0] if y is None else (moved[0][..., 0], moved[1])


def random_transform_stack(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    channel_axis: int | None = -1,
    rng: np.random.Generator,
    **parameters: Any,
) -> Any:
    """Transform a stack of images, and its masks, by one random transform: one draw for all leading axes.

    Parameters
    ----------
    x : shape (..., H, W, C): the last two axes beside `channel_axis` are spatial, the others lead
    y : masks with the leading axes of `x` or with none, with or without a channel axis; None if there are
        none
    channel_axis : the axis of `x` that holds the channels, such as -1 or -3; None if no axis does
    rng : as for `random_transform`
    **parameters : rotation, shift, shear, zoom, intensity, flip, warp, crop, fill, cval of `random_transform`

    Returns
    -------
    the images, or (images, masks): new C-contiguous arrays of the inputs' dtypes

    Raises
    ------
    ValueError : as `random_transform`; also masks whose axes can be read in two ways

    >>> frames = np.stack([np.eye(4)[..., None]] * 2)
    >>> out = random_transform_stack(frames, flip=(1.0, 0), rng=np.random.default_rng(0))
    >>> np.array_equal(out, frames[:, ::-1])
    True
    """
    image, recipe = np.asarray(x), Recipe.of(**parameters)
    if not hasattr(rng, "random"):
        raise TypeError(f"rng={rng!r}: expected a Generator, such as numpy.random.default_rng(seed)")
    axes = spatial_axes(image.ndim, channel_axis)
    size = (image.shape[axes[0]], image.shape[axes[1]])
    mask = None if y is None else np.asarray(y)
    mask_axes = (0, 0) if mask is None else mask_axes_of(mask.shape, image.shape, channel_axis)
    place = recipe.place(rng.random(recipe.draws), size)
    moved = move_image(image, axes, place, recipe.fill[0], recipe.cval[0])
    return moved if mask is None else (moved, move_mask(mask, mask_axes, place, recipe.fill[1], recipe.cval[1]))


def spatial_axes(ndim: int, channel_axis: int | None) -> tuple[int, int]:
    """The (rows, columns) axes of a stack: the last two that are not the channels.

    >>> spatial_axes(4, -1), spatial_axes(4, -3), spatial_axes(3, None)
    ((1, 2), (2, 3), (1, 2))
    """
    if channel_axis is not None and not -ndim <= channel_axis < ndim:
        raise ValueError(f"channel_axis={channel_axis} does not exist in an array of {ndim} axes")
    rest = [k for k in range(ndim) if channel_axis is None or k != channel_axis % ndim]
    if len(rest) < 2:
        raise ValueError(
            f"an image has two spatial axes beside its channels, but there are {ndim} in all; pass "
            "channel_axis=None if it has no channels"
        )
    return rest[-2], rest[-1]


def mask_axes_of(mask: tuple[int, ...], image: tuple[int, ...], channel_axis: int | None) -> tuple[int, int]:
    """The (rows, columns) axes of a mask of shape `mask` for images of shape `image`, if just one reading fits."""
    found = mask_readings(mask, image, channel_axis)
    if len(found) == 1:
        return found[0]
    height, width = (image[k] for k in spatial_axes(len(image), channel_axis))
    trouble = "can be read both with channels and without" if found else "does not fit"
    raise ValueError(
        f"a mask of shape {mask} {trouble} for images of shape {image}: expected {height} x {width} pixels, "
        "with or without a channel axis, and leading axes equal to the images' or none"
    )


def mask_readings(mask: tuple[int, ...], image: tuple[int, ...], channel_axis: int | None) -> list[tuple[int, int]]:
    """Every way to find the image's pixels in a mask: the (rows, columns) axes of each."""
    axes = spatial_axes(len(image), channel_axis)
    lead = _leading(image, axes, channel_axis)
    found = []
    for channels in {channel_axis, None}:
        beside = 0 if channels is None else 1
        # An image's third axis from the left is no axis of a mask with fewer axes: count it from the right.
        axis = channels if channels is None or channels < 0 else channels - len(image)
        if len(mask) < 2 + beside or (axis is not None and -axis > len(mask)):
            continue
        here = spatial_axes(len(mask), axis)
        same = all(mask[k] == image[j] for k, j in zip(here, axes, strict=True))
        if same and _leading(mask, here, axis) in (lead, ()):
            found.append(here)
    return sorted(set(found))


def _leading(shape: tuple[int, ...], axes: tuple[int, int], channel_axis: int | None) -> tuple[int, ...]:
    beside = set(axes) if channel_axis is None else {*axes, channel_axis % len(shape)}
    return tuple(n for k, n in enumerate(shape) if k not in beside)
