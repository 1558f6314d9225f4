"""What a user asks of an augmentation, checked once, and one draw from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        jitter, grid = _warp(warp)
        zoom_nested = _is_nested(zoom)
        zooms = _per_axis(zoom, "zoom", around=1.0)
        shears = _per_axis(shear, "shear") if _is_nested(shear) else (NOTHING, _span(shear, "shear"))
        if min(low for low, _ in zooms) <= 0:
            raise ValueError(f"zoom={zoom!r}: factors must stay above 0; a number z means 1 - z to 1 + z")
        if max(abs(angle) for span in shears for angle in span) >= 90:
            raise ValueError(f"shear={shear!r}: angles must stay within -90 and 90 degrees")
        return cls(
            rotation=_span(rotation, "rotation"),
            shift=_shift(shift),
            shear=shears,
            zoom=zooms,
            zoom_tied=not zoom_nested,
            intensity=_span(intensity, "intensity"),
            flip=_flip(flip),
            jitter=jitter,
            grid=grid,
            crop=None if crop is None else _two_ints(crop, "crop", least=1),
            fill=_fill(fill),
            cval=_cval(cval),
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
        angle, down, across, shear_y, shear_x, zoom_y, zoom_x, amount = _inside(u[:8], self._spans(size))
        out = self.size(size)
        linear = _inverse(
            (_cos_sin(angle), (math.tan(math.radians(shear_y)), math.tan(math.radians(shear_x)))),
            (zoom_y, zoom_y if self.zoom_tied else zoom_x),
            (u[8] < self.flip[0], u[9] < self.flip[1]),
        )
        return Placement(
            size=out,
            frame=size,
            origin=(
                int(u[10] * (size[0] - out[0] + 1)),
                int(u[11] * (size[1] - out[1] + 1)),
            ),
            linear=linear,
            offset=_offset(linear, size, (down, across)),
            warp=self._control_points(u[FIXED_DRAWS:], size) if self.jitter else None,
            amount=amount,
        )

    def _spans(self, size: tuple[int, int]) -> list[tuple[float, float, bool]]:
        shifts = [_pixels(span, length) for span, length in zip(self.shift, size, strict=True)]
        rest = [(*span, False) for span in (*self.shear, *self.zoom, self.intensity)]
        return [(*self.rotation, False), *shifts, *rest]

    def _control_points(self, u: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        """Displacements in pixels, shape (rows, columns, 2)."""
        normal = ndtri(np.clip(u, 2.0**-53, 1 - 2.0**-53)).reshape(*self.grid, 2)
        scale = np.array(size, float) if self.jitter < 1 else np.ones(2)
        points: NDArray[np.float64] = normal * (self.jitter * scale)
        return points


def _span(value: Any, name: str, around: float = 0.0) -> Span:
    if _is_number(value):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value!r}: a number must be finite and at least 0; a pair is (low, high)")
        return around - float(value), around + float(value)
    low, high = _two(value, name)
    if not (_is_number(low) and _is_number(high)):
        raise ValueError(f"{name}={value!r}: expected a number or a pair (low, high)")
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{name}={value!r}: expected finite low <= high")
    return float(low), float(high)


def _per_axis(value: Any, name: str, around: float = 0.0) -> tuple[Span, Span]:
    if _is_nested(value):
        rows, columns = _two(value, name)
        return _span(rows, name, around), _span(columns, name, around)
    span = _span(value, name, around)
    return span, span


def _shift(value: Any) -> tuple[Span, Span]:
    if _is_number(value):
        span = _shift_span(value)
        return span, span
    rows, columns = _two(value, "shift")
    return _shift_span(rows), _shift_span(columns)


def _shift_span(value: Any) -> Span:
    """A span whose bounds are Python ints where whole pixels are to be drawn."""
    low, high = _span(value, "shift")
    given = [value] if _is_number(value) else list(value)
    return (int(low), int(high)) if all(_is_whole(v) for v in given) else (low, high)


def _pixels(span: Span, length: int) -> tuple[float, float, bool]:
    """A shift in pixels, and whether only whole ones are drawn; below 1 it is a fraction of `length`."""
    low, high = span
    if max(abs(low), abs(high)) < 1:
        return low * length, high * length, False
    return low, high, isinstance(low, int) and isinstance(high, int)


def _inside(u: NDArray[np.float64], spans: Sequence[tuple[float, float, bool]]) -> list[float]:
    return [
        float(low + math.floor(t * (high - low + 1))) if whole else _snap(low + (high - low) * float(t))
        for t, (low, high, whole) in zip(u, spans, strict=True)
    ]


def _snap(value: float) -> float:
    """A fraction that means whole pixels gives whole pixels (0.07 of 100 is not 7.000000000000001)."""
    nearest = round(value)
    return float(nearest) if abs(value - nearest) < WHOLE_PIXEL else value


def _cos_sin(degrees: float) -> tuple[float, float]:
    """Cosine and sine, exact at multiples of 90 degrees."""
    quarters, rest = divmod(degrees, 90.0)
    if rest == 0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarters) % 4]
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _inverse(
    turn: tuple[tuple[float, float], tuple[float, float]], zoom: tuple[float, float], flip: tuple[Any, Any]
) -> tuple[float, float, float, float]:
    """Output offsets from the centre to input ones, row-major 2 x 2; counter-clockwise as `numpy.rot90`."""
    (cos, sin), (shear_y, shear_x) = turn
    top = (cos + shear_y * sin, sin - shear_y * cos)
    bottom = (-sin - shear_x * top[0], cos - shear_x * top[1])
    down = (-1.0 if flip[0] else 1.0) / zoom[0]
    across = (-1.0 if flip[1] else 1.0) / zoom[1]
    return top[0] * down, top[1] * down, bottom[0] * across, bottom[1] * across


def _offset(
    linear: tuple[float, float, float, float], size: tuple[int, int], shift: tuple[float, float]
) -> tuple[float, float]:
    a, b, c, d = linear
    y, x = (size[0] - 1) / 2, (size[1] - 1) / 2
    back_y, back_x = y + shift[0], x + shift[1]
    return y - (a * back_y + b * back_x), x - (c * back_y + d * back_x)


def _flip(value: Any) -> tuple[float, float]:
    pair = () if _is_number(value) else _two(value, "flip")
    chances = [0.5 if v is True or v is np.True_ else v for v in pair]
    if not chances or not all(_is_number(v) and 0 <= v <= 1 for v in chances):
        raise ValueError(f"flip={value!r}: expected a pair (rows, columns) of booleans or probabilities")
    return float(chances[0]), float(chances[1])


def _warp(value: Any) -> tuple[float, tuple[int, int]]:
    if value is None:
        return 0.0, (3, 3)
    jitter, grid = (value, 3) if _is_number(value) else _two(value, "warp")
    if not (_is_number(jitter) and math.isfinite(jitter) and jitter >= 0):
        raise ValueError(f"warp={value!r}: the jitter of the control points must be finite and at least 0")
    return float(jitter), _two_ints(grid, "points of warp", least=2)


def _two_ints(value: Any, name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if _is_whole(value) else _two(value, name)
    if not all(_is_whole(v) and not isinstance(v, bool) and v >= least for v in pair):
        raise ValueError(f"{name}={value!r}: expected whole numbers (rows, columns) of at least {least}")
    return int(pair[0]), int(pair[1])


def _fill(value: Any) -> tuple[str, str]:
    pair = (value, value) if isinstance(value, str) else _two(value, "fill")
    if not all(isinstance(v, str) and v in FILLS for v in pair):
        raise ValueError(f"fill={value!r}: expected one of {', '.join(FILLS)}, or a pair (image, mask) of them")
    return str(pair[0]), str(pair[1])


def _cval(value: Any) -> tuple[float, float]:
    pair = (value, value) if _is_number(value) else _two(value, "cval")
    if not all(_is_number(v) for v in pair):
        raise ValueError(f"cval={value!r}: expected a number, or a pair (image, mask) of numbers")
    return pair[0], pair[1]


def _two(value: Any, name: str) -> tuple[Any, Any]:
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)) or len(value) != 2:
        raise ValueError(f"{name}={value!r}: expected a number or two values")
    return value[0], value[1]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (Real, np.bool_))


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral)


def _is_nested(value: Any) -> bool:
    return not _is_number(value) and any(not _is_number(v) for v in _two(value, "per axis"))
