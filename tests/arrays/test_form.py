"""Tiles of files that hold more than one image: channels as bands, frames and slices as axes."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import tifffile

import lazytiles as lt

RNG = np.random.default_rng(0)


def table_of(boxes: list[tuple[int, ...]]) -> pd.DataFrame:
    """One region, one row a box."""
    names = [f"t{k}" for k in range(len(boxes))]
    return pd.DataFrame({"tile_id": names, "region_id": "r", "region_coordinates": list(map(str, boxes))})


def test_channels_of_a_file_are_bands(tmp_path):
    image = RNG.integers(0, 999, (5, 48, 48), np.uint16)
    tifffile.imwrite(
        tmp_path / "r.tif", image, photometric="minisblack", tile=(16, 16), metadata={"axes": "CYX"}, ome=True
    )
    table = table_of([(0, 0, 16, 16), (8, 16, 24, 32)])
    first = lt.open_tiles(table, tmp_path)
    assert first.shape == (2, 16, 16, 1)
    report = lt.check(table, tmp_path)
    assert report.warnings.counts == {"other pages": 1}
    assert "1 file holds 5 pages of one shape" in str(report)
    assert lt.check(table, tmp_path, page=0).warnings.counts == {}
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


def test_pages_of_a_plain_stack_are_channels_where_channels_are_asked_for(tmp_path):
    image = RNG.integers(0, 999, (5, 48, 48), np.uint16)
    with tifffile.TiffWriter(tmp_path / "r.tif") as file:
        for page in image:
            file.write(page, photometric="minisblack", tile=(16, 16), contiguous=False, metadata=None)
    table = table_of([(0, 0, 16, 16), (8, 16, 24, 32)])
    wanted = np.moveaxis(image, 0, -1)[16:32, 8:24]
    assert (lt.open_tiles(table, tmp_path, channels=range(5))[1] == wanted).all()
    assert (lt.open_tiles(table, tmp_path, channels=[3, -5])[1] == wanted[..., [3, 0]]).all()
    assert (lt.open_tiles(table, tmp_path, axes="CYX")[1] == wanted).all()
    assert lt.check(table, tmp_path, channels=[3, 0]).is_sound
    with pytest.raises(lt.RegionError, match="has no channel 5; it has channels 0 to 4"):
        lt.open_tiles(table, tmp_path, channels=[5])


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


@pytest.mark.parametrize("size", [None, (10, 12)])
@pytest.mark.parametrize("axes", ["ZCYX", "TCYX", "TZYX"])
def test_whole_images_of_several_planes_need_no_boxes(axes, size, tmp_path):
    image = RNG.integers(0, 255, (3, 2, 20, 24), np.uint8)
    tifffile.imwrite(tmp_path / "r.ome.tif", image, ome=True, metadata={"axes": axes}, photometric="minisblack")
    table = pd.DataFrame({"tile_id": ["t"], "region_id": ["r"]})
    tiles = lt.open_tiles(table, tmp_path, path="{region_id}.ome.tif", series=0, size=size, resample="nearest")
    expected = np.moveaxis(image, 1, -1) if "C" in axes else image[..., None]
    if size is not None:
        expected = expected[..., 1::2, 1::2, :]
    np.testing.assert_array_equal(tiles[0], expected)
