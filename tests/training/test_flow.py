"""`BatchFlow`: one stream whatever the machinery, bounded memory, errors in their place, nothing left behind."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import h5py
import loky
import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

import lazytiles as lt
from lazytiles.errors import LazyTilesError, RegionError
from lazytiles.indexing.orders import permutation
from lazytiles.training.flow import BatchFlow
from lazytiles.training.schedule import Schedule
from lazytiles.training.tandem import Tandem, read_rows
from lazytiles.trees import leaves
from tests.sources import Planned

ROOT = Path(__file__).resolve().parents[2]


def jitter(batch: Any, rng: np.random.Generator) -> Any:
    x, y = batch
    return x + rng.integers(0, 100, x.shape), y


def stream(flow: Any, epochs: int = 2) -> list[bytes]:
    return [b"".join(array.tobytes() for array in leaves(batch)) for _ in range(epochs) for batch in flow]


X = np.arange(23 * 3).reshape(23, 3)
IDS = np.arange(23)


@pytest.fixture(scope="module")
def expected() -> list[bytes]:
    return stream(BatchFlow((X, IDS), 4, shuffle=True, seed=5, transform=jitter, prefetch=0))


@pytest.mark.parametrize("kind", [np.asarray, Planned])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("prefetch", [0, 1, 8])
@pytest.mark.parametrize("readahead_bytes", [0, 300, 2**20])
def test_the_stream_is_the_same_for_all_machinery(expected, kind, threads, prefetch, readahead_bytes):
    options = {"threads": threads, "prefetch": prefetch, "readahead_bytes": readahead_bytes}
    for _ in range(3):
        flow = BatchFlow((kind(X), IDS), 4, shuffle=True, seed=5, transform=jitter, **options)
        assert stream(flow) == expected


@pytest.fixture(scope="session")
def trackers() -> None:
    """The two processes that watch over semaphores: started with the first executor, they stay to the end."""
    with loky.ProcessPoolExecutor(1) as executor:
        executor.submit(int).result()


@pytest.mark.usefixtures("trackers")
@pytest.mark.parametrize(("threads", "prefetch"), [(1, 0), (1, 1), (4, 8)])
def test_processes_give_the_same_stream(expected, threads, prefetch):
    options = {"threads": threads, "prefetch": prefetch, "processes": 2}
    with BatchFlow((Planned(X), IDS), 4, shuffle=True, seed=5, transform=jitter, **options) as flow:
        assert stream(flow) == expected


def test_batches_are_the_planned_rows_of_the_epoch():
    flow = BatchFlow(IDS, 4, shuffle=True, seed=9)
    for epoch in range(2):
        order = permutation(23, 9, epoch=epoch)
        found = list(flow)
        np.testing.assert_array_equal(np.concatenate(found), order)
        assert [len(b) for b in found] == [4, 4, 4, 4, 4, 3] == [len(flow.rows(epoch, k)) for k in range(len(flow))]


def test_structures_come_back_as_they_went_in():
    (single,) = BatchFlow(X, 23)
    np.testing.assert_array_equal(single, X)
    (pair,) = BatchFlow([X, IDS], 23)
    assert isinstance(pair, list)
    np.testing.assert_array_equal(pair[1], IDS)
    ((named, weights),) = BatchFlow(({"image": X, "id": IDS}, np.ones(23)), 23)
    np.testing.assert_array_equal(named["image"], X)
    assert weights.shape == (23,)


def test_what_is_no_source_is_refused():
    with pytest.raises(TypeError, match="a source has a shape"):
        BatchFlow((X, "labels"), 4)
    with pytest.raises(ValueError, match="one length, these have 23, 22"):
        BatchFlow((X, IDS[1:]), 4)
    with pytest.raises(TypeError, match="no source"):
        BatchFlow((), 4)
    with pytest.raises(ValueError, match="prefetch must be"):
        BatchFlow(X, 4, prefetch=-1)
    with pytest.raises(ValueError, match="batch_size"):
        BatchFlow(X, 0)
    with pytest.raises(ValueError, match="shard"):
        BatchFlow(X, 4, shard=(2, 2))
    for random in ({"shuffle": True}, {"replacement": True}):
        with pytest.raises(ValueError, match="shards of a random order need one seed"):
            BatchFlow(X, 4, shard=(0, 2), **random)


def test_pandas_columns_are_read_by_position():
    labels = pd.Series(np.arange(23)[::-1], index=np.arange(23)[::-1])
    (_, y), *_ = BatchFlow((X, labels), 4)
    assert y.tolist() == [22, 21, 20, 19]


@pytest.mark.leaks(reason="zarr keeps its event loop")
def test_every_kind_of_source_gives_what_numpy_gives(tmp_path):
    dense = np.random.default_rng(0).integers(0, 255, (17, 5, 4)).astype(">u2")
    np.save(tmp_path / "a.npy", dense)
    store = zarr.create_array(tmp_path / "a.zarr", shape=dense.shape, chunks=(4, 5, 4), dtype="u2")
    store[:] = dense
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = dense
        sources = [dense, np.load(tmp_path / "a.npy", mmap_mode="r"), file["a"], store, Planned(dense)]
        for source in sources:
            for rows in ([3, 3, 1, 16], [2, 3, 4], [], [5]):
                found = read_rows(source, np.array(rows, np.int64))
                np.testing.assert_array_equal(found, dense[rows])
                assert found.dtype.isnative
                assert found.flags.c_contiguous
                assert not np.shares_memory(found, dense)
            flow = BatchFlow(source, 4, shuffle=True, seed=1)
            np.testing.assert_array_equal(np.concatenate(list(flow)), dense[permutation(17, 1, epoch=0)])
        del source, sources


def test_sampling_by_weight_and_with_replacement():
    weights = np.ones(23)
    weights[7] = 1e6
    flow = BatchFlow(IDS, 23, weights=weights, replacement=True, seed=0)
    assert np.mean(next(iter(flow)) == 7) > 0.9
    with pytest.raises(ValueError, match="without replacement"):
        BatchFlow(IDS, 23, weights=weights * (IDS > 3))
    (once,) = BatchFlow(IDS, 23, weights=weights, seed=0)
    assert sorted(once) == IDS.tolist()


def test_drop_last_and_loop():
    assert [len(b) for b in BatchFlow(IDS, 4, drop_last=True)] == [4] * 5
    endless = BatchFlow(IDS, 4, shuffle=True, seed=2, loop=True).flow()
    twice = [next(endless) for _ in range(12)]
    endless.close()
    assert [b.tobytes() for b in twice] == stream(BatchFlow(IDS, 4, shuffle=True, seed=2))
    assert list(BatchFlow(IDS[:0], 4, loop=True)) == []


def test_the_launcher_is_asked_for_the_shard(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    auto, told = (BatchFlow(X, 2, shuffle=True, seed=3, shard=shard) for shard in ("auto", (1, 3)))
    assert len(auto) == len(told)
    assert all(np.array_equal(one, other) for one, other in zip(auto, told, strict=True))
    assert auto.state_dict() == told.state_dict()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("samples", [60, 61])
def test_shards_together_are_the_single_stream(ranks, samples):
    data = np.arange(samples)
    single = BatchFlow(data, 2 * ranks, shuffle=True, seed=3, drop_last=ranks > 1)
    parts = [BatchFlow(data, 2, shuffle=True, seed=3, shard=(r, ranks)) for r in range(ranks)]
    for _ in range(2):
        together = [np.concatenate(shards) for shards in zip(*parts, strict=True)]
        for one, other in zip(single, together, strict=True):
            np.testing.assert_array_equal(one, other)


@given(n=st.integers(0, 40), size=st.integers(1, 9), ranks=st.integers(1, 5), epoch=st.integers(0, 3))
def test_schedules_are_disjoint_parts_of_one_permutation(n, size, ranks, epoch):
    parts = [Schedule(n, size, shuffle=True, seed=1, shard=(r, ranks)) for r in range(ranks)]
    rows = [p.rows((epoch, k)).tolist() for k in range(len(parts[0])) for p in parts]
    flat = [row for part in rows for row in part]
    assert flat == permutation(n, 1, epoch=epoch)[: len(flat)].tolist()
    assert ranks > 1 or len(flat) == n


@pytest.mark.parametrize("options", [{}, {"prefetch": 0, "readahead_bytes": 0}, {"readahead_bytes": 200}])
def test_resumed_at_every_batch_it_equals_the_uninterrupted(options):
    def make() -> BatchFlow:
        return BatchFlow((Planned(X), IDS), 4, shuffle=True, seed=5, transform=jitter, **options)

    whole = stream(make(), epochs=3)
    for k in range(13):
        first = make()
        before = []
        while len(before) < k:
            for batch in first:
                before.append(batch)
                if len(before) == k:
                    break
        state = json.loads(json.dumps(first.state_dict()))
        assert all(isinstance(value, int) for value in state.values())
        second = make()
        second.load_state_dict(state)
        assert stream(second, epochs=3)[: len(whole) - k] == whole[k:]


def test_a_fresh_seed_is_resumed_too():
    first = BatchFlow(IDS, 4, shuffle=True)
    begun = iter(first)
    next(begun)
    second = BatchFlow(IDS, 4, shuffle=True)
    second.load_state_dict(first.state_dict())
    assert [b.tobytes() for b in begun] == [b.tobytes() for b in second]


def test_states_of_other_flows_are_refused():
    state = BatchFlow(IDS, 4, shuffle=True, seed=1).state_dict()
    for other, what in [
        (BatchFlow(IDS[1:], 4, shuffle=True, seed=1), "23 samples; this one has 22"),
        (BatchFlow(IDS, 5, shuffle=True, seed=1), "4 samples a batch"),
        (BatchFlow(IDS, 4, shuffle=True, seed=2), "as its seed"),
        (BatchFlow(IDS, 4, seed=1), "something else"),
        (BatchFlow(X, 4, shuffle=True, seed=1), "something else"),
    ]:
        with pytest.raises(LazyTilesError, match=what):
            other.load_state_dict(state)
    with pytest.raises(LazyTilesError, match="version 7"):
        BatchFlow(IDS, 4, shuffle=True, seed=1).load_state_dict({**state, "version": 7})


def test_states_that_no_flow_gave_are_refused():
    flow = BatchFlow(IDS, 4, shuffle=True, seed=1)
    state = flow.state_dict()
    for wrong, what in [
        ({k: v for k, v in state.items() if k not in ("seed", "digest")}, "lacks digest, seed"),
        ({**state, "batch": 6}, "batch 6; an epoch of this flow has 6"),
        ({**state, "epoch": -1}, "count from 0"),
    ]:
        with pytest.raises(LazyTilesError, match=what):
            flow.load_state_dict(wrong)
    assert len(list(flow)) == 6


def test_blocks_hold_their_bytes_and_each_batch_is_asked_once():
    source = Planned(np.zeros((64, 8), "uint8"))
    for _ in BatchFlow(source, 4, readahead_bytes=100):
        settle()
    # Three batches of 32 bytes; from then on one of them still waits when the next block starts.
    assert [len(block) for block in source.blocks] == [3, 2, 2, 2, 2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([r for b in source.blocks for r in b]), np.arange(64))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_a_stalled_consumer_bounds_what_is_alive(prefetch):
    flow = BatchFlow(np.zeros((64, 8), "uint8"), 4, prefetch=prefetch)
    iterator = iter(flow)
    held = next(iterator)
    settle()
    assert alive() == prefetch + 1
    del held
    iterator.close()
    assert alive() == 0


class Counting(Planned):
    """Knows how many of its arrays live."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(array)
        self.alive: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()

    def take(self, indices: np.ndarray, out: None = None, *, threads: int | None = None) -> np.ndarray:
        found = super().take(indices)
        self.alive[id(found)] = found
        return found


