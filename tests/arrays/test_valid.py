"""Which pixels of tiles hold something, and what is done with those that do not: against rasterio and NumPy."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject

import lazytiles as lt
from lazytiles.reports.statistics import statistics
from tests.arrays.test_grids import NORTH_UP, on_ground, table_of, write

EMPTY = -9999


def holed(shape: tuple[int, ...], dtype: str = "i2", share: float = 0.3) -> np.ndarray:
    """Noise of which a share is nodata."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 3000, shape).astype(dtype)
    image[rng.random(shape) < share] = EMPTY
    return image


@pytest.mark.parametrize("dtype", ["i2", "f4", "i4"])
@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area"])
def test_two_values_stay_two(method, dtype, tmp_path):
    image = np.where(np.random.default_rng(0).random((64, 64, 2)) < 0.5, EMPTY, 1000).astype(dtype)
    write(tmp_path / "r.tif", image, nodata=EMPTY)
    for size in ((24, 24), (48, 48), (100, 100)):
        tiles = lt.open_tiles(table_of([(0, 0, 48, 48), (16, 8, 64, 56)]), tmp_path, size=size, resample=method)
        assert set(np.unique(tiles[:])) <= {EMPTY, 1000}
        assert (tiles.valid_pixels[:] == (tiles[:] != EMPTY).any(axis=-1)).all()


@pytest.mark.parametrize("method", ["bilinear", "area"])
def test_resampled_as_gdal_does(method, tmp_path):
    image = holed((60, 60), "f4")
    path = write(tmp_path / "r.tif", image, nodata=EMPTY)
    tile = lt.open_tiles(table_of([(0, 0, 60, 60)]), tmp_path, size=(30, 30), resample=method)[0, ..., 0]
    wanted = np.full((30, 30), EMPTY, np.float32)
    how = {"bilinear": Resampling.bilinear, "area": Resampling.average}[method]
    with rasterio.open(path) as file:
        reproject(
            rasterio.band(file, 1), wanted, dst_transform=NORTH_UP @ Affine.scale(2), dst_crs=file.crs,
            dst_nodata=EMPTY, resampling=how,
        )  # fmt: skip
    both = (tile != EMPTY) & (wanted != EMPTY)
    assert both.mean() > 0.5
    np.testing.assert_allclose(tile[both], wanted[both], rtol=1e-6)
    assert not ((tile == EMPTY) & (wanted != EMPTY)).any()


def test_valid_pixels_follow_orders_and_selections(tmp_path):
    image = holed((64, 64, 2))
    write(tmp_path / "r.tif", image, nodata=EMPTY)
    table = table_of([(x, y, x + 16, y + 16) for y in range(0, 64, 16) for x in (-8, 8, 24, 56)])
    tiles = lt.open_tiles(table, tmp_path, pad="reflect")
    whole = np.zeros((64, 80), bool)
    whole[:, 8:72] = (image != EMPTY).any(axis=-1)
    wanted = np.stack([whole[y : y + 16, x + 8 : x + 24] for y in range(0, 64, 16) for x in (-8, 8, 24, 56)])
    valid = tiles.valid_pixels
    assert (valid.shape, valid.dtype, valid.labels) == (wanted.shape, bool, None)
    assert (valid[:] == wanted).all()
    assert (valid[3:9, 2, 5:] == wanted[3:9, 2, 5:]).all()
    assert (valid[[1, 2], [3, 4], [5, 6]] == wanted[[1, 2], [3, 4], [5, 6]]).all()
    assert (pickle.loads(pickle.dumps(valid))[:] == wanted).all()
    assert (valid.to_dask().compute() == wanted).all()
    some = tiles.shuffle(3).select(slice(2, 9))
    assert (some.valid_pixels[:] == wanted[tiles.order[2:9]]).all()
    with lt.BatchFlow((tiles, tiles.valid_pixels), 4) as flow:
        assert (np.concatenate([there for _, there in flow]) == wanted[tiles.order]).all()
    assert (tiles.validity("bands")[0][:, 8:] == (tiles[0] != EMPTY)[:, 8:]).all()


