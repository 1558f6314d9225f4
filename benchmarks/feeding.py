"""Epochs of `fit` fed by `KerasAdapter`, against arrays in memory and a `PyDataset` written by hand, on TensorFlow.

    python -m benchmarks.feeding [--repeats 5] [--regions 10] [--out feeding.json]

Two models: one whose step takes longer than reading its batch, and one that costs next to nothing, whose
epoch is compared with reading the same batches by themselves: once with all of a shuffled epoch read ahead,
so that each segment is decoded once and reading is about as cheap as Keras' own loop, and once with a
twentieth of it, as where an epoch is many times as large as the memory. Nothing is kept decoded besides.

An epoch lasts from its begin to its end, in a `fit` of several; the first, of which a part is read before it
begins, does not count. A `PyDataset` of slices of arrays shows what Keras' own path costs. Rounds are
interleaved; the pixels of a batch are checked first; medians are printed. The hand-written way opens and
decodes the whole image for each tile, and is timed on a few batches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tifffile

import lazytiles as lt

EDGE, TILE, BATCH = 1024, 128, 32
EPOCHS = 4


class Ready(keras.utils.PyDataset):
    """Batches that are there already: slices of arrays."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__()
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels) // BATCH

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return self.images[rows], self.labels[rows]


class ByHand(keras.utils.PyDataset):
    """What is usually written: for each tile the whole image is read, then cut."""

    def __init__(self, tiles: lt.MultiSourceArray, paths: list[Path], batches: int) -> None:
        super().__init__()
        self.paths = [paths[k] for k in tiles.region_ids]
        self.windows, self.labels, self.batches = tiles.sample_windows, tiles.labels, batches

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = range(index * BATCH, (index + 1) * BATCH)
        cut = [tifffile.imread(self.paths[k])[y0:y1, x0:x1] for k in rows for y0, x0, y1, x1 in [self.windows[k]]]
        return np.stack(cut), self.labels[rows.start : rows.stop]


