"""Grids over folders of all kinds, in pixels, levels, micrometres and map units; rules against dense computations."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import lazytiles as lt
from lazytiles.manifests.folders import SUFFIXES, find_images, name_images
from lazytiles.manifests.rules import Stain, otsu

RNG = np.random.default_rng(0)


def write_any(path: Path, image: np.ndarray) -> None:
    """An image in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        np.save(path, image)
    elif suffix in (".h5", ".hdf5"):
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["entry/image"], file["labels"] = image, np.arange(3)
    elif suffix == ".zarr":
        pytest.importorskip("zarr").create_array(str(path), data=image, chunks=(16, 16, 3))
    elif suffix in (
        ".tif",
        ".tiff",
        ".btf",
        ".tf2",
        ".tf8",
        ".svs",
        ".ndpi",
        ".scn",
        ".bif",
        ".qptiff",
        ".lsm",
        ".stk",
    ):
        tifffile.imwrite(path, image, tile=(16, 16), photometric="rgb", compression="zlib")
    else:
        plain = Image.fromarray(image).convert("L" if suffix in (".pgm",) else "RGB")
        forms = {".jpe": "JPEG", ".jfif": "JPEG", ".jpf": "JPEG2000", ".jpx": "JPEG2000", ".j2k": "JPEG2000"}
        forms |= {".j2c": "JPEG2000", ".jpc": "JPEG2000", ".dib": "DIB", ".pfm": "PPM", ".pnm": "PPM", ".pgm": "PPM"}
        plain.save(path, forms.get(suffix))


@pytest.mark.leaks(reason="zarr keeps its event loop")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("folder", ["", "a", "a/b/c"])
def test_a_grid_opens_again_whatever_the_suffix_and_depth(suffix: str, folder: str, tmp_path: Path) -> None:
    image = RNG.integers(0, 255, (40, 50, 3), np.uint8)
    if suffix in (".dib", ".pbm", ".pfm", ".qoi", ".ndpi"):
        pytest.skip("no package at hand writes it")
    write_any(tmp_path / folder / f"s 1{suffix}", image)
    (tmp_path / folder / "notes.txt").write_text("no image")
    grid = lt.make_grid(tmp_path, 16, edge="drop")
    assert ("path" in grid) == (suffix != ".tif" or folder == "a/b/c")
    tiles = lt.open_tiles(grid, tmp_path)
    stored = np.asarray(lt.open_region(tmp_path / grid.path[0] if "path" in grid else tmp_path / folder / "s 1.tif"))
    stored = stored.reshape(40, 50, -1)
    for row, tile in zip(grid.itertuples(), tiles, strict=True):
        np.testing.assert_array_equal(tile, stored[row.ymin : row.ymax, row.xmin : row.xmax])
    saved = tmp_path / "grid.csv"
    grid.to_csv(saved, index=False)
    np.testing.assert_array_equal(lt.open_tiles(saved), tiles)


def test_ids_of_deep_folders_tell_images_apart(tmp_path: Path) -> None:
    def ids(*names: str) -> list[tuple[str, str | None]]:
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        for name in names:
            (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "x" / name).touch()
        return [(one.region_id, one.label_id) for one in find_images(tmp_path / "x")]

    assert ids("s.svs", "t.tif") == [("s", None), ("t", None)]
    assert ids("2018/r.tif", "2019/r.tif") == [("r", "2018"), ("r", "2019")]
    assert ids("2018/r.tif", "2018/s.tif") == [("r", "2018"), ("s", "2018")]
    assert ids("x/y/r.tif", "x/z/s.tif") == [("r", None), ("s", None)]
    deep = ids("north/2018/r.tif", "north/2019/r.tif", "south/2018/r.tif")
    assert deep == [("north_r", "2018"), ("north_r", "2019"), ("south_r", "2018")]
    listed = name_images([f"/d/{name}" for name in ("2018/r.tif", "2019/r.tif")])
    assert [(one.place, one.label_id) for one in listed] == [("2018/r.tif", "2018"), ("2019/r.tif", "2019")]
    alone = name_images(["https://me:pw@host/d/a%20b.svs?sig=1", "https://me:pw@host/d/e/c.tif?sig=1"])
    assert [one.place for one in alone] == ["a b.svs", "e/c.tif"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    image = np.zeros((16, 16), np.uint8)
    (tmp_path / "real").mkdir()
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "real/a.tif", image)
    os.symlink(tmp_path / "real", tmp_path / "images/2018")
    os.symlink(tmp_path / "images", tmp_path / "real/back")
    assert [one.place for one in find_images(tmp_path / "images")] == ["2018/a.tif"]


