"""The command line through its real entry point: what each command writes, prints and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

import lazytiles
from lazytiles.arrays.cost import reading_cost
from lazytiles.cli.commands import main
from lazytiles.errors import ManifestError
from lazytiles.manifests.manifest import read_manifest
from lazytiles.manifests.tiles import open_tiles
from lazytiles.reports.statistics import load_statistics
from lazytiles.stores.saving import open_store

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["check", "demo", "export", "grid", "info", "preview", "stats", "verify"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images of two years and a manifest, and the current folder."""
    rows = []
    for r, region in enumerate("ab"):
        for year in ("2017", "2018"):
            (tmp_path / "Images" / year).mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(r).integers(0, 255, (96, 64, 3), np.uint8)
            tifffile.imwrite(tmp_path / "Images" / year / f"{region}.tif", image, rowsperstrip=96, compression="lzw")
            for k in range(6):
                x, y = k % 2 * 32, k // 2 * 32
                rows.append((f"{region}{k}", region, year, k / 10, f"({x}, {y}, {x + 32}, {y + 32})"))
    columns = ["tile_id", "region_id", "label_id", "target", "region_coordinates"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "tiles.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entry(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "lazytiles", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "100"},
    )


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


TILES = ("tiles.csv", "--images", "Images")
FRAMES = ("--frames", "2017,2018")


def is_store(desk: Path, said: str) -> bool:
    return open_store(desk / "tiles.npy").shape == (12, 2, 32, 32, 3) and "wrote tiles.npy" in said


def has_digests(desk: Path, said: str) -> bool:
    lines = (desk / "tiles.csv.sha256").read_text().splitlines()
    return len(lines) == 4 and "nothing stops training" in said and "<html" in (desk / "r.html").read_text()


def is_grid(desk: Path, said: str) -> bool:
    table = read_manifest(desk / "grid.csv")
    return len(table) == 24 and "each pixel lies in 1 to 1 tiles; 100.0% of the pixels are covered" in said


def is_page(desk: Path, said: str) -> bool:
    return (desk / "p.html").read_text().count('class="tile"') == 24


def is_picture(desk: Path, said: str) -> bool:
    with Image.open(desk / "p.png") as picture:
        return picture.size[0] > 300


def has_costs(desk: Path, said: str) -> bool:
    return "12 tiles of 2 regions" in said and "shuffled" in said and "MiB" in said


def has_statistics(desk: Path, said: str) -> bool:
    whole = np.asarray(open_tiles(desk / "tiles.csv", desk / "Images", frames="each")).astype(np.float64)
    found = load_statistics(desk / "s.json")
    return np.allclose(found.mean, whole.mean(axis=(0, 1, 2))) and "24 tiles; band: mean" in said


RUNS: dict[str, tuple[tuple[str, ...], Callable[[Path, str], bool]]] = {
    "check": (("check", *TILES, *FRAMES, "--read", "--digest", "--html", "r.html"), has_digests),
    "export": (("export", "tiles.csv", "-o", "tiles.npy", "--images", "Images", *FRAMES), is_store),
    "grid": (("grid", "Images", "--size", "32", "--edge", "partial", "-o", "grid.csv"), is_grid),
    "grid in micrometres": (
        (
            "grid",
            "Images",
            "--size",
            "16",
            *("--mpp", "0.5", "--source-mpp", "0.25", "--edge", "partial"),
            "-o",
            "grid.csv",
        ),
        is_grid,
    ),
    "info": (("info", *TILES, *FRAMES, "--batch-size", "4"), has_costs),
    "info of an image": (("info", "Images/2017/a.tif"), lambda _, said: "LZW, strips of 96 x 64" in said),
    "preview page": (("preview", *TILES, "-o", "p.html"), is_page),
    "preview picture": (("preview", *TILES, *FRAMES, "-n", "6", "--seed", "1", "-o", "p.png"), is_picture),
    "stats": (("stats", *TILES, "--frames", "each", "-o", "s.json"), has_statistics),
    "version": (("--version",), lambda _, said: lazytiles.__version__ in said),
}


