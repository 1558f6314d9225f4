"""Writers: one conformance suite for all, and the old state, the new state or a clear error after every accident."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazytiles.errors import LazyTilesError, StoreError
from lazytiles.images.cache import clear_cache
from lazytiles.stores.formats import FORMATS, format_of
from lazytiles.stores.formats.base import crc_of
from lazytiles.stores.record import open_complete
from lazytiles.stores.sink import StoreSink
from lazytiles.stores.store_array import StoreArray
from lazytiles.stores.writers import (
    Blosc2Writer,
    BufferedWriter,
    HDF5Writer,
    NpyWriter,
    RowsError,
    StoreWriter,
    ZarrWriter,
)

WRITERS = {"h5": HDF5Writer, "zarr": ZarrWriter, "b2nd": Blosc2Writer, "npy": NpyWriter}
pytestmark = pytest.mark.usefixtures("zarr_threads")

LIBRARY = {"h5": "h5py", "zarr": "zarr", "b2nd": "blosc2", "npy": "numpy"}
KILLS = int(os.environ.get("LAZYTILES_KILLS", "2"))
DTYPES = ("u1", "u2", "i8", "f2", "f4", "f8", "?", "c8")


@pytest.fixture(params=sorted(WRITERS))
def suffix(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LIBRARY[request.param])
    return str(request.param)


def rows_of(count: int, shape: tuple[int, ...] = (6, 5, 3), dtype: str = "u1", seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 100, (count, *shape))
    return values.astype(dtype)


def content(path: Path) -> np.ndarray:
    """The rows of a complete store, checked against its digests; a StoreError for anything else."""
    store = StoreArray(path)
    try:
        return store[:]
    finally:
        store.close()


def by_library(path: Path) -> np.ndarray:
    """The rows as the format's own library reads them, with no help from lazytiles."""
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path) as file:
            return file["data"][:]
    if path.suffix == ".zarr":
        import zarr

        array = zarr.open_array(str(path), mode="r")
        assert array.metadata.zarr_format == 3
        return array[:]
    if path.suffix == ".b2nd":
        import blosc2

        return blosc2.open(str(path), mode="r")[:]
    return np.load(path)


