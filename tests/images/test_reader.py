"""Windows of pages of every kind: tifffile's pixels, from the segments under them and no others, within limits."""

from __future__ import annotations

import itertools
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

import lazytiles as lt
from lazytiles import config, threads
from lazytiles.buffers import shared_shelf
from lazytiles.images.files import FilePool
from tests.limits import Counting, within_limits
from tests.made import LAYOUTS, make, pixels, write

TILED = {"compression": "zlib", "tile": (16, 16)}


@pytest.fixture(autouse=True)
def fresh():
    with within_limits(cache_bytes=0):
        yield


def check(region, image, count=15):
    """Shape, dtype and random windows of a region, and all of it."""
    assert region.shape == image.shape
    assert region.dtype == image.dtype.newbyteorder("=")
    assert region.dtype.isnative
    np.testing.assert_array_equal(region, image)
    rng = np.random.default_rng(0)
    inner = region.axes.index("Y")
    for _ in range(count):
        y, x = (np.sort(rng.integers(0, n + 1, 2)) for n in image.shape[inner : inner + 2])
        key = (*[slice(None)] * inner, slice(*y), slice(*x))
        np.testing.assert_array_equal(region[key], image[key])


# -- kinds of pages ----------------------------------------------------------------------------------------------

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16"]


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sample_type(dtype, byteorder, tmp_path):
    image = pixels((43, 37, 2), "f8")
    image = (image + 1j * image[::-1]).astype(dtype) if dtype[0] == "c" else image.astype(dtype)
    for k, (compression, layout) in enumerate(
        itertools.product((None, "zlib", "lzw", "packbits"), ({"rowsperstrip": 5}, {"tile": (16, 32)}))
    ):
        path = write(tmp_path / f"{k}.tif", image, compression=compression, byteorder=byteorder, **layout)
        for mapped in (True, False):
            with within_limits(mmap=mapped):
                check(lt.open_region(path), image, 4)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "lzma"])
def test_every_container_and_predictor(compression, predictor, planar, byteorder, bigtiff, tmp_path):
    for dtype in ("u1", "u2", "f4"):
        image = pixels((50, 41, 3), dtype)
        options = {"compression": compression, "predictor": predictor, "bigtiff": bigtiff, "byteorder": byteorder}
        for k, layout in enumerate(({"rowsperstrip": 7}, {"tile": (32, 16)})):
            path = write(tmp_path / f"{dtype}{k}.tif", image, planarconfig=planar, **options, **layout)
            check(lt.open_region(path), tifffile.imread(path).reshape(3, 50, 41).transpose(1, 2, 0)
                  if planar == "separate" else image, 3)  # fmt: skip
            np.testing.assert_array_equal(lt.open_region(path, bands=[2, 0])[3:20, 5:30], image[3:20, 5:30, [2, 0]])


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 16}])
def test_jpeg(layout, subsampling, tmp_path):
    y, x = np.mgrid[0:90, 0:75]
    image = np.stack([y * 2, x * 3, (y + x)], axis=-1).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, image, photometric="ycbcr", compression="jpeg", subsampling=subsampling,
        compressionargs={"level": 95}, metadata=None, **layout,
    )  # fmt: skip
    check(lt.open_region(path), tifffile.imread(path))
    gray = write(tmp_path / "g.tif", image[..., 0], compression="jpeg", **layout)
    check(lt.open_region(gray), tifffile.imread(gray))


@pytest.mark.parametrize("samples", [1, 3])
def test_jpeg_rows_begin_beside_the_widest_store(samples, tmp_path):
    image = np.repeat(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64, 1), samples, axis=2)
    path = write(tmp_path / "a.tif", np.squeeze(image), compression="jpeg", tile=(64, 64))
    page = lt.open_region(path).pages[0]
    data = path.read_bytes()[page.offsets[0] :][: page.counts[0]]
    kept = [page.codec(data, 0, 0, 0) for _ in range(9)]
    assert {array.ctypes.data % 32 for array in kept} == {16}
    for array in kept:
        np.testing.assert_array_equal(array.squeeze(), tifffile.imread(path))


def test_bits_that_are_packed(tmp_path):
    image = pixels((33, 41)) > 99
    for k, compression in enumerate((None, "packbits", "zlib", "ccittfax4")):
        if compression == "ccittfax4":
            continue
        path = tmp_path / f"{k}.tif"
        tifffile.imwrite(path, image, compression=compression, rowsperstrip=8, metadata=None)
        check(lt.open_region(path), tifffile.imread(path))


