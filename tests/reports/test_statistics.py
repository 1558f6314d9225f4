"""Statistics: exact for integers whatever the batches, as NumPy for floats, alike on a cluster."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.arrays.view import DelayedView
from lazytiles.config import counters
from lazytiles.errors import ManifestError
from lazytiles.manifests.tiles import open_tiles
from lazytiles.reports.statistics import load_statistics, statistics

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bool"]


@pytest.mark.parametrize("dtype", INTEGERS)
@given(data=st.data())
def test_integers_are_summed_exactly(dtype: str, data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=4, max_dims=5, min_side=1, max_side=3))
    tiles = data.draw(hnp.arrays(dtype, shape))
    found = statistics(tiles, batch_bytes=data.draw(st.integers(1, 100)))
    for band in range(shape[-1]):
        numbers = [int(value) for value in tiles[..., band].ravel()]
        mean = Fraction(sum(numbers), len(numbers))
        variance = Fraction(sum(n * n for n in numbers), len(numbers)) - mean**2
        assert found.mean[band] == float(mean)
        assert found.std[band] == float(variance) ** 0.5
        assert (found.min[band], found.max[band]) == (float(min(numbers)), float(max(numbers)))
    assert found.count.tolist() == [tiles[..., 0].size] * shape[-1]
    assert np.sum(found.histogram["counts"], axis=1).tolist() == found.count.tolist()


@given(
    hnp.arrays("float32", (5, 2, 3, 2), elements=st.floats(-1e6, 1e6, width=32)),
    st.integers(1, 100),
    st.sampled_from([0.0, 1e6]),
)
def test_floats_are_numpys(tiles: np.ndarray, batch_bytes: int, shift: float) -> None:
    tiles = (tiles + np.float32(shift)).astype(np.float32)
    found = statistics(tiles, batch_bytes=batch_bytes)
    wide = tiles.astype(np.float64).reshape(-1, 2)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(found.std, wide.std(axis=0), rtol=1e-9, atol=1e-9)
    assert found.min.tolist() == wide.min(axis=0).tolist()


def test_what_is_not_finite_is_counted_apart() -> None:
    tiles = np.ones((4, 2, 2, 2))
    tiles[0, 0, 0, 0], tiles[1, 0, 0, 0], tiles[2, 0, 0, 1] = np.nan, np.inf, -np.inf
    found = statistics(tiles)
    assert found.not_finite.tolist() == [2, 1]
    assert found.mean.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="no value of the tiles is finite"):
        statistics(np.full((1, 2, 2, 1), np.nan))
    tiles[..., 1] = np.nan
    with pytest.raises(ValueError, match="band 1 has no finite value in 4 tiles"):
        statistics(tiles)
    with pytest.raises(ValueError, match="statistics of no tiles"):
        statistics(tiles[:0])
    with pytest.raises(ValueError, match="statistics of complex128 values"):
        statistics(tiles.astype(complex))


def test_frames_and_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for year in ("2017", "2018"):
        (tmp_path / year).mkdir()
        for region in "ab":
            image = rng.integers(0, 255, (64, 64, 3), np.uint8)
            tifffile.imwrite(tmp_path / year / f"{region}.tif", image, tile=(32, 32), compression="zlib")
            for k in range(16):
                x, y = k % 4 * 16, k // 4 * 16
                rows.append((f"{region}{k}", region, year, f"({x}, {y}, {x + 16}, {y + 16})"))
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "label_id", "region_coordinates"])
    tiles = open_tiles(table, tmp_path, frames=["2017", "2018"]).shuffle(3)
    seen: list[tuple[int, int]] = []
    before = counters()["segments_decoded"]
    found = statistics(tiles, progress=lambda *step: seen.append(step))
    assert counters()["segments_decoded"] - before == 16
    whole = np.asarray(tiles)
    np.testing.assert_allclose(found.mean, whole.mean(axis=(0, 1, 2, 3)), rtol=1e-12)
    assert len(found.frames) == 2
    for k, frame in enumerate(found.frames):
        counts = [np.histogram(whole[:, k, ..., band], frame["histogram"]["edges"])[0].tolist() for band in range(3)]
        assert frame["histogram"]["counts"] == counts
    assert np.sum([f["histogram"]["counts"] for f in found.frames], axis=0).tolist() == found.histogram["counts"]
    assert tiles.statistics(scheduler="threads").to_dict() == found.to_dict()
    with pytest.raises(ValueError, match=r"an address such as tcp://host:8786"):
        tiles.statistics(scheduler="cluster")
    np.testing.assert_allclose(found.frames[1]["std"], whole[:, 1].std(axis=(0, 1, 2)), rtol=1e-12)
    assert seen[-1] == (32, 32)
    assert str(found).startswith("32 tiles; band: mean")


@pytest.fixture(params=["uint8", "int16", "float32"])
def gaps(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Tiles of two regions in three years, of which some images are missing, and none is zero."""
    rng = np.random.default_rng(0)
    rows = []
    for region in "abc":
        for year in ("2016", "2017", "2018"):
            (tmp_path / year).mkdir(exist_ok=True)
            if (region, year) not in {("a", "2016"), ("b", "2016"), ("c", "2016"), ("b", "2017")}:
                image = rng.integers(40, 100, (32, 32, 2)).astype(request.param)
                tifffile.imwrite(
                    tmp_path / year / f"{region}.tif", image, photometric="minisblack", planarconfig="contig"
                )
            rows += [(f"{region}{k}", region, year, f"({8 * k}, 0, {8 * k + 8}, 8)") for k in range(4)]
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "label_id", "region_coordinates"])
    return open_tiles(table, tmp_path, frames=["2016", "2017", "2018"], missing="fill").shuffle(2)


