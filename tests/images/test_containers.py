"""Files beside TIFF open by the same call, give the pixels their own libraries give, or a clear error."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image

import lazytiles as lt
from lazytiles.config import configure, counters, settings

RNG = np.random.default_rng(0)


@pytest.fixture
def limits():
    """Limits set within a test end with it."""
    before = settings()
    yield
    configure(max_segment_bytes=before.max_segment_bytes, cache_bytes=before.cache_bytes, mmap=before.mmap)


def picture(mode, size=(37, 53)):
    if mode == "F":
        return Image.fromarray(RNG.random(size, np.float32))
    if mode == "I;16":
        return Image.fromarray(RNG.integers(0, 65535, size, np.uint16))
    if mode in ("1", "P", "LA", "CMYK"):
        return Image.fromarray(RNG.integers(0, 255, (*size, 3), np.uint8)).convert(mode)
    bands = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(RNG.integers(0, 255, (*size, *bands), np.uint8))


def check(region, expected):
    """The region is that array: shape, dtype and every kind of key."""
    assert region.shape == expected.shape
    assert region.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(np.asarray(region), expected)
    keys = [(slice(3, 20), slice(5, 9)), (-1,), (Ellipsis, 0), (slice(None, None, -7),), ([3, 1], [2, 0]), ()]
    for key in keys:
        np.testing.assert_array_equal(region[key], expected[key])
    copied = pickle.loads(pickle.dumps(region))
    np.testing.assert_array_equal(copied[2:4], expected[2:4])


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        *[(mode, "a.png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        *[(mode, "a.jpg") for mode in ("L", "RGB", "CMYK")],
        ("RGB", "a.bmp"),
        ("P", "a.gif"),
        ("RGB", "a.ppm"),
        ("RGB", "a.webp"),
        ("RGB", "a.jp2"),
        ("RGB", "a.without-ending"),
    ],
)
def test_pictures_are_what_pillow_reads(tmp_path, mode, name):
    path = tmp_path / name
    picture(mode).save(path, format="PNG" if name.endswith("ending") else None)
    with Image.open(path) as image:
        expected = np.asarray(image)
    check(lt.open_region(path), expected)


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_pngs_of_16_bit_colours_keep_their_16_bits(tmp_path, samples):
    expected = RNG.integers(0, 65535, (37, 53, samples), np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(expected))
    check(lt.open_region(path), expected)


def test_a_picture_is_decoded_once_and_kept_within_the_budget(tmp_path, limits):
    path = tmp_path / "a.png"
    picture("RGB").save(path)
    lt.clear_cache()
    region = lt.open_region(path)
    before = counters()["segments_decoded"]
    for _ in range(3):
        assert region[2:5, 3:9].shape == (3, 6, 3)
    assert counters()["segments_decoded"] == before + 1
    lt.clear_cache()
    configure(cache_bytes=0)
    region[2:5], region[2:5]
    assert counters()["segments_decoded"] == before + 3


def test_pages_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((40, 41), 20 * k, np.uint8)) for k in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], loop=0)
    with Image.open(tmp_path / "a.gif") as image:
        image.seek(2)
        expected = np.asarray(image)
    np.testing.assert_array_equal(np.asarray(lt.open_region(tmp_path / "a.gif", page=2)), expected)
    with pytest.raises(lt.RegionError, match=r"a\.gif: has no page 3; it has 3"):
        lt.open_region(tmp_path / "a.gif", page=3)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
def test_pictures_cut_short_are_errors(tmp_path, mode, name, keep):
    path = tmp_path / name
    picture(mode, (200, 200)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(lt.RegionError, match=r"a\.(png|jpg)"):
        lt.open_region(path)[:1, :1]


def test_a_jpeg_with_something_behind_it_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    picture("RGB").save(path)
    expected = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    path.write_bytes(path.read_bytes() + bytes(1000))
    np.testing.assert_array_equal(np.asarray(lt.open_region(path)), expected)


def bomb(side, colours=2):
    """A PNG of a few bytes whose header claims side x side pixels, of three colours (2) or gray (0)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9000 + 500, 12_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, side):
    (tmp_path / "a.png").write_bytes(bomb(side))
    with pytest.raises(lt.LimitError, match=r"a\.png"):
        lt.open_region(tmp_path / "a.png")


