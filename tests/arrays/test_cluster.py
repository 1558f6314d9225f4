"""The same work on two worker processes, one of which is killed in the middle: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import tifffile

distributed = pytest.importorskip("distributed")
pytest.importorskip("zarr")

from lazytiles.arrays.multisource import MultiSourceArray  # noqa: E402
from lazytiles.errors import LazyTilesError  # noqa: E402
from lazytiles.manifests.checks import check  # noqa: E402
from lazytiles.manifests.tiles import open_tiles  # noqa: E402
from lazytiles.predictions.regions import predict  # noqa: E402
from lazytiles.reports.statistics import statistics  # noqa: E402
from lazytiles.stores.saving import export, open_store, persist, verify_store  # noqa: E402

pytestmark = [
    pytest.mark.leaks("a cluster keeps loops, sockets and processes until its fixture ends"),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "dashboard_address": ":0"}
    folder = str(tmp_path_factory.mktemp("dask"))
    with (
        # By default a cluster looks 15 s after each death, and closes the nanny whose worker has just died again.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        distributed.LocalCluster(**options, local_directory=folder, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def made(folder: Path, dtype: str = "uint8", size: int = 128, regions: int = 6) -> MultiSourceArray:
    rng = np.random.default_rng(3)
    rows = []
    for k in range(regions):
        image = rng.random((size, size, 2)) * 250
        path = folder / f"{k}.tif"
        tifffile.imwrite(path, image.astype(dtype), compression="deflate", tile=(64, 64), planarconfig="contig")
        for y in range(0, size - 16, 12):
            rows += [
                (f"{k}-{y}-{x}", str(k), y / size, f"({x}, {y}, {x + 16}, {y + 16})") for x in range(0, size - 16, 12)
            ]
    columns = ["tile_id", "region_id", "target", "region_coordinates"]
    return open_tiles(pd.DataFrame(rows, columns=columns), folder)


class Killer(distributed.SchedulerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Kills the worker process that finishes the n-th task from now on, its results with it; counted, not timed."""

    def __init__(self, cluster: Any, tasks: int) -> None:
        self.cluster, self.left, self.pid = cluster, tasks, 0

    def transition(self, key: Any, start: str, finish: str, *args: Any, worker: str = "", **kwargs: Any) -> None:
        self.left -= (start, finish) == ("processing", "memory")
        if not self.left and not self.pid:
            # The nanny knows the process; asking the workers would ask dying ones too.
            self.pid = next(one.pid for one in self.cluster.workers.values() if one.worker_address == worker)
            os.kill(self.pid, signal.SIGKILL)


@contextmanager
def one_dies(client: Any, after_tasks: int) -> Iterator[None]:
    """One worker process is killed within the block; behind it, two others live."""
    killer = Killer(client.cluster, after_tasks)
    client.cluster.scheduler.add_plugin(killer, name="killer")
    try:
        yield
    finally:
        client.cluster.scheduler.remove_plugin("killer")
        revive(client, killer.pid)
    assert killer.pid, f"the work ended before its task {after_tasks}"


def revive(client: Any, killed: int = 0) -> None:
    """Wait for two live workers without the killed one, each of which answers as the process its nanny knows."""
    nannies = client.cluster.workers

    async def addresses() -> list[str]:
        known = client.cluster.scheduler.workers
        live = [one.worker_address for one in nannies.values() if one.pid not in (None, killed)]
        return live if set(live) == set(known) and all(one.status.name == "running" for one in known.values()) else []

    started = time.monotonic()
    while len(client.sync(addresses)) != 2:
        assert time.monotonic() - started < 120, f"two live workers are not to be had: {nannies}"
        time.sleep(0.02)
    asked = [client.submit(os.getpid, workers=[one], pure=False) for one in client.sync(addresses)]
    assert sorted(one.result(timeout=60) for one in asked) == sorted(one.pid for one in nannies.values())


@pytest.fixture(autouse=True)
def two_live_workers(client: Any) -> None:
    """Whatever a test before did to them."""
    revive(client)


@pytest.fixture(params=[None, 1, 2], ids=["all live", "one dies at once", "one dies"])
def perhaps_killed(request: pytest.FixtureRequest, client: Any) -> Iterator[None]:
    with nullcontext() if request.param is None else one_dies(client, request.param):
        yield