@pytest.mark.parametrize("transform", [None, lambda batch, rng: batch.astype("f8")])
def test_a_stalled_consumer_bounds_the_bytes_read_ahead(transform):
    source = Counting(np.zeros((64, 8), "uint8"))
    iterator = iter(BatchFlow(source, 1, readahead_bytes=64, transform=transform))
    for k in range(40):
        batch = next(iterator)
        if k % 7 == 0:
            settle()
            # 8 batches of 8 bytes, and what the consumer holds.
            assert len(source.alive) <= 8 + 1
            assert alive() <= 2 + 1
    del batch, iterator
    settle()
    assert len(source.alive) == 0
    assert alive() == 0


def ahead() -> int:
    return sum(thread.name == "lazytiles-ahead" for thread in threading.enumerate())


_before = [0]


@pytest.fixture(autouse=True)
def _count_from_here():
    """TensorFlow keeps the last batch that a test before gave it until it is given another one."""
    _before[0] = lt.counters()["batches_alive"]


def alive() -> int:
    return lt.counters()["batches_alive"] - _before[0]


def settle() -> None:
    end = time.monotonic() + 2
    while ahead() and time.monotonic() < end:
        time.sleep(0.002)


@pytest.mark.parametrize(
    "options", [{}, {"prefetch": 0}, {"prefetch": 0, "readahead_bytes": 0}, {"readahead_bytes": 0}]
)
@pytest.mark.parametrize("bad", [0, 9, 22])
def test_a_read_error_comes_at_its_batch(options, bad):
    flow = BatchFlow((Planned(X, bad=(bad,)), IDS), 4, **options)
    got = []
    with pytest.raises(RegionError, match=rf"tile t{bad:03}: box \(0, 0, 4, 4\) leaves region r\.tif"):
        got.extend(y for _, y in flow)
    assert len(got) == bad // 4
    settle()
    assert ahead() == 0