def only(path: Path) -> None:
    """Nothing lies beside the store: no partial, journal, lock or old one."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def leave(writer: StoreWriter, rows: np.ndarray) -> None:
    """Write rows, then let an exception leave the block."""

    def run() -> None:
        with writer:
            writer.write(rows)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


def check_writer(writer: type[StoreWriter], path: Path, rows: np.ndarray, sizes: list[int], chunk: int) -> None:
    """The laws of every writer: any partition of the rows gives them back, whole, and nothing else."""
    with writer(path, chunk=chunk, overwrite=True) as out:
        start = 0
        for size in sizes:
            out.write(rows[start : start + size])
            start = min(len(rows), start + size)
            assert len(out) == start
        out.write(rows[start:])
        assert not path.exists() or len(content(path)) != len(rows) or start <= len(rows)
    out.close()
    with pytest.raises(RowsError, match="closed"):
        out.write(rows)
    np.testing.assert_array_equal(content(path), rows)
    assert content(path).dtype == rows.dtype
    np.testing.assert_array_equal(by_library(path), rows)
    only(path)
    with writer(path, mode="a") as out:
        assert len(out) == len(rows)
        out.write(rows[: chunk + 1])
    np.testing.assert_array_equal(content(path), np.concatenate([rows, rows[: chunk + 1]]))
    only(path)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 20), max_size=6),
    count=st.integers(1, 40),
    chunk=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(), (3,), (4, 3, 2)]),
)
def test_writers_conform(tmp_path, suffix, sizes, count, chunk, dtype, shape):
    rows = rows_of(count, shape, dtype)
    check_writer(WRITERS[suffix], tmp_path / f"rows.{suffix}", rows, sizes, chunk)


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.closed = 0

    def append(self, rows: np.ndarray) -> None:
        assert self.closed == 0
        self.rows.append(rows)

    def close(self) -> None:
        self.closed += 1


@given(sizes=st.lists(st.integers(0, 25), max_size=8), chunk=st.integers(1, 8))
def test_a_sink_gets_whole_chunks_in_order(sizes, chunk):
    rows, sink, start = rows_of(sum(sizes), (2,)), Recorder(), 0
    with BufferedWriter(sink, chunk=chunk) as writer:
        for size in sizes:
            part = rows[start : start + size].copy()
            writer.write(part)
            start += size
        assert all(len(got) % chunk == 0 for got in sink.rows)
    assert sink.closed == 1
    got = np.concatenate([*sink.rows, rows[:0]])
    np.testing.assert_array_equal(got, rows)


def test_rows_may_change_after_they_were_written(suffix, tmp_path):
    path, buffer = tmp_path / f"rows.{suffix}", np.zeros((3, 4), "u1")
    with WRITERS[suffix](path, chunk=4) as writer:
        for k in range(5):
            buffer[:] = k
            writer.write(buffer)
    np.testing.assert_array_equal(content(path)[:, 0], np.repeat(np.arange(5), 3))


def test_a_writer_is_shown_and_stays_in_its_process(suffix, tmp_path):
    with WRITERS[suffix](tmp_path / f"rows.{suffix}", (2,), "u1", length=3) as out:
        out.write(np.zeros((3, 2), "u1"))
        assert "3 of 3 rows" in repr(out)
        assert "3 of 3 rows" in out._repr_html_()
        with pytest.raises(TypeError, match="one process writes a store"):
            pickle.dumps(out)


def test_a_bare_sink_is_flushed_by_handing_all_on():
    sink = Recorder()
    writer = BufferedWriter(sink, chunk=10)
    writer.write(np.ones(3))
    writer.flush()
    assert [len(rows) for rows in sink.rows] == [3]
    writer.abort()
    writer.close()
    assert sink.closed == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 6, 5), "u1"), r"rows of shape \(2, 6, 5\) given, but the store takes \('n', 6, 5, 3\)"),
        (np.zeros((6, 5, 3), "u1"), r"for a single row pass row\[None\]"),
        (np.zeros((2, 6, 5, 3), "i2"), r"dtype int16 given, .* takes uint8; cast them first"),
        (np.zeros((2, 6, 5, 3)), r"dtype float64 given"),
        (np.zeros((2, 6, 5, 3), object), r"dtype object given"),
        (np.zeros((9, 6, 5, 3), "u1"), r"9 rows after row 2 would pass the length of 10 rows"),
        (7, r"a scalar was given"),
    ],
)
def test_wrong_rows_are_refused_and_nothing_of_them_is_written(suffix, tmp_path, rows, message):
    path = tmp_path / f"rows.{suffix}"
    good = rows_of(10)
    with WRITERS[suffix](path, (6, 5, 3), "u1", length=10, chunk=4) as writer:
        writer.write(good[:2])
        with pytest.raises(RowsError, match=message) as caught:
            writer.write(rows)
        assert isinstance(caught.value, LazyTilesError)
        writer.write(good[2:])
    np.testing.assert_array_equal(content(path), good)


def test_what_cannot_be_stored_is_refused(suffix, tmp_path):
    writer = WRITERS[suffix](tmp_path / f"rows.{suffix}")
    with pytest.raises(RowsError, match=r"dtype <U1 .* cannot be stored"):
        writer.write(np.array(["a"]))
    with pytest.raises(RowsError, match="cannot be stored"):
        writer.write(np.zeros((2, 0)))
    with pytest.raises(StoreError, match="nothing to store: no rows came"):
        writer.close()
    with pytest.raises(RowsError, match="chunk must be at least 1"):
        WRITERS[suffix](tmp_path / f"rows.{suffix}", chunk=0)
    with pytest.raises(RowsError, match="length must be at least 0"):
        WRITERS[suffix](tmp_path / f"rows.{suffix}", length=-1)
    with pytest.raises(ValueError, match="mode must be 'w' or 'a'"):
        WRITERS[suffix](tmp_path / f"rows.{suffix}", mode="r+")
    with pytest.raises(StoreError, match="there is no directory"):
        WRITERS[suffix](tmp_path / "nowhere" / f"rows.{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_the_other_byte_order_is_not_another_dtype(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    rows = rows_of(9, dtype="u2")
    with WRITERS[suffix](path, chunk=4) as writer:
        writer.write(rows[:5].astype(">u2"))
        writer.write(rows[5:])
    np.testing.assert_array_equal(content(path), rows)
    assert content(path).dtype == np.dtype("=u2")


def test_an_empty_store_is_a_store(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    with WRITERS[suffix](path, (3, 2), "f4"):
        pass
    assert content(path).shape == (0, 3, 2)
    assert by_library(path).shape == (0, 3, 2)


def test_a_store_is_never_replaced_unasked(suffix, tmp_path):
    path, writer = tmp_path / f"rows.{suffix}", WRITERS[suffix]
    old, new = rows_of(10), rows_of(7, seed=2)
    with writer(path, chunk=4) as out:
        out.write(old)
    with pytest.raises(StoreError, match="exists; pass overwrite=True to replace it, mode='a' to append"):
        writer(path)
    with pytest.raises(ValueError, match="'a' never overwrites"):
        writer(path, mode="a", overwrite=True)
    with writer(path, overwrite=True, chunk=4) as out:
        out.write(new)
        np.testing.assert_array_equal(content(path), old)
    np.testing.assert_array_equal(content(path), new)
    only(path)


def test_append_takes_the_shape_dtype_and_chunk_of_what_is_there(suffix, tmp_path):
    path, writer = tmp_path / f"rows.{suffix}", WRITERS[suffix]
    with writer(path, mode="a", chunk=4) as out:
        out.write(rows_of(6))
    with writer(path, mode="a", chunk=100) as out:
        with pytest.raises(RowsError, match="dtype int16"):
            out.write(rows_of(2, dtype="i2"))
        with pytest.raises(RowsError, match="shape"):
            out.write(rows_of(2, (6, 5)))
        out.write(rows_of(9)[6:])
    np.testing.assert_array_equal(content(path), rows_of(9))
    assert open_complete_chunk(path) == 4
    with pytest.raises(RowsError, match="dtype uint8 given, but the store takes float32"):
        writer(path, dtype="f4", mode="a")
    only(path)


def open_complete_chunk(path: Path) -> int:
    opened = open_complete(path)
    opened.reader.close()
    return opened.record.layout.chunk


def test_an_exception_leaves_the_old_state_and_what_was_safe(suffix, tmp_path):
    path, writer, rows = tmp_path / f"rows.{suffix}", WRITERS[suffix], rows_of(30)

    def fail(**options):
        with writer(path, chunk=4, **options) as out:
            out.write(rows[len(out) : 18])
            out.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not path.exists()
    with pytest.raises(StoreError, match=r"is incomplete: .* holds 16 rows; write on with resume=True"):
        StoreArray(path)
    with writer(path, chunk=4, resume=True) as out:
        assert len(out) == 18
        out.write(rows[18:])
    np.testing.assert_array_equal(content(path), rows)
    only(path)
    with pytest.raises(KeyboardInterrupt):
        fail(overwrite=True)
    np.testing.assert_array_equal(content(path), rows)
    with writer(path, chunk=4, overwrite=True) as out:
        assert len(out) == 0
        out.write(rows[:5])
    np.testing.assert_array_equal(content(path), rows[:5])
    only(path)


def test_an_exception_before_the_first_chunk_leaves_nothing(suffix, tmp_path):
    leave(WRITERS[suffix](tmp_path / f"rows.{suffix}"), rows_of(3))
    assert list(tmp_path.iterdir()) == []


def test_too_few_rows_do_not_make_a_store(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    out = WRITERS[suffix](path, chunk=4, length=20)
    out.write(rows_of(12))
    with pytest.raises(StoreError, match=r"is incomplete: 12 of 20 rows were written"):
        out.close()
    assert not path.exists()
    with WRITERS[suffix](path, chunk=4, length=20, resume=True) as out:
        out.write(rows_of(20)[len(out) :])
    np.testing.assert_array_equal(content(path), rows_of(20))


def test_another_partial_is_not_continued(suffix, tmp_path):
    path, writer = tmp_path / f"rows.{suffix}", WRITERS[suffix]
    leave(writer(path, chunk=4), rows_of(12))
    with writer(path, chunk=5, resume=True) as out:
        assert len(out) == 0
        out.write(rows_of(3))
    assert len(content(path)) == 3
    only(path)


def test_a_partial_that_was_damaged_meanwhile_is_continued_from_its_good_part(suffix, tmp_path):
    path, writer, rows = tmp_path / f"rows.{suffix}", WRITERS[suffix], rows_of(24, (40, 40, 3))
    rows[:] = np.random.default_rng(0).integers(0, 255, rows.shape)
    leave(writer(path, chunk=4), rows)
    partial = next(p for p in tmp_path.iterdir() if not p.name.endswith(".journal"))
    damaged = sorted(partial.glob("c/3/*/*/*"))[0] if partial.is_dir() else partial
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 4
    damaged.write_bytes(raw)
    with writer(path, chunk=4, resume=True) as out:
        assert 0 < len(out) < 24
        out.write(rows[len(out) :])
    np.testing.assert_array_equal(content(path), rows)


def test_compression_is_passed_through(tmp_path):
    h5py = pytest.importorskip("h5py")
    rows = rows_of(40)
    for options, expected in (
        ({}, "lzf"),
        ({"compression": "gzip", "shuffle": True}, "gzip"),
        ({"compression": None}, None),
    ):
        with HDF5Writer(tmp_path / "rows.h5", chunk=8, overwrite=True, **options) as out:
            out.write(rows)
        with h5py.File(tmp_path / "rows.h5") as file:
            data = file["data"]
            assert (data.compression, data.chunks, data.fletcher32) == (expected, (8, 6, 5, 3), True)
            assert data.shuffle == bool(options.get("shuffle"))
    zarr = pytest.importorskip("zarr")
    with ZarrWriter(tmp_path / "rows.zarr", chunk=8) as out:
        out.write(rows)
    assert [type(c).__name__ for c in zarr.open_array(tmp_path / "rows.zarr").compressors] == [
        "BloscCodec",
        "Crc32cCodec",
    ]
    name = zarr.open_array(tmp_path / "rows.zarr").compressors[0].cname
    assert getattr(name, "value", name) == "lz4"  # an enumeration before Zarr 3.4
    with ZarrWriter(tmp_path / "rows.zarr", chunk=8, overwrite=True, compressors=zarr.codecs.ZstdCodec(level=3)) as out:
        out.write(rows)
    assert [type(c).__name__ for c in zarr.open_array(tmp_path / "rows.zarr").compressors] == [
        "ZstdCodec",
        "Crc32cCodec",
    ]
    blosc2 = pytest.importorskip("blosc2")
    with Blosc2Writer(tmp_path / "rows.b2nd", chunk=8, cparams={"codec": blosc2.Codec.ZSTD}) as out:
        out.write(rows)
    array = blosc2.open(tmp_path / "rows.b2nd", mode="r")
    assert (array.chunks, array.schunk.cparams.codec) == ((8, 6, 5, 3), blosc2.Codec.ZSTD)
    with pytest.raises(TypeError, match=r"takes no options, but \['compression'\]"):
        NpyWriter(tmp_path / "rows.npy", compression="lzf")


@pytest.mark.parametrize("killed", [False, True])
def test_appending_keeps_the_compression_of_what_is_there(tmp_path, killed):
    h5py, blosc2 = pytest.importorskip("h5py"), pytest.importorskip("blosc2")
    rows, zstd = rows_of(40), {"codec": blosc2.Codec.ZSTD}
    for writer, path, options in (
        (HDF5Writer, tmp_path / "rows.h5", {"compression": "gzip", "compression_opts": 7, "shuffle": True}),
        (Blosc2Writer, tmp_path / "rows.b2nd", {"cparams": zstd}),
    ):
        with writer(path, chunk=8, **options) as out:
            out.write(rows)
        if killed:
            leave(writer(path, mode="a"), rows[:20])
        with writer(path, mode="a", resume=True) as out:
            out.write(rows[len(out) - 40 :])
        np.testing.assert_array_equal(content(path), np.concatenate([rows, rows]))
    with h5py.File(tmp_path / "rows.h5") as file:
        data = file["data"]
        assert (data.compression, data.compression_opts, data.shuffle, data.fletcher32) == ("gzip", 7, True, True)
    assert blosc2.open(tmp_path / "rows.b2nd", mode="r").schunk.cparams.codec == blosc2.Codec.ZSTD
    with HDF5Writer(tmp_path / "rows.h5", mode="a", compression="lzf") as out:
        out.write(rows)
    with h5py.File(tmp_path / "rows.h5") as file:
        assert file["data"].compression == "lzf"


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize("options", [{"shards": (8, 4)}, {"chunk_key_encoding": {"name": "v2", "separator": "."}}])
def test_a_zarr_store_of_shards_or_other_names_is_appended_to(tmp_path, options, count):
    pytest.importorskip("zarr")
    path, rows = tmp_path / "rows.zarr", rows_of(count, (4,))
    with ZarrWriter(path, chunk=4, **options) as out:
        out.write(rows)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    leave(ZarrWriter(path, mode="a"), rows)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
    with ZarrWriter(path, mode="a", resume=True) as out:
        out.write(rows[len(out) - count :])
    np.testing.assert_array_equal(content(path), np.concatenate([rows, rows]))
    np.testing.assert_array_equal(by_library(path), np.concatenate([rows, rows]))


def test_a_chunk_of_zeros_is_stored_too(tmp_path):
    pytest.importorskip("zarr")
    with ZarrWriter(tmp_path / "rows.zarr", chunk=4) as out:
        out.write(np.zeros((12, 5), "u1"))
    assert sorted(p.name for p in (tmp_path / "rows.zarr" / "c").iterdir()) == ["0", "1", "2"]


def test_threads_may_write_together(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    with WRITERS[suffix](path, chunk=4) as out:
        threads = [
            threading.Thread(target=lambda k=k: [out.write(np.full((3, 2), k)) for _ in range(10)]) for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    triples = content(path)[:, 0].reshape(-1, 3)
    assert (triples == triples[:, :1]).all()
    assert np.bincount(triples[:, 0]).tolist() == [10] * 4


def test_the_second_writer_is_refused(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    with WRITERS[suffix](path, chunk=4) as out:
        out.write(rows_of(8))
        with pytest.raises(StoreError, match=f"is being written by another writer \\(process {os.getpid()}"):
            WRITERS[suffix](path, overwrite=True)
        code = (
            "import sys; from lazytiles.stores.writers import StoreWriter; from lazytiles.errors import StoreError\n"
            "try: StoreWriter(sys.argv[1], resume=True)\n"
            "except StoreError as error: print(error)"
        )
        said = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
        assert f"process {os.getpid()}" in said
        out.write(rows_of(9)[8:])
    np.testing.assert_array_equal(content(path), rows_of(9))
    with WRITERS[suffix](path, mode="a"):
        pass
    only(path)


def test_the_lock_of_a_dead_writer_is_free(tmp_path):
    path = tmp_path / "rows.npy"
    (tmp_path / "rows.npy.lock").write_text("1")
    with NpyWriter(path) as out:
        out.write(rows_of(3))
    only(path)


def test_racing_writers_leave_one_whole_store(suffix, tmp_path):
    path, outcomes = tmp_path / f"rows.{suffix}", []

    def race(k: int) -> None:
        try:
            with WRITERS[suffix](path, chunk=4, overwrite=True) as out:
                out.write(np.full((10, 3), k))
            outcomes.append("written")
        except StoreError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=race, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "written" in outcomes
    assert all(what == "written" or "being written" in what for what in outcomes)
    rows = content(path)
    assert rows.shape == (10, 3)
    assert (rows == rows[0, 0]).all()
    only(path)


def drop(path: Path, writer: type[StoreWriter], rows: np.ndarray) -> None:
    """Write a little and lose the writer."""
    out = writer(path, chunk=4)
    out.write(rows)


def test_a_dropped_writer_frees_its_lock(suffix, tmp_path):
    path, rows = tmp_path / f"rows.{suffix}", rows_of(10)
    drop(path, WRITERS[suffix], rows)
    assert not (tmp_path / f"rows.{suffix}.lock").exists()
    loop: list[object] = []
    loop += [loop, WRITERS[suffix](path, chunk=4)]
    del loop  # unreachable, but nobody has collected it yet
    with WRITERS[suffix](path, chunk=4) as out:
        out.write(rows)
        with pytest.raises(
            StoreError, match=r"being written by another writer .*; close\(\) or abort\(\) it, or write"
        ):
            WRITERS[suffix](path)
    np.testing.assert_array_equal(content(path), rows)
    only(path)


def test_a_forked_child_never_holds_a_lock(tmp_path):
    """The child lives on when the writer's process is killed, or ends before it: both change nothing."""
    path = tmp_path / "rows.npy"
    code = """
import os, sys, time
import numpy as np
from lazytiles.stores.writers import NpyWriter
writer = NpyWriter(sys.argv[1], chunk=4, overwrite=True)
writer.write(np.zeros((9, 2)))
if os.fork() == 0:
    if sys.argv[2] == "ends":
        sys.exit()
    print("child", flush=True)
    time.sleep(60)
    os._exit(0)
if sys.argv[2] == "ends":
    os.wait()
    print(os.path.exists(sys.argv[1] + ".lock"), flush=True)
time.sleep(60)
"""
    for how in ("ends", "lives"):
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, path, how],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == ("True\n" if how == "ends" else "child\n")
            child.kill()
            child.wait()
            with NpyWriter(path, chunk=4, overwrite=True) as out:
                out.write(rows_of(3))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, 9)
    only(path)


