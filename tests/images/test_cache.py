"""The segment cache: an exact budget, one decode for all who want it, and never a poisoned array."""

from __future__ import annotations

import linecache
import sys
import threading

import numpy as np
import pytest

import lazytiles as lt
from lazytiles.images import cache as module
from lazytiles.images import jobs
from lazytiles.images.cache import Claim, Run, SegmentCache, segment_cache
from lazytiles.images.files import FileKey, pool
from tests.limits import Counting, within_limits
from tests.made import make, pixels, write

KEY = FileKey("x", 1, 2, 3, 4)


@pytest.fixture(autouse=True)
def fresh():
    with within_limits():
        yield


def held():
    """Bytes of memory that the cache keeps alive, whatever its arrays say of themselves."""
    total = 0
    for run in segment_cache._recent:
        base = array = run.array
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert not array.flags.writeable
        total += max(base.nbytes, memoryview(base.base).nbytes if base.base is not None else 0)
    return total


@pytest.mark.parametrize("options", [{"tile": (16, 16)}, {"rowsperstrip": 2}, {"rowsperstrip": 40}])
@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "packbits", "jpeg"])
@pytest.mark.parametrize("budget", [3000, 20_000])
def test_the_budget_is_exact(budget, compression, options, tmp_path):
    image = pixels((90, 70, 3))
    path = write(tmp_path / "a.tif", image, compression=compression, **options)
    with within_limits(cache_bytes=budget):
        region = lt.open_region(path)
        whole = region[...]
        rng = np.random.default_rng(0)
        for _ in range(40):
            y, x = rng.integers(0, 50, 2)
            np.testing.assert_array_equal(region[y : y + 20, x : x + 20], whole[y : y + 20, x : x + 20])
            assert segment_cache.nbytes == sum(run.nbytes for run in segment_cache._recent) == held()
            assert segment_cache.nbytes <= budget
    assert segment_cache.nbytes == 0


@pytest.mark.parametrize("lower", [5000, 0])
def test_a_lower_budget_holds_at_once(lower, tmp_path):
    region = lt.open_region(write(tmp_path / "a.tif", pixels((128, 128)), compression="zlib", tile=(16, 16)))
    region[...]
    assert segment_cache.nbytes == 128 * 128
    lt.configure(cache_bytes=lower)
    assert segment_cache.nbytes == held() == lower // 256 * 256


@pytest.mark.parametrize("options", [{"tile": (32, 32)}, {"rowsperstrip": 4}])
def test_what_is_kept_is_used_before_it_is_pushed_out(options, tmp_path):
    image = pixels((256, 256))
    region = lt.open_region(write(tmp_path / "a.tif", image, compression="zlib", **options))
    with within_limits(cache_bytes=image.nbytes // 2, threads=1):
        region[...]
        for _ in range(3):  # again and again from top to bottom, which alone would find nothing in half the bytes
            with Counting() as done:
                np.testing.assert_array_equal(region, image)
            assert done.hits >= 0.4 * (done.hits + done.segments)


def test_what_is_not_found_again_is_not_kept():
    own, page = SegmentCache(), (KEY, "0")

    def ask(segment):
        claim = Claim(page, segment, segment + 1, 100)
        assert own.enter(claim) is None
        own.settle(claim, [Run(segment, segment + 1, np.zeros((10, 10), np.uint8))] if claim.keeps else ())
        return claim.keeps if claim.missing else None

    with within_limits(cache_bytes=100 * 100):
        assert all(ask(k) for k in range(150))  # there is room, and then nothing was found yet
        order = np.random.default_rng(0).integers(0, 1000, 6000).tolist()
        random = [ask(k) for k in order][3000:]
        missed = [kept for kept in random if kept is not None]
        assert 0.03 < np.mean(missed) < 0.15
        assert len(random) - len(missed) > 0.07 * len(random)  # a tenth fits, and a tenth is found
        onward = [ask(1000 + k // 2) for k in range(4000)][2000:]  # each is wanted a second time, soon
        assert onward.count(None) == 1000
        assert all(kept is not False for kept in onward)
    assert own.nbytes == 100 * 100


def test_nothing_is_kept_without_a_budget(tmp_path):
    image = pixels((64, 64))
    region = lt.open_region(write(tmp_path / "a.tif", image, compression="zlib", tile=(16, 16)))
    with within_limits(cache_bytes=0), Counting() as done:
        for _ in range(3):
            region[:20, :20]
        assert not segment_cache._recent
    assert (done.segments, done.hits) == (12, 0)


def test_what_fits_is_decoded_once(tmp_path):
    made = make(tmp_path, tiles=40)
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames))
    with Counting() as first:
        tiles.shuffle(1)[:]
    assert first.segments == tiles.plan(slice(None)).segments > 0
    for seed in range(2, 5):
        with Counting() as later:
            np.testing.assert_array_equal(tiles.shuffle(seed)[:], made.dense()[tiles.order])
            for start in range(0, 40, 7):
                tiles[start : start + 7]
        assert later.segments == 0
        assert later.files == 0
        assert later.hits > 0
    lt.clear_cache()
    with Counting() as again:
        tiles[:]
    assert again.segments == first.segments


def test_what_is_handed_out_never_reaches_the_cache(tmp_path):
    image = pixels((48, 48, 3))
    for k, options in enumerate(({"tile": (16, 16)}, {"rowsperstrip": 48}, {"rowsperstrip": 3})):
        for compression in ("lzw", "zlib", "packbits", None):
            region = lt.open_region(
                write(tmp_path / f"{k}{compression}.tif", image, compression=compression, **options)
            )
            for key in (np.s_[:], np.s_[:16, :16], np.s_[0], np.s_[..., 0], np.s_[3:3], np.s_[[1, 2]], ()):
                got = region[key]
                assert got.flags.writeable
                got[...] = 255 - got
                np.testing.assert_array_equal(region[key], image[key])


def test_concurrent_misses_decode_once(tmp_path):
    image = pixels((256, 256), np.uint16)
    path = write(tmp_path / "a.tif", image, compression="zlib", tile=(64, 64))
    for _ in range(5):
        lt.clear_cache()
        region = lt.open_region(path)
        start, wrong = threading.Barrier(8), []

        def read(region=region, start=start, wrong=wrong):
            start.wait()
            if not np.array_equal(region[...], image):
                wrong.append(1)

        threads = [threading.Thread(target=read) for _ in range(8)]
        with Counting() as done:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong
        assert done.segments == 16


def test_a_failed_decode_is_not_kept_and_wakes_who_waits(tmp_path):
    image = pixels((64, 64))
    path = write(tmp_path / "a.tif", image, compression="zlib", tile=(32, 32))
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[0]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(40))
    region, errors = lt.open_region(path), []

    def read():
        try:
            region[:40, :40]
        except lt.SegmentError as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len(errors) == 6
    assert not segment_cache._claims
    assert all(run.first != 0 for run in segment_cache._recent)
    np.testing.assert_array_equal(region[32:, 32:], image[32:, 32:])


