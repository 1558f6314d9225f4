"""Damaged, odd and malicious files: right pixels or a clear error, soon, in little memory, and nothing beside."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile

import lazytiles as lt
from tests import fuzz_tiff
from tests.limits import within_limits

HOSTILE = Path(os.environ.get("LAZYTILES_HOSTILE", Path(__file__).resolve().parents[2].parent / "shared" / "hostile"))

# Reads one file in every way that its row asks for and tells what came of it, how long it took and how much memory.
CHILD = """
import json, logging, resource, sys, time
import numpy as np
import lazytiles as lt
logging.disable(logging.CRITICAL)
path, boxes = sys.argv[1], json.loads(sys.argv[2])
lt.counters()
import tifffile, imagecodecs, PIL.Image, lazytiles.images.region
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
base, start, told = peak(), time.monotonic(), {}
def attempt(name, read):
    try:
        array = np.asarray(read())
        np.save(sys.argv[3] + "." + name, array)
        told[name] = ["ok", str(array.dtype), list(array.shape)]
    except lt.LazyTilesError as error:
        told[name] = ["error", type(error).__name__, str(error)]
    except BaseException as error:
        told[name] = ["foreign", type(error).__name__, str(error)]
for name, box in boxes.items():
    y0, x0, y1, x1 = box
    attempt(name, lambda: lt.open_region(path)[y0:y1, x0:x1])