@pytest.mark.parametrize("nodata", ["0", "7", "nan", "-9999"])
def test_missing_segments_hold_nodata(nodata, tmp_path):
    image = pixels((64, 64), "f4")
    path = write(tmp_path / "a.tif", image, extratags=[(42113, "s", 0, nodata, True)], **TILED)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for code in (324, 325):
            values = list(tiff.pages[0].tags[code].value)
            values[5] = values[10] = 0
            tiff.pages[0].tags[code].overwrite(values)
    image[16:32, 16:32] = image[32:48, 32:48] = float(nodata)
    region = lt.open_region(path)
    check(region, image)
    with Counting() as done:
        region[16:32, 16:32]
    assert (done.segments, done.nbytes) == (0, 0)
    assert region.plan(np.s_[16:32, 16:48]).segments == 1


# -- pages, stacks and levels ------------------------------------------------------------------------------------


def test_stacks_of_one_file(tmp_path):
    stack = pixels((5, 40, 36), np.uint16)
    imagej = tmp_path / "imagej.tif"
    tifffile.imwrite(imagej, stack, imagej=True)
    ome = tmp_path / "stack.ome.tif"
    tifffile.imwrite(ome, stack, ome=True, metadata={"axes": "ZYX"}, **TILED)
    plain = tmp_path / "plain.tif"
    with tifffile.TiffWriter(plain) as tiff:
        for page in stack:
            tiff.write(page, metadata=None, compression="lzw", rowsperstrip=3)
    for path in (imagej, ome, plain):
        region = lt.open_region(path, page="all")
        assert region.axes == "PYX"
        check(region, stack)
        np.testing.assert_array_equal(region[[4, 0], 3:9, ::-2], stack[[4, 0], 3:9, ::-2])
        np.testing.assert_array_equal(lt.open_region(path), stack[0])  # the first page, never a guess
    for path in (ome, plain):
        for k in range(5):
            np.testing.assert_array_equal(lt.open_region(path, page=k), stack[k])
        with pytest.raises(lt.RegionError, match=rf"{path.name}: has no page 5; it has 5"):
            lt.open_region(path, page=5)
    with Counting() as done:
        lt.open_region(plain, page="all")[3, 20]
    assert done.segments == 1


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_stacks_with_one_directory(planar, tmp_path):
    stack = pixels((5, 12, 10, 3), np.uint16)
    stored = np.moveaxis(stack, -1, 1) if planar == "separate" else stack
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar, truncate=True)
    check(lt.open_region(path, page="all"), stack)
    np.testing.assert_array_equal(lt.open_region(path), stack[0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(lt.RegionError, match=r"cut\.tif page 0: 5 images of 720 bytes do not fit the file"):
        lt.open_region(path, page="all")
    imagej = tmp_path / "imagej.tif"
    tifffile.imwrite(imagej, stack[..., 0], imagej=True, truncate=True)
    check(lt.open_region(imagej, page="all"), stack[..., 0])


def test_colour_stacks(tmp_path):
    stack = pixels((3, 30, 26, 3))
    path = tmp_path / "rgb.tif"
    tifffile.imwrite(path, stack, photometric="rgb", metadata=None, **TILED)
    region = lt.open_region(path, page="all")
    assert region.axes == "PYXS"
    check(region, stack)
    np.testing.assert_array_equal(
        lt.open_region(path, page="all", bands=[1])[1, 4:6], stack[1, 4:6, :, [1]].transpose(1, 2, 0)
    )


@pytest.mark.parametrize("how", ["subifds", "overviews"])
def test_pyramids(how, tmp_path):
    base = pixels((128, 96, 3))
    levels = [base[:: 2**k, :: 2**k] for k in range(3)]
    path = tmp_path / "p.tif"
    with tifffile.TiffWriter(path) as tiff:
        options = {"photometric": "rgb", "metadata": None, **TILED}
        if how == "subifds":
            tiff.write(base, subifds=2, **options)
        else:
            tiff.write(base, **options)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, **options)
        if how == "subifds":
            tiff.write(base[::-1], **options)
    region = lt.open_region(path)
    assert [level.shape for level in region.levels] == [(128, 96), (64, 48), (32, 24)]
    for k, level in enumerate(levels):
        check(lt.open_region(path, level=k), level, 5)
    with pytest.raises(lt.RegionError, match=r"p\.tif page 0: has no level 3; it has levels 0 to 2"):
        lt.open_region(path, level=3)
    stacked = lt.open_region(path, page="all")
    assert stacked.shape[0] == (2 if how == "subifds" else 1)
    np.testing.assert_array_equal(stacked[0], base)
    if how == "subifds":
        assert [level.shape for level in lt.open_region(path, page=1).levels] == [(128, 96)]


def test_masks_between_overviews_are_passed_over(tmp_path):
    base, path = pixels((128, 96, 3)), tmp_path / "p.tif"
    levels = [base[:: 2**k, :: 2**k] for k in range(3)]
    with tifffile.TiffWriter(path) as tiff:  # in the order of GDAL
        for k, level in enumerate(levels):
            tiff.write(level, photometric="rgb", metadata=None, subfiletype=int(k > 0), **TILED)
            tiff.write(level[..., 0] > 9, metadata=None, subfiletype=4 + int(k > 0), **TILED)
        tiff.write(base[::-1], photometric="rgb", metadata=None, **TILED)
    assert [level.shape for level in lt.open_region(path).levels] == [(128, 96), (64, 48), (32, 24)]
    for k, level in enumerate(levels):
        check(lt.open_region(path, level=k), level, 5)
    assert [level.shape for level in lt.open_region(path, page=6).levels] == [(128, 96)]
    np.testing.assert_array_equal(lt.open_region(path, page="all"), [base, base[::-1]])


def test_pages_of_other_shapes_do_not_stack(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels((9, 9)), metadata=None)
        tiff.write(pixels((9, 8)), metadata=None)
    np.testing.assert_array_equal(lt.open_region(path, page=1), pixels((9, 8)))
    with pytest.raises(lt.RegionError, match=r"a\.tif page 1: is \(9, 8, 1\).*open others by page=k"):
        lt.open_region(path, page="all")


@pytest.mark.parametrize("value", [-1, 1.0, "first", True], ids=repr)
def test_pages_are_numbers_or_all(value, tmp_path):
    path = write(tmp_path / "a.tif", pixels((9, 9)))
    assert lt.open_region(path, page=np.int64(0), level=np.int32(0), bands=np.array([0])).shape == (9, 9)
    with pytest.raises(ValueError, match=r"page must be an index from 0 or 'all'"):
        lt.open_region(path, page=value)
    if value != "first":
        with pytest.raises(ValueError, match=r"level must be an index from 0"):
            lt.open_region(path, level="0" if value is True else value)


# -- what is decoded ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_read_decodes_the_segments_under_it_once(layout, tmp_path):
    image = pixels((60, 52, 3))
    path = write(tmp_path / "a.tif", image, **layout)
    region = lt.open_region(path)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        tiled = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, 52)
    planes = 3 if layout.get("planarconfig") == "separate" else 1
    raw = region.pages[0].raw_offsets is not None
    rng = np.random.default_rng(1)
    for _ in range(20):
        y0, x0 = int(rng.integers(0, 59)), int(rng.integers(0, 51))
        y1, x1 = int(rng.integers(y0 + 1, 61)), int(rng.integers(x0 + 1, 53))
        under = ((y1 - 1) // tiled[0] - y0 // tiled[0] + 1) * ((x1 - 1) // tiled[1] - x0 // tiled[1] + 1) * planes
        with Counting() as done:
            np.testing.assert_array_equal(region[y0:y1, x0:x1], image[y0:y1, x0:x1])
        plan = region.plan(np.s_[y0:y1, x0:x1])
        assert done.segments == plan.segments == (0 if raw else under)
        assert done.nbytes == plan.bytes_read
        assert plan.bytes_delivered == (y1 - y0) * (x1 - x0) * 3
        assert repr(plan).startswith("<Plan: 1 windows")


def test_one_band_of_a_planar_image_reads_its_plane(tmp_path):
    image = pixels((64, 64, 6), np.uint16)
    region = lt.open_region(write(tmp_path / "a.tif", image, planarconfig="separate", **TILED))
    for key, planes in ((np.s_[:16, :16, 3], 1), (np.s_[:16, :16, 1:3], 2), (np.s_[:16, :16], 6)):
        with Counting() as done:
            np.testing.assert_array_equal(region[key], image[key])
        assert done.segments == planes
    chosen = lt.open_region(region.path, bands=[5])
    with Counting() as done:
        np.testing.assert_array_equal(chosen[:32, :32], image[:32, :32, [5]])
    assert done.segments == 4


def test_steps_and_lists_decode_only_what_they_touch(tmp_path):
    image = pixels((160, 160))
    region = lt.open_region(write(tmp_path / "a.tif", image, **TILED))
    for key, segments in (
        (np.s_[::80, ::80], 4),
        (np.s_[[0, 159], [159, 0]], 2),
        (np.s_[5], 10),
        (np.s_[:, 5], 10),
        (np.s_[::-1, 3], 10),
        (np.s_[20:20], 0),
        (np.s_[[]], 0),
    ):
        with Counting() as done:
            np.testing.assert_array_equal(region[key], image[key])
        assert done.segments == segments, key


def test_a_batch_decodes_each_segment_once_over_regions_and_frames(tmp_path):
    made = make(tmp_path, tiles=64, layouts=(TILED,), size=(20, 20))
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames)).shuffle(2)
    touched = set()
    order = tiles.order
    for start in range(0, 64, 16):
        rows = np.arange(start, start + 16)
        wanted = set()
        for k in order[rows]:
            row = made.rows.iloc[int(k)]
            x0, y0, x1, y1 = map(int, row.region_coordinates.strip("()").split(","))
            wanted |= {
                (frame, row.region_id, y, x)
                for frame in made.frames
                for y in range(y0 // 16, (y1 - 1) // 16 + 1)
                for x in range(x0 // 16, (x1 - 1) // 16 + 1)
            }
        with Counting() as done:
            np.testing.assert_array_equal(tiles.take(rows), made.dense()[order[rows]])
        assert done.segments == len(wanted) == tiles.plan(rows).segments
        touched |= wanted
    with Counting() as done:
        tiles.take_batches([np.arange(s, s + 16) for s in range(0, 64, 16)], lambda k, batch: None)
    assert done.segments == len(touched)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("planes", [1, 3])
def test_rows_behind_the_end_of_a_file_are_an_error_that_names_it(planes, mapped, tmp_path):
    image = pixels((3, 64, 48))
    options = {"photometric": "rgb", "planarconfig": "separate"} if planes > 1 else {"photometric": "minisblack"}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image if planes > 1 else image[0], rowsperstrip=64, **options)
    path.write_bytes(path.read_bytes()[:-1000])
    region = lt.open_region(path)
    whole = np.moveaxis(image, 0, -1) if planes > 1 else image[0]
    with within_limits(mmap=mapped):
        np.testing.assert_array_equal(region[5:30, 7:9], whole[5:30, 7:9])
        with pytest.raises(lt.SegmentError, match=r"a\.tif page 0: its rows end before row 60: .* is cut short"):
            region[50:60, 7:9]


def test_reading_ahead_divides_what_is_decoded(tmp_path):
    """W1 at small size: strips, a global shuffle, three frames; many batches as one plan."""
    strips = ({"compression": "lzw", "rowsperstrip": 6},)
    made = make(tmp_path, regions=6, frames=("1", "2", "3"), tiles=1500, size=(9, 8), layouts=strips)
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames)).shuffle(5)
    batches = [np.arange(s, min(s + 16, 1500)) for s in range(0, 1500, 16)]
    with Counting() as alone:
        for batch in batches:
            tiles.take(batch)
    results = {}
    with Counting() as ahead:
        tiles.take_batches(batches, results.__setitem__)
    assert alone.segments >= 10 * ahead.segments > 0
    dense = made.dense()[tiles.order]
    for k, batch in enumerate(batches):
        np.testing.assert_array_equal(results[k], dense[batch])


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("bands", [None, [2, 0]])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(("regions", "frames"), [(1, ("a",)), (1, ("a", "b")), (3, ("a",)), (3, ("a", "b"))])
def test_uncompressed_tiles_are_sliced(regions, frames, planar, dtype, bands, mapped, tmp_path):
    layout = {"rowsperstrip": 7, "planarconfig": planar, "byteorder": dtype[0]}
    made = make(tmp_path, regions=regions, frames=frames, dtype="u2", layouts=(layout,))
    tiles = lt.open_tiles(made.table, tmp_path, frames=list(frames), bands=bands)
    dense = made.dense() if bands is None else made.dense()[..., bands]
    order = np.random.default_rng(0).integers(0, len(tiles), 20)
    with within_limits(mmap=mapped), Counting() as counted:
        for _ in range(2):  # the first read opens the files, the second knows that there is nothing to plan
            np.testing.assert_array_equal(tiles.take(order), dense[order])
            np.testing.assert_array_equal(tiles[:, -1, 2:8, 1:4], dense[:, -1, 2:8, 1:4])
            np.testing.assert_array_equal(tiles[order, ..., 0], dense[order][..., 0])
        out = np.empty_like(dense[order])
        assert tiles.take(order, out=out) is out
        np.testing.assert_array_equal(out, dense[order])
    assert counted.segments == 0
    path = tmp_path / frames[-1] / f"{made.rows.region_id[0]}.tif"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(lt.RegionError, match=rf"tile t\d+ with box .*{path.name} was replaced, truncated"):
        tiles.take(np.arange(len(tiles)))