def test_a_write_that_was_interrupted_ends_the_writer(suffix, tmp_path, monkeypatch):
    path, rows = tmp_path / f"rows.{suffix}", rows_of(30)
    out = WRITERS[suffix](path, chunk=4)
    out.write(rows[:8])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(out._sink._format), "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            out.write(rows[8:])
    with pytest.raises(RowsError, match="the writer is closed"):
        out.write(rows)
    with pytest.raises(StoreError, match="is not complete: an earlier write failed"):
        out.close()
    out.close()
    with WRITERS[suffix](path, chunk=4, resume=True) as out:
        out.write(rows[len(out) :])
    np.testing.assert_array_equal(content(path), rows)


def test_a_store_that_could_not_be_completed_takes_more_rows(suffix, tmp_path, monkeypatch):
    """Its last chunk, which was short, is filled by the rows that come then."""
    path, writer, rows = tmp_path / f"rows.{suffix}", WRITERS[suffix], rows_of(23)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for start, stop in ((0, 3), (3, 10), (10, 10), (10, 12), (12, 23)):
        out = writer(path, chunk=4, resume=True)
        assert len(out) == start
        out.write(rows[start:stop])
        with monkeypatch.context() as patch:
            patch.setattr("lazytiles.stores.sink.publish", full)
            with pytest.raises(StoreError, match=f"{stop} rows are safe in the unfinished partial"):
                out.close()
    writer(path, chunk=4, resume=True).close()
    np.testing.assert_array_equal(content(path), rows)
    only(path)


