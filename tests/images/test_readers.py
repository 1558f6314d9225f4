"""Reader processes: the same batches as by threads, whatever happens to a worker, and nothing left behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import lazytiles as lt
from lazytiles.buffers import shared_shelf
from lazytiles.images import readers as room
from lazytiles.images import workers
from lazytiles.images.files import FilePool
from lazytiles.images.jobs import Jobs, Settled
from lazytiles.images.readers import readers
from tests.limits import Counting, within_limits
from tests.made import LAYOUTS, make

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="reader processes are tested on Linux")
ROOT = Path(__file__).resolve().parents[2]
TILED = {"compression": "zlib", "tile": (16, 16)}


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    with within_limits(cache_bytes=0, readers=0):
        yield
    readers.close()
    shared_shelf.clear()


def start(tiles: lt.MultiSourceArray, n: int) -> None:
    """Read until so many workers are ready."""
    end = time.monotonic() + 60
    while len(readers.workers) < n or not all(worker.is_ready for worker in readers.workers):
        tiles.take(np.arange(len(tiles)), readers=n)
        assert time.monotonic() < end, "the workers do not start"


def whole(tiles: lt.MultiSourceArray, n: int, size: int = 10) -> np.ndarray:
    """All samples, read as one plan of batches."""
    batches = [np.arange(at, min(at + size, len(tiles))) for at in range(0, len(tiles), size)]
    found: list[Any] = [None] * len(batches)

    def done(k: int, batch: Any) -> None:
        if isinstance(batch, lt.LazyTilesError):
            raise batch
        found[k] = batch

    tiles.take_batches(batches, done, readers=n)
    return np.concatenate(found)


def opened(folder: Path, **options: Any) -> tuple[lt.MultiSourceArray, np.ndarray]:
    made = make(folder, tiles=60, **options)
    return lt.open_tiles(made.manifest, made.folder, frames=list(made.frames)), made.dense()


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_all_layouts_are_read_as_they_are(n: int, cache_bytes: int, tmp_path: Path) -> None:
    tiles, dense = opened(tmp_path, layouts=LAYOUTS, regions=6)
    with within_limits(cache_bytes=cache_bytes):
        start(tiles, n)
        for seed in range(3):
            tiles.shuffle(seed)
            np.testing.assert_array_equal(whole(tiles, n), dense[tiles.order])
            np.testing.assert_array_equal(tiles.take(np.arange(40), readers=n), dense[tiles.order][:40])


def test_each_segment_is_decoded_once_and_counted_here(tmp_path: Path) -> None:
    tiles, _ = opened(tmp_path, layouts=(TILED,))
    start(tiles, 2)
    planned = tiles.plan(np.arange(len(tiles)))
    with Counting() as counted:
        whole(tiles, 2)
    assert counted.segments == planned.segments
    assert counted.nbytes == planned.bytes_read


@pytest.mark.parametrize(
    "options", [{"size": (12, 8)}, {"size": (12, 8), "resample": "area", "gray": True}, {"pad": "reflect"}]
)
def test_windows_are_finished_as_by_threads(options: dict[str, Any], tmp_path: Path) -> None:
    made = make(tmp_path, tiles=50, size=None if "size" in options else (9, 7), layouts=(TILED,), dtype=np.uint16)
    if "pad" in options:
        first = (
            made.table.region_coordinates.str.strip("()").str.split(",").str[2:].apply(lambda c: (int(c[0]), int(c[1])))
        )
        made.table["region_coordinates"] = [f"({x - 12}, {y - 15}, {x - 3}, {y - 8})" for x, y in first]
        made.table.to_csv(made.manifest, index=False)
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames), **options)
    expected = whole(tiles, 0)
    start(tiles, 2)
    np.testing.assert_array_equal(whole(tiles, 2), expected)
    np.testing.assert_array_equal(tiles.take(np.arange(50), readers=2), expected)


def test_streams_are_equal_for_any_number_of_readers_and_threads(tmp_path: Path) -> None:
    made = make(tmp_path, tiles=70, layouts=(TILED, LAYOUTS[0]))
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames))
    augment = lt.augment.Augment(flip=(True, True), intensity=3)
    streams = []
    for n, threads in ((0, 1), (0, 4), (1, 2), (2, 1), (4, 4)):
        if n:
            start(tiles, n)
        options: dict[str, Any] = {"shuffle": True, "seed": 5, "transform": augment, "threads": threads, "readers": n}
        with lt.BatchFlow((tiles, tiles.labels), 8, readahead_bytes=2**18, **options) as flow:
            first = [batch for _, batch in zip(range(3), flow, strict=False)]
            state = flow.state_dict()
        with lt.BatchFlow((tiles, tiles.labels), 8, readahead_bytes=2**18, **options) as flow:
            flow.load_state_dict(state)
            streams.append([*first, *flow, *flow])
    for stream in streams[1:]:
        assert len(stream) == len(streams[0]) == 18
        for ours, theirs in zip(stream, streams[0], strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("connections", [1, 4])
def test_a_killed_worker_is_replaced_and_nothing_is_lost(connections: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(room, "usable_cpus", lambda: 2 * connections)
    tiles, dense = opened(tmp_path, layouts=(TILED,))
    rng = random.Random(3)
    for _ in range(25):
        start(tiles, 2)
        victim, pause = rng.choice(readers.workers).pid, rng.random() * 0.004

        def kill(pid: int = victim, pause: float = pause) -> None:
            time.sleep(pause)
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        np.testing.assert_array_equal(whole(tiles, 2), dense)
        killer.join()
        while victim in [worker.pid for worker in readers.workers]:  # killed after its last answer: not noticed yet
            np.testing.assert_array_equal(whole(tiles, 2), dense)


class Looked(list[Any]):
    """A list that lets other threads in after each look at its length."""

    def __len__(self) -> int:
        length = super().__len__()
        time.sleep(0.2)
        return length


def test_connections_of_a_worker_count_what_they_share_once(monkeypatch: Any) -> None:
    monkeypatch.setitem(
        workers._plans, -1, SimpleNamespace(tally=Looked([(3, 0, 0)]), do=lambda numbers: Settled([], {}))
    )
    monkeypatch.setattr(workers, "_told", dict(lt.counters()))
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(workers._answer(-1, []))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.error for answer in answers] == [None] * 4
    assert sum(answer.counted.get("segments_decoded", 0) for answer in answers) == 3


def test_workers_come_back_from_a_read_that_never_began(tmp_path: Path, monkeypatch: Any) -> None:
    tiles, dense = opened(tmp_path, layouts=(TILED,))
    start(tiles, 2)
    stop = threading.Event()
    stop.set()
    tiles.take_batches([np.arange(60)], lambda k, batch: None, readers=2, stop=stop)
    with monkeypatch.context() as change:
        change.setattr(room, "_sheet_of", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            tiles.take(np.arange(60), readers=2)
    leased = readers.lease(2)
    try:
        assert len(leased) == sum(len(worker.connections) for worker in readers.workers)
        np.testing.assert_array_equal(tiles.take(np.arange(60), readers=2, threads=1), dense)  # while others have them
    finally:
        readers.give_back(leased)


def test_files_are_found_from_another_working_directory(tmp_path: Path, monkeypatch: Any) -> None:
    made = make(tmp_path / "made", tiles=60)
    monkeypatch.chdir(tmp_path)
    tiles, dense = lt.open_tiles(f"made/{made.manifest.name}", "made", frames=list(made.frames)), made.dense()
    start(tiles, 2)
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    again = lt.open_tiles(f"../made/{made.manifest.name}", "../made", frames=list(made.frames))
    np.testing.assert_array_equal(whole(again, 2), dense)


def test_batches_without_samples_arrive_too(tmp_path: Path) -> None:
    tiles, dense = opened(tmp_path, layouts=(TILED,))
    start(tiles, 2)
    batches = [np.empty(0, np.int64), np.arange(30), np.empty(0, np.int64), np.arange(30, 60), np.empty(0, np.int64)]
    got: dict[int, Any] = {}
    tiles.take_batches(batches, got.__setitem__, readers=2)
    for k, batch in enumerate(batches):
        np.testing.assert_array_equal(got[k], dense[batch])


def test_a_part_that_kills_every_worker_is_an_error_with_its_tiles(tmp_path: Path, monkeypatch: Any) -> None:
    tiles, _ = opened(tmp_path, layouts=(TILED,), frames=("2016",))
    deadly = (
        "import os; from lazytiles.images.jobs import Jobs; do = Jobs.do\n"
        "def die(self, numbers):\n"
        "    paths = [self.pages[k].file.path for k in self.lines[numbers, 0]]\n"
        "    os._exit(1) if any('001.tif' in path for path in paths) else None\n"
        "    return do(self, numbers)\n"
        "Jobs.do = die\n"
    )
    monkeypatch.setattr(room, "PROGRAM", f"exec({deadly!r}); {room.PROGRAM}")
    regions = tiles.table.region_id.to_numpy()
    start(tiles.select(regions != "001"), 2)
    good, bad = np.flatnonzero(regions != "001"), np.flatnonzero(regions == "001")
    assert min(len(good), len(bad)) > 0
    results: dict[int, Any] = {}
    here, do = [], Jobs.do

    def told(self: Jobs, numbers: Any) -> Settled:
        here.extend(self.pages[k].file.path for k in self.lines[numbers, 0])
        return do(self, numbers)

    monkeypatch.setattr(Jobs, "do", told)
    tiles.take_batches([good, bad, good], results.__setitem__, readers=2)
    assert not [path for path in here if "001.tif" in path]  # what kills a worker would kill this process
    assert results[0].shape == results[2].shape == (len(good), *tiles.shape[1:])
    assert isinstance(results[1], lt.LazyTilesError)
    assert "two reader processes died while they read" in str(results[1])
    assert "001.tif" in str(results[1])
    assert str(results[1]).startswith("tile t")


def test_errors_are_those_of_threads(tmp_path: Path) -> None:
    made = make(tmp_path, tiles=40, layouts=(TILED,), frames=("2016",))
    path = made.folder / "2016" / "001.tif"
    tiles = lt.open_tiles(made.manifest, made.folder)
    start(tiles, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 400] = bytes(400)
    path.write_bytes(data)
    said = []
    for n in (0, 2):
        again = lt.open_tiles(made.manifest, made.folder)
        with pytest.raises(lt.LazyTilesError) as caught:
            again.take(np.flatnonzero(again.table.region_id == "001"), readers=n)
        said.append(caught.value)
    assert type(said[0]) is type(said[1]) is lt.SegmentError
    for error in said:
        assert str(error).startswith("tile t")
        assert "001.tif page 0: segment" in str(error)
    with pytest.raises(lt.RegionError, match=r"001\.tif was replaced"):
        tiles.take(np.flatnonzero(tiles.table.region_id == "001"), readers=2)


def test_a_forked_child_reads_by_itself(tmp_path: Path) -> None:
    tiles, dense = opened(tmp_path, layouts=(TILED,))
    start(tiles, 2)
    kept = tiles.take(np.arange(30), readers=2)
    child = os.fork()
    if child == 0:
        right = [not readers.workers, lt.settings().readers == 0, np.array_equal(kept, dense[:30])]
        time.sleep(0.2)
        right += [np.array_equal(kept, dense[:30]), np.array_equal(tiles.take(np.arange(60)), dense)]
        right += [np.array_equal(whole(tiles, 1), dense)]  # who asks for workers gets some
        readers.close()
        os._exit(right.index(False) + 1 if False in right else 0)
    del kept
    for _ in range(5):
        whole(tiles, 2)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(whole(tiles, 2), dense)


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    make(tmp_path, tiles=60, layouts=(TILED,))
    script = tmp_path / "script.py"  # with no guard of __main__, and counting how often it is run
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            with open({str(tmp_path / "runs")!r}, "a") as runs:
                runs.write("x")
            import numpy as np
            import lazytiles as lt
            from lazytiles.images.readers import readers
            lt.configure(cache_bytes=0, readers=2)
            tiles = lt.open_tiles({str(tmp_path / "tiles.csv")!r}, {str(tmp_path)!r}, frames=["2016", "2017"])
            while not readers.workers or not all(w.is_ready for w in readers.workers):
                tiles.take(np.arange(60))
            tiles.take(np.arange(60))
            print(*[w.pid for w in readers.workers], flush=True)
            if sys.argv[1] == "wait":
                time.sleep(60)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for how in ("wait", "end"):
        child = subprocess.Popen([sys.executable, str(script), how], stdout=subprocess.PIPE, text=True, env=environment)
        assert child.stdout is not None
        pids = [int(pid) for pid in child.stdout.readline().split()]
        assert len(pids) == 2
        if how == "wait":
            child.kill()
        assert child.wait(30) == (-signal.SIGKILL if how == "wait" else 0)
        child.stdout.close()
        end = time.monotonic() + 5
        while any(Path(f"/proc/{pid}/stat").exists() for pid in pids) and time.monotonic() < end:
            time.sleep(0.01)
        assert not [pid for pid in pids if Path(f"/proc/{pid}/stat").exists()]
    assert (tmp_path / "runs").read_text() == "xx"


def test_abandoned_iterators_leave_nothing(tmp_path: Path) -> None:
    tiles, dense = opened(tmp_path, layouts=(TILED,))
    start(tiles, 2)

    def abandon(times: int) -> None:
        for k in range(times):
            flow = lt.BatchFlow(tiles, 4, shuffle=True, seed=k, readahead_bytes=2**16, readers=2)
            next(iter(flow))
            del flow
        gc.collect()

    abandon(20)
    pids = [worker.pid for worker in readers.workers]
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    abandon(100)
    assert [worker.pid for worker in readers.workers] == pids
    assert len(os.listdir("/proc/self/fd")) <= before[0] + 2 * 16
    assert threading.active_count() <= before[1]
    np.testing.assert_array_equal(whole(tiles, 2), dense)


def test_a_stalled_consumer_holds_no_more_than_its_budget(tmp_path: Path) -> None:
    tiles, _ = opened(tmp_path, layouts=(TILED,))
    budget = 8 * int(np.prod(tiles.shape[1:])) * 4
    start(tiles, 2)
    shared_shelf.clear()
    flow = lt.BatchFlow(tiles, 4, readahead_bytes=budget, readers=2, prefetch=1)
    batches = iter(flow)
    held = [next(batches)]
    time.sleep(0.3)
    lent = sum(memory.nbytes for memory in shared_shelf._lent.values()) + shared_shelf.nbytes
    assert lent <= budget + 2**18  # and the tables of plans
    del held
    flow.close()


def test_workers_are_small(tmp_path: Path) -> None:
    tiles, _ = opened(tmp_path, layouts=LAYOUTS)
    start(tiles, 2)
    for worker in readers.workers:
        facts = dict(line.split(":", 1) for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines())
        assert int(facts["VmRSS"].split()[0]) - int(facts["RssShmem"].split()[0]) < 120 * 1024
        loaded = Path(f"/proc/{worker.pid}/maps").read_text()
        assert not any(name in loaded for name in ("tensorflow", "pandas", "pyarrow", "torch"))


@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 3)), min_size=1, max_size=12), st.integers(0, 99))
@examples(max_examples=40, deadline=None)
def test_messages_arrive_whole_with_their_descriptors(told: list[tuple[int, int]], seed: int) -> None:
    rng = random.Random(seed)
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as file:
        there, got = workers.Wire(theirs), list[Any]()

        def receive() -> None:
            with suppress(EOFError):
                while True:
                    time.sleep(rng.choice([0, 0.001]))  # so that several are there at once, or a part of one
                    got.append(there.receive())

        thread = threading.Thread(target=receive)
        thread.start()
        for number, (size, fds) in enumerate(told):
            workers.Wire(ours).send((number, b"x" * size), [file.fileno()] * fds)
        ours.shutdown(socket.SHUT_WR)
        thread.join(60)
        assert [(message[0], len(message[1]), len(fds)) for message, fds in got] == [
            (number, *each) for number, each in enumerate(told)
        ]
        for fd in [fd for _, fds in got for fd in fds]:
            assert os.path.sameopenfile(fd, file.fileno())
            os.close(fd)
        assert not there.has_more


@given(st.lists(st.integers(0, 10_000), unique=True), st.integers(1, 40), st.integers(1, 20))
def test_parts_are_all_jobs_once_the_largest_first(numbers: list[int], threads: int, most: int) -> None:
    parts = [part.tolist() for part in room._cut(np.array(sorted(numbers), np.intp), threads, most)]
    assert [number for part in parts for number in part] == sorted(numbers)
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes, default=1) <= most
    assert len(parts) >= min(len(numbers), threads)  # each thread has one
    for part in parts:
        assert list(room._short(part)) == part
        assert isinstance(room._short(part), range) == (part[-1] - part[0] + 1 == len(part))


def test_windows_of_neighbours_are_those_of_each(tmp_path: Path) -> None:
    tiles, _ = opened(tmp_path)
    jobs = Jobs.of(tiles.plan(np.arange(len(tiles))), {})
    every = [jobs.windows_of([number]) for number in range(len(jobs.lines))]
    assert sum(map(len, every)) == len(jobs.pieces) > len(every) > 10
    for part in (range(len(every)), range(3, 4), range(2, 9)):
        assert (
            jobs.windows_of(part) == jobs.windows_of([*part]) == [window for number in part for window in every[number]]
        )


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="nothing is advised without posix_fadvise")
def test_readers_advise_of_what_is_not_in_memory(tmp_path: Path, monkeypatch: Any) -> None:
    tiles, dense = opened(tmp_path, layouts=(TILED,))
    start(tiles, 1)
    advised, advise = list[int](), os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, size, how: advised.append(at) or advise(fd, at, size, how))
    for is_there, places in ((True, 0), (False, 2)):
        monkeypatch.setattr(FilePool, "is_in_memory", lambda *_, is_there=is_there: is_there)
        np.testing.assert_array_equal(tiles.take(np.arange(len(tiles)), readers=1), dense)
        assert len(advised) >= places
        assert bool(advised) == bool(places)
