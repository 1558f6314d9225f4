"""Dask arrays of regions and tiles: the same pixels, the same names, small tasks, nothing opened to build them."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import tifffile
from dask.base import tokenize

from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.config import counters
from lazytiles.errors import LazyTilesError, RegionError
from lazytiles.images.region import open_region
from lazytiles.manifests.tiles import open_tiles
from tests.limits import Counting

YEARS = ["2017", "2018"]


def written(folder: Path, regions: int = 3, tiles: int = 20, size: int = 16) -> pd.DataFrame:
    """Images of two years and a manifest of random windows, sorted by region."""
    rng = np.random.default_rng(7)
    rows = []
    for k in range(regions):
        for year in YEARS:
            path = folder / year / f"{k:03}.tif"
            path.parent.mkdir(exist_ok=True)
            image = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
            tifffile.imwrite(path, image, photometric="rgb", compression="deflate", tile=(32, 32))
        for t in range(tiles):
            y, x = rng.integers(0, 64 - size), rng.integers(0, 80 - size)
            box = f"({x}, {y}, {x + size}, {y + size})"
            rows += [(f"{k}-{t}", f"{k:03}", year, k + t, box) for year in YEARS]
    return pd.DataFrame(rows, columns=["tile_id", "region_id", "label_id", "target", "region_coordinates"])


@pytest.fixture
def tiles(tmp_path: Path) -> MultiSourceArray:
    return open_tiles(written(tmp_path), tmp_path, frames=YEARS)


@pytest.fixture(params=["in order", "shuffled", "mixed", "part", "windowed"])
def any_order(request: pytest.FixtureRequest, tmp_path: Path) -> MultiSourceArray:
    table = written(tmp_path)
    if request.param == "mixed":
        table = table.sample(frac=1, random_state=1)
    array = open_tiles(table, tmp_path, frames=YEARS)
    if request.param == "shuffled":
        array.shuffle(3)
    if request.param == "windowed":
        array.shuffle(3, window=1)
    return array.select(slice(7, 51, 2)) if request.param == "part" else array


KEYS = [0, -1, slice(3, 17, 3), [5, 0, 9], (slice(None), 1), (Ellipsis, 0), (4, 0, slice(2, 9), slice(1, 3), 2)]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_what_it_computes_is_what_the_array_gives(any_order: MultiSourceArray, key: object) -> None:
    found = any_order.to_dask()[key].compute(scheduler="synchronous")
    assert found.dtype == any_order.dtype
    assert np.array_equal(found, any_order[key])


@pytest.mark.parametrize("chunks", [None, 7, (7, 1, 5, 16, 3), "auto", "10 kB", {0: 7}, (7, -1, -1, -1, -1)], ids=str)
def test_chunks_may_be_chosen(any_order: MultiSourceArray, chunks: object) -> None:
    array = any_order.to_dask(chunks=chunks)
    assert np.array_equal(array.compute(), any_order[...])
    assert array.shape == any_order.shape
    if chunks == 7:
        assert array.chunks[0][0] == 7


@pytest.mark.parametrize("chunks", [0, -5, (7, 0, 5, 16, 3), (3, 3), "many", ((1, 2), 2, 16, 16, 3)], ids=str)
def test_chunks_that_do_not_fit_are_refused(tiles: MultiSourceArray, chunks: object) -> None:
    with pytest.raises(ValueError, match=r"(?i)chunks|byte unit"):
        tiles.to_dask(chunks=chunks)


def test_a_chunk_holds_tiles_of_one_region(tiles: MultiSourceArray) -> None:
    assert tiles.to_dask().chunks[0] == (20, 20, 20)
    base = tiles.to_dask().name
    tiles.shuffle(1)
    assert base in tiles.to_dask().dask.layers, "shuffled arrays share the chunks underneath"


def test_small_regions_share_a_chunk(tmp_path: Path) -> None:
    array = open_tiles(written(tmp_path, tiles=2), tmp_path, frames=YEARS)
    assert array.to_dask().numblocks[0] == 1
    assert np.array_equal(array.to_dask().compute(), array[...])


def test_no_chunk_is_much_larger_than_16_mib(tmp_path: Path) -> None:
    table = written(tmp_path, tiles=10)
    array = open_tiles(table, tmp_path, frames=YEARS, size=(700, 700))
    each = array.nbytes // len(array)
    assert max(array.to_dask().chunks[0]) * each <= 16 * 2**20


def test_names_are_functions_of_what_is_read(tmp_path: Path) -> None:
    table = written(tmp_path)
    first, second = (open_tiles(table, tmp_path, frames=YEARS) for _ in range(2))
    assert dict(first.to_dask().dask).keys() == dict(second.to_dask().dask).keys()
    assert tokenize(first) == tokenize(second) == tokenize(pickle.loads(pickle.dumps(first)))
    assert tokenize(first) != tokenize(first.copy().shuffle(1)) != tokenize(first.copy().shuffle(2))
    assert first.to_dask().name != open_tiles(table, tmp_path, frames=YEARS, bands=[0]).to_dask().name
    assert first.to_dask().name != first.select(slice(1, None)).to_dask().name
    before, name = tokenize(first), first.to_dask().name
    path = tmp_path / "2018" / "001.tif"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    third = open_tiles(table, tmp_path, frames=YEARS)
    assert tokenize(third) != before
    assert third.to_dask().name != name


def test_a_touched_file_has_another_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((32, 32), np.uint8))
    first = open_region(path).to_dask().name
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert open_region(path).to_dask().name != first


def test_tasks_are_small(tmp_path: Path) -> None:
    array = open_tiles(written(tmp_path, tiles=3000, regions=2), tmp_path, frames=YEARS)
    graph = dict(array.to_dask().dask)
    assert len(graph) > 2
    assert max(len(pickle.dumps((key, task))) for key, task in graph.items()) < 2048
    region = open_region(tmp_path / "2017" / "000.tif").to_dask(chunks=(32, 32, 3))
    assert max(len(pickle.dumps(item)) for item in dict(region.dask).items()) < 2048
    assert np.array_equal(array.to_dask()[2990:3010].compute(), array[2990:3010])


def test_building_opens_nothing(tmp_path: Path) -> None:
    table = written(tmp_path)
    array = open_tiles(table, tmp_path, frames=YEARS)
    before = counters()["files_opened"], counters()["bytes_read"]
    array.to_dask()
    array.copy().shuffle(1).to_dask()
    assert (counters()["files_opened"], counters()["bytes_read"]) == before


def test_a_graph_of_ten_thousand_regions_asks_once_for_each_and_opens_none(tmp_path: Path, monkeypatch: Any) -> None:
    tifffile.imwrite(tmp_path / "0.tif", np.zeros((256, 256), np.uint8))
    for k in range(1, 10_000):
        os.link(tmp_path / "0.tif", tmp_path / f"{k}.tif")
    region = np.repeat(np.arange(10_000), 10)
    y, x = np.random.default_rng(0).integers(0, 192, (2, len(region)))
    table = pd.DataFrame({"tile_id": np.arange(len(region)).astype(str), "region_id": region.astype(str)})
    table = table.assign(xmin=x, ymin=y, xmax=x + 64, ymax=y + 64)
    array = open_tiles(table, tmp_path)
    asked: list[str] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: (asked.append(str(path)), stat(path, **options))[1])
    with Counting() as counted:
        made = array.to_dask()
    assert counted.files == 0
    assert set(Counter(path for path in asked if path.startswith(str(tmp_path))).values()) == {1}
    assert made.numblocks[0] == 10_000


def test_a_region_is_cut_along_its_segments(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (4096, 2048, 2), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(256, 256), compression="zlib", planarconfig="contig")
    region = open_region(tmp_path / "a.tif")
    array = region.to_dask()
    assert all(size % 256 == 0 for axis in array.chunks[:2] for size in axis)
    assert array.numblocks == (2, 1, 1)
    assert np.array_equal(array[100:300, 7].compute(), image[100:300, 7])
    assert (array.max(axis=(0, 1)).compute() == image.max(axis=(0, 1))).all()


@pytest.mark.parametrize("options", [{"bands": [2, 0]}, {"gray": True}, {"page": "all"}], ids=str)
def test_views_of_regions_are_kept(tmp_path: Path, options: dict[str, object]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 40, 50, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", rowsperstrip=8)
    region = open_region(tmp_path / "a.tif", **options)
    assert np.array_equal(region.to_dask().compute(), region[...])
    assert np.array_equal(region.to_dask(chunks=10).compute(), region[...])
    assert region.to_dask().name == open_region(tmp_path / "a.tif", **options).to_dask().name


@pytest.mark.leaks("zarr keeps its event loop for the life of the process")
def test_dask_works_on_it(tiles: MultiSourceArray, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    whole, array = tiles[...], tiles.to_dask()
    assert array.map_blocks(lambda block: block // 2, dtype=np.uint8).compute().sum() == (whole // 2).sum()
    assert np.array_equal(array.rechunk({0: 7, 2: 5}).compute(), whole)
    assert array.astype(np.int64).sum().compute() == whole.sum()
    assert np.allclose(array.mean(axis=(0, 2, 3)).compute(), whole.mean(axis=(0, 2, 3)))
    da.to_zarr(array, str(tmp_path / "out.zarr"))
    assert np.array_equal(da.from_zarr(str(tmp_path / "out.zarr")).compute(), whole)
    assert np.array_equal(da.from_array(tiles).compute(), whole)
    region = open_region(tmp_path / "2017" / "000.tif")
    assert np.array_equal(da.from_array(region, chunks=20)[5].compute(), region[5])
    assert isinstance(array._meta, np.ndarray)


def test_arrays_in_memory_join_in(tiles: MultiSourceArray) -> None:
    both = MultiSourceArray([np.zeros((5, 4)), np.arange(12.0).reshape(3, 4)])
    assert np.array_equal(both.to_dask().compute(), both[...])
    assert np.array_equal(both.shuffle(2).to_dask().compute(), both[...])
    twice = MultiSourceArray([tiles, tiles.copy().shuffle(1)])
    assert np.array_equal(twice.to_dask().compute(), twice[...])
    none = tiles.select([])
    assert none.to_dask().compute().shape == (0, *tiles.shape[1:])


def test_padded_resampled_and_missing_tiles(tmp_path: Path) -> None:
    table = written(tmp_path)
    table.loc[3, "region_coordinates"] = table.loc[2, "region_coordinates"] = "(-5, -3, 20, 30)"
    os.remove(tmp_path / "2017" / "001.tif")
    array = open_tiles(table, tmp_path, frames=YEARS, pad="reflect", size=(12, 10), missing="fill")
    assert np.array_equal(array.to_dask().compute(), array[...])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    array = open_tiles(written(tmp_path), tmp_path, frames=YEARS)
    made = array.to_dask()
    data = bytearray((tmp_path / "2018" / "001.tif").read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    stamp = (tmp_path / "2018" / "001.tif").stat()
    (tmp_path / "2018" / "001.tif").write_bytes(data)
    with pytest.raises(RegionError, match=r"001\.tif was replaced"):
        made.compute()
    os.utime(tmp_path / "2018" / "001.tif", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(LazyTilesError, match=r"tile 1-\d+ .*001\.tif"):
        made.compute()
    assert made[:20].compute().shape == (20, *array.shape[1:])


def test_no_warning_and_no_file_under_any_scheduler(tiles: MultiSourceArray) -> None:
    whole = tiles[...]
    for scheduler in ("threads", "synchronous"):
        with dask.config.set(scheduler=scheduler):
            assert np.array_equal(tiles.to_dask().compute(), whole)


def test_masks_come_along_and_must_fit(tmp_path: Path) -> None:
    table = written(tmp_path)
    table = table[table.label_id == YEARS[0]]
    for k in range(3):
        tifffile.imwrite(tmp_path / f"{k:03}_mask.tif", np.full((64 - k // 2, 80), k, np.uint8))
    array = open_tiles(table, tmp_path, masks="{region_id}_mask.tif")
    for lazy in (array, array.labels):
        assert np.array_equal(lazy.to_dask()[:40].compute(), lazy[:40])
        with pytest.raises(LazyTilesError, match=r"tile 2-\d+.* an image and its mask are cut by one box"):
            lazy.to_dask().compute()
