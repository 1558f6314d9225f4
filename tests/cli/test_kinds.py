"""The scripts of the documentation do the whole job of each kind of user, in twenty lines."""

from __future__ import annotations

import os
import runpy
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lazytiles as lt
from lazytiles.cli.commands import main
from lazytiles.cli.kinds import KINDS, make

SCRIPTS = Path(__file__).resolve().parents[2] / "docs" / "start" / "scripts"
LINES = 20
# What each script must have written when it ends.
WRITTEN = {
    "years": ["years.png", "years-*.csv"],
    "photos": ["photos.png", "photos-found.csv"],
    "arrays": ["arrays.png", "arrays-found.csv"],
    "slides": ["slides.png", "slides/maps/s*.tif"],
    "scans": ["scans/maps/patient-*.tif"],
}


def test_each_kind_has_a_script_and_a_page() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} == set(KINDS) == set(WRITTEN)
    assert all((SCRIPTS.parent / f"{kind}.md").exists() for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_is_short(kind: str) -> None:
    lines = [line for line in (SCRIPTS / f"{kind}.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= LINES


@pytest.mark.leaks(reason="zarr and Keras keep their threads")
@pytest.mark.parametrize("kind", KINDS)
def test_a_script_does_the_whole_job(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("keras")
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["demo", "--data", kind])
    assert done.exit_code == 0, done.output
    assert f"made in {kind}" in done.output
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(done.output.split("\n\n")[1]), namespace)  # noqa: S102  # what is printed to be copied works
    assert len(namespace["images"]) in {8, 32}
    runpy.run_path(str(SCRIPTS / f"{kind}.py"), run_name="__main__")
    for pattern in WRITTEN[kind]:
        assert list(tmp_path.glob(pattern)), pattern


@pytest.mark.leaks(reason="zarr and Keras keep their threads")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_files(kind: str, tmp_path: Path) -> None:
    if kind == "arrays":
        pytest.importorskip("zarr")
    made = []
    for name in "ab":
        make(kind, tmp_path / name, seed=1)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file() and p.suffix != ".h5")
        made.append([(os.path.relpath(p, tmp_path / name), p.read_bytes()) for p in files])
    assert made[0] == made[1]


@pytest.mark.leaks(reason="zarr keeps its event loop")
def test_the_arrays_are_the_same_in_each_format(tmp_path: Path) -> None:
    for package in ("h5py", "zarr"):
        pytest.importorskip(package)
    make("arrays", tmp_path)
    whole = lt.open_region(tmp_path / "images.npy")[:]
    for name in ("images.h5::images", "images.zarr"):
        assert (lt.open_region(f"{tmp_path}/{name}")[:] == whole).all()


@pytest.mark.parametrize(("page", "table"), [("photos", "photos.csv"), ("years", "tiles.csv")])
def test_the_rows_that_a_page_shows_are_those_that_are_made(page: str, table: str, tmp_path: Path) -> None:
    make(page, tmp_path)
    rows = (tmp_path / table).read_text().splitlines()[:3]
    assert "\n".join(rows) in (SCRIPTS.parent / f"{page}.md").read_text()