def test_a_writer_resumes_what_is_complete(suffix, tmp_path):
    """What was killed just after its last rename is done; anything else is still never replaced unasked."""
    path, writer, rows = tmp_path / f"rows.{suffix}", WRITERS[suffix], rows_of(10)
    with writer(path, chunk=4) as out:
        out.write(rows)
    with writer(path, chunk=4, resume=True) as out:
        assert len(out) == 10
        out.write(rows[len(out) :])
        with pytest.raises(RowsError, match="is complete with 10 rows; pass mode='a' to append"):
            out.write(rows)
    np.testing.assert_array_equal(content(path), rows)
    only(path)
    with pytest.raises(StoreError, match=r"exists and is complete, with 10 rows in chunks of 4 of another writer"):
        writer(path, chunk=4, length=11, resume=True)
    leave(writer(path, chunk=4, overwrite=True), rows)
    with pytest.raises(StoreError, match="exists; pass overwrite=True"):
        writer(path, chunk=4, resume=True)  # the partial is of a writer that was to replace it
    with writer(path, chunk=4, resume=True, overwrite=True) as out:
        out.write(rows[len(out) :])
    flipped = next(p for p in (path.glob("c/1/*/*/*") if path.is_dir() else [path]))
    raw = bytearray(flipped.read_bytes())
    if suffix == "npy":
        raw[200] ^= 1
        flipped.write_bytes(raw)
        with pytest.raises(StoreError, match="is damaged in rows 0 to 4; pass overwrite=True"):
            writer(path, chunk=4, resume=True)


