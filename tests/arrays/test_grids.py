"""Tiles whose images lie on other grids than their boxes: maps, frames, masks and files of bands, against GDAL."""

from __future__ import annotations

import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject

import lazytiles as lt
from lazytiles.config import counters
from lazytiles.images import resize

NORTH_UP = Affine(10, 0, 500_000, 0, -10, 4_600_000)


def write(path: Path, image: np.ndarray, transform: Affine | None = NORTH_UP, **options: Any) -> Path:
    """An image (H, W) or (H, W, C) as GDAL writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    options = {"crs": "EPSG:32633" if transform is not None else None, **options}
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", "GTiff", dtype=image.dtype, transform=transform, **shape, **options) as file:
            file.write(bands)
    return path


def ground(transform: Affine, shape: tuple[int, int], bands: int = 1, dtype: str = "u2") -> np.ndarray:
    """Values that are a function of the place: what two images show alike if they show the same ground."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = transform @ (columns, rows)
    values = [(x - 499_000) + 7 * (4_601_000 - y) + 1000 * band for band in range(bands)]
    image = np.stack(values, axis=-1).astype(dtype)
    return image if bands > 1 else image[..., 0]


def table_of(boxes: list[tuple[float, ...]], **columns: Any) -> pd.DataFrame:
    """One region, one row a box."""
    names = [f"t{k}" for k in range(len(boxes))]
    return pd.DataFrame({"tile_id": names, "region_id": "r", "region_coordinates": list(map(str, boxes)), **columns})


def on_ground(transform: Affine, y0: int, x0: int, height: int, width: int) -> tuple[float, ...]:
    """The map box of a window of pixels."""
    left, top = transform @ (x0, y0)
    right, bottom = transform @ (x0 + width, y0 + height)
    return left, bottom, right, top


def two_years(folder: Path) -> tuple[pd.DataFrame, Affine]:
    """Two rasters of one grid that begin 7 pixels apart, and boxes of the second."""
    earlier = NORTH_UP @ Affine.translation(-7, -7)
    write(folder / "2017/r.tif", ground(earlier, (80, 90), 2), earlier)
    write(folder / "2018/r.tif", ground(NORTH_UP, (70, 70), 2))
    boxes = [on_ground(NORTH_UP, y, x, 16, 16) for y, x in ((0, 0), (16, 5), (40, 50))]
    rows = [table_of(boxes, label_id=year) for year in ("2017", "2018")]
    return pd.concat(rows, ignore_index=True), NORTH_UP


def test_two_years_whose_origins_differ(tmp_path):
    table, _ = two_years(tmp_path)
    tiles = lt.open_tiles(table, tmp_path, frames=[2017, 2018], coordinates="map")
    assert tiles.shape == (3, 2, 16, 16, 2)
    assert (tiles[:, 0] == tiles[:, 1]).all()
    assert (tiles[1, 1] == lt.open_region(tmp_path / "2018/r.tif")[16:32, 5:21]).all()
    assert tiles.sample_windows.tolist() == [[0, 0, 16, 16], [16, 5, 32, 21], [40, 50, 56, 66]]
    assert tiles.table.xmin.tolist() == [500_000, 500_050, 500_500]
    pixels = table.assign(region_coordinates="(0, 0, 16, 16)")
    wrong = lt.open_tiles(pixels, tmp_path, frames=[2017, 2018])
    with pytest.raises(lt.ManifestError, match=r"begins -?7 pixels in x and -?7 in y.*201.*coordinates=\"map\""):
        wrong[0]
    with pytest.raises(lt.ManifestError, match=r"2017/r\.tif"):
        wrong.verify()
    assert lt.check(pixels, tmp_path, frames=[2017, 2018]).problems.counts == {"other grid": 1}
    assert lt.check(table, tmp_path, frames=[2017, 2018], coordinates="map").is_sound


@pytest.mark.parametrize("ratio", [0.5, 2, 16])
def test_masks_of_another_resolution(ratio, tmp_path):
    coarse = NORTH_UP @ Affine.translation(-3, -2) @ Affine.scale(ratio)
    image = write(tmp_path / "r.tif", ground(NORTH_UP, (96, 96)))
    labels = np.random.default_rng(0).integers(0, 9, (int(100 / ratio) + 1, int(100 / ratio) + 1), np.uint8)
    mask = write(tmp_path / "masks/r.tif", labels, coarse)
    boxes = [on_ground(NORTH_UP, y, x, 32, 32) for y in (0, 32, 64) for x in (0, 32, 64)]
    tiles = lt.open_tiles(table_of(boxes), tmp_path, masks="masks/{region_id}.tif", coordinates="map")
    whole = np.zeros((96, 96), np.uint8)
    with rasterio.open(mask) as source, rasterio.open(image) as base:
        places = {"src_crs": source.crs, "dst_crs": base.crs, "dst_transform": base.transform}
        reproject(source.read(1), whole, src_transform=source.transform, resampling=Resampling.nearest, **places)
    found = tiles.labels[:][..., 0].reshape(3, 3, 32, 32).swapaxes(1, 2).reshape(96, 96)
    assert (found == whole).all()
    assert (pickle.loads(pickle.dumps(tiles.labels))[:] == tiles.labels[:]).all()
    with pytest.raises(lt.ManifestError, match=r"pixels of .* where"):
        lt.open_tiles(table_of([(0, 0, 32, 32)]), tmp_path, masks="masks/{region_id}.tif").labels[0]


