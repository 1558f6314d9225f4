"""What is read of images: bands, gray and palettes that agree; boxes that are clear and meet their image."""

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

RNG = np.random.default_rng(3)


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, pd.DataFrame, dict[str, np.ndarray]]:
    """A folder of photographs of all kinds: gray, red-green-blue, with opacity, as PNG, JPEG and TIFF."""
    made: dict[str, np.ndarray] = {}
    for name, mode in (
        ("rgb.png", "RGB"),
        ("gray.png", "L"),
        ("rgba.png", "RGBA"),
        ("la.png", "LA"),
        ("photo.jpg", "RGB"),
    ):
        bands = len(Image.new(mode, (1, 1)).getbands())
        array = RNG.integers(0, 256, (24, 30, bands), np.uint8)
        Image.fromarray(array.squeeze(), mode).save(tmp_path / name)
        made[name] = np.asarray(Image.open(tmp_path / name)).reshape(24, 30, -1)
    planar = RNG.integers(0, 256, (4, 24, 30), np.uint8)
    options: dict[str, Any] = {"planarconfig": "separate", "extrasamples": ["unassalpha"], "compression": "zlib"}
    tifffile.imwrite(tmp_path / "planar.tif", planar, photometric="rgb", **options)
    made["planar.tif"] = np.moveaxis(planar, 0, -1)
    tifffile.imwrite(tmp_path / "gray.tif", planar[0])
    made["gray.tif"] = planar[0][..., None]
    table = pd.DataFrame({"tile_id": [f"t{k}" for k in range(len(made))], "path": list(made)})
    return tmp_path, table, made


def rgb_of(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., :1], 3, axis=-1) if array.shape[-1] <= 2 else array[..., :3]


@pytest.mark.parametrize("order", [1, -1])
def test_a_folder_of_photographs_opens_as_rgb_and_gray(order: int, photos: Any) -> None:
    folder, table, made = photos
    table = table[::order].reset_index(drop=True)
    wanted = np.stack([rgb_of(made[name]) for name in table["path"]])
    tiles = lt.open_tiles(table, folder, bands="rgb")
    np.testing.assert_array_equal(tiles[:], wanted)
    np.testing.assert_array_equal(tiles[::-1, 3:9, ::2, 1], wanted[::-1, 3:9, ::2, 1])
    np.testing.assert_array_equal(tiles[[0, 1], 2, [5, 6], [0, 2]], wanted[[0, 1], 2, [5, 6], [0, 2]])
    tiles.verify()
    np.testing.assert_array_equal(tiles.to_dask().compute(scheduler="synchronous"), wanted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tiles))[1:3], wanted[1:3])
    assert lt.check(table, folder, bands="rgb").is_sound
    assert not lt.check(table, folder).is_sound
    gray = lt.open_tiles(table, folder, gray=True)[:, ..., 0]
    weighed = (wanted.astype(int) @ [299, 587, 114] + 500) // 1000
    single = np.array([made[name].shape[-1] <= 2 for name in table["path"]])
    np.testing.assert_array_equal(gray[~single], weighed[~single])
    np.testing.assert_array_equal(gray[single], wanted[single, ..., 0])
    with pytest.raises(lt.RegionError, match=r'regions of one array must agree: .* bands="rgb" or gray=True'):
        lt.open_tiles(table, folder)[:]


def test_what_is_compared_is_what_is_read(photos: Any) -> None:
    folder, table, made = photos
    is_colour = np.array([made[name].shape[-1] > 2 for name in table["path"]])
    colours = table[is_colour].reset_index(drop=True)
    for bands in ([0, 1, 2], [2, 0], [1]):
        wanted = np.stack([made[name][..., bands] for name in colours["path"]])
        np.testing.assert_array_equal(lt.open_tiles(colours, folder, bands=bands)[:], wanted)
    with pytest.raises(lt.RegionError, match=r"of which bands=\[-1\] are \[3\], but \[2\] of the other regions"):
        lt.open_tiles(colours, folder, bands=[-1])[:]
    with pytest.raises(lt.ManifestError, match=r"bands \[0, 1, 2\] asked for; it has bands 0 to 0"):
        lt.open_tiles(table, folder, bands=[0, 1, 2]).verify()