def test_batches_come_early_first_and_stop_when_told(tmp_path, monkeypatch):
    import threading
    import time

    made = make(tmp_path, tiles=200, layouts=(TILED,))
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames))
    batches = [np.arange(s, s + 10) for s in range(0, 200, 10)]
    seen = []
    tiles.take_batches(batches, lambda k, batch: seen.append(k), threads=1)
    assert sorted(seen) == list(range(20))
    assert seen.index(0) < 5
    stop, some = threading.Event(), []
    read = FilePool.read

    def slowly(*where):
        time.sleep(0.001)  # whoever waits for batches has time to say stop
        return read(*where)

    def done(k, batch):
        some.append(k)
        stop.set()

    monkeypatch.setattr(FilePool, "read", slowly)
    with Counting() as counted:
        tiles.take_batches(batches, done, threads=1, stop=stop)
    assert 1 <= len(some) < 20
    assert counted.segments < tiles.plan(slice(None)).segments


def test_an_error_in_one_batch_leaves_the_others(tmp_path):
    made = make(tmp_path, tiles=60, frames=("2016",), layouts=(TILED,))
    boxes = [tuple(map(int, text.strip("()").split(","))) for text in made.rows.region_coordinates]
    within = made.rows.region_id == "001"
    column, row = boxes[int(np.flatnonzero(within)[0])][0] // 16, boxes[int(np.flatnonzero(within)[0])][1] // 16
    bad = [
        k
        for k, (x0, y0, x1, y1) in enumerate(boxes)
        if within[k] and x0 // 16 <= column <= (x1 - 1) // 16 and y0 // 16 <= row <= (y1 - 1) // 16
    ]
    path = made.folder / "2016" / "001.tif"
    with tifffile.TiffFile(path) as tiff:
        segment = row * -(-tiff.pages[0].imagewidth // 16) + column
        offset = tiff.pages[0].dataoffsets[segment]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(30))
    tiles = lt.open_tiles(made.manifest, made.folder)
    results = {}
    tiles.take_batches([np.array([k]) for k in range(60)], results.__setitem__)
    for k in range(60):
        if k in bad:
            assert isinstance(results[k], lt.SegmentError)
            place = rf"page 0: segment {segment} \(row {row}, column {column}\)"
            tile = rf"tile t{k} with box {re.escape(str(boxes[k]))} of region 001"
            assert re.search(rf"{tile}: .*2016/001\.tif {place}", str(results[k]))
        else:
            np.testing.assert_array_equal(results[k][0], made.dense()[k, 0])
    results.clear()
    path.unlink()
    fresh = pickle.loads(pickle.dumps(tiles))
    fresh.take_batches([np.array([k]) for k in range(60)], results.__setitem__)
    for k in range(60):
        lost = made.rows.region_id[k] == "001"
        assert isinstance(results[k], lt.RegionError) == lost
        assert not lost or re.search(rf"tile t{k} .*2016/001\.tif", str(results[k]))


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd"])
@pytest.mark.parametrize("budget", [0, 2**20])
def test_damage_in_a_run_of_strips_stays_local(compression, budget, tmp_path):
    image = pixels((64, 40, 3))
    path = write(tmp_path / "a.tif", image, compression=compression, rowsperstrip=2)
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[0].dataoffsets[20], tiff.pages[0].databytecounts[20]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    rows = [(0, 20), (24, 40), (30, 50), (42, 64)]
    boxes = [f"(3, {y0}, 17, {y1})" for y0, y1 in rows]
    table = pd.DataFrame({"tile_id": list("abcd"), "region_id": "a", "region_coordinates": boxes})
    results = {}
    with within_limits(cache_bytes=budget):
        for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
            tiles = lt.open_tiles(table, tmp_path, size=(16, 14))
            tiles.take_batches([np.array([k]) for k in order], results.__setitem__)
            for k, number in enumerate(order):
                if number == 2:
                    assert isinstance(results[k], lt.SegmentError)
                    assert re.search(r"tile c with box \(3, 30, 17, 50\).*a\.tif page 0: segment 20 ", str(results[k]))
                else:
                    alone = lt.open_tiles(table.iloc[[number]], tmp_path, size=(16, 14))
                    np.testing.assert_array_equal(results[k], alone[:])


