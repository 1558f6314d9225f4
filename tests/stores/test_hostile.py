"""Damaged and malicious stores: refused soon, in little memory, and nothing outside their folder is opened."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

import lazytiles as lt
from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.stores.formats.base import RECORD, Layout, zipped
from lazytiles.stores.formats.blosc2 import Blosc2Reader
from lazytiles.stores.formats.hdf5 import HDF5Reader, lookup3
from lazytiles.stores.journal import Journal, StoreLock, partials
from lazytiles.stores.saving import export, open_store, verify_store
from lazytiles.stores.writers import StoreWriter
from tests.limits import within_limits

pytestmark = pytest.mark.usefixtures("zarr_threads")
SECONDS, MIB = 2.0, 200
ENDINGS = ("npy", "h5", "zarr", "b2nd", "tfrecord")

# Forks for each store that it is told of, reads that, and says what came of it, how long it took, how much memory, and
# what was opened.
READER = """
import json, os, sys, time
import numpy as np
import lazytiles as lt, lazytiles.stores.saving, h5py, zarr, blosc2, pandas, pyarrow.parquet, google_crc32c, numcodecs
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
def read(path):
    seen = []
    sys.addaudithook(lambda event, args: seen.append((event, str(args[0]))) if event in
        ("open", "os.system", "subprocess.Popen", "socket.connect", "pickle.find_class") else None)
    base, start = peak(), time.monotonic()
    try:
        tiles = lt.open_store(path)
        said = ["ok", str(np.asarray(tiles[:]).sum()), str(tiles.labels)]
    except lt.LazyTilesError as error:
        said = ["refused", type(error).__name__, str(error)]
    except BaseException as error:
        said = ["foreign", type(error).__name__, str(error)]
    told = {"said": said, "seconds": time.monotonic() - start, "mib": peak() - base, "seen": seen}
    print(json.dumps(told), flush=True)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        read(line.rstrip())
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(json.dumps({"said": ["foreign", "crash", ""], "seconds": 0, "mib": 0, "seen": []}), flush=True)
"""


@pytest.fixture(scope="module")
def reading():
    """A process that reads stores."""
    environment = {**os.environ, "PYTHONPATH": str(Path(lt.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound store of each format: 40 tiles of 8 x 8 with labels, and a table where there is room for one."""
    folder = tmp_path_factory.mktemp("sound")
    rows = np.arange(40 * 64, dtype=np.uint16).reshape(40, 8, 8)
    tiles = MultiSourceArray([rows], np.arange(40))
    for ending in ENDINGS:
        export(tiles, folder / f"a.{ending}", chunk=8)
    return folder