@pytest.mark.parametrize("name", ["images", "train/images"])
def test_an_hdf5_file_has_many_datasets(tmp_path, name):
    h5py = pytest.importorskip("h5py")
    import lazytiles as lt

    file, rows, more = tmp_path / "k.h5", rows_of(10), rows_of(7, (4,), "f4")
    with HDF5Writer(f"{file}::{name}", chunk=4) as out:
        out.write(rows)
    only(file)
    with h5py.File(file, "r+") as held:
        held.attrs["who"] = "me"
        held["soft"] = h5py.SoftLink("/nowhere")
        held.create_dataset("train/foreign", data=np.arange(5))
    with pytest.raises(StoreError, match="exists; pass overwrite=True to replace it, mode='a' to append"):
        HDF5Writer(f"{file}::masks")
    for second in ("masks", "data", "train/masks"):
        path = str(file) if second == "data" else f"{file}::{second}"
        with HDF5Writer(path, mode="a", chunk=3) as out:
            out.write(more)
    with HDF5Writer(f"{file}::{name}", mode="a") as out:
        assert len(out) == 10
        out.write(rows)
    with HDF5Writer(f"{file}::masks", overwrite=True) as out:
        out.write(more[:2])
    only(file)
    with h5py.File(file) as held:
        np.testing.assert_array_equal(held[name][:], np.concatenate([rows, rows]))
        np.testing.assert_array_equal(held["train/masks"][:], more)
        np.testing.assert_array_equal(held["data"][:], more)
        np.testing.assert_array_equal(held["masks"][:], more[:2])
        np.testing.assert_array_equal(held["train/foreign"][:], np.arange(5))
        assert held.attrs["who"] == "me"
        assert held.get("soft", getlink=True).path == "/nowhere"
    np.testing.assert_array_equal(lt.open_store(f"{file}::{name}")[:], np.concatenate([rows, rows]))
    np.testing.assert_array_equal(lt.open_store(file)[:], more)
    np.testing.assert_array_equal(lt.open_region(f"{file}::train/masks")[:], more)
    assert lt.verify_store(f"{file}::masks").rows == 2
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lt.open_store(f"{file}::masks")))[1], more[1])
    with pytest.raises(StoreError, match=r"has no dataset 'other'; it has data, .*lazytiles, masks, soft, train"):
        lt.open_store(f"{file}::other")
    with pytest.raises(StoreError, match="was not written by lazytiles"):
        HDF5Writer(f"{file}::train/foreign", mode="a")
    with pytest.raises(StoreError, match="a dataset is named behind ::"):
        HDF5Writer(f"{file}::lazytiles/x", mode="a")
    with pytest.raises(StoreError, match="only an HDF5 file has datasets"):
        NpyWriter(tmp_path / "k.npy::images")
    leave(HDF5Writer(f"{file}::left", mode="a", chunk=4), rows)
    with HDF5Writer(f"{file}::left", mode="a", chunk=4, resume=True) as out:
        assert len(out) == 8
        out.write(rows[8:])
    np.testing.assert_array_equal(content(Path(f"{file}::left")), rows)
    np.testing.assert_array_equal(content(file), more)


