"""Everything at once: files of random make, and tiles under random combinations of options, from fixed seeds."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import lazytiles as lt
from lazytiles.manifests.asked import Asked
from lazytiles.manifests.grids import Division
from lazytiles.manifests.manifest import Columns
from tests.limits import within_limits
from tests.made import make

PLAIN = ("none", "lzw", "zlib", "zstd", "lzma", "packbits", "deflate")
IMAGES = ("jpeg", "jpeg2000", "webp", "lerc", "png", "jpegxl")


def recipe(rng):
    """How one file is made: an image, and the options of tifffile's writer."""
    compression = str(rng.choice(PLAIN + IMAGES))
    dtype = str(rng.choice(["u1", "u2", "i2", "f4", "u4", "f2", "f8", "i1"]))
    samples = int(rng.choice([1, 1, 3, 4, 2, 5]))
    if compression in IMAGES and compression != "lerc":
        dtype, samples = "u1", 3 if compression == "webp" else int(rng.choice([1, 3]))
    height, width = rng.integers(1, 140, 2).tolist()
    image = rng.normal(60, 30, (height, width, samples)).clip(0, 120).astype(dtype)
    options = {"byteorder": str(rng.choice(["<", ">"])), "bigtiff": bool(rng.random() < 0.3), "metadata": None}
    if rng.random() < 0.5 or compression in ("webp", "lerc", "jpeg2000", "jpegxl"):
        options["tile"] = tuple(rng.choice([16, 32, 64, 128], 2).tolist())
    else:
        options["rowsperstrip"] = int(rng.integers(1, height + 5))
    if compression in ("lzw", "zlib", "zstd", "lzma", "deflate") and rng.random() < 0.5 and dtype != "f2":
        options["predictor"] = True
    if compression != "none":
        options["compression"] = compression
    if samples > 1:
        separate = rng.random() < 0.3 and compression != "webp"
        options["planarconfig"] = "separate" if separate else "contig"
        image = np.moveaxis(image, -1, 0) if separate else image
    options["photometric"] = "rgb" if samples == 3 and rng.random() < 0.7 else "minisblack"
    return image if samples > 1 else image[..., 0], options


@pytest.mark.parametrize("seed", range(8))
def test_files_of_random_make(seed, tmp_path):
    rng, path, read = np.random.default_rng(seed), tmp_path / "a.tif", 0
    for _ in range(30):
        image, options = recipe(rng)
        try:
            tifffile.imwrite(path, image, **options)
        except Exception:  # some combinations cannot be written
            continue
        with tifffile.TiffFile(path) as tiff:
            wanted = tiff.pages[0].asarray()
        if options.get("planarconfig") == "separate":
            wanted = np.moveaxis(wanted, 0, -1)
        budget = int(rng.choice([0, 3000, 2**28]))
        with within_limits(mmap=bool(rng.random() < 0.5), cache_bytes=budget):
            region = lt.open_region(path)
            assert region.shape == wanted.shape
            assert region.dtype == wanted.dtype.newbyteorder("=")
            np.testing.assert_array_equal(region, wanted, err_msg=str(options))
            for _ in range(6):
                y, x = (np.sort(rng.integers(0, n + 1, 2)) for n in wanted.shape[:2])
                np.testing.assert_array_equal(region[slice(*y), slice(*x)], wanted[slice(*y), slice(*x)])
            if wanted.ndim == 3:
                bands = rng.integers(0, wanted.shape[2], 2).tolist()
                np.testing.assert_array_equal(lt.open_region(path, bands=bands), wanted[..., bands])
        read += 1
    assert read > 20


