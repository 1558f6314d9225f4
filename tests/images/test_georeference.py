"""What an image says of its place and of its pixels without meaning, held to what GDAL makes of the same file."""

from __future__ import annotations

import csv
import os
import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import imagecodecs
import numpy as np
import pytest
import tifffile
from affine import Affine
from hypothesis import given, settings
from PIL import Image

import lazytiles as lt
from lazytiles.images.files import pool
from lazytiles.images.georeference import Georeference, parse_nodata
from tests.anykey import keys, same_as_numpy
from tests.conformance import check_source

rasterio = pytest.importorskip("rasterio")
pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),  # rasterio's own
]

UTM = Affine(10, 0, 399960, 0, -10, 5700000)
RNG = np.random.default_rng(20)


def same_place(region: lt.Region, source: Any) -> list[str]:
    """What of an image's place and nodata differs from what rasterio says."""
    epsg = source.crs.to_epsg() if source.crs else None
    own = int(region.crs[5:]) if (region.crs or "").startswith("EPSG:") else None
    wrong = [] if own == epsg else [f"crs {region.crs}, not {source.crs}"]
    wanted = None if source.transform == Affine.identity() else source.transform
    if (region.transform is None) != (wanted is None):
        wrong.append(f"transform {region.transform!r}, not {wanted!r}")
    elif wanted is not None:
        if not np.allclose(region.transform, wanted, rtol=1e-9, atol=0):
            wrong.append(f"transform {region.transform!r}, not {wanted!r}")
        left, bottom, right, top = source.bounds
        wanted = min(left, right), min(bottom, top), max(left, right), max(bottom, top)
        if not np.allclose(region.bounds, wanted, rtol=1e-9):
            wrong.append(f"bounds {region.bounds}, not {wanted}")
    if region.nodata is None or source.nodata is None or region.dtype.kind in "iu":
        same = region.nodata == source.nodata
    else:
        same = np.array_equal(region.nodata, np.asarray(source.nodata).astype(region.dtype), equal_nan=True)
    return wrong if same else [*wrong, f"nodata {region.nodata!r}, not {source.nodata!r}"]


def gdal_valid(source: Any) -> np.ndarray:
    """GDAL's mask of a whole image, without NaN."""
    pixels = source.read()
    if pixels.dtype.kind not in "fc":
        return source.dataset_mask() > 0
    masks = source.dataset_mask() if source.nodata is None else source.read_masks()
    return ((masks > 0) & ~np.isnan(pixels)).any(axis=0)


def test_every_file_of_the_corpus(corpus_dir: Path) -> None:
    with open(corpus_dir / "INDEX.csv", newline="") as file:
        paths = [corpus_dir / row["path"] for row in csv.DictReader(file)]
    wrong: dict[str, Any] = {}
    placed = masked = 0
    for path in paths:
        try:
            region, source = lt.open_region(path), rasterio.open(path)
        except (lt.LazyTilesError, rasterio.RasterioIOError):
            continue
        with source:
            placed += region.transform is not None
            if found := same_place(region, source):
                wrong[path.name] = found
            if region.nbytes > 2**26:
                continue
            try:
                valid, wanted = np.asarray(region.valid), gdal_valid(source)
            except (lt.LazyTilesError, rasterio.RasterioIOError):
                continue
            masked += not wanted.all()
            if not np.array_equal(valid, wanted):
                wrong.setdefault(path.name, []).append(f"{np.count_nonzero(valid != wanted)} pixels of the mask")
    assert not wrong
    assert placed > 30, placed
    assert masked > 15, masked


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3857", "EPSG:2154", None])
@pytest.mark.parametrize("point", ["Area", "Point"])
@settings(max_examples=15)
@given(data=st.data())
def test_transforms_there_and_back(crs: str | None, point: str, data: Any) -> None:
    """What rasterio writes is read, and what `extratags` writes is what rasterio reads."""
    number = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
    size = st.floats(1e-5, 1e4)
    a, e = data.draw(size), data.draw(size) * data.draw(st.sampled_from([-1, 1]))
    b, d = data.draw(st.sampled_from([(0, 0), (a / 3, e / 7)]))
    at = Affine(a, b, data.draw(number), d, e, data.draw(number))
    with rasterio.MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"width": 7, "height": 5, "count": 1, "dtype": "uint8", "driver": "GTiff", "crs": crs}
        with memory.open(**options, transform=at) as target:
            target.update_tags(AREA_OR_POINT=point)
        name = f"/tmp/lazytiles-{os.getpid()}-place.tif"
        Path(name).write_bytes(memory.read())
    try:
        region = lt.open_region(name)
        with rasterio.open(name) as source:
            assert not same_place(region, source)
            system = source.crs
        place = region.pages[0].georeference
        assert place is not None
        moved = place.shifted(2, 3, (4, 2))
        tifffile.imwrite(name, np.zeros((5, 7), np.uint8), metadata=None, extratags=moved.extratags())
        with rasterio.open(name) as source:
            assert not same_place(lt.open_region(name), source)
            wanted = place.transform @ Affine.translation(3, 2) @ Affine.scale(2, 4)
            np.testing.assert_allclose(source.transform, wanted, rtol=1e-9, atol=1e-9)
            assert source.crs == system
    finally:
        os.unlink(name)


