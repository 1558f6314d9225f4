"""Byte ranges of files: identity, a bounded pool of descriptors, and files that change under a run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import lazytiles as lt
from lazytiles.images.files import FileKey, FilePool, pool
from tests.limits import Counting, within_limits
from tests.made import make, pixels, write


@pytest.fixture(autouse=True)
def fresh():
    with within_limits():
        yield


def open_descriptors(folder):
    """How many descriptors lead into a folder."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith(str(folder))
        except OSError:
            continue
    return found


def test_descriptors_are_bounded_and_reused(tmp_path):
    image = pixels((40, 40))
    paths = [write(tmp_path / f"{k}.tif", image, compression="zlib", tile=(16, 16)) for k in range(12)]
    with within_limits(open_files=4, cache_bytes=0):
        regions = [lt.open_region(path) for path in paths]
        assert open_descriptors(tmp_path) == 4
        with Counting() as done:
            for _ in range(3):
                np.testing.assert_array_equal(regions[-1], image)
        assert done.files == 0
        with Counting() as done:
            for region in regions:
                np.testing.assert_array_equal(region[:9, :9], image[:9, :9])
                assert open_descriptors(tmp_path) <= 4
        assert 8 <= done.files <= 12
        lt.clear_cache()
        assert open_descriptors(tmp_path) == 0
        np.testing.assert_array_equal(regions[0], image)


FEW = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import numpy as np, pandas as pd, os, threading
import lazytiles as lt
folder, count = sys.argv[1], int(sys.argv[2])
image = np.load(folder + "/image.npy")
table = pd.DataFrame({"tile_id": [str(k) for k in range(count)], "region_id": [str(k) for k in range(count)],
                      "target": 0, "region_coordinates": "(3, 5, 19, 21)"})
tiles = lt.open_tiles(table, folder).shuffle(1)
got = tiles[:]
assert got.shape == (count, 16, 16, 1)
assert (got == image[5:21, 3:19, None]).all()
lt.configure(cache_bytes=0)
def look(seed):
    rng = np.random.default_rng(seed)
    for k in rng.integers(0, count, 200):
        assert (tiles[int(k)] == image[5:21, 3:19, None]).all()
