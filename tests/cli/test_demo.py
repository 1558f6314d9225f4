"""The demo learns what is there to be learned, and nothing when targets and tiles are out of step."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from lazytiles.cli import demo
from lazytiles.errors import ManifestError

pytest.importorskip("keras")
pytest.importorskip("matplotlib")


def digest(folder: Path) -> str:
    sums = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        sums.update(path.name.encode() + path.read_bytes())
    return sums.hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    demo.make_data(folder, seed=3, regions=10, size=256, tile=32)
    return folder


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        demo.make_data(tmp_path / name, seed=seed, regions=2, size=64, tile=32)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_the_images_are_lzw_rgb_and_the_table_is_the_older_system_s(made: Path) -> None:
    table = pd.read_csv(made / "tiles.csv", dtype=str)
    assert list(table) == ["tile_id", "region_id", "label_id", "target", "region_coordinates"]
    assert len(table) == 10 * 3 * 64
    for year, region in {*zip(table.label_id, table.region_id, strict=True)}:
        with tifffile.TiffFile(made / "Images" / year / f"{region}.tif") as file:
            assert file.pages[0].compression == tifffile.COMPRESSION.LZW
            assert file.pages[0].shape == (256, 256, 3)


def test_the_array_is_what_the_files_hold(made: Path) -> None:
    tiles = demo.open_data(made / "Images", made / "tiles.csv")
    assert tiles.shape == (640, 3, 32, 32, 3)
    table = pd.read_csv(made / "tiles.csv", dtype=str).iloc[2::3]
    np.testing.assert_allclose(tiles.labels, table.target.astype(float))
    for i in (0, 77, 639):
        x0, y0, x1, y1 = (int(v) for v in table.region_coordinates.iloc[i].strip("()").split(","))
        images = [tifffile.imread(made / "Images" / y / f"{table.region_id.iloc[i]}.tif") for y in ("2016", "2018")]
        np.testing.assert_array_equal(tiles[i, ::2], [image[y0:y1, x0:x1] for image in images])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_demo_beats_the_mean_on_regions_held_apart(tmp_path: Path, seed: int) -> None:
    demo.make_data(tmp_path, seed=seed, regions=10, size=256, tile=32)
    said: list[str] = []
    outcome = demo.run(
        directory=tmp_path,
        images=tmp_path / "Images",
        manifest=tmp_path / "tiles.csv",
        seed=seed,
        say=said.append,
    )
    assert outcome.r2 >= 0.8
    assert outcome.r2_of_mean <= 0.01
    assert outcome.tiles_per_s > 0
    assert outcome.picture == tmp_path / "demo.png"
    with Image.open(outcome.picture) as picture:
        assert len(picture.convert("RGB").getcolors(2**24) or ()) > 1000
    text = "\n".join(said)
    assert f"R² {outcome.r2:.3f} (predicting the mean: {outcome.r2_of_mean:.3f})" in text
    assert "(640, 3, 32, 32, 3)" in text
    assert str(outcome.picture) in text


def test_targets_out_of_step_with_tiles_cannot_be_learned(made: Path, tmp_path: Path) -> None:
    table = pd.read_csv(made / "tiles.csv", dtype=str)
    tiles = table.tile_id.unique()
    other = dict(zip(tiles, np.random.default_rng(0).permutation(tiles), strict=True))
    targets = table.drop_duplicates("tile_id").set_index("tile_id").target
    table["target"] = targets[table.tile_id.map(other)].to_numpy()
    table.to_csv(tmp_path / "slipped.csv", index=False)
    outcome = demo.run(
        directory=tmp_path, images=made / "Images", manifest=tmp_path / "slipped.csv", say=lambda line: None
    )
    assert outcome.r2 < 0.2


def test_unequal_windows_are_resampled_and_the_split_shares_no_region(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for region in ("a", "b", "c"):
        tifffile.imwrite(tmp_path / f"{region}.tif", rng.integers(0, 255, (50, 90), dtype=np.uint16))
        rows += [
            (f"{region}0", region, 0.5, "(0, 0, 40, 50)"),
            (f"{region}1", region, 1.5, "(10, 0, 90, 30)"),
        ]
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "target", "region_coordinates"])
    table.to_csv(tmp_path / "tiles.csv", index=False)
    tiles = demo.open_data(tmp_path, tmp_path / "tiles.csv")
    assert tiles.shape == (6, 64, 64, 1)
    assert tiles.dtype == np.uint16
    known, apart = demo.hold_apart(tiles, seed=0)
    assert not {*known.table.region_id} & {*apart.table.region_id}
    assert len(known) + len(apart) == 6
    demo.draw(tiles, tiles.labels, tmp_path / "tiles.png")
    assert (tmp_path / "tiles.png").stat().st_size > 0


def test_labels_that_are_no_frames_are_rows(tmp_path: Path) -> None:
    demo.make_data(tmp_path, regions=2, size=64, tile=32)
    table = pd.read_csv(tmp_path / "tiles.csv", dtype=str).query("label_id == '2016' or tile_id.str.endswith('0032')")
    table.drop_duplicates("tile_id", keep="last").to_csv(tmp_path / "some.csv", index=False)
    tiles = demo.open_data(tmp_path / "Images", tmp_path / "some.csv")
    assert tiles.shape == (8, 32, 32, 3)
    assert sorted(set(tiles.table.label_id)) == ["2016", "2018"]


def test_images_and_manifest_come_together(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="needs both --images FOLDER and --manifest CSV"):
        demo.run(directory=tmp_path, images=tmp_path)


def test_one_region_cannot_be_held_apart(tmp_path: Path) -> None:
    demo.make_data(tmp_path, regions=1, size=64, tile=32)
    tiles = demo.open_data(tmp_path / "Images", tmp_path / "tiles.csv")
    with pytest.raises(ManifestError, match="two regions or more"):
        demo.hold_apart(tiles, seed=0)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lazytiles", "demo", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )


def test_the_command_runs_on_files_of_the_user_s_own(made: Path, tmp_path: Path) -> None:
    own = ("--images", made / "Images", "--manifest", made / "tiles.csv")
    done = command(*own, "--dir", tmp_path, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    assert "512 tiles, 128 tiles of other regions held apart" in done.stdout
    assert "predicting the mean" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]


def test_the_command_explains_half_of_what_it_needs(made: Path) -> None:
    done = command("--images", made / "Images")
    assert done.returncode != 0
    assert "needs both --images FOLDER and --manifest CSV" in done.stderr
    assert "Traceback" not in done.stderr
