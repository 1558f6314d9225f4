"""Region files, manifests over them, and the dense arrays that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile

LAYOUTS: tuple[dict[str, Any], ...] = (
    {"compression": "lzw", "rowsperstrip": 3},
    {"compression": "zlib", "tile": (16, 16), "predictor": True},
    {"rowsperstrip": 7},
    {"compression": "zstd", "tile": (32, 16), "planarconfig": "separate"},
    {"tile": (16, 32)},
    {"compression": "packbits", "rowsperstrip": 1},
)


def pixels(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """A random image of any dtype."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(100, 40, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    top = np.iinfo(dtype).max
    return rng.integers(0, top, shape, dtype=dtype, endpoint=True)


def write(path: Path, image: np.ndarray, **options: Any) -> Path:
    """A TIFF of an image (height, width[, samples]); samples go first where they are stored in planes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.ndim == 3 and options.get("planarconfig") == "separate":
        image = np.moveaxis(image, -1, 0)
    else:
        options.pop("planarconfig", None)
        options.update({"planarconfig": "contig"} if image.ndim == 3 else {})
    tifffile.imwrite(path, image, photometric="minisblack", metadata=None, **options)
    return path


@dataclass(frozen=True)
class Made:
    """A folder of regions and a manifest, and what they hold."""

    folder: Path
    table: pd.DataFrame
    images: dict[tuple[str, str], np.ndarray]
    frames: tuple[str, ...]

    @property
    def manifest(self) -> Path:
        return self.folder / "tiles.csv"

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of the last frame: one a sample."""
        return self.table[self.table.label_id == self.frames[-1]].reset_index(drop=True)

    def dense(self) -> np.ndarray:
        """(N, T, height, width, samples), by slicing whole images."""
        return np.stack([np.stack([self.crop(row, frame) for frame in self.frames]) for row in self.rows.itertuples()])

    def crop(self, row: Any, frame: str) -> np.ndarray:
        x0, y0, x1, y1 = map(int, row.region_coordinates.strip("()").split(","))
        return self.images[frame, row.region_id][y0:y1, x0:x1]


def make(
    folder: Path,
    *,
    regions: int = 3,
    frames: tuple[str, ...] = ("2016", "2017"),
    bands: int = 3,
    dtype: Any = np.uint8,
    tiles: int = 12,
    size: tuple[int, int] | None = (9, 7),
    seed: int = 0,
    layouts: tuple[dict[str, Any], ...] = LAYOUTS,
) -> Made:
    """Regions of unequal extents and layouts, and a manifest that mixes them; ``size=None``: unequal windows."""
    rng = np.random.default_rng(seed)
    images, rows = {}, []
    names = [f"{k:03d}" for k in range(regions)]
    extents = {name: (int(rng.integers(40, 70)), int(rng.integers(40, 70))) for name in names}
    for k, (frame, name) in enumerate((frame, name) for frame in frames for name in names):
        images[frame, name] = pixels((*extents[name], bands), dtype, seed=k + 1)
        write(folder / frame / f"{name}.tif", images[frame, name], **layouts[k % len(layouts)])
    for k in range(tiles):
        name = names[int(rng.integers(regions))]
        height, width = (int(rng.integers(5, 30)), int(rng.integers(5, 30))) if size is None else size
        y, x = (int(rng.integers(0, n - m + 1)) for n, m in zip(extents[name], (height, width), strict=True))
        target, extra = round(float(rng.random()), 3), int(rng.integers(9))
        box = f"({x}, {y}, {x + width}, {y + height})"
        rows += [(f"t{k}", name, frame, target, extra, box) for frame in frames]
    table = pd.DataFrame(
        rows, columns=["tile_id", "region_id", "label_id", "target", "elevation", "region_coordinates"]
    )
    table.to_csv(folder / "tiles.csv", index=False)
    return Made(folder, table, images, frames)