threads = [threading.Thread(target=look, args=(k,)) for k in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(os.listdir("/proc/self/fd")) <= 2 * 16 + 12  # a quarter of the limit, and a map for each
lt.configure(mmap=False)
assert (tiles[:] == image[5:21, 3:19, None]).all()
print("read", count)
"""


@pytest.mark.parametrize("raw", [False, True])
def test_more_files_than_descriptors(raw, tmp_path):
    """With ``LAZYTILES_TEST_FILES=10000`` as many as a large set has."""
    count = int(os.environ.get("LAZYTILES_TEST_FILES", "200"))
    image = pixels((32, 32), seed=1)
    np.save(tmp_path / "image.npy", image)
    options = {"rowsperstrip": 32} if raw else {"compression": "zlib", "tile": (16, 16)}
    data = write(tmp_path / "0.tif", image, **options).read_bytes()
    for k in range(1, count):
        (tmp_path / f"{k}.tif").write_bytes(data)
    ran = subprocess.run(
        [sys.executable, "-c", FEW, str(tmp_path), str(count)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(Path(lt.__file__).parents[1])},
    )
    assert ran.stdout.strip() == f"read {count}", ran.stderr[-3000:]


@pytest.mark.parametrize("layout", ["zlib", "raw", "rows"])
@pytest.mark.parametrize("change", ["replaced", "truncated", "overwritten", "removed", "grown", "touched"])
def test_a_file_that_changes_is_an_error_that_names_it(layout, change, tmp_path):
    made = make(
        tmp_path,
        regions=2,
        frames=("2016",),
        tiles=12,
        layouts=({"compression": "zlib", "tile": (16, 16)} if layout == "zlib" else {"rowsperstrip": 5},),
    )
    with within_limits(mmap=layout != "rows"):
        tiles = lt.open_tiles(made.manifest, made.folder)
        dense = made.dense()[:, 0]
        np.testing.assert_array_equal(tiles[:], dense)
        path = made.folder / "2016" / "001.tif"
        old = path.read_bytes()
        before = path.stat()
        if change == "replaced":
            other = path.with_suffix(".new")
            other.write_bytes(old)
            other.rename(path)
        elif change == "truncated":
            with open(path, "r+b") as file:
                file.truncate(len(old) // 2)
        elif change == "overwritten":
            path.write_bytes(old[:8] + bytes(64) + old[72:])
        elif change == "grown":
            path.write_bytes(old + b"more")
        elif change == "removed":
            path.unlink()
        if path.exists():
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        in_it = np.flatnonzero(made.rows.region_id == "001")
        others = np.flatnonzero(made.rows.region_id != "001")
        name = made.rows.tile_id[in_it[0]]
        for _ in range(2):  # cached or not, every time
            with pytest.raises(lt.RegionError, match=rf"(?s){name}\b.*2016/001\.tif.*open the tiles again"):
                tiles[int(in_it[0])]
            with pytest.raises(lt.RegionError, match=r"2016/001\.tif"):
                tiles[:]
            np.testing.assert_array_equal(tiles.take(others), dense[others])
        if path.exists() and change in ("replaced", "grown", "touched"):
            np.testing.assert_array_equal(lt.open_tiles(made.manifest, made.folder)[:], dense)


@pytest.mark.parametrize("compression", ["zlib", None])
def test_a_file_overwritten_with_its_times_set_back_is_noticed(compression, tmp_path):
    one, two = pixels((40, 40), seed=1), pixels((40, 40), seed=2)
    path = write(tmp_path / "a.tif", one, compression=compression)
    before = os.stat(path)
    other = Path(write(tmp_path / "b.tif", two, compression=compression)).read_bytes()
    region = lt.open_region(path)
    np.testing.assert_array_equal(region, one)
    with open(path, "r+b") as file:
        file.write(other[: before.st_size].ljust(before.st_size, b"\0"))
    time.sleep(0.02)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    with pytest.raises(lt.RegionError, match="open the tiles again"):
        region[...]


def test_a_file_system_without_change_times_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", pixels((40, 40)), compression="zlib")
    status = os.stat(path)
    key = FileKey.of(str(path), os.stat_result((*status[:9], 0), {"st_ctime_ns": 0, "st_mtime_ns": status.st_mtime_ns}))
    assert key.ctime_ns == 0
    pool.check(key)


def test_a_pickled_region_refuses_a_changed_file(tmp_path):
    import pickle

    path = write(tmp_path / "a.tif", pixels((20, 20)), compression="zlib")
    region = lt.open_region(path, bands=[0])
    data = pickle.dumps(region)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data), region)
    write(path, pixels((20, 20), seed=2), compression="lzw")
    with pytest.raises(lt.RegionError, match=r"a\.tif was replaced"):
        pickle.loads(data)


def test_ranges_outside_the_file_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    key = pool.identify(str(tmp_path / "a"))
    assert pool.read(key, 2, 3) == b"234"
    assert pool.read(key, 10, 0) == b""
    for offset, size in ((8, 3), (-1, 2), (0, -1), (2**62, 2**62)):
        with pytest.raises(lt.RegionError, match=r"a: bytes .* outside the file of 10 bytes"):
            pool.read(key, offset, size)


def test_short_reads_are_continued(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(200)))
    key, whole = pool.identify(str(tmp_path / "a")), os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: whole(fd, min(size, 7), offset))
    assert pool.read(key, 10, 150) == bytes(range(10, 160))
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: b"")
    with pytest.raises(lt.RegionError, match=r"a was replaced, truncated or overwritten"):
        pool.read(key, 10, 150)


def test_a_full_process_closes_its_own_files_and_tries_again(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    own = FilePool()
    first, calls, opened = own.identify(str(tmp_path / "a")), [], os.open

    def scarce(path, *arguments, **options):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(24, "Too many open files")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", scarce)
    second = own.identify(str(tmp_path / "b"))
    assert len(calls) == 2
    assert own.read(second, 0, 1) + own.read(first, 0, 1) == b"ba"
    own.clear()


def test_threads_share_no_offset(tmp_path):
    """Four threads and five thousand reads each; with and without a cache, compressed and plain."""
    image = pixels((200, 180, 3), np.uint16)
    compressed = lt.open_region(write(tmp_path / "a.tif", image, compression="zlib", tile=(32, 32)))
    plain = lt.open_region(write(tmp_path / "b.tif", image, tile=(16, 16)))
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for k in range(int(os.environ.get("LAZYTILES_TEST_READS", "600"))):
            y, x = rng.integers(0, 160, 2)
            region = (compressed, plain)[k % 2]
            if not np.array_equal(region[y : y + 20, x : x + 20], image[y : y + 20, x : x + 20]):
                wrong.append((seed, k))

    for budget in (0, 100_000):
        with within_limits(cache_bytes=budget):
            threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert not wrong


def test_forked_children_read_for_themselves(tmp_path):
    program = f"""
import os, sys, threading, numpy as np, numpy.random
import lazytiles as lt
image = np.load({str(tmp_path / "image.npy")!r})
regions = [lt.open_region({str(tmp_path)!r} + "/" + name) for name in ("a.tif", "b.tif")]
def look(seed, count):
    rng = np.random.default_rng(seed)
    for k in range(count):
        y, x = rng.integers(0, 160, 2)
        if not np.array_equal(regions[k % 2][y : y + 20, x : x + 20], image[y : y + 20, x : x + 20]):
            os._exit(1)
regions[0][...]
busy = [threading.Thread(target=look, args=(9, 500), daemon=True) for _ in range(2)]
[t.start() for t in busy]
children = []
for seed in range(3):
    child = os.fork()
    if not child:
        look(seed, 400)
        os._exit(7)
    children.append(child)
look(5, 400)
print([os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children])
"""
    image = pixels((200, 180, 3), np.uint16)
    np.save(tmp_path / "image.npy", image)
    write(tmp_path / "a.tif", image, compression="zlib", tile=(32, 32))
    write(tmp_path / "b.tif", image, tile=(16, 16))
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(lt.__file__).parents[1])},
    )
    assert ran.stdout.strip() == "[7, 7, 7]", ran.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not say what it has in memory")
def test_what_is_in_memory_is_known(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(2**20))
    key = pool.identify(str(path))
    pool.read(key, 0, 2**20)
    with open(path, "rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError:
            pytest.skip("this file system does not say what is in memory")
    assert pool.is_in_memory(key, 2**19)
    assert not pool.is_in_memory(key, 2**20)  # its end
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pool.is_in_memory(key, 2**19):
        pytest.skip("this file system keeps what it is told to drop")
    pool.read(key, 2**19, 1)
    assert pool.is_in_memory(key, 2**19)


def test_the_key_of_an_open_file_is_one_object(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"1")
    pool.clear()
    first = pool.identify(str(path))
    assert pool.identify(str(path)) is first
    pool.clear()
    pool.read(first, 0, 1)
    assert pool.identify(str(path)) is first  # opened anew by the key that was asked for
