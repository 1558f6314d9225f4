"""The demo: a small land-cover-like data set made from a seed, a model trained on it, and a picture."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray
from scipy import fft

from lazytiles.arrays import MultiSourceArray
from lazytiles.errors import ManifestError, require
from lazytiles.manifests import open_tiles, read_manifest
from lazytiles.reports import plot_tiles

YEARS = (2016, 2017, 2018)
SIZE = (64, 64)
# Red, green and blue of what the demo's land is covered with.
TREES, FIELDS, WATER, TOWNS = (38, 84, 42), (168, 150, 84), (30, 58, 104), (150, 138, 134)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a demo run measured on the regions that it held apart."""

    r2: float
    r2_of_mean: float
    tiles_per_s: float
    picture: Path

    def __str__(self) -> str:
        return (
            f"held-apart regions: R² {self.r2:.3f} (predicting the mean: {self.r2_of_mean:.3f})\n"
            f"{self.tiles_per_s:,.0f} tiles/s through training\n"
            f"picture: {self.picture}"
        )


def smooth(rng: np.random.Generator, size: int, scale: float) -> NDArray[np.float64]:
    """A random field, shape (size, size), spread evenly over 0..1, with features of about `scale` pixels."""
    spectrum = fft.rfft2(rng.standard_normal((size, size)))
    y, x = np.meshgrid(fft.fftfreq(size), fft.rfftfreq(size), indexing="ij")
    field = fft.irfft2(spectrum / (1 + (scale * 4 * np.hypot(x, y)) ** 3), s=(size, size))
    ranks = np.empty(size * size)
    ranks[np.argsort(field, axis=None, kind="stable")] = np.linspace(0, 1, size * size)
    return ranks.reshape(size, size)


def make_data(folder: Path | str, *, seed: int = 0, regions: int = 20, size: int = 512, tile: int = 64) -> None:
    """Write a land-cover-like data set: the same files for the same arguments.

    They are ``Images/<year>/<region_id>.tif`` (LZW, RGB), a frame of each region for every year, and ``tiles.csv``.
    Regions and tiles, which stand side by side, are squares.

    >>> make_data("made", regions=2, size=64, tile=32)
    >>> table = read_manifest("made/tiles.csv")
    >>> len(table), float(table.target.min()) >= 0, float(table.target.max()) <= 1
    (24, True, True)
    """
    folder = Path(folder)
    rows = []
    for k in range(regions):
        region = str(1225 + k)
        rng = np.random.default_rng([seed, k])
        forest, wet, built, loss = (smooth(rng, size, scale) for scale in (48, 64, 24, 32))
        ground = np.where((built > 0.9)[..., None], TOWNS, FIELDS)
        ground = np.where((wet > 0.88)[..., None], WATER, ground)
        for lost, year in enumerate(YEARS):
            trees = (forest > 0.5) & (wet <= 0.88) & (loss > 0.12 * lost)
            colour = np.where(trees[..., None], TREES, ground) * rng.uniform(0.85, 1.15)
            image = np.clip(colour + rng.normal(0, 9, colour.shape), 0, 255).astype(np.uint8)
            path = folder / "Images" / str(year) / f"{region}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, image, photometric="rgb", compression="lzw", rowsperstrip=16)
        for y in range(0, size - tile + 1, tile):
            for x in range(0, size - tile + 1, tile):
                box, cover = f"({x}, {y}, {x + tile}, {y + tile})", trees[y : y + tile, x : x + tile].mean()
                name = f"{region}-{y:04}-{x:04}"
                rows += [(name, region, year, f"{cover:.6f}", box) for year in YEARS]
    columns = ["tile_id", "region_id", "label_id", "target", "region_coordinates"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "tiles.csv", index=False)


def open_data(images: Path | str, manifest: Path | str) -> MultiSourceArray:
    """The tiles of a manifest with all its frames, of one size.

    Windows of unequal size are resampled to 64 x 64 pixels. Where tiles have rows of several labels, these are the
    frames, in order.
    """
    table = read_manifest(manifest, target="target")
    is_timed = "label_id" in table and bool(table["tile_id"].duplicated().any())
    frames = sorted(table["label_id"].unique().tolist()) if is_timed else None
    boxes = {"xmin", "ymin", "xmax", "ymax"} <= set(table.columns)
    shapes = set(zip(table.ymax - table.ymin, table.xmax - table.xmin, strict=True)) if boxes else set()
    return open_tiles(table, images, frames=frames, size=None if len(shapes) == 1 else SIZE)


def hold_apart(tiles: MultiSourceArray, *, seed: int) -> tuple[MultiSourceArray, MultiSourceArray]:
    """Four fifths of the regions to train on, and the others."""
    if tiles.table is None or tiles.table["region_id"].nunique() < 2:
        raise ManifestError("the demo holds regions apart: the manifest needs two regions or more")
    return tiles.split(0.8, by="region_id", seed=seed)