@pytest.mark.usefixtures("perhaps_killed")
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_statistics_are_those_of_one_machine(client: Any, tmp_path: Path, dtype: str) -> None:
    tiles = made(tmp_path, dtype).shuffle(1)
    here, there = (statistics(tiles, client=one, batch_bytes=20_000) for one in (None, client))
    assert here.to_dict() == there.to_dict()
    whole = tiles[...]
    assert np.allclose(there.mean, whole.mean(axis=(0, 1, 2), dtype=np.float64))
    assert there.count.tolist() == [whole[..., 0].size] * 2


@pytest.mark.usefixtures("perhaps_killed")
@pytest.mark.parametrize("shuffled", [False, True])
def test_an_export_is_that_of_one_machine(client: Any, tmp_path: Path, shuffled: bool) -> None:
    tiles = made(tmp_path)
    tiles = tiles.shuffle(5) if shuffled else tiles
    seen: list[tuple[int, int]] = []
    store = export(tiles, tmp_path / "out.zarr", chunk=8, client=client, progress=lambda *step: seen.append(step))
    assert np.array_equal(store[...], tiles[...])
    assert np.array_equal(store.labels, tiles.labels)
    assert seen[-1] == (len(tiles), len(tiles))
    assert len({done for done, _ in seen}) == len(seen)
    verified = verify_store(tmp_path / "out.zarr")
    alike = export(tiles, tmp_path / "here.zarr", chunk=8)
    assert (verified.rows, verified.chunks) == (len(alike), -(-len(alike) // 8))
    assert not list(tmp_path.glob("out.zarr.partial*"))


def test_many_small_steps_with_a_death(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazytiles.stores.distributed.STEP_BYTES", 1)
    tiles = made(tmp_path)
    with one_dies(client, 40):
        store = persist(tiles.shuffle(5), tmp_path / "out.zarr", chunk=4, client=client)
    assert np.array_equal(store[...], tiles[...])
    assert np.array_equal(store.reset_order()[...], tiles.reset_order()[...])


def test_a_broken_export_names_its_tile_and_goes_on_later(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazytiles.stores.distributed.STEP_BYTES", 1)
    tiles = made(tmp_path)
    path = tmp_path / "3.tif"
    good = path.read_bytes()
    stamp = path.stat()
    path.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(LazyTilesError, match=r"tile 3-\d+-\d+ .*3\.tif"):
        export(tiles, tmp_path / "out.zarr", chunk=4, client=client)
    with pytest.raises(LazyTilesError, match=r"out\.zarr"):
        open_store(tmp_path / "out.zarr")
    path.write_bytes(good)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    seen: list[int] = []
    store = export(
        tiles, tmp_path / "out.zarr", chunk=4, client=client, resume=True, progress=lambda done, _: seen.append(done)
    )
    assert np.array_equal(store[...], tiles[...])
    assert seen[-1] == len(tiles)


def test_only_zarr_is_written_by_many(client: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a Zarr store is written by many processes"):
        export(made(tmp_path, regions=1), tmp_path / "out.npy", client=client)


def blur() -> Callable[[Any], Any]:
    """Makes a model; how often is written down."""
    with open(os.environ["LAZYTILES_TEST_LOADS"], "a") as file:
        file.write(f"{os.getpid()}\n")
    return lambda batch: np.asarray(batch, np.float32) * 0.5 + 1


@pytest.mark.usefixtures("perhaps_killed")
@pytest.mark.parametrize("out", [None, "maps"])
def test_predictions_are_those_of_one_machine(
    client: Any, tmp_path: Path, out: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = made(tmp_path).shuffle(2)
    loads = tmp_path / "loads"
    monkeypatch.setenv("LAZYTILES_TEST_LOADS", str(loads))
    here = list(predict(blur(), tiles, batch_size=7))
    loads.unlink()

    def factory(path: str = str(loads)) -> Callable[[Any], Any]:
        os.environ["LAZYTILES_TEST_LOADS"] = path
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        return lambda batch: np.asarray(batch, np.float32) * 0.5 + 1

    goal = None if out is None else tmp_path / out
    there = list(predict(factory, tiles, batch_size=7, client=client, out=goal))
    assert [scan["id"] for scan in there] == [scan["id"] for scan in here]
    for one, other in zip(here, there, strict=True):
        assert np.array_equal(one["y_pred"], np.asarray(other["y_pred"]), equal_nan=True)
    pids = loads.read_text().split()
    assert len(pids) == len(set(pids)) <= 4, "a model is loaded once in a worker"
    if goal is not None:
        assert sorted(path.name for path in goal.iterdir()) == [f"{k}.tif" for k in range(6)]
        with pytest.raises(LazyTilesError, match=r"0\.tif exists"):
            next(predict(factory, tiles, client=client, out=goal))


def test_options_of_predictions_hold_on_workers_too(client: Any, tmp_path: Path) -> None:
    tiles = made(tmp_path, regions=3).shuffle(2)

    def factory() -> Callable[[Any], Any]:
        return lambda batch: batch["image"] + batch["number"].reshape(-1, 1, 1, 1)

    inputs = {"number": np.arange(len(tiles), dtype=np.float32), "image": tiles}
    options: dict[str, Any] = {"normalize": True, "with_x": True, "blend": "max", "out": tmp_path / "maps"}
    here = list(predict(factory(), inputs, **options | {"out": None}))
    for again in (False, True):
        seen: list[tuple[int, int]] = []
        progress = {"progress": lambda *step, seen=seen: seen.append(step)}
        there = list(predict(factory, inputs, client=client, overwrite=again, **options, **progress))
        assert seen[-1] == (len(tiles), len(tiles))
        for one, other in zip(here, there, strict=True):
            assert one["id"] == other["id"]
            assert one["y_pred"].shape == other["y_pred"].shape
            assert np.array_equal(one["y_pred"], np.asarray(other["y_pred"]), equal_nan=True)
            assert np.array_equal(one["x"], other["x"])


def test_a_model_that_always_fails_is_an_error(client: Any, tmp_path: Path) -> None:
    def factory() -> Callable[[Any], Any]:
        def fail(batch: Any) -> Any:
            raise ValueError("no such weights")

        return fail

    with pytest.raises(ValueError, match="no such weights"):
        list(predict(factory, made(tmp_path, regions=2), client=client))
    with pytest.raises(TypeError, match="with client= the model is a function without arguments"):
        list(predict(3, made(tmp_path, regions=2), client=client))


def test_a_task_that_kills_every_worker_names_its_tiles(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def factory() -> Callable[[Any], Any]:
        return lambda batch: os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(LazyTilesError, match=r"tile 0-0-0 with box .* to tile 0-\d+-\d+ .*0\.tif\): every worker"):
        list(predict(factory, made(tmp_path, regions=1), client=client))


def test_a_region_that_cannot_be_read_ends_the_statistics(client: Any, tmp_path: Path) -> None:
    tiles = made(tmp_path)
    (tmp_path / "4.tif").write_bytes(b"II*\0")
    with pytest.raises(LazyTilesError, match=r"tile 4-\d+-\d+ .*4\.tif"):
        statistics(tiles, client=client)


def test_the_command_line_exports_on_it(client: Any, tmp_path: Path) -> None:
    from lazytiles.cli.commands import main

    tiles = made(tmp_path, regions=2)
    assert tiles.table is not None
    tiles.table.to_csv(tmp_path / "tiles.csv", index=False)
    address = ["--images", str(tmp_path), "--scheduler", client.scheduler.address]
    assert not main(
        ["export", str(tmp_path / "tiles.csv"), "-o", str(tmp_path / "out.zarr"), *address], standalone_mode=False
    )
    assert np.array_equal(open_store(tmp_path / "out.zarr")[...], tiles[...])


def test_dask_arrays_compute_on_the_cluster(client: Any, tmp_path: Path) -> None:
    tiles = made(tmp_path)
    whole = tiles[...]
    assert np.array_equal(client.compute(tiles.to_dask()).result(), whole)
    assert client.compute(tiles.to_dask().astype(np.int64).sum()).result() == whole.sum(dtype=np.int64)


def test_digests_are_those_of_one_machine(client: Any, tmp_path: Path) -> None:
    table = made(tmp_path, regions=3).table
    here = check(table, tmp_path, digest=True)
    there = check(table, tmp_path, digest=True, client=client)
    assert len(here.digests) == 3
    assert list(there.digests.values()) == list(here.digests.values())
    assert there.is_sound