@pytest.mark.usefixtures("trackers")
@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"processes": 1}])
def test_a_transform_error_names_batch_and_tiles(options):
    with BatchFlow((Planned(X), IDS), 4, transform=fail_at_eight, **options) as flow:
        got = []
        with pytest.raises(
            LazyTilesError, match=r"^KeyError: 'odd' \(transform of batch 2 of epoch 0: tile t008, .* more\)$"
        ):
            got.extend(y for _, y in flow)
        assert len(got) == 2


def fail_at_eight(batch: Any, rng: np.random.Generator) -> Any:
    if 8 in batch[1]:
        raise KeyError("odd")
    return batch


class Broken:
    """A plain source: no planning, and nothing to be read."""

    shape, dtype = X.shape, X.dtype

    def __len__(self) -> int:
        return 23

    def __getitem__(self, key: Any) -> Any:
        raise KeyError("gone")


def test_a_plain_source_that_fails_is_named():
    with pytest.raises(LazyTilesError, match=r"KeyError: 'gone' \(reading batch 0 of epoch 0: sample 0, "):
        list(BatchFlow(Broken(), 4))


def test_abandoned_iterators_leave_nothing():
    flow = BatchFlow((Planned(np.zeros((64, 3)), pause_s=0.0005), np.arange(64)), 4, shuffle=True, seed=0)
    for k in range(200):
        iterator = iter(flow)
        for _ in range(k % 3):
            next(iterator)
        del iterator
    settle()
    assert ahead() == 0
    assert alive() == 0


