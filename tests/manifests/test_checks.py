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
from PIL import Image

from lazytiles.errors import ManifestError
from lazytiles.images.region import open_region
from lazytiles.manifests.checks import check
from lazytiles.manifests.paths import verify_digests, write_digests
from lazytiles.manifests.tiles import open_tiles

FRAMES = ["2017", "2018"]


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
    report = check(table, folder, frames=FRAMES, split="fold", read=True, progress=lambda *stage: stages.append(stage))
    assert report.is_sound
    assert not len(report.warnings)
    assert report.facts["tiles"] == 8
    assert report.facts["codec"] == {"deflate, tiles of 32 x 32": 4}
    assert report.facts["targets"]["target"]["classes"] == {"0": 4, "1": 4, "2": 4, "3": 4}
    assert stages[-1] == ("looking at images", 4, 4)
    json.dumps(report.to_dict())


FAULTS: dict[str, tuple[Callable[[pd.DataFrame, Path], pd.DataFrame | None], str, str]] = {
    "missing": (
        lambda t, f: (f / "2017/b.tif").unlink(),
        "missing image",
        "row 8: tile b0 .*2017/b.tif is missing",
    ),
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
    "nan": (
        lambda t, f: t.assign(target=[*t.target[:4], np.nan, *t.target[5:]]),
        "target not a number",
        "row 4: tile a0: target",
    ),
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
    report = check(table, folder, frames=FRAMES, split="fold" if fault == "leak" else None, read=True)
    assert not report.is_sound
    assert set(report.problems.counts) == {kind}
    with pytest.raises(ManifestError, match=message):
        report.problems.raise_any()


def test_classes_of_large_numbers_are_told_apart() -> None:
    table = pd.DataFrame({"tile_id": ["a", "b", "c"], "region_id": "r", "target": [1000001, 1000002, 1000002]})
    assert check(table).facts["targets"]["target"]["classes"] == {"1000001": 1, "1000002": 2}


def test_oddities_are_warnings(desk: tuple[pd.DataFrame, Path]) -> None:
    table, folder = desk
    write(folder / "2018/a.tif", codec="lzw")
    odd = table.drop(index=0).assign(target=1)
    odd.loc[1, "region_coordinates"] = odd.loc[5, "region_coordinates"] = "(0, 0, 16, 16)"
    report = check(odd, folder, frames=FRAMES, size=(32, 32))
    assert report.is_sound
    assert set(report.warnings.counts) == {"class balance", "mixed codec", "missing frames"}
    assert "row 3: tile a0 with box (0, 0, 32, 32) has rows for 1 of the 2 frames" in str(report.warnings)
    sizes = check(odd, folder, frames=FRAMES)
    assert sizes.problems.counts == {"window sizes": 1}
    with pytest.raises(ManifestError, match=r"2 different sizes, such as 32 x 32 and 16 x 16 \(row .*; pass size="):
        sizes.problems.raise_any()
    small = check(odd, folder, frames=FRAMES, size=(32, 32), min_size=(32, 8))
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
    report = check(table, folder, frames=FRAMES, digest=True)
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
    monkeypatch.setattr(
        "lazytiles.manifests.checks.open_region",
        lambda path, **options: opened.append(path) or open_region(path, **options),
    )
    report = check(table.assign(region_id=[bad, *table.region_id[1:]]), folder, frames=FRAMES, read=True)
    assert report.problems.counts == {"bad region_id": 1, "frames disagree": 1}  # once, not as a path again
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


def test_a_frame_that_a_region_lacks(desk: tuple[pd.DataFrame, Path]) -> None:
    table, folder = desk
    (folder / "2017/b.tif").unlink()
    lacking = table[~((table.label_id == "2017") & (table.region_id == "b"))]
    report = check(lacking, folder, frames=FRAMES)
    assert report.problems.counts == {"missing image": 1}
    assert "row 8: tile b0 with box (0, 0, 32, 32): " in str(report.problems)
    assert "2017/b.tif is missing" in str(report.problems)
    assert report.problems.rows == {"missing image": [8]}
    assert report.warnings.counts == {"missing frames": 4}
    # Labels of which no tile has two are no frames.
    assert check(table[(table.label_id == "2017") == (table.region_id == "a")], folder).is_sound


def test_a_tile_without_its_last_frame_cannot_be_opened(desk: tuple[pd.DataFrame, Path]) -> None:
    table, folder = desk
    lacking = table.drop(index=5)
    report = check(lacking, folder, frames=[2017, 2018])
    assert report.problems.counts == {"last frame missing": 1}
    assert "row 1: tile a1 with box (32, 0, 64, 32) has no row for the last frame 2018" in str(report.problems)
    with pytest.raises(ManifestError, match="tile a1 has no row for the last frame"):
        open_tiles(lacking, folder, frames=[2017, 2018])
    assert check(lacking, folder, frames=[2018, 2017]).is_sound


def test_more_missing_images_than_are_shown_are_counted_once(desk: tuple[pd.DataFrame, Path]) -> None:
    _, folder = desk
    names = [f"r{k}" for k in range(50)]
    table = pd.DataFrame({"tile_id": names, "region_id": names, "label_id": "2018"})
    report = check(table, folder, frames=[2017, 2018])
    assert report.problems.counts == {"missing image": 100}
    assert len(report.problems.texts["missing image"]) == 20
    assert report.problems.rows["missing image"] == list(range(20))


def test_a_header_in_the_middle_is_one_problem(desk: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    table, folder = desk
    lines = table.to_csv(index=False).splitlines()
    (tmp_path / "twice.csv").write_text("\n".join([*lines, lines[0], lines[0]]))
    report = check(tmp_path / "twice.csv", folder, frames=FRAMES, min_size=8, split="fold")
    assert report.problems.counts == {"repeated header": 2}
    assert report.warnings.counts == {}
    assert report.facts["sizes"] == {"32 x 32": 16}


@pytest.mark.parametrize(("name", "stored"), [("a.png", "PNG, one picture"), ("a.jpg", "JPEG, one picture"),
                                              ("a.npy", "an array")])  # fmt: skip
def test_any_image_file_is_checked(name: str, stored: str, tmp_path: Path) -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    np.save(tmp_path / name, image) if name.endswith(".npy") else Image.fromarray(image).save(tmp_path / name)
    report = check(pd.DataFrame({"tile_id": ["t"], "path": [name]}), tmp_path, read=True, digest=True)
    assert report.is_sound
    assert report.facts["codec"] == {stored: 1}
    assert len(report.digests) == 1


def test_volumes_are_checked_along_all_axes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "v.tif", np.zeros((5, 16, 24), np.uint8))
    boxes = ["(0, 0, 0, 8, 8, 2)", "(0, 0, 2, 8, 8, 4)", "(0, 0, 4, 8, 8, 6)"]
    table = pd.DataFrame({"tile_id": [*"abc"], "region_id": "v", "fold": [0, 1, 1], "region_coordinates": boxes})
    report = check(table, tmp_path, split="fold", read=True)
    assert report.problems.counts == {"window outside": 1}
    assert "(0, 0, 4, 8, 8, 6) leaves region v" in str(report.problems)
    assert "(5 x 16 x 24)" in str(report.problems)


def test_frames_of_one_region_have_one_size(desk: tuple[pd.DataFrame, Path]) -> None:
    table, folder = desk
    write(folder / "2018/a.tif", shape=(96, 64))
    write(folder / "2017/b.tif", shape=(128, 64))
    write(folder / "2018/b.tif", shape=(128, 64))
    report = check(table, folder, frames=FRAMES)
    assert report.problems.counts == {"frames differ": 1}
    said = r"row 4: tile a0 .*: .*2018/a.tif is 96 x 64 pixels, .*2017/a.tif is 64 x 64; the frames of a tile"
    with pytest.raises(ManifestError, match=said):
        report.problems.raise_any()
    tiles = open_tiles(table, folder, frames=FRAMES)
    assert tiles[4:].shape == (4, 2, 32, 32, 1)
    for read in (lambda: tiles[0], lambda: tiles[::-1], tiles.verify):
        with pytest.raises(ManifestError, match=r"2018/a\.tif is 96 x 64"):
            read()
    whole = table.drop(columns="region_coordinates")
    assert check(whole, folder, frames=FRAMES, size=(32, 32)).is_sound
    assert open_tiles(whole, folder, frames=FRAMES, size=(32, 32))[:].shape == (8, 2, 32, 32, 1)
    assert not check(whole, folder, frames=FRAMES).is_sound


def test_images_are_compared_with_their_digests(desk: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    table, folder = desk
    digests = tmp_path / "tiles.sha256"
    write_digests(check(table, folder, frames=FRAMES, digest=True).digests, digests, folder)
    assert check(table, folder, frames=FRAMES, verify=digests).is_sound
    assert open_tiles(table, folder, frames="each", verify=digests).shape == (16, 32, 32, 1)
    write(folder / "2019/a.tif")
    more = pd.concat([table, table[:1].assign(label_id="2019")])
    with pytest.raises(ManifestError, match=r"2019/a\.tif has no digest in this file"):
        open_tiles(more, folder, frames="each", verify=digests)
    damage(folder / "2018/a.tif")
    report = check(table, folder, frames=FRAMES, verify=digests)
    assert report.problems.counts == {"changed image": 1}
    with pytest.raises(ManifestError, match=r"2018/a\.tif has changed since its digest was taken"):
        open_tiles(table, folder, frames=[2017, 2018], verify=digests)
    assert open_tiles(table, folder, frames=2017, verify=digests).shape == (8, 32, 32, 1)


def test_links_are_the_owners_choice(desk: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    table, folder = desk
    (folder / "2018/a.tif").rename(tmp_path / "elsewhere.tif")
    (folder / "2018/a.tif").symlink_to(tmp_path / "elsewhere.tif")
    assert check(table, folder, frames=FRAMES).is_sound
    assert open_tiles(table, folder, frames="each")[0].shape == (32, 32, 1)
    report = check(table, folder, frames=FRAMES, follow_symlinks=False)
    assert report.problems.counts == {"link": 1}
    for options in (
        {"frames": "each"},
        {"frames": "each", "masks": "{label_id}/{region_id}.tif"},
        {"frames": ["2017", "2018"], "missing": "fill"},
    ):
        with pytest.raises(ManifestError, match=r"2018/a\.tif goes through a link"):
            open_tiles(table, folder, follow_symlinks=False, **options)


def test_reports_problems_and_costs_have_a_short_repr(desk: tuple[pd.DataFrame, Path]) -> None:
    table, folder = desk
    years = ["2017", "2018"]
    report = check(table, folder, frames=years)
    assert repr(report) == "<Report on the DataFrame: 0 problems, 0 warnings>"
    assert repr(report.problems) == "<Problems of the DataFrame: none>"
    report = check(table.assign(region_coordinates="(0, 0, 1000, 32)"), folder, frames=years)
    assert repr(report) == "<Report on the DataFrame: 8 problems, 0 warnings>"
    assert repr(report.problems) == "<Problems of the DataFrame: window outside 8>"
    assert str(report).startswith(repr(report) + "\n  row 4: tile a0")
    said = repr(open_tiles(table, folder, frames=["2017", "2018"]).cost(batch_size=4))
    assert said.startswith("<Cost of 8 tiles of 2 regions in batches of 4: ")
    assert len(said) < 120