@pytest.mark.parametrize("store", [None, "tiles.npy", "tiles.h5"])
def test_written_tiles_and_tiles_of_tiles_know_what_is_valid(store, tmp_path):
    write(tmp_path / "r.tif", holed((64, 64, 2)), nodata=EMPTY)
    table = table_of([(x, y, x + 16, y + 16) for y in range(0, 64, 16) for x in (-8, 8, 24, 40)])
    tiles = lt.open_tiles(table, tmp_path, pad="reflect").shuffle(3)
    kept = tiles.persist(None if store is None else tmp_path / store)
    measured = tiles.statistics()
    assert measured.not_valid.all()
    for again in (kept, pickle.loads(pickle.dumps(kept)), lt.MultiSourceArray([kept]), lt.MultiSourceArray([tiles])):
        assert (again.valid_pixels[:] == tiles.valid_pixels[:]).all()
        assert (again.select([5, 2]).valid_pixels[1, 3:] == tiles.valid_pixels[2, 3:]).all()
        assert (again.statistics().mean == measured.mean).all()
    assert (statistics(lt.DelayedView(tiles)).not_valid == measured.not_valid).all()
    whole = lt.open_tiles(table_of([(0, 0, 16, 16)]), write(tmp_path / "w" / "r.tif", np.ones((64, 64), "u1")).parent)
    assert whole.persist().valid_pixels[:].all()


def test_missing_frames_and_padding_are_invalid(tmp_path):
    write(tmp_path / "2017/r.tif", np.ones((32, 32), np.uint8))
    rows = [table_of([(24, 0, 40, 16)], label_id=year) for year in ("2016", "2017")]
    tiles = lt.open_tiles(
        pd.concat(rows, ignore_index=True), tmp_path, frames=[2016, 2017], missing="fill", pad="constant", fill=9
    )
    assert tiles[0, 0].min() == 9
    assert (tiles[0, 1, :, 8:] == 9).all()
    valid = tiles.valid_pixels[0]
    assert not valid[0].any()
    assert (valid[1] == (np.arange(16) < 8)).all()
    with lt.BatchFlow(tiles.valid_pixels, 1) as flow:
        assert (next(iter(flow))[0] == valid).all()


def test_statistics_of_a_half_empty_image(tmp_path):
    image = holed((64, 64, 3), share=0.5)
    write(tmp_path / "r.tif", image, nodata=EMPTY)
    table = table_of([(x, y, x + 32, y + 32) for y in (0, 32) for x in (0, 32)])
    found = lt.open_tiles(table, tmp_path).statistics()
    bands = [band[band != EMPTY] for band in np.moveaxis(image, -1, 0)]
    np.testing.assert_allclose(found.mean, [band.mean() for band in bands], rtol=1e-12)
    np.testing.assert_allclose(found.std, [band.std() for band in bands], rtol=1e-12)
    assert found.min.tolist() == [band.min() for band in bands]
    assert found.not_valid.tolist() == [image[..., 0].size - band.size for band in bands]
    assert found.not_finite.tolist() == [0, 0, 0]
    padded = lt.open_tiles(table_of([(-32, 0, 32, 64)]), tmp_path, pad="constant").statistics()
    assert padded.count.tolist() == [(image[:, :32, band] != EMPTY).sum() for band in range(3)]


def test_fills(tmp_path):
    write(tmp_path / "r.tif", np.ones((32, 32, 2), np.uint8))
    write(tmp_path / "masks/r.tif", np.ones((32, 32), np.uint8))
    options = {"pad": "constant", "masks": "masks/{region_id}.tif", "fill": [7, 8], "mask_fill": 255}
    tiles = lt.open_tiles(table_of([(-4, 0, 4, 8)]), tmp_path, **options)
    assert tiles[0, 0, 0].tolist() == [7, 8]
    assert tiles[0, :, 3, 1].tolist() == [8] * 8
    assert tiles[0, 0, 4].tolist() == [1, 1]
    assert tiles.labels[0, 0, :, 0].tolist() == [255] * 4 + [1] * 4
    assert lt.open_tiles(table_of([(-4, 0, 4, 8)]), tmp_path, bands=[1], pad="constant", fill=[3])[0, 0, 0] == 3
    with pytest.raises(ValueError, match="one for each of the 2 bands, that uint8 can hold"):
        lt.open_tiles(table_of([(0, 0, 8, 8)]), tmp_path, fill=[1, 2, 3])
    with pytest.raises(lt.RegionError, match=r"r\.tif.*uint8 samples cannot hold fill=-1"):
        lt.open_tiles(table_of([(0, 0, 8, 8)]), tmp_path, fill=-1)


