"""The pages keep up with the code: every public name, command and page is there, once."""

from __future__ import annotations

import configparser
import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest

import lazytiles as lt

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.mark.parametrize("name", lt.__all__)
def test_the_reference_has_every_public_name(name: str) -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    assert re.search(rf":: lazytiles\.{name}$", text, flags=re.MULTILINE), f"docs/reference.md lacks {name}"


def test_the_reference_has_no_other_name() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    assert set(re.findall(r":: lazytiles\.(\w+)$", text, flags=re.MULTILINE)) == set(lt.__all__)


def test_every_command_is_in_the_pages() -> None:
    cli = pytest.importorskip("lazytiles.cli.commands")
    text = "\n".join(page.read_text() for page in PAGES)
    for name in cli.main.commands:
        assert re.search(rf"lazytiles {name}\b", text), f"no page shows `lazytiles {name}`"


def test_the_readme_has_two_commands_of_one_line_each() -> None:
    commands = blocks((ROOT / "README.md").read_text(), "sh")
    assert len(commands) == 2
    for command in commands:
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv ")
    assert "lazytiles demo" in commands[0]
    assert "pytest" in commands[1]


def test_ci_runs_what_the_readme_shows() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "README.md" in script.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_shown_block_is_run(page: Path) -> None:
    languages = set(re.findall(r"^```([\w{}-]+)$", page.read_text(), flags=re.MULTILINE))
    run = {"python", "console"} | ({"sh"} if page.name == "README.md" else set())
    shown = {"{toctree}", "{eval-rst}", "text", "csv", "json"}
    assert languages <= run | shown, f"{page.name} has blocks that nothing executes"


def test_the_map_of_the_house_is_true() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = {
        name
        for name in re.findall(r"`(\w+/[\w/]*(?:\.py)?)`", page)
        if not name.startswith(("lazytiles/", "tests/", "Images/"))
    }
    assert len(named) > 30
    lost = sorted(name for name in named if not (ROOT / "lazytiles" / name).exists())
    assert not lost, f"CONTRIBUTING.md names {lost}"
    drawn = runpy.run_path(str(ROOT / "docs" / "make_house_picture.py"))["picture"]()
    again = "python docs/make_house_picture.py draws it anew"
    assert drawn == (ROOT / "docs" / "images" / "house.svg").read_text("utf-8"), again


def test_the_version_stands_in_one_place() -> None:
    assert settings()["metadata"]["version"] == "attr: lazytiles.__version__"
    assert f"## {lt.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    written = [p for p in (ROOT / "lazytiles").rglob("*.py") if f'"{lt.__version__}"' in p.read_text()]
    assert [p.name for p in written] == ["__init__.py"]


def test_all_is_everything_but_the_gigabytes() -> None:
    extras = settings()["options.extras_require"]
    named = re.search(r"lazytiles\[(.*)\]", extras["all"])
    assert named is not None
    assert set(named[1].split(",")) == set(extras) - {"all", "docs", "jax", "test", "torch"}


def test_every_requirement_has_a_lower_bound() -> None:
    options = settings()
    for line in options["options"]["install_requires"].split("\n"):
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9]+>=[\d.]+", line), line