def cut(image, box, *, pad, bands, gray, size, method):
    """A tile by the plainest means: the whole image padded, cut, made gray, resized by Pillow."""
    x0, y0, x1, y1 = box
    far = 60
    if pad:
        image = np.pad(image, ((far, far), (far, far), (0, 0)), mode=pad)
        x0, y0, x1, y1 = (n + far for n in box)
    tile = image[y0:y1, x0:x1]
    if gray:
        tile = ((tile.astype(int) @ [299, 587, 114] + 500) // 1000).astype(tile.dtype)[..., None]
    elif bands:
        tile = tile[..., bands]
    if size is None or tile.shape[:2] == size:
        return tile
    kernel = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "area": "BOX"}[method]
    planes = [Image.fromarray(np.ascontiguousarray(tile[..., k])) for k in range(tile.shape[2])]
    return np.stack([np.asarray(p.resize(size[::-1], Image.Resampling[kernel])) for p in planes], axis=-1)


PADS = [None, "constant", "edge", "reflect", "symmetric", "wrap"]
COLOURS = [(None, False), ([2], False), ([2, 0], False), ([-1, 1], False), (None, True)]
SIZES = [(None, "bilinear"), *itertools.product([(11, 6), (20, 31)], ["nearest", "bilinear", "bicubic", "area"])]


@pytest.mark.parametrize("pad", PADS)
def test_options_together(pad, tmp_path):
    rng = np.random.default_rng(3)
    made = make(tmp_path, frames=("a", "b"), tiles=8, size=None, seed=4)
    for (bands, gray), (size, method) in itertools.product(COLOURS, SIZES):
        boxes = []
        for row in made.rows.itertuples():
            shape = made.images["a", row.region_id].shape[:2]
            extent = (9, 7) if size is None else tuple(rng.integers(1, 30, 2).tolist())
            ranges = ((max(-25, 1 - m), n) if pad else (0, n - m + 1) for n, m in zip(shape, extent, strict=True))
            y, x = (int(rng.integers(low, high)) for low, high in ranges)
            boxes.append((x, y, x + extent[1], y + extent[0]))
        table = made.table.assign(region_coordinates=[str(box) for box in boxes for _ in range(2)])
        options = {"pad": pad, "bands": bands, "gray": gray, "size": size}
        tiles = lt.open_tiles(table, tmp_path, frames=["b", "a"], resample=method, **options).shuffle(3)
        dense = np.stack(
            [
                np.stack(
                    [cut(made.images[f, made.rows.region_id[k]], boxes[k], method=method, **options) for f in "ba"]
                )
                for k in tiles.order.tolist()
            ]
        )
        said = str((options, method))
        np.testing.assert_array_equal(tiles[:], dense, err_msg=said)
        for key in (np.s_[::-2, 0, 2:8:3, ::-1, -1], np.s_[[3, 1], :, [1, 2], [3, 4]]):
            np.testing.assert_array_equal(tiles[key], dense[key], err_msg=said)
        halves = {}
        tiles.take_batches([np.arange(5), np.arange(5, 8)], halves.__setitem__)
        np.testing.assert_array_equal(np.concatenate([halves[0], halves[1]]), dense, err_msg=said)


@pytest.mark.parametrize(
    ("function", "value"), [(lt.open_tiles, Asked), (lt.make_grid, Division), (lt.read_manifest, Columns)]
)
def test_a_value_of_options_has_those_of_its_function_in_their_order(function, value) -> None:
    options = [one for one in inspect.signature(function).parameters.values() if one.name != "progress"]
    asked = list(inspect.signature(value).parameters.values())
    options = options[-len(asked) :]
    assert [(one.name, one.default) for one in asked] == [(one.name, one.default) for one in options]
    assert len(inspect.signature(function).parameters) - len(asked) <= 2


@pytest.mark.parametrize("options", [{"size": np.array([8, 8])}, {"scale_boxes": np.array(["x", "y"])}])
def test_what_is_for_images_is_refused_for_volumes_as_an_array_too(options) -> None:
    table = pd.DataFrame({"tile_id": ["t"], "region_id": ["r"], "region_coordinates": ["(0, 0, 1, 4, 4, 3)"]})
    with pytest.raises(lt.ManifestError, match=f"lie in volumes; {next(iter(options))}=array.* is for images"):
        lt.open_tiles(table, {"r": np.zeros((3, 4, 4))}, **options)
