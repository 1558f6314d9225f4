"""Micrometres from one pixel to the next, by what a file says of itself."""

from __future__ import annotations

import math
import re
from typing import Any

import tifffile

Mpp = tuple[float, float]  # (y, x), micrometres
Spacing = tuple[float | None, float | None, float | None]  # (z, y, x), micrometres; None where nothing is said
UNKNOWN: Spacing = (None, None, None)

_MICROMETRES = {
    "µm": 1.0, "um": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "\\u00b5m": 1.0, "nm": 1e-3, "nanometer": 1e-3, "pm": 1e-6, "å": 1e-4, "angstrom": 1e-4, "mm": 1e3,
    "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "m": 1e6, "meter": 1e6, "in": 25400.0, "inch": 25400.0,
}  # fmt: skip
_TAG_UNITS = {2: 25400.0, 3: 10000.0}
_LIKELY = (0.01, 100.0)  # micrometres; what resolution tags say beyond is about paper and screens
_APERIO = re.compile(r"\bMPP\s*=\s*([0-9]*\.?[0-9]+)")


def length(value: Any, unit: str) -> float | None:
    """A length in micrometres; None where it is no positive number, or of no unit of length.

    >>> length("250", "nm"), length(0.5, "µm"), length("1", "pixel"), length("-1", "µm")
    (0.25, 0.5, None, None)
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    factor = _MICROMETRES.get(unit.strip().lower())
    return number * factor if factor and math.isfinite(number) and number > 0 else None


def mpp_of(spacing: Spacing) -> Mpp | None:
    """(y, x) of a spacing, where both are known; one that is known counts for both where the other is not."""
    y, x = spacing[1] or spacing[2], spacing[2] or spacing[1]
    return None if y is None or x is None else (y, x)


def aperio_spacing(description: str) -> Spacing:
    """What Aperio's description says.

    >>> aperio_spacing("Aperio Image Library v11|AppMag = 20|MPP = 0.4990")
    (None, 0.499, 0.499)
    """
    found = _APERIO.search(description)
    mpp = length(found[1], "µm") if found else None
    return None, mpp, mpp


def imagej_spacing(page: tifffile.TiffPage, told: dict[str, Any]) -> Spacing:
    """ImageJ's: resolution tags in pixels of its own unit, and the spacing of slices in it."""
    unit = str(told.get("unit", ""))
    y, x = (length(value, unit) for value in _per_pixel(page))
    return length(told.get("spacing"), unit), y, x


def tagged_spacing(page: tifffile.TiffPage) -> Spacing:
    """What the resolution tags say, where it may be a measurement: 0.01 to 100 micrometres."""
    (y, x), unit = _per_pixel(page), page.tags.valueof(296, default=2)
    factor = _TAG_UNITS.get(unit) if isinstance(unit, int) else None
    if y is None or x is None or factor is None:
        return UNKNOWN
    y, x = y * factor, x * factor
    return (None, y, x) if _LIKELY[0] <= min(y, x) and max(y, x) <= _LIKELY[1] else UNKNOWN


def _per_pixel(page: tifffile.TiffPage) -> tuple[float | None, float | None]:
    """(y, x): units of the resolution tags in one pixel."""
    found: list[float | None] = []
    for code in (283, 282):
        value = page.tags.valueof(code)
        number = value[0] if isinstance(value, tuple) and len(value) == 2 and value[1] else None
        found.append(value[1] / number if isinstance(number, int) and number > 0 and value[1] > 0 else None)
    return found[0], found[1]
