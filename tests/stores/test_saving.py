"""`export`, `persist`, `open_store` and `verify_store`: what comes back is what went in, or a clear error."""

from __future__ import annotations

import contextlib
import io
import pickle
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lazytiles as lt
from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.errors import RegionError, StoreError
from lazytiles.stores.distributed import BlockTarget, write_block
from lazytiles.stores.formats import FORMATS
from lazytiles.stores.saving import export, open_store, persist, verify_store
from lazytiles.stores.sink import StoreSink
from lazytiles.stores.store_array import StoreArray
from lazytiles.stores.writers import StoreWriter

pytestmark = pytest.mark.usefixtures("zarr_threads")

LIBRARY = {"h5": "h5py", "zarr": "zarr", "b2nd": "blosc2", "npy": "numpy", "tfrecord": "google_crc32c"}


@pytest.fixture(params=sorted(LIBRARY))
def suffix(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LIBRARY[request.param])
    return str(request.param)


def images(count: int = 50, shape: tuple[int, ...] = (8, 7, 3), dtype: str = "u1") -> np.ndarray:
    return np.random.default_rng(3).integers(0, 120, (count, *shape)).astype(dtype)


def tiles_of(count: int = 50, labels: object = None) -> MultiSourceArray:
    data = images(count)
    table = pd.DataFrame(
        {
            "tile_id": [f"{k:04}" for k in range(count)],
            "region_id": pd.Categorical([f"r{k // 20}" for k in range(count)]),
            "xmin": np.arange(count, dtype=np.int32),
            "slope": np.linspace(0, 1, count, dtype=np.float32),
        }
    )
    half = count // 2
    if labels is None:
        labels = np.arange(count) % 7
    return MultiSourceArray([data[:half], data[half:]], labels=labels, table=table)


def assert_same(found: MultiSourceArray, tiles: MultiSourceArray) -> None:
    np.testing.assert_array_equal(found[:], tiles[:])
    assert found.dtype == tiles.dtype
    if tiles.labels is None:
        assert found.labels is None
    else:
        np.testing.assert_array_equal(np.asarray(found.labels[:]), np.asarray(tiles.labels[:]))
    if tiles.table is None:
        assert found.table is None
    else:
        pd.testing.assert_frame_equal(found.table, tiles.table)


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_export_opens_as_what_was_exported(suffix, tmp_path, shuffled):
    tiles, path = tiles_of(), tmp_path / f"tiles.{suffix}"
    tiles.companions = replace(tiles.companions, tabular=("slope",))
    if shuffled:
        tiles.shuffle(5)
    assert_same(export(tiles, path, chunk=8), tiles)
    found = open_store(path)
    assert_same(found, tiles)
    np.testing.assert_array_equal(found.tabular, tiles.tabular)
    np.testing.assert_array_equal(found.order, np.arange(50))
    assert found[3, ..., 1].tolist() == tiles[3, ..., 1].tolist()
    verified = verify_store(path)
    assert (verified.rows, verified.chunks, verified.nbytes) == (50, 7, tiles.nbytes)
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name or "lock" in p.name]


