"""Where the pixels of an image lie on the ground, by its tags alone (stand-in until the real one lands)."""

from __future__ import annotations

from dataclasses import dataclass

import affine
import tifffile


@dataclass(frozen=True, slots=True)
class Georeference:
    """CRS and transform of an image."""

    crs: str | None
    transform: affine.Affine | None
    keys: tuple[object, ...] = ()


def georeference_of(page: tifffile.TiffPage) -> Georeference | None:
    """Of a parsed page."""
    scale, tie = page.tags.valueof(33550), page.tags.valueof(33922)
    keys = page.tags.valueof(34735)
    crs = None
    if keys:
        rows = [tuple(keys[k : k + 4]) for k in range(4, len(keys), 4)]
        crs = next((f"EPSG:{row[3]}" for row in rows if row[0] in (3072, 2048) and row[1] == 0), None)
    transform = None
    if scale and tie:
        i, j, _, x, y, _ = tie[:6]
        transform = affine.Affine(scale[0], 0, x - i * scale[0], 0, -abs(scale[1]), y + j * abs(scale[1]))
    return None if crs is None and transform is None else Georeference(crs, transform)
