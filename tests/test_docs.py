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
MADE = ROOT / "docs" / "reference"  # written from the code, by docs/reference_pages.py
PAGES = sorted(p for p in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")] if MADE not in p.parents)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            path = (page.parent / target).resolve()
            assert path.exists() or path == MADE / "index.md", f"{page.name} links to {target}"


def test_every_page_is_in_the_contents_once() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    listed = re.findall(r"^((?:start|do|understand|reference)/[\w-]+|words|changelog)$", text, flags=re.MULTILINE)
    pages = {p.relative_to(ROOT / "docs").with_suffix("").as_posix() for p in PAGES if ROOT / "docs" in p.parents}
    assert sorted(listed) == sorted(pages - {"index"} | {"reference/index"})


def test_every_picture_is_made_by_a_script() -> None:
    makers = [*(ROOT / "docs").glob("make_*.py"), ROOT / "benchmarks" / "cores.py"]
    scripts = "".join(path.read_text() for path in makers)
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.name in scripts, path.name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shown_block_is_run(page: Path) -> None:
    languages = set(re.findall(r"^```([\w{}-]+)", page.read_text(), flags=re.MULTILINE))
    run = {"python", "console"} | ({"sh"} if page.name == "README.md" else set())
    # tests/cli/test_kinds.py runs the scripts that are included.
    shown = {"{toctree}", "{eval-rst}", "{include}", "{literalinclude}", "text", "csv", "json"}
    assert languages <= run | shown, f"{page.name} has blocks that nothing executes"


def test_the_map_of_the_house_is_true() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = {
        name
        for name in re.findall(r"`(\w+/[\w/]*(?:\.py)?)`", page)
        if not name.startswith(("docs/", "lazytiles/", "tests/", "Images/"))
    }
    assert len(named) > 30
    lost = sorted(name for name in named if not (ROOT / "lazytiles" / name).exists())
    assert not lost, f"CONTRIBUTING.md names {lost}"
    drawn = runpy.run_path(str(ROOT / "docs" / "make_house_picture.py"))["picture"]()
    again = "python docs/make_house_picture.py draws it anew"
    assert drawn == (ROOT / "docs" / "images" / "house.svg").read_text("utf-8"), again


def test_the_version_stands_in_one_place() -> None:
    assert settings()["metadata"]["version"] == "attr: lazytiles.__version__"
    assert f"## [{lt.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    for page in ("README.md", "docs/start/install.md"):
        assert f"lazytiles-{lt.__version__}-py3-none-any.whl" in (ROOT / page).read_text(), page
    assert f"version: {lt.__version__}\n" in (ROOT / "CITATION.cff").read_text()
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