@pytest.mark.parametrize("where", ["memory", "store"])
def test_persisted_tiles_are_the_same_array(suffix, tmp_path, where):
    if where == "memory" and suffix != "npy":
        pytest.skip("memory is one case")
    tiles = tiles_of().shuffle(11)
    kept = persist(tiles, None if where == "memory" else tmp_path / f"tiles.{suffix}", chunk=8)
    opened = kept if where == "memory" else open_store(tmp_path / f"tiles.{suffix}")
    for found in (kept, opened):
        assert_same(found, tiles)
        np.testing.assert_array_equal(found.order, tiles.order)
        assert found.seed == tiles.seed == 11
    assert_same(kept.shuffle(3), tiles.shuffle(3))
    assert_same(kept.reset_order(), tiles.reset_order())
    assert_same(kept.select([4, 2, 9]), tiles.select([4, 2, 9]))
    first, second = kept.split(0.5, by="region_id", seed=1)
    ours, theirs = tiles.split(0.5, by="region_id", seed=1)
    assert_same(first, ours)
    assert_same(second, theirs)
    assert_same(kept.split(0.5, by="source", seed=1)[0], tiles.split(0.5, by="source", seed=1)[0])
    assert_same(kept.shuffle(5, window=2), tiles.shuffle(5, window=2))


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(50, dtype=np.int32) - 20,
        np.linspace(0, 1, 100, dtype=np.float32).reshape(50, 2),
        np.array(["ash", "oak"] * 25),
        np.array(["ash", "oak"] * 25, dtype=object),
        np.arange(50) % 2 == 0,
    ],
    ids=["int32", "two columns", "text", "objects", "bool"],
)
def test_labels_of_every_kind_come_back(suffix, tmp_path, labels):
    tiles = tiles_of(labels=labels)
    assert_same(export(tiles, tmp_path / f"tiles.{suffix}"), tiles)


def test_mask_labels_go_into_a_store_beside(suffix, tmp_path):
    masks = np.random.default_rng(1).integers(0, 2, (50, 8, 7), dtype="u1")
    tiles = tiles_of(labels=MultiSourceArray([masks])).shuffle(2)
    path = tmp_path / f"tiles.{suffix}"
    for make in (
        lambda: export(tiles, path, chunk=8),
        lambda: persist(tiles, path, chunk=8, overwrite=True),
        lambda: persist(tiles),
    ):
        found = make()
        np.testing.assert_array_equal(found.labels[5:9], tiles.labels[5:9])
        assert_same(found, tiles)
    verify_store(path)
    assert [p.name for p in tmp_path.glob("*labels*")] == [f"tiles.labels-2.{suffix}"] or suffix == "tfrecord"
    export(tiles.labels, tmp_path / f"tiles.labels-2.{suffix}", overwrite=True)
    with pytest.raises(StoreError, match=r"tiles\.labels-2\.\w+ is not the one that was written with"):
        open_store(path)


def test_labels_of_objects_are_refused(tmp_path):
    labels = np.empty(50, object)
    labels[:] = [{} for _ in range(50)]
    with pytest.raises(StoreError, match="neither numbers nor text"):
        export(tiles_of(labels=labels), tmp_path / "tiles.npy")
    assert list(tmp_path.iterdir()) == []


def test_any_source_can_be_exported(tmp_path):
    data = images(9, dtype="f4")
    np.testing.assert_array_equal(export(data, tmp_path / "tiles.npy")[:], data)
    np.testing.assert_array_equal(persist(data)[:], data)
    np.testing.assert_array_equal(np.load(tmp_path / "tiles.npy"), data)


def test_real_tiles_are_exported(corpus_dir, tmp_path):
    index = pd.read_csv(corpus_dir / "INDEX.csv")
    real = index[(index["kind"] == "ok") & (index["dtype"] == "uint8") & (index["spp"] == 3)]
    files = [corpus_dir / path for path in real["path"]]
    file = next(file for file in files if min(lt.open_region(file).shape[:2]) >= 40)
    boxes = [(x, y, x + 16, y + 16) for y in (0, 8, 24) for x in (0, 5, 20)]
    table = pd.DataFrame(boxes, columns=["xmin", "ymin", "xmax", "ymax"])
    table.insert(0, "tile_id", [f"t{k}" for k in range(len(boxes))])
    table.insert(1, "region_id", file.stem)
    tiles = lt.open_tiles(table, file.parent, path="{region_id}" + file.suffix, target=None).shuffle(1)
    found = export(tiles, tmp_path / "tiles.npy", chunk=4)
    assert_same(found, tiles)
    x, y = int(found.table["xmin"][0]), int(found.table["ymin"][0])
    np.testing.assert_array_equal(found[0], lt.open_region(file)[y : y + 16, x : x + 16])