TAGS = {"scale": 33550, "ties": 33922, "matrix": 34264}


@pytest.mark.parametrize(
    "tags",
    [
        {"scale": (2.0, 2.0, 0.0), "ties": (0.0, 0.0, 0.0, 100.0, 200.0, 0.0)},
        {"scale": (2.0, -2.0, 0.0), "ties": (0.0, 0.0, 0.0, 100.0, 200.0, 0.0)},
        {"scale": (2.0, 3.0), "ties": (5.0, 7.0, 0.0, 100.0, 200.0, 0.0, 9.0, 9.0, 0.0, 1.0, 2.0, 0.0)},
        {"scale": (0.0, 2.0, 0.0), "ties": (0.0,) * 6},
        {"ties": (0.0, 0.0, 0.0, 100.0, 200.0, 0.0)},
        {"ties": tuple(map(float, range(24)))},
        {"matrix": (1.0, 0.5, 0, 5, 0.25, -1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1)},
        {"matrix": (1.0, 0.5, 0, 5)},
    ],
)
def test_tags_of_the_transform(tags: dict[str, tuple[float, ...]], tmp_path: Path) -> None:
    extra = [(TAGS[name], 12, len(value), value, True) for name, value in tags.items()]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 7), np.uint8), metadata=None, extratags=extra)
    with rasterio.open(tmp_path / "a.tif") as source:
        region = lt.open_region(tmp_path / "a.tif")
        assert not same_place(region, source)
    more = {"scale": (2.0, 2.0, 0.0), "matrix": (1.0, 0, 0, 5, 0, -1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1)}
    for names in (["scale"], ["scale", "matrix"]):  # GDAL calls both not valid, and rasterio gives what it left behind
        extra = [(TAGS[name], 12, len(more[name]), more[name], True) for name in names]
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 7), np.uint8), metadata=None, extratags=extra)
        assert lt.open_region(tmp_path / "a.tif").transform is None


def test_systems_that_are_no_epsg_code(tmp_path: Path) -> None:
    systems: list[Any] = []
    texts = ["+proj=laea +lat_0=10 +lon_0=20", "+proj=laea +lat_0=11 +lon_0=20", "ESRI:54009"]
    for k, text in enumerate([*texts, "+proj=longlat +a=6378000 +rf=300"]):
        path = tmp_path / f"{k}.tif"
        options = {"width": 7, "height": 5, "count": 1, "dtype": "uint8", "crs": text, "transform": UTM}
        with rasterio.open(path, "w", **options):
            pass
        region = lt.open_region(path)
        with rasterio.open(path) as source:
            assert not same_place(region, source)
            crs = source.crs
        assert region.crs
        systems.append(region.pages[0].georeference)
        tifffile.imwrite(path, np.zeros((5, 7)), metadata=None, extratags=region.pages[0].georeference.extratags())
        with rasterio.open(path) as source:
            assert source.crs == crs
    assert [[one.shares_system(other) for other in systems] for one in systems] == np.eye(4).astype(bool).tolist()