@pytest.fixture
def place(tmp_path):
    """A folder for the store, and a secret outside it whose access time tells if anything opened it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    secret = tmp_path / "out" / "secret"
    secret.write_bytes(b"secret" * 1000)
    os.utime(secret, ns=(10**18, 10**18))
    return tmp_path


def copied(sound, place, ending):
    target = place / "in" / f"a.{ending}"
    if ending == "zarr":
        shutil.copytree(sound / "a.zarr", target)
    else:
        for name in os.listdir(sound):
            if name.startswith(f"a.{ending}"):
                shutil.copyfile(sound / name, place / "in" / name)
    return target


def attempt(path, reading, place):
    """What a child says of a store, its time and memory within limits; nothing outside was touched."""
    before = {p: (p.stat().st_atime_ns, p.stat().st_mtime_ns) for p in (place / "out").rglob("*")}
    reading.stdin.write(f"{path}\n")
    reading.stdin.flush()
    told = json.loads(reading.stdout.readline())
    assert told["seconds"] <= SECONDS, told
    assert told["mib"] <= MIB, told
    assert not [name for _, name in told["seen"] if str(place / "out") in name], told
    assert not [event for event, _ in told["seen"] if event != "open"], told
    assert {p: (p.stat().st_atime_ns, p.stat().st_mtime_ns) for p in (place / "out").rglob("*")} == before
    return told["said"]


def refused(path, reading, place, words=""):
    kind, name, said = attempt(path, reading, place)
    assert kind == "refused", (name, said)
    assert path.name in said
    assert words in said
    return said


def forged(members, **facts):
    """Members with a record that says something else, its checksums right."""
    record = json.loads(members[RECORD])
    record |= facts
    record["members"] = {name: zlib.crc32(content) for name, content in members.items() if name != RECORD}
    del record["crc32"]
    record["crc32"] = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    return {**{k: v for k, v in members.items() if k != RECORD}, RECORD: json.dumps(record).encode()}


def members_of(path):
    with zipfile.ZipFile(path) as files:
        return {name: files.read(name) for name in files.namelist()}


def npy_with(path, members):
    """The rows of a .npy store with other members behind them."""
    rows = np.load(path)
    buffer = io.BytesIO()
    np.save(buffer, rows)
    path.write_bytes(buffer.getvalue() + zipped(members))


def saved(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sound_store_is_read_in_the_child(ending, sound, reading, place):
    assert attempt(copied(sound, place, ending), reading, place)[0] == "ok"
    link = place / "in" / f"link.{ending}"
    if ending != "tfrecord":  # its members lie beside it
        link.symlink_to(place / "in" / f"a.{ending}")
        assert attempt(link, reading, place)[0] == "ok"  # the user's own link


@pytest.mark.parametrize("ending", [*ENDINGS, "other"])
@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "loop"])
def test_what_is_no_regular_file_is_refused_at_once(kind, ending, tmp_path, monkeypatch):
    import socket

    monkeypatch.chdir(tmp_path)
    name = f"it.{ending}"
    if kind == "fifo":
        os.mkfifo(name)
    elif kind == "loop":
        os.symlink(name, name)
    elif kind == "device":
        os.symlink("/dev/zero", name)
    listener = socket.socket(socket.AF_UNIX)
    if kind == "socket":
        listener.bind(name)
    with pytest.raises(lt.StoreError, match=r"it\."):
        open_store(name)
    listener.close()


@pytest.mark.parametrize("what", ["zarr.json", "c/2/0/0", "lazytiles/record.json", "lazytiles/digests.npy"])
@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_members_and_chunks_of_a_directory_are_files_in_it(kind, what, sound, reading, place):
    path = copied(sound, place, "zarr")
    member = path / what
    held = member.read_bytes()
    member.unlink()
    if kind == "fifo":
        os.mkfifo(member)
    elif kind == "link":
        outside = place / "out" / "member"
        outside.write_bytes(held)
        os.utime(outside, ns=(10**18, 10**18))
        member.symlink_to(outside)
    else:
        member.mkdir()
    refused(path, reading, place)


@pytest.mark.parametrize("what", ["c", "c/2", "lazytiles"])
def test_folders_of_a_directory_are_no_links(what, sound, reading, place):
    path = copied(sound, place, "zarr")
    shutil.move(path / what, place / "out" / "folder")
    for file in (place / "out").rglob("*"):
        os.utime(file, ns=(10**18, 10**18))
    (path / what).symlink_to(place / "out" / "folder")
    refused(path, reading, place, "link" if what != "lazytiles" else "")


def test_members_beside_a_store_are_no_links(sound, reading, place):
    path = copied(sound, place, "tfrecord")
    side = next(p for p in path.parent.iterdir() if p.name.endswith(".meta"))
    shutil.move(side, place / "out" / "meta")
    os.utime(place / "out" / "meta", ns=(10**18, 10**18))
    side.symlink_to(place / "out" / "meta")
    refused(path, reading, place)
    side.unlink()
    os.mkfifo(side)
    refused(path, reading, place)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual", "member", "group"])
def test_datasets_of_other_files_are_refused(kind, sound, reading, place):
    h5py = pytest.importorskip("h5py")
    path, outside = copied(sound, place, "h5"), place / "out" / "other.h5"
    shutil.copyfile(path, outside)
    raw = place / "out" / "raw"
    raw.write_bytes(bytes(40 * 128))
    with h5py.File(path, "r+") as file:
        shape, dtype = file["data"].shape, file["data"].dtype
        if kind not in ("member", "group"):
            file.move("data", "was")
        if kind == "external link":
            file["data"] = h5py.ExternalLink(str(outside), "/data")
        elif kind == "soft link":
            file["data"] = h5py.SoftLink("/was")
        elif kind == "external storage":
            file.create_dataset("data", shape, dtype, external=[(str(raw), 0, 40 * 128)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(str(outside), "data", shape=shape)
            file.create_virtual_dataset("data", layout)
        elif kind == "member":
            del file["lazytiles/digests.npy"]
            file["lazytiles/digests.npy"] = h5py.ExternalLink(str(outside), "/lazytiles/digests.npy")
        else:
            del file["lazytiles"]
            file["lazytiles"] = h5py.ExternalLink(str(outside), "/lazytiles")
    for file in (outside, raw):
        os.utime(file, ns=(10**18, 10**18))
    refused(path, reading, place)


@pytest.mark.parametrize("kind", ["gzip", "lzf", "member", "lazy member", "chunk"])
def test_bombs_in_hdf5(kind, sound, reading, place):
    h5py = pytest.importorskip("h5py")
    path = copied(sound, place, "h5")
    with h5py.File(path, "r+") as file:
        if kind in ("gzip", "lzf", "chunk"):
            shape, dtype = file["data"].shape, file["data"].dtype
            del file["data"]
            chunks = (2**21, 8, 8) if kind == "chunk" else (8, 8, 8)
            options = {"maxshape": (None, 8, 8), "chunks": chunks, "compression": "gzip" if kind == "chunk" else kind}
            data = file.create_dataset("data", shape, dtype, **options)
            bomb = zlib.compress(bytes(300 * 2**20)) if kind == "gzip" else b"\x00a" + b"\xe0\xff\x00" * 2**21
            for k in range(0 if kind == "chunk" else 5):
                data.id.write_direct_chunk((8 * k, 0, 0), bomb)
        else:
            del file["lazytiles/labels.npy"]
            more = {"chunks": (2**20,), "compression": "gzip"} if kind == "member" else {}
            file["lazytiles"].create_dataset("labels.npy", (2**33,), np.uint8, **more)
    refused(path, reading, place)


@pytest.mark.parametrize("pack", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, "overlap"])
def test_members_that_are_packed_or_lie_are_not_read(pack, sound, reading, place):
    path = copied(sound, place, "npy")
    members = members_of(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as files:
        for name, content in members.items():
            files.writestr(name, content)
        if pack == "overlap":
            files.writestr("big", bytes(2**20))
            files.filelist.extend([files.getinfo("big")] * 2000)
        else:
            files.writestr("labels2.npy", bytes(60 * 2**20), pack)
    rows = saved(np.load(path))
    path.write_bytes(rows + buffer.getvalue())
    refused(path, reading, place, "claim")


def bomb_table():
    """A table of 4 million rows in a few kilobytes."""
    import pyarrow as pa
    from pyarrow import parquet

    values = pa.DictionaryArray.from_arrays(np.zeros(4 * 10**6, np.int8), ["x" * 100])
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"tile_id": values, "b": values}), buffer, compression="zstd")
    return buffer.getvalue()


def lying(shape, descr="<i8"):
    """A .npy header that promises more than follows."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(64)