def test_the_limit_is_bytes_and_not_pillows_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(bomb(14_000, colours=0))
    region = lt.open_region(tmp_path / "a.png")
    assert region.nbytes == 14_000**2
    with pytest.raises(lt.SegmentError, match=r"a\.png"):
        region[0, 0]


def test_limits_are_those_of_segments(tmp_path, limits):
    picture("RGB", (100, 100)).save(tmp_path / "a.png")
    configure(max_segment_bytes=29_999)
    with pytest.raises(lt.LimitError, match=r"30000 bytes.*configure\(max_segment_bytes"):
        lt.open_region(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 60), (40, 50, 60, 2)])
@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float32", "bool", "complex64"])
@pytest.mark.parametrize("mapped", [True, False])
def test_npy_files_are_mapped_or_read_row_by_row(tmp_path, limits, shape, dtype, mapped):
    expected = (RNG.random(shape) * 100).astype(dtype)
    np.save(tmp_path / "a.npy", expected)
    configure(mmap=mapped)
    region = lt.open_region(tmp_path / "a.npy")
    before = counters()["segments_decoded"]
    check(region, expected)
    assert counters()["segments_decoded"] == before


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (20, 50, 60), (9, 40, 700, 2)])
@pytest.mark.parametrize("dtype", ["uint8", ">f4", "bool"])
def test_npy_files_stored_column_by_column_are_read(tmp_path, shape, dtype):
    expected = (RNG.random(shape) * 100).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(expected))
    region = lt.open_region(tmp_path / "a.npy")
    check(region, expected)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-1])
    with pytest.raises(lt.RegionError, match="was replaced, truncated or overwritten"):
        np.asarray(region)
    with pytest.raises(lt.RegionError, match=r"a\.npy: \d+ bytes at 128 are cut short"):
        lt.open_region(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[{}]], object), "pickled objects are never loaded"),
        (np.array([["a"]]), "not numbers"),
        (np.zeros((4, 4), "datetime64[s]"), "not numbers"),
        (np.zeros((4, 4), [("a", "f4")]), "not numbers"),
        (np.zeros(7), r"shape \(7,\); without axes= a region has 2 to 4 axes"),
        (np.zeros((0, 7)), r"shape \(0, 7\)"),
        (np.zeros((1, 2, 3, 4, 5)), "2 to 4 axes"),
    ],
)
def test_npy_files_that_are_no_images_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(lt.RegionError, match=message):
        lt.open_region(tmp_path / "a.npy")


def test_damaged_npy_files_are_errors(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((40, 50)))
    data = path.read_bytes()
    for damaged, message in [
        (data[:-1], "are cut short"),
        (data[:40], "not a readable .npy"),
        (data.replace(b"'shape'", b"'shope'"), "not a readable .npy"),
        (data[:6] + b"\x09\x00" + data[8:], "not a readable .npy"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(lt.RegionError, match=message):
            lt.open_region(path)


H5_OPTIONS = [
    {},
    {"chunks": True},
    {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True},
    {"chunks": True, "compression": "lzf"},
]


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (20, 50, 60), (20, 50, 60, 2)])
@pytest.mark.parametrize("dtype", ["uint8", ">f4", "bool"])
@pytest.mark.parametrize("options", H5_OPTIONS, ids=str)
def test_hdf5_datasets_are_what_h5py_reads(tmp_path, shape, dtype, options):
    h5py = pytest.importorskip("h5py")
    expected = (RNG.random(shape) * 3).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("scans/one", data=expected, **options)
    check(lt.open_region(f"{tmp_path}/a.h5::scans/one"), expected)


