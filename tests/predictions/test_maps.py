"""Maps lie where their region lies: what GDAL reads of them, their overviews, what marks that nothing is there."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd
import pytest
import tifffile

import lazytiles as lt
from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.predictions.regions import predict
from tests.images.test_corpus import CORPUS, rows

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
rasterio = pytest.importorskip("rasterio")
from rasterio.transform import Affine  # noqa: E402

SHAPE = (600, 515)
PLACE = Affine(10.0, 0.0, 399960.0, 0.0, -10.0, 5400000.0)


def write(path, image, *, nodata=None, transform=PLACE, crs="EPSG:32633", **options):
    """A GeoTIFF by rasterio, (H, W) or (H, W, C), with an overview where `levels` are asked for."""
    levels = options.pop("levels", ())
    bands = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    form = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with rasterio.open(
        path, "w", **form, dtype=image.dtype.name, crs=crs, transform=transform, nodata=nodata, **options
    ) as file:
        file.write(bands)
    if levels:
        with rasterio.open(path, "r+") as file:
            file.build_overviews(levels)
    return path


def table_of(shape, size, stride=None):
    return lt.make_grid({"a": shape}, size, stride=stride)


def place_of(path):
    with rasterio.open(path) as file:
        return file.crs, file.transform, file.nodata


@pytest.fixture
def scene(tmp_path):
    """One georeferenced region with an overview, and a mask."""
    image = np.random.default_rng(0).integers(1, 200, (*SHAPE, 3), np.uint8)
    write(tmp_path / "a.tif", image, levels=[2], tiled=True, blockxsize=64, blockysize=64)
    write(tmp_path / "a_mask.tif", (image[..., 0] > 100).astype(np.uint8))
    return tmp_path, image


def means(image, nodata=None):
    """The next overview by a double loop's meaning: means of what is there, in blocks of two by two."""
    height, width = (n + n % 2 for n in image.shape[:2])
    padded = np.full((height, width, *image.shape[2:]), np.nan)
    padded[: image.shape[0], : image.shape[1]] = np.where(image == nodata, np.nan, image)
    blocks = padded.reshape(height // 2, 2, width // 2, 2, *image.shape[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.nanmean(blocks, axis=(1, 3))
    return mean if nodata is None else np.where(np.isnan(mean), nodata, mean)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float16", "float64", "bool", "int64"])
@pytest.mark.parametrize("shape", [(601, 1030), (1030, 300, 3), (300, 301, 1)])
def test_overviews_keep_classes_and_average_other_numbers(tmp_path, dtype, shape):
    rng = np.random.default_rng(1)
    image = (rng.random(shape) * 7).astype(dtype)
    if image.dtype.kind == "f":
        image[rng.random(shape) < 0.5] = np.nan
        image[:9, :9] = np.nan
    with lt.Canvas(shape[:2], blend="crop", out=tmp_path / "a.tif", boxes=[(0, 0, shape[1], shape[0])]) as canvas:
        canvas.add([(0, 0, shape[1], shape[0])], image[None])
    wanted, k = image.squeeze(), 0
    region = lt.open_region(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1) == [2**n for n in range(1, 9) if max(shape) / 2 ** (n - 1) > 256]
        assert file.profile["tiled"] or max(shape[:2]) <= 256
    while True:
        level = lt.open_region(tmp_path / "a.tif", level=k)
        assert level.dtype == (np.uint8 if dtype == "bool" else dtype)
        np.testing.assert_allclose(level[...], wanted, rtol=2e-3 if dtype == "float16" else 1e-6)
        if max(wanted.shape[:2]) <= 256:
            break
        wanted = means(wanted) if image.dtype.kind == "f" else wanted[::2, ::2]
        k += 1
    assert len(region.levels) == k + 1
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert [page.shape[:2] for page in file.series[0].levels] == [
            (-(-shape[0] // 2**n), -(-shape[1] // 2**n)) for n in range(k + 1)
        ]


def test_large_maps_are_bigtiffs(tmp_path, monkeypatch):
    monkeypatch.setattr("lazytiles.stores.geotiff._MOST_BYTES", 100)
    with lt.Canvas((300, 300), out=tmp_path / "a.tif") as canvas:
        canvas.add([(0, 0, 300, 300)], np.ones((1, 300, 300), np.float32))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
    with rasterio.open(tmp_path / "a.tif", overview_level=0) as file:
        assert (file.read(1) == 1).all()


@pytest.mark.parametrize("row", rows())
def test_maps_of_real_files_lie_where_these_lie(row, tmp_path):
    logging.disable(logging.CRITICAL)
    path = CORPUS / row["path"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            crs, transform, _ = place_of(path)
            region = lt.open_region(path)
    except (rasterio.errors.RasterioError, lt.LazyTilesError):
        pytest.skip("GDAL or lazytiles does not read it")
    finally:
        logging.disable(logging.NOTSET)
    if crs is None and transform.is_identity:
        pytest.skip("no place")
    height, width = region.inner_shape[:2]
    box = (0, 0, min(width, 64), min(height, 64))
    with lt.Canvas(like=region, out=tmp_path / "map.tif", fill=255, boxes=[box], dtype="uint8") as canvas:
        canvas.add([box], np.zeros((1, box[3], box[2]), np.uint8))
    with rasterio.open(tmp_path / "map.tif") as file:
        assert (file.height, file.width) == (height, width)
        assert file.crs == crs
        np.testing.assert_allclose(file.transform[:6], transform[:6], rtol=1e-9)
        assert file.nodata == 255


@pytest.mark.parametrize("blend", ["crop", "mean"])
def test_predictions_lie_on_their_region(scene, blend):
    folder, image = scene
    tiles = lt.open_tiles(table_of(SHAPE, 64), folder)
    (scan,) = predict(lambda x: x, tiles, out=folder / "maps", blend=blend)
    np.testing.assert_array_equal(np.asarray(scan["y_pred"]), image)
    crs, transform, _ = place_of(folder / "maps" / "a.tif")
    assert (crs, transform) == place_of(folder / "a.tif")[:2]
    region = lt.open_region(folder / "maps" / "a.tif")
    assert region.crs == "EPSG:32633"
    assert region.transform == PLACE


def test_a_map_of_a_level_and_of_a_coarser_model_has_larger_pixels(scene):
    folder, image = scene
    small = lt.open_region(folder / "a.tif", level=1)
    tiles = lt.open_tiles(table_of(small.shape[:2], 32), folder, level=1)
    list(predict(lambda x: x[..., :1], tiles, out=folder / "level.tif", blend="crop"))
    _, transform, _ = place_of(folder / "level.tif")
    with rasterio.open(folder / "a.tif", overview_level=0) as file:
        np.testing.assert_allclose(transform[:6], file.transform[:6], rtol=1e-12)
    # 515 columns: the last tile leaves the region, and its pixels stand for less than four.
    table = lt.make_grid({"a": SHAPE}, 64, edge="pad")
    tiles = lt.open_tiles(table, folder, pad="edge")
    out = folder / "coarse.tif"
    (scan,) = predict(lambda x: x[:, ::4, ::2], tiles, out=out, blend="crop")
    np.testing.assert_array_equal(scan["y_pred"][...], image[::4, ::2])
    _, transform, _ = place_of(out)
    assert transform == PLACE @ Affine.scale(2, 4)
    shifted = lt.open_tiles(lt.make_grid({"a": SHAPE}, 64, edge="shift"), folder)
    with pytest.raises(ValueError, match=r"stands for 4 x 4 pixels, but box \(451, 0, 515, 64\) does not begin"):
        list(predict(lambda x: x[:, ::4, ::4], shifted, blend="crop"))
    with pytest.raises(ValueError, match=r"the model gives \(8, 8\) for tiles"):
        list(predict(lambda x: x[:, ::8, ::8, 0], tiles))


def test_resampled_tiles_give_a_map_of_the_regions_pixels(scene):
    folder, _ = scene
    tiles = lt.open_tiles(table_of(SHAPE, 64), folder, size=(32, 32))
    (scan,) = predict(lambda x: x[..., :1] > 100, tiles, out=folder / "map.tif", blend="crop")
    assert scan["y_pred"].shape == (*SHAPE, 1)
    assert place_of(folder / "map.tif")[:2] == place_of(folder / "a.tif")[:2]


def test_a_canvas_like_a_region_takes_its_shape_and_place(scene):
    folder, _ = scene
    region = lt.open_region(folder / "a.tif")
    assert lt.Canvas(like=region).shape == SHAPE
    with lt.Canvas((150, 129), like=region, out=folder / "map.tif") as canvas:
        canvas.add([(0, 0, 129, 150)], np.zeros((1, 150, 129, 2), np.float32))
    crs, transform, nodata = place_of(folder / "map.tif")
    assert (crs, transform) == ("EPSG:32633", PLACE @ Affine.scale(4, 4))
    assert np.isnan(nodata)
    with pytest.raises(ValueError, match="a canvas needs a shape"):
        lt.Canvas(out=folder / "none.tif")


def labels(x):
    return (x[..., :1] > 100).astype(np.uint8)


FLOAT, HALF = np.float32, np.float16


@pytest.mark.parametrize(
    ("dtype", "nodata", "model", "how", "wanted"),
    [
        ("uint8", None, labels, {"fill": 255}, 255),
        ("uint8", None, labels, {"fill": 1}, None),  # a class
        ("uint8", 0, labels, {"fill": 255}, 255),
        ("uint8", 0, lambda x: labels(x) + 1, {}, 0),
        ("uint8", 0, lambda x: x, {}, 0),
        ("int16", -9999, lambda x: x, {}, -9999),
        ("int16", -9999, lambda x: x.astype(FLOAT), {}, np.nan),
        ("int16", -9999, lambda x: labels(x).astype(np.int16), {}, -9999),
        ("float32", -9999.0, lambda x: x, {}, -9999.0),
        ("float32", -9999.0, lambda x: x.astype(HALF), {}, np.nan),
        ("float32", 0.0, lambda x: labels(x).astype(FLOAT), {}, np.nan),
        ("float32", -3.4028234663852886e38, lambda x: x, {}, -3.4028234663852886e38),
        ("float32", np.nan, lambda x: x, {}, np.nan),
        ("uint8", None, lambda x: x.astype(FLOAT), {"fill": -1}, -1.0),
    ],
)
def test_nodata_is_never_a_class(tmp_path, dtype, nodata, model, how, wanted):
    image = np.random.default_rng(2).integers(1, 200, SHAPE).astype(dtype)
    if nodata is not None:
        image[:300, 200:] = nodata
    write(tmp_path / "a.tif", image, nodata=nodata)
    tiles = lt.open_tiles(table_of(SHAPE, 64)[5:].reset_index(drop=True), tmp_path)
    (scan,) = predict(model, tiles, out=tmp_path / "map.tif", blend="crop", **how)
    found = place_of(tmp_path / "map.tif")[2]
    assert found == wanted or (wanted is not None and np.isnan(wanted) and np.isnan(found))
    bare = np.asarray(scan["y_pred"][:64, :64])
    expected = how.get("fill", np.nan if bare.dtype.kind == "f" else wanted)
    np.testing.assert_array_equal(bare, np.full_like(bare, expected))
    whole = np.asarray(scan["y_pred"])[..., 0]
    if whole.dtype.kind == "f":  # overviews are of what is there
        np.testing.assert_allclose(
            lt.open_region(tmp_path / "map.tif", level=1)[...],
            means(whole, found),
            rtol=1e-2 if wanted != wanted else 1e-6,
        )


def test_a_class_that_is_the_nodata_of_the_region_needs_a_fill(tmp_path):
    image = np.random.default_rng(2).integers(1, 200, SHAPE).astype(np.uint8)
    write(tmp_path / "a.tif", image, nodata=0)
    tiles = lt.open_tiles(table_of(SHAPE, 64)[5:].reset_index(drop=True), tmp_path)
    for out in (None, tmp_path / "map.tif"):
        with pytest.raises(ValueError, match="pixels lie under no tile, the first at row 0, column 0; uint8"):
            list(predict(labels, tiles, blend="crop", out=out))
    assert not (tmp_path / "map.tif").exists()


def test_maps_say_the_micrometres_of_their_pixels(tmp_path):
    image = np.zeros((600, 300), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, resolution=(40000, 20000), resolutionunit="CENTIMETER")
    region = lt.open_region(tmp_path / "a.tif")
    assert region.mpp == (0.5, 0.25)
    with lt.Canvas(like=region, out=tmp_path / "map.tif") as canvas:
        canvas.add([(0, 0, 300, 600)], image[None])
    with tifffile.TiffFile(tmp_path / "map.tif") as file:
        assert [page.resolution for page in file.pages] == [(40000, 20000), (20000, 10000), (10000, 5000)]
    assert lt.open_region(tmp_path / "map.tif").mpp == (0.5, 0.25)


def test_volumes_and_stacks_keep_their_place(tmp_path):
    image = np.random.default_rng(0).integers(0, 200, (2, 64, 64), np.uint8)
    for k in range(2):
        write(tmp_path / f"{k}.tif", image[k])
    table = pd.concat([table_of((64, 64), 32).assign(region_id=str(k), scan="s") for k in range(2)], ignore_index=True)
    table["tile_id"] = [f"t{k}" for k in range(len(table))]
    (scan,) = predict(lambda x: x, lt.open_tiles(table, tmp_path), by="scan", out=tmp_path / "map.tif", blend="crop")
    np.testing.assert_array_equal(scan["y_pred"][..., 0], image)
    assert place_of(tmp_path / "map.tif")[:2] == place_of(tmp_path / "0.tif")[:2]


def test_a_store_of_tiles_keeps_the_place(scene, tmp_path):
    folder, _ = scene
    tiles = lt.open_tiles(table_of(SHAPE, 64), folder)
    stored = lt.open_store(lt.export(tiles, tmp_path / "tiles.npy").sources[0].path)
    list(predict(lambda x: x, stored, out=tmp_path / "map.tif", blend="crop"))
    assert place_of(tmp_path / "map.tif")[:2] == place_of(folder / "a.tif")[:2]


class TestTiles:
    """`export` to a file a tile."""

    def test_each_lies_where_its_window_lies(self, scene):
        folder, _ = scene
        table = table_of(SHAPE, 64, 48)
        tiles = lt.open_tiles(table, folder, masks="{region_id}_mask.tif").shuffle(3)
        found = lt.export(tiles, folder / "chips" / "{region_id}" / "{tile_id}.tif")
        np.testing.assert_array_equal(found[:], tiles[:])
        np.testing.assert_array_equal(found.labels[:], tiles.labels[:])
        assert list(found.table.tile_id) == list(tiles.table.tile_id)
        for row in tiles.table.iloc[:5].itertuples():
            for ending in (".tif", ".labels.tif"):
                crs, transform, nodata = place_of(folder / "chips" / "a" / f"{row.tile_id}{ending}")
                assert (crs, transform, nodata) == ("EPSG:32633", PLACE @ Affine.translation(row.xmin, row.ymin), None)
        assert len(list((folder / "chips" / "a").iterdir())) == 2 * len(table)

    def test_resampled_ones_have_pixels_of_another_size(self, scene):
        folder, _ = scene
        tiles = lt.open_tiles(table_of(SHAPE, 64), folder, size=(32, 16))
        lt.export(tiles, folder / "{tile_id}.tif")
        row = tiles.table.iloc[7]
        transform = place_of(folder / f"{row.tile_id}.tif")[1]
        assert transform == PLACE @ Affine.translation(row.xmin, row.ymin) @ Affine.scale(4, 2)

    def test_written_tiles_in_another_order_keep_what_is_valid(self, tmp_path):
        image = np.random.default_rng(0).integers(1, 200, (32, 64), np.uint8)
        image[:20, :24] = 0
        tifffile.imwrite(tmp_path / "a.tif", image, extratags=[(42113, "s", 0, "0", False)])
        written = lt.open_tiles(table_of(image.shape, 16), tmp_path, target=None).persist().shuffle(1)
        found = lt.export(written, tmp_path / "{tile_id}.tif")
        np.testing.assert_array_equal(found[:], written[:])
        np.testing.assert_array_equal(found.valid_pixels[:], written[:][..., 0] != 0)

    def test_what_exists_is_replaced_only_when_asked(self, scene):
        folder, _ = scene
        tiles = lt.open_tiles(table_of(SHAPE, 64), folder)
        path = folder / "chips" / "{tile_id}.tif"
        lt.export(tiles, path)
        first = tiles.table.tile_id[0]
        with pytest.raises(lt.StoreError, match=rf"{first}.tif exists, as do \d+ others; pass overwrite=True"):
            lt.export(tiles, path)
        (folder / "chips" / f"{first}.tif").unlink()
        told = []
        lt.export(tiles, path, resume=True, progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (len(tiles), len(tiles))
        np.testing.assert_array_equal(lt.export(tiles, path, overwrite=True, sync=True)[:], tiles[:])
        with pytest.raises(lt.StoreError, match="holds other pixels"):
            lt.export(lt.open_tiles(table_of(SHAPE, 64), folder, bands=[2, 1, 0]), path, resume=True)

    def test_a_write_that_fails_leaves_nothing_and_says_so(self, scene, monkeypatch):
        folder, _ = scene
        tiles = lt.open_tiles(table_of(SHAPE, 64), folder)

        def full(self, file, ground):
            file.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("lazytiles.stores.geotiff.Pyramid.finish", full)
        with pytest.raises(lt.StoreError, match=r"\.tif cannot be written: No space left on device"):
            lt.export(tiles, folder / "chips" / "{tile_id}.tif")
        assert list((folder / "chips").iterdir()) == []

    def test_whole_images_and_volumes_are_tiles_too(self, tmp_path):
        image = np.random.default_rng(0).integers(0, 200, (2, 40, 48), np.uint8)
        write(tmp_path / "a.tif", image[0])
        whole = lt.open_tiles(pd.DataFrame({"path": ["a.tif"], "tile_id": ["a"]}), tmp_path)
        lt.export(whole, tmp_path / "whole" / "{tile_id}.tif")
        assert place_of(tmp_path / "whole" / "a.tif") == place_of(tmp_path / "a.tif")
        tifffile.imwrite(tmp_path / "v.tif", image, photometric="minisblack")
        table = lt.make_grid({"v": image.shape}, (2, 20, 16))
        volumes = lt.open_volumes(table, tmp_path)
        found = lt.export(volumes, tmp_path / "volumes" / "{tile_id}.tif")
        np.testing.assert_array_equal(found[:], volumes[:])

    def test_wrong_names_are_refused(self, scene):
        folder, _ = scene
        tiles = lt.open_tiles(table_of(SHAPE, 64), folder)
        for path, message in [
            ("{nothing}.tif", "no column nothing"),
            ("one.tif", r"write \{tile_id\} where its name goes"),
            ("{region_id}.tif", "samples 0 and 1 would both be a.tif"),
        ]:
            with pytest.raises(lt.ManifestError, match=message):
                lt.export(tiles, folder / path)
        with pytest.raises(lt.ManifestError, match="no table"):
            lt.export(MultiSourceArray([np.zeros((2, 4, 4, 1))]), folder / "{tile_id}.tif")
        with pytest.raises(ValueError, match="takes no client="):
            lt.export(tiles, folder / "{tile_id}.tif", chunk=3)