@pytest.mark.parametrize("layout", [{"rowsperstrip": 32}, {"tile": (32, 48)}])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("budget", [0, 1000, 2**20])
def test_lzw_is_decoded_as_far_as_it_is_wanted(budget, predictor, layout, tmp_path):
    image = pixels((90, 40, 3))
    path = write(tmp_path / "a.tif", image, compression="lzw", predictor=predictor, **layout)
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[0].dataoffsets[1], tiff.pages[0].databytecounts[1]
    with open(path, "r+b") as file:
        file.seek(offset + size // 2)
        file.write(bytes(size - size // 2))
    region = lt.open_region(path)
    with within_limits(cache_bytes=budget):
        for _ in range(3):  # whatever the cache has by now
            for y0, y1 in ((0, 40), (32, 44), (3, 33), (64, 90), (70, 71)):
                np.testing.assert_array_equal(region[y0:y1, 3:], image[y0:y1, 3:])
            for y0, y1 in ((0, 90), (60, 70), (33, 64)):
                with pytest.raises(lt.SegmentError, match=r"a\.tif page 0: segment 1 \(row 1, column 0\)"):
                    region[y0:y1]


# -- limits ------------------------------------------------------------------------------------------------------


def test_segments_larger_than_the_limit_are_refused_at_open(tmp_path):
    path = write(tmp_path / "a.tif", pixels((64, 64, 3)), compression="zlib", rowsperstrip=64)
    with (
        within_limits(max_segment_bytes=10_000),
        pytest.raises(
            lt.LimitError,
            match=r"a\.tif page 0: one segment is 12,?288 bytes decoded, max_segment_bytes is 10,?000; raise it",
        ),
    ):
        lt.open_region(path)
    assert lt.open_region(path).shape == (64, 64, 3)
    bomb = tmp_path / "bomb.tif"
    tifffile.imwrite(bomb, shape=(2**15, 2**15), dtype=np.uint8, compression="zlib", rowsperstrip=2**15,
                     data=iter([b"x" * 100]), metadata=None)  # fmt: skip
    with pytest.raises(lt.LimitError, match=r"max_segment_bytes"):
        lt.open_region(bomb)


def test_windows_larger_than_the_limit_are_refused_before_they_are_made(tmp_path):
    image = pixels((64, 64))
    path = write(tmp_path / "a.tif", image, **TILED)
    table = pd.DataFrame(
        {"tile_id": ["x", "y"], "region_id": "a", "region_coordinates": ["(0,0,32,32)", "(8,8,40,40)"]}
    )
    with within_limits(max_window_bytes=1500):
        region, tiles = lt.open_region(path), lt.open_tiles(table, tmp_path)
        for read in (
            lambda: region[...],
            lambda: np.asarray(region),
            lambda: tiles[:],
            lambda: tiles.take([0, 1]),
            lambda: next(iter(lt.BatchFlow(tiles, 2))),
            lambda: next(iter(lt.BatchFlow(tiles, 2, prefetch=0, readahead_bytes=0))),
            lambda: lt.DelayedView(np.zeros((9, 900)))[:],
            lambda: lt.MultiSourceArray([np.zeros((9, 900))])[:],
        ):
            with pytest.raises(lt.LimitError, match=r"max_window_bytes is 1,500; read less at once, or raise it"):
                read()
        np.testing.assert_array_equal(region[:20, :20], image[:20, :20])
        assert tiles[0].shape == (32, 32, 1)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"cache_bytes": -1}, r"cache_bytes must be an integer of at least 0, not -1"),
        ({"threads": 0}, r"threads must be an integer of at least 1"),
        ({"threads": 1.5}, r"threads must be an integer"),
        ({"open_files": 0}, r"open_files"),
        ({"max_segment_bytes": True}, r"max_segment_bytes"),
        ({"cache_bytes": 1e6}, r"cache_bytes must be an integer"),
        ({"mmap": 1}, r"mmap must be True or False"),
    ],
    ids=repr,
)
def test_limits_that_make_no_sense(limits, message):
    before = lt.settings()
    with pytest.raises(lt.LimitError, match=message):
        lt.configure(**limits)
    assert lt.settings() == before
    with within_limits(threads=np.int64(3)):
        assert type(lt.settings().threads) is int


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("CACHE_BYTES", "0", 0),
        ("THREADS", " 3 ", 3),
        ("MMAP", "0", False),
        ("MMAP", "False", False),
        ("MMAP", "true", True),
        ("MMAP", "2", r"LAZYTILES_MMAP='2' is not 1 or 0, true or false"),
        ("MAX_WINDOW_BYTES", "1e9", r"LAZYTILES_MAX_WINDOW_BYTES='1e9' is not an integer"),
        ("OPEN_FILES", "-1", r"open_files must be an integer of at least 1, not -1"),
    ],
)
def test_limits_from_the_environment(name, text, value, monkeypatch):
    monkeypatch.setenv(f"LAZYTILES_{name}", text)
    if isinstance(value, str):
        with pytest.raises(lt.LimitError, match=value):
            config._from_environment()
    else:
        assert getattr(config._from_environment(), name.lower()) is value


