"""Small data sets of five kinds, made from a seed: the examples of the documentation run on them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from lazytiles.cli.demo import make_data, smooth
from lazytiles.errors import require

PINK, PURPLE, GLASS = (226, 168, 200), (112, 58, 138), (240, 238, 241)
SHAPES = ("circle", "square", "triangle")


def make_years(folder: Path, seed: int) -> str:
    """Regions of three years with a table of tiles: how much of each is under trees."""
    make_data(folder, seed=seed, regions=12, size=256, tile=32)
    return (
        "Images/<year>/<region>.tif for three years; tiles.csv with 768 tiles, each with the share of trees as target"
    )


def make_photos(folder: Path, seed: int) -> str:
    """JPEG files of several sizes with one object each: its class and its box stand in a table."""
    rows = []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for k in range(300):
        rng = np.random.default_rng([seed, k])
        height, width = (int(n) for n in rng.integers(96, 129, 2))
        kind, size = SHAPES[k % 3], int(rng.integers(32, 64))
        top, left = int(rng.integers(0, height - size)), int(rng.integers(0, width - size))
        photo = rng.uniform(90, 200, 3) + rng.normal(0, 8, (height, width, 3))
        y, x = (np.indices((size, size)) + 0.5) / size * 2 - 1
        inside = {
            "circle": y**2 + x**2 <= 1,
            "square": np.ones((size, size), bool),
            "triangle": np.abs(x) <= (y + 1) / 2,
        }
        photo[top : top + size, left : left + size][inside[kind]] = rng.uniform(0, 60, 3)
        name = f"photo-{k:03}.jpg"
        Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(folder / "images" / name, quality=90)
        rows.append((name, kind, left, top, left + size, top + size))
    table = pd.DataFrame(rows, columns=["file", "shape", "left", "top", "right", "bottom"])
    table.to_csv(folder / "photos.csv", index=False)
    return "images/*.jpg, 300 photos of several sizes; photos.csv with a class and a box for each"


def make_arrays(folder: Path, seed: int) -> str:
    """Samples that are arrays already: stripes of three directions, as ``.npy``, HDF5 and Zarr."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    labels = rng.integers(0, 3, 600)
    y, x = np.indices((32, 32))
    angles = labels * np.pi / 3 + rng.normal(0, 0.1, 600)
    ways = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    waves = np.sin(ways * rng.uniform(0.6, 1.1, 600)[:, None, None] + rng.uniform(0, 6, 600)[:, None, None])
    images = (100 + 60 * waves + rng.normal(0, 25, waves.shape)).clip(0, 255).astype(np.uint8)[..., None]
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    made = ["images.npy", "labels.npy"]
    if find_spec("h5py"):
        with require("h5py", extra="hdf5").File(folder / "images.h5", "w") as file:
            file.create_dataset("images", data=images, chunks=(32, 32, 32, 1), compression="gzip")
        made.append("images.h5 (its data set is images)")
    if find_spec("zarr"):
        require("zarr", extra="zarr").save_array(str(folder / "images.zarr"), images)
        made.append("images.zarr")
    return f"{', '.join(made)}: 600 images of 32 x 32 with one band, and their classes"