def test_missing_frames_are_left_out(gaps: Any) -> None:
    whole, there = np.asarray(gaps).astype(np.float64), gaps.valid
    pixels = np.moveaxis(whole, -1, 2)[there][:, :].swapaxes(0, 1).reshape(2, -1)
    assert pixels.min() >= 40
    for limits in (None, (0.0, 128.0)):
        found = statistics(gaps, limits=limits, batch_bytes=3000)
        np.testing.assert_allclose(found.mean, pixels.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(found.std, pixels.std(axis=1), rtol=1e-9)
        assert found.min.tolist() == pixels.min(axis=1).tolist()
        assert found.count.tolist() == [pixels.shape[1]] * 2 == np.sum(found.histogram["counts"], axis=1).tolist()
        assert found.not_finite.tolist() == [0, 0]
        assert np.isnan([found.frames[0][name] for name in ("mean", "std", "min", "max")]).all()
        assert found.frames[0]["count"] == [0, 0]
        np.testing.assert_allclose(found.frames[1]["mean"], whole[there[:, 1], 1].mean(axis=(0, 1, 2)), rtol=1e-12)
    expected = json.dumps(statistics(gaps, batch_bytes=1).to_dict())
    part = gaps.select(slice(3, 9))
    few = np.moveaxis(whole, -1, 2)[3:9][there[3:9]].swapaxes(0, 1).reshape(2, -1).mean(axis=1)
    nested = MultiSourceArray([gaps.select([0, 1]), np.ones((2, *gaps.shape[1:]), gaps.dtype)])
    ones = np.r_[there[:2].reshape(-1), np.ones(6, bool)]
    for tiles, mean in [
        (part, few),
        (DelayedView(gaps, idx_min=3, idx_max=9, shuffle=True, seed=1), few),
        (part.persist(), few),
        (nested, np.average(np.asarray(nested).mean(axis=(2, 3)).reshape(-1, 2), axis=0, weights=ones)),
    ]:
        np.testing.assert_allclose(statistics(tiles).mean, mean, rtol=1e-6)
    assert json.dumps(statistics(gaps.persist(), batch_bytes=1).to_dict()) == expected or gaps.dtype.kind == "f"


def test_a_missing_image_of_a_single_frame_is_left_out(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), 50, np.uint8))
    table = pd.DataFrame({"tile_id": ["a", "b"], "region_id": ["a", "b"], "region_coordinates": "(0, 0, 8, 8)"})
    found = open_tiles(table, tmp_path, missing="fill").statistics()
    assert (found.mean.tolist(), found.min.tolist(), found.count.tolist()) == ([50.0], [50.0], [64])


def test_the_repr_is_one_short_line() -> None:
    assert repr(statistics(np.full((3, 2, 2, 1), 7, np.uint8))) == "<Statistics of 3 tiles, 1 band: mean 7>"
    many = statistics(np.ones((2, 2, 2, 9), np.float32) * np.arange(9, dtype=np.float32))
    assert repr(many) == "<Statistics of 2 tiles, 9 bands: mean 0, 1, 2, 3, ...>"


def test_saved_and_read_again(tmp_path: Path) -> None:
    found = statistics(np.random.default_rng(0).random((3, 4, 4, 2), np.float32))
    found.save(tmp_path / "s.json")
    again = load_statistics(tmp_path / "s.json")
    assert json.dumps(again.to_dict()) == json.dumps(found.to_dict())
    (tmp_path / "s.json").write_text("[1]")
    with pytest.raises(ValueError, match="not statistics written by lazytiles"):
        load_statistics(tmp_path / "s.json")


class Slow:
    """A source that takes its time, so that a worker can be killed in the middle."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype, self.ndim = values, values.shape, values.dtype, values.ndim

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indices: np.ndarray) -> np.ndarray:
        time.sleep(0.1)
        if (indices == 999).any():
            raise ManifestError("tile 999: no such pixels")
        return self.values[indices]


@pytest.mark.leaks("a dask cluster leaves threads and sockets of its own")
def test_a_cluster_sums_alike_and_survives_a_killed_worker(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    values = np.random.default_rng(0).integers(0, 2**16, (200, 4, 4, 2), np.uint16)
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        warnings.simplefilter("ignore")
        # Connecting anew comes first: distributed fails now and then where the scheduler tells all its clients of other
        # keys in the same two milliseconds.
        for scheduler in (cluster.scheduler_address, client):
            assert statistics(Slow(values[:20]), scheduler=scheduler).to_dict() == statistics(values[:20]).to_dict()
        assert distributed.default_client() is client
        pids = list(client.run(os.getpid).values())
        killed: list[int] = []

        def kill_one(done: int, total: int) -> None:
            if done and not killed:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

        found = statistics(Slow(values), client=client, batch_bytes=640, progress=kill_one)
        assert killed
        assert json.dumps(found.to_dict()) == json.dumps(statistics(values).to_dict())
        rows = [(f"t{k}", "ab"[k // 4], f"({8 * (k % 4)}, 0, {8 * (k % 4) + 8}, 8)") for k in range(8)]
        tifffile.imwrite(tmp_path / "a.tif", values[:32, :, :, 0].reshape(16, 32))
        table = pd.DataFrame(rows, columns=["tile_id", "region_id", "region_coordinates"])
        gaps = open_tiles(table, tmp_path, missing="fill").shuffle(1)
        assert statistics(gaps, client=client, batch_bytes=300).to_dict() == statistics(gaps).to_dict()
        shown = DelayedView(gaps)
        assert statistics(shown, client=client, batch_bytes=300).to_dict() == statistics(gaps).to_dict()
        many = np.zeros((1000, 1, 1, 1), np.uint8)
        with pytest.raises(ManifestError, match="tile 999: no such pixels"):
            statistics(Slow(many), client=client, batch_bytes=100)