def test_a_huge_region_opens_and_reads_a_little(tmp_path):
    """16384 x 16384 pixels, never decoded whole; its file is sparse but for one tile."""
    path = tmp_path / "big.tif"
    tile = pixels((256, 256, 3))

    def data():
        for k in range(64 * 64):
            yield tile if k == 64 * 10 + 7 else np.zeros_like(tile) if not k else None

    tifffile.imwrite(path, data(), shape=(16384, 16384, 3), dtype=np.uint8, tile=(256, 256), compression="zlib",
                     photometric="rgb", metadata=None)  # fmt: skip
    with Counting() as done:
        region = lt.open_region(path)
    assert done.segments == 0
    assert done.files == 1
    with Counting() as done:
        np.testing.assert_array_equal(region[2560:2816, 1792:2048], tile)
        assert not region[0:300, 0:300].any()
        assert region[2560, 1792, 1] == tile[0, 0, 1]
        assert region[::4096, ::4096].shape == (4, 4, 3)
    assert done.segments == 4
    assert region.plan().segments == 2


# -- regions as values -------------------------------------------------------------------------------------------


def test_a_region_describes_itself_and_travels(tmp_path):
    image = pixels((50, 40, 3), np.uint16)
    path = write(tmp_path / "a.tif", image, **TILED)
    region = lt.open_region(path)
    assert (region.shape, region.dtype, region.ndim, region.size) == ((50, 40, 3), np.uint16, 3, 6000)
    assert (region.nbytes, region.axes, region.chunks) == (12_000, "YXS", (16, 16, 3))
    assert ([level.shape for level in region.levels], region.path, len(region)) == ([(50, 40)], str(path), 50)
    assert repr(region).count("\n") == 0
    assert "a.tif" in repr(region)
    for options in ({}, {"bands": [2, 1]}, {"gray": True}, {"page": "all"}):
        some = lt.open_region(path, **options)
        twin = pickle.loads(pickle.dumps(some))
        np.testing.assert_array_equal(twin, some)
        assert (twin.shape, twin.axes) == (some.shape, some.axes)
    with pytest.raises(ValueError, match=r"copy=False"):
        np.array(region, copy=False)
    assert np.asarray(region, dtype=np.float32).dtype == np.float32