def test_one_region_as_rgb(photos: Any) -> None:
    folder, table, made = photos
    for name in table["path"]:
        region = lt.open_region(folder / name, bands="rgb")
        assert (region.shape, region.axes) == ((24, 30, 3), "YXS")
        np.testing.assert_array_equal(region[2:5, ::3], rgb_of(made[name])[2:5, ::3])
    two = np.zeros((5, 5, 2), np.uint8)
    tifffile.imwrite(folder / "two.tif", two, photometric="minisblack", planarconfig="contig")
    with pytest.raises(lt.RegionError, match='bands="rgb" needs images of 1, 3 or 4 samples, not 2'):
        lt.open_region(folder / "two.tif", bands="rgb")
    with pytest.raises(lt.RegionError, match=r"slice 1 .* gives its bands \(0, 0, 0\), slice 0 .* \(0, 1, 2\)"):
        lt.stack_regions([folder / "rgb.png", folder / "gray.png"], bands="rgb")


@pytest.mark.parametrize("bands", [[True, False, True], np.array([True, False, True]), "bgr", 1, [0.0]])
def test_bands_are_numbers(bands: Any, photos: Any) -> None:
    folder, table, _ = photos
    for opened in (
        lambda: lt.open_region(folder / "rgb.png", bands=bands),
        lambda: lt.open_tiles(table, folder, bands=bands),
    ):
        with pytest.raises(ValueError, match=r"bands are a list of integers, such as \[0, 2\]"):
            opened()


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_ink_is_not_taken_for_colours(suffix: str, tmp_path: Path) -> None:
    path, inks = tmp_path / f"cmyk.{suffix}", RNG.integers(0, 255, (16, 16, 4), np.uint8)
    Image.fromarray(inks, "CMYK").save(path)
    assert lt.open_region(path).shape == (16, 16, 4)
    for options in ({"gray": True}, {"bands": "rgb"}):
        with pytest.raises(lt.RegionError, match=r"amounts of ink \(CMYK\); convert it to colours"):
            lt.open_region(path, **options)