def test_iterators_end_when_their_flow_is_closed():
    with BatchFlow(Planned(X), 4) as flow:
        iterator = iter(flow)
        next(iterator)
    assert list(iterator) == []
    flow.close()
    assert len(list(flow)) == 6


def test_an_abandoned_epoch_begins_anew_and_a_finished_one_does_not():
    flow = BatchFlow(IDS, 4, shuffle=True, seed=1)
    first = next(iter(flow))
    assert flow.epoch == 0
    again = list(flow)
    np.testing.assert_array_equal(first, again[0])
    assert flow.epoch == 1
    assert not np.array_equal(first, next(iter(flow)))


@pytest.mark.usefixtures("trackers")
def test_a_killed_worker_is_noticed_and_replaced(tmp_path):
    trap = tmp_path / "once"
    trap.touch()

    def deadly(batch: Any, rng: np.random.Generator) -> Any:
        if trap.exists():
            trap.unlink()
            import os

            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    with BatchFlow((Planned(X), IDS), 4, transform=deadly, processes=1) as flow:
        with pytest.raises(LazyTilesError, match=r"(?s)^a worker process ended.*batch 0 of epoch 0: tile t000"):
            list(flow)
        assert len(list(flow)) == 6


@pytest.mark.parametrize("change", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_copies_go_on_without_what_was_read(change):
    flow = BatchFlow((Planned(X), IDS), 4, shuffle=True, seed=5, transform=jitter)
    iterator = iter(flow)
    next(iterator)
    twin = change(flow)
    assert stream(twin, 1) == stream(BatchFlow((X, IDS), 4, shuffle=True, seed=5, transform=jitter), 1)


def test_two_iterators_at_once_and_eight_threads():
    flow = BatchFlow((Planned(X), IDS), 4, shuffle=True, seed=5, transform=jitter)
    for one, other in zip(flow, flow, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    found: list[list[bytes]] = []

    def consume() -> None:
        found.append(stream(BatchFlow((Planned(X), IDS), 4, shuffle=True, seed=5, transform=jitter), 2))

    workers = [threading.Thread(target=consume) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [found[0]] * 8


INTERRUPTED = """
import sys, threading, time, _thread
import numpy as np
from tests.training.test_flow import Planned
from lazytiles.training.flow import BatchFlow
slow = Planned(np.zeros((4096, 8)), pause_s=0.2)
flow = BatchFlow(slow, 4, transform=lambda b, rng: (time.sleep(0.2), b)[1])
threading.Timer(0.4, _thread.interrupt_main).start()
try:
    for batch in flow:
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if {keep}:
        kept = iter(flow)
        next(kept)
"""


def ends_well_when_interrupted(code: str) -> None:
    """A child that says "interrupted" ends long before its work would, with nothing to complain of."""
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "interrupted\n"
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert errors == ""


@pytest.mark.parametrize("keep", [False, True])
def test_control_c_ends_the_interpreter_at_once(keep):
    ends_well_when_interrupted(INTERRUPTED.format(keep=keep))


LONG_TRANSFORM = """
import os, signal, threading, time
import numpy as np
from lazytiles import BatchFlow
begun = {begun!r}
still = lambda batch, rng: (open(begun, "w").close(), time.sleep(200))
flow = BatchFlow(np.zeros((4096, 8)), 4, transform=still, processes={processes}, threads=4, prefetch=4)
def interrupt():
    while not os.path.exists(begun):  # a process that is just being started has complaints of its own
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    next(iter(flow))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_no_exit_waits_for_a_long_transform(processes, tmp_path):
    ends_well_when_interrupted(LONG_TRANSFORM.format(processes=processes, begun=str(tmp_path / "begun")))


@pytest.fixture
def tiles(tmp_path) -> lt.MultiSourceArray:
    rng = np.random.default_rng(4)
    rows = []
    for region in range(3):
        for year in (2019, 2020):
            (tmp_path / str(year)).mkdir(exist_ok=True)
            image = rng.integers(0, 255, (96, 80, 3), dtype=np.uint8)
            tifffile.imwrite(tmp_path / str(year) / f"r{region}.tif", image, compression="lzw", rowsperstrip=16)
            for k in range(6):
                x, y = rng.integers(0, 48, 2)
                rows.append((f"t{region}-{k}", f"r{region}", str(year), f"({x}, {y}, {x + 32}, {y + 24})", k / 6))
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "label_id", "region_coordinates", "target"])
    last = table[table.label_id == "2020"].set_index("tile_id").region_coordinates
    table["region_coordinates"] = table.tile_id.map(last)
    return lt.open_tiles(table, tmp_path, frames=[2019, 2020])


@pytest.mark.parametrize("readahead_bytes", [0, 20_000, 2**28])
def test_opened_tiles_flow_with_their_labels(tiles, readahead_bytes):
    tiles.shuffle(3)
    dense, labels = np.asarray(tiles[:]), tiles.labels
    flow = BatchFlow((tiles, labels), 5, shuffle=True, seed=1, readahead_bytes=readahead_bytes)
    for epoch in range(2):
        for k, (x, y) in enumerate(flow):
            rows = flow.rows(epoch, k)
            np.testing.assert_array_equal(x, dense[rows])
            np.testing.assert_array_equal(y, labels[rows])
            assert x.flags.c_contiguous
            assert x.flags.writeable


def test_read_ahead_decodes_each_segment_once(tiles):
    lt.clear_cache()
    whole = tiles.plan(np.arange(len(tiles))).segments
    before = lt.counters()["segments_decoded"]
    list(BatchFlow(tiles, 1, shuffle=True, seed=0))
    assert lt.counters()["segments_decoded"] - before == whole


def test_the_memory_of_dropped_batches_is_used_again(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "r.tif", image, compression="lzw", rowsperstrip=64)
    tiles = lt.open_tiles(lt.make_grid([tmp_path / "r.tif"], size=64), tmp_path)
    dense = np.asarray(tiles[:])
    batch_bytes = 8 * dense[0].nbytes
    flow = BatchFlow(tiles, 8, shuffle=True, seed=0, readahead_bytes=2 * batch_bytes)
    places, kept = set(), []
    for epoch in range(3):
        for k, batch in enumerate(flow):
            places.add(batch.__array_interface__["data"][0])
            np.testing.assert_array_equal(batch, dense[flow.rows(epoch, k)])
            assert batch.ctypes.data % 64 == 0
            if k == epoch:
                kept.append((batch[2:5, ::2], flow.rows(epoch, k)))
    most = len(kept) + 2 + 2  # kept, ahead, and in hand while the next one is awaited
    assert len(places) <= most * (2 if lt.settings().readers else 1)  # two batches in one memory that readers share
    for view, rows in kept:
        np.testing.assert_array_equal(view, dense[rows][2:5, ::2])


def test_a_damaged_region_is_named_at_its_batch(tiles, tmp_path):
    path = tmp_path / "2020" / "r1.tif"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    got = []
    with pytest.raises(LazyTilesError, match=r"t1-0.*r1\.tif|r1\.tif.*t1-0"):
        got.extend(BatchFlow(tiles, 3))
    assert len(got) == 2


def test_the_repr_says_what_flows():
    assert repr(BatchFlow(X, 4, seed=1)) == "BatchFlow(23 samples in order, 6 batches of 4, seed 1)"
    assert "shuffled" in BatchFlow(X, 4, shuffle=True, shard=(1, 2), seed=1)._repr_html_()


def test_only_image_files_are_read_in_blocks() -> None:
    """Batches of arrays share nothing: a block of them would only fill memory that is never warm."""
    kept = lt.MultiSourceArray([np.zeros((40, 8), "uint8")])
    assert Tandem((kept, Planned(np.zeros((40, 8), "uint8")))).planned == (1,)
    with BatchFlow(kept, 4, prefetch=2, threads=2) as flow:
        assert sum(len(batch) for batch in flow) == 40


@pytest.mark.parametrize("kind", [lt.LimitError, lt.SegmentError, lt.ManifestError])
def test_an_error_of_ours_stays_of_its_kind(kind):
    def fail(batch, rng):
        raise kind("too much")

    with pytest.raises(kind, match=r"too much \(transform of batch 0 of epoch 0: "):
        next(iter(lt.BatchFlow(np.zeros((4, 3)), 2, transform=fail)))


def test_a_function_of_the_batch_alone_is_a_transform():
    def half(batch):
        return batch[0] / 2, batch[1]

    def scaled(batch, factor=3):
        return batch[0] * factor, batch[1]

    class Shift:
        def __call__(self, batch):
            return batch[0] + 1, batch[1]

    for fn, x in ((half, X / 2), (scaled, X * 3), (Shift(), X + 1), (lambda b: (b[0] - 1, b[1]), X - 1)):
        flow = pickle.loads(loky.backend.reduction.dumps(BatchFlow((X, IDS), 23, transform=fn)))
        (batch,) = flow
        np.testing.assert_array_equal(batch[0], x)
    (roots,) = BatchFlow(X.astype("f8"), 23, transform=np.sqrt)
    np.testing.assert_array_equal(roots, np.sqrt(X))


def test_a_second_parameter_without_a_default_or_named_rng_gets_the_generator():
    def with_random(batch, random):
        return batch + random.integers(0, 9, batch.shape)

    def with_rng(batch, rng=None):
        return batch + rng.integers(0, 9, batch.shape)

    def with_any(*given):
        return given[0] + given[1].integers(0, 9, given[0].shape)

    one, two, three = (stream(BatchFlow(X, 4, transform=t, seed=1)) for t in (with_random, with_rng, with_any))
    assert one == two == three != stream(BatchFlow(X, 4))


@pytest.mark.parametrize(
    ("transform", "what"),
    [
        (lambda b: b[0], "a batch of 2 parts and gave one array; let it give all of them back"),
        (lambda b: (b[0],), "a batch of 2 parts and gave 1 of them"),
        (lambda b: None, "a batch of 2 parts and gave None"),
        (lambda b: (b[0], None), "gave None as a part of the batch"),
        (lambda b: (b[0][1:], b[1]), r"4 samples and gave 3, an array of shape \(3, 3\)"),
        (lambda b: (b[0], b[1][:2]), "4 samples and gave 2"),
        (lambda b: (b[0], {"a": b[1], "b": 0.5}), "gave 0.5 as a part of the batch"),
        (lambda b: (b[0].mean(), b[1]), "parts are arrays of samples"),
    ],
)
def test_a_transform_gives_all_of_the_batch_back(transform, what):
    with pytest.raises(LazyTilesError, match=rf"ValueError: the transform .*{what}.*\(transform of batch 0 of "):
        next(iter(BatchFlow((X, IDS), 4, transform=transform)))


@pytest.mark.parametrize("left", [lambda x: x["image"], lambda x: {"image": x["image"]}, lambda x: None])
def test_a_transform_gives_all_within_a_part_back(left):
    flow = BatchFlow(({"image": X, "more": X}, IDS), 4, transform=lambda b: (left(b[0]), b[1]))
    with pytest.raises(
        LazyTilesError, match=r"given part 0 of a batch, of 2 parts and gave (one array|1 of them|None)"
    ):
        next(iter(flow))
    with pytest.raises(LazyTilesError, match="a batch of 2 parts and gave one array"):
        next(iter(BatchFlow((X, X), 4, transform=lambda b: np.hstack(b))))
    x, _ = next(iter(BatchFlow(((X, X), IDS), 4, transform=lambda b: (np.hstack(b[0]), b[1]))))
    np.testing.assert_array_equal(x, np.hstack([X[:4], X[:4]]))


def test_what_cannot_be_called_is_no_transform():
    with pytest.raises(TypeError, match=r"transform is a function, .* not 'flip'"):
        BatchFlow(X, 4, transform="flip")


def test_a_transform_may_add_parts_and_change_samples():
    (batch,) = BatchFlow((X, IDS), 23, transform=lambda b: (b[0][:, None], {"id": b[1], "twice": b[1] * 2}, IDS * 0.5))
    assert [array.shape for array in leaves(batch)] == [(23, 1, 3), (23,), (23,), (23,)]
    with pytest.raises(LazyTilesError, match="a batch of 2 parts and gave 1 of them"):
        next(iter(BatchFlow({"x": X, "y": IDS}, 4, transform=lambda b: {"x": b["x"]})))


@pytest.mark.parametrize("samples", [1, 3, 23])
def test_an_error_of_a_transform_says_its_cause_first_and_few_names(samples):
    def fail(batch):
        raise OSError("no such palette")

    with pytest.raises(LazyTilesError) as caught:
        next(iter(BatchFlow(Planned(X), samples, transform=fail)))
    names = ", ".join(f"tile t{k:03}" for k in range(min(3, samples)))
    more = f" and {samples - 3} more" if samples > 3 else ""
    assert str(caught.value) == f"OSError: no such palette (transform of batch 0 of epoch 0: {names}{more})"
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState])
def test_a_seed_may_be_a_generator_of_numpy(make):
    flows = [BatchFlow(IDS, 4, shuffle=True, seed=make(5)) for _ in range(2)]
    assert stream(flows[0]) == stream(flows[1]) == stream(BatchFlow(IDS, 4, shuffle=True, seed=flows[0].seed))
    used = make(5)
    assert BatchFlow(IDS, 4, shuffle=True, seed=used).seed != BatchFlow(IDS, 4, shuffle=True, seed=used).seed
    views = [lt.DelayedView(IDS, shuffle=True, seed=make(5)) for _ in range(2)]
    arrays = [lt.MultiSourceArray([IDS, IDS], shuffle=True, maxlen=9, seed=make(5)) for _ in range(2)]
    for one, other in (views, arrays):
        assert one[:].tolist() == other[:].tolist()
        assert one.seed == other.seed == flows[0].seed
        assert one.shuffle(make(6)).order.tolist() == other.shuffle(one.seed).order.tolist()
    halves = [array.split(0.5, seed=make(7))[0][:].tolist() for array in arrays]
    folds = [next(array.kfold(3, seed=make(7)))[1][:].tolist() for array in arrays]
    patches = [lt.PatchGenerator(np.arange(12.0).reshape(3, 4), 3, random=True, seed=make(8))[:] for _ in range(2)]
    assert halves[0] == halves[1]
    assert folds[0] == folds[1]
    np.testing.assert_array_equal(*patches)


@pytest.mark.parametrize("seed", [0.5, "a", [1], np.array([1, 2])])
def test_what_is_no_seed_is_refused(seed):
    for make in (lambda: BatchFlow(IDS, 4, seed=seed), lambda: lt.DelayedView(IDS).shuffle(seed)):
        with pytest.raises(TypeError, match="seed is a whole number, a NumPy Generator or RandomState, or None"):
            make()


def test_a_state_goes_to_a_flow_whose_seed_was_drawn():
    first = BatchFlow(IDS, 4, shuffle=True, seed=np.random.default_rng(1))
    second = BatchFlow(IDS, 4, shuffle=True, seed=np.random.default_rng(2))
    second.load_state_dict(first.state_dict())
    assert stream(first) == stream(second)


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_threads_that_do_not_start_are_an_error_and_no_wait(monkeypatch, fails):
    """The consumer is told; the next flow reads as if nothing had been."""
    source, start, calls = Planned(np.arange(400).reshape(100, 4)), threading.Thread.start, []

    def failing(thread):
        if thread.name == "lazytiles-ahead":
            calls.append(thread)
            if len(calls) == fails:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    ended = []

    def consume():
        with contextlib.suppress(LazyTilesError, RuntimeError):
            ended.extend(BatchFlow(source, 10, prefetch=2, threads=2, transform=lambda batch, rng: batch))
        ended.append("over")

    reader = threading.Thread(target=consume, daemon=True)
    reader.start()
    reader.join(20)
    assert ended[-1:] == ["over"]
    assert len(ended) in (1, 11)  # all of it or an error, never less
    monkeypatch.undo()
    assert len(list(BatchFlow(source, 10, prefetch=2, threads=2))) == 10


def test_what_a_job_cannot_say_reaches_the_consumer(monkeypatch):
    from lazytiles.training import readahead, schedule

    def failing(*_):
        raise MemoryError("no memory for words")

    for room in (readahead, schedule):
        monkeypatch.setattr(room, "batch_error", failing)

    def transform(batch, rng):
        raise ValueError("odd")

    flow = BatchFlow(Planned(np.arange(400).reshape(100, 4)), 10, prefetch=2, transform=transform)
    with pytest.raises(LazyTilesError, match="reading ahead failed: MemoryError"):
        list(flow)