def test_numpys_refusals_are_numpys(tmp_path):
    region = lt.open_region(write(tmp_path / "a.tif", pixels((50, 40)), **TILED))
    with pytest.raises(IndexError, match=r"index 50 is out of bounds for axis 0 with size 50"):
        region[50]
    with pytest.raises(IndexError, match=r"too many indices"):
        region[0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": [3]}, r"bands \[3\] asked for; it has bands 0 to 2"),
        ({"bands": []}, r"bands \[\]"),
        ({"bands": [0], "gray": True}, r"bands= or gray=True, not both"),
        ({"bands": "01"}, r"bands are a list of integers, such as \[0, 2\], not '01'"),
        ({"bands": 1}, r"bands are a list of integers"),
        ({"bands": [0.0]}, r"bands are a list of integers"),
    ],
    ids=repr,
)
def test_bands_that_are_not_there(options, message, tmp_path):
    path = write(tmp_path / "a.tif", pixels((9, 9, 3)))
    with pytest.raises((lt.RegionError, ValueError), match=message):
        lt.open_region(path, **options)


def test_gray_is_the_luminance(tmp_path):
    image = pixels((40, 30, 3))
    path = write(tmp_path / "a.tif", image, **TILED)
    gray = lt.open_region(path, gray=True)
    assert gray.shape == (40, 30)
    np.testing.assert_array_equal(gray, (image.astype(int) @ [299, 587, 114] + 500) // 1000)
    np.testing.assert_array_equal(lt.open_region(write(tmp_path / "b.tif", image[..., 0]), gray=True), image[..., 0])
    five = write(tmp_path / "c.tif", pixels((9, 9, 5)))
    with pytest.raises(
        lt.RegionError, match=rf"{five.name} page 0: gray=True needs images of 1, 3 or 4 samples, not 5"
    ):
        lt.open_region(five, gray=True)
    table = pd.DataFrame({"tile_id": ["a"], "region_id": [five.stem], "region_coordinates": ["(0, 0, 8, 8)"]})
    with pytest.raises(lt.RegionError, match=rf"{five.name} page 0: gray=True needs images"):
        lt.open_tiles(table, tmp_path, gray=True)
    ties = pixels((200, 200, 3), seed=4)
    region = lt.open_region(write(tmp_path / "t.tif", ties), gray=True)
    whole = region[...]
    for y, x in np.random.default_rng(0).integers(1, 200, (40, 2)):
        np.testing.assert_array_equal(region[:y, :x], whole[:y, :x])
    odd = np.full((4, 4, 3), 5, np.float32)
    odd[1, 1], odd[2, 2, 0], odd[3, 3] = np.nan, np.inf, (np.inf, -np.inf, 0)
    gray = lt.open_region(write(tmp_path / "o.tif", odd), gray=True)[...]
    assert np.isnan(gray).sum() == 2
    assert gray[2, 2] == np.inf
    complex_pixels = write(tmp_path / "z.tif", image.astype(np.complex64))
    with pytest.raises(lt.RegionError, match=r"z\.tif page 0: gray=True makes no sense of complex64 samples"):
        lt.open_region(complex_pixels, gray=True)
    full = np.full((4, 4, 3), np.iinfo(np.uint64).max, np.uint64)
    assert np.asarray(lt.open_region(write(tmp_path / "u.tif", full), gray=True)).min() >= 2**64 - 2**12


def test_threads_make_no_difference(tmp_path):
    made = make(tmp_path, tiles=40)
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames))
    wanted = made.dense()
    for n in (1, 2, 8):
        np.testing.assert_array_equal(tiles.take(np.arange(40), threads=n), wanted)
        with within_limits(threads=n, cache_bytes=5000):
            np.testing.assert_array_equal(tiles[::-1], wanted[::-1])