@pytest.mark.parametrize("nodata", [None, 7])
def test_one_fill_stands_for_what_a_file_leaves_out_unless_it_has_nodata(nodata, tmp_path):
    profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 3, "dtype": "uint8", "nodata": nodata}
    profile |= {"tiled": True, "blockxsize": 32, "blockysize": 32, "interleave": "pixel", "sparse_ok": True}
    profile |= {"crs": "EPSG:32633", "transform": NORTH_UP}
    with rasterio.open(tmp_path / "r.tif", "w", **profile) as file:
        file.write(np.full((3, 32, 32), 5, np.uint8), window=((0, 32), (0, 32)))
    tiles = lt.open_tiles(table_of([(0, 0, 64, 64)]), tmp_path, fill=255)
    assert np.unique(tiles[0, :32, :32]).tolist() == [5]
    assert np.unique(tiles[0, 32:]).tolist() == [255 if nodata is None else nodata]


def test_scaled(tmp_path):
    image = holed((32, 32, 2))
    path = write(tmp_path / "r.tif", image, nodata=EMPTY)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.1, 0.5), (3, -1)
    tiles = lt.open_tiles(table_of([(0, 0, 16, 16)]), tmp_path, scaled=True)
    wanted = np.where(image != EMPTY, image * [0.1, 0.5] + [3, -1], np.nan).astype("f4")[:16, :16]
    np.testing.assert_array_equal(tiles[0], wanted)
    small = lt.open_tiles(table_of([(0, 0, 16, 16)]), tmp_path, scaled=True, size=(8, 8))[0]
    assert np.isnan(small).sum() < np.isnan(wanted).sum() / 4
    assert tiles.dtype == np.float32


def test_nodata_where_the_grid_is_another(tmp_path):
    write(tmp_path / "2017/r.tif", np.where(np.arange(32) < 16, EMPTY, 1000).astype("i2") * np.ones((32, 1), "i2"),
          NORTH_UP @ Affine.scale(2), nodata=EMPTY)  # fmt: skip
    write(tmp_path / "2018/r.tif", np.ones((64, 64), np.int16), nodata=EMPTY)
    table = pd.concat([table_of([on_ground(NORTH_UP, 0, 16, 32, 32)], label_id=y) for y in ("2017", "2018")])
    tiles = lt.open_tiles(table, tmp_path, frames=[2017, 2018], coordinates="map")
    assert set(np.unique(tiles[0, 0])) == {EMPTY, 1000}
    assert (tiles.valid_pixels[0, 0] == (tiles[0, 0, ..., 0] != EMPTY)).all()
    assert tiles.valid_pixels[0, 1].all()


def test_masks_and_opacity(tmp_path):
    image, there = np.full((64, 64, 3), 9, np.uint8), np.random.default_rng(0).random((64, 64)) < 0.5
    path = write(tmp_path / "masked.tif", image)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(there)
    opaque = np.concatenate([image, (255 * there).astype(np.uint8)[..., None]], axis=-1)
    write(tmp_path / "opaque.tif", opaque, photometric="RGB", alpha="YES")
    for name in ("masked", "opaque"):
        table = table_of([(8, 8, 40, 40)]).assign(region_id=name)
        tiles = lt.open_tiles(table, tmp_path, bands=[2, 0])
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            assert (tiles.valid_pixels[0] == (file.dataset_mask()[8:40, 8:40] > 0)).all()
        small = lt.open_tiles(table, tmp_path, bands=[2, 0], size=(8, 8))
        assert set(np.unique(small[:])) <= {0, 9}
        assert small.valid_pixels[:].all()


def test_check_says_where_files_differ(tmp_path):
    for name, nodata in (("a", EMPTY), ("b", EMPTY), ("c", 0)):
        write(tmp_path / f"{name}.tif", holed((16, 16)), nodata=nodata)
    with rasterio.open(tmp_path / "b.tif", "r+") as file:
        file.scales = (0.1,)
    table = table_of([(0, 0, 8, 8)] * 3).assign(region_id=["a", "b", "c"])
    report = lt.check(table, tmp_path)
    assert report.warnings.counts == {"mixed nodata": 1, "mixed scale": 1}
    assert "c.tif: nodata 0, others have -9999" in str(report)
    assert lt.check(table, tmp_path, scaled=True).warnings.counts == {"mixed nodata": 1}
