"""The two yearly LCMAP rasters of the corpus, from tiles to a trained model, against dense arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray

import lazytiles as lt

YEARS = (2019, 2020)
SIDE, TILE = 512, 64


@pytest.fixture(scope="module")
def rasters(corpus_dir: Path) -> NDArray[np.uint8]:
    folder = corpus_dir / "files" / "fsspec+kerchunk" / "tests"
    paths = [folder / f"lcmap_tiny_cog_{year}.tif" for year in YEARS]
    if not all(path.exists() for path in paths):
        pytest.skip("the LCMAP rasters are not in the corpus")
    return np.stack([tifffile.imread(path, key=0) for path in paths])


@pytest.fixture(scope="module")
def whole(corpus_dir: Path, rasters: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rasters where a manifest finds them, as one region of two years."""
    root = tmp_path_factory.mktemp("whole")
    for year in YEARS:
        (root / str(year)).mkdir()
        source = corpus_dir / "files" / "fsspec+kerchunk" / "tests" / f"lcmap_tiny_cog_{year}.tif"
        (root / str(year) / "lcmap.tif").symlink_to(source)
    return root


def grid(regions: dict[str, tuple[int, int]], rasters: NDArray[np.uint8], side: int) -> pd.DataFrame:
    """One row per tile and year, the target being the share of class 4 in the last year."""
    rows = []
    for region, (top, left) in regions.items():
        for y in range(0, side, TILE):
            for x in range(0, side, TILE):
                last = rasters[-1, top + y : top + y + TILE, left + x : left + x + TILE]
                box = f"({x}, {y}, {x + TILE}, {y + TILE})"
                rows += [(f"{region}-{y}-{x}", region, year, (last == 4).mean(), box) for year in YEARS]
    return pd.DataFrame(rows, columns=["tile_id", "region_id", "label_id", "target", "region_coordinates"])


def dense(rasters: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All tiles of the whole rasters, row by row: (N, T, H, W, 1)."""
    years, height, width = rasters.shape
    blocks = rasters.reshape(years, height // TILE, TILE, width // TILE, TILE).transpose(1, 3, 0, 2, 4)
    return blocks.reshape(-1, years, TILE, TILE, 1)


def test_every_tile_is_the_crop_of_the_whole_image(whole: Path, rasters: NDArray[np.uint8]) -> None:
    tiles = lt.open_tiles(grid({"lcmap": (0, 0)}, rasters, 2048), whole, frames=YEARS)
    truth = dense(rasters)
    assert tiles.shape == truth.shape
    for i in range(len(tiles)):
        np.testing.assert_array_equal(tiles[i], truth[i])
    np.testing.assert_array_equal(tiles[::-3, -1, 5:9], truth[::-3, -1, 5:9])


@pytest.mark.parametrize("seed", [0, 1, 1234])
def test_labels_and_table_follow_every_shuffle(whole: Path, rasters: NDArray[np.uint8], seed: int) -> None:
    tiles = lt.open_tiles(grid({"lcmap": (0, 0)}, rasters, 2048), whole, frames=YEARS)
    names = tiles.table.tile_id.to_numpy()
    truth = dense(rasters)
    tiles.shuffle(seed)
    assert sorted(tiles.order) == list(range(1024))
    np.testing.assert_array_equal(tiles.take(np.arange(1024)), truth[tiles.order])
    np.testing.assert_allclose(tiles.labels, (truth[tiles.order, -1] == 4).mean((1, 2, 3)))
    np.testing.assert_array_equal(tiles.table.tile_id.to_numpy(), names[tiles.order])


def test_one_tile_decodes_only_what_lies_under_it(whole: Path, rasters: NDArray[np.uint8]) -> None:
    tiles = lt.open_tiles(grid({"lcmap": (0, 0)}, rasters, 2048), whole, frames=YEARS)
    lt.clear_cache()
    before = lt.counters()["segments_decoded"]
    _ = tiles[37]
    assert lt.counters()["segments_decoded"] - before == 2


@pytest.fixture(scope="module")
def cut(rasters: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Sixteen regions of 512 pixels, LZW strips, and their manifest."""
    root = tmp_path_factory.mktemp("cut")
    regions = {f"{y // SIDE}{x // SIDE}": (y, x) for y in range(0, 2048, SIDE) for x in range(0, 2048, SIDE)}
    for k, year in enumerate(YEARS):
        (root / str(year)).mkdir()
        for region, (y, x) in regions.items():
            block = rasters[k, y : y + SIDE, x : x + SIDE]
            tifffile.imwrite(root / str(year) / f"{region}.tif", block, compression="lzw", rowsperstrip=32)
    return root, grid(regions, rasters, SIDE)


def test_a_model_learns_tree_cover_and_is_judged_as_on_dense_arrays(cut: tuple[Path, pd.DataFrame]) -> None:
    keras = pytest.importorskip("keras")
    root, manifest = cut
    tiles = lt.open_tiles(manifest, root, frames=YEARS)
    train, test = tiles.split(0.75, by="region_id", seed=3)
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((2, TILE, TILE, 1), dtype="float32"),
            keras.layers.Reshape((2, TILE * TILE)),
            keras.layers.Embedding(256, 4),
            keras.layers.Reshape((2, TILE * TILE, 4)),
            keras.layers.AveragePooling2D((1, TILE * TILE)),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse")
    model.fit(lt.KerasAdapter(train, shuffle=True, seed=3), epochs=12, verbose=0)
    x, y = np.asarray(test), np.asarray(test.labels)
    predicted = model.predict(lt.KerasAdapter(test), verbose=0)
    np.testing.assert_allclose(predicted, model.predict(x, verbose=0), atol=1e-5)
    loss = model.evaluate(lt.KerasAdapter(test), verbose=0)
    assert loss == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    assert 1 - np.mean((predicted[:, 0] - y) ** 2) / np.var(y) >= 0.9
