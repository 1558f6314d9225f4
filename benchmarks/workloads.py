"""The workloads of reading, made from seeds: images on disk, windows, and the batches of a run.

Sizes are those of small machines by default; ``full=True`` gives those of `docs/understand/reading.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

BATCH = 32


@dataclass(frozen=True)
class Workload:
    """Windows to be read in batches.

    Attributes
    ----------
    name : as in the table of results
    paths : the images, one list a frame
    region : int64 (n,), which image each sample lies in
    windows : int64 (n, 4), (y0, x0, y1, x1)
    order : the sequence of samples
    """

    name: str
    paths: list[list[str]]
    region: NDArray[np.int64]
    windows: NDArray[np.int64]
    order: NDArray[np.int64]

    def batches(self, count: int, repeat: int) -> list[NDArray[np.int64]]:
        """So many batches, other ones in every repeat, so that no reader is asked the same thing twice."""
        every = len(self.order) // BATCH
        numbers = [(repeat * count + k) % every for k in range(count)]
        return [self.order[k * BATCH : (k + 1) * BATCH] for k in numbers]


def scene(rng: np.random.Generator, height: int, width: int, bands: int, dtype: str) -> NDArray[Any]:
    """Land-like pixels: smooth in space, with noise, so that codecs work as on real scenes."""
    small = rng.normal(size=(height // 16 + 2, width // 16 + 2, bands))
    smooth = np.repeat(np.repeat(small, 16, axis=0), 16, axis=1)[:height, :width]
    pixels = 128 + 40 * smooth + rng.normal(scale=2.0, size=(height, width, bands))
    if dtype == "float32":
        return pixels.astype(np.float32)
    top = 255 if dtype == "uint8" else 4095
    return np.clip(pixels * (top / 255), 0, top).astype(dtype)


def _random_windows(
    rng: np.random.Generator, n: int, shape: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.int64]:
    y = rng.integers(0, shape[0] - size[0] + 1, n)
    x = rng.integers(0, shape[1] - size[1] + 1, n)
    return np.stack([y, x, y + size[0], x + size[1]], axis=1)


def _images(folder: Path, name: str, count: int, make: Callable[[int], NDArray[Any]], **options: Any) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(count):
        path = folder / f"{name}_{k:03d}.tif"
        if not path.exists():
            tifffile.imwrite(path, make(k), **options)
        paths.append(str(path))
    return paths


def w1(folder: Path, *, full: bool, kind: str = "rgb", shuffled: bool = True) -> Workload:
    """Regions x 3 frames of LZW strips, tiles of 45 x 40 in regular rows."""
    regions, edge = (40, 1000) if full else (10, 1000)
    bands, rows = {"rgb": (3, 21), "gray": (1, 65), "thin": (3, 2)}[kind]

    def make(k: int) -> NDArray[Any]:
        pixels = scene(np.random.default_rng(k), edge, edge, bands, "uint8")
        return pixels if bands == 3 else pixels[..., 0]

    photometric = "rgb" if bands == 3 else "minisblack"
    options = {"compression": "lzw", "rowsperstrip": rows, "photometric": photometric}
    every = _images(folder / f"w1_{kind}_{edge}", "r", 3 * regions, make, **options)
    y, x = (v.ravel() for v in np.mgrid[0 : edge - 44 : 45, 0 : edge - 39 : 40])
    inside = np.stack([y, x, y + 45, x + 40], axis=1)
    windows = np.tile(inside, (regions, 1)).astype(np.int64)
    region = np.repeat(np.arange(regions), len(inside))
    order = np.arange(len(windows))
    if shuffled:
        order = np.random.default_rng(1).permutation(order)
    frames = [every[f * regions : (f + 1) * regions] for f in range(3)]
    return Workload(f"W1 {kind} {'shuffled' if shuffled else 'sequential'}", frames, region, windows, order)


def w2(folder: Path, *, full: bool, aligned: bool = False) -> Workload:
    """JPEG slides of 256-pixel tiles, windows of 256."""
    slides, edge = (4, 16384) if full else (2, 4096)

    def make(k: int) -> NDArray[Any]:
        block = scene(np.random.default_rng(k), 2048, 2048, 3, "uint8")
        return np.tile(block, (edge // 2048, edge // 2048, 1))

    options = {"compression": "jpeg", "tile": (256, 256), "photometric": "ycbcr", "subsampling": (2, 2)}
    paths = _images(folder / f"w2_{edge}", "slide", slides, make, **options)
    rng = np.random.default_rng(2)
    n = 4096 if full else 1024
    windows = _random_windows(rng, n, (edge, edge), (256, 256))
    if aligned:
        windows = windows // 256 * 256
        windows[:, 2:] = windows[:, :2] + 256
    return Workload(
        f"W2 {'aligned' if aligned else 'random'}", [paths], rng.integers(0, slides, n), windows, np.arange(n)
    )


def w3(folder: Path, *, full: bool, planar: bool = False) -> Workload:
    """Six bands of uint16, deflate with predictor 2, 512-pixel tiles, windows of 224."""
    edge = 4096 if full else 2048

    def make(k: int) -> NDArray[Any]:
        pixels = scene(np.random.default_rng(k), edge, edge, 6, "uint16")
        return np.moveaxis(pixels, -1, 0) if planar else pixels

    options = {
        "compression": "zlib",
        "predictor": 2,
        "tile": (512, 512),
        "photometric": "minisblack",
        "planarconfig": "separate" if planar else "contig",
    }
    paths = _images(folder / f"w3_{edge}_{planar}", "scene", 2, make, **options)
    rng = np.random.default_rng(3)
    n = 512
    windows = _random_windows(rng, n, (edge, edge), (224, 224))
    return Workload(f"W3 {'planar' if planar else 'pixel'}", [paths], rng.integers(0, 2, n), windows, np.arange(n))


def w4(folder: Path, *, full: bool) -> Workload:
    """Uncompressed uint16, windows of 128."""
    edge = 8192 if full else 4096
    paths = _images(
        folder / f"w4_{edge}", "raw", 1, lambda k: scene(np.random.default_rng(k), edge, edge, 1, "uint16")[..., 0]
    )
    rng = np.random.default_rng(4)
    n = 4096
    windows = _random_windows(rng, n, (edge, edge), (128, 128))
    return Workload("W4 uncompressed", [paths], np.zeros(n, dtype=np.int64), windows, np.arange(n))


def w5(folder: Path, *, full: bool) -> Workload:
    """Float32, zstd, 256-pixel tiles, windows of 128."""
    edge = 8192 if full else 4096
    paths = _images(
        folder / f"w5_{edge}",
        "dem",
        1,
        lambda k: scene(np.random.default_rng(k), edge, edge, 1, "float32")[..., 0],
        compression="zstd",
        tile=(256, 256),
    )
    rng = np.random.default_rng(5)
    n = 2048
    windows = _random_windows(rng, n, (edge, edge), (128, 128))
    return Workload("W5 zstd", [paths], np.zeros(n, dtype=np.int64), windows, np.arange(n))


def w6(folder: Path, *, full: bool) -> Workload:
    """Small segments: 16 bits, zstd, 64-pixel tiles, windows of 128."""
    images, edge = (16, 4096) if full else (4, 2048)

    def make(k: int) -> NDArray[Any]:
        return scene(np.random.default_rng(k), edge, edge, 1, "uint16")[..., 0]

    paths = _images(folder / f"w6_{edge}", "small", images, make, compression="zstd", tile=(64, 64))
    rng = np.random.default_rng(6)
    n = 2048
    windows = _random_windows(rng, n, (edge, edge), (128, 128))
    return Workload("W6 small", [paths], rng.integers(0, images, n), windows, np.arange(n))


def every(folder: Path, *, full: bool) -> list[Workload]:
    """All of them."""
    return [
        w1(folder, full=full, shuffled=False),
        w1(folder, full=full),
        w1(folder, full=full, kind="gray"),
        w1(folder, full=full, kind="thin"),
        w2(folder, full=full),
        w2(folder, full=full, aligned=True),
        w3(folder, full=full),
        w3(folder, full=full, planar=True),
        w4(folder, full=full),
        w5(folder, full=full),
        w6(folder, full=full),
    ]