FORGERIES = {
    "no digests": ({"digests.npy": saved(np.zeros(0, np.uint32))}, {}),
    "few digests": ({"digests.npy": saved(np.zeros(4, np.uint32))}, {}),
    "many digests": ({"digests.npy": saved(np.zeros(6, np.uint32))}, {}),
    "other digests": ({"digests.npy": saved(np.zeros(5, np.float32))}, {}),
    "digests that lie": ({"digests.npy": lying((2**40,), "<u4")}, {}),
    "rows": ({}, {"rows": 2**40}),
    "negative rows": ({}, {"rows": -1}),
    "rows as text": ({}, {"rows": "40"}),
    "chunk": ({}, {"chunk": 2**40}),
    "shape": ({}, {"shape": [2**30, 2**30]}),
    "dtype": ({}, {"dtype": "|O"}),
    "other dtype": ({}, {"dtype": "(9999999,)i8"}),
    "about": ({}, {"about": [1]}),
    "labels about": ({}, {"about": {"labels": {"version": "../../out/secret", "uid": "1"}}}),
    "tabular about": ({}, {"about": {"tabular": 7}}),
    "labels of 3 rows": ({"labels.npy": saved(np.zeros(3))}, {}),
    "labels that lie": ({"labels.npy": lying((40, 2**40))}, {}),
    "labels of nothing": ({"labels.npy": lying((2**40,), "|V0")}, {}),
    "pickled labels": ({"labels.npy": saved(np.array([{}] * 40, object), allow_pickle=True)}, {}),
    "labels that are none": ({"labels.npy": b"\x93NUMPY\x09\x00nothing"}, {}),
    "order that repeats": ({"order.npy": saved(np.zeros(40, np.int64))}, {}),
    "order outside": ({"order.npy": saved(np.arange(40) + 5)}, {}),
    "order of floats": ({"order.npy": saved(np.linspace(0, 1, 40))}, {}),
    "table that is none": ({"table.parquet": b"PAR1 nothing PAR1"}, {}),
    "table of other rows": ({"table.parquet": bomb_table()}, {}),
    "deep record": ({RECORD: b"[" * 100_000}, None),
    "record that is none": ({RECORD: b"\xff\xfe"}, None),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_members(name, sound, reading, place):
    path = copied(sound, place, "npy")
    content, facts = FORGERIES[name]
    members = members_of(path) | content
    npy_with(path, members if facts is None else forged(members, **facts))
    refused(path, reading, place)


def test_a_table_that_unpacks_to_too_much(tmp_path):
    rows = 4 * 10**6
    with StoreWriter(tmp_path / "a.npy", (1,), "u1", chunk=rows) as writer:
        writer.write(np.zeros((rows, 1), np.uint8))
    path = tmp_path / "a.npy"
    npy_with(path, forged(members_of(path) | {"table.parquet": bomb_table()}))
    with pytest.raises(lt.LimitError, match=r"a\.npy is refused: its table of \d+ bytes unpacks to"):
        open_store(path)


@pytest.mark.parametrize("kind", ["objects", "rows", "no bytes", "short", "fortran"])
def test_forged_npy_headers(kind, sound, reading, place):
    path = copied(sound, place, "npy")
    members = path.read_bytes()[len(saved(np.load(path))) :]
    header = {
        "objects": lying((40, 8, 8), "|O"),
        "rows": lying((2**50, 8, 8), "<u2"),
        "no bytes": lying((40, 0, 8), "<u2"),
        "short": b"\x93NUMPY\x01\x00",
        "fortran": saved(np.asfortranarray(np.ones((40, 8, 8), np.uint16))),
    }[kind]
    path.write_bytes(header + (pickle.dumps(print) if kind == "objects" else b"") + members)
    refused(path, reading, place)


@pytest.mark.parametrize("kind", ["shape", "chunk", "blosc", "zstd", "codec", "deep", "missing", "long", "long chunk"])
def test_forged_zarr(kind, sound, reading, place):
    path = copied(sound, place, "zarr")
    about = json.loads((path / "zarr.json").read_text())
    chunk = path / "c/1/0/0"
    if kind == "shape":
        about["shape"][0] = 2**50
    elif kind == "chunk":
        about["chunk_grid"]["configuration"]["chunk_shape"] = [2**30, 8, 8]
    elif kind == "codec":
        about["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    elif kind == "blosc":
        held = bytearray(chunk.read_bytes())
        held[4:8] = struct.pack("<I", 2**31 - 1)
        chunk.write_bytes(held)
    elif kind == "zstd":
        about["codecs"] = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
        ]
        chunk.write_bytes(imagecodecs.zstd_encode(bytes(500 * 2**20)))
    elif kind == "missing":
        chunk.unlink()
    elif kind == "long chunk":
        os.truncate(chunk, 3 * 2**30)
    (path / "zarr.json").write_text("[" * 10**5 if kind == "deep" else json.dumps(about))
    if kind == "long":
        os.truncate(path / "zarr.json", 3 * 2**30)
    refused(path, reading, place)


@pytest.mark.parametrize("name", ["record.json", "labels.npy", "more.npy", "npy", "h5"])
def test_members_of_holes_are_not_read(name, sound, reading, place):
    path = copied(sound, place, name if name in ENDINGS else "zarr")
    if name == "npy":
        with zipfile.ZipFile(path, "a") as files:  # which rewrites what it says of them when it is closed
            at = files.start_dir
            files.writestr("more.npy", b"")
            files.filelist[-1].file_size = files.filelist[-1].compress_size = 3 * 10**9
            files.fp.truncate(at + 4 * 10**9)
            files.start_dir = at + 4 * 10**9
    elif name == "h5":
        import h5py

        with h5py.File(path, "r+") as file:
            group = next(file[key] for key in file if isinstance(file[key], h5py.Group))
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((3 * 10**9,))
            h5py.h5d.create(group.id, b"more.npy", h5py.h5t.NATIVE_UINT8, space, plist)
    else:
        with open(path / "lazytiles" / name, "ab") as file:
            os.truncate(file.fileno(), 3 * 2**30)
    refused(path, reading, place, "hardly any are there")


@pytest.mark.parametrize("packer", ["gzip", "zstd", "blosc"])
@pytest.mark.parametrize("shards", [None, "end", "start"])
def test_bombs_in_zarr(packer, shards, reading, place):
    """Of one stream or, with gzip, of several; in a file of their own, or in a shard that is read by parts or whole."""
    zarr, google_crc32c = pytest.importorskip("zarr"), pytest.importorskip("google_crc32c")
    path = place / "in" / "a.zarr"
    codec = {
        "gzip": zarr.codecs.GzipCodec(),
        "zstd": zarr.codecs.ZstdCodec(),
        "blosc": zarr.codecs.BloscCodec(cname="zstd"),
    }[packer]
    options = {} if shards is None else {"shards": {"shape": (8, 8, 8), "index_location": shards}}
    array = np.arange(40 * 64, dtype="u2").reshape(40, 8, 8)
    with StoreWriter(path, chunk=4, compressors=[codec], **options) as writer:
        writer.write(array)
    assert attempt(path, reading, place)[0] == "ok"
    if packer == "gzip":
        bomb = gzip.compress(bytes(300 * 2**20)) + gzip.compress(b"small")
    elif packer == "zstd":
        bomb = imagecodecs.zstd_encode(bytes(300 * 2**20))
    else:
        bomb = bytearray(imagecodecs.blosc_encode(bytes(2**20), compressor="zstd"))
        bomb[4:8] = struct.pack("<I", 2**31 - 1)
    chunk = path / "c/1/0/0"
    if shards is None:
        chunk.write_bytes(bomb)
    else:
        spans = np.array([[0, len(bomb)]] * 2, "<u8") + np.array([[36 if shards == "start" else 0, 0]], "<u8")
        table = spans.tobytes()
        table += google_crc32c.value(table).to_bytes(4, "little")
        chunk.write_bytes(table + bytes(bomb) if shards == "start" else bytes(bomb) + table)
    refused(path, reading, place)
    region = lt.open_region(path)
    for rows in (slice(4, 10), slice(4, 16), slice(0, 40)):
        with pytest.raises(lt.LazyTilesError, match=r"a\.zarr"):
            region[rows]


@pytest.mark.parametrize("kind", ["layer", "member", "trailer", "chunks", "cut", "no frame"])
def test_forged_blosc2(kind, sound, reading, place):
    blosc2 = pytest.importorskip("blosc2")
    path = copied(sound, place, "b2nd")
    if kind == "layer":  # which makes blosc2.open run what the file says
        path.unlink()
        one = blosc2.asarray(np.arange(10), urlpath=str(place / "in" / "one.b2nd"), mode="w")
        (one + 1).save(urlpath=str(path))
    elif kind == "member":
        array = blosc2.open(str(path), mode="a")
        array.schunk.vlmeta["labels2.npy"] = bytes(300 * 2**20)
        del array
    else:
        data = bytearray(path.read_bytes())
        if kind == "trailer":
            data[-22:-18] = struct.pack(">I", 2**31)
        elif kind == "chunks":
            data[58:62] = struct.pack(">i", 2**30)
        elif kind == "cut":
            data = data[:70]
        else:
            data[2:9] = b"c3frame"
        path.write_bytes(data)
    refused(path, reading, place)


@pytest.mark.parametrize("kind", ["ends", "few ends", "back", "length"])
def test_forged_records(kind, sound, reading, place):
    path = copied(sound, place, "tfrecord")
    side = next(p for p in path.parent.iterdir() if p.name.endswith(".meta"))
    members = members_of(side)
    ends = np.frombuffer(members["ends.bin"], np.int64).copy()
    if kind == "ends":
        ends[1] = 2**60
    elif kind == "few ends":
        ends = ends[-1:]
    elif kind == "back":
        ends[1] = -5
    else:
        data = bytearray(path.read_bytes())
        data[:8] = struct.pack("<Q", 2**63)
        path.write_bytes(data)
    members["ends.bin"] = ends.tobytes()
    side.write_bytes(zipped(members))
    refused(path, reading, place)


def test_chunks_have_a_limit_in_writers_and_readers(sound, tmp_path):
    words = r"one chunk of shape \(8, 8, 8\) is 1024 bytes decoded, max_segment_bytes is 1000; .*configure"
    for ending in ENDINGS:
        with within_limits(max_segment_bytes=1000):
            with pytest.raises(lt.LimitError, match=words):
                open_store(sound / f"a.{ending}")
            with pytest.raises(lt.LimitError, match=words), StoreWriter(tmp_path / f"b.{ending}", chunk=8) as writer:
                writer.write(np.zeros((8, 8, 8), np.uint16))
            with pytest.raises(lt.LimitError, match=words):
                export(np.zeros((8, 8, 8), np.uint16), tmp_path / f"c.{ending}", chunk=8)
        assert len(open_store(sound / f"a.{ending}")) == 40
        with StoreWriter(tmp_path / f"b.{ending}", chunk=8) as writer:
            writer.write(np.zeros((8, 8, 8), np.uint16))
    assert not [name for name in os.listdir(tmp_path) if "partial" in name or "lock" in name]


def test_a_lock_that_is_a_link_or_fifo_is_refused(place):
    path = place / "in" / "a.npy"
    for target in (place / "out" / "new", place / "out" / "secret"):
        (place / "in" / "a.npy.lock").symlink_to(target)
        with pytest.raises(lt.StoreError, match=r"a\.npy cannot be locked: is a link"):
            StoreWriter(path)
        (place / "in" / "a.npy.lock").unlink()
    assert os.listdir(place / "out") == ["secret"]
    assert (place / "out" / "secret").read_bytes() == b"secret" * 1000
    os.mkfifo(place / "in" / "a.npy.lock")
    with pytest.raises(lt.StoreError, match=r"a\.npy cannot be locked: is not a regular file"):
        StoreLock(path)


def killed(path, rows=20):
    """What a writer leaves that was killed after 20 rows, and its journal."""
    code = (
        "import os, sys, numpy as np\nfrom lazytiles.stores.writers import StoreWriter\n"
        "w = StoreWriter(sys.argv[1], (8, 8), 'u2', chunk=4)\n"
        f"w.write(np.arange({rows} * 64, dtype='u2').reshape({rows}, 8, 8)); w.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(lt.__file__).parents[1])},
        check=False,
    )
    return partials(path)[0]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_partial_or_journal_that_is_a_link_is_left_alone(ending, place):
    path = place / "in" / f"a.{ending}"
    for part in ("partial", "journal", "fifo"):
        left = killed(path)
        what = left.partial if part == "partial" else left.path
        shutil.move(what, place / "out" / "moved")
        before = {p: p.stat().st_mtime_ns for p in (place / "out").rglob("*")}
        os.mkfifo(what) if part == "fifo" else what.symlink_to(place / "out" / "moved")
        with StoreWriter(path, (8, 8), "u2", chunk=4, resume=True) as writer:
            assert len(writer) == 0
            writer.write(np.zeros((20, 8, 8), np.uint16))
        assert {p: p.stat().st_mtime_ns for p in (place / "out").rglob("*")} == before
        assert not open_store(path)[:].any()
        shutil.rmtree(place / "out" / "moved") if (place / "out" / "moved").is_dir() else (
            place / "out" / "moved"
        ).unlink()
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_partial_directory_with_links_is_not_written_on(place):
    path = place / "in" / "a.zarr"
    left = killed(path)
    shutil.move(left.partial / "c", place / "out" / "c")
    (left.partial / "c").symlink_to(place / "out" / "c")
    before = {p: p.stat().st_mtime_ns for p in (place / "out").rglob("*")}
    with pytest.raises(lt.StoreError, match=r"c: is a link or no regular file"):
        StoreWriter(path, (8, 8), "u2", chunk=4, resume=True)
    assert {p: p.stat().st_mtime_ns for p in (place / "out").rglob("*")} == before


FORGED = {
    "far": lambda h, lines: [h, "1000000000000 1 0"],
    "back": lambda h, lines: [h, "8 1 0", "4 1 0"],
    "negative": lambda h, lines: [h, "-4 1 0"],
    "long step": lambda h, lines: [h, "12 1 0"],
    "short step": lambda h, lines: [h, "4 1 0", "6 1 0", "8 1 0"],
    "note": lambda h, lines: [h, f"4 1 {2**70}"],
    "words": lambda h, lines: [h, "four 1 0"],
    "chunk": lambda h, lines: [json.dumps(json.loads(h) | {"chunk": 2**50}), *lines],
    "shape": lambda h, lines: [json.dumps(json.loads(h) | {"shape": "wide"}), *lines],
    "dtype": lambda h, lines: [json.dumps(json.loads(h) | {"dtype": "|O"}), *lines],
    "list": lambda h, lines: ["[1, 2]", *lines],
    "deep": lambda h, lines: ["[" * 100_000, *lines],
    "long": lambda h, lines: [h, *(f"{4 * k} 1 0" for k in range(1, 2 * 10**6))],
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_journals_are_no_journals(kind, place):
    path = place / "in" / "a.npy"
    left = killed(path)
    header, *lines = left.path.read_text().splitlines()
    left.path.write_text("\n".join([*FORGED[kind](header, lines), ""]))
    assert kind == "chunk" or Journal.read(left.partial) is None
    with StoreWriter(path, (8, 8), "u2", chunk=4, resume=True) as writer:
        assert len(writer) == 0


@pytest.mark.parametrize("note", [0, 5, 2**40])
def test_a_journal_whose_notes_lie(note, place):
    for ending in ("b2nd", "tfrecord"):
        path = place / "in" / f"a.{ending}"
        left = killed(path)
        header, first, *lines = left.path.read_text().splitlines()
        stop, crc, _ = first.split()
        left.path.write_text("\n".join([header, f"{stop} {crc} {note}", *lines, ""]))
        with StoreWriter(path, (8, 8), "u2", chunk=4, resume=True) as writer:
            assert len(writer) == 0


def test_a_torn_hdf5_partial_never_hangs(place):
    """HDF5's single-writer mode asks for ever anew for damaged bytes; every cut and many flips are tried."""
    path = place / "in" / "a.h5"
    left = killed(path)
    data = left.partial.read_bytes()
    rows = np.arange(20 * 64, dtype=np.uint16).reshape(20, 8, 8)
    with contextlib.closing(HDF5Reader(left.partial, Layout((1,), np.dtype("u1"), 1))) as reader:
        np.testing.assert_array_equal(reader.read(0, 20), rows)
    rng = np.random.default_rng(0)
    damages = [data[:cut] for cut in (0, 7, 20, 47, 48, 60, 200, 462, 463, 700, 1500, len(data) - 9)]
    for start in (0, 8, 20, 44, 48, 60, 195, 300, 463, 600, 1000):
        damages += [data[:start] + bytes(min(40, len(data) - start)) + data[start + 40 :]]
    for _ in range(60):
        damages.append(bytearray(data))
        for at in rng.integers(0, len(data), 3):
            damages[-1][at] ^= int(rng.integers(1, 256))
    for damage in damages:
        left.partial.write_bytes(damage)
        with (
            contextlib.suppress(Exception),
            contextlib.closing(HDF5Reader(left.partial, Layout((1,), np.dtype("u1"), 1))) as reader,
        ):
            reader.read(0, 4)
    left.partial.write_bytes(data[:48])
    with StoreWriter(path, (8, 8), "u2", chunk=4, resume=True) as writer:
        assert len(writer) == 0


def test_lookup3_is_what_hdf5_writes(place):
    left = killed(place / "in" / "a.h5")
    block = left.partial.read_bytes()[:48]
    assert lookup3(block[:44]) == int.from_bytes(block[44:], "little")


def test_verification_is_of_every_row(sound, place):
    for ending in ENDINGS:
        assert verify_store(copied(sound, place, ending)).chunks == 5


def test_labels_beside_a_store_are_no_link(place):
    masks = MultiSourceArray([np.ones((8, 4, 4), np.uint8)])
    tiles = MultiSourceArray([np.zeros((8, 4, 4), np.uint8)], masks)
    path = place / "in" / "a.npy"
    export(tiles, path)
    labels = next(p for p in path.parent.iterdir() if "labels" in p.name)
    shutil.move(labels, place / "out" / "labels.npy")
    labels.symlink_to(place / "out" / "labels.npy")
    with pytest.raises(lt.StoreError, match="is a link, which may lead anywhere"):
        open_store(path)


@pytest.mark.parametrize("metadata", [".zarray", "zarr.json"])
@pytest.mark.parametrize("kind", ["fifo chunk", "linked chunk", "pickle", "blosc"])
def test_zarr_regions_too(kind, metadata, place):
    zarr = pytest.importorskip("zarr")
    path, version = place / "in" / "a.zarr", 2 if metadata == ".zarray" else 3
    options = {"compressors": zarr.codecs.BloscCodec()} if version == 3 else {}
    image = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    zarr.create_array(str(path), data=image, chunks=(32, 32), zarr_format=version, **options)
    np.testing.assert_array_equal(lt.open_region(path), image)
    lt.clear_cache()
    chunk = path / ("1.1" if version == 2 else "c/1/1")
    if kind == "pickle":
        about = json.loads((path / metadata).read_text())
        if version == 3:
            about["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
        else:
            about["filters"] = [{"id": "pickle", "protocol": 4}]
            chunk.write_bytes(pickle.dumps(print))
        (path / metadata).write_text(json.dumps(about))
    elif kind == "blosc":
        if version == 2:
            pytest.skip("packed by Zstandard")
        held = bytearray(chunk.read_bytes())
        held[4:8] = struct.pack("<I", 2**31 - 1)
        chunk.write_bytes(held)
    else:
        held = chunk.read_bytes()
        chunk.unlink()
        (place / "out" / "chunk").write_bytes(held)
        os.mkfifo(chunk) if kind == "fifo chunk" else chunk.symlink_to(place / "out" / "chunk")
    with pytest.raises(lt.RegionError, match=r"a\.zarr"):
        lt.open_region(path)[...]


def test_blosc2_is_asked_for_nothing_but_arrays(sound):
    reader = Blosc2Reader(sound / "a.b2nd")
    assert set(reader.members()) >= {RECORD, "digests.npy", "labels.npy"}
    reader.close()


def test_what_gzip_cannot_pack_is_read(tmp_path):
    rows = np.random.default_rng(0).integers(0, 2**16, (32, 16, 16), dtype=np.uint16)
    rows[16:] = 7
    for shuffle in (False, True):
        path = tmp_path / f"{shuffle}.h5"
        with StoreWriter(path, chunk=8, compression="gzip", shuffle=shuffle) as writer:
            writer.write(rows)
        np.testing.assert_array_equal(open_store(path)[:], rows)


@pytest.mark.parametrize("shape", [(64, 64), (4, 64, 64), (64, 64, 3), (4, 64, 64, 2)])
def test_bombs_in_hdf5_regions(shape, tmp_path):
    h5py = pytest.importorskip("h5py")
    path, image = tmp_path / "a.h5", np.random.default_rng(0).integers(0, 9, shape, dtype=np.uint8)
    chunks = tuple(min(n, 32) for n in shape[:-1]) + ((1,) if shape[-1] < 4 else (32,))
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=image, chunks=chunks, compression="gzip")
    read = lt.open_region(f"{path}::data", page="all" if len(shape) == 4 or shape == (4, 64, 64) else 0)
    np.testing.assert_array_equal(np.asarray(read).reshape(shape), image)
    with h5py.File(path, "r+") as file:
        data = file["data"]
        place = tuple(n // c * c - c for n, c in zip(shape, chunks, strict=True))
        data.id.write_direct_chunk(place, zlib.compress(bytes(200 * 2**20)))
    read = lt.open_region(f"{path}::data", page="all" if len(shape) == 4 or shape == (4, 64, 64) else 0)
    with pytest.raises(lt.RegionError, match=r"its chunk at \(.*\) has more than \d+ bytes"):
        np.asarray(read)