@pytest.mark.parametrize("kind", ["numpy", "memmap", "h5py", "zarr"])
def test_rows_go_into_a_plain_array(tmp_path, kind):
    rows, close = rows_of(20), []
    if kind == "numpy":
        array = np.full((25, 6, 5, 3), 7, "u1")
    elif kind == "memmap":
        array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "u1", (25, 6, 5, 3))
    elif kind == "h5py":
        file = pytest.importorskip("h5py").File(tmp_path / "a.h5", "w")
        close.append(file.close)
        array = file.create_dataset("data", (25, 6, 5, 3), "u1")
    else:
        array = pytest.importorskip("zarr").create_array(str(tmp_path / "a.zarr"), shape=(25, 6, 5, 3), dtype="u1")
    with BufferedWriter(array, chunk=8) as writer:
        for start in range(0, 20, 3):
            writer.write(rows[start : start + 3])
        with pytest.raises(RowsError, match="dtype float64 given, but the store takes uint8"):
            writer.write(rows[:1].astype(float))
        with pytest.raises(RowsError, match="would pass the length of 25 rows"):
            writer.write(rows[:6])
    np.testing.assert_array_equal(array[:20], rows)
    assert (array[20:] == (7 if kind == "numpy" else 0)).all()
    for end in close:
        end()