def make(folder: Path, regions: int) -> tuple[lt.MultiSourceArray, list[Path]]:
    """Regions of LZW strips with smooth noise, divided into tiles."""
    rng = np.random.default_rng(0)
    paths, rows = [], []
    for region in range(regions):
        coarse = np.repeat(np.repeat(rng.normal(size=(EDGE // 16, EDGE // 16, 3)), 16, 0), 16, 1)
        pixels = np.clip(128 + 40 * coarse + rng.normal(0, 2, (EDGE, EDGE, 3)), 0, 255).astype(np.uint8)
        paths.append(folder / f"{region:03}.tif")
        tifffile.imwrite(paths[-1], pixels, compression="lzw", rowsperstrip=21, photometric="rgb")
        for y in range(0, EDGE, TILE):
            for x in range(0, EDGE, TILE):
                mean = float(pixels[y : y + TILE, x : x + TILE].mean()) / 255
                rows.append(f"{region}-{y}-{x},{region:03},{x},{y},{x + TILE},{y + TILE},{mean:.6f}")
    table = folder / "tiles.csv"
    table.write_text("tile_id,region_id,xmin,ymin,xmax,ymax,target\n" + "\n".join(rows) + "\n")
    return lt.open_tiles(table, folder), paths


def costly() -> keras.Model:
    """A small network of convolutions: on a CPU its step takes some ten times as long as decoding its batch."""
    layers: list[Any] = [keras.Input((TILE, TILE, 3), dtype="float32"), keras.layers.Rescaling(1 / 255)]
    layers += [keras.layers.Conv2D(n, 3, strides=s, activation="relu") for n, s in ((32, 1), (32, 2), (64, 2))]
    return compiled([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)])


def free() -> keras.Model:
    """One pixel of each tile, and a line through it; eight steps for each round of Keras' own loop."""
    first = keras.layers.Lambda(lambda x: keras.ops.cast(x[:, 0, 0, :], "float32") / 255.0, output_shape=(3,))
    layers: list[Any] = [keras.Input((TILE, TILE, 3), dtype="uint8"), first, keras.layers.Dense(1)]
    return compiled(layers, steps_per_execution=8)


def compiled(layers: list[Any], **options: Any) -> keras.Model:
    model = keras.Sequential(layers)
    model.compile("sgd", "mse", **options)
    return model


class Clock(keras.callbacks.Callback):
    """Seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.begin)


def epoch_of(model: keras.Model, *data: Any, **options: Any) -> float:
    """Seconds of an epoch of `fit`: the median of those after the first."""
    clock = Clock()
    model.fit(*data, verbose=0, epochs=EPOCHS, callbacks=[clock], **options)
    return statistics.median(clock.seconds[1:])


def reading_of(adapter: lt.KerasAdapter, tiles: lt.MultiSourceArray, budget: int) -> float:
    """Seconds of the reader by itself: the same blocks of the same batches, dropped as they come."""
    step = max(1, budget // (BATCH * TILE * TILE * 3))
    begin = time.perf_counter()
    rows = [adapter.sample_ids(0, k) for k in range(len(adapter))]
    for start in range(0, len(rows), step):
        tiles.take_batches(rows[start : start + step], lambda number, array: None)
    return time.perf_counter() - begin


def compare(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median seconds of each way, rounds interleaved, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for name, work in [*ways.items()] * (repeats + 1):
        taken[name].append(work())
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def run(folder: Path, regions: int, repeats: int) -> dict[str, Any]:
    """Seconds and ratios of all that is compared."""
    tiles, paths = make(folder, regions)
    lt.configure(cache_bytes=0)
    dense, labels = np.asarray(tiles[:]), tiles.labels
    check(ByHand(tiles, paths, 2)[1], (dense, labels))
    check(lt.KerasAdapter(tiles, batch_size=BATCH)[1], (dense, labels))
    result: dict[str, Any] = {"tiles": len(tiles), "bytes": dense.nbytes}
    few = len(tiles) // 8 // BATCH * BATCH
    kinds = (("costly", costly(), few, 1), ("free, all ahead", free(), len(tiles), 1), ("free", free(), len(tiles), 20))
    for kind, model, n, part in kinds:
        budget = dense.nbytes // part
        adapter = lt.KerasAdapter(tiles.select(slice(n)), batch_size=BATCH, shuffle=True, readahead_bytes=budget)
        ways: dict[str, Callable[[], float]] = {
            "lazytiles": partial(epoch_of, model, adapter),
            "in memory": partial(epoch_of, model, dense[:n], labels[:n], batch_size=BATCH, shuffle=False),
            "PyDataset of slices": partial(epoch_of, model, Ready(dense[:n], labels[:n])),
            "reading alone": partial(reading_of, adapter, tiles, budget),
        }
        seconds = compare(ways, repeats)
        if kind == "costly":
            seconds["by hand"] = epoch_of(model, ByHand(tiles, paths, 2)) / 2 * (n / BATCH)
        result[kind] = seconds
    result["epoch / in-memory epoch (costly)"] = ratio(result["costly"], "lazytiles", "in memory")
    result["by hand / epoch (costly)"] = ratio(result["costly"], "by hand", "lazytiles")
    for kind in ("free, all ahead", "free"):
        result[f"reading alone / epoch ({kind})"] = ratio(result[kind], "reading alone", "lazytiles")
    return result


def check(batch: tuple[np.ndarray, np.ndarray], dense: tuple[np.ndarray, np.ndarray]) -> None:
    """The second batch has the right pixels and labels."""
    for found, wanted in zip(batch, dense, strict=True):
        assert np.array_equal(found, wanted[BATCH : 2 * BATCH]), "pixels or labels differ"


def ratio(seconds: dict[str, float], one: str, other: str) -> float:
    return round(seconds[one] / seconds[other], 3)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feeding")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--regions", type=int, default=48)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), options.regions, options.repeats)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
