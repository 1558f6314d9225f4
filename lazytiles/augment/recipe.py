"""What a user asks of an augmentation, checked once, and one draw from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from lazytiles.augment.geometry import FILLS, Placement

Span: TypeAlias = tuple[float, float]
Amount: TypeAlias = float | tuple[float, float]
PerAxis: TypeAlias = Amount | tuple[Amount, Amount]

NOTHING: Span = (0.0, 0.0)
NUMBER = (Real, np.bool_)
FIXED_DRAWS = 12
WHOLE_PIXEL = 1e-9


@dataclass(frozen=True, slots=True)
class Recipe:
    """The ranges that random transforms are drawn from; wrong ones are refused when it is made.

    Attributes
    ----------
    rotation, intensity : (low, high), degrees and units of the pixel values
    shift, shear, zoom : ((low, high), (low, high)), rows then columns
    zoom_tied : one factor for both axes
    flip : probabilities, rows then columns
    jitter, grid : standard deviation of the control points (0: no warp), and how many along (rows, columns)
    crop : (height, width) in pixels, or None
    fill, cval : for the image, for the mask
    """

    rotation: Span
    shift: tuple[Span, Span]
    shear: tuple[Span, Span]
    zoom: tuple[Span, Span]
    zoom_tied: bool
    intensity: Span
    flip: tuple[float, float]
    jitter: float
    grid: tuple[int, int]
    crop: tuple[int, int] | None
    fill: tuple[str, str]
    cval: tuple[float, float]

    @classmethod
    def of(
        cls,
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
    ) -> Recipe:
        """The recipe of the arguments of `random_transform`.

        Raises
        ------
        ValueError : an argument is out of its range; the message says which and what is allowed

        >>> Recipe.of(rotation=10, flip=(False, True)).rotation
        (-10.0, 10.0)
        """
        jitter, points = (warp or 0, 3) if warp is None or _is_number(warp) else _two(warp, "warp")
        if not (_is_number(jitter) and math.isfinite(jitter) and jitter >= 0):
            raise ValueError(f"warp={warp!r}: the jitter of the control points must be finite and at least 0")
        grid = _sizes(points, "points of warp", least=2)
        is_zoom_nested = _is_nested(zoom)
        zooms = _spans(zoom, "zoom", by_axis=is_zoom_nested, around=1)
        shears = _spans(shear, "shear", by_axis=True) if _is_nested(shear) else (NOTHING, _span(shear, "shear"))
        if min(low for low, _ in zooms) <= 0:
            raise ValueError(f"zoom={zoom!r}: factors must stay above 0; a number z means 1 - z to 1 + z")
        if max(abs(angle) for span in shears for angle in span) >= 90:
            raise ValueError(f"shear={shear!r}: angles must stay within -90 and 90 degrees")
        return cls(
            rotation=_span(rotation, "rotation"),
            shift=_spans(shift, "shift", by_axis=not _is_number(shift)),
            shear=shears,
            zoom=zooms,
            zoom_tied=not is_zoom_nested,
            intensity=_span(intensity, "intensity"),
            flip=_chances(flip),
            jitter=float(jitter),
            grid=grid,
            crop=None if crop is None else _sizes(crop, "crop", least=1),
            fill=_pair(
                fill, "fill", str, f"one of {', '.join(FILLS)}, or a pair (image, mask) of them", FILLS.__contains__
            ),
            cval=_pair(cval, "cval", NUMBER, "a number, or a pair (image, mask) of numbers"),
        )

    @property
    def draws(self) -> int:
        """How many uniform numbers one image takes from its generator."""
        return FIXED_DRAWS + (2 * self.grid[0] * self.grid[1] if self.jitter else 0)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The output's (height, width) for an input of (height, width)."""
        if self.crop is None:
            return size
        if self.crop[0] > size[0] or self.crop[1] > size[1]:
            raise ValueError(f"crop={self.crop} does not fit into an image of {size[0]} x {size[1]} pixels")
        return self.crop

    def place(self, u: NDArray[np.float64], size: tuple[int, int]) -> Placement:
        """The transform that the uniform numbers `u`, shape (draws,), stand for, for images of `size`.

        Forward, about the centre of the image: flip, zoom, shear, rotate, then shift, then warp, then crop.
        """
        t = u.tolist()
        down, across = (_drawn(t[1 + k], self.shift[k], size[k]) for k in (0, 1))
        shear_y, shear_x = (math.tan(math.radians(_drawn(t[3 + k], self.shear[k]))) for k in (0, 1))
        zoom_y, zoom_x = (_drawn(t[5 if self.zoom_tied else 5 + k], self.zoom[k]) for k in (0, 1))
        angle = _drawn(t[0], self.rotation)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        quarters, rest = divmod(angle, 90.0)
        if rest == 0:  # exactly
            cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarters) % 4]
        # Output offsets from the centre to input ones, row-major 2 x 2; counter-clockwise as `numpy.rot90`.
        top = (cos + shear_y * sin, sin - shear_y * cos)
        bottom = (-sin - shear_x * top[0], cos - shear_x * top[1])
        by_row = (-1.0 if t[8] < self.flip[0] else 1.0) / zoom_y
        by_column = (-1.0 if t[9] < self.flip[1] else 1.0) / zoom_x
        a, b, c, d = top[0] * by_row, top[1] * by_row, bottom[0] * by_column, bottom[1] * by_column
        y, x = (size[0] - 1) / 2, (size[1] - 1) / 2
        back_y, back_x = y + down, x + across
        out = self.size(size)
        warp = None
        if self.jitter:
            normal = ndtri(np.clip(u[FIXED_DRAWS:], 2.0**-53, 1 - 2.0**-53)).reshape(*self.grid, 2)
            warp = normal * (self.jitter * (np.array(size, float) if self.jitter < 1 else np.ones(2)))
        return Placement(
            size=out,
            frame=size,
            origin=(int(t[10] * (size[0] - out[0] + 1)), int(t[11] * (size[1] - out[1] + 1))),
            linear=(a, b, c, d),
            offset=(y - (a * back_y + b * back_x), x - (c * back_y + d * back_x)),
            warp=warp,
            amount=_drawn(t[7], self.intensity),
        )


