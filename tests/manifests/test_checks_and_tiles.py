"""Random manifests: `open_tiles` gives what an oracle cuts, and `check` says yes just where that succeeds."""

from __future__ import annotations

import io
import pickle
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import event, given
from hypothesis import strategies as st
from PIL import Image

import lazytiles as lt
from lazytiles.manifests.checks import check

LABELS = ("2016", "2017", "2018")
FAULTS = (
    "none", "none", "no file", "no row", "outside", "far outside", "other dtype", "other bands", "cut file",
    "no image", "mask size", "no mask", "mask dtype", "window size", "frame size", "twice", "no box", "no first row",
)  # fmt: skip


class WrongError(Exception):
    """The oracle finds that this cannot be read."""


class World:
    """A folder of images, what they hold, a manifest over them, and how it is opened."""

    def __init__(self, draw: Any, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, np.ndarray | None] = {}  # None: there, and not readable
        one_of = lambda *values: draw(st.sampled_from(values))  # noqa: E731
        self.style = one_of("label", "path", "columns")
        self.frames = one_of(None, "each", "2017", ["2016", "2017"], ["2018", "2016"])
        self.whole = one_of(False, False, False, True)
        labels = LABELS if self.frames is not None or one_of(False, True) else LABELS[:1]
        rng = np.random.default_rng(draw(st.integers(0, 999)))
        samples = one_of(1, 3)
        equal = self.whole and one_of(True, False)
        rows = []
        extents = {name: (24, 20) if equal else tuple(rng.integers(18, 30, 2).tolist()) for name in "abc"}
        for tile in range(draw(st.integers(1, 6))):
            region = one_of("a", "b", "c")
            height, width = extents[region]
            x, y = int(rng.integers(0, width - 6)), int(rng.integers(0, height - 5))
            fold = tile % 2
            for label in labels:
                site, name = label[::-1], f"{region}{label[-1]}.tif"
                row = {"tile_id": f"t{tile}", "region_id": region, "label_id": label, "fold": fold, "target": tile}
                row |= {"site": site, "name": name, "box": (x, y, x + 6, y + 5), "mask": f"{region}_mask.tif"}
                row["file"] = f"{site}/{name}" if self.style != "label" else f"{label}/{region}.tif"
                rows.append(row)
        for row in rows:
            if row["file"] not in self.images:
                self.put(row["file"], rng.integers(0, 255, (*extents[row["region_id"]], samples), np.uint8))
            if row["mask"] not in self.images:
                self.put(row["mask"], rng.integers(0, 5, (*extents[row["region_id"]], 1), np.uint8))
        self.rows = rows
        self.options: dict[str, Any] = {
            "frames": self.frames,
            "path": {"label": None, "path": None, "columns": "{site}/{name}"}[self.style],
            "masks": one_of(None, None, "{mask}"),
            "size": one_of(None, (7, 9)),
            "resample": "nearest",
            "pad": None if self.whole else one_of(None, "edge", "constant"),
            "bands": one_of(None, None, [0], [-1, 0], "rgb"),
            "gray": False,
            "missing": one_of("raise", "fill"),
            "where": one_of(None, None, {"fold": 1}, {"fold": lambda column: column == 0}, {"label_id": "2016"}),
        }
        if self.options["bands"] is None:
            self.options["gray"] = one_of(False, False, True)
        for _ in range(one_of(0, 1, 1, 2)):
            self.spoil(one_of(*FAULTS), rng, one_of)

    def put(self, name: str, image: np.ndarray) -> None:
        self.images[name] = image
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        planar = {"planarconfig": "contig", "photometric": "rgb"} if image.shape[2] > 1 else {}
        shown = image if image.shape[2] > 1 else image[..., 0]
        tifffile.imwrite(self.folder / name, shown, compression="zlib", rowsperstrip=99, metadata=None, **planar)

    def spoil(self, fault: str, rng: np.random.Generator, one_of: Any) -> None:
        event(fault)
        row = self.rows[int(rng.integers(len(self.rows)))]
        file, mask = row["file"], row["mask"]
        image, tile = self.images.get(file), [other for other in self.rows if other["tile_id"] == row["tile_id"]]
        if fault in ("no file", "no mask"):
            (self.folder / (file if fault == "no file" else mask)).unlink(missing_ok=True)
            self.images.pop(file if fault == "no file" else mask, None)
        elif fault == "no row" and len(self.rows) > 1:
            self.rows.remove(row)
        elif fault == "no first row" and len(self.rows) > 1:
            self.rows.pop(0)
        elif fault in ("outside", "far outside", "window size"):
            by = {"outside": (-3, -3), "far outside": (100, 100), "window size": (0, 0)}[fault]
            x0, y0, x1, y1 = row["box"]
            for other in tile:
                other["box"] = (x0 + by[0], y0 + by[1], x1 + by[0] + (fault == "window size"), y1 + by[1])
        elif fault == "other dtype" and image is not None:
            self.put(file, image.astype(np.uint16))
        elif (
            fault == "other bands" and image is not None and self.options["bands"] is None and not self.options["gray"]
        ):
            self.put(file, np.repeat(image[..., :1], 4 - image.shape[2], axis=2))
        elif fault == "frame size" and image is not None:
            self.put(file, np.pad(image, ((0, 3), (0, 0), (0, 0))))
        elif fault in ("cut file", "no image") and image is not None:
            data = (self.folder / file).read_bytes()
            with tifffile.TiffFile(self.folder / file) as tiff:
                end = tiff.pages[0].dataoffsets[0] + tiff.pages[0].databytecounts[0]
            tags_first = end == len(data)
            cut = data[:-5] if tags_first or fault == "no image" else data[:9]
            (self.folder / file).write_bytes(cut if fault == "cut file" else b"nothing of use")
            self.images[file] = None
        elif fault == "mask size" and self.images.get(mask) is not None:
            self.put(mask, self.images[mask][::2])
        elif fault == "mask dtype" and self.images.get(mask) is not None:
            self.put(mask, self.images[mask].astype(np.int16))
        elif fault == "twice":
            self.rows.append(dict(row))
        elif fault == "no box" and not self.whole:
            row["box"] = "nowhere"

    @property
    def table(self) -> pd.DataFrame:
        table = pd.DataFrame(self.rows)
        drop = ["box", *([] if self.style == "columns" else ["site", "name"]), *(["file"] * (self.style != "path"))]
        if not self.whole:
            table["region_coordinates"] = [str(box) for box in table["box"]]
        return table.drop(columns=drop).rename(columns={"file": "path"})

    def samples(self) -> list[dict[str, Any]]:
        """The rows of the samples, by the rules in words."""
        rows, frames = self.rows, self.frames
        if any(count > 1 for count in Counter((row["tile_id"], row["label_id"]) for row in rows).values()):
            raise WrongError("twice")
        boxes = {(row["tile_id"], row["box"]) for row in rows}
        if not self.whole and ("nowhere" in [row["box"] for row in rows] or len(boxes) > len(dict(boxes))):
            raise WrongError("boxes")
        if self.options["pad"] is None and not self.whole and any(min(row["box"]) < 0 for row in rows):
            raise WrongError("begins before pixel 0")
        used = rows
        if frames not in (None, "each"):
            asked = [frames] if isinstance(frames, str) else frames
            used = [row for row in rows if row["label_id"] == asked[-1]]
            with_last = {row["tile_id"] for row in used}
            if not used or any(row["label_id"] in asked and row["tile_id"] not in with_last for row in rows):
                raise WrongError("no last frame")
        where = self.options["where"]
        for column, wanted in (where or {}).items():
            wanted = 0 if callable(wanted) else wanted
            used = [row for row in used if row[column] == wanted]
        if not used:
            raise WrongError("keeps none")
        if frames is None and len({row["tile_id"] for row in used}) < len(used):
            raise WrongError("several rows")
        return used

    def image_of(self, row: dict[str, Any], label: str) -> np.ndarray | None:
        """What a frame of a sample shows; None where it may be missing."""
        own = next((one for one in self.rows if (one["tile_id"], one["label_id"]) == (row["tile_id"], label)), None)
        name = f"{label}/{row['region_id']}.tif" if self.style == "label" else own and own["file"]
        if name is None or name not in self.images:
            if self.options["missing"] == "raise":
                raise WrongError("missing")
            return None
        if self.images[name] is None:
            raise WrongError("unreadable")
        return self.images[name]

    def expected(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Tiles and mask tiles, by the plainest means."""
        timed = isinstance(self.frames, list)
        tiles, masks, kinds, windows, shown = [], [], set(), set(), 0
        for row in self.samples():
            stack = [self.image_of(row, label) for label in (self.frames if timed else [row["label_id"]])]
            there = [image for image in stack if image is not None]
            mask = self.images.get(row["mask"]) if self.options["masks"] else None
            if self.options["masks"] and mask is None:
                raise WrongError("no mask")
            shapes = {image.shape[:2] for image in there}
            if len(shapes) > 1 and not (self.whole and self.options["size"]):
                raise WrongError("frames of several shapes")
            if mask is not None and there and mask.shape[:2] != there[-1].shape[:2]:
                raise WrongError("mask of another shape")
            kinds |= {(image.shape[2], image.dtype) for image in there}
            windows |= shapes if self.whole else {(row["box"][2] - row["box"][0], row["box"][3] - row["box"][1])}
            shown += len(there)
            tiles.append([None if image is None else self.cut(image, row) for image in stack])
            masks.append((None, None) if mask is None else (mask.dtype, self.cut(mask, row, plain=True)))
        bands, counts = self.options["bands"], {samples for samples, _ in kinds}
        settled = self.options["gray"] or bands in ("rgb", [0])
        if len({dtype for _, dtype in kinds}) > 1 or len({dtype for dtype, _ in masks}) > 1 or not shown:
            raise WrongError("kinds of images")
        if len(counts) > 1 and not settled:
            raise WrongError("numbers of bands")
        if self.options["size"] is None and len(windows) > 1:
            raise WrongError("sizes")
        like = next(cut for stack in tiles for cut in stack if cut is not None)
        dense = np.stack([np.stack([np.zeros_like(like) if cut is None else cut for cut in stack]) for stack in tiles])
        return dense if timed else dense[:, 0], np.stack([m for _, m in masks]) if self.options["masks"] else None

    def cut(self, image: np.ndarray, row: dict[str, Any], *, plain: bool = False) -> np.ndarray:
        far, (height, width) = 30, image.shape[:2]
        x0, y0, x1, y1 = (0, 0, width, height) if self.whole else row["box"]
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise WrongError("meets nothing")
        if min(x0, y0) < 0 or x1 > width or y1 > height:
            if self.options["pad"] is None:
                raise WrongError("outside")
            image = np.pad(image, ((far, far), (far, far), (0, 0)), mode=self.options["pad"])
            x0, y0, x1, y1 = (n + far for n in (x0, y0, x1, y1))
        tile = image[y0:y1, x0:x1]
        if not plain and self.options["gray"] and tile.shape[2] > 1:
            tile = ((tile.astype(int)[..., :3] @ [299, 587, 114] + 500) // 1000).astype(tile.dtype)[..., None]
        if not plain and self.options["bands"]:
            bands = self.options["bands"] if self.options["bands"] != "rgb" else [0, 1, 2][: tile.shape[2]]
            tile = tile[..., bands]
            tile = np.repeat(tile, 3, axis=2) if self.options["bands"] == "rgb" and tile.shape[2] == 1 else tile
        if self.options["size"]:
            size = self.options["size"][::-1]
            kind = np.int32 if tile.dtype != np.uint8 else np.uint8
            planes = [Image.fromarray(np.ascontiguousarray(tile[..., k], kind)) for k in range(tile.shape[2])]
            nearest = [np.asarray(plane.resize(size, Image.Resampling.NEAREST)) for plane in planes]
            tile = np.stack(nearest, axis=-1).astype(tile.dtype)
        return tile


@given(st.data())
def test_check_says_yes_just_where_reading_succeeds(data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(data.draw, Path(folder))
        table = world.table
        try:
            tiles, masks = world.expected()
        except WrongError as why:
            event(str(why))
            wrong: str | None = str(why)
        else:
            wrong = None
        report, failed = check(table, folder, **world.options), ""
        try:
            opened = lt.open_tiles(table, folder, **world.options)
            found = opened[:]
            labels = opened.labels[:] if world.options["masks"] else None
        except lt.LazyTilesError as error:
            failed = str(error)
        assert bool(failed) == (wrong is not None), (failed, wrong)
        assert report.is_sound == (not failed), (failed, report.problems)
        event("sound" if report.is_sound else "wrong")
        if failed:
            return
        np.testing.assert_array_equal(found, tiles)
        if masks is not None:
            np.testing.assert_array_equal(labels, masks)
        opened.verify()
        assert check(table, folder, read=True, **world.options).is_sound


@pytest.mark.parametrize("suffix", [".npy", ".h5::x", ".zarr"])
def test_flat_boxes_over_a_stack_are_refused_by_both(suffix: str, tmp_path: Path, zarr_threads: None) -> None:
    volume = np.zeros((20, 32, 40), np.uint8)
    name = f"v{suffix}"
    if suffix == ".npy":
        np.save(tmp_path / name, volume)
    elif suffix == ".zarr":
        pytest.importorskip("zarr").save(str(tmp_path / name), volume)
    else:
        with pytest.importorskip("h5py").File(tmp_path / "v.h5", "w") as file:
            file["x"] = volume
    table = pd.DataFrame({"tile_id": ["a"], "path": [name], "region_coordinates": ["(0, 0, 8, 8)"]})
    for read in (False, True):
        assert "is a volume of 20 slices; use open_volumes" in str(check(table, tmp_path, read=read).problems)
    with pytest.raises(lt.RegionError, match="is a volume of 20 slices"):
        lt.open_tiles(table, tmp_path)[0]
    assert check(table.drop(columns="region_coordinates"), tmp_path, read=True).is_sound


def write(path: Path, image: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, photometric="minisblack", **options)
    return path


@pytest.fixture
def years(tmp_path: Path) -> pd.DataFrame:
    """Two tiles of two years, each year's file named by its own row."""
    rows = []
    for k, tile in enumerate("st"):
        for year, folder in (("2016", "a"), ("2017", "b")):
            name = f"{folder}/{tile}{year[-1]}.tif"
            write(tmp_path / name, np.full((32, 40), 10 * k + int(year[-1]), np.uint8))
            write(tmp_path / "m" / f"{tile}{year[-1]}.tif", np.full((32, 40), k + 1, np.uint8))
            rows.append((tile, f"r{tile}", year, name, f"{tile}{year[-1]}", k, "(0, 0, 8, 8)"))
    return pd.DataFrame(
        rows, columns=["tile_id", "region_id", "label_id", "path", "mask", "target", "region_coordinates"]
    )


def test_each_frame_is_named_by_its_own_row(years: pd.DataFrame, tmp_path: Path) -> None:
    shown = {"{path}": "path", "{anything}": "anything", "{place}/{stem}.tif": None}
    parts = years["path"].str.removesuffix(".tif").str.split("/")
    table = years.assign(anything=years["path"], place=parts.str[0], stem=parts.str[1])
    masks = "m/{mask}.tif"
    for template in (None, *shown):
        columns = table if template in (None, "{path}") else table.drop(columns="path")
        for frames, wanted in ((["2016", "2017"], [[6, 7], [16, 17]]), (["2017", "2016"], [[7, 6], [17, 16]])):
            tiles = lt.open_tiles(columns, tmp_path, path=template, frames=frames, masks=masks)
            assert tiles[:, :, 3, 3, 0].tolist() == wanted
            assert tiles.labels[:, 3, 3, 0].tolist() == [1, 2]
            assert check(columns, tmp_path, path=template, frames=frames, masks=masks).is_sound
        assert lt.open_tiles(columns, tmp_path, path=template, frames="each")[:, 0, 0, 0].tolist() == [6, 7, 16, 17]
        assert lt.open_tiles(columns, tmp_path, path=template, frames=2016)[:, 0, 0, 0].tolist() == [6, 16]
    report = check(years, tmp_path, frames=["2016", "2017"])
    assert [Path(report.images[code]).name for code in report.paths] == ["s6.tif", "s7.tif", "t6.tif", "t7.tif"]
    (tmp_path / "a/t6.tif").unlink()
    assert "row 2: tile t with box (" in str(check(years, tmp_path, frames=["2016", "2017"]).problems)
    tiles = lt.open_tiles(years, tmp_path, frames=["2016", "2017"], missing="fill")
    assert tiles[:, :, 0, 0, 0].tolist() == [[6, 7], [0, 17]]
    assert tiles.valid.tolist() == [[True, True], [False, True]]


def test_a_frame_that_no_row_names_is_missing(years: pd.DataFrame, tmp_path: Path) -> None:
    lacking = years.drop(index=2)
    said = r"tile t with box .*: there is no row for the frame 2016, which would name its image by '\{path\}'; add it"
    with pytest.raises(lt.ManifestError, match=said):
        lt.open_tiles(lacking, tmp_path, frames=["2016", "2017"])
    report = check(lacking, tmp_path, frames=["2016", "2017"])
    assert report.problems.counts == {"missing frame": 1}
    tiles = lt.open_tiles(lacking, tmp_path, frames=["2016", "2017"], missing="fill")
    assert tiles[:, :, 0, 0, 0].tolist() == [[6, 7], [0, 17]]
    # The label's folder and what all rows of a tile agree on name it without a row of its own.
    for year, folder in (("2016", "a"), ("2017", "b")):
        for tile in "st":
            write(tmp_path / year / f"{tile}.tif", lt.open_region(tmp_path / f"{folder}/{tile}{year[-1]}.tif")[:])
    same = lacking.assign(stem=lacking["tile_id"])
    tiles = lt.open_tiles(same, tmp_path, frames=["2016", "2017"], path="{label_id}/{stem}.tif")
    assert tiles[:, :, 0, 0, 0].tolist() == [[6, 7], [16, 17]]
    # Where they do not, it could be another file: it is not guessed.
    other = lacking.assign(stem=["s", "s", "t"], other=["s", "other", "t"])
    write(tmp_path / "2017" / "other.tif", np.zeros((32, 40), np.uint8))
    with pytest.raises(lt.ManifestError, match=r"tile t with box .*: there is no row for the frame 2016"):
        lt.open_tiles(other, tmp_path, frames=["2016", "2017"], path="{label_id}/{other}.tif")


def test_rows_of_several_labels_are_refused(years: pd.DataFrame, tmp_path: Path) -> None:
    said = (
        r"tile s has rows of the labels 2016, 2017 \(2 of 2 tiles have several rows\): pass frames=\['2016', '2017'\] "
        r"""to stack them as a time axis, frames='2017' to take one of them, or frames="each" to make every row a"""
    )
    with pytest.raises(lt.ManifestError, match=said):
        lt.open_tiles(years, tmp_path)
    for folder in (tmp_path, None):
        report = check(years, folder)
        assert report.problems.counts == {"several rows": 1}
        with pytest.raises(lt.ManifestError, match=said):
            report.problems.raise_any()
    assert len(lt.open_tiles(years, tmp_path, frames="each")) == 4
    train, test = lt.open_tiles(years, tmp_path, frames="each").split(0.5, by="tile_id")
    assert not set(train.table.tile_id) & set(test.table.tile_id)
    assert len(lt.open_tiles(years, tmp_path, where={"label_id": 2017})) == 2
    volumes = years.assign(region_coordinates="(0, 0, 0, 4, 4, 2)")
    scans = {"rs": np.zeros((3, 8, 8)), "rt": np.ones((3, 8, 8))}
    with pytest.raises(lt.ManifestError, match="tile s has rows of the labels 2016, 2017"):
        lt.open_volumes(volumes, scans)
    assert not check(volumes, scans).is_sound
    for frames, count in (("each", 4), (2016, 2)):
        assert len(lt.open_volumes(volumes, scans, frames=frames)) == count
        assert len(lt.open_tiles(volumes, scans, frames=frames)) == count
        assert check(volumes, scans, frames=frames).is_sound
    with pytest.raises(lt.ManifestError, match="volumes have no time axis"):
        lt.open_volumes(volumes, scans, frames=[2016, 2017])


def test_a_table_of_files_needs_no_ids(tmp_path: Path) -> None:
    names = ["a/x.tif", "a/y.tif", "b/x.tif"]
    for k, name in enumerate(names):
        write(tmp_path / name, np.full((8, 9), k, np.uint8))
    (tmp_path / "files.csv").write_text("name,target\n" + "".join(f"{name},{k}\n" for k, name in enumerate(names)))
    tiles = lt.open_tiles(tmp_path / "files.csv", tmp_path, path="{name}")
    assert tiles.shape == (3, 8, 9, 1)
    assert tiles[:, 0, 0, 0].tolist() == tiles.labels.tolist() == [0, 1, 2]
    assert tiles.table.tile_id.to_list() == names
    assert check(tmp_path / "files.csv", tmp_path, path="{name}", read=True).is_sound
    assert lt.open_tiles(pd.DataFrame({"path": names}), tmp_path).table.tile_id.to_list() == names
    boxes = pd.DataFrame({"name": names, "region_coordinates": "(0, 0, 4, 4)"})
    assert lt.open_tiles(boxes, tmp_path, path="{name}")[:, 0, 0, 0].tolist() == [0, 1, 2]
    with pytest.raises(lt.ManifestError, match=r"tile_id, region_id are missing; .* such as path=\"\{name\}\""):
        lt.open_tiles(tmp_path / "files.csv", tmp_path)
    twice = pd.concat([boxes, boxes[:1]])
    with pytest.raises(lt.ManifestError, match=r"row 3: tile a/x\.tif is already on row 0.* add a column tile_id"):
        lt.open_tiles(twice, tmp_path, path="{name}")
    assert len(lt.open_tiles(twice.assign(tile_id=range(4)), tmp_path, path="{name}").sources) == 3


@pytest.mark.parametrize("name", ["../x.tif", "/etc/passwd", "a/../../x.tif", "a\\x.tif", "", "a//x.tif", "."])
def test_a_column_of_files_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    write(tmp_path / "x.tif", np.zeros((8, 8), np.uint8))
    (tmp_path / "Images").mkdir()
    table = pd.DataFrame({"name": [name]})
    with pytest.raises(lt.ManifestError, match="a part of a path is one name"):
        lt.open_tiles(table, tmp_path / "Images", path="{name}")
    assert check(table, tmp_path / "Images", path="{name}").problems.counts == {"path leaves the folder": 1}


@pytest.mark.parametrize("pad", [None, "reflect"])
def test_a_mask_has_the_extent_of_its_image(pad: str | None, years: pd.DataFrame, tmp_path: Path) -> None:
    write(tmp_path / "m/t7.tif", np.zeros((16, 20), np.uint8))
    options: dict[str, Any] = {"frames": ["2016", "2017"], "masks": "m/{mask}.tif", "pad": pad}
    tiles = lt.open_tiles(years, tmp_path, **options)
    assert (tiles[0].shape, tiles.labels[0].shape) == ((2, 8, 8, 1), (8, 8, 1))
    said = r"tile t: .*(\w/t\d.tif is 32 x 40.*m/t7.tif is 16 x 20|m/t7.tif is 16 x 20.*b/t7.tif is 32 x 40)"
    for read in (lambda: tiles[1], lambda: tiles.labels[1], tiles.verify, lambda: tiles.shuffle(1).labels[:]):
        with pytest.raises(lt.ManifestError, match=said):
            read()
    fresh = lt.open_tiles(years, tmp_path, **options)
    with pytest.raises(lt.ManifestError, match=said):
        fresh.labels[1]  # the mask is read first
    for lazy in (fresh, fresh.labels):
        assert lazy.to_dask(1)[0].compute(scheduler="synchronous").shape == lazy.shape[1:]
        with pytest.raises(lt.ManifestError, match=said):
            lazy.to_dask().compute(scheduler="synchronous")
        with pytest.raises(lt.ManifestError, match=said):
            pickle.loads(pickle.dumps(lazy))[1]
    report = check(years, tmp_path, **options)
    assert report.problems.counts == {"mask differs": 1}
    assert report.problems.rows == {"mask differs": [3]}
    whole = years.drop(columns="region_coordinates")
    with pytest.raises(lt.ManifestError, match=said):
        lt.open_tiles(whole, tmp_path, **options | {"pad": None, "size": (8, 8)}).labels[:]


@pytest.mark.parametrize("pad", [None, "reflect"])
def test_a_mask_has_the_extent_of_its_volume(pad: str | None, tmp_path: Path) -> None:
    for name, shape in (("r", (4, 16, 16)), ("r_mask", (4, 16, 8)), ("s", (4, 16, 16)), ("s_mask", (4, 16, 16))):
        write(tmp_path / f"{name}.tif", np.zeros(shape, np.uint8))
    table = pd.DataFrame({"tile_id": ["a", "b"], "region_id": ["s", "r"], "region_coordinates": "(0, 0, 0, 8, 8, 2)"})
    masks = "{region_id}_mask.tif"
    tiles = lt.open_tiles(table, tmp_path, masks=masks, pad=pad)
    assert (tiles[0].shape, tiles.labels[0].shape) == ((2, 8, 8, 1), (2, 8, 8, 1))
    for read in (lambda: tiles[1], lambda: tiles.labels[1], tiles.verify):
        with pytest.raises(lt.ManifestError, match=r"tile b: .*r(_mask)?\.tif is 4 x 16 x (16|8) .*have one extent"):
            read()
    assert check(table, tmp_path, masks=masks, pad=pad).problems.counts == {"mask differs": 1}
    assert check(table[:1], tmp_path, masks=masks, pad=pad, read=True).is_sound


def test_check_sees_what_lies_outside_the_file_without_reading(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    for name, options in (("tiled", {"tile": (32, 32), "compression": "zlib"}), ("plain", {})):
        path = write(tmp_path / f"{name}.tif", image, **options)
        path.write_bytes(path.read_bytes()[:-90])
        table = pd.DataFrame({"tile_id": ["a", "b"], "region_id": name})
        for box, is_sound in (("(32, 32, 64, 64)", False), ("(0, 0, 32, 32)", True)):
            report = check(table.assign(region_coordinates=["(0, 0, 32, 32)", box]), tmp_path)
            assert report.is_sound == is_sound
            assert "1 segments are damaged or cut off" in str(report.warnings if is_sound else report.problems)


def test_what_options_settle_is_no_warning(tmp_path: Path) -> None:
    for k in range(50):
        options = {"compression": "zlib"} if k > 2 else {}
        write(tmp_path / f"{k}.tif", np.zeros((20 + k, 20), np.uint8), **options)
    table = pd.DataFrame({"tile_id": range(50), "region_id": range(50)})
    report = check(table, tmp_path, size=(8, 8))
    assert report.is_sound
    assert set(report.warnings.counts) == {"mixed codec"}
    assert len(report.warnings.lines()) == 1
    assert report.warnings.lines()[0].endswith(f"(and {report.warnings.counts['mixed codec'] - 1} more)")
    assert not len(check(table[3:], tmp_path, size=(8, 8)).warnings)
    assert check(table, tmp_path).problems.counts == {"mixed size": 49}
    boxes = [f"(0, 0, {8 + k % 3}, 8)" for k in range(50)]
    assert set(check(table.assign(region_coordinates=boxes), tmp_path, size=8 * np.ones(2, int)).warnings.counts) == {
        "mixed codec"
    }


def test_check_takes_the_options_of_open_tiles_and_no_others(years: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sizes'"):
        check(years, tmp_path, sizes=(8, 8))
    with pytest.raises(ValueError, match="pad must be one of None, 'constant'"):
        check(years, tmp_path, pad=True)
    options: dict[str, Any] = {"frames": ["2016", "2017"]}
    for more, said in (
        ({"bands": [3]}, r"bands \[3\] asked for"),
        ({"level": 2}, "has no level 2"),
        ({"masks": "m/{absent}.tif"}, "there is no column absent"),
        ({"masks": "m/{region_id}.tif"}, "m/rs.tif is missing"),
        ({"where": {"target": 7}}, "keeps none of the 2 samples"),
        ({"where": {"nothing": 7}}, "no column 'nothing' to filter by"),
        ({"frames": ["2016", "2020"]}, "no row of the manifest has label_id '2020'"),
        ({"scale_boxes": ["absent"]}, "scale_boxes"),
    ):
        report = check(years, tmp_path, **options | more)
        with pytest.raises(lt.ManifestError, match=said):
            report.problems.raise_any()
        with pytest.raises(lt.LazyTilesError, match=said):
            lt.open_tiles(years, tmp_path, **options | more)[:]
    # What `where` leaves out is neither looked for nor looked at.
    (tmp_path / "b/t7.tif").write_text("damaged")
    (tmp_path / "a/t6.tif").unlink()
    kept = options | {"where": {"target": 0}}
    assert check(years, tmp_path, **kept).is_sound
    assert lt.open_tiles(years, tmp_path, **kept)[:].shape == (1, 2, 8, 8, 1)


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, pd.DataFrame]:
    """Tables over pictures of several kinds, and over volumes, in one folder."""
    for k, mode in enumerate(["L", "RGB", "RGBA", "P"]):
        Image.fromarray(np.full((16, 16, 3), k * 9, np.uint8)).convert(mode).save(tmp_path / f"{k}.png")
    for name, shape in (("v", (5, 8, 8)), ("w", (5, 8, 8)), ("half", (5, 8, 4)), ("flat", (8, 8))):
        write(tmp_path / f"{name}.tif", np.zeros(shape, np.uint8))
    np.save(tmp_path / "u.npy", np.zeros((5, 8, 8), np.uint16))
    boxes = ["(0, 0, 0, 4, 4, 2)", "(0, 0, 2, 4, 4, 4)"]
    photos = pd.DataFrame({"path": ["0.png", "1.png", "2.png"], "target": ["cat", "dog", "cat"]})
    volumes = pd.DataFrame({"tile_id": ["a", "b"], "region_id": "v", "region_coordinates": boxes, "target": ["x", "y"]})
    return {
        "photos": photos,
        "colours": photos[1:],
        "partly": photos.assign(target=["a", None, "b"]),
        "unlabelled": photos.assign(target=[None] * 3),
        "palette": pd.DataFrame({"path": ["3.png"]}),
        "several": photos.assign(label_id=["1", "1", "2"], tile_id=["a", "b", "a"]),
        "volumes": volumes,
        "other dtype": volumes.assign(path=["v.tif", "u.npy"]),
        "whole": volumes.drop(columns="region_coordinates").assign(path=["v.tif", "w.tif"]),
        "whole mixed": volumes.drop(columns="region_coordinates").assign(path=["v.tif", "half.tif"]),
        "stack": pd.DataFrame({"path": ["u.npy"]}),
        "flat": volumes.assign(path="flat.tif"),
        "extents": volumes.assign(region_coordinates=[boxes[0], "(0, 0, 2, 4, 4, 5)"]),
        "leaves": volumes.assign(region_coordinates=[boxes[0], "(0, 0, 4, 4, 4, 6)"]),
        "apart": volumes.assign(region_coordinates=[boxes[0], "(0, 0, 6, 4, 4, 8)"]),
        "none": pd.DataFrame({"path": []}),
        "absent": pd.DataFrame({"tile_id": ["a"], "region_id": ["zz"]}),
    }


JUDGED: list[tuple[str, dict[str, Any], bool]] = [
    ("photos", {}, False),
    ("photos", {"bands": "rgb"}, True),
    ("photos", {"gray": True}, True),
    ("photos", {"bands": [0]}, True),
    ("photos", {"bands": [0, 1, 2]}, False),
    ("photos", {"bands": "rgb", "gray": True}, False),
    ("photos", {"bands": [True, False]}, False),
    ("photos", {"bands": "rgb", "size": (8, 8)}, True),
    ("photos", {"gray": True, "classes": ["dog", "cat"]}, True),
    ("photos", {"gray": True, "classes": ["dog"]}, False),
    ("photos", {"gray": True, "masks": "0.png"}, True),
    ("photos", {"gray": True, "masks": "v.tif"}, False),
    ("photos", {"gray": True, "masks": "9.png"}, False),
    ("photos", {"gray": True, "scale_boxes": ["target"]}, False),
    ("photos", {"gray": True, "level": 1}, False),
    ("colours", {"bands": [0, 1, 2]}, True),
    ("colours", {"bands": [-1]}, False),
    ("colours", {}, False),
    ("partly", {"gray": True}, False),
    ("partly", {"gray": True, "target": None}, True),
    ("unlabelled", {"gray": True}, True),
    ("palette", {}, True),
    ("palette", {"size": (8, 8)}, False),
    ("palette", {"size": (8, 8), "resample": "nearest"}, True),
    ("several", {"gray": True}, False),
    ("several", {"gray": True, "frames": ["1", "2"]}, False),
    ("several", {"gray": True, "frames": ["2", "1"]}, False),
    ("several", {"gray": True, "frames": ["2", "1"], "missing": "fill"}, True),
    ("several", {"gray": True, "frames": ["1", "1"]}, True),
    ("several", {"gray": True, "frames": "each"}, True),
    ("several", {"gray": True, "where": {"label_id": 1}}, True),
    ("volumes", {}, True),
    ("volumes", {"classes": ["y", "x"]}, True),
    ("volumes", {"classes": ["y"]}, False),
    ("volumes", {"size": (8, 8)}, False),
    ("volumes", {"gray": True}, False),
    ("volumes", {"missing": "fill"}, False),
    ("volumes", {"bands": [0]}, True),
    ("volumes", {"bands": [1]}, False),
    ("volumes", {"masks": "w.tif"}, True),
    ("volumes", {"masks": "half.tif"}, False),
    ("volumes", {"masks": "half.tif", "pad": "edge"}, False),
    ("volumes", {"masks": "absent.tif"}, False),
    ("volumes", {"where": {"target": "x"}}, True),
    ("volumes", {"where": {"target": "z"}}, False),
    ("volumes", {"tabular": ["q"]}, False),
    ("other dtype", {}, False),
    ("whole", {}, True),
    ("whole mixed", {}, False),
    ("stack", {}, True),
    ("flat", {}, False),
    ("extents", {}, False),
    ("leaves", {}, False),
    ("leaves", {"pad": "reflect"}, True),
    ("apart", {"pad": "reflect"}, False),
    ("none", {}, False),
    ("absent", {}, False),
    ("absent", {"missing": "fill"}, False),
]


@pytest.mark.parametrize(("name", "options", "is_good"), JUDGED)
def test_check_judges_as_reading_does(
    name: str, options: dict[str, Any], is_good: bool, mixed: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    for read in (False, True):
        assert check(mixed[name], tmp_path, read=read, **options).is_sound == is_good
    try:
        tiles = lt.open_tiles(mixed[name], tmp_path, **options)
        assert tiles[:].shape == tiles.shape
        assert len(tiles.labels[:] if options.get("masks") else tiles) == len(tiles)
    except (lt.LazyTilesError, ValueError):
        is_read = False
    else:
        is_read = True
    assert is_read == is_good


def test_frames_that_have_a_place_on_the_ground_may_have_other_extents(tmp_path: Path) -> None:
    pixel_scale, tie_point = (33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0.0,) * 6, True)
    for placed in (True, False):
        for year, shape in (("2016", (32, 32)), ("2017", (48, 32))):
            extra = [pixel_scale, tie_point] if placed else None
            write(tmp_path / year / "r.tif", np.zeros(shape, np.uint8), extratags=extra)
        table = pd.DataFrame({"tile_id": "t", "region_id": "r", "label_id": ["2016", "2017"]})
        table["region_coordinates"] = "(0, 0, 8, 8)"
        assert check(table, tmp_path, frames=[2016, 2017]).is_sound == placed
        tiles = lt.open_tiles(table, tmp_path, frames=[2016, 2017])
        if placed:
            assert tiles[:].shape == (1, 2, 8, 8, 1)
            tiles.verify()
            continue
        with pytest.raises(lt.ManifestError, match=r"2017/r\.tif is 48 x 32 pixels, .*2016/r\.tif is 32 x 32"):
            tiles[0]


def test_remote_frames_and_masks_are_judged_alike() -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for name, image in (("a/x", 1), ("b/y", 2), ("m", 0), ("half", 0)):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.full((32, 16 if name == "half" else 32), image, np.uint8))
        memory.pipe(f"/judged/{name}.tif", buffer.getvalue())
    table = pd.DataFrame(
        {"tile_id": "t", "region_id": "r", "label_id": ["2016", "2017"], "path": ["a/x.tif", "b/y.tif"]}
    )
    table["region_coordinates"] = "(0, 0, 8, 8)"
    options: dict[str, Any] = {"frames": [2016, 2017]}
    for masks, is_good in ((None, True), ("m.tif", True), ("half.tif", False), ("absent.tif", False)):
        assert check(table, "memory://judged", masks=masks, **options).is_sound == is_good
        if is_good:
            tiles = lt.open_tiles(table, "memory://judged", masks=masks, **options)
            assert tiles[0, :, 0, 0, 0].tolist() == [1, 2]
        else:
            with pytest.raises(lt.LazyTilesError):
                lt.open_tiles(table, "memory://judged", masks=masks, **options).labels[:]