@pytest.mark.parametrize("name", RUNS)
def test_commands_do_what_they_say(name: str, desk: Path) -> None:
    words, is_right = RUNS[name]
    done = entry(*words, cwd=desk)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert is_right(desk, done.stdout), done.stdout


ERRORS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "check": (("check", "bad.csv", "--images", "Images"), 1, "the column region_id is missing"),
    "demo": (("demo", "--images", "Images"), 2, "needs both --images FOLDER and --manifest CSV"),
    "export": (("export", *TILES, *FRAMES, "-o", "tiles.xyz"), 2, "a store ends in .zarr"),
    "export again": (("export", *TILES, *FRAMES, "-o", "bad.npy"), 2, "pass --overwrite"),
    "grid": (("grid", "Images", "--size", "99", "-o", "g.csv"), 1, "a window of 99 pixels cannot be shifted"),
    "grid again": (("grid", "Images", "--size", "32", "-o", "tiles.csv"), 2, "pass --overwrite"),
    "grid output": (("grid", "Images", "--size", "32", "-o", "g.xlsx"), 2, "a .csv or a .parquet file"),
    "grid size": (("grid", "Images", "--size", "3y", "-o", "g.csv"), 2, "is not HEIGHTxWIDTH"),
    "grid rule": (("grid", "Images", "--size", "32", "--keep", "os", "-o", "g.csv"), 1, "keep rule 'os'"),
    "info": (("info", "bad.tif"), 1, "bad.tif"),
    "check again": (("check", *TILES, *FRAMES, "--html", "bad.npy"), 2, "pass --overwrite"),
    "demo of both": (("demo", "--data", "photos", *TILES[1:], "--manifest", "tiles.csv"), 2, "leave it out"),
    "demo again": (("demo", "--data", "photos", "--dir", "Images"), 2, "pass --overwrite"),
    "demo picture": (("demo",), 2, "demo.png is there already; pass --overwrite"),
    "demo table": (("demo", "--dir", "own"), 2, "tiles.csv is there already; pass --overwrite"),
    "demo of nothing": (("demo", "--data", "songs"), 2, "'years', 'photos', 'arrays', 'slides', 'scans'"),
    "preview again": (("preview", *TILES, "-o", "bad.png"), 2, "pass --overwrite"),
    "stats again": (("stats", *TILES, *FRAMES, "-o", "bad.npy"), 2, "pass --overwrite"),
    "advice": (("export", *TILES, "-o", "t.npy"), 1, "--frames"),
    "export frames": (("export", *TILES, *FRAMES, "-o", "{tile_id}.tif"), 1, "a TIFF holds no frames"),
    "preview": (("preview", *TILES, "-o", "p.doc"), 2, "an .html page or a .png picture"),
    "preview images": (("preview", "tiles.csv", "--images", "none"), 1, "there is no such image folder"),
    "stats": (("stats", *TILES, *FRAMES, "--path", "{region_id}.tif"), 1, "is missing"),
    "bands": (("stats", *TILES, "--bands", "x"), 2, "is not a list of bands"),
    "verify": (("verify", "bad.sha256"), 1, "line 1: a SHA-256 and a path"),
    "verify store": (("verify", "bad.npy"), 1, "bad.npy"),
    "no file": (("check", "absent.csv"), 2, "does not exist"),
    "no command": (("chek",), 2, "No such command"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_messages_with_exit_codes(name: str, desk: Path) -> None:
    (desk / "bad.csv").write_text("tile_id\n1\n")
    (desk / "own").mkdir()
    for file in ("bad.tif", "bad.sha256", "bad.npy", "bad.png", "demo.png", "own/tiles.csv"):
        (desk / file).write_text("nothing\n")
    words, code, message = ERRORS[name]
    done = run(*words)
    assert done.exit_code == code, done.output
    assert message in done.output
    assert "Traceback" not in done.output


def test_every_command_has_a_run_an_error_and_help() -> None:
    assert sorted(main.commands) == COMMANDS
    for name in COMMANDS:
        assert any(words[0] == name for words, _, _ in ERRORS.values())
        said = run(name, "--help").output
        assert f"Examples:\n  lazytiles {name}" in said
    ran = {words[0] for words, _ in RUNS.values()}
    # The demo trains a model: its own tests run it; verify is run below.
    assert ran >= {*COMMANDS} - {"demo", "verify"}


def test_a_fault_makes_check_fail_and_json_tell(desk: Path) -> None:
    text = (desk / "tiles.csv").read_text().replace("(0, 0, 32, 32)", "(0, 0, 32, 99)")
    (desk / "tiles.csv").write_text(text)
    done = entry("check", *TILES, "--frames", "each", "--size", "32", "--json", cwd=desk)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["ok"]
    assert [(kind["kind"], kind["count"]) for kind in found["problems"]] == [("window outside", 4)]
    assert "line 2: tile a0 with box (0, 0, 32, 99) leaves region a" in found["problems"][0]["messages"][0]


def test_verify_tells_what_changed(desk: Path) -> None:
    assert run("check", *TILES, *FRAMES, "--digest").exit_code == 0
    good = entry("verify", "tiles.csv.sha256", "--images", "Images", cwd=desk)
    assert (good.returncode, good.stdout) == (0, "tiles.csv.sha256: every image is as it was\n")
    (desk / "Images/2017/a.tif").write_bytes(b"other")
    bad = run("verify", "tiles.csv.sha256", "--images", "Images")
    assert bad.exit_code == 1
    assert "a.tif has changed since its digest was taken" in bad.output
    before = (desk / "tiles.csv.sha256").read_bytes()
    refused = run("check", *TILES, *FRAMES, "--digest")
    assert refused.exit_code == 2
    assert "tiles.csv.sha256 is there already; pass --overwrite to replace it" in refused.output
    assert (desk / "tiles.csv.sha256").read_bytes() == before
    (desk / "Images/2017/a.tif").write_bytes((desk / "Images/2017/b.tif").read_bytes())
    done = run("check", *TILES, *FRAMES, "--digest", "--overwrite")
    assert done.exit_code == 0, done.output
    assert (desk / "tiles.csv.sha256").read_bytes() != before
    assert run("export", "tiles.csv", "-o", "t.npy", "--images", "Images", "--frames", "2018").exit_code == 0
    assert run("verify", "t.npy").exit_code == 0
    pytest.importorskip("h5py")
    assert run("export", "tiles.csv", "-o", "c/{tile_id}.tif", "--images", "Images", "--frames", "2018").exit_code == 0
    assert run("export", "tiles.csv", "-o", "t.h5", "--images", "Images", "--frames", "2018").exit_code == 0
    facts = json.loads(run("info", "t.h5", "--json").output)
    assert facts["shape"] == [12, 32, 32, 3]
    assert run("check", "Images").exit_code == 1


def test_debug_shows_the_traceback(desk: Path) -> None:
    assert isinstance(run("stats", "tiles.csv", "--images", "none", "--debug").exception, ManifestError)
    done = entry("--debug", "stats", "tiles.csv", "--images", "none", cwd=desk)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ManifestError" in done.stderr


def test_what_was_not_foreseen_is_said_so(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("lazytiles.cli.commands.check_manifest", fail)
    done = run("check", *TILES)
    assert done.exit_code == 3
    assert "KeyError: 'surprise'" in done.output
    assert "lazytiles --debug" in done.output


def test_the_demo_gets_its_options(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("lazytiles.cli.demo.run", lambda **options: seen.update(options))
    assert run("demo", "--dir", "d", "--seed", "7", "--epochs", "2").exit_code == 0
    assert {name: seen[name] for name in ("directory", "images", "manifest", "seed", "epochs")} == {
        "directory": "d", "images": None, "manifest": None, "seed": 7, "epochs": 2,
    }  # fmt: skip


def test_costs_are_the_plans(desk: Path) -> None:
    tiles = open_tiles("tiles.csv", "Images", frames=["2017", "2018"])
    cost = reading_cost(tiles, batch_size=6)
    table = cost.orders[0]
    plans = [tiles.plan(np.arange(start, start + 6)) for start in (0, 6)]
    assert table.bytes_decoded == sum(plan.bytes_decoded for plan in plans) / 2
    assert table.segments == sum(plan.segments for plan in plans) / 2
    shuffled, together = cost.orders[1:3]
    assert together.bytes_decoded < shuffled.bytes_decoded
    assert together.amplification == 1
    assert any("readahead_bytes is worth it" in said for said in cost.advice)
    assert str(cost).startswith("12 tiles of 2 regions; a batch of 6: ")
    assert json.loads(run("info", *TILES, *FRAMES, "--json").output)["orders"][0]["order"] == "as in the table"


def test_an_epoch_is_planned_in_the_order_given(desk: Path) -> None:
    tiles = open_tiles("tiles.csv", "Images", frames=["2017", "2018"]).shuffle(5)
    cost = tiles.plan(batch_size=6)
    assert cost.orders[0].order == "as it is, shuffled with seed 5"
    assert cost.orders[0].bytes_decoded == sum(tiles.plan(slice(k, k + 6)).bytes_decoded for k in (0, 6)) / 2
    assert (cost.batch_size, cost.stored, cost.segments) == (6, {"LZW, strips of 96 x 64": 4}, 4)
    assert "4 images looked at, of 4 segments: LZW, strips of 96 x 64 (4)" in str(cost)
    assert tiles.select([3, 2, 1]).plan().orders[0].order == "as in the table"
    tiles.order = tiles.order[::-1]
    assert tiles.plan().orders[0].order == "in its own order"
    assert cost.memory_bytes > tiles.plan(batch_size=6, readahead_bytes=0).memory_bytes
    with pytest.raises(TypeError, match="batch_size is for a whole epoch"):
        tiles.plan([0], batch_size=6)


def test_advice_is_for_the_windows_not_for_what_they_become(desk: Path) -> None:
    table = pd.DataFrame({"tile_id": ["x"], "region_id": "big", "region_coordinates": ["(0, 0, 256, 256)"]})
    tifffile.imwrite("Images/2017/big.tif", np.zeros((4096, 4096), np.uint8), rowsperstrip=4096, compression="lzw")
    for size in (None, (8, 8)):
        cost = open_tiles(table, "Images/2017", path="{region_id}.tif", size=size).plan()
        assert any("about 4.0 bytes decoded for each delivered instead of 256.0" in said for said in cost.advice)


def test_volumes_have_no_cost_but_a_message(desk: Path) -> None:
    tifffile.imwrite("v.tif", np.zeros((4, 16, 16), np.uint8), photometric="minisblack")
    (desk / "v.csv").write_text('tile_id,region_id,region_coordinates\na,v,"(0, 0, 0, 8, 8, 2)"\n')
    done = run("info", "v.csv")
    assert done.exit_code == 1
    assert "(1, 2, 8, 8, 1) uint8" in done.output


@pytest.mark.parametrize(("name", "stored"), [("a.png", "PNG, one picture"), ("a.npy", "an array")])
def test_any_image_has_facts(name: str, stored: str, desk: Path) -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    np.save(name, image) if name.endswith(".npy") else Image.fromarray(image).save(name)
    facts = json.loads(run("info", name, "--json").output)
    assert (facts["shape"], facts["stored as"]) == ([40, 50, 3], stored)


def test_stacks_have_facts(desk: Path) -> None:
    about = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": ["a", "b"]}}
    stack = np.zeros((2, 40, 50), np.uint8)
    tifffile.imwrite("a.ome.tif", stack, ome=True, metadata=about, photometric="minisblack")
    facts = json.loads(run("info", "a.ome.tif", "--json").output)
    assert (facts["shape"], facts["axes"], facts["micrometres a pixel"]) == ([40, 50], "YX", [0.5, 0.5])
    assert {"other images", "channels"} & set(facts) == set()


@pytest.mark.leaks(reason="zarr keeps its event loop")
def test_multiscale_groups_have_facts(desk: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group("a.ome.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=np.zeros((2, 40, 50), np.uint8), chunks=(1, 20, 20))
    axes = [{"name": "c"}, {"name": "y"}, {"name": "x"}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    facts = json.loads(run("info", "a.ome.zarr", "--json").output)
    assert (facts["shape"], facts["axes"], facts["levels"]) == ([2, 40, 50], "CYX", [[40, 50]])


def test_large_strips_are_advised_against(desk: Path) -> None:
    image = np.zeros((2048, 2048), np.uint8)
    tifffile.imwrite("Images/2017/big.tif", image, rowsperstrip=2048, compression="lzw")
    boxes = [f"({k}, {k}, {k + 64}, {k + 64})" for k in (0, 1000)]
    table = pd.DataFrame({"tile_id": ["x", "y"], "region_id": "big", "region_coordinates": boxes})
    cost = reading_cost(open_tiles(table, "Images/2017", path="{region_id}.tif"))
    assert any("rewriting the images with tiles of 256 x 256 pixels would pay" in said for said in cost.advice)


def test_commands_take_what_open_tiles_takes(desk: Path) -> None:
    (desk / "Images/m").mkdir()
    for region in "ab":
        tifffile.imwrite(desk / f"Images/m/{region}.tif", np.zeros((96, 64) if region == "a" else (48, 64), np.uint8))
    masks = ("--masks", "m/{region_id}.tif")
    assert run("check", *TILES, *FRAMES).exit_code == 0
    said = run("check", *TILES, *FRAMES, *masks)
    assert said.exit_code == 1
    assert "b.tif is 96 x 64 pixels" in said.output
    assert "m/b.tif is 48 x 64" in said.output
    assert run("check", *TILES, *FRAMES, *masks, "--where", "region_id=a").exit_code == 0
    kept = ("--where", "region_id=a", "--where", "target=0.1,0.3", "--gray", "--size", "8x4", "--resample", "area")
    assert "wrote k.npy: (2, 2, 8, 4, 1) uint8" in run("export", *TILES, *FRAMES, *kept, "-o", "k.npy").output
    (desk / "Images/2017/b.tif").unlink()
    assert "2017/b.tif is missing" in run("check", *TILES, *FRAMES).output
    assert run("check", *TILES, *FRAMES, "--missing", "fill").exit_code == 0
    assert "(12, 2, 32, 32, 3)" in run("info", *TILES, *FRAMES, "--missing", "fill").output
    assert run("preview", *TILES, *FRAMES, "--missing", "fill", "-o", "q.html").exit_code == 0
    assert (desk / "q.html").read_text().count('class="tile"') == 18
    assert run("check", *TILES, "--where", "region_id").exit_code == 2


def test_the_preview_draws_each_row_over_its_own_image(desk: Path) -> None:
    table = pd.read_csv("tiles.csv", dtype=str)
    table["file"] = table["label_id"] + "/" + table["region_id"] + ".tif"
    table.drop(columns="region_id").to_csv("files.csv", index=False)
    words = ("files.csv", "--images", "Images", "--path", "{file}", *FRAMES)
    assert run("preview", *words, "-o", "f.html").exit_code == 0
    page = (desk / "f.html").read_text()
    assert page.count('class="tile"') == 24
    assert page.count("<figure") == 4
    assert run("check", *words).exit_code == 0


HIDDEN = "\x1b[31mred\x07\x9b2J\x7f\u202eabc\u2066\u200f\u061c\ufeff"
RAW = set("\x1b\x07\x9b\x7f\u202e\u2066\u200f\u061c\ufeff\r")


def test_names_cannot_command_the_terminal(desk: Path) -> None:
    table = pd.read_csv("tiles.csv", dtype=str)
    table["tile_id"] = table["tile_id"] + HIDDEN
    table.to_csv("odd.csv", index=False)
    for name in ("tile_id", "label_id"):  # these are no path, so that C1 and marks of direction may be in them
        table[name] = table[name].str.partition("\x1b")[0] + "\x9b2J\u202eabc\u2066\ufeff"
    table[table["label_id"].str.startswith("2017")].to_csv("soft.csv", index=False)
    table["target"] = table["target"].where(table.index > 1, "nan")
    table.to_csv("bad.csv", index=False)
    (desk / f"Im{HIDDEN}").symlink_to(desk / "Images")
    runs = [
        ["check", "odd.csv", "--images", "Images", "--html", "check.html"],
        ["check", "bad.csv", "--images", "Images", "--html", "bad.html"],
        ["info", "odd.csv", "--images", "Images", "--frames", "2017"],
        ["info", "soft.csv", "--images", "Images", "--path", "2017/{region_id}.tif"],
        ["info", f"Im{HIDDEN}/2017/a.tif"],
        ["info", f"nothing{HIDDEN}.tif"],
        ["stats", "odd.csv", "--images", "Images", "--frames", f"2017{HIDDEN}"],
        ["stats", "soft.csv", "--images", "Images", "--path", "2017/{region_id}.tif", "-o", f"s{HIDDEN}.json"],
        ["export", "soft.csv", "--images", "Images", "--path", "2017/{region_id}.tif", "-o", f"e{HIDDEN}.npy"],
        ["export", "odd.csv", "--images", f"Im{HIDDEN}", "--frames", "2019", "-o", f"e{HIDDEN}.npy"],
        ["preview", "soft.csv", "--images", "Images", "--path", "2017/{region_id}.tif", "-o", "p.html"],
        ["preview", "odd.csv", "--images", "Images", "--frames", "2017", "-o", f"p{HIDDEN}.html"],
        ["grid", f"Im{HIDDEN}", "--size", "32", "-o", f"g{HIDDEN}.csv"],
        ["verify", f"e{HIDDEN}.npy"],
    ]
    for words in runs:
        ran = CliRunner().invoke(main, words)
        assert ran.exit_code in (0, 1, 2), (words, ran.output)
        assert not RAW & set(ran.output), (words, ran.output)
    for name in ("check.html", "bad.html", "p.html"):
        assert not RAW & set((desk / name).read_text(encoding="utf-8")), name
    assert "\\x9b2J\\u202eabc" in (desk / "p.html").read_text(encoding="utf-8")
    assert "\\x9b2J\\u202eabc" in (desk / "bad.html").read_text(encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        read_manifest("nothing\x1b[2J.csv")
    assert "\\x1b[2J" in str(caught.value)


def test_ids_that_spreadsheets_take_for_formulas_are_said(desk: Path) -> None:
    for name in ("=cmd", "+1", "-2", "@x"):
        (desk / "Images" / "2017" / f"{name}.tif").write_bytes((desk / "Images" / "2017" / "a.tif").read_bytes())
    ran = CliRunner().invoke(main, ["grid", "Images/2017", "--size", "32", "-o", "grid.csv"])
    assert ran.exit_code == 0, ran.output
    assert "24 tile ids that begin with =, +, - or @ are formulas to a spreadsheet" in ran.output
    ids = read_manifest("grid.csv")["region_id"].astype(str)
    assert {"=cmd", "+1", "-2", "@x"} <= set(ids)
    assert open_tiles("grid.csv", "Images/2017")[:].shape[0] == len(ids)


def test_an_export_that_is_stopped_says_how_to_go_on(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lazytiles.cli.commands.export_tiles", stopped)
    done = run("export", *TILES, *FRAMES, "-o", "tiles.npy")
    assert done.exit_code == 130
    assert "the same command with --resume goes on" in done.output
    monkeypatch.undo()
    monkeypatch.chdir(desk)
    assert run("export", *TILES, *FRAMES, "-o", "tiles.npy", "--resume").exit_code == 0


def test_every_command_that_writes_asks_for_overwrite() -> None:
    for name in ("check", "demo", "export", "grid", "preview", "stats"):
        assert any("--overwrite" in p.opts for p in main.commands[name].params), name


def test_advice_is_in_the_words_of_the_command_line(desk: Path) -> None:
    done = run("export", *TILES, "-o", "t.npy")
    assert "frames=" not in done.output


def test_the_shell_can_complete_the_command(desk: Path) -> None:
    code = "from lazytiles.cli import main; main(prog_name='lazytiles')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={
            "PYTHONPATH": str(ROOT),
            "_LAZYTILES_COMPLETE": "bash_complete",
            "COMP_WORDS": "lazytiles demo --da",
            "COMP_CWORD": "2",
        },
    )
    assert "plain,--data" in done.stdout