def rows(first, stop, width=10):
    """Segments of one row each that hold their own numbers."""
    return Run(first, stop, np.repeat(np.arange(first, stop), width).reshape(-1, width))


def test_claims_and_settlements():
    own = SegmentCache()
    key = (KEY, "0")
    claim = Claim(key, 3, 7)
    assert own.enter(claim) is None
    assert (claim.found, claim.missing) == ([], [range(3, 7)])
    assert own.enter(Claim(key, 6, 9)) is claim
    apart, elsewhere = Claim(key, 7, 9), Claim((KEY, "1"), 3, 7)
    assert own.enter(apart) is own.enter(elsewhere) is None
    own.settle(apart)  # its decode failed
    own.settle(elsewhere)
    own.settle(claim, [rows(3, 7)])
    claim.wait()
    assert own.nbytes == 320
    wider = Claim(key, 1, 9)
    assert own.enter(wider) is None
    assert [run.first for run in wider.found] == [3]
    assert wider.missing == [range(1, 3), range(7, 9)] == own.missing(key, 1, 9)
    own.settle(wider, [rows(1, 3), rows(7, 9)])
    again = Claim(key, 2, 8)
    assert own.enter(again) is None
    assert not again.missing
    assert np.concatenate([run.array for run in again.found])[:, 0].tolist() == list(range(1, 9))
    own.settle(again)
    assert own.nbytes == 640
    own.drop(key, lambda segment: segment < 5)
    assert own.missing(key, 1, 9) == [range(1, 3)]
    own.settle(Claim(key, 0, 1), [Run(0, 1, np.zeros((4, 100))[:, :10])])  # a part of something larger
    assert own.nbytes == 480 + 320
    own.forget()
    assert own.nbytes == 0


def test_what_one_makes_many_get():
    own, asked, made = SegmentCache(), threading.Semaphore(0), []

    def make():
        for _ in range(4):
            assert asked.acquire(timeout=20)
        made.append(np.ones(10))
        return made[0]

    def ask():
        asked.release()
        assert own.once("name", make) is made[0]

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 1
    assert not own._claims

    def fail():
        raise OSError("no such chunk")

    with pytest.raises(OSError, match="no such chunk"):
        own.once("other", fail)
    assert own.once("other", lambda: made[0]) is made[0]


def test_a_segment_larger_than_the_budget_passes_through(tmp_path):
    image = pixels((64, 64))
    region = lt.open_region(write(tmp_path / "a.tif", image, compression="zlib", rowsperstrip=64))
    with within_limits(cache_bytes=1000):
        for _ in range(2):
            np.testing.assert_array_equal(region[10:20], image[10:20])
            assert segment_cache.nbytes == 0


def test_one_path_with_new_contents_is_another_file(tmp_path):
    a, b = pixels((40, 40), seed=1), pixels((40, 40), seed=2)
    path = write(tmp_path / "a.tif", a, compression="zlib")
    np.testing.assert_array_equal(lt.open_region(path), a)
    write(path, b, compression="zlib")
    np.testing.assert_array_equal(lt.open_region(path), b)