attempt("whole", lambda: lt.open_region(path))
print(json.dumps({"told": told, "seconds": time.monotonic() - start, "mib": peak(), "base": base}))
"""


def rows(name):
    if not (HOSTILE / name).is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{HOSTILE} is not here"))]
    with open(HOSTILE / name, newline="") as file:
        return [pytest.param(row, id=row["name"]) for row in csv.DictReader(file)]


def box_of(text):
    return [int(part) for part in text.split(":")]


def in_child(path, boxes, keep):
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), json.dumps(boxes), str(keep)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(lt.__file__).parents[1])},
    )
    assert not ran.returncode, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize("row", rows("hostile.csv"))
def test_hostile_file(row, tmp_path):
    path = HOSTILE / "tiff" / f"{row['name']}.tif"
    boxes = {kind: box_of(row[f"{kind}_window"]) for kind in ("good", "bad") if row[f"{kind}_window"]}
    expected = np.load(path.with_suffix(".npy")) if row["has_npy"] == "1" else None
    result = in_child(path, boxes, tmp_path / "read")
    told = result["told"]
    assert not [name for name, (kind, *_) in told.items() if kind == "foreign"], told
    assert result["seconds"] <= float(row["max_s"])
    assert result["mib"] <= float(row["max_rss_mib"]), result

    def check_pixels(name, box):
        array = np.load(f"{tmp_path / 'read'}.{name}.npy")
        y0, x0, y1, x1 = box
        wanted = expected[y0:y1, x0:x1]
        assert array.shape == wanted.shape
        assert array.dtype == wanted.dtype.newbyteorder("=")
        if row["expect"] != "either-garbage" or name == "good":
            np.testing.assert_allclose(
                array.astype(np.complex128), wanted.astype(np.complex128), rtol=0, atol=float(row["atol"] or 0)
            )

    whole = None if expected is None else [0, 0, *expected.shape[:2]]
    if "good" in boxes:
        assert told["good"][0] == "ok", told
        check_pixels("good", boxes["good"])
    if row["expect"] in ("ok", "fill"):
        assert told["whole"][0] == "ok", told
    if row["expect"] == "error":
        for name in {"whole", "bad"} & set(told):
            assert told[name][0] == "error", told
            assert path.name in told[name][2]
    for name in ("bad", "whole"):
        if name in told and told[name][0] == "ok":
            check_pixels(name, boxes.get(name, whole))
    if row["expect"] in ("ok", "fill", "either") and told["whole"][0] == "ok":
        with within_limits(cache_bytes=0):
            rng = np.random.default_rng(0)
            region = lt.open_region(path)
            for _ in range(20):
                y = np.sort(rng.integers(0, whole[2] + 1, 2))
                x = np.sort(rng.integers(0, whole[3] + 1, 2))
                np.testing.assert_allclose(
                    region[y[0] : y[1], x[0] : x[1]],
                    expected[y[0] : y[1], x[0] : x[1]],
                    rtol=0,
                    atol=float(row["atol"] or 0),
                )


@pytest.mark.parametrize("row", rows("manifests.csv"))
def test_hostile_manifest(row):
    def opened():
        return lt.open_tiles(HOSTILE / "manifests" / f"{row['name']}.csv", HOSTILE / "regions", path="{region_id}.tif")

    if row["name"] == "region_corrupt":
        tiles = opened()
        expected = tifffile.imread(HOSTILE / "regions" / "r0.tif")
        np.testing.assert_array_equal(tiles[0].reshape(32, 32, -1), expected[:32, :32].reshape(32, 32, -1))
        with pytest.raises(lt.LazyTilesError, match=r"(?s)tile t1 .*\(32, 32, 64, 64\).*corrupt\.tif"):
            tiles[1]
        with pytest.raises(lt.LazyTilesError, match=r"corrupt\.tif"):
            tiles[:]
        np.testing.assert_array_equal(tiles[0].reshape(32, 32, -1), expected[:32, :32].reshape(32, 32, -1))
    elif row["expect"] == "ok":
        tiles = opened()
        assert len(tiles[:]) == len(tiles.table)
    else:
        with pytest.raises(lt.LazyTilesError, match=r"."):  # noqa: PT012  # where it is refused is its own choice
            tiles = opened()
            tiles.verify()


def test_nothing_of_a_manifest_is_run_or_opened(hostile_dir):
    """An audit hook in a child sees every open, exec and import of the table's words."""
    program = """
import sys, os
import lazytiles as lt, tifffile, imagecodecs, PIL.Image, pyarrow, lazytiles.manifests.tiles
folder = sys.argv[1]
seen = []
sys.addaudithook(lambda event, args: seen.append((event, str(args))) if event in
    ("open", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect") else None)
for name in sorted(os.listdir(folder + "/manifests")):
    try:
        lt.open_tiles(folder + "/manifests/" + name, folder + "/regions", path="{region_id}.tif")[:]
    except lt.LazyTilesError:
        pass
for event, args in list(seen):
    if event == "open":
        path = args.split("'")[1] if "'" in args else ""
        ours = path.startswith((folder, sys.prefix, sys.base_prefix, "/proc", "/sys", os.getcwd())) or not path
        assert ours, (event, args)
    else:
        assert event in ("exec", "compile") and "tile" not in args and "region" not in args[:20], (event, args)
"""
    # Without reader processes, whose start runs and opens what it needs.
    environment = {**os.environ, "PYTHONPATH": str(Path(lt.__file__).parents[1]), "LAZYTILES_READERS": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", program, str(hostile_dir)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert not ran.returncode, ran.stderr[-3000:]


def test_companions_of_ome_files_are_never_opened(tmp_path):
    other = tmp_path / "secret" / "other.tif"
    other.parent.mkdir()
    tifffile.imwrite(other, np.ones((8, 8), np.uint8))
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    os.mkfifo(tmp_path / "fifo")
    for k, name in enumerate(("../secret/other.tif", str(other), "../fifo", "secret/other.tif")):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="8" SizeY="8" '
            'SizeC="1" SizeZ="2" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
            '<TiffData IFD="0" FirstZ="0"><UUID FileName="main.tif">urn:uuid:1</UUID></TiffData>'
            f'<TiffData IFD="0" FirstZ="1"><UUID FileName="{name}">urn:uuid:2</UUID></TiffData>'
            "</Pixels></Image></OME>"
        )
        folder = tmp_path / f"ome{k}"
        folder.mkdir()
        tifffile.imwrite(folder / "main.tif", image, description=xml, metadata=None)
        opened = []
        sys.addaudithook(lambda event, args, to=opened: to.append(str(args[0])) if event == "open" else None)
        region = lt.open_region(folder / "main.tif")
        np.testing.assert_array_equal(region, image)
        stack = lt.open_region(folder / "main.tif", page="all")
        assert stack.shape == (1, 8, 8)
        np.testing.assert_array_equal(stack[0], image)
        assert [level.shape for level in region.levels] == [(8, 8)]
        assert not [path for path in opened if "other" in path or "fifo" in path]
        opened.clear()


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "socket", "missing", "nul", "empty", "loop"])
def test_what_is_no_regular_file_is_refused_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, listener = "it.tif", None
    if kind == "fifo":
        os.mkfifo(name)
    elif kind == "directory":
        os.mkdir(name)
    elif kind == "device":
        name = "/dev/zero"
    elif kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
    elif kind == "nul":
        name = "it\0.tif"
    elif kind == "empty":
        Path(name).touch()
    elif kind == "loop":
        os.symlink(name, name)
    try:
        with pytest.raises(lt.LazyTilesError, match=r"it|/dev/zero"):
            lt.open_region(name)
        if kind not in ("nul", "device"):
            manifest = Path("tiles.csv")
            manifest.write_text('tile_id,region_id,target,region_coordinates\na,it,1,"(0, 0, 2, 2)"\n')
            with pytest.raises(lt.LazyTilesError, match=r"it"):
                lt.open_tiles(manifest)[0]
    finally:
        if listener is not None:
            listener.close()


