"""The full chain of random transforms at 128 x 128 x 3, against scikit-image and SciPy called step by step.

    python benchmarks/augment.py [--rounds 41]

All chains do the same work: flip, zoom, shear, rotate, shift, B-spline warp, intensity, crop; bilinear for
the image, nearest for the mask, uint8 in and out; and, apart, the same without warp.  Rounds are interleaved;
medians and ratios are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage
from skimage import transform

from lazytiles.augment import Augment, random_transform

CHAIN: dict[str, Any] = {
    "rotation": (20, 20),
    "shift": ((9.0, 9.0), (-5.5, -5.5)),
    "shear": (7, 7),
    "zoom": (1.1, 1.1),
    "intensity": (5, 5),
    "flip": (0, 1.0),
    "warp": (3.0, 4),
    "crop": (112, 112),
}
SIZE = 128


def field(rng: np.random.Generator) -> np.ndarray:
    """Displacements of a 4 x 4 grid, zoomed to the image by a cubic spline as step-by-step code does."""
    points = rng.normal(0, 3.0, (2, 4, 4))
    return np.stack([ndimage.zoom(p, SIZE / 4, order=3, mode="nearest") for p in points])


def finish(image: np.ndarray, amount: float) -> np.ndarray:
    image = np.clip(np.rint(image + amount), 0, 255).astype(np.uint8)
    return image[8:120, 8:120]


def skimage_steps(
    image: np.ndarray, order: int, amount: float, rng: np.random.Generator, warp: bool = True
) -> np.ndarray:
    options: dict[str, Any] = {"order": order, "mode": "edge", "preserve_range": True}
    image = image[:, ::-1].astype(np.float32)
    to, back = (transform.AffineTransform(translation=(s * 63.5, s * 63.5)) for s in (-1, 1))
    for step in (
        to + transform.AffineTransform(scale=1 / 1.1) + back,
        to + transform.AffineTransform(shear=np.radians(7)) + back,
        to + transform.AffineTransform(rotation=np.radians(20)) + back,
        transform.AffineTransform(translation=(5.5, -9.0)),
    ):
        image = transform.warp(image, step, **options)
    if not warp:
        return finish(image, amount)
    coordinates = np.indices((SIZE, SIZE)) + field(rng)
    planes = [transform.warp(image[..., k], coordinates, **options) for k in range(image.shape[-1])]
    return finish(np.stack(planes, axis=-1), amount)


def scipy_steps(image: np.ndarray, order: int, amount: float, rng: np.random.Generator) -> np.ndarray:
    options: dict[str, Any] = {"order": order, "mode": "nearest"}
    image = image[:, ::-1].astype(np.float32)
    for matrix in (np.diag([1 / 1.1, 1 / 1.1]), np.array([[1.0, 0.0], [-np.tan(np.radians(7)), 1.0]])):
        offset = 63.5 - matrix @ [63.5, 63.5]
        planes = [ndimage.affine_transform(image[..., k], matrix, offset, **options) for k in range(image.shape[-1])]
        image = np.stack(planes, axis=-1)
    image = ndimage.rotate(image, 20, reshape=False, **options)
    image = ndimage.shift(image, (9, -5.5, 0), **options)
    coordinates = np.indices((SIZE, SIZE)) + field(rng)
    planes = [ndimage.map_coordinates(image[..., k], coordinates, **options) for k in range(image.shape[-1])]
    return finish(np.stack(planes, axis=-1), amount)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    mask = rng.integers(0, 4, (SIZE, SIZE, 1), dtype=np.uint8)
    images, masks = np.stack([image] * 32), np.stack([mask] * 32)
    augment = Augment(**CHAIN)
    jobs: dict[str, tuple[Callable[[], Any], int]] = {
        "image: lazytiles": (lambda: random_transform(image, **CHAIN, rng=rng), 1),
        "image: scikit-image": (lambda: skimage_steps(image, 1, 5, rng), 1),
        "image: scipy": (lambda: scipy_steps(image, 1, 5, rng), 1),
        "with mask: lazytiles": (lambda: random_transform(image, mask, **CHAIN, rng=rng), 1),
        "with mask: scikit-image": (
            lambda: (skimage_steps(image, 1, 5, rng), skimage_steps(mask, 0, 0, rng)),
            1,
        ),
        "with mask: scipy": (lambda: (scipy_steps(image, 1, 5, rng), scipy_steps(mask, 0, 0, rng)), 1),
        "with mask, batch of 32: lazytiles": (lambda: augment((images, masks), rng), 32),
        "image, no warp: lazytiles": (
            lambda: random_transform(image, **{**CHAIN, "warp": None}, rng=rng),
            1,
        ),
        "image, no warp: scikit-image": (lambda: skimage_steps(image, 1, 5, rng, warp=False), 1),
        "flip, quarter turn, whole shift: lazytiles": (
            lambda: random_transform(image, flip=(True, True), rotation=(90, 90), shift=9, rng=rng),
            1,
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (job, n) in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append((time.perf_counter() - start) / n * 1e3)
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, median in medians.items():
        kind, _, who = name.partition(": ")
        ours = medians.get(f"{kind}: lazytiles", median)
        print(
            f"{name:44} {median:8.3f} ms a sample" + (f"   {median / ours:5.1f} x ours" if who != "lazytiles" else "")
        )


if __name__ == "__main__":
    main()