def _drawn(t: float, span: Span, length: int | None = None) -> float:
    """What a number of 0..1 stands for in a span; a shift, given a `length`, below 1 is a fraction of it."""
    low, high = span
    if length is not None and max(abs(low), abs(high)) < 1:
        low, high = low * length, high * length
    elif length is not None and isinstance(low, int) and isinstance(high, int):
        return float(low + math.floor(t * (high - low + 1)))
    value = low + (high - low) * t
    # A fraction that means whole pixels gives whole pixels (0.07 of 100 is not 7.000000000000001).
    return float(round(value)) if abs(value - round(value)) < WHOLE_PIXEL else value


def _span(value: Any, name: str, around: int = 0) -> Span:
    """The span of a number or a pair; the bounds of a shift are Python ints where whole pixels are to be drawn."""
    if _is_number(value):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value!r}: a number must be finite and at least 0; a pair is (low, high)")
        number = int(value) if _is_whole(value) else float(value)
        low, high = around - number, around + number
    else:
        low, high = _two(value, name)
        if not (_is_number(low) and _is_number(high)):
            raise ValueError(f"{name}={value!r}: expected a number or a pair (low, high)")
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"{name}={value!r}: expected finite low <= high")
    is_whole = name == "shift" and _is_whole(low) and _is_whole(high)
    return (int(low), int(high)) if is_whole else (float(low), float(high))


def _spans(value: Any, name: str, *, by_axis: bool, around: int = 0) -> tuple[Span, Span]:
    rows, columns = _two(value, name) if by_axis else (value, value)
    return _span(rows, name, around), _span(columns, name, around)


def _chances(value: Any) -> tuple[float, float]:
    expected = "a pair (rows, columns) of booleans or probabilities"
    pair = _pair(value, "flip", NUMBER, expected, lambda v: not _is_number(value) and 0 <= v <= 1)
    rows, columns = (0.5 if v is True or v is np.True_ else float(v) for v in pair)
    return rows, columns


def _sizes(value: Any, name: str, least: int) -> tuple[int, int]:
    expected = f"whole numbers (rows, columns) of at least {least}"
    rows, columns = _pair(value, name, Integral, expected, lambda v: not isinstance(v, bool) and v >= least)
    return int(rows), int(columns)


def _pair(
    value: Any, name: str, kind: Any, expected: str, fits: Callable[[Any], bool] = lambda v: True
) -> tuple[Any, Any]:
    """Two values of a kind, or one for both."""
    pair = (value, value) if isinstance(value, kind) else _two(value, name)
    if not all(isinstance(v, kind) and fits(v) for v in pair):
        raise ValueError(f"{name}={value!r}: expected {expected}")
    return pair


def _two(value: Any, name: str) -> tuple[Any, Any]:
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)) or len(value) != 2:
        raise ValueError(f"{name}={value!r}: expected a number or two values")
    return value[0], value[1]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, NUMBER)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral)


def _is_nested(value: Any) -> bool:
    return not _is_number(value) and any(not _is_number(v) for v in _two(value, "per axis"))