@pytest.mark.parametrize("kind", ["tif", "png", "jpg", "jpeg", "TIF"])
@pytest.mark.parametrize("naming", ["short", "long", "wld", "SHORT", "WLD"])
def test_world_files(kind: str, naming: str, tmp_path: Path) -> None:
    image = tmp_path / f"a.{kind}"
    Image.fromarray(RNG.integers(0, 255, (5, 7), np.uint8)).save(image)
    assert lt.open_region(image).transform is lt.open_region(image).bounds is lt.open_region(image).crs is None
    name = {"short": f"{kind[0]}{kind[-1]}w", "long": f"{kind}w"}.get(naming.lower(), "wld")
    world = tmp_path / f"a.{name.upper() if naming.isupper() else name.lower()}"
    world.write_text("2.5\n0.25\n-0.5\n-2,5\n1000.25\n2000\n")
    with rasterio.open(image) as source:
        assert not same_place(lt.open_region(image), source)
        assert source.transform != Affine.identity()
    world.write_text("2.5\n0\n")
    assert lt.open_region(image).transform is None
    world.rename(tmp_path / "elsewhere")
    world.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("1 0 0 1 0 0")
    assert lt.open_region(image).transform is None
    world.unlink()
    os.mkfifo(world)
    assert lt.open_region(image).transform is None


def test_tags_come_before_a_world_file(tmp_path: Path) -> None:
    extra = Georeference(None, UTM).extratags()
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 7), np.uint8), metadata=None, extratags=extra)
    (tmp_path / "a.tfw").write_text("1 0 0 1 0 0")
    assert lt.open_region(tmp_path / "a.tif").transform == UTM


def test_a_world_file_is_scaled_to_levels(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((40, 60), np.uint8), metadata=None)
        file.write(np.zeros((20, 30), np.uint8), subfiletype=1, metadata=None)
    (tmp_path / "a.tfw").write_text("10 0 0 -10 5 -5")
    level = lt.open_region(tmp_path / "a.tif", level=1)
    assert level.transform == Affine(20, 0, 0, 0, -20, 0)
    assert level.bounds == lt.open_region(tmp_path / "a.tif").bounds == (0, -400, 600, 0)


def test_opening_looks_for_nothing_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 7), np.uint8), metadata=None)
    opened: list[str] = []
    plain = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *more, **named: opened.append(str(path)) or plain(path, *more, **named)
    )
    region = lt.open_region(tmp_path / "a.tif")
    np.asarray(region), repr(region), pickle.dumps(region)
    assert opened == [str(tmp_path / "a.tif")]
    assert region.transform is None
    assert str(tmp_path / "a.tfw") in opened


@pytest.mark.parametrize("name", ["a.npy", "a.h5::x", "a.zarr"])
def test_arrays_have_no_place(name: str, tmp_path: Path, zarr_threads: None) -> None:
    pixels = RNG.random((5, 7))
    pixels[2, 3] = np.nan
    if name == "a.npy":
        np.save(tmp_path / name, pixels)
    elif name == "a.zarr":
        pytest.importorskip("zarr").create_array(str(tmp_path / name), data=pixels)
    else:
        with pytest.importorskip("h5py").File(tmp_path / "a.h5", "w") as file:
            file["x"] = pixels
    (tmp_path / "a.wld").write_text("1 0 0 1 0 0")
    region = lt.open_region(tmp_path / name)
    told = (region.crs, region.transform, region.bounds, region.nodata, region.scale_offset)
    assert told == (None,) * 5
    assert region.window_transform((0, 0, 2, 2)) is None
    np.testing.assert_array_equal(region.valid, ~np.isnan(pixels))


