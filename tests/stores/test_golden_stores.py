"""Stores that earlier versions have written, made by `tests/golden/make_stores.py`, are read for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import lazytiles as lt

STORES = Path(__file__).parents[1] / "golden" / "stores"
VERSIONS = sorted(path.name for path in STORES.iterdir())
LIBRARY = {"npy": "numpy", "h5": "h5py", "zarr": "zarr", "b2nd": "blosc2", "tfrecord": "google_crc32c"}

pytestmark = pytest.mark.usefixtures("zarr_threads")


@pytest.fixture(params=VERSIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(STORES / request.param, tmp_path / "stores")
    return tmp_path / "stores"


@pytest.mark.parametrize("ending", LIBRARY)
def test_tiles_come_with_labels_table_and_order(folder, ending):
    pytest.importorskip(LIBRARY[ending])
    path = folder / f"tiles.{ending}"
    tiles = lt.open_store(path)
    assert lt.verify_store(path).rows == 6
    assert tiles.seed == 5
    assert sorted(tiles.order) == list(range(6)) != tiles.order.tolist()
    images = [np.arange(64, dtype=np.uint8).reshape(8, 8, 1) + 64 * k for k in range(2)]
    for tile, label, row in zip(tiles, tiles.labels, tiles.table.itertuples(), strict=True):
        k, i = int(row.region_id[1]), int(row.tile_id[2])
        assert label == row.target == 2 * k + i
        assert np.array_equal(tile, images[k][row.ymin : row.ymax, row.xmin : row.xmax])
    again = lt.export(tiles, path, overwrite=True)
    assert len(again) == 6


def test_regions_of_tiles_are_known(folder):
    found = [scan["y_pred"].shape for scan in lt.predict(lambda x: x, lt.open_store(folder / "tiles.npy"), fill=0)]
    assert found == [(8, 8, 1)] * 2 or (folder / "masks.labels.npy").exists()  # the oldest does not say where tiles lie


def test_mask_labels_are_found_and_replaced(folder):
    images = lt.open_store(folder / "masks.npy")
    assert np.array_equal(images.labels[:], np.arange(20, dtype=np.int16).reshape(5, 2, 2))
    assert np.array_equal(images[:], np.arange(60, dtype=np.float32).reshape(5, 2, 2, 3))
    assert lt.verify_store(folder / "masks.npy").chunks == 3
    kept = images.persist()
    again = lt.export(kept, folder / "masks.npy", overwrite=True)
    assert np.array_equal(again.labels[:], kept.labels[:])


def test_patches_of_a_class_are_found(folder):
    pytest.importorskip("h5py")
    patches = lt.open_store(folder / "class_1.h5")
    assert patches.shape == (3, 3, 3)
    assert patches.labels is None
    assert sorted(patches[:, 1, 1].tolist()) == [0, 5, 10]
