"""`to_torch` with a real `DataLoader`, in this process and in worker processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch.utils.data import DataLoader

import lazytiles as lt
from lazytiles.training.torch import TorchTiles, to_torch

N = 24
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tiles(tmp_path) -> lt.MultiSourceArray:
    rng = np.random.default_rng(4)
    rows = []
    for region in range(3):
        image = rng.integers(0, 255, (96, 80, 3), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"r{region}.tif", image, compression="lzw", rowsperstrip=8)
        for k in range(8):
            x, y = rng.integers(0, 48, 2)
            rows.append(f"t{region}-{k},r{region},{x},{y},{x + 32},{y + 24},{k / 8}")
    table = tmp_path / "tiles.csv"
    table.write_text("tile_id,region_id,xmin,ymin,xmax,ymax,target\n" + "\n".join(rows))
    return lt.open_tiles(table, tmp_path)


@pytest.mark.parametrize("fast", [False, True])
def test_a_loader_gives_the_samples_it_asks_for(tiles, fast):
    tiles.shuffle(1)
    dataset = to_torch(tiles)
    loader = DataLoader(dataset, batch_size=5, collate_fn=dataset.collate if fast else None)
    found = list(loader)
    np.testing.assert_array_equal(torch.cat([x for x, _ in found]), tiles[:])
    np.testing.assert_array_equal(torch.cat([y for _, y in found]), tiles.labels)
    assert [len(x) for x, _ in found] == [5, 5, 5, 5, 4]
    assert found[0][0].dtype == torch.uint8


def test_a_batch_decodes_each_segment_once(tiles):
    dataset = to_torch(tiles)
    lt.clear_cache()
    before = lt.counters()["segments_decoded"]
    (batch,) = DataLoader(dataset, batch_size=N, collate_fn=dataset.collate)
    assert lt.counters()["segments_decoded"] - before == tiles.plan(np.arange(N)).segments
    assert batch[0].shape == (N, 24, 32, 3)


@pytest.mark.leaks(reason="multiprocessing keeps its resource tracker")
def test_worker_processes_read_the_same(tiles):
    dataset = to_torch(tiles)
    loader = DataLoader(
        dataset, batch_size=5, collate_fn=dataset.collate, num_workers=1, multiprocessing_context="spawn"
    )
    found = [x.numpy().copy() for x, _ in loader]
    np.testing.assert_array_equal(np.concatenate(found), tiles[:])


def test_single_samples_forms_and_transforms():
    data = np.arange(N * 2, dtype="float32").reshape(N, 2)
    sample, target = to_torch(data, np.arange(N))[-1]
    assert (sample.tolist(), target.item()) == ([46, 47], 23)
    with pytest.raises(IndexError):
        to_torch(data)[N]
    doubled = TorchTiles({"a": data}, transform=lambda batch: {"a": batch["a"] * 2})
    (batch,) = DataLoader(doubled, batch_size=N)
    np.testing.assert_array_equal(batch["a"], data * 2)
    with pytest.raises(TypeError, match="map it to numbers"):
        to_torch(data, np.array(["a"] * N))


def test_a_shuffling_loader_reads_each_sample_once():
    dataset = to_torch(np.arange(N))
    loader = DataLoader(dataset, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(1))
    assert sorted(torch.cat(list(loader)).tolist()) == list(range(N))


RANK = """
import numpy as np, torch, torch.distributed as dist
import lazytiles as lt
from lazytiles.training.shards import own_shard
dist.init_process_group("gloo")
rank, count = own_shard()
assert (rank, count) == (dist.get_rank(), 2)
flow = lt.BatchFlow(np.arange(50), 4, shuffle=True, seed=3, shard="auto")
single = lt.BatchFlow(np.arange(50), 8, shuffle=True, seed=3, drop_last=True)
for epoch in range(2):
    for mine, whole in zip(flow, single, strict=True):
        parts = [torch.empty(4, dtype=torch.int64) for _ in range(count)]
        dist.all_gather(parts, torch.from_numpy(mine))
        assert torch.cat(parts).tolist() == whole.tolist()
dist.destroy_process_group()
print("equal")
"""


def test_two_processes_together_read_the_single_stream():
    children = []
    for rank in range(2):
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "RANK": str(rank), "WORLD_SIZE": "2"}
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", RANK], cwd=ROOT, env=os.environ | address, stdout=-1, stderr=-1, text=True
            )
        )
    for child in children:
        printed, errors = child.communicate(timeout=120)
        assert printed == "equal\n", errors


def test_a_transform_gives_all_of_the_batch_back():
    data = (np.zeros((5, 2), "float32"), np.arange(5))
    for transform, what in ((lambda b: b[0], "2 parts and gave one array"), (lambda b: (b[0][1:], b[1]), "gave 1")):
        with pytest.raises(ValueError, match=what):
            TorchTiles(data, transform=transform).__getitems__([0, 3])
