"""Tiles of slides and stacks: levels, micrometres, masks of another scale, channels, frames and slices of one file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import lazytiles as lt

RNG = np.random.default_rng(0)


def table_of(boxes: list[tuple[int, ...]], region: str = "r") -> pd.DataFrame:
    """One region, one row a box."""
    names = [f"{region}{k}" for k in range(len(boxes))]
    return pd.DataFrame({"tile_id": names, "region_id": region, "region_coordinates": list(map(str, boxes))})


def slide(path: Path, mpp: float = 0.25, size: int = 512) -> np.ndarray:
    """A pyramid of smooth colours with its resolution; each level is the mean of the one below."""
    noise = Image.fromarray(RNG.integers(0, 255, (size // 16, size // 16, 3), np.uint8))
    image = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        level = image
        for k in range(3):
            scale = (1e4 / mpp / 2**k, 1e4 / mpp / 2**k)
            tiff.write(level, resolution=scale, resolutionunit="CENTIMETER", tile=(64, 64), photometric="rgb",
                       subfiletype=int(k > 0), metadata=None)  # fmt: skip
            level = np.asarray(Image.fromarray(level).reduce(2))
    return image


def test_boxes_in_pixels_of_full_resolution(tmp_path):
    slide(tmp_path / "r.tif")
    level = np.asarray(lt.open_region(tmp_path / "r.tif", level=1))
    boxes = [(0, 0, 128, 128), (64, 128, 192, 256), (384, 384, 512, 512)]
    tiles = lt.open_tiles(table_of(boxes), tmp_path, coordinates="base", level=1)
    assert tiles.shape == (3, 64, 64, 3)
    for tile, (x0, y0, x1, y1) in zip(tiles[:], boxes, strict=True):
        assert (tile == level[y0 // 2 : y1 // 2, x0 // 2 : x1 // 2]).all()
    assert tiles.sample_windows.tolist() == [[y0, x0, y1, x1] for x0, y0, x1, y1 in boxes]
    half = lt.open_tiles(table_of(boxes), tmp_path, coordinates="base", level=1, size=(32, 32))
    assert half.shape == (3, 32, 32, 3)
    assert (pickle.loads(pickle.dumps(tiles))[1] == tiles[1]).all()
    assert (tiles.to_dask().compute() == tiles[:]).all()
    with pytest.raises(lt.ManifestError, match="leaves region r"):
        lt.open_tiles(table_of([(448, 0, 576, 128)]), tmp_path, coordinates="base", level=1)[0]


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.4, 1.3])
def test_slides_at_one_scale(mpp, tmp_path):
    image = slide(tmp_path / "r.tif")
    other = slide(tmp_path / "s.tif", mpp=0.5)
    extent = 64 * mpp / 0.25
    start = 16
    stop = start + round(extent)
    table = table_of([(start, start, stop, stop)])
    tiles = lt.open_tiles(table, tmp_path, mpp=mpp, size=(64, 64))
    assert tiles.shape == (1, 64, 64, 3)
    box = (start, start, start + extent, start + extent)
    wanted = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR, box))
    assert abs(tiles[0].astype(int) - wanted).max() <= (0 if mpp == 0.25 else 8)  # the levels are means already
    assert lt.open_tiles(table, tmp_path, mpp=mpp).shape == (1, 64, 64, 3)
    twice = round(extent / 2)
    both = pd.concat([table, table_of([(8, 8, 8 + twice, 8 + twice)], "s")], ignore_index=True)
    pair = lt.open_tiles(both, tmp_path, mpp=mpp, size=(64, 64))
    box = (8, 8, 8 + extent / 2, 8 + extent / 2)
    wanted = np.asarray(Image.fromarray(other).resize((64, 64), Image.Resampling.BILINEAR, box))
    assert abs(pair[1].astype(int) - wanted).max() <= 4
    wrong = lt.open_tiles(table_of([(0, 0, 40, 64)]), tmp_path, mpp=mpp, size=(64, 64))
    if mpp != 0.25:
        with pytest.raises(lt.ManifestError, match=r"pixels of .* micrometres in .*a tile is 64 x 64"):
            wrong[0]


def test_micrometres_by_hand(tmp_path):
    for name in ("r", "s"):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.repeat(np.arange(64, dtype=np.uint8), 64).reshape(64, 64))
    table = pd.concat([table_of([(0, 0, 32, 32)], "r"), table_of([(0, 0, 16, 16)], "s")], ignore_index=True)
    with pytest.raises(lt.LazyTilesError, match=r"tile r0.*does not say how many micrometres a pixel is; .*source_mpp"):
        lt.open_tiles(table, tmp_path, mpp=1, size=(16, 16))[0]
    table["scale"] = [0.5, 1.0]
    tiles = lt.open_tiles(table, tmp_path, mpp=1, source_mpp="scale", size=(16, 16), resample="nearest")
    assert tiles[0, :, 0, 0].tolist() == list(range(1, 33, 2))
    assert tiles[1, :, 0, 0].tolist() == list(range(16))
    assert lt.check(table, tmp_path, mpp=1, source_mpp="scale", size=(16, 16)).is_sound
    assert lt.open_tiles(table[:1], tmp_path, mpp=1, source_mpp=0.5, size=(16, 16)).shape == (1, 16, 16, 1)


def test_masks_of_another_scale(tmp_path):
    slide(tmp_path / "r.tif")
    mask = RNG.integers(0, 9, (32, 32), np.uint8)
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(
        tmp_path / "masks/r.tif", mask, resolution=(2500, 2500), resolutionunit="CENTIMETER"
    )  # 4 micrometres
    whole = mask.repeat(16, 0).repeat(16, 1)
    table = table_of([(40, 24, 104, 88), (0, 0, 64, 64), (448, 448, 512, 512)])
    options: dict[str, Any] = {"masks": "masks/{region_id}.tif"}
    with pytest.raises(lt.ManifestError, match=r"so they have one extent; of a mask that is coarser.*mask_scale=16"):
        lt.open_tiles(table, tmp_path, **options)[0]
    for scale in (16, "mpp"):
        tiles = lt.open_tiles(table, tmp_path, mask_scale=scale, **options)
        labels = tiles.labels[:][..., 0]
        for label, (y0, x0, y1, x1) in zip(labels, tiles.sample_windows, strict=True):
            assert (label == whole[y0:y1, x0:x1]).all()
        assert lt.check(table, tmp_path, mask_scale=scale, **options).is_sound
        level = lt.open_tiles(table, tmp_path, mask_scale=scale, coordinates="base", level=2, **options)
        assert (level.labels[:][..., 0] == labels[:, 2::4, 2::4]).all()
        coarse = lt.open_tiles(table_of([(10, 6, 26, 22)]), tmp_path, mask_scale=scale, level=2, **options)
        assert (coarse.labels[0, ..., 0] == labels[0, 2::4, 2::4]).all()
        scaled = lt.open_tiles(table, tmp_path, mask_scale=scale, mpp=1, **options)
        assert (scaled.labels[:][..., 0] == labels[:, 2::4, 2::4]).all()


def test_channels_of_a_file_are_bands(tmp_path):
    image = RNG.integers(0, 999, (5, 48, 48), np.uint16)
    tifffile.imwrite(
        tmp_path / "r.tif", image, photometric="minisblack", tile=(16, 16), metadata={"axes": "CYX"}, ome=True
    )
    table = table_of([(0, 0, 16, 16), (8, 16, 24, 32)])
    first = lt.open_tiles(table, tmp_path)
    assert first.shape == (2, 16, 16, 1)
    tiles = lt.open_tiles(table, tmp_path, series=0)
    assert tiles.shape == (2, 16, 16, 5)
    wanted = np.moveaxis(image, 0, -1)
    assert (tiles[1] == wanted[16:32, 8:24]).all()
    some = lt.open_tiles(table, tmp_path, channels=[3, 1])
    assert (some[1] == wanted[16:32, 8:24, [3, 1]]).all()
    assert (lt.open_tiles(table, tmp_path, series=0, bands=[4, 0])[1] == wanted[16:32, 8:24, [4, 0]]).all()
    small = lt.open_tiles(table, tmp_path, series=0, size=(8, 8), resample="area")
    mean = wanted[16:32, 8:24].reshape(8, 2, 8, 2, 5).mean(axis=(1, 3))
    assert abs(small[1] - mean).max() <= 0.5
    assert (tiles.to_dask().compute() == tiles[:]).all()
    assert lt.check(table, tmp_path, series=0).is_sound


def test_frames_and_slices_of_a_file_are_axes(tmp_path):
    image = RNG.integers(0, 999, (3, 2, 4, 40, 48), np.uint16)
    tifffile.imwrite(tmp_path / "r.tif", image, metadata={"axes": "TCZYX"}, ome=True, photometric="minisblack")
    wanted = image.transpose(0, 2, 3, 4, 1)
    table = table_of([(0, 0, 16, 16), (8, 16, 24, 32)])
    tiles = lt.open_tiles(table, tmp_path, series=0)
    assert tiles.shape == (2, 3, 4, 16, 16, 2)
    assert (tiles[1] == wanted[:, :, 16:32, 8:24]).all()
    assert (tiles[0, 2, 3] == wanted[2, 3, :16, :16]).all()
    assert (tiles[1, -1, ::2, 3] == wanted[-1, ::2, 19, 8:24]).all()
    assert (pickle.loads(pickle.dumps(tiles))[1] == tiles[1]).all()
    assert (tiles.to_dask().compute() == tiles[:]).all()
    with lt.BatchFlow(tiles, 2) as flow:
        assert (next(iter(flow)) == tiles[:]).all()
    assert tiles.valid_pixels.shape == (2, 3, 4, 16, 16)
    assert tiles.valid_pixels[:].all()
    np.save(tmp_path / "r.npy", image)
    arrays = lt.open_tiles(table, tmp_path, path="{region_id}.npy", axes="TCZYX")
    assert (arrays[1] == tiles[1]).all()
    tifffile.imwrite(tmp_path / "pages.tif", image[:, 0, 0], photometric="minisblack", metadata=None)
    with pytest.raises(lt.RegionError, match=r"say by axes= what its axis . is"):
        lt.open_tiles(table, tmp_path, path="pages.tif", page="all")
    pages = lt.open_tiles(table, tmp_path, path="pages.tif", axes="CYX")
    assert (pages[1] == np.moveaxis(image[:, 0, 0], 0, -1)[16:32, 8:24]).all()