@pytest.mark.leaks(reason="fsspec keeps its systems")
def test_folders_behind_an_address_are_listed(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    images = {"s.svs": (40, 50, 3), "deep/er/t.png": (33, 32, 3), ".hidden/u.tif": (32, 32, 3)}
    for name, shape in images.items():
        write_any(tmp_path / name, RNG.integers(0, 255, shape, np.uint8))
        with fsspec.open(f"memory://grids/{name}", "wb") as file:
            file.write((tmp_path / name).read_bytes())
    local = lt.make_grid(tmp_path, 16)
    for address in ("memory://grids", "memory://grids/"):
        grid = lt.make_grid(address, 16)
        assert grid.equals(local)
        np.testing.assert_array_equal(lt.open_tiles(grid, address)[:], lt.open_tiles(local, tmp_path)[:])
    some = lt.make_grid(["memory://grids/s.svs"], 16)
    np.testing.assert_array_equal(lt.open_tiles(some, "memory://grids")[0], lt.open_tiles(local, tmp_path)[-1 - 11])
    with pytest.raises(lt.ManifestError, match="there are no images"):
        lt.make_grid("memory://grids/deep/er/none", 16)
    fsspec.filesystem("memory").rm("grids", recursive=True)


# -- rules


def write_pyramid(path: Path, image: np.ndarray, steps: tuple[int, ...] = (2, 4, 8)) -> None:
    """An image and its averages, in SubIFDs."""
    with tifffile.TiffWriter(path) as file:
        for step in (1, *steps):
            height, width = (n // step for n in image.shape[:2])
            blocks = image[: height * step, : width * step].reshape(height, step, width, step, -1)
            mean = blocks.mean(axis=(1, 3)).astype(image.dtype).reshape(height, width, *image.shape[2:])
            options: dict[str, Any] = {"subifds": len(steps)} if step == 1 else {"subfiletype": 1}
            file.write(
                mean, tile=(32, 32), compression="zlib", photometric="rgb" if image.ndim == 3 else None, **options
            )


def blobs(size: int, share: float, seed: int, coarse: int = 24) -> np.ndarray:
    """A random mask with smooth borders."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.random((size // coarse + 2, size // coarse + 2)).astype(np.float32))
    field = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))
    return field > np.quantile(field, 1 - share)


GLASS = {"white": (255, 255, 255), "light": (240, 238, 241), "tinted": (236, 226, 205), "green": (214, 232, 210)}
TISSUE = {"eosin": (226, 168, 200), "haematoxylin": (112, 58, 138), "pale": (232, 196, 214)}


def slide(glass: str, tissue: str, fill: str, seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A made slide with a border that the scanner has filled, and where its tissue is."""
    rng = np.random.default_rng(seed)
    mask = blobs(512, 0.25, seed)
    mask[:, :64] = mask[448:] = False
    image = np.where(mask[..., None], TISSUE[tissue], GLASS[glass]) + rng.normal(0, noise, (512, 512, 3))
    image = image.clip(0, 255).astype(np.uint8)
    image[:, :64] = {"black": 0, "white": 255, "none": image[:, :64]}[fill]
    return image, mask


@pytest.mark.parametrize("fill", ["black", "white", "none"])
@pytest.mark.parametrize("tissue", TISSUE)
@pytest.mark.parametrize("glass", GLASS)
def test_tissue_is_told_from_black_fill_and_white_or_tinted_glass(glass: str, tissue: str, fill: str) -> None:
    image, mask = slide(glass, tissue, fill, 1, noise=2)
    found = Stain.of(image[::2, ::2])(image)
    assert (found == mask).mean() > 0.99


def test_glass_alone_has_no_tissue_and_tissue_alone_is_whole() -> None:
    rng = np.random.default_rng(2)
    for colour in GLASS.values():
        image = (colour + rng.normal(0, 2, (128, 128, 3))).clip(0, 255).astype(np.uint8)
        assert Stain.of(image)(image).mean() < 0.01
    deep = np.where(blobs(128, 0.5, 3, 8)[..., None], TISSUE["eosin"], TISSUE["haematoxylin"]).astype(np.uint8)
    deep[:, :32] = 0
    assert Stain.of(deep)(deep)[:, 32:].all()
    assert not Stain.of(deep)(deep)[:, :32].any()
    assert not Stain.of(np.zeros((8, 8, 3), np.uint16))(np.zeros((8, 8, 3), np.uint16)).any()


@pytest.mark.parametrize("rule", ["tissue>0.5", "tissue>0.05", "tissue>=0.9", "tissue<0.25"])
@pytest.mark.parametrize(
    ("glass", "fill", "noise"), [("light", "black", 0), ("tinted", "white", 3), ("white", "none", 3)]
)
def test_tissue_on_a_level_is_tissue_at_full_resolution(
    rule: str, glass: str, fill: str, noise: float, tmp_path: Path
) -> None:
    compare = {">": np.greater, ">=": np.greater_equal, "<": np.less}
    for seed, tissue in enumerate(TISSUE):
        image, _ = slide(glass, tissue, fill, seed, noise)
        write_pyramid(tmp_path / f"{tissue}.tif", image)
        every = lt.make_grid([tmp_path / f"{tissue}.tif"], 64, stride=24)
        dense = Stain.of(image[::2, ::2])(image)
        shares = np.array([dense[t.ymin : t.ymax, t.xmin : t.xmax].mean() for t in every.itertuples()])
        sign = rule[6:].rstrip("0123456789.")
        expected = every.tile_id[compare[sign](shares, float(rule[6 + len(sign) :]))]
        before = lt.counters()["segments_decoded"]
        kept = lt.make_grid([tmp_path / f"{tissue}.tif"], 64, stride=24, keep=rule)
        assert len(set(kept.tile_id) ^ set(expected)) <= (noise > 0) * 2
        assert lt.counters()["segments_decoded"] - before < 256 * 1.5


def test_otsu_is_the_threshold_of_its_definition() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.concatenate([rng.beta(2, 12, 300), rng.beta(9, 3, 200)])
        bins = np.minimum((values * 256).astype(int), 255)
        centres, spreads = (bins + 0.5) / 256, []
        for edge in range(1, 256):
            low, high = centres[bins < edge], centres[bins >= edge]
            spreads.append(len(low) * low.var() + len(high) * high.var() if len(low) and len(high) else np.inf)
        best = np.flatnonzero(np.isclose(spreads, min(spreads), rtol=1e-9)) + 1
        assert otsu(values) == pytest.approx(best.mean() / 256)


def moments(tile: np.ndarray, nodata: float | None) -> dict[str, float]:
    """The measures of a tile by their definition."""
    bad = tile != tile if nodata is None else (tile == nodata) | (tile != tile)
    pixel = bad.reshape(*tile.shape[:2], -1).all(axis=-1)
    empty = ((tile == 0) | (tile != tile)).reshape(*tile.shape[:2], -1).all(axis=-1)
    own = tile[~bad].astype(np.float64)
    found = {"valid": 1 - pixel.mean(), "nodata": (empty if nodata is None else pixel).mean()}
    if not own.size:
        return found | dict.fromkeys(("mean", "std", "min", "max"), np.nan)
    return found | {"mean": own.mean(), "std": own.std(), "min": own.min(), "max": own.max()}


@pytest.mark.parametrize("nodata", [None, -9999.0, 0.0])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("edge", ["shift", "pad"])
def test_measures_are_those_of_full_resolution(
    nodata: float | None, bands: int, edge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    image = rng.normal(100, 20, (150, 170, bands)).astype(np.float32)
    image[blobs(170, 0.4, 5)[:150]] = np.nan if nodata is None else nodata
    image[:20, 30:90, 0] = 0 if nodata is None else nodata
    tag = [] if nodata is None else [(42113, "s", 0, str(nodata), True)]
    stored = image[..., 0] if bands == 1 else image
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        tile=(16, 16),
        extratags=tag,
        photometric="minisblack",
        planarconfig=None if bands == 1 else "contig",
    )
    monkeypatch.setattr("lazytiles.manifests.rules._PART_BYTES", 5000)  # so that tiles lie in many parts
    every = lt.make_grid([tmp_path / "a.tif"], 48, stride=31, edge=edge)
    found = {t.tile_id: moments(image[t.ymin : t.ymax, t.xmin : t.xmax], nodata) for t in every.itertuples()}
    for measure, limit in (("nodata", 0.3), ("valid", 0.6), ("mean", 100.2), ("std", 19.9), ("min", 40), ("max", 160)):
        expected = [name for name, values in found.items() if values[measure] > limit]
        kept = lt.make_grid([tmp_path / "a.tif"], 48, stride=31, edge=edge, keep=f"{measure}>{limit}")
        assert kept.tile_id.to_list() == expected


def test_nodata_is_counted_where_overviews_have_lost_it(tmp_path: Path) -> None:
    image = np.full((256, 256), 1000, np.int16)
    image[::2] = -9999
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        options: dict[str, Any] = {"tile": (64, 64), "extratags": [(42113, "s", 0, "-9999", True)]}
        file.write(image, subifds=1, **options)
        file.write(image[1::4, ::4], subfiletype=1, **options)
    assert not len(lt.make_grid(tmp_path, 64, keep="nodata<0.5"))
    assert len(lt.make_grid(tmp_path, 64, keep="nodata<=0.5 and valid>=0.5 and min>999 and std<=0")) == 16