def strip(data, *, bits, kind=1, predictor=1, shape=(20, 20), compression=5):
    """A TIFF of one strip of any bytes, LZW unless something else is asked for."""
    height, width = shape
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, compression), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 3, height), (279, 4, len(data)), (317, 3, predictor), (339, 3, kind),
    ]  # fmt: skip
    body = data + b"\0" * (len(data) % 2)
    ifd = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", code, type_, 1, value) for code, type_, value in entries
    )
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + ifd + bytes(4)


def codes(*values):
    """LZW codes of nine bits as bytes (TIFF 6.0 section 13: the first bits are the highest)."""
    text = "".join(f"{value:09b}" for value in values)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


@pytest.mark.parametrize(("bits", "kind"), [(8, 1), (64, 3), (4, 1), (12, 1), (1, 1), (24, 3)])
@pytest.mark.parametrize("stream", [(256, 360, 1, 2, 3), (360, 1), (256, 256, 300), (256, 5, 259, 300, 511)])
def test_undefined_lzw_codes_are_an_error(bits, kind, stream, tmp_path):
    """imagecodecs' own decoder follows such codes into memory that is not its own: the process ended."""
    path = tmp_path / "lzw.tif"
    path.write_bytes(strip(codes(*stream) + bytes(64), bits=bits, kind=kind))
    result = in_child(path, {}, tmp_path / "read")
    assert result["told"]["whole"][:2] == ["error", "SegmentError"], result