@pytest.mark.parametrize("kind", ["png", "gif", "tif"])
def test_a_palette_is_not_interpolated(kind: str, tmp_path: Path) -> None:
    indices = RNG.integers(0, 200, (20, 20), np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "tif":
        tifffile.imwrite(path, indices, photometric="palette", colormap=RNG.integers(0, 2**16, (3, 256), np.uint16))
    else:
        picture = Image.fromarray(indices, "P")
        picture.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
        picture.save(path)
    table = pd.DataFrame({"tile_id": ["t"], "path": [path.name]})
    stored = lt.open_region(path)[:]
    np.testing.assert_array_equal(lt.open_tiles(table, tmp_path)[0, ..., 0], stored)
    near = lt.open_tiles(table, tmp_path, size=(8, 8), resample="nearest")[0, ..., 0]
    wanted = np.asarray(Image.fromarray(stored).resize((8, 8), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(near, wanted)
    for method in ("bilinear", "bicubic", "area"):
        with pytest.raises(lt.RegionError, match=f"{method} resampling of a palette's indices.*resample='nearest'"):
            lt.open_tiles(table, tmp_path, size=(8, 8), resample=method)
    for options in ({"gray": True}, {"bands": "rgb"}):
        with pytest.raises(lt.RegionError, match="makes no sense of a palette's indices; convert it to colours"):
            lt.open_tiles(table, tmp_path, **options)
    tifffile.imwrite(tmp_path / "plain.tif", indices)
    mixed = pd.DataFrame({"tile_id": ["s", "t"], "path": ["plain.tif", path.name]})
    with pytest.raises(lt.ManifestError, match="bilinear resampling of a palette's indices"):
        lt.open_tiles(mixed, tmp_path, size=(8, 8)).verify()
    for wrong in ({"size": (8, 8)}, {"gray": True}):
        assert not lt.check(mixed, tmp_path, **wrong).is_sound
        assert not lt.check(table, tmp_path, **wrong).is_sound
    assert lt.check(mixed, tmp_path, size=(8, 8), resample="nearest").is_sound


def test_boxes_said_twice_agree_or_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "r.tif", np.zeros((40, 40), np.uint8))
    table = pd.DataFrame({"tile_id": ["a", "b"], "region_id": "r", "region_coordinates": ["(0, 1, 8, 9)"] * 2})
    table = table.assign(xmin=[0, 2], ymin=1, xmax=8, ymax=9)
    assert lt.open_tiles(table[:1], tmp_path).table["xmin"].to_list() == [0]
    said = r"row 1: tile b: box \(0, 1, 8, 9\), but the columns xmin, ymin, xmax, ymax say \(2, 1, 8, 9\)"
    csv = tmp_path / "tiles.csv"
    table.to_csv(csv, index=False)
    for manifest in (table, csv):
        with pytest.raises(lt.ManifestError, match=said.replace("row 1", "row 1|line 3") if manifest is csv else said):
            lt.open_tiles(manifest, tmp_path)
    assert lt.check(table, tmp_path).problems.counts == {"boxes disagree": 1}
    deep = table.assign(zmin=0, zmax=2)
    with pytest.raises(lt.ManifestError, match="6 whole numbers in brackets"):
        lt.read_manifest(deep)


@pytest.mark.parametrize("pad", ["constant", "edge", "reflect", "wrap", "mean"])
@pytest.mark.parametrize("box", [(40, 0, 48, 8), (0, 300, 8, 308), (0, 40, 8, 48)])
def test_a_box_apart_from_its_image_is_refused_with_any_padding(pad: str, box: tuple[int, ...], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "r.tif", np.zeros((40, 40), np.uint8))
    table = pd.DataFrame([("in", "r", -4, -4, 4, 4), ("out", "r", *box)])
    table.columns = ["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax"]
    tiles = lt.open_tiles(table, tmp_path, pad=pad)
    assert tiles[0].shape == (8, 8, 1)
    for read in (lambda: tiles[1], lambda: tiles[:], tiles.verify):
        with pytest.raises(lt.ManifestError, match=r"tile out: box \(.*\) does not meet region r .*correct it"):
            read()
    before = table.assign(xmin=[-4, -20], xmax=[4, -12])
    with pytest.raises(lt.ManifestError, match=r"tile out: box \(-20, .*ends before pixel 0 and does not meet"):
        lt.open_tiles(before, tmp_path, pad=pad)


@pytest.mark.parametrize("context", [None, 1])
def test_a_box_apart_from_its_volume_is_refused(context: int | None) -> None:
    volume = np.arange(4 * 6 * 6).reshape(4, 6, 6)
    table = pd.DataFrame([("in", "r", 0, 0, 3, 4, 4, 4), ("out", "r", 0, 0, 4, 4, 4, 5)])
    table.columns = ["tile_id", "region_id", "xmin", "ymin", "zmin", "xmax", "ymax", "zmax"]
    tiles = lt.open_volumes(table, {"r": volume}, pad="edge", context=context)
    assert tiles[0].size == 16 * (3 if context else 1)
    for read in (lambda: tiles[1], tiles.verify):
        with pytest.raises(lt.ManifestError, match=r"tile out: box \(0, 0, 4, 4, 4, 5\) does not meet region r"):
            read()
    leaving = lt.open_volumes(table.assign(zmin=[3, 3], zmax=[5, 5]), {"r": volume})
    with pytest.raises(lt.ManifestError, match=r"tile in: .* leaves region r"):
        leaving.verify()


def test_a_folder_of_slices_is_read_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    for k in (10, 9, 2, 1, 100):
        tifffile.imwrite(folder / f"slice_{k}.tif", np.full((3, 4), k, np.uint8))
    (folder / ".hidden").write_text("no slice")
    (folder / "more").mkdir()
    for given in (folder, str(folder)):
        assert lt.stack_regions(given)[:, 0, 0].tolist() == [1, 2, 9, 10, 100]
    (folder / "notes.txt").write_text("no slice")
    with pytest.raises(lt.RegionError, match=r"notes\.txt"):
        lt.stack_regions(folder)
    with pytest.raises(lt.RegionError, match="holds no files"):
        lt.stack_regions(folder / "more")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: lt.MultiSourceArray([np.zeros((3, 2))], maxlen=True), "maxlen must be a number"),
        (lambda: lt.BatchFlow(np.zeros((3, 2)), True), "batch_size"),
        (lambda: lt.BatchFlow(np.zeros((3, 2)), 1, prefetch=True), "prefetch"),
        (lambda: lt.make_grid({"a": (8, 8)}, True), "size"),
        (lambda: lt.make_grid({"a": (8, 8)}, (4, 4), stride=True), "stride"),
        (lambda: lt.make_grid({"a": (8, 8)}, (True, 4)), "size"),
        (lambda: lt.augment.Augment(crop=True), "crop=True"),
        (lambda: lt.PatchGenerator(np.zeros((8, 8)), patch_size=True), "patch_size=True"),
    ],
)
def test_true_is_no_number(call: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call()