def test_a_chunk_of_many_slices_is_read_once(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    from lazytiles.images import containers

    expected = RNG.random((16, 40, 50))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=expected, chunks=(8, 20, 50))
    lt.clear_cache()
    region = lt.open_region(f"{tmp_path}/a.h5::a")
    assert region.chunks == (1, 20, 50)
    reads, opened = [], containers.opened
    monkeypatch.setattr(containers, "opened", lambda *args: reads.append(args) or opened(*args))
    np.testing.assert_array_equal(region[:8, :20], expected[:8, :20])
    assert len(reads) == 1
    np.testing.assert_array_equal(np.asarray(region), expected)
    assert len(reads) == 4


def test_hdf5_files_that_lead_elsewhere_or_nowhere_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = np.zeros((4, 4))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["here/a"] = np.zeros((4, 4))
        file["external"] = h5py.ExternalLink("secret.h5", "/a")
        file["soft"] = h5py.SoftLink("/here/a")
        file["text"] = "words"
        layout = h5py.VirtualLayout((4, 4), "f8")
        layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "a", (4, 4))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("beside", (4, 4), "f8", external=[(str(tmp_path / "raw"), 0, 128)])
    name = f"{tmp_path}/a.h5"
    for inner, message in [
        ("::nothing", r"has no dataset 'nothing'; it has .*here/a.*a\.h5::NAME"),
        ("::here", "has no dataset 'here'"),
        ("", "has no dataset None"),
        ("::external", r"in another file, secret\.h5; refused"),
        ("::soft", "is a link to /here/a"),
        ("::virtual", "lies in other files"),
        ("::beside", "lies in other files"),
        ("::text", "not numbers"),
    ]:
        with pytest.raises(lt.RegionError, match=message):
            lt.open_region(name + inner)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(lt.RegionError, match="is no HDF5 file"):
        lt.open_region(f"{tmp_path}/a.tif::x")
    (tmp_path / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    with pytest.raises(lt.RegionError, match="not a readable HDF5"):
        lt.open_region(f"{tmp_path}/bad.h5::x")


@pytest.mark.leaks(reason="zarr keeps its event loop")
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (20, 50, 60), (20, 50, 60, 2)])
@pytest.mark.parametrize("version", [2, 3])
def test_zarr_arrays_are_what_zarr_reads(tmp_path, shape, version):
    zarr = pytest.importorskip("zarr")
    expected = RNG.random(shape)
    chunks = tuple(min(n, 16) for n in shape)
    zarr.create_array(f"{tmp_path}/a.zarr", data=expected, chunks=chunks, zarr_format=version)
    check(lt.open_region(tmp_path / "a.zarr"), expected)


@pytest.mark.leaks(reason="zarr keeps its event loop")
def test_zarr_groups_name_their_arrays(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(f"{tmp_path}/a.zarr", mode="w")
    expected = RNG.random((40, 50))
    group.create_array("inner", data=expected)
    check(lt.open_region(f"{tmp_path}/a.zarr::inner"), expected)
    for name in ("a.zarr", "a.zarr::nothing", "a.zarr::../../x"):
        with pytest.raises(lt.RegionError, match=r"a\.zarr"):
            lt.open_region(f"{tmp_path}/{name}")


def test_a_file_of_no_known_kind_says_what_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("hello there")
    with pytest.raises(lt.RegionError, match=r"a\.txt: begins with b'hello th'; TIFF, PNG, JPEG, .*WEBP, \.npy, HDF5"):
        lt.open_region(tmp_path / "a.txt")
    (tmp_path / "b.png").touch()
    with pytest.raises(lt.RegionError, match=r"b\.png: is empty; TIFF, PNG"):
        lt.open_region(tmp_path / "b.png")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "folder.npy").mkdir()
    for name in ("a.png", "folder.npy", "missing.jpg"):
        with pytest.raises(lt.RegionError, match=name.replace(".", r"\.")):
            lt.open_region(tmp_path / name)


def test_a_file_that_changes_is_an_error(tmp_path):
    path = tmp_path / "a.png"
    picture("RGB").save(path)
    region = lt.open_region(path)
    picture("RGB", (64, 64)).save(path)
    lt.clear_cache()
    with pytest.raises(lt.RegionError, match="was replaced, truncated or overwritten"):
        region[:2]