TEXTS = ["0", "-9999", "255", "256", "-1", "nan", "inf", "3.4e38", "-3.4028234663852886e+38", "1e300", "0.5"]
TEXTS += ["-3.40282346638529e+38", "3.402823466385289e+38", "65535.0", "-9999,5", " 7 ", "9223372036854775807", "1e3"]
TEXTS += ["18446744073709551615", "-9223372036854775808", "9007199254740993"]


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("text", TEXTS)
def test_nodata_is_that_of_gdal(text: str, dtype: str, tmp_path: Path) -> None:
    extra = [(42113, 2, 0, text, True)]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 7), dtype), metadata=None, extratags=extra)
    found = lt.open_region(tmp_path / "a.tif").nodata
    with rasterio.open(tmp_path / "a.tif") as source:
        wanted = source.nodata
    assert found is None or found.dtype == np.dtype(dtype)
    if dtype[0] == "f":
        wanted = None if wanted is None else np.dtype(dtype).type(wanted)
        if wanted is not None and np.isinf(wanted) and "inf" not in text:
            wanted = None  # GDAL rounds what the dtype cannot hold
        np.testing.assert_array_equal(found, wanted)
    elif dtype[1] == "8" and (text == "1e3" or wanted is None):  # GDAL reads a one from it; rasterio loses the largest
        assert found is None or found == int(float(text) if text == "1e3" else text)
    elif wanted is not None and wanted != int(wanted):
        assert found is None  # no pixel can hold it
    else:
        limits = np.iinfo(dtype)
        beyond = wanted is None or not limits.min <= wanted <= limits.max or str(wanted) not in (text, text.strip())
        assert found == wanted or (found is None and beyond)


def test_nodata_is_read_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = [(42113, 2, 0, "-3.4028234663852886e+38", True)]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 7), np.float32), metadata=None, extratags=extra)
    assert lt.open_region(tmp_path / "a.tif").nodata == np.finfo(np.float32).min
    assert not caplog.records
    with tifffile.TiffFile(tmp_path / "a.tif"):  # what others do with tifffile is theirs
        assert "GDAL_NODATA" in caplog.records[0].getMessage()


def test_nodata_that_is_no_number() -> None:
    for text in ("", "none", "12abc", "0x10", "--", None, b"1", 3.0):
        assert parse_nodata(text, np.dtype("f4")) is None


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f4", "f8", "c8"])
@pytest.mark.parametrize("bands", [1, 3])
@settings(max_examples=15)
@given(data=st.data())
def test_valid_by_nodata(dtype: str, bands: int, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    kind = np.dtype(dtype)
    if kind.kind in "fc":
        numbers = st.sampled_from([0.1, -9999.0, 3.4e38, -3.4028234663852886e38, 1e-30, float("nan"), 12345.678])
        nodata = data.draw(numbers if kind.kind == "f" else st.sampled_from([0.1, -9999.0, 12345.678]))
        near = [nodata, nodata * (1 + 1.5e-7), nodata * (1 - 4e-7), nodata * (1 + 6e-7), 0, 1, np.nan, -nodata]
    else:
        nodata = data.draw(st.integers(np.iinfo(kind).min, np.iinfo(kind).max))
        near = [nodata, 0, 1, max(nodata, 1) - 1]
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = np.array(near).astype(kind)[RNG.integers(0, len(near), (bands, 6, 9))]
    path = tmp_path_factory.getbasetemp() / "nodata.tif"
    digits = data.draw(st.sampled_from([9, 17])) if kind.kind in "fc" else 0
    text = f"{nodata:.{digits}g}" if digits else str(nodata)
    options: dict[str, Any] = {"planarconfig": "separate", "photometric": "minisblack"} if bands > 1 else {}
    extra = [(42113, 2, 0, text, True)]
    tifffile.imwrite(path, pixels.squeeze(), metadata=None, extratags=extra, **options)
    region = lt.open_region(path)
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(region.valid, gdal_valid(source))
    for picked in range(bands):
        with rasterio.open(path) as source:
            one = source.read_masks(picked + 1) > 0
        one &= ~np.isnan(pixels[picked]) if kind.kind in "fc" else True
        np.testing.assert_array_equal(lt.open_region(path, bands=[picked]).valid, one)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "i2"])