def test_fifty_epochs_leave_threads_files_and_memory_where_they_were(tmp_path, monkeypatch):
    import os
    import threading
    from pathlib import Path

    made = make(tmp_path, tiles=100, layouts=(TILED, {"rowsperstrip": 9}))
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames))

    def state():
        shared_shelf.clear()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        return threading.active_count(), len(os.listdir("/proc/self/fd")), resident

    own = threads._Shared()
    monkeypatch.setattr(threads, "shared", own)
    alone = threading.active_count()
    with within_limits(cache_bytes=100_000, threads=4):
        for epoch in range(50):
            tiles.shuffle(epoch)
            for start in range(0, 100, 16):
                tiles[start : start + 16]
            if epoch == 1:
                before = state()
        after = state()
    own.executor(3).shutdown()
    assert after[0] <= alone + 3
    assert after[1] <= before[1]
    assert after[2] - before[2] < 8 * 2**20


LATE_IMPORT = """
import builtins, importlib, sys
import numpy as np, tifffile, imagecodecs
import lazytiles as lt
path, codec, when = sys.argv[1], sys.argv[2], sys.argv[3]
real, failed = importlib.import_module, []
def failing(name, package=None):
    if codec in name and not failed:
        failed.append(name)
        raise MemoryError
    return real(name, package)
if when == "open":
    importlib.import_module = failing
try:
    region = lt.open_region(path)
except (lt.LazyTilesError, MemoryError) as error:
    assert "damaged" not in str(error) and "not a readable" not in str(error), error
    region = lt.open_region(path)
importlib.import_module = failing  # from here on nothing is to be imported
for _ in range(2):
    assert (np.asarray(region) == np.arange(64 * 64, dtype="u1").reshape(64, 64)).all()
print("read")
"""


