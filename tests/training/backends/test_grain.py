"""A `MultiSourceArray` as the random-access source of Grain's pipelines."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tifffile

import lazytiles as lt

grain = pytest.importorskip("grain")

N = 12


@pytest.fixture
def tiles(tmp_path) -> lt.MultiSourceArray:
    rng = np.random.default_rng(4)
    rows = []
    for region in range(2):
        image = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"r{region}.tif", image, compression="lzw", rowsperstrip=8)
        rows += [(f"{region}-{k}", f"r{region}", f"({k * 8}, {k}, {k * 8 + 16}, {k + 16})") for k in range(N // 2)]
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "region_coordinates"])
    return lt.open_tiles(table, tmp_path, target=None).shuffle(3)


def test_it_is_a_random_access_source(tiles):
    assert isinstance(tiles, grain.sources.RandomAccessDataSource)
    batches = list(grain.MapDataset.source(tiles).batch(5))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate(batches), tiles[:])


def test_a_shuffling_pipeline_reads_each_tile_once_on_several_threads(tiles):
    pipeline = grain.MapDataset.source(tiles).seed(1).shuffle()
    read = list(pipeline.to_iter_dataset(grain.ReadOptions(num_threads=4)))
    assert sorted(tile.tobytes() for tile in read) == sorted(tile.tobytes() for tile in tiles)


def test_a_loader_reads_what_its_sampler_asks_for(tiles):
    sampler = grain.samplers.IndexSampler(
        N, shuffle=False, num_epochs=1, shard_options=grain.sharding.NoSharding(), seed=0
    )
    loader = grain.DataLoader(data_source=tiles, sampler=sampler, operations=[grain.transforms.Batch(4)])
    np.testing.assert_array_equal(np.concatenate(list(loader)), tiles[:])
