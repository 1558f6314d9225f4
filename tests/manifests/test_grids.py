"""Grids over folders of all kinds, in pixels, levels, micrometres and map units; rules against dense computations."""

from __future__ import annotations

import itertools
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
@pytest.mark.parametrize(
    ("suffix", "folder"),
    [*zip(SUFFIXES, itertools.cycle(["", "a", "a/b/c"]), strict=False), (".tif", "a"), (".tif", "b/c")],
)
def test_a_grid_opens_again_whatever_the_suffix_and_depth(suffix: str, folder: str, tmp_path: Path) -> None:
    image = RNG.integers(0, 255, (40, 50, 3), np.uint8)
    if suffix in (".dib", ".pbm", ".pfm", ".qoi"):
        pytest.skip("no package at hand writes it")
    write_any(tmp_path / folder / f"s 1{suffix}", image)
    (tmp_path / folder / "notes.txt").write_text("no image")
    grid = lt.make_grid(tmp_path, 16, edge="drop")
    assert ("path" in grid) == (suffix != ".tif" or folder == "b/c")
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
        with fsspec.open(f"memory://listed/{name}", "wb") as file:
            file.write((tmp_path / name).read_bytes())
    local = lt.make_grid(tmp_path, 16)
    for address in ("memory://listed", "memory://listed/"):
        grid = lt.make_grid(address, 16)
        assert grid.equals(local)
        np.testing.assert_array_equal(lt.open_tiles(grid, address)[:], lt.open_tiles(local, tmp_path)[:])
    some = lt.make_grid(["memory://listed/s.svs"], 16)
    np.testing.assert_array_equal(lt.open_tiles(some, "memory://listed")[0], lt.open_tiles(local, tmp_path)[-1 - 11])
    with pytest.raises(lt.ManifestError, match="there are no images"):
        lt.make_grid("memory://listed/deep/er/none", 16)
    fsspec.filesystem("memory").rm("listed", recursive=True)


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


PHOTO = np.full((60, 160, 3), TISSUE["eosin"], np.uint8)  # in which all is tissue
APERIO = {"description": "Aperio Image Library v11.2.1 \nlevel"}


def leica(name: str, pages: list[tuple[int, int, int]]) -> str:
    """An image of a Leica document."""
    sizes = "".join(f'<dimension sizeX="{x}" sizeY="{y}" r="{r}" ifd="{k}"/>' for r, (k, y, x) in enumerate(pages))
    _, y, x = pages[0]
    view = f'<view sizeX="{x * 500}" sizeY="{y * 500}" offsetX="0" offsetY="0"/>'
    return f'<image name="{name}"><pixels sizeX="{x}" sizeY="{y}">{sizes}</pixels>{view}</image>'