@pytest.mark.parametrize("samples", [2, 3, 4, 5])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_valid_by_alpha(dtype: str, samples: int, extra: str, planar: str, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 3, (samples, 12, 9)).astype(dtype)
    if planar == "contig":
        pixels = np.moveaxis(pixels, 0, -1)
    photometric = "rgb" if samples > 3 else "minisblack"
    extras = [extra] if samples <= 4 else ["unspecified", extra]
    extras = ["unspecified"] * (samples - 2) + [extra] if photometric == "minisblack" else extras
    options: dict[str, Any] = {"photometric": photometric, "planarconfig": planar, "extrasamples": extras}
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **options)
    with rasterio.open(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(lt.open_region(tmp_path / "a.tif").valid, gdal_valid(source))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "RGB"])
def test_valid_of_pictures(mode: str, tmp_path: Path) -> None:
    bands = len(mode)
    Image.fromarray(RNG.integers(0, 3, (12, 9, bands)).astype(np.uint8), mode).save(tmp_path / "a.png")
    with rasterio.open(tmp_path / "a.png") as source:
        np.testing.assert_array_equal(lt.open_region(tmp_path / "a.png").valid, gdal_valid(source))


def with_mask(path: Path, dtype: str = "u1", **options: Any) -> np.ndarray:
    """Write an image with an internal mask of one bit, and overviews; its mask."""
    pixels = RNG.integers(0, 9, (3, 120, 90)).astype(dtype)
    mask = RNG.random((120, 90)) < 0.6
    named: dict[str, Any] = {"width": 90, "height": 120, "count": 3, "dtype": pixels.dtype, "driver": "GTiff"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(path, "w", **named, crs="EPSG:32633", transform=UTM, **options) as target:
            target.write(pixels)
            target.write_mask(mask)
        with rasterio.open(path, "r+") as target:
            target.build_overviews([2, 4])
    return mask


@pytest.mark.parametrize("options", [{"nodata": 3}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_valid_by_a_mask_page_and_on_levels(options: dict[str, Any], tmp_path: Path) -> None:
    mask = with_mask(tmp_path / "a.tif", **options)
    region = lt.open_region(tmp_path / "a.tif")
    np.testing.assert_array_equal(region.valid, mask)
    assert len(region.levels) == 3
    for level in (1, 2):
        one = lt.open_region(tmp_path / "a.tif", level=level)
        with rasterio.open(tmp_path / "a.tif", overview_level=level - 1) as source:
            assert not same_place(one, source)
            np.testing.assert_array_equal(one.valid, gdal_valid(source))


def test_a_mask_of_eight_bits_and_several_images(tmp_path: Path) -> None:
    masks = RNG.integers(0, 2, (2, 12, 9)).astype(np.uint8) * 255
    images = RNG.integers(0, 9, (3, 12, 9)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for image, mask in zip(images[:2], masks, strict=True):
            file.write(image, metadata=None)
            file.write(mask, subfiletype=2, metadata=None)
        file.write(images[2], metadata=None)
        file.write(masks[0, :5], subfiletype=2, metadata=None)  # of no image
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        for k in (1, 3, 5):
            file.pages[k].tags[254].overwrite(4)
    with rasterio.open(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(source.dataset_mask(), masks[0])
    wanted = np.stack([*(masks > 0), np.ones((12, 9), np.bool_)])
    for page, valid in zip((0, 2, 4), wanted, strict=True):
        np.testing.assert_array_equal(lt.open_region(tmp_path / "a.tif", page=page).valid, valid)
    whole = lt.open_region(tmp_path / "a.tif", page="all")
    assert whole.valid.shape == (3, 12, 9)
    np.testing.assert_array_equal(whole.valid, wanted)
    np.testing.assert_array_equal(whole.valid[[2, 0], 3:5], wanted[[2, 0], 3:5])


def deep_stack(path: Path, count: int, has_masks: bool) -> np.ndarray:
    """Write pages of 4 x 4 pixels with a nodata value of 7, each followed by its mask if so wished; what is valid."""
    images = RNG.integers(0, 9, (count, 4, 4)).astype(np.uint8)
    masks = RNG.integers(0, 2, (count, 4, 4)).astype(np.uint8)
    file = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for k in range(count):
        for kind, pixels in ((0, images[k]), (4, masks[k]))[: 1 + has_masks]:
            data = len(file) + 2 + 11 * 12 + 4
            file += struct.pack("<H", 11)
            numbers = {254: kind, 256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: data, 277: 1, 278: 4, 279: 16}
            for code, number in numbers.items():
                file += struct.pack("<HHII", code, 4, 1, number)
            is_last = k == count - 1 and kind == 4 * has_masks
            file += struct.pack("<HHI4sI", 42113, 2, 2, b"7", 0 if is_last else data + 16) + pixels.tobytes()
    path.write_bytes(file)
    return masks > 0 if has_masks else images != 7


@pytest.mark.parametrize(("pages", "has_masks", "most"), [(3000, False, 300), (600, True, 2400)])
def test_the_directories_of_deep_stacks_are_read_once(
    pages: int, has_masks: bool, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read = [], pool.read
    monkeypatch.setattr(pool, "read", lambda *asked: reads.append(asked) or read(*asked))
    valid = deep_stack(tmp_path / "a.tif", pages, has_masks)
    region = lt.open_region(tmp_path / "a.tif", page="all")
    assert [page.mask is not None for page in region.pages] == [has_masks] * pages
    assert len(reads) < most  # many directories at once; of each mask, once more its own
    some = [0, 7, pages - 1]
    np.testing.assert_array_equal(region.valid[some], valid[some])


@given(data=st.data())
def test_valid_takes_every_key(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "keys.tif"
    pixels = np.random.default_rng(1).integers(0, 3, (37, 41, 3)).astype(np.int16)
    if not path.exists():
        extra = [(42113, 2, 0, "1", True)]
        options: dict[str, Any] = {"tile": (16, 16), "photometric": "rgb", "compression": "zlib"}
        tifffile.imwrite(path, pixels, metadata=None, extratags=extra, **options)
    same_as_numpy(lt.open_region(path).valid, (pixels != 1).any(axis=-1), data.draw(keys((37, 41))))


def test_valid_is_a_source(tmp_path: Path) -> None:
    pixels = RNG.random((8, 9)).astype(np.float32)
    pixels[2:4, 3:6] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None)
    check_source(lambda: lt.open_region(tmp_path / "a.tif").valid, ~np.isnan(pixels))
    dask = pytest.importorskip("dask.array")
    valid = lt.open_region(tmp_path / "a.tif").valid
    lazy = dask.from_array(valid, chunks=(4, 9))
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), ~np.isnan(pixels))
    assert lazy.name == dask.from_array(lt.open_region(tmp_path / "a.tif").valid, chunks=(4, 9)).name


def test_missing_tiles_hold_nodata(tmp_path: Path) -> None:
    for dtype, nodata in (("float32", -3.4028234663852886e38), ("float32", float("nan")), ("int64", -(2**40) - 1)):
        options = {"width": 64, "height": 64, "count": 1, "tiled": True, "blockxsize": 32, "blockysize": 32}
        with rasterio.open(tmp_path / "a.tif", "w", **options, dtype=dtype, nodata=nodata, sparse_ok=True) as target:
            target.write(np.ones((32, 32), dtype), 1, window=rasterio.windows.Window(0, 0, 32, 32))
        region = lt.open_region(tmp_path / "a.tif")
        assert not region.pages[0].counts.all()
        with rasterio.open(tmp_path / "a.tif") as source:
            np.testing.assert_array_equal(region[:], source.read(1))
            np.testing.assert_array_equal(region.valid, gdal_valid(source))


def lerc(path: Path, pixels: np.ndarray, mask: np.ndarray, nodata: str | None) -> lt.Region:
    """A TIFF of one strip that a LERC stream with a mask of its own fills."""
    data = imagecodecs.lerc_encode(pixels, masks=mask)
    extra = [(42113, 2, 0, nodata, True)] if nodata else []
    options: dict[str, Any] = {"shape": pixels.shape, "dtype": pixels.dtype, "compression": "lerc", "metadata": None}
    tifffile.imwrite(path, iter([bytes(data)]), rowsperstrip=len(pixels), extratags=extra, **options)
    return lt.open_region(path)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("nodata", [None, "-9999"])
def test_the_mask_of_a_lerc_stream(dtype: str, nodata: str | None, tmp_path: Path) -> None:
    pixels, mask = RNG.random((32, 48)).astype(dtype), RNG.random((32, 48)) < 0.7
    region = lerc(tmp_path / "a.tif", pixels, mask, nodata)
    with rasterio.open(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(region[:], source.read(1))
    np.testing.assert_array_equal(region[:], np.where(mask, pixels, np.nan))
    np.testing.assert_array_equal(region.valid, mask)


def test_a_lerc_mask_of_whole_numbers(tmp_path: Path) -> None:
    pixels, mask = RNG.integers(0, 200, (32, 48)).astype(np.uint8), RNG.random((32, 48)) < 0.7
    region = lerc(tmp_path / "a.tif", pixels, mask, "255")
    np.testing.assert_array_equal(region[:], np.where(mask, pixels, 255))
    np.testing.assert_array_equal(region.valid, mask)
    with pytest.raises(lt.SegmentError, match="its LERC mask calls pixels invalid, and no nodata value says so"):
        lerc(tmp_path / "b.tif", pixels, mask, None)[:]
    np.testing.assert_array_equal(lerc(tmp_path / "c.tif", pixels, np.ones_like(mask), None)[:], pixels)


@pytest.mark.parametrize("bands", [None, [1], [2, 0]])
def test_scaled(bands: list[int] | None, tmp_path: Path) -> None:
    pixels = RNG.integers(-5, 5, (3, 40, 30)).astype(np.int16)
    options = {"width": 30, "height": 40, "count": 3, "dtype": "int16", "nodata": -5}
    with rasterio.open(tmp_path / "a.tif", "w", **options) as target:
        target.write(pixels)
        target.scales, target.offsets = (0.1, 0.1, 0.5), (1.0, 1.0, -1000.0)
    plain, region = (lt.open_region(tmp_path / "a.tif", bands=bands, scaled=scaled) for scaled in (False, True))
    picked = bands or [0, 1, 2]
    with rasterio.open(tmp_path / "a.tif") as source:
        scales, offsets = np.array(source.scales)[picked], np.array(source.offsets)[picked]
    stored = np.moveaxis(pixels, 0, -1)[..., picked]
    wanted = np.where(stored == -5, np.nan, stored * scales + offsets).astype(np.float32)
    assert plain.dtype == np.int16
    assert region.scale_offset == ((0.1, 1.0) if bands == [1] else (tuple(scales), tuple(offsets)))
    assert (region.dtype, region.nodata) == (np.float32, np.int16(-5))
    check_source(lambda: lt.open_region(tmp_path / "a.tif", bands=bands, scaled=True), wanted)
    np.testing.assert_array_equal(region.to_dask().compute(scheduler="synchronous"), wanted)
    assert region.to_dask().name != plain.to_dask().name
    assert pickle.loads(pickle.dumps(region)).with_samples().dtype == np.float32
    np.testing.assert_array_equal(region.valid, ~np.isnan(wanted).all(axis=-1))


def test_windows_have_their_own_transform(tmp_path: Path) -> None:
    with_mask(tmp_path / "a.tif")
    region = lt.open_region(tmp_path / "a.tif")
    for box in ((0, 0, 5, 5), (3, 7, 20, 30), (-2.5, 0.25, 1, 1)):
        window = (
            rasterio.windows.Window.from_slices(*((box[k], box[k + 2]) for k in (0, 1)), width=90, height=120)
            if min(box) >= 0
            else rasterio.windows.Window(box[1], box[0], 1, 1)
        )
        assert region.window_transform(box) == pytest.approx(rasterio.windows.transform(window, UTM))
