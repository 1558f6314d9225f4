"""Random manifests: `open_tiles` gives what an oracle cuts, and `check` says yes just where that succeeds."""

from __future__ import annotations

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
from lazytiles.doctor import check

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
            "bands": one_of(None, None, [0], [-1, 0]),
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
        if len(kinds) > 1 or not shown or len({dtype for dtype, _ in masks}) > 1:
            raise WrongError("kinds of images")
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
            tile = tile[..., self.options["bands"]]
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