def make_model(shape: tuple[int, ...], labels: NDArray[Any]) -> Any:
    """A small compiled Keras model from tiles (T, H, W, C) or (H, W, C) to one number.

    Its output is scaled to the mean and standard deviation of `labels`.
    """
    keras = require("keras", extra="keras")
    layers = keras.layers
    inputs = keras.Input(shape, dtype="float32")
    x = inputs
    if len(shape) == 4:
        frames, height, width, bands = shape
        x = layers.Reshape((height, width, frames * bands))(layers.Permute((2, 3, 1, 4))(x))
    for filters in (16, 32, 32):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Dense(32, activation="relu")(layers.GlobalAveragePooling2D()(x))
    scale, offset = float(np.std(labels)) or 1.0, float(np.mean(labels))
    model = keras.Model(inputs, layers.Rescaling(scale, offset)(layers.Dense(1)(x)))
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="mse")
    return model


def r_squared(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """One minus the squared error over the squared spread of the truth; NaN where the truth has no spread.

    >>> truth = np.array([0.0, 1.0])
    >>> r_squared(truth, truth), r_squared(truth, np.full(2, 0.5))
    (1.0, 0.0)
    """
    truth, predicted = truth.astype(np.float64).ravel(), predicted.astype(np.float64).ravel()
    spread = float(np.sum((truth - truth.mean()) ** 2))
    return 1 - float(np.sum((truth - predicted) ** 2)) / spread if spread else float("nan")


def draw(tiles: MultiSourceArray, predicted: NDArray[Any], path: Path, *, count: int = 8) -> None:
    """Write a PNG: some tiles with their targets and predictions, and all predictions against the targets."""
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=(12, 7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    truth = np.asarray(tiles.labels, dtype=np.float64).ravel()
    picks = np.argsort(truth, kind="stable")[np.linspace(0, len(truth) - 1, count).astype(int)]
    said = [f"target {truth[pick]:.2f}, predicted {predicted[pick]:.2f}" for pick in picks]
    plot_tiles(tiles.select(picks), count, labels=said, columns=2, ax=left)
    left.set_title("tiles of held-apart regions, frames from first to last")
    right.scatter(truth, predicted, s=8, alpha=0.5)
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    right.plot(ends, ends, color="black", linewidth=0.8)
    right.set(xlabel="target", ylabel="predicted", title=f"R² {r_squared(truth, predicted):.3f}", aspect="equal")
    figure.savefig(path, dpi=110)


def train(
    tiles: MultiSourceArray, *, picture: Path, seed: int = 0, epochs: int = 8, say: Callable[[str], object] = print
) -> Outcome:
    """Train on four fifths of the regions, evaluate on the others, draw what came out."""
    keras = require("keras", extra="keras")
    adapter = require("lazytiles.training.keras", extra="keras").KerasAdapter
    keras.utils.set_random_seed(seed)
    known, apart = hold_apart(tiles, seed=seed)
    say(f"training on {len(known)} tiles, {len(apart)} tiles of other regions held apart")
    model = make_model(tiles.shape[1:], known.labels)
    batches = adapter(known, batch_size=32, shuffle=True, seed=seed, normalize=True)
    start = time.perf_counter()
    model.fit(batches, epochs=epochs, verbose=1 if sys.stdout.isatty() else 2)
    seconds = time.perf_counter() - start
    predicted = model.predict(adapter(apart, normalize=True), verbose=0).ravel()
    draw(apart, predicted, picture)
    mean = np.full(len(apart), np.mean(known.labels))
    speed = epochs * len(known) / seconds
    return Outcome(r_squared(apart.labels, predicted), r_squared(apart.labels, mean), speed, picture)


def run(
    *,
    directory: Path | str | None = None,
    images: Path | str | None = None,
    manifest: Path | str | None = None,
    seed: int = 0,
    epochs: int = 8,
    say: Callable[[str], object] = print,
) -> Outcome:
    """The whole demo: make data (or take the user's), open, train, evaluate, write ``demo.png``.

    Without a directory the data go to a temporary folder that is removed at the end, and the picture to the current
    one. The seed is that of the data, the split, the order of batches and the model's first weights; `say` is given
    each line that is worth reading.
    """
    if (images is None) != (manifest is None):
        raise ManifestError("the demo on files of your own needs both --images FOLDER and --manifest CSV")
    # TensorFlow otherwise greets with a page of notes about the machine.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    require("keras", extra="keras")
    require("matplotlib", extra="plot")
    target = Path(directory) if directory else Path.cwd()
    target.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.TemporaryDirectory(prefix="lazytiles-demo-") if directory is None else nullcontext(target)
    with temporary as folder:
        if images is None or manifest is None:
            images, manifest = Path(folder) / "Images", Path(folder) / "tiles.csv"
            make_data(folder, seed=seed)
            say(f"made {manifest} and the images under {images}")
        tiles = open_data(images, manifest)
        say(repr(tiles))
        outcome = train(tiles, picture=target / "demo.png", seed=seed, epochs=epochs, say=say)
    say(str(outcome))
    return outcome