def layout(kind: str, levels: list[np.ndarray]) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """The pages of a slide as a scanner lays them out."""
    tiled: dict[str, Any] = {"tile": (64, 64)}
    first, *others = levels
    if kind == "aperio":
        macro = (PHOTO, {"description": "Aperio Image Library v11.2.1 \nmacro 160x60", "subfiletype": 9})
        return [(level, {**tiled, **APERIO}) for level in levels] + [macro]
    if kind == "hamamatsu":
        lenses = [*zip(levels, (40.0, 20.0, 10.0, 5.0), strict=True), (PHOTO, -1.0)]
        tags = {lens: [(65420, 4, 1, 1, True), (65421, 11, 1, lens, True)] for _, lens in lenses}
        return [(page, {"extratags": tags[lens]}) for page, lens in lenses]
    if kind == "leica":
        places = [(k, *level.shape[:2]) for k, level in enumerate(levels, 1)]
        images = leica("photo", [(0, 60, 160)]) + leica("slide", places)
        said = '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="80000" sizeY="30000">'
        return [(PHOTO, {"description": f"{said}{images}</collection></scn>"}), *((one, tiled) for one in levels)]
    if kind == "ventana":
        xmp = [(700, 1, None, b'<iScan Magnification="40" ScanRes="0.25"/>', True)]
        label = (PHOTO, {"description": "Label_Image", "extratags": xmp})
        return [label, *((one, {**tiled, "description": f"level={k} mag=40"}) for k, one in enumerate(levels))]
    if kind == "philips":  # levels are padded with white to whole tiles
        padded = [np.pad(one, [(0, -n % 64) for n in one.shape[:2]] + [(0, 0)], constant_values=255) for one in others]
        spacing = '<Attribute Name="DICOM_PIXEL_SPACING">"{0:g}" "{0:g}"</Attribute>'
        parts = (spacing.format(0.00025 * 2**k) for k in range(len(levels)))
        each = "".join(f'<DataObject ObjectType="PixelDataRepresentation">{part}</DataObject>' for part in parts)
        said = {
            "software": "Philips DP v1.0",
            "description": f'<DataObject ObjectType="DPUfsImport">{each}</DataObject>',
        }
        pages = [(first, {**tiled, **said}), *((one, {**tiled, "subfiletype": 1}) for one in padded)]
        return [*pages, (PHOTO, {"description": "Macro"})]
    overviews = [(one, {**tiled, "subfiletype": 1}) for one in others]
    return [(first, tiled), (PHOTO, {"subfiletype": 1}), *overviews, (PHOTO[:, :50], {})]


@pytest.mark.parametrize("rule", ["tissue>0.5", "tissue<=0.1", "tissue>0.2 and std>20"])
@pytest.mark.parametrize("kind", ["aperio", "hamamatsu", "leica", "ventana", "philips", "overviews"])
def test_tissue_is_judged_on_levels_of_the_same_image_alone(kind: str, rule: str, tmp_path: Path) -> None:
    image, _ = slide("light", "eosin", "none", 3, noise=0)
    image = image[:448, :384]  # of which the lower levels have to be padded to whole tiles
    levels = [image[::step, ::step] for step in (1, 2, 4, 8)]
    suffix = {"hamamatsu": "ndpi", "aperio": "svs", "leica": "scn", "ventana": "bif", "philips": "tiff"}.get(
        kind, "tif"
    )
    with tifffile.TiffWriter(tmp_path / f"a.{suffix}") as file:
        for page, options in layout(kind, levels):
            file.write(np.ascontiguousarray(page), photometric="rgb", metadata=None, compression="zlib", **options)
    every = lt.make_grid(tmp_path, 64, stride=40)
    dense = Stain.of(image)(image)
    tiles = [(slice(t.ymin, t.ymax), slice(t.xmin, t.xmax)) for t in every.itertuples()]
    shares = np.array([dense[tile].mean() for tile in tiles])
    deviations = np.array([image[tile].std() for tile in tiles])
    expected = {"tissue>0.5": shares > 0.5, "tissue<=0.1": shares <= 0.1}.get(rule, (shares > 0.2) & (deviations > 20))
    kept = lt.make_grid(tmp_path, 64, stride=40, keep=rule)
    assert kept.tile_id.to_list() == every.tile_id[expected].to_list()
    assert 0 < expected.sum() < len(expected)


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
    monkeypatch.setattr("lazytiles.manifests.rules._PART_BYTES", 20_000)  # so that tiles lie in many parts
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