def test_what_takes_no_rows_is_refused_at_once(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    read_only = np.load(tmp_path / "a.npy", mmap_mode="r")
    for array, options, message in (
        (read_only, {}, r"the array of shape \(3, 2\) is read-only"),
        ([], {}, "a list takes no rows: an array is needed, or an object with append"),
        (np.array(3.0), {}, "a scalar has no rows"),
        (np.zeros((3, 2), object), {}, "dtype object .* cannot be stored"),
        (np.zeros((3, 2)), {"dtype": "u1"}, "the array has dtype float64, not uint8"),
        (np.zeros((3, 2)), {"shape": (3,)}, r"the array has shape \(3, 2\); rows of shape \(3, 3\) do not fit"),
        (np.zeros((3, 2)), {"length": 4}, r"rows of shape \(4, 2\) do not fit"),
    ):
        with pytest.raises(RowsError, match=message):
            BufferedWriter(array, **options)
    big = np.zeros((4, 2), ">f4")
    with BufferedWriter(big) as writer:
        writer.write(np.ones((4, 2), "f4"))
    assert (big == 1).all()


# -- accidents ---------------------------------------------------------------------------------------------------

VICTIM = """
import sys
import numpy as np
from lazytiles.stores import sink
from lazytiles.stores.writers import StoreWriter

sink._COMMIT_S = 0
path, mode, old, total, step = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
rows = np.random.default_rng(5).integers(0, 60, (total, 24, 24, 3), dtype="u1")
options = {"mode": "a"} if mode == "append" else {"overwrite": True}
with StoreWriter(path, chunk=8, resume=True, **options) as writer:
    start = len(writer) - (old if mode == "append" else 0)
    print(start, flush=True)
    while start < total:
        writer.write(rows[start : start + step])
        start = min(total, start + step)
        if start % 5 == 0:
            writer.flush()
        print(end=".", flush=True)
print("done", flush=True)
"""


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_killed_at_any_moment(suffix, tmp_path, mode):
    """LAZYTILES_KILLS=50 kills each writer fifty times; the suite a few."""
    path, total = tmp_path / f"rows.{suffix}", 400
    moments = random.Random(f"{suffix} {mode}")
    old = rows_of(13, (24, 24, 3))
    rows = np.random.default_rng(5).integers(0, 60, (total, 24, 24, 3), dtype="u1")
    new = np.concatenate([old, rows]) if mode == "append" else rows
    killed = resumed = 0
    while killed < KILLS:
        if not path.exists() or len(content(path)) != len(old):
            with StoreWriter(path, chunk=8, overwrite=True) as out:
                out.write(old)
        state, more = run_and_kill(path, mode, len(old), total, moments)
        resumed += more > 0
        killed += state == "killed"
        held = content(path)
        assert np.array_equal(held, new if len(held) == len(new) else old)
    done, _ = run_and_kill(path, mode, len(old), total, None)
    assert done == "done" or np.array_equal(content(path), new)
    assert KILLS < 20 or resumed > KILLS // 5


def run_and_kill(path: Path, mode: str, old: int, total: int, moments: random.Random | None) -> tuple[str, int]:
    command = [sys.executable, "-W", "ignore", "-c", VICTIM, str(path), mode, str(old), str(total), "7"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        start = int(child.stdout.readline() or 0)
        if moments is not None:
            child.stdout.read(moments.randrange(1, 70))
            time.sleep(moments.random() * 0.003)
            child.kill()
        rest = child.stdout.read()
    return ("done" if rest.endswith("done\n") else "killed"), start


FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from lazytiles.stores.writers import StoreWriter
from lazytiles.stores.store_array import StoreArray
from lazytiles.errors import StoreError

path = Path(sys.argv[1])
rows = np.random.default_rng(5).integers(0, 255, (200, 24, 24, 3), dtype="u1")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with StoreWriter(path, chunk=8, overwrite=True) as writer:
            for start in range(0, 200, 7):
                writer.write(rows[start : start + 7])
        sys.exit(f"a limit of {limit} bytes did not stop the writer")
    except StoreError as error:
        assert "make room" in str(error), error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if path.exists():
        assert np.array_equal(StoreArray(path)[:], rows)
    with StoreWriter(path, chunk=8, overwrite=True, resume=True) as writer:
        print(len(writer), end=" ")
        writer.write(rows[len(writer):])
    assert np.array_equal(StoreArray(path)[:], rows)
"""


def test_a_full_disk_is_a_clean_error_and_can_be_resumed(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    limits = [3000, 9000] if suffix == "zarr" else [10, 100, 5000, 50_000, 123_456, 200_001, 340_000]
    command = [sys.executable, "-c", FULL, str(path), *map(str, limits)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    resumed = list(map(int, run.stdout.split()))
    assert suffix in ("zarr", "h5") or max(resumed) > 100  # what HDF5 leaves depends on its version
    only(path)


def test_a_flipped_bit_is_an_error_or_changes_nothing(suffix, tmp_path):
    path, rows, chance = tmp_path / f"rows.{suffix}", rows_of(20, (9, 4)), random.Random(suffix)
    with WRITERS[suffix](path, chunk=8) as out:
        out.write(rows)
    files = sorted(p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())
    seen = 0
    for _ in range(80):
        victim = chance.choice(files)
        whole = victim.read_bytes()
        raw = bytearray(whole)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        victim.write_bytes(raw)
        clear_cache()
        try:
            np.testing.assert_array_equal(content(path), rows)
        except StoreError:
            seen += 1
        victim.write_bytes(whole)
    assert seen > 20


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95, 0.999])
def test_a_store_cut_short_is_refused(suffix, tmp_path, share):
    path = tmp_path / f"rows.{suffix}"
    with WRITERS[suffix](path, chunk=8) as out:
        out.write(rows_of(40))
    if path.is_dir():
        chunks = sorted(path.glob("c/*"), key=lambda p: int(p.name))
        for file in chunks[int(share * len(chunks))].rglob("*"):
            if file.is_file():
                file.unlink()
    else:
        os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(StoreError, match=r"rows\.\w+"):
        content(path)


def test_an_interrupted_replacement_is_put_back(tmp_path):
    pytest.importorskip("zarr")
    path, rows = tmp_path / "rows.zarr", rows_of(9)
    with ZarrWriter(path) as out:
        out.write(rows)
    path.rename(tmp_path / "rows.zarr.old-12345678")
    np.testing.assert_array_equal(content(path), rows)
    only(path)
    path.rename(tmp_path / "rows.zarr.old-12345678")
    with pytest.raises(StoreError, match="exists"):
        ZarrWriter(path)
    np.testing.assert_array_equal(content(path), rows)


def test_appending_leaves_the_chunks_of_the_old_store_alone(tmp_path):
    pytest.importorskip("zarr")
    path, rows = tmp_path / "rows.zarr", rows_of(13)
    with ZarrWriter(path, chunk=4) as out:
        out.write(rows)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    leave(ZarrWriter(path, mode="a"), rows)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_readers_refuse_what_is_no_complete_store(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    with pytest.raises(StoreError, match="there is no store"):
        StoreArray(path)
    leave(WRITERS[suffix](path, chunk=4), rows_of(12))
    partial = next(p for p in tmp_path.iterdir() if not p.name.endswith(".journal"))
    with pytest.raises(StoreError, match="is an unfinished partial, not a store"):
        StoreArray(partial)
    partial.rename(path)
    with pytest.raises(StoreError, match=f"rows.{suffix}.*(is incomplete|cannot be opened)"):
        StoreArray(path)


def test_a_foreign_array_is_refused_by_name(tmp_path):
    np.save(tmp_path / "rows.npy", rows_of(3))
    with pytest.raises(StoreError, match=r"rows\.npy is incomplete or was not written by lazytiles"):
        StoreArray(tmp_path / "rows.npy")
    (tmp_path / "rows.bin").write_bytes(b"12345")
    with pytest.raises(StoreError, match=r"rows\.bin names no format of stores; its name must end in one of \.h5"):
        StoreArray(tmp_path / "rows.bin")


def test_the_format_of_a_path():
    assert {suffix: format_of(Path(f"a/b.{suffix}")).name for suffix in WRITERS} == {
        "h5": "hdf5", "zarr": "zarr", "b2nd": "blosc2", "npy": "npy"
    }  # fmt: skip
    assert all(form.name == name for name, form in FORMATS.items())


def test_a_record_of_a_later_version_is_refused(tmp_path):
    pytest.importorskip("zarr")
    with ZarrWriter(tmp_path / "rows.zarr") as out:
        out.write(rows_of(3))
    record = tmp_path / "rows.zarr" / "lazytiles" / "record.json"
    facts = json.loads(record.read_text())
    facts["lazytiles"] = 2
    record.write_text(json.dumps(facts))
    with pytest.raises(StoreError, match="damaged or of a later version"):
        content(tmp_path / "rows.zarr")


def test_sync_writes_the_same(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    with WRITERS[suffix](path, sync=True) as out:
        out.write(rows_of(5))
    np.testing.assert_array_equal(content(path), rows_of(5))


def test_a_store_written_under_any_name_opens(tmp_path):
    with NpyWriter(tmp_path / "rows.data") as out:
        out.write(rows_of(5))
        assert repr(out) == "<NpyWriter 5 rows of (6, 5, 3) uint8, open>"
        assert out.path == tmp_path / "rows.data"
    np.testing.assert_array_equal(content(tmp_path / "rows.data"), rows_of(5))


def test_the_sink_keeps_the_digest_of_every_chunk(tmp_path):
    rows = rows_of(10)
    sink = StoreSink(tmp_path / "rows.npy", FORMATS["npy"], {}, chunk=4)
    sink.append(rows[:8])
    sink.append(rows[8:])
    sink.close()
    sink.close()
    opened = open_complete(tmp_path / "rows.npy")
    opened.reader.close()
    assert opened.digests.tolist() == [crc_of(rows[k : k + 4]) for k in (0, 4, 8)]
    with pytest.raises(StoreError, match="is closed; open a new writer"):
        sink.append(rows)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE])
def test_what_the_system_refuses_is_a_store_error_with_its_number(tmp_path, monkeypatch, code):
    path = tmp_path / "rows.npy"
    with NpyWriter(path) as out:
        out.write(rows_of(3))

    def refuse(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    for name, work, says in (
        ("lazytiles.stores.journal.os.open", lambda: NpyWriter(path, overwrite=True), "cannot be locked"),
        ("lazytiles.images.files.os.open", lambda: StoreArray(path), "cannot be opened"),
        ("lazytiles.stores.journal.os.listdir", lambda: NpyWriter(path, mode="a", resume=True), "opening failed"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, refuse)
            with pytest.raises(StoreError, match=rf"rows\.npy:? {says}: {os.strerror(code)}") as caught:
                work()
        assert caught.value.errno == code
    only(path)


def test_a_store_with_mask_labels_is_not_appended_to(tmp_path):
    import lazytiles as lt

    masks = lt.MultiSourceArray([rows_of(9)[..., 0]])
    lt.export(lt.MultiSourceArray([rows_of(9)], labels=masks), tmp_path / "tiles.npy")
    with pytest.raises(StoreError, match="carries mask labels, which would no longer fit its rows"):
        StoreWriter(tmp_path / "tiles.npy", mode="a")


def test_a_complete_tfrecord_store_keeps_its_members_when_its_writer_resumes(tmp_path):
    pytest.importorskip("google_crc32c")
    for _ in range(2):
        with StoreWriter(tmp_path / "rows.tfrecord", chunk=4, resume=True) as out:
            out.write(rows_of(6)[len(out) :])
    np.testing.assert_array_equal(content(tmp_path / "rows.tfrecord"), rows_of(6))