def test_what_arrays_do_not_have_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((40, 50, 4)))
    assert lt.open_region(tmp_path / "a.npy", bands=[2, 0]).shape == (40, 50, 2)
    assert [level.shape for level in lt.open_region(tmp_path / "a.npy").levels] == [(40, 50)]
    with pytest.raises(lt.RegionError, match="holds one array, no page 1"):
        lt.open_region(tmp_path / "a.npy", page=1)
    with pytest.raises(lt.RegionError, match="has no level 1"):
        lt.open_region(tmp_path / "a.npy", level=1)


@pytest.mark.leaks(reason="zarr keeps its event loop")
def test_manifests_name_datasets_and_stores(tmp_path):
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    images = {name: RNG.integers(0, 255, (64, 80, 3), np.uint8) for name in "ab"}
    for name, image in images.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("entry/image", data=image, chunks=(16, 16, 3))
        zarr.create_array(f"{tmp_path}/{name}.zarr", data=image, chunks=(16, 16, 3))
        group = zarr.open_group(f"{tmp_path}/{name}-group.zarr", mode="w")
        group.create_array("image", data=image)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        np.save(tmp_path / f"{name}.npy", image)
    table = lt.make_grid(images, 32)
    endings = [".h5::entry/image", ".zarr", "-group.zarr::image", ".png", ".npy"]
    for ending in endings:
        tiles = lt.open_tiles(table, tmp_path, path="{region_id}" + ending).shuffle(1)
        for k in (0, 3, 11):
            row = tiles.table.iloc[k]
            expected = images[str(row.region_id)][row.ymin : row.ymax, row.xmin : row.xmax]
            np.testing.assert_array_equal(tiles[k], expected)
        assert len(np.asarray(tiles)) == len(table)
    with pytest.raises(lt.ManifestError, match=r"a\.h6"):
        lt.open_tiles(table, tmp_path, path="{region_id}.h6::entry/image")


def whole_files():
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    for name, form in [
        ("png", "PNG"),
        ("jpg", "JPEG"),
        ("gif", "GIF"),
        ("bmp", "BMP"),
        ("ppm", "PPM"),
        ("webp", "WEBP"),
    ]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, form)
        yield name, file.getvalue()
    file = io.BytesIO()
    np.save(file, image)
    yield "npy", file.getvalue()
    h5py = pytest.importorskip("h5py")
    for name, options in [("h5", {"chunks": (16, 16, 3), "compression": "gzip"}), ("hdf5", {})]:
        file = io.BytesIO()
        with h5py.File(file, "w") as store:
            store.create_dataset("x", data=image, **options)
        yield name, file.getvalue()


def opened(path):
    """The whole array, or the message of the library's own error; any other exception fails the test."""
    lt.clear_cache()
    try:
        return np.asarray(lt.open_region(f"{path}::x" if path.suffix in (".h5", ".hdf5") else path))
    except lt.LazyTilesError as error:
        return str(error)


def test_files_cut_anywhere_are_errors_or_the_same(tmp_path):
    for name, data in whole_files():
        path = tmp_path / f"a.{name}"
        path.write_bytes(data)
        expected = opened(path)
        for keep in [*range(1, len(data), len(data) // 30), *range(len(data) - 10, len(data))]:
            path.write_bytes(data[:keep])
            found = opened(path)
            assert path.name in found if isinstance(found, str) else np.array_equal(found, expected)


def test_damaged_files_raise_no_foreign_exceptions(tmp_path):
    rng = np.random.default_rng(1)
    for name, data in whole_files():
        path = tmp_path / f"a.{name}"
        for k in range(40):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data) if k % 2 else min(len(data), 300), 4):
                damaged[at] = rng.integers(256)
            path.write_bytes(damaged)
            found = opened(path)
            assert path.name in found if isinstance(found, str) else found.ndim >= 2