class Failing:
    """A source that breaks at one sample until it is mended, and counts what is read."""

    def __init__(self, data: np.ndarray, at: int) -> None:
        self.data, self.at, self.read = data, at, 0
        self.shape, self.dtype = data.shape, data.dtype

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: object) -> np.ndarray:
        rows = key[0] if isinstance(key, tuple) else key
        touched = np.arange(len(self.data))[rows]
        if self.at in touched:
            raise RegionError(f"sample {self.at} cannot be read")
        self.read += touched.size
        return self.data[key]


def test_a_failed_export_is_resumed_where_it_stopped(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("lazytiles.stores.saving._READ_BYTES", 1000)
    path, data = tmp_path / f"tiles.{suffix}", images(40)
    source = Failing(data, at=30)
    with pytest.raises(RegionError, match="sample 30 cannot be read"):
        export(source, path, chunk=4)
    with pytest.raises(StoreError, match=r"is incomplete: .* holds 28 rows; write on with resume=True"):
        open_store(path)
    source.at, source.read = -1, 0
    steps: list[tuple[int, int]] = []
    found = export(source, path, chunk=4, resume=True, progress=lambda *step: steps.append(step))
    assert source.read == 40  # those that are there are compared
    assert steps == [(32, 40), (36, 40), (40, 40)]
    np.testing.assert_array_equal(found[:], data)
    np.testing.assert_array_equal(export(source, path, chunk=4, resume=True)[5:], data[5:])
    with pytest.raises(StoreError, match="exists; pass overwrite=True"):
        export(data[:20], path, chunk=4, resume=True)


def changed(data: np.ndarray, row: int) -> np.ndarray:
    other = data.copy()
    other[row, -1] += 1
    return other


def test_resume_never_mixes_two_runs(suffix, tmp_path, monkeypatch):
    """Arrays of one shape and dtype have one fingerprint: what is there already is compared row by row."""
    monkeypatch.setattr("lazytiles.stores.saving._READ_BYTES", 1000)
    path, data = tmp_path / f"tiles.{suffix}", images(40)
    with pytest.raises(RegionError):
        export(Failing(data, at=30), path, chunk=4)
    with pytest.raises(
        StoreError, match=rf"tiles\.{suffix}: row 9 of what is there .* pass overwrite=True to begin anew"
    ):
        export(Failing(changed(data, 9), at=-1), path, chunk=4, resume=True)
    np.testing.assert_array_equal(export(Failing(data, at=-1), path, chunk=4, resume=True)[:], data)
    with pytest.raises(StoreError, match=r"exists; pass overwrite=True to replace it: row 33 is the first"):
        export(Failing(changed(data, 33), at=-1), path, chunk=4, resume=True)
    with pytest.raises(RegionError):
        export(Failing(data, at=30), path, chunk=4, overwrite=True)
    other = changed(data, 9)
    found = export(Failing(other, at=-1), path, chunk=4, resume=True, overwrite=True)
    np.testing.assert_array_equal(found[:], other)
    assert {p.name for p in tmp_path.iterdir() if not p.name.endswith(".meta")} == {path.name}


@pytest.mark.parametrize("what", ["labels", "table", "order", "masks", "shape"])
def test_resume_compares_what_stands_beside_the_rows(suffix, tmp_path, what):
    masks = np.random.default_rng(1).integers(0, 2, (50, 8, 7), dtype="u1")
    tiles = tiles_of(labels=MultiSourceArray([masks]) if what == "masks" else None)
    path = tmp_path / f"tiles.{suffix}"
    make = persist if what == "order" else export
    assert_same(make(tiles, path, chunk=8), tiles)
    assert_same(make(tiles, path, chunk=8, resume=True), tiles)
    labels, table = np.arange(50) % 7, tiles.table.copy()
    labels[11], table.loc[12, "slope"] = 9, -1
    other, message = {
        "labels": (MultiSourceArray(tiles.sources, labels=labels, table=tiles.table), "the label of row 11"),
        "table": (
            MultiSourceArray(tiles.sources, labels=tiles.labels, table=table),
            "the slope in the table of row 12",
        ),
        "order": (tiles_of().shuffle(3), "the order of all rows"),
        "masks": (tiles_of(labels=MultiSourceArray([changed(masks, 13)])), "row 13 is the first"),
        "shape": (tiles_of(49), "row 0 is the first"),
    }[what]
    with pytest.raises(StoreError, match=f"exists; pass overwrite=True to replace it: {message}"):
        make(other, path, chunk=8, resume=True)
    assert_same(make(other, path, chunk=8, overwrite=True), other)


def test_resume_never_takes_a_damaged_store_as_done(suffix, tmp_path):
    path, data = tmp_path / f"tiles.{suffix}", images(23)
    export(data, path, chunk=5, **uncompressed(suffix))
    damage(path, 11, data)
    with pytest.raises(StoreError, match=r"pass overwrite=True to replace it: .*rows 10 to 15 (are damaged|cannot)"):
        export(data, path, chunk=5, resume=True, **uncompressed(suffix))
    np.testing.assert_array_equal(export(data, path, chunk=5, overwrite=True)[:], data)


def test_an_export_of_other_tiles_is_not_continued(tmp_path, monkeypatch):
    monkeypatch.setattr("lazytiles.stores.saving._READ_BYTES", 1000)
    path, data = tmp_path / "tiles.npy", images(40)
    with pytest.raises(RegionError):
        export(MultiSourceArray([Failing(data, at=30)], labels=[1]), path, chunk=4)
    other = MultiSourceArray([data[::-1]], labels=[2])
    assert_same(export(other, path, chunk=4, resume=True), other)


VICTIM = """
import sys, time
import numpy as np
from lazytiles.stores import saving as store, sink
from lazytiles.arrays.multisource import MultiSourceArray

sink._COMMIT_S, store._READ_BYTES = 0, 20_000
data = np.random.default_rng(3).integers(0, 120, (300, 16, 16, 3), dtype="u1")
tiles = MultiSourceArray([data], labels=np.arange(300)).shuffle(4)
store.export(tiles, sys.argv[1], chunk=8, resume=True, progress=lambda *_: print(end=".", flush=True))
"""


def test_a_killed_export_resumes_to_the_uninterrupted_one(suffix, tmp_path):
    path, data = tmp_path / f"tiles.{suffix}", np.random.default_rng(3).integers(0, 120, (300, 16, 16, 3), dtype="u1")
    tiles = MultiSourceArray([data], labels=np.arange(300)).shuffle(4)
    command = [sys.executable, "-W", "ignore", "-c", VICTIM, str(path)]
    for dots in (3, 2, 5):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.read(dots)
            child.kill()
    before = len(subprocess.run(command, capture_output=True, check=True).stdout)
    assert before < 36
    assert_same(open_store(path), tiles)
    plain = tmp_path / f"plain.{suffix}"
    export(tiles, plain, chunk=8)
    np.testing.assert_array_equal(open_store(path)[:], open_store(plain)[:])
    if suffix == "tfrecord":
        assert path.read_bytes() == plain.read_bytes()


def test_progress_can_be_drawn(tmp_path, capsys):
    export(tiles_of(), tmp_path / "tiles.npy", progress=True)
    assert "writing tiles" in capsys.readouterr().out


def test_a_store_can_be_indexed_as_numpy_does(suffix, tmp_path):
    data = images(23)
    export(data, tmp_path / f"tiles.{suffix}", chunk=5)
    store = StoreArray(tmp_path / f"tiles.{suffix}")
    assert (store.shape, store.dtype, store.ndim, store.size, store.nbytes) == (
        data.shape, data.dtype, data.ndim, data.size, data.nbytes
    )  # fmt: skip
    assert store.chunks == (5, 8, 7, 3)
    for key in (
        0, -1, slice(3, 17, 4), slice(None, None, -3), [5, 5, -2, 11], np.arange(23) % 3 == 0, ..., (..., 0),
        (slice(2, 9), 3), (4, slice(None), [1, 6, 1]), ([0, 9], [1, 2], [3, 4]), np.zeros(0, int),
        (slice(None), slice(None, None, 7), 2), (None, 3),
    ):  # fmt: skip
        np.testing.assert_array_equal(store[key], data[key])
    out = np.empty((2, 8, 7, 3), "u1")
    assert store.take([21, 4], out=out) is out
    np.testing.assert_array_equal(out, data[[21, 4]])
    np.testing.assert_array_equal(np.asarray(store), data)
    with pytest.raises(IndexError, match="out of bounds"):
        store[23]
    twin = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 500
    np.testing.assert_array_equal(twin[7], data[7])
    store.close()
    np.testing.assert_array_equal(store[7], data[7])
    assert repr(store).startswith("<StoreArray ")


def test_threads_read_one_store_together(suffix, tmp_path):
    data, wrong = images(200), []
    export(data, tmp_path / f"tiles.{suffix}", chunk=8)
    found = open_store(tmp_path / f"tiles.{suffix}")

    def read(seed: int) -> None:
        batches = np.random.default_rng(seed).integers(0, 200, (20, 16))
        wrong.extend(rows for rows in batches if not np.array_equal(found.take(rows), data[rows]))

    threads = [threading.Thread(target=read, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_mapping_the_same_is_read(tmp_path):
    data = images(30)
    export(data, tmp_path / "tiles.npy", chunk=7)
    lt.configure(mmap=False)
    try:
        store = StoreArray(tmp_path / "tiles.npy")
        np.testing.assert_array_equal(store[[29, 3, 3]], data[[29, 3, 3]])
        np.testing.assert_array_equal(store[...], data)
    finally:
        lt.configure(mmap=True)


@pytest.mark.parametrize("warm", [False, True])
def test_a_mapped_store_cut_short_meanwhile_does_not_kill_the_process(tmp_path, warm):
    export(images(400), tmp_path / "tiles.npy", chunk=7)
    found = open_store(tmp_path / "tiles.npy")
    if warm:
        found[:]
    with (tmp_path / "tiles.npy").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(StoreError, match=r"tiles\.npy.* was cut short meanwhile"):
        found[390]


def damage(path: Path, row: int, data: np.ndarray) -> None:
    """Flip one bit of the stored bytes of a row."""
    file = next(p for p in path.glob(f"c/{row // 5}/**/*") if p.is_file()) if path.is_dir() else path
    raw = bytearray(file.read_bytes())
    at = raw.index(data[row].tobytes()[:40])
    raw[at + 17] ^= 8
    file.write_bytes(raw)


def uncompressed(suffix: str) -> dict[str, object]:
    if suffix == "b2nd":
        import blosc2

        return {"cparams": blosc2.CParams(clevel=0)}
    return {"h5": {"compression": None}, "zarr": {"compressors": None}}.get(suffix, {})


def test_a_flipped_bit_is_seen_when_its_chunk_is_first_touched(suffix, tmp_path):
    path, data = tmp_path / f"tiles.{suffix}", images(23)
    export(data, path, chunk=5, **uncompressed(suffix))
    damage(path, 11, data)
    found = open_store(path)
    np.testing.assert_array_equal(found[:10], data[:10])
    with pytest.raises(StoreError, match=r"tiles\.\w+: rows 10 to 15 (are damaged|cannot be read)"):
        found[12]
    np.testing.assert_array_equal(found[15:], data[15:])
    with pytest.raises(StoreError, match="is damaged in rows 10 to 15; write it again"):
        verify_store(path)


def test_any_flipped_byte_of_records_is_seen(tmp_path):
    pytest.importorskip("google_crc32c")
    path = tmp_path / "tiles.tfrecord"
    export(tiles_of(3), path, chunk=2)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(StoreError, match="damaged in rows"):
            verify_store(path)


def test_a_missing_chunk_is_seen(tmp_path):
    pytest.importorskip("zarr")
    data = images(23)
    export(data, tmp_path / "tiles.zarr", chunk=5)
    (tmp_path / "tiles.zarr" / "c" / "2" / "0" / "0" / "0").unlink()
    with pytest.raises(StoreError, match="rows 10 to 15 are damaged"):
        open_store(tmp_path / "tiles.zarr")[11]


def test_what_was_checked_is_not_checked_again(tmp_path, monkeypatch):
    data, checked = images(40), []
    export(data, tmp_path / "tiles.npy", chunk=5)
    store = StoreArray(tmp_path / "tiles.npy")
    monkeypatch.setattr("lazytiles.stores.store_array.crc_of", lambda rows: checked.append(len(rows)) or crc(rows))
    from lazytiles.stores.formats.base import crc_of as crc

    for _ in range(3):
        store.take([1, 2, 39])
    assert checked == [5, 5]
    StoreArray(tmp_path / "tiles.npy", check=False).take([1, 2])
    assert checked == [5, 5]


def test_a_store_replaced_meanwhile_is_not_mixed_in(tmp_path):
    export(images(9), tmp_path / "tiles.npy")
    store = StoreArray(tmp_path / "tiles.npy")
    content = pickle.dumps(store)
    export(images(9)[::-1], tmp_path / "tiles.npy", overwrite=True)
    np.testing.assert_array_equal(store[0], images(9)[0])
    with pytest.raises(StoreError, match="was replaced or removed meanwhile"):
        pickle.loads(content)


def test_a_store_replaced_while_it_is_read_is_old_or_an_error(suffix, tmp_path):
    path, old, new = tmp_path / f"tiles.{suffix}", images(20), images(20)[::-1]
    found = export(old, path, chunk=5)
    lt.configure(cache_bytes=0)
    try:
        np.testing.assert_array_equal(found[:], old)
        export(new, path, chunk=5, overwrite=True)
        with contextlib.suppress(StoreError):
            np.testing.assert_array_equal(found[:], old)
        np.testing.assert_array_equal(open_store(path)[:], new)
    finally:
        lt.configure(cache_bytes=256 * 2**20)


@pytest.mark.parametrize("member", ["labels.npy", "table.parquet", "digests.npy", "record.json"])
def test_a_damaged_member_is_refused(tmp_path, member):
    pytest.importorskip("zarr")
    export(tiles_of(), tmp_path / "tiles.zarr")
    file = tmp_path / "tiles.zarr" / "lazytiles" / member
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(StoreError, match=f"({member}|record) is (missing or not as it was written|damaged)"):
        open_store(tmp_path / "tiles.zarr")
    file.unlink()
    with pytest.raises(StoreError, match=r"tiles\.zarr"):
        verify_store(tmp_path / "tiles.zarr")


def test_no_thread_of_arrow_reads_the_table(tmp_path):
    """One that still holds what it read when the interpreter ends aborts the process, after all is done."""
    export(tiles_of(), tmp_path / "tiles.npy")
    code = """if True:
        import os, sys
        import numpy as np, pandas as pd, pyarrow as pa
        from lazytiles.stores.saving import open_store
        pa.array([1])  # its own threads of memory
        before = len(os.listdir("/proc/self/task"))
        tiles = open_store(sys.argv[1])
        assert len(tiles.table) == 50
        print(len(os.listdir("/proc/self/task")) - before, "pyarrow.dataset" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "tiles.npy"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0 False\n"


def test_a_store_with_labels_is_not_appended_to(tmp_path):
    export(tiles_of(), tmp_path / "tiles.npy")
    with pytest.raises(
        StoreError, match=r"carries labels\.npy, regions\.npy, table\.parquet, which would no longer fit"
    ):
        StoreWriter(tmp_path / "tiles.npy", mode="a")


def test_a_writers_store_opens_without_labels(tmp_path):
    with StoreWriter(tmp_path / "tiles.npy") as writer:
        writer.write(images(9))
    found = open_store(tmp_path / "tiles.npy")
    assert found.table is None
    assert found.labels is None
    np.testing.assert_array_equal(found[:], images(9))


def test_a_npy_store_is_a_zip_archive_too(tmp_path):
    tiles = tiles_of()
    export(tiles, tmp_path / "tiles.npy")
    with zipfile.ZipFile(tmp_path / "tiles.npy") as files:
        assert files.namelist() == ["labels.npy", "regions.npy", "table.parquet", "digests.npy", "record.json"]
        np.testing.assert_array_equal(np.load(io.BytesIO(files.read("labels.npy"))), tiles.labels)


def test_hdf5_labels_are_a_dataset(tmp_path):
    h5py = pytest.importorskip("h5py")
    tiles = tiles_of()
    export(tiles, tmp_path / "tiles.h5")
    with h5py.File(tmp_path / "tiles.h5") as file:
        np.testing.assert_array_equal(file["labels"][:], tiles.labels)
        np.testing.assert_array_equal(file["data"][:], tiles[:])


def test_tensorflow_reads_the_records(tmp_path):
    """In a process of its own: TensorFlow starts threads that last."""
    pytest.importorskip("tensorflow")
    pytest.importorskip("google_crc32c")
    export(tiles_of(labels=np.arange(50) - 9), tmp_path / "tiles.tfrecord", chunk=8)
    np.save(tmp_path / "truth.npy", tiles_of()[:])
    code = """
import sys
import numpy as np
import tensorflow as tf
truth = np.load(sys.argv[2])
features = {
    "data": tf.io.FixedLenFeature([], tf.string), "shape": tf.io.FixedLenFeature([3], tf.int64),
    "dtype": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64),
}
for k, record in enumerate(tf.data.TFRecordDataset(sys.argv[1])):
    sample = tf.io.parse_single_example(record, features)
    pixels = tf.io.decode_raw(sample["data"], sample["dtype"].numpy().decode())
    assert np.array_equal(tf.reshape(pixels, sample["shape"]), truth[k]), k
    assert int(sample["label"]) == k - 9
assert k == 49
"""
    command = [sys.executable, "-c", code, str(tmp_path / "tiles.tfrecord"), str(tmp_path / "truth.npy")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_order_and_the_images_are_part_of_what_is_resumed(tmp_path, monkeypatch):
    """Same labels, same shape, another order or other bands: not the same export."""
    monkeypatch.setattr("lazytiles.stores.saving._READ_BYTES", 1000)
    data = images(40)
    with pytest.raises(RegionError):
        export(MultiSourceArray([Failing(data, at=30)]).shuffle(1), tmp_path / "tiles.npy", chunk=4)
    tiles = MultiSourceArray([Failing(data, at=-1)]).shuffle(2)
    assert_same(export(tiles, tmp_path / "tiles.npy", chunk=4, resume=True), tiles)


def test_the_fingerprint_of_real_tiles_is_the_same_in_every_process(corpus_dir, tmp_path):
    index = pd.read_csv(corpus_dir / "INDEX.csv")
    real = index[(index["kind"] == "ok") & (index["dtype"] == "uint8") & (index["spp"] == 3)]
    file = next(corpus_dir / p for p in real["path"] if min(lt.open_region(corpus_dir / p).shape[:2]) >= 40)
    code = f"""
import sys
import pandas as pd, lazytiles as lt
from lazytiles.stores.saving import _state_of
row = dict(tile_id="a", region_id={file.stem!r}, xmin=0, ymin=0, xmax=16, ymax=16)
table = pd.DataFrame([row])
for bands in ([0, 1, 2], [2, 1, 0]):
    tiles = lt.open_tiles(table, {str(file.parent)!r}, path="{{region_id}}{file.suffix}", target=None, bands=bands)
    print(_state_of(tiles).hexdigest())
"""
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(said) == 1
    assert len(set(said.pop().split())) == 2


@pytest.mark.parametrize("seed", range(4))
def test_chunks_written_anywhere_in_any_order_make_the_same_store(tmp_path, seed):
    pytest.importorskip("zarr")
    chance, data = np.random.default_rng(seed), images(43)
    path = tmp_path / "tiles.zarr"
    sink = StoreSink(path, FORMATS["zarr"], {}, chunk=5, length=43, scattered=True, resume=True)
    sink.begin(data.shape[1:], data.dtype)
    target = pickle.loads(pickle.dumps(BlockTarget.of(sink, 43)))
    assert len(pickle.dumps(target)) < 500
    starts = chance.permutation(sink.missing)
    for start in starts[:5].tolist():
        sink.place(*write_block(target, start, data[start : start + 5]))
    sink.abort()
    assert not path.exists()
    sink = StoreSink(path, FORMATS["zarr"], {}, chunk=5, length=43, scattered=True, resume=True)
    assert sorted(sink.missing) == sorted(starts[5:].tolist())
    target = BlockTarget.of(sink, 43)
    with ThreadPoolExecutor(3) as pool:
        again = [*starts[4:].tolist(), *starts[5:7].tolist()]
        for done in pool.map(lambda start: write_block(target, start, data[start : start + 5]), again):
            sink.place(*done)
    sink.close()
    assert verify_store(path).chunks == 9
    np.testing.assert_array_equal(open_store(path)[:], data)
    export(data, tmp_path / "local.zarr", chunk=5)
    chunks = [
        {str(p.relative_to(root)): p.read_bytes() for p in (root / "c").rglob("*") if p.is_file()}
        for root in (path, tmp_path / "local.zarr")
    ]
    assert chunks[0] == chunks[1]


def test_a_store_with_a_missing_chunk_cannot_be_closed(tmp_path):
    pytest.importorskip("zarr")
    data = images(43)
    sink = StoreSink(tmp_path / "tiles.zarr", FORMATS["zarr"], {}, chunk=5, length=43, scattered=True)
    sink.begin(data.shape[1:], data.dtype)
    target = BlockTarget.of(sink, 43)
    for start, stop in ((2, 7), (5, 9), (40, 45)):
        with pytest.raises(StoreError, match="are no whole chunks of 5 rows"):
            write_block(target, start, data[:9][: stop - start])
    sink.place(*write_block(target, 0, data[:40]))
    with pytest.raises(StoreError, match="is incomplete: 0 of 43 rows were written"):
        sink.close()
    assert not (tmp_path / "tiles.zarr").exists()


@pytest.mark.parametrize(
    ("said", "places", "windows", "message"),
    [
        ({}, [[0, 0]], None, "three numbers a row are needed"),
        ({}, [[1, 0, 0]], None, "region 1 of 1"),
        ({}, [[-1, 0, 0]], None, "three numbers"),
        ({}, [[0, 7, 0]], None, "higher numbers"),
        ({}, [[0, 0, 0]], [[0, 0, 8]], "four or six integers"),
        ({"space": [8]}, [[0, 0, 0]], [[0, 0, 8, 8]], r"extents \(8,\)"),
        ({"space": [8, -8]}, [[0, 0, 0]], [[0, 0, 8, 8]], r"extents \(8, -8\)"),
    ],
)
def test_places_that_cannot_be_are_refused(said, places, windows, message):
    from lazytiles.stores.companions import _places_of

    regions = [{"name": "a", "space": [8, 8], "flat": False} | said]
    with pytest.raises(ValueError, match=message):
        _places_of(regions, np.array(places), None if windows is None else np.array(windows))


def test_resuming_a_complete_store_looks_at_what_is_on_the_disk_now(tmp_path):
    """In a store whose chunks are files nothing else tells that one of them has changed."""
    pytest.importorskip("zarr")
    tiles = MultiSourceArray([np.arange(40 * 64, dtype="u2").reshape(40, 8, 8)])
    export(tiles, tmp_path / "a.zarr", chunk=4)
    np.testing.assert_array_equal(open_store(tmp_path / "a.zarr"), tiles)
    chunk = tmp_path / "a.zarr/c/3/0/0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(content)
    with pytest.raises(StoreError, match=r"rows 12 to 16.*overwrite=True|overwrite=True.*rows 12 to 16"):
        export(tiles, tmp_path / "a.zarr", chunk=4, resume=True)