@pytest.mark.parametrize("when", ["open", "read"])
@pytest.mark.parametrize(("compression", "codec"), [("lzw", "_tiff"), ("zlib", "_deflate"), ("zstd", "_zstd")])
def test_codecs_are_imported_when_a_page_is_opened(compression, codec, when, tmp_path):
    image = np.arange(64 * 64, dtype="u1").reshape(64, 64)
    path = write(tmp_path / "a.tif", image, compression=compression, tile=(32, 32))
    environment = {**os.environ, "PYTHONPATH": str(Path(lt.__file__).parents[1])}
    words = [sys.executable, "-c", LATE_IMPORT, str(path), codec, when]
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert ran.stdout == "read\n", ran.stderr[-3000:]


def test_a_codec_that_cannot_be_imported_is_no_damage(tmp_path, monkeypatch):
    image = pixels((64, 64))
    region = lt.open_region(write(tmp_path / "a.tif", image, compression="lzw", tile=(32, 32)))

    def missing(*_):
        raise ImportError("no such codec")

    lt.clear_cache()
    with monkeypatch.context() as patch:
        patch.setattr("imagecodecs.tiff_decode", missing)
        with pytest.raises(ImportError, match=r"a\.tif page 0: its codec cannot be imported: no such codec"):
            region[:]
    np.testing.assert_array_equal(region, image)