def test_measures_of_volumes_and_stacks_count_all_their_slices(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    volume = rng.integers(0, 255, (7, 60, 70), np.uint8)
    volume[blobs(70, 0.5, 7)[None, :60].repeat(7, 0)] = 0
    tifffile.imwrite(tmp_path / "v.tif", volume, tile=(16, 16), photometric="minisblack", metadata=None)
    every = lt.make_grid(tmp_path, (3, 32, 32), stride=(2, 20, 20))
    tiles = [volume[t.zmin : t.zmax, t.ymin : t.ymax, t.xmin : t.xmax] for t in every.itertuples()]
    for rule, kept in (
        ("nodata<0.5", [(t == 0).mean() < 0.5 for t in tiles]),
        ("std>70", [t.std() > 70 for t in tiles]),
    ):
        assert lt.make_grid(tmp_path, (3, 32, 32), stride=(2, 20, 20), keep=rule).equals(
            every[kept].reset_index(drop=True)
        )
        assert 0 < sum(kept) < len(kept)
    colours = np.where((volume > 0)[..., None], TISSUE["eosin"], GLASS["light"]).astype(np.uint8)
    (tmp_path / "rgb").mkdir()
    tifffile.imwrite(tmp_path / "rgb/v.tif", colours, tile=(16, 16), photometric="rgb", metadata=None)
    kept = lt.make_grid(tmp_path / "rgb", (3, 32, 32), stride=(2, 20, 20), keep="tissue>0.5")
    assert kept.equals(every[[(tile > 0).mean() > 0.5 for tile in tiles]].reset_index(drop=True))
    shutil.rmtree(tmp_path / "rgb")
    stack = lt.make_grid(tmp_path, 32, page="all", keep="mean>60")
    means = {
        t.tile_id: volume[:, t.ymin : t.ymax, t.xmin : t.xmax].mean() for t in lt.make_grid(tmp_path, 32).itertuples()
    }
    assert stack.tile_id.to_list() == [name for name, mean in means.items() if mean > 60]


@pytest.mark.leaks(reason="zarr keeps its event loop")
def test_stores_of_tiles_in_the_folder_are_no_images(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("zarr")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((32, 32, 3), np.uint8))
    grid = lt.make_grid(tmp_path, 16)
    for suffix in ("h5", "zarr"):
        lt.export(lt.open_tiles(grid, tmp_path), tmp_path / f"tiles.{suffix}")
    assert lt.make_grid(tmp_path, 16).equals(grid)


@pytest.mark.leaks(reason="zarr keeps its event loop")
def test_each_array_of_a_group_is_an_image(tmp_path: Path) -> None:
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    image = RNG.integers(0, 255, (32, 48), np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["entry/left"], file["right"], file["time"] = image, image[::-1], np.arange(3)
    group = zarr.open_group(str(tmp_path / "b.zarr"), mode="w")
    group.create_array("deep/left", data=image)
    group.create_array("right", data=image[::-1])
    grid = lt.make_grid(tmp_path, (32, 48))
    assert grid.tile_id.to_list() == ["a_entry_left_0_0", "a_right_0_0", "b_deep_left_0_0", "b_right_0_0"]
    tiles = lt.open_tiles(grid, tmp_path)
    np.testing.assert_array_equal(tiles[:, ..., 0], [image, image[::-1]] * 2)


# -- levels, micrometres, map units

BOX = ["xmin", "ymin", "xmax", "ymax"]


def write_placed(path: Path, image: np.ndarray, transform: Any, crs: str | None = "EPSG:32633") -> None:
    """A GeoTIFF by rasterio."""
    rasterio = pytest.importorskip("rasterio")
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"height": image.shape[0], "width": image.shape[1], "count": 1, "dtype": image.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape) as file:
        file.write(image, 1)


def ground(transform: Any, height: int, width: int) -> np.ndarray:
    """An image whose pixels say where on the ground they lie."""
    y, x = np.indices((height, width)) + 0.5
    east, north = transform @ (x, y)
    return ((east - 400_000) // 10 + 1000 * ((north - 4_990_000) // 10)).astype(np.int32)


@pytest.mark.parametrize("step", [10.0, -10.0])
def test_a_grid_on_the_map_is_one_place_in_all_frames(step: float, tmp_path: Path) -> None:
    affine, rasterio = pytest.importorskip("affine"), pytest.importorskip("rasterio")
    places = {
        "2018": affine.Affine(10, 0, 400_000, 0, -step, 5_000_000),
        "2019": affine.Affine(10, 0, 400_070, 0, -step, 5_000_000 + 3 * step),
    }
    for year, transform in places.items():
        write_placed(tmp_path / year / "r.tif", ground(transform, 90, 110), transform)
    grid = lt.make_grid(tmp_path, (32, 24), edge="drop", coordinates="map")
    assert len(grid) == 2 * (87 // 32) * (103 // 24)
    for row in grid.itertuples():
        with rasterio.open(tmp_path / str(row.label_id) / "r.tif") as file:
            (x0, y0), (x1, y1) = (~file.transform @ place for place in ((row.xmin, row.ymin), (row.xmax, row.ymax)))
            part = [min(y0, y1), min(x0, x1), abs(y1 - y0), abs(x1 - x0)]
            assert part == pytest.approx(np.round(part))
            y, x, height, width = np.round(part).astype(int)
            tile = file.read(1)[y : y + height, x : x + width]
        corner = affine.Affine(10, 0, row.xmin, 0, -step, row.ymax if step > 0 else row.ymin)
        np.testing.assert_array_equal(tile, ground(corner, 32, 24))
    tiles = lt.open_tiles(grid, tmp_path, frames=["2018", "2019"], coordinates="map")
    for k, row in enumerate(tiles.table.itertuples()):
        corner = affine.Affine(10, 0, row.xmin, 0, -step, row.ymax if step > 0 else row.ymin)
        np.testing.assert_array_equal(tiles[k, ..., 0], [ground(corner, 32, 24)] * 2)
    first = {str(year): rows[BOX].reset_index(drop=True) for year, rows in grid.groupby("label_id", observed=True)}
    assert first["2018"].equals(first["2019"])


def test_a_rule_on_the_map_is_judged_on_each_frames_own_pixels(tmp_path: Path) -> None:
    affine = pytest.importorskip("affine")
    for year, east in (("2018", 0), ("2019", 70)):
        transform = affine.Affine(10, 0, 400_000 + east, 0, -10, 5_000_000)
        image = ground(transform, 64, 128)
        write_placed(tmp_path / year / "r.tif", np.where(image % 1000 >= 39, 7, 0).astype(np.uint8), transform)
    every = lt.make_grid(tmp_path, 32, edge="drop", coordinates="map")
    kept = lt.make_grid(tmp_path, 32, edge="drop", coordinates="map", keep="min>0")
    assert set(kept.xmin) == {east for east in every.xmin if east >= 400_390}
    assert 0 < len(kept) < len(every)


def test_images_without_a_common_place_are_named(tmp_path: Path) -> None:
    affine = pytest.importorskip("affine")
    image, north_up = np.zeros((40, 40), np.uint8), affine.Affine(10, 0, 0, 0, -10, 0)
    tifffile.imwrite(tmp_path / "plain.tif", image)
    with pytest.raises(lt.ManifestError, match=r"plain\.tif: does not say where on the map it lies"):
        lt.make_grid(tmp_path, 16, coordinates="map")
    (tmp_path / "plain.tif").unlink()
    write_placed(tmp_path / "turned.tif", image, north_up @ affine.Affine.rotation(10))
    with pytest.raises(lt.ManifestError, match=r"turned\.tif: is rotated on its map"):
        lt.make_grid(tmp_path, 16, coordinates="map")
    (tmp_path / "turned.tif").unlink()
    write_placed(tmp_path / "1/a.tif", image, north_up, "EPSG:32633")
    write_placed(tmp_path / "2/a.tif", image, north_up, "EPSG:32634")
    with pytest.raises(lt.ManifestError, match=r"1/a\.tif lies on EPSG:32633, .*2/a\.tif on EPSG:32634"):
        lt.make_grid(tmp_path, 16, coordinates="map")
    write_placed(tmp_path / "2/a.tif", image, affine.Affine(10, 0, 9000, 0, -10, 0), "EPSG:32633")
    with pytest.raises(lt.ManifestError, match=r"1/a\.tif and .*2/a\.tif share no ground"):
        lt.make_grid(tmp_path, 16, coordinates="map")


def test_a_level_is_divided_in_its_own_pixels_or_in_those_of_level_0(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tif", np.zeros((333, 402, 3), np.uint8))
    for level in range(4):
        shape = lt.open_region(tmp_path / "a.tif", level=level).shape[:2]
        own, base = (lt.make_grid(tmp_path, 20, level=level, coordinates=where) for where in (None, "base"))
        assert own.equals(lt.make_grid({"a": shape}, 20))
        scale = np.array([402 / shape[1], 333 / shape[0]] * 2)
        np.testing.assert_array_equal(base[BOX], np.round(own[BOX] * scale))
        assert base[["xmax", "ymax"]].max().tolist() == [402, 333]
    image = np.zeros((333, 402, 3), np.uint8)
    image[:160] = 200
    write_pyramid(tmp_path / "a.tif", image)
    for where in (None, "base"):
        kept = lt.make_grid(tmp_path, 20, level=2, coordinates=where, keep="mean>199")
        assert kept.ymin.max() * (1 if where else 4) == 80


def test_micrometres_are_counted_on_each_slide_by_its_own_scale(tmp_path: Path) -> None:
    scales = {"a": 0.25, "b": 0.499, "c": 1.0}
    for name, mpp in scales.items():
        options: dict[str, Any] = {"resolution": (10000 / mpp, 10000 / mpp), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((700, 900, 3), np.uint8), tile=(64, 64), **options)
    grid = lt.make_grid(tmp_path, (100, 120), stride=80, mpp=0.5)
    for name, mpp in scales.items():
        boxes = grid[grid.region_id == name][BOX].to_numpy()
        height, width = boxes[0, 3] - boxes[0, 1], boxes[0, 2] - boxes[0, 0]
        assert 0 <= height - 100 * 0.5 / mpp < 1 > width - 120 * 0.5 / mpp >= 0
        expected = lt.make_grid({name: (700, 900)}, (int(height), int(width)), stride=round(80 * 0.5 / mpp))
        np.testing.assert_array_equal(boxes, expected[BOX])
    tifffile.imwrite(tmp_path / "d.tif", np.zeros((700, 900, 3), np.uint8))
    with pytest.raises(lt.ManifestError, match=r"d\.tif: does not say how many micrometres .* pass source_mpp="):
        lt.make_grid(tmp_path, 100, mpp=0.5)
    told = lt.make_grid([tmp_path / "d.tif"], 100, mpp=0.5, source_mpp=0.25)
    assert told[BOX].equals(lt.make_grid([tmp_path / "d.tif"], 200)[BOX])


def test_the_page_that_is_asked_for_is_divided(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((64, 64), np.uint8))
        file.write(np.full((32, 48), 3, np.uint8))
    assert len(lt.make_grid(tmp_path, 16)) == 16
    assert len(lt.make_grid(tmp_path, 16, page=1)) == 6
    assert len(lt.make_grid(tmp_path, 16, page=1, keep="mean>=3")) == 6
    region = lt.open_region(tmp_path / "a.tif", page=1)
    assert len(lt.make_grid([region], 16, keep="mean>=3")) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinates": "metres"}, "coordinates must be one of pixels, base, map, not 'metres'"),
        ({"mpp": 0.5, "level": 1}, "mpp= is micrometres a pixel, above 0, and its boxes are in pixels of level 0"),
        ({"mpp": 0.5, "coordinates": "map"}, "its boxes are in pixels of level 0"),
        ({"mpp": 0}, "above 0"),
        ({"size": (4, 8, 8), "level": 1}, "boxes in their own pixels, without coordinates=, level= and mpp="),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lt.make_grid({"a": (64, 64)}, **{"size": 16, **options})
