"""Tiles in pixels of level 0 and in micrometres, and masks at another scale, against Pillow, OpenSlide and NumPy."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

import lazytiles as lt
from lazytiles.cli.commands import main
from lazytiles.config import counters
from tests.made import pixels

SLIDES = Path("/work/shared/slides")
MPP = 0.25


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """An image with something in it at all scales."""
    small = Image.fromarray(pixels((shape[0] // 4, shape[1] // 4, 3), seed=seed))
    return np.asarray(small.resize(shape[1::-1], Image.Resampling.BICUBIC))


def pyramid(
    path: Path, image: np.ndarray, levels: int = 3, mpp: float | None = MPP, **options: Any
) -> list[np.ndarray]:
    """A tiled pyramid in SubIFDs, each level half of the one above; its levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [image]
    for _ in range(levels - 1):
        height, width = found[-1].shape[:2]
        found.append(np.asarray(Image.fromarray(found[-1]).resize((width // 2, height // 2), Image.Resampling.BOX)))
    tags = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for k, level in enumerate(found):
            kind = {"subifds": levels - 1} if k == 0 else {"subfiletype": 1}
            file.write(level, tile=(64, 64), **kind, **(tags if k == 0 else {}), **options)
    return found


def table_of(boxes: Any, **columns: Any) -> pd.DataFrame:
    """One row a box (y0, x0, y1, x1) of one region."""
    said = [str((x0, y0, x1, y1)) for y0, x0, y1, x1 in boxes]
    names = [f"t{k}" for k in range(len(said))]
    return pd.DataFrame({"tile_id": names, "region_id": "r", "region_coordinates": said, **columns})


def resized(image: np.ndarray, size: tuple[int, int], box: Any, method: str = "bilinear") -> np.ndarray:
    """What Pillow makes of the box (y0, x0, y1, x1) of an image."""
    y0, x0, y1, x1 = box
    kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX}
    return np.asarray(Image.fromarray(image).resize(size[::-1], kernel[method], box=(x0, y0, x1, y1))).astype(int)


def test_boxes_of_level_0_read_from_another_level(tmp_path):
    levels = pyramid(tmp_path / "r.tif", smooth((512, 640)))
    boxes = [(0, 0, 64, 128), (64, 128, 128, 256), (448, 512, 512, 640), (65, 130, 129, 258)]
    tiles = lt.open_tiles(table_of(boxes), tmp_path, coordinates="base", level=2)
    assert tiles.shape == (4, 16, 32, 3)
    for k, (y0, x0, y1, x1) in enumerate(boxes[:3]):
        assert (tiles[k] == levels[2][y0 // 4 : y1 // 4, x0 // 4 : x1 // 4]).all()
    assert abs(tiles[3] - resized(levels[2], (16, 32), np.array(boxes[3]) / 4)).max() <= 1
    sized = lt.open_tiles(table_of(boxes), tmp_path, coordinates="base", level=1, size=(50, 40), resample="bicubic")
    for k, box in enumerate(boxes):
        assert abs(sized[k] - resized(levels[1], (50, 40), np.array(box) / 2, "bicubic")).max() <= 1
    assert (lt.open_tiles(table_of(boxes), tmp_path, coordinates="base")[1] == levels[0][64:128, 128:256]).all()
    assert tiles.sample_windows.tolist() == [list(box) for box in boxes]
    mixed = table_of([*boxes[:2], (0, 0, 32, 32)])
    with pytest.raises(lt.ManifestError, match=r"tile t2.* is 8 x 8 pixels of .*, the first is 16 x 32; pass size="):
        lt.open_tiles(mixed, tmp_path, coordinates="base", level=2)[2]
    assert lt.check(mixed, tmp_path, coordinates="base", level=2).problems.counts == {"mixed size": 1}
    beyond = table_of([(448, 512, 513, 640)])
    with pytest.raises(lt.ManifestError, match=r"leaves region r \(.*, 512 x 640\)"):
        lt.open_tiles(beyond, tmp_path, coordinates="base", level=1)[0]


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "area"])
@pytest.mark.parametrize(
    ("mpp", "level"), [(0.25, 0), (0.4, 0), (0.5, 1), (0.4996, 1), (0.8765, 1), (1.0, 2), (5.0, 2)]
)
def test_tiles_of_some_micrometres(mpp, level, method, tmp_path):
    levels = pyramid(tmp_path / "r.tif", smooth((1024, 1100)))
    extent = int(np.ceil(48 * mpp / MPP))
    corners = [(0, 0), (12, 8), ((1024 - extent) // 4 * 4, (1100 - extent) // 4 * 4)]  # no ties of kernels
    table = table_of([(y, x, y + extent, x + extent) for y, x in corners])
    tiles = lt.open_tiles(table, tmp_path, mpp=mpp, resample=method)
    assert tiles.shape == (3, 48, 48, 3)
    for k, (y, x) in enumerate(corners):
        box = np.array([y, x, y + 48 * mpp / MPP, x + 48 * mpp / MPP]) / 2**level
        expected = resized(levels[level], (48, 48), box, method)
        assert abs(tiles[k] - expected).max() <= 1
    again = pickle.loads(pickle.dumps(tiles))
    assert (again[:] == tiles[:]).all()
    assert (tiles.to_dask().compute() == tiles[:]).all()
    assert tiles.valid_pixels[:].all()
    assert lt.check(table, tmp_path, mpp=mpp).is_sound
    tiles.verify()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("mpp", [0.3, 0.5, 0.7, 2.2])
def test_a_tile_is_its_quarters(dtype, mpp, tmp_path):
    image = pixels((800, 800), dtype)
    tags = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "r.tif", image, tile=(64, 64), **tags)
    ratio = mpp / MPP  # whole pixels for 10, 20 and 40 of a tile's
    part, whole = round(10 * ratio), round(20 * ratio)
    assert np.isclose(part, 10 * ratio)
    starts = [(100 + y, 60 + x) for y in (0, part) for x in (0, part)]
    quarters = table_of([(y, x, y + part, x + part) for y, x in starts])
    big = lt.open_tiles(table_of([(100, 60, 100 + whole, 60 + whole)]), tmp_path, mpp=mpp)
    parts = lt.open_tiles(quarters, tmp_path, mpp=mpp)[:].reshape(2, 2, 10, 10, 1).swapaxes(1, 2).reshape(20, 20, 1)
    assert np.allclose(big[0].astype(float), parts.astype(float), rtol=1e-4, atol=1 if dtype != np.float32 else 1e-4)


@pytest.mark.parametrize("mpp", [0.5, 1, 2])
def test_a_real_slide(mpp):
    path = SLIDES / "CMU-1-Small-Region.svs"
    if not path.exists():
        pytest.skip("the slide is not there")
    grid = lt.make_grid([path], 256, mpp=mpp)
    tiles = lt.open_tiles(grid, SLIDES, mpp=mpp)
    assert tiles.shape == (len(grid), 256, 256, 3)
    image, extent = lt.open_region(path)[:], 256 * mpp / 0.499
    for k, (y, x) in enumerate(tiles.sample_windows[:, :2].tolist()):
        assert abs(tiles[k] - resized(image, (256, 256), (y, x, y + extent, x + extent))).max() <= 2
    assert lt.check(grid, SLIDES, mpp=mpp).is_sound


@pytest.mark.parametrize("mpp", [0.5, 1, 2])
def test_a_real_slide_as_openslide_reads_it(mpp):
    openslide = pytest.importorskip("openslide")
    path = SLIDES / "CMU-1-Small-Region.svs"
    if not path.exists():
        pytest.skip("the slide is not there")
    grid = lt.make_grid([path], 128, mpp=mpp)
    tiles, extent = lt.open_tiles(grid, SLIDES, mpp=mpp), 128 * mpp / 0.499
    with openslide.OpenSlide(path) as slide:
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    for k, (y, x) in enumerate(tiles.sample_windows[:, :2].tolist()):
        assert abs(tiles[k] - resized(whole, (128, 128), (y, x, y + extent, x + extent))).max() <= 2


def test_slides_of_two_scanners(tmp_path):
    fine = smooth((800, 800))
    coarse = np.asarray(Image.fromarray(fine).resize((400, 400), Image.Resampling.BOX))
    pyramid(tmp_path / "fine.tif", fine, 2)
    pyramid(tmp_path / "coarse.tif", coarse, 1, mpp=2 * MPP)
    pyramid(tmp_path / "untold.tif", coarse, 1, mpp=None)
    grid = lt.make_grid([tmp_path / "fine.tif", tmp_path / "coarse.tif"], 64, mpp=0.5)
    tiles = lt.open_tiles(grid, tmp_path, mpp=0.5)
    assert tiles.shape[1:] == (64, 64, 3)
    both = (tiles[tiles.table.region_id == name] for name in ("fine", "coarse"))
    assert (next(both) == next(both)).all()
    untold = grid[grid.region_id == "coarse"].assign(region_id="untold", said=0.5)
    with pytest.raises(lt.RegionError, match=r"untold\.tif.*source_mpp="):
        lt.open_tiles(untold, tmp_path, mpp=0.5)
    by_hand = lt.open_tiles(untold, tmp_path, mpp=0.5, source_mpp=0.5)
    by_column = lt.open_tiles(untold, tmp_path, mpp=0.5, source_mpp="said")
    assert (by_hand[:] == by_column[:]).all()
    assert (by_hand[:] == tiles[tiles.table.region_id == "coarse"]).all()
    assert lt.check(untold, tmp_path, mpp=0.5, source_mpp="said").is_sound
    untold.loc[untold.index[1], "said"] = 0.25
    with pytest.raises(lt.ManifestError, match=r"untold\.tif, say different micrometres in the column said"):
        lt.open_tiles(untold, tmp_path, mpp=0.5, source_mpp="said")


def test_boxes_of_another_extent_are_refused(tmp_path):
    pyramid(tmp_path / "r.tif", smooth((512, 512)))
    table = table_of([(0, 0, 128, 128), (0, 0, 129, 127), (0, 0, 128, 140)])
    tiles = lt.open_tiles(table, tmp_path, mpp=0.5)
    assert tiles.shape == (3, 64, 64, 3)
    assert (tiles[0] == tiles[1]).all()
    with pytest.raises(lt.ManifestError, match=r"tile t2.*is 128 x 140 pixels of .* micrometres are 128 x 128"):
        tiles[2]
    assert lt.check(table, tmp_path, mpp=0.5).problems.counts == {"other extent": 1}
    with pytest.raises(lt.ManifestError, match="t2"):
        tiles.verify()
    for wrong in ({"mpp": 0.5, "level": 1}, {"mpp": -1}, {"mpp": 0.5, "coordinates": "map"}, {"mask_scale": 16}):
        with pytest.raises(ValueError, match=r"mpp|mask_scale"):
            lt.open_tiles(table, tmp_path, **wrong)


@pytest.mark.parametrize("scale", [4, 16])
@pytest.mark.parametrize("extent", [(512, 640), (509, 635)])
def test_masks_at_another_scale(scale, extent, tmp_path):
    levels = pyramid(tmp_path / "r.tif", smooth((*extent, 3)))
    labels = pixels((-(-extent[0] // scale), extent[1] // scale))
    (tmp_path / "masks").mkdir()
    tags = {"resolution": (1e4 / MPP / scale,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "masks/r.tif", labels, **tags)
    height, width = extent
    whole = labels[np.arange(height)[:, None] // scale, np.minimum(np.arange(width) // scale, labels.shape[1] - 1)]
    boxes = [(0, 0, 128, 96), (37, 51, 165, 147), (height - 128, width - 96, height, width)]
    table = table_of(boxes)
    with pytest.raises(lt.ManifestError, match=rf"have one extent.*mask_scale={scale}") as error:
        lt.open_tiles(table, tmp_path, masks="masks/{region_id}.tif").labels[0]
    assert "pad=" not in str(error.value)
    for said in (scale, "mpp"):
        tiles = lt.open_tiles(table, tmp_path, masks="masks/{region_id}.tif", mask_scale=said)
        for k, (y0, x0, y1, x1) in enumerate(boxes):
            assert (tiles[k] == levels[0][y0:y1, x0:x1]).all()
            assert (tiles.labels[k, ..., 0] == whole[y0:y1, x0:x1]).all()
        assert (pickle.loads(pickle.dumps(tiles)).labels[:] == tiles.labels[:]).all()
        assert (tiles.labels.to_dask().compute() == tiles.labels[:]).all()
        assert lt.check(table, tmp_path, masks="masks/{region_id}.tif", mask_scale=said).is_sound
        tiles.verify()
    with pytest.raises(lt.ManifestError, match=r"would have a mask of .* by mask_scale=8"):
        lt.open_tiles(table, tmp_path, masks="masks/{region_id}.tif", mask_scale=8).labels[0]


def test_masks_of_tiles_of_other_levels_and_micrometres(tmp_path):
    pyramid(tmp_path / "r.tif", smooth((512, 512)))
    (tmp_path / "masks").mkdir()
    labels, full = pixels((32, 32)), pixels((512, 512), seed=1)
    tifffile.imwrite(tmp_path / "masks/r.tif", labels)
    tifffile.imwrite(tmp_path / "masks/full.tif", full)
    table, whole = table_of([(64, 32, 320, 288)]), labels.repeat(16, 0).repeat(16, 1)
    how = {"masks": "masks/{region_id}.tif", "mask_scale": 16}
    for options, step in (({"coordinates": "base", "level": 1}, 2), ({"mpp": 0.5}, 2), ({"mpp": 1.0}, 4)):
        tiles = lt.open_tiles(table, tmp_path, **how, **options)
        places = np.arange(256 // step) * step + step // 2
        assert (tiles.labels[0, ..., 0] == whole[64 + places[:, None], 32 + places]).all()
        unscaled = lt.open_tiles(table, tmp_path, masks="masks/full.tif", **options)
        assert (unscaled.labels[0, ..., 0] == full[64 + places[:, None], 32 + places]).all()
        assert lt.check(table, tmp_path, **how, **options).is_sound
    own = lt.open_tiles(table_of([(32, 16, 160, 144)]), tmp_path, level=1, **how)
    assert (own.labels[0, ..., 0] == whole[64:320:2, 32:288:2]).all()
    with pytest.raises(lt.ManifestError, match="mask_scale=16"):
        lt.open_tiles(table, tmp_path, masks="masks/{region_id}.tif", mpp=0.5).labels[0]


def test_frames_padding_and_whole_images(tmp_path):
    images = [smooth((256, 300), seed=year) for year in (0, 1)]
    for year, image in zip(("2017", "2018"), images, strict=True):
        pyramid(tmp_path / year / "r.tif", image, 2)
    table = pd.concat([table_of([(0, 0, 128, 128), (200, 200, 328, 328)], label_id=year) for year in ("2017", "2018")])
    tiles = lt.open_tiles(table, tmp_path, frames=[2017, 2018], mpp=1.0, pad="constant", fill=255)
    assert tiles.shape == (2, 2, 32, 32, 3)
    assert (tiles[1, :, 16:] == 255).all()
    assert not tiles.valid_pixels[1, :, 16:].any()
    level = np.asarray(Image.fromarray(images[1]).resize((150, 128), Image.Resampling.BOX))
    assert abs(tiles[0, 1] - resized(level, (32, 32), (0, 0, 64, 64))).max() <= 1
    whole = lt.open_tiles(pd.DataFrame({"path": ["2017/r.tif", "2018/r.tif"]}), tmp_path, mpp=1.0)
    assert whole.shape == (2, 64, 75, 3)
    assert abs(whole[1] - resized(level, (64, 75), (0, 0, 128, 150))).max() <= 1


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.6])
def test_maps_of_tiles_of_some_micrometres(mpp, tmp_path):
    pyramid(tmp_path / "r.tif", smooth((500, 600)))
    grid = lt.make_grid([tmp_path / "r.tif"], 50, mpp=mpp)
    tiles = lt.open_tiles(grid, tmp_path, mpp=mpp)
    (scan,) = lt.predict(lambda x: x.astype("f4"), tiles, out=tmp_path / "maps")
    found = lt.open_region(tmp_path / "maps/r.tif")
    assert found.shape[:2] == (round(500 * MPP / mpp), round(600 * MPP / mpp))
    assert found.mpp == pytest.approx((mpp, mpp), rel=1e-4)
    if mpp == 0.5:
        assert np.array_equal(scan["y_pred"][:], lt.open_region(tmp_path / "r.tif", level=1)[:])
    stored = lt.export(tiles, tmp_path / "tiles.h5")
    (again,) = lt.predict(lambda x: x.astype("f4"), stored)
    assert np.array_equal(again["y_pred"], np.asarray(scan["y_pred"]))
    assert not np.isnan(again["y_pred"]).any()


def test_only_the_level_that_is_needed_is_decoded(tmp_path):
    pyramid(tmp_path / "r.tif", smooth((1024, 1024)))
    tiles = lt.open_tiles(table_of([(0, 0, 256, 256)]), tmp_path, mpp=1.0)
    before = counters()["segments_decoded"]
    tiles[0]
    assert counters()["segments_decoded"] - before == 1


def test_labels_that_are_boxes(tmp_path):
    pyramid(tmp_path / "r.tif", smooth((512, 512)))
    table = table_of([(10, 20, 131, 141)], xa=[20], ya=[10], xb=[140], yb=[130])
    columns = ["xa", "ya", "xb", "yb"]
    tiles = lt.open_tiles(table, tmp_path, mpp=0.3, size=(100, 100), target=columns, scale_boxes=columns)
    assert np.allclose(tiles.labels, [[0, 0, 100, 100]])


def test_places_on_the_ground_of_boxes_of_level_0(tmp_path):
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0)), (33922, "d", 6, (0, 0, 0, 5000.0, 9000.0, 0))]
    pyramid(tmp_path / "r.tif", smooth((512, 512)), extratags=tags)
    table = table_of([(64, 32, 128, 96)])
    expected = [[5320, 9000 - 1280, 5960, 9000 - 640]]
    for options in ({}, {"level": 1}, {"level": 2}, {"mpp": 0.5}):
        tiles = lt.open_tiles(table, tmp_path, coordinates="base", **options)
        assert np.allclose(tiles.bounds, expected)


def test_the_commands_take_them(tmp_path):
    pyramid(tmp_path / "r.tif", smooth((512, 512)), mpp=None)
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "masks/r.tif", pixels((32, 32)))
    table_of([(0, 0, 128, 128), (128, 0, 256, 128)]).to_csv(tmp_path / "tiles.csv", index=False)
    run, manifest = CliRunner(), str(tmp_path / "tiles.csv")
    scales = ["--mpp", "0.5", "--source-mpp", "0.25", "--masks", "masks/{region_id}.tif", "--mask-scale", "16"]
    assert run.invoke(main, ["check", manifest, "--images", str(tmp_path), *scales]).exit_code == 0
    said = run.invoke(main, ["check", manifest, "--images", str(tmp_path), "--mpp", "0.5"])
    assert said.exit_code == 1
    assert "source_mpp=" in said.output
    for options in (scales, ["--coordinates", "base", "--level", "2"]):
        page = tmp_path / "page.html"
        done = run.invoke(
            main, ["preview", manifest, "--images", str(tmp_path), *options, "-o", str(page), "--overwrite"]
        )
        assert done.exit_code == 0, done.output
        assert 'viewBox="0 0 512 512"' in page.read_text()
    done = run.invoke(
        main, ["preview", manifest, "--images", str(tmp_path), "--level", "1", "-o", str(page), "--overwrite"]
    )
    assert 'viewBox="0 0 256 256"' in page.read_text()