def make_slides(folder: Path, seed: int) -> str:
    """Stained slides as pyramids of three levels, and masks of where their cells stand close."""
    for name in ("slides", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for k in range(6):
        rng, size = np.random.default_rng([seed, k]), 768
        tissue, dense = smooth(rng, size, 160) > 0.35, smooth(rng, size, 80) > 0.6
        often = np.where(tissue, np.where(dense, 0.3, 0.03), 0)
        cells = np.kron(rng.random((size // 4, size // 4)) < often[::4, ::4], np.ones((4, 4), bool))
        slide = np.where(tissue[..., None], PINK, GLASS)
        slide = np.where((cells & tissue)[..., None], PURPLE, slide) + rng.normal(0, 6, (size, size, 3))
        slide = slide.clip(0, 255).astype(np.uint8)
        with tifffile.TiffWriter(folder / "slides" / f"s{k}.tif") as file:
            # At half a micrometre a pixel, and its halves in SubIFDs.
            for level, each in enumerate((1, 2, 4)):
                file.write(
                    slide.reshape(size // each, each, size // each, each, 3).mean((1, 3)).astype(np.uint8),
                    tile=(128, 128),
                    photometric="rgb",
                    compression="zlib",
                    resolution=(20000 / each, 20000 / each),
                    resolutionunit="CENTIMETER",
                    subifds=0 if level else 2,
                    subfiletype=1 if level else 0,
                )
        mask = (tissue & dense).astype(np.uint8)
        tifffile.imwrite(folder / "masks" / f"s{k}.tif", mask, tile=(128, 128), compression="zlib")
    return "slides/s0.tif to s5.tif, pyramids of three levels; masks/ with 1 where cells stand close"


def make_scans(folder: Path, seed: int) -> str:
    """Scan volumes as a folder of slices for each patient, and masks of the lesions in them."""
    for k in range(6):
        rng, shape = np.random.default_rng([seed, k]), (16 + 2 * k % 6, 64, 80)
        grid = np.indices(shape)
        lesions = np.zeros(shape, bool)
        for centre in rng.uniform(0.2, 0.8, (4, 3)) * shape:
            lesions |= sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) < rng.uniform(16, 64)
        scan = rng.normal(1000, 250, shape) + 1000 * lesions
        for name, volume in (("images", scan.clip(0).astype(np.uint16)), ("masks", lesions.astype(np.uint8))):
            target = folder / name / f"patient-{k}"
            target.mkdir(parents=True, exist_ok=True)
            for z, plane in enumerate(volume):
                tifffile.imwrite(target / f"slice_{z}.tif", plane, compression="zlib")
    return "images/<patient>/slice_<z>.tif of six patients, and masks/<patient>/ with their lesions"


# What is printed to be copied, with the folder as ``{0}``; the pages under docs/start go on from there.
OPENED = {
    "years": """\
import lazytiles as lt
tiles = lt.open_tiles("{0}/tiles.csv", "{0}/Images", frames=[2016, 2017, 2018])
images, shares = lt.KerasAdapter(tiles, batch_size=32, normalize=True)[0]""",
    "photos": """\
import lazytiles as lt
photos = lt.open_tiles("{0}/photos.csv", "{0}/images", path="{{file}}", target="shape", size=(64, 64))
images, classes = lt.KerasAdapter(photos, batch_size=32, normalize=True)[0]""",
    "arrays": """\
import numpy as np
import lazytiles as lt
samples = lt.MultiSourceArray([lt.open_region("{0}/images.npy")], labels=[np.load("{0}/labels.npy")])
images, classes = lt.KerasAdapter(samples, batch_size=32, normalize=True)[0]""",
    "slides": """\
import lazytiles as lt
grid = lt.make_grid("{0}/slides", 64)
tiles = lt.open_tiles(grid, "{0}", path="slides/{{region_id}}.tif", masks="masks/{{region_id}}.tif")
images, masks = lt.KerasAdapter(tiles, batch_size=32, normalize=True)[0]""",
    "scans": """\
import lazytiles as lt
names = [f"patient-{{k}}" for k in range(6)]
volumes, masks = ({{n: lt.stack_regions(f"{0}/{{kind}}/{{n}}") for n in names}} for kind in ("images", "masks"))
patches = lt.open_volumes(lt.make_grid(volumes, (8, 32, 32)), volumes, masks=masks)
images, lesions = lt.KerasAdapter(patches, batch_size=8)[0]""",
}
# The public name that opens each kind.
VERBS = {
    "years": "open_tiles",
    "photos": "open_tiles",
    "arrays": "MultiSourceArray",
    "slides": "make_grid",
    "scans": "open_volumes",
}

# What --data takes; each makes its files in a folder from a seed, and says what they are.
KINDS: dict[str, Callable[[Path, int], str]] = {
    "years": make_years,
    "photos": make_photos,
    "arrays": make_arrays,
    "slides": make_slides,
    "scans": make_scans,
}


def make(kind: str, folder: Path | str, *, seed: int = 0) -> str:
    """Make one kind of data in a folder, the same files for the same seed, and say in a line what they are.

    >>> make("arrays", "arrays").startswith("images.npy, labels.npy")
    True
    """
    return KINDS[kind](Path(folder), seed)
