"""Scenes that share ground: who leaks into whom is told by what the pixels hold, each of which is one of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from affine import Affine

import lazytiles as lt
from lazytiles.images.georeference import Georeference
from lazytiles.indexing import overlaps

GROUND = np.arange(200 * 200, dtype=np.uint32).reshape(200, 200)
KEYS = ((34735, 3, 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)),)
SCENES = {"a": (0, 0), "b": (40, 24), "c": (130, 0), "d": (37, 61)}  # upper left corner, pixels of the ground


def write(path: Path, corner: tuple[int, int], *, size: int = 70, keys: Any = KEYS, at: Affine | None = None) -> None:
    """A scene of the ground, in its place."""
    y, x = corner
    at = (at or Affine(10, 0, 399960, 0, -10, 5700000)) @ Affine.translation(x, y)
    options: dict[str, Any] = {"extratags": Georeference(None, at, keys).extratags(), "metadata": None}
    tifffile.imwrite(path, GROUND[y : y + size, x : x + size], **options)


@pytest.fixture
def scenes(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """Four scenes, of which some overlap, and random windows of 10 pixels in them."""
    for name, corner in SCENES.items():
        write(tmp_path / f"{name}.tif", corner)
    rng = np.random.default_rng(3)
    rows = []
    for k in range(80):
        x, y = rng.integers(0, 61, 2).tolist()
        rows.append((f"t{k}", "abcd"[k % 4], x, y, x + 10, y + 10, k % 3))
    return tmp_path, pd.DataFrame(rows, columns=["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax", "fold"])


def shared(one: np.ndarray, other: np.ndarray) -> int:
    return len(np.intersect1d(one, other))


def test_bounds_are_those_of_the_windows(scenes: Any) -> None:
    folder, table = scenes
    tiles = lt.open_tiles(table, folder).shuffle(1)
    rasterio = pytest.importorskip("rasterio")
    for row, bounds in zip(tiles.table.itertuples(), tiles.bounds, strict=True):
        y, x = SCENES[row.region_id]
        at = Affine(10, 0, 399960 + 10 * x, 0, -10, 5700000 - 10 * y)
        window = rasterio.windows.Window(row.xmin, row.ymin, 10, 10)
        with pytest.warns(PendingDeprecationWarning):
            assert tuple(bounds) == rasterio.windows.bounds(window, at)


def test_leakage_across_scenes(scenes: Any) -> None:
    folder, table = scenes
    tiles = lt.open_tiles(table, folder).shuffle(5)
    first, second = tiles.split(0.5, seed=1)
    one, other = np.asarray(first), np.asarray(second)
    leaks = lt.leakage(first, second)
    places = [{name: k for k, name in enumerate(part.table.tile_id)} for part in (first, second)]
    found = {(places[0][leak.tile_a], places[1][leak.tile_b]): leak.shared_pixels for leak in leaks}
    wanted = {(i, j): shared(a, b) for i, a in enumerate(one) for j, b in enumerate(other) if shared(a, b)}
    assert found == wanted
    assert any(leak.region_id != leak.region_b for leak in leaks)
    assert [(places[0][leak.tile_a], places[1][leak.tile_b]) for leak in leaks] == sorted(found)


@pytest.mark.parametrize("coordinates", ["pixels", "map"])
def test_splits_and_folds_by_ground(coordinates: str, scenes: Any) -> None:
    folder, table = scenes
    table = table.iloc[:40]
    if coordinates == "map":
        boxes = pd.DataFrame(lt.open_tiles(table, folder).bounds, columns=["xmin", "ymin", "xmax", "ymax"])
        table = table.assign(**boxes)
    tiles = lt.open_tiles(table, folder, coordinates=coordinates)
    sides = tiles.split(0.6, by="ground", seed=2)
    assert all(len(side) > 5 for side in sides)
    assert shared(*map(np.asarray, sides)) == 0
    assert not lt.leakage(*sides)
    again = lt.open_tiles(table, folder, coordinates=coordinates).shuffle(9).split(0.6, by="ground", seed=2)
    assert [set(side.table.tile_id) for side in again] == [set(side.table.tile_id) for side in sides]
    for train, test in tiles.kfold(3, by="ground"):
        assert len(test)
        assert shared(np.asarray(train), np.asarray(test)) == 0
    assert shared(*map(np.asarray, tiles.split(0.6, by="region_id", seed=2))) > 0


def test_neighbours_share_nothing(tmp_path: Path) -> None:
    """Tiles side by side, in one scene or in two whose places are numbers that are never exact."""
    at = Affine(1 / 3, 0, 1e6 / 7, 0, -1 / 3, 5e6 / 7)
    write(tmp_path / "a.tif", (0, 0), size=60, at=at)
    write(tmp_path / "b.tif", (0, 60), size=60, at=at)
    table = lt.make_grid(tmp_path, 10)
    tiles = lt.open_tiles(table, tmp_path)
    assert len(tiles) == 72
    assert not lt.leakage(tiles.select(slice(0, None, 2)), tiles.select(slice(1, None, 2)))
    sides = tiles.split(0.25, by="ground")
    assert [len(side) for side in sides] == [18, 54]


def test_without_a_place_regions_are_compared_by_pixels(scenes: Any) -> None:
    folder, table = scenes
    for name, corner in SCENES.items():
        tifffile.imwrite(folder / f"{name}.tif", GROUND[corner[0] :, corner[1] :][:70, :70], metadata=None)
    tiles = lt.open_tiles(table, folder)
    assert tiles.bounds is None
    sides = tiles.split(0.5, seed=1)
    assert {leak.region_id == leak.region_b for leak in lt.leakage(*sides)} == {True}
    grouped = tiles.split(0.5, by="ground")
    assert not lt.leakage(*grouped)
    (folder / "b.tif").unlink()
    missing = lt.open_tiles(table, folder, missing="fill")
    assert len(lt.leakage(*missing.split(0.5, seed=1))) > 0


def test_scenes_of_two_systems(scenes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pyproj = pytest.importorskip("pyproj")
    folder, table = scenes
    corner = Affine(10, 0, 399960, 0, -10, 5700000) @ (40, 24)
    x, y = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:32632", always_xy=True).transform(*corner)
    keys = ((34735, 3, 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32632)),)
    write(folder / "b.tif", (0, 0), keys=keys, at=Affine(10, 0, x, 0, -10, y))
    first = lt.open_tiles(table[table.region_id == "a"].reset_index(drop=True), folder)
    second = lt.open_tiles(table[table.region_id == "b"].reset_index(drop=True), folder)
    transformer = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True)
    centres = [((b[:, 0] + b[:, 2]) / 2, (b[:, 1] + b[:, 3]) / 2) for b in (first.bounds, second.bounds)]
    centres[1] = transformer.transform(*centres[1])
    apart = np.maximum(*(abs(one[:, None] - other[None]) for one, other in zip(*centres, strict=True)))
    found = {(int(leak.tile_a[1:]) // 4, int(leak.tile_b[1:]) // 4) for leak in lt.leakage(first, second)}
    assert set(zip(*np.nonzero(apart < 80), strict=True)) <= found  # more than two pixels of overlap
    assert found <= set(zip(*np.nonzero(apart < 120), strict=True))
    assert found

    def absent(module: str, extra: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(overlaps, "require", absent)
    with pytest.warns(UserWarning, match=r"EPSG:32632 are not compared with those in EPSG:32633; pip install"):
        assert not lt.leakage(first, second)


@pytest.mark.parametrize("coordinates", ["pixels", "map"])
def test_check_finds_folds_that_share_ground(coordinates: str, scenes: Any) -> None:
    folder, table = scenes
    tiles = lt.open_tiles(table, folder)
    pixels = np.asarray(tiles)
    if coordinates == "map":
        table = table.assign(**pd.DataFrame(tiles.bounds, columns=["xmin", "ymin", "xmax", "ymax"]))
    report = lt.check(table, folder, split="fold", coordinates=coordinates)
    folds = table.fold.to_numpy()
    wanted = {max(i, j) for i in range(80) for j in range(80) if folds[i] != folds[j] and shared(pixels[i], pixels[j])}
    assert report.problems.counts == {"shared pixels": len(wanted)}
    alike = lt.check(table.assign(fold=0), folder, split="fold", coordinates=coordinates)
    assert alike.is_sound