def bands_of_a_scene(folder: Path, transform: Affine | None = NORTH_UP) -> dict[int, np.ndarray]:
    """Files of 10, 20 and 60 m, as Sentinel-2 is delivered."""
    files = {}
    for ratio in (1, 2, 6):
        own = None if transform is None else transform @ Affine.scale(ratio)
        files[ratio] = ground(NORTH_UP @ Affine.scale(ratio), (120 // ratio, 120 // ratio))
        write(folder / f"r_{10 * ratio}.tif", files[ratio], own)
    return files


@pytest.mark.parametrize("transform", [NORTH_UP, None])
@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_files_as_bands(transform, method, tmp_path):
    files = bands_of_a_scene(tmp_path, transform)
    path = [f"{{region_id}}_{metres}.tif" for metres in (10, 20, 60)]
    table = table_of([(x, y, x + 24, y + 24) for y in (0, 24, 96) for x in (0, 48, 96)])
    tiles = lt.open_tiles(table, tmp_path, path=path, resample=method)
    assert tiles.shape == (9, 24, 24, 3)
    read = tiles[:]
    for band, (ratio, image) in enumerate(files.items()):
        whole = resize(image[..., None], (120, 120), method, box=(0, 0, *image.shape))
        for row, tile in zip(tiles.table.itertuples(), read, strict=True):
            assert (tile[..., band] == whole[row.ymin : row.ymax, row.xmin : row.xmax, 0]).all()
        if method == "bilinear" and ratio > 1:  # as Pillow, which resamples 16 bits as floats
            inner = np.index_exp[12:-12, 12:-12]
            plane = ground(NORTH_UP, (120, 120)).astype(float)
            assert abs(whole[inner][..., 0] - plane[inner]).max() <= 1
    chosen = lt.open_tiles(table, tmp_path, path=path, resample=method, bands=[2, 0])
    assert (chosen[:] == read[..., [2, 0]]).all()
    assert (chosen[3, ..., 1] == read[3, ..., 0]).all()
    assert (tiles[2:5, 4:9, ::2, 1:] == read[2:5, 4:9, ::2, 1:]).all()
    assert (tiles[[1, 2], [3, 4], [5, 6], [2, 0]] == read[[1, 2], [3, 4], [5, 6], [2, 0]]).all()
    assert (pickle.loads(pickle.dumps(tiles))[1] == read[1]).all()
    assert (tiles.to_dask().compute() == read).all()
    assert lt.check(table, tmp_path, path=path).is_sound


def test_opening_opens_one_image(tmp_path):
    for number in range(20):
        write(tmp_path / f"r{number}.tif", ground(NORTH_UP, (32, 32)))
    rows = [(f"t{k}", f"r{k % 20}", *on_ground(NORTH_UP, 0, 0, 16, 16)) for k in range(200)]
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax"])
    before = counters()["files_opened"]
    tiles = lt.open_tiles(table, tmp_path, coordinates="map")
    assert counters()["files_opened"] - before <= 1
    assert tiles.shape == (200, 16, 16, 1)


@pytest.mark.parametrize(("dtype", "within"), [("u2", 0), ("f4", 0), ("u1", 1)])
def test_neighbouring_tiles_have_no_seams(dtype, within, tmp_path):
    image = np.random.default_rng(0).integers(0, 250, (70, 70, 3)).astype(dtype)
    other = NORTH_UP @ Affine.translation(-4.3, -3.7) @ Affine.scale(1.37)
    write(tmp_path / "2017/r.tif", image, other)
    write(tmp_path / "2018/r.tif", np.zeros((80, 80, 3), dtype))
    tables = []
    for n in (16, 80):
        boxes = [on_ground(NORTH_UP, y, x, n, n) for y in range(0, 80, n) for x in range(0, 80, n)]
        tables.append(pd.concat([table_of(boxes, label_id=year) for year in ("2017", "2018")], ignore_index=True))
    for method in ("bilinear", "bicubic", "area", "nearest"):
        options = {"frames": [2017, 2018], "coordinates": "map", "resample": method}
        small, (whole,) = (lt.open_tiles(table, tmp_path, **options)[:, 0] for table in tables)
        joined = small.reshape(5, 5, 16, 16, 3).swapaxes(1, 2).reshape(80, 80, 3)
        assert abs(joined.astype(float) - whole).max() <= within


def test_a_box_is_rounded_to_whole_pixels_once(tmp_path):
    write(tmp_path / "r.tif", ground(NORTH_UP, (64, 64)))
    box = (500_004, 4_599_743, 500_164, 4_599_903)  # 0.4 pixels right, 0.3 down of whole pixels
    table = table_of([box, on_ground(NORTH_UP, 32, 32, 16, 16)])
    tiles = lt.open_tiles(table, tmp_path, coordinates="map")
    assert tiles.sample_windows.tolist() == [[10, 0, 26, 16], [32, 32, 48, 48]]
    assert tiles.bounds[1].tolist() == list(on_ground(NORTH_UP, 32, 32, 16, 16))
    report = lt.check(table, tmp_path, coordinates="map")
    assert report.is_sound
    assert report.warnings.counts == {"boxes between pixels": 1}
    assert "is moved by 0.40 pixels" in str(report)
    other = table_of([on_ground(NORTH_UP, 0, 0, 16, 16), on_ground(NORTH_UP, 0, 0, 20, 16)])
    assert lt.open_tiles(other, tmp_path, coordinates="map", size=(8, 8)).shape == (2, 8, 8, 1)
    uneven = lt.open_tiles(other, tmp_path, coordinates="map")
    with pytest.raises(lt.ManifestError, match=r"is 20 x 16 pixels of .*the first is 16 x 16; pass size="):
        uneven[1]
    with pytest.raises(lt.ManifestError, match="whole numbers in brackets"):
        lt.open_tiles(table_of([(0.5, 0, 8, 8)]), tmp_path)


def test_boxes_of_another_crs(tmp_path, monkeypatch):
    write(tmp_path / "r.tif", ground(NORTH_UP, (64, 64)))
    pyproj = pytest.importorskip("pyproj")
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    left, bottom, right, top = on_ground(NORTH_UP, 8, 8, 16, 16)
    (xmin, xmax), (ymin, ymax) = to_degrees.transform([left, right], [bottom, top])
    table = table_of([(xmin, ymin, xmax, ymax)])
    options = {"coordinates": "map", "boxes_crs": "EPSG:4326"}
    tiles = lt.open_tiles(table, tmp_path, size=(16, 16), **options)
    assert abs(tiles.sample_windows - [[8, 8, 24, 24]]).max() <= 1
    monkeypatch.setitem(sys.modules, "pyproj", None)
    with pytest.raises(lt.RegionError, match=r"is in EPSG:32633, the boxes are in EPSG:4326.*lazytiles\[geo\]"):
        lt.open_tiles(table, tmp_path, **options)
    same = table_of([on_ground(NORTH_UP, 0, 0, 8, 8)])
    assert lt.open_tiles(same, tmp_path, coordinates="map", boxes_crs="EPSG:32633").shape == (1, 8, 8, 1)


def test_images_without_a_place_are_named(tmp_path):
    write(tmp_path / "r.tif", ground(NORTH_UP, (64, 64)), None)
    table = table_of([on_ground(NORTH_UP, 0, 0, 8, 8)])
    with pytest.raises(lt.RegionError, match=r"r\.tif.*says nowhere which place"):
        lt.open_tiles(table, tmp_path, coordinates="map")
    tiles = lt.open_tiles(table, tmp_path, coordinates="map", size=(8, 8))
    with pytest.raises(lt.ManifestError, match=r"tile t0.*r\.tif.*says nowhere which place"):
        tiles[0]
    assert lt.check(table, tmp_path, coordinates="map", size=(8, 8)).problems.counts == {"other grid": 1}


def test_upside_down(tmp_path):
    south_up = Affine(10, 0, 500_000, 0, 10, 4_600_000 - 640)
    write(tmp_path / "2017/r.tif", ground(south_up, (64, 64)), south_up)
    write(tmp_path / "2018/r.tif", ground(NORTH_UP, (64, 64)))
    box = on_ground(NORTH_UP, 10, 20, 16, 16)
    table = pd.concat([table_of([box], label_id=year) for year in ("2017", "2018")], ignore_index=True)
    tiles = lt.open_tiles(table, tmp_path, frames=[2017, 2018], coordinates="map")
    assert (tiles[0, 0] == tiles[0, 1]).all()
    turned = lt.open_tiles(table, tmp_path, frames=[2018, 2017], coordinates="map")
    assert (turned[0, 0, ::-1] == tiles[0, 1]).all()


def test_files_of_other_dtypes_and_missing_ones(tmp_path):
    write(tmp_path / "a_1.tif", np.full((32, 32), 300, np.uint16))
    write(tmp_path / "a_2.tif", np.full((16, 16), 7, np.uint8), NORTH_UP @ Affine.scale(2))
    write(tmp_path / "b_1.tif", np.full((32, 32), 300, np.uint16))
    table = table_of([(0, 0, 8, 8), (8, 8, 16, 16)]).assign(region_id=["a", "b"])
    options = {"path": ["{region_id}_1.tif", "{region_id}_2.tif"], "missing": "fill"}
    with pytest.raises(lt.ManifestError, match=r"b_2\.tif is missing"):
        lt.open_tiles(table, tmp_path, path=options["path"])
    with pytest.raises(lt.RegionError, match="one dtype"):
        lt.open_tiles(table, tmp_path, **options)
    with pytest.raises(ValueError, match="uint16, which uint8 cannot hold"):
        lt.open_tiles(table, tmp_path, dtype="uint8", **options)
    tiles = lt.open_tiles(table, tmp_path, dtype="float32", fill=[-1, -2], **options)
    assert tiles.valid.tolist() == [[True], [False]]
    assert tiles[0, 0, 0].tolist() == [300, 7]
    assert tiles[1, 0, 0].tolist() == [-1, -2]
    assert tiles[1, ..., 1].max() == -2
    assert lt.check(table, tmp_path, dtype="float32", **options).is_sound
    with pytest.raises(lt.RegionError, match="have bands 0 to 1"):
        lt.open_tiles(table, tmp_path, dtype="float32", bands=[2], **options)


def test_sizes_without_an_exact_ratio(tmp_path):
    write(tmp_path / "r_1.tif", np.zeros((32, 32), np.uint8), None)
    write(tmp_path / "r_2.tif", np.zeros((15, 16), np.uint8), None)
    table, path = table_of([(0, 0, 8, 8)]), ["{region_id}_1.tif", "{region_id}_2.tif"]
    with pytest.raises(lt.ManifestError, match=r"r_2\.tif.* is 15 x 16 pixels, .*whose ratio is a whole number"):
        lt.open_tiles(table, tmp_path, path=path)[0]
    assert lt.check(table, tmp_path, path=path).problems.counts == {"other grid": 1}


def test_whole_images_of_several_files(tmp_path):
    files = bands_of_a_scene(tmp_path)
    path = [f"{{region_id}}_{metres}.tif" for metres in (10, 20)]
    table = pd.DataFrame({"tile_id": ["a"], "region_id": "r"})
    tiles = lt.open_tiles(table, tmp_path, path=path, resample="nearest")
    assert (tiles[0, ..., 0] == files[1]).all()
    assert (tiles[0, ..., 1] == files[2].repeat(2, 0).repeat(2, 1)).all()
    small = lt.open_tiles(table, tmp_path, path=path, resample="nearest", size=(60, 60))
    assert (small[0, ..., 1] == files[2]).all()


@pytest.mark.leaks("fsspec keeps its thread")
def test_files_behind_addresses(tmp_path):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    table, _ = two_years(tmp_path)
    bands_of_a_scene(tmp_path)
    for path in tmp_path.rglob("*.tif"):
        memory.pipe(f"/grids/{path.relative_to(tmp_path)}", path.read_bytes())
    options: list[tuple[pd.DataFrame, dict[str, Any]]] = [
        (table, {"frames": [2017, 2018], "coordinates": "map"}),
        (table_of([(0, 0, 24, 24), (48, 24, 72, 48)]), {"path": [f"{{region_id}}_{k}.tif" for k in (10, 20, 60)]}),
    ]
    for rows, how in options:
        here, there = (lt.open_tiles(rows, folder, **how) for folder in (tmp_path, "memory://grids"))
        assert (there[:] == here[:]).all()
        assert there.valid_pixels[:].all()
        assert (there.to_dask().compute() == here[:]).all()


def test_workers_that_decode(tmp_path):
    bands_of_a_scene(tmp_path)
    tiles = lt.open_tiles(
        table_of([(0, 0, 24, 24), (48, 24, 72, 48)]), tmp_path, path=[f"{{region_id}}_{k}.tif" for k in (10, 20, 60)]
    )
    rows = np.array([0, 1] * 40)
    assert (tiles.take(rows, readers=2) == tiles.take(rows, readers=0)).all()