def test_an_interrupt_leaves_no_claim_behind(tmp_path, monkeypatch):
    """Control-C while a segment is claimed or decoded must not make the next read wait for ever."""
    image = pixels((64, 64))
    region = lt.open_region(write(tmp_path / "a.tif", image, compression="zlib", tile=(32, 32)))
    enter = segment_cache.enter
    for place in range(1, 5):
        lt.clear_cache()
        calls = []

        def interrupted(claim, calls=calls, place=place):
            calls.append(claim)
            got = enter(claim)
            if len(calls) == place:
                raise KeyboardInterrupt
            return got

        monkeypatch.setattr(segment_cache, "enter", interrupted)
        with within_limits(threads=1), pytest.raises(KeyboardInterrupt):
            region[...]
        monkeypatch.undo()
        assert not segment_cache._claims
        np.testing.assert_array_equal(region, image)


class _Fault:
    """Raises at the k-th line that runs of functions of these names in a module; not where a lock is let go."""

    def __init__(self, module, names, place, error):
        self.file, self.names, self.place, self.error, self.seen = module.__file__, names, place, error, 0

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename != self.file or frame.f_code.co_name not in self.names:
            return None
        if event == "line" and not linecache.getline(self.file, frame.f_lineno).lstrip().startswith("with "):
            self.seen += 1
            if self.seen == self.place:
                raise self.error("injected")
        return self


@pytest.mark.parametrize("faulty", [module, jobs])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_exception_at_any_line_of_keeping_leaves_no_claim_and_a_sound_cache(tmp_path, error, faulty):
    image = pixels((64, 64))
    region = lt.open_region(write(tmp_path / "a.tif", image, compression="zlib", tile=(32, 32)))
    names = {"settle", "enter", "_keep", "_shrink", "_forget_run", "_owned", "_split", "_runs", "_decode", "_decoded"}
    told = set()
    with within_limits(threads=1, cache_bytes=3 * 32 * 32):  # one has to go for the fourth
        for place in range(1, 400):
            lt.clear_cache()
            fault = _Fault(faulty, names, place, error)
            sys.settrace(fault)
            try:
                region[...]
            except error:
                pass
            except lt.SegmentError as raised:
                told.add(str(raised).partition(": ")[2][:14])
            finally:
                sys.settrace(None)
            if fault.seen < place:
                break
            assert not segment_cache._claims, place
            done = []
            later = threading.Thread(target=lambda: done.append(np.array_equal(region[...], image)), daemon=True)  # noqa: B023
            later.start()
            later.join(20)
            assert done == [True], place
            assert segment_cache.nbytes == sum(run.nbytes for run in segment_cache._recent) == held()
    assert 30 < place < 399
    assert told <= {"memory ran out"}


def test_a_lock_that_an_exception_left_behind_does_not_hold_up_its_own_thread(tmp_path):
    image = pixels((64, 64))
    region = lt.open_region(write(tmp_path / "a.tif", image, compression="zlib", tile=(32, 32)))
    lt.clear_cache()
    with within_limits(threads=1), segment_cache._lock, pool._lock:
        np.testing.assert_array_equal(region, image)
        lt.clear_cache()


@pytest.mark.parametrize("threads", [1, 4])
def test_memory_that_runs_out_in_a_job_stops_all_threads_of_the_read(tmp_path, monkeypatch, threads):
    image = pixels((256, 256))
    region = lt.open_region(write(tmp_path / "a.tif", image, compression="zlib", tile=(16, 16)))
    scatter, calls = jobs.Jobs._scatter, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        return scatter(*args)

    monkeypatch.setattr(jobs.Jobs, "_scatter", failing)
    with within_limits(threads=threads):
        with pytest.raises(MemoryError):
            region[...]
        there = len(calls)
        assert there < 100
        assert not segment_cache._claims
        np.testing.assert_array_equal(region[...], image)


@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 3}])
@pytest.mark.parametrize("compression", ["zlib", "zstd", "packbits", "lzw"])
def test_small_segments_are_the_same_from_any_cache(compression, layout, tmp_path):
    image = pixels((130, 90, 2))
    path = write(tmp_path / "a.tif", image, compression=compression, **layout)
    rng = np.random.default_rng(0)
    for budget, threads in ((0, 4), (image.nbytes // 3, 1), (image.nbytes // 3, 4), (2**24, 4)):
        with within_limits(cache_bytes=budget, threads=threads):
            lt.clear_cache()
            region = lt.open_region(path)
            for _ in range(30):
                (y0, y1), (x0, x1) = (np.sort(rng.integers(0, n + 1, 2)) for n in image.shape[:2])
                with Counting() as done:
                    np.testing.assert_array_equal(region[y0:y1, x0:x1], image[y0:y1, x0:x1])
                if y0 < y1 and x0 < x1:
                    down, right = layout.get("tile", (3, 90))
                    touched = ((y1 - 1) // down - y0 // down + 1) * ((x1 - 1) // right - x0 // right + 1)
                    assert done.segments + done.hits == touched
            assert segment_cache.nbytes <= budget