@pytest.mark.parametrize("bits", [1, 4, 12])
def test_packed_lzw_is_read_as_written(bits, tmp_path):
    rng = np.random.default_rng(bits)
    plain = rng.integers(0, 256, (20, -(-20 * bits // 8)), dtype=np.uint8)
    import imagecodecs

    path = tmp_path / "lzw.tif"
    path.write_bytes(strip(imagecodecs.lzw_encode(plain.tobytes()), bits=bits))
    np.testing.assert_array_equal(lt.open_region(path), tifffile.imread(path))


def test_random_damage(tmp_path):
    """A sample of ``python tests/fuzz_tiff.py --count 10000``."""
    results, findings, longest = fuzz_tiff.run(0, 300, seed=20)
    assert not findings
    assert sum(results.values()) == 300
    assert longest < fuzz_tiff.SLOW_S


def test_damage_stays_local(tmp_path):
    """One broken segment fails the windows over it and no others, in one batch and in many."""
    image = np.random.default_rng(0).integers(0, 999, (96, 80), dtype=np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, image, tile=(16, 16), compression="zlib")
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        offset, size = tiff.pages[0].dataoffsets[7], tiff.pages[0].databytecounts[7]
    data = bytearray(file.getvalue())
    data[offset : offset + size] = bytes(size)
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    region = lt.open_region(path)
    for row in range(6):
        for column in range(5):
            box = (slice(row * 16, row * 16 + 16), slice(column * 16, column * 16 + 16))
            if (row, column) == (1, 2):
                with pytest.raises(lt.SegmentError, match=r"a\.tif page 0: segment 7 \(row 1, column 2\)"):
                    region[box]
            else:
                np.testing.assert_array_equal(region[box], image[box])


@pytest.mark.parametrize("compression", ["zlib", "zstd", "packbits", "lzw", "jpeg"])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_damage_among_small_tiles_is_as_if_each_were_read_alone(cache_bytes, compression, tmp_path):
    """Small segments are decoded many at a time; each is refused or not as when it is the only one."""
    dtype = np.uint8 if compression == "jpeg" else np.uint16
    image = np.random.default_rng(0).integers(0, 99, (64, 64), dtype=dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, tile=(16, 16), compression=compression)
    with tifffile.TiffFile(path) as tiff:
        places = list(zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True))
    rng = np.random.default_rng(1)
    sound, refused = path.read_bytes(), 0
    for trial in range(40):
        data = bytearray(sound)
        for k in rng.choice(len(places), 3, replace=False):
            data[places[k][0] + int(rng.integers(places[k][1]))] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"{trial}.tif"
        path.write_bytes(data)
        corners = np.mgrid[0:64:16, 0:64:16].reshape(2, -1).T
        boxes = np.column_stack([corners, corners + 16])
        table = pd.DataFrame(boxes, columns=["ymin", "xmin", "ymax", "xmax"]).assign(
            path=path.name, tile_id=[f"t{k}" for k in range(16)]
        )
        with within_limits(cache_bytes=cache_bytes):
            tiles = lt.open_tiles(table, tmp_path)
            together = {}
            tiles.take_batches([np.array([k]) for k in range(16)], together.__setitem__)
        for k, (y, x, _, _) in enumerate(boxes.tolist()):
            with within_limits(cache_bytes=0):
                region = lt.open_region(path)
                if isinstance(together[k], Exception):
                    refused += 1
                    with pytest.raises(lt.SegmentError) as alone:
                        region[y : y + 16, x : x + 16]
                    assert str(alone.value) in str(together[k])
                else:
                    np.testing.assert_array_equal(np.squeeze(together[k]), region[y : y + 16, x : x + 16])
    assert refused or compression == "packbits"  # almost any bytes of which mean something


def zstd_frame(content, descriptor):
    """A frame of Zstandard that holds bytes as they are, with the frame header that its descriptor asks for."""
    flag, single = descriptor >> 6, descriptor & 0x20
    window = b"" if single else b"\x58"
    size = len(content) - (256 if flag == 1 else 0)
    said = b"" if flag == 0 and not single else size.to_bytes((1, 2, 4, 8)[flag], "little")
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + window + said + block + content


@pytest.mark.parametrize(("rows", "width"), [(8, 10), (16, 16), (32, 40)])
def test_frames_of_zstandard_of_any_kind_are_read(rows, width, tmp_path):
    """With and without the size of their content, in one or several bytes, alike or not."""
    image = np.random.default_rng(rows).integers(0, 255, (16 * rows, width), np.uint8)
    strips = [image[y : y + rows].tobytes() for y in range(0, 16 * rows, rows)]
    kinds = [0x00, 0x80, 0xA0, 0xC0, 0xE0, *([0x20] if rows * width < 256 else [0x40, 0x60])]
    for chosen in [*([kind] for kind in kinds), kinds]:
        path = tmp_path / "a.tif"
        streams = [zstd_frame(strip, chosen[k % len(chosen)]) for k, strip in enumerate(strips)]
        tifffile.imwrite(path, iter(streams), shape=image.shape, dtype="u1", rowsperstrip=rows, compression="zstd")
        np.testing.assert_array_equal(tifffile.imread(path), image)
        with within_limits(cache_bytes=0):
            np.testing.assert_array_equal(lt.open_region(path), image)


@pytest.mark.parametrize("descriptor", [0x00, 0x60, 0xA0])
def test_a_frame_does_not_fill_the_tile_of_another(descriptor, tmp_path):
    """Streams that are together as long as their tiles, and each too short or too long, are refused one by one."""
    content, path = bytes(range(256)) * 4, tmp_path / "a.tif"
    whole = zstd_frame(content[:512], descriptor)

    def opened(streams):
        shape = 16, 32 * len(streams)
        tifffile.imwrite(path, iter(streams), shape=shape, dtype="u1", tile=(16, 32), compression="zstd")
        return lt.open_region(path)

    short, long = (zstd_frame(content[:cut], descriptor) for cut in (400, 624))
    with within_limits(cache_bytes=0, threads=1):  # many are decoded together
        region = opened([whole] * 30 + [short, long] + [whole] * 32)
        for wrong in (slice(None), slice(960, 992), slice(992, 1024)):
            with pytest.raises(lt.SegmentError, match=r"segment 3[01] "):
                region[:, wrong]
        for left in (slice(0, 30 * 32), slice(32 * 32, None)):
            tiles = region[:, left].reshape(16, -1, 32).swapaxes(0, 1).reshape(-1, 512)
            np.testing.assert_array_equal(tiles, np.broadcast_to(np.frombuffer(content[:512], np.uint8), tiles.shape))
        # Of joined streams cut at another place, too, none is taken for whole.
        with pytest.raises(lt.SegmentError, match=r"segment 3[12] "):
            opened([whole] * 31 + [whole[:-9], whole[-9:] + whole] + [whole] * 31)[...]


@pytest.mark.parametrize("samples", [1, 3])
def test_jpeg_tiles_of_several_kinds_are_read(samples, tmp_path):
    """Streams with tables, colours or sampling of their own; one that is cut short is refused."""
    image = np.random.default_rng(samples).integers(0, 255, (8, 8, samples), np.uint8).repeat(16, 0).repeat(16, 1)
    tiles = [image[y : y + 16, x : x + 16] for y in range(0, 128, 16) for x in range(0, 128, 16)]
    path, kinds = tmp_path / "a.tif", [{"level": 95}, {"level": 80}]
    if samples == 3:
        kinds += [{"level": 95, "colorspace": "rgb", "outcolorspace": "rgb"}, {"level": 95, "subsampling": "420"}]
    for chosen in ([0], [0] * 9 + [1], [0] * 5 + [len(kinds) - 1], [*range(len(kinds))]):
        streams = [
            imagecodecs.jpeg8_encode(np.squeeze(tile), **kinds[chosen[k % len(chosen)]]) for k, tile in enumerate(tiles)
        ]
        options = {"photometric": "ycbcr", "shape": image.shape} if samples == 3 else {"shape": image.shape[:2]}
        tifffile.imwrite(path, iter(streams), dtype="u1", tile=(16, 16), compression="jpeg", **options)
        with within_limits(cache_bytes=0, threads=1):
            found = np.asarray(lt.open_region(path)).reshape(image.shape)
            assert abs(found.astype(int) - image).max() < 20
            streams[40] = streams[40][:-2]
            tifffile.imwrite(path, iter(streams), dtype="u1", tile=(16, 16), compression="jpeg", **options)
            region = lt.open_region(path)
            with pytest.raises(lt.SegmentError, match="segment 40 "):
                region[...]
            np.testing.assert_array_equal(region[:80], found.reshape(region.shape)[:80])


def test_a_wrong_checksum_of_deflate_is_damage(tmp_path):
    """A stream may be longer than its segment, but what it says of itself at its end must be true."""
    image = np.random.default_rng(0).integers(0, 99, (16, 16), dtype=np.uint8)
    path, longer = tmp_path / "a.tif", zlib.compress(image.tobytes() + bytes(999))
    path.write_bytes(strip(longer, bits=8, shape=(16, 16), compression=8))
    np.testing.assert_array_equal(lt.open_region(path), image)
    bomb = zlib.compress(bytes(2**25))
    for stream in (longer[:-1] + bytes([longer[-1] ^ 1]), longer[:-2], bomb):
        path.write_bytes(strip(stream, bits=8, shape=(16, 16), compression=8))
        with pytest.raises(lt.SegmentError, match=r"segment 0 .*cannot be decoded"):
            lt.open_region(path)[...]
