"""The doctor: every planted fault is found once, named with its row, and nothing else is."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from lazytiles.check import check
from lazytiles.digest import verify_digests, write_digests
from lazytiles.errors import ManifestError
from lazytiles.region import open_region


@pytest.fixture
def desk(tmp_path: Path) -> tuple[pd.DataFrame, Path]:
    """Two regions in two years, four tiles each, nothing wrong."""
    rows = []
    folder = tmp_path / "images"
    for region in ("a", "b"):
        for year in ("2017", "2018"):
            write(folder / year / f"{region}.tif")
            for k in range(4):
                x, y = k % 2 * 32, k // 2 * 32
                rows.append((f"{region}{k}", region, year, k, k // 2, f"({x}, {y}, {x + 32}, {y + 32})"))
    columns = ["tile_id", "region_id", "label_id", "target", "fold", "region_coordinates"]
    return pd.DataFrame(rows, columns=columns), folder


def write(path: Path, dtype: str = "uint8", shape: tuple[int, ...] = (64, 64), codec: str = "deflate") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    tifffile.imwrite(path, values, tile=(32, 32), compression=codec)


def test_a_sound_table_is_sound(desk: tuple[pd.DataFrame, Path]) -> None:
    table, folder = desk
    stages: list[tuple[str, int, int]] = []
    report = check(table, folder, split="fold", read=True, progress=lambda *stage: stages.append(stage))
    assert report.is_sound
    assert not len(report.warnings)
    assert report.facts["tiles"] == 8
    assert report.facts["codec"] == {"deflate, tiles of 32 x 32": 4}
    assert report.facts["targets"]["target"]["classes"] == {"0": 4, "1": 4, "2": 4, "3": 4}
    assert stages[-1] == ("looking at images", 4, 4)
    json.dumps(report.to_dict())


FAULTS: dict[str, tuple[Callable[[pd.DataFrame, Path], pd.DataFrame | None], str, str]] = {
    "missing": (lambda t, f: (f / "2017/b.tif").unlink(), "missing image", "tile b0: .*2017/b.tif is missing"),
    "damaged": (
        lambda t, f: damage(f / "2018/a.tif"),
        "unreadable image",
        r"row 4: tile a0 with box \(0, 0, 32, 32\): .*segment",
    ),
    "cut off": (
        lambda t, f: cut(f / "2018/a.tif"),
        "unreadable image",
        r"row 4: tile a0 .*a.tif",
    ),
    "not an image": (lambda t, f: (f / "2018/a.tif").write_text("<html>"), "unreadable image", "row 4: tile a0"),
    "dtype": (lambda t, f: write(f / "2018/a.tif", "uint16"), "mixed dtype", "a.tif: dtype uint16, others.* uint8"),
    "bands": (lambda t, f: write(f / "2018/a.tif", shape=(64, 64, 3)), "mixed bands", "a.tif: bands 3, others"),
    "outside": (
        lambda t, f: write(f / "2018/a.tif", shape=(64, 60)),
        "window outside",
        r"row 5: tile a1 with box \(32, 0, 64, 32\) leaves region a \(.*2018/a.tif, 64 x 60\); pass pad=",
    ),
    "duplicate": (lambda t, f: pd.concat([t, t[:1]]), "duplicate", "row 16: tile a0 .label 2017. is already on row 0"),
    "nan": (lambda t, f: t.assign(target=[np.nan, *t.target[1:]]), "target not a number", "row 0: tile a0: target"),
    "box": (
        lambda t, f: t.assign(region_coordinates=["eval(1)", *t.region_coordinates[1:]]),
        "not a box",
        r"row 0: tile a0: box eval\(1\) of region a is not",
    ),
    "leak": (
        lambda t, f: t.assign(fold=range(16)).assign(region_coordinates=["(0, 0, 33, 33)"] * 16),
        "shared pixels",
        r"row 1: tile a1 .* shares pixels with tile a0",
    ),
}


def damage(path: Path) -> None:
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[1]
    data = bytearray(path.read_bytes())
    data[offset + 20 : offset + 60] = bytes(40)
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(fault: str, desk: tuple[pd.DataFrame, Path]) -> None:
    table, folder = desk
    plant, kind, message = FAULTS[fault]
    planted = plant(table, folder)
    table = planted if isinstance(planted, pd.DataFrame) else table
    report = check(table, folder, split="fold" if fault == "leak" else None, read=True)
    assert not report.is_sound
    assert set(report.problems.counts) == {kind}
    with pytest.raises(ManifestError, match=message):
        report.problems.raise_any()


def test_oddities_are_warnings(desk: tuple[pd.DataFrame, Path]) -> None:
    table, folder = desk
    write(folder / "2018/a.tif", codec="lzw")
    odd = table.drop(index=0).assign(target=1)
    odd.loc[1, "region_coordinates"] = odd.loc[5, "region_coordinates"] = "(0, 0, 16, 16)"
    report = check(odd, folder)
    assert report.is_sound
    assert set(report.warnings.counts) == {"window sizes", "class balance", "mixed codec", "missing frames"}
    assert "row 3: tile a0 with box (0, 0, 32, 32) has rows for 1 of the 2 frames" in str(report.warnings)
    small = check(odd, folder, min_size=(32, 8))
    assert small.problems.counts == {"window too small": 2}
    assert "row 0: tile a1 with box (0, 0, 16, 16) is 16 x 16, less than 32 x 8" in str(small.problems)


def test_every_frame_of_every_region(desk: tuple[pd.DataFrame, Path]) -> None:
    table, folder = desk
    last = table[table.label_id == "2018"]
    assert check(last, folder, frames=["2017", "2018"]).problems.counts == {}
    (folder / "2017/b.tif").unlink()
    report = check(last, folder, frames=[2017, 2018])
    assert report.problems.counts == {"missing image": 1}
    assert check(last, folder).is_sound


def test_rare_classes_are_said(desk: tuple[pd.DataFrame, Path]) -> None:
    many = pd.DataFrame({"tile_id": range(300), "region_id": "a", "target": [1, *[0] * 299]})
    assert "target: class 1 is 1 of 300 rows" in str(check(many).warnings)


@pytest.mark.parametrize("name", ["empty_file", "utf16", "nul_bytes", "column_twice"])
def test_what_is_no_table_is_one_problem(name: str, hostile_dir: Path) -> None:
    report = check(hostile_dir / "manifests" / f"{name}.csv", hostile_dir / "regions")
    assert report.problems.counts == {"not a table": 1}


def test_every_hostile_manifest_is_judged_right(hostile_dir: Path) -> None:
    with (hostile_dir / "manifests.csv").open() as file:
        for row in csv.DictReader(file):
            path = hostile_dir / "manifests" / f"{row['name']}.csv"
            report = check(path, hostile_dir / "regions", path="{region_id}.tif", read=True)
            assert report.is_sound == (row["expect"] == "ok"), row["name"]


def test_digests_are_sha256sums(desk: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    table, folder = desk
    report = check(table, folder, digest=True)
    path = tmp_path / "tiles.sha256"
    write_digests(report.digests, path, folder)
    done = subprocess.run(["sha256sum", "--check", path], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == 4
    assert not len(verify_digests(path, folder))
    damage(folder / "2018/a.tif")
    (folder / "2017/b.tif").unlink()
    assert verify_digests(path, folder).counts == {"changed image": 1, "missing image": 1}
    path.write_text("0" * 64 + "  ../secret\n")
    with pytest.raises(ManifestError, match="line 1: a SHA-256 and a path inside"):
        verify_digests(path, folder)
    with pytest.raises(ManifestError, match="cannot be read"):
        verify_digests(tmp_path / "absent", folder)


@pytest.mark.parametrize("bad", ["../outside/secret", "..", "/etc/passwd", "a/../../outside/secret"])
def test_nothing_outside_is_looked_at(
    bad: str, desk: tuple[pd.DataFrame, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, folder = desk
    write(tmp_path / "outside" / "secret.tif")
    opened: list[str] = []
    monkeypatch.setattr("lazytiles.check.open_region", lambda path: opened.append(path) or open_region(path))
    report = check(table.assign(region_id=[bad, *table.region_id[1:]]), folder, read=True)
    assert {"bad region_id", "path leaves the folder"} <= set(report.problems.counts)
    assert len(opened) == 4
    assert all(Path(path).is_relative_to(folder) and ".." not in path for path in opened)


def test_tables_of_paths_are_checked_too(desk: tuple[pd.DataFrame, Path]) -> None:
    _, folder = desk
    paths = ["2017/a.tif", "2018/b.tif"]
    table = pd.DataFrame({"tile_id": ["x", "y"], "path": paths, "region_coordinates": ["(0, 0, 32, 65)"] * 2})
    report = check(table, folder)
    assert report.facts["regions"] == 2
    assert "row 1: tile y with box (0, 0, 32, 65) leaves region 2018/b.tif" in str(report.problems)
    assert check(table.drop(columns="region_coordinates"), folder).is_sound
