"""Runs the examples of README.md and docs/ as they stand, in folders of their own."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import shlex
import shutil
import tempfile
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# The one module that needs torch to be imported; .ci/run runs its examples where torch is installed.
collect_ignore = [] if importlib.util.find_spec("torch") else ["lazytiles/training/torch.py"]
# Scripts that train: tests/cli/test_kinds.py runs them in folders of their own.
collect_ignore.append("docs/start/scripts")


def _run_commands(example: Example) -> None:
    """Run the lines of a ``console`` block that begin with ``$``, through the real command group.

    Lines without a prompt are what the command prints: each must appear, in this order; ``...`` stands
    for anything.
    """
    from lazytiles.cli.commands import main

    printed: list[str] = []
    for line in str(example.parsed).splitlines():
        if not line.startswith("$ "):
            _expect(line, printed, example)
            continue
        program, *arguments = shlex.split(line[2:], comments=True)
        if program != "lazytiles":
            raise AssertionError(f"{example.path}:{example.line}: only lazytiles commands are run: {line}")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = main(arguments, standalone_mode=False)
        assert not code, f"{example.path}:{example.line}: {line} ended with {code}:\n{output.getvalue()}"
        printed = output.getvalue().splitlines()


def _expect(line: str, printed: list[str], example: Example) -> None:
    parts = [" ".join(part.split()) for part in line.split("...")]
    left = "\n".join(printed)
    while printed:
        got = " ".join(printed.pop(0).split())
        if all(part in got for part in parts):
            return
    raise AssertionError(f"{example.path}:{example.line}: not printed: {line}\namong:\n{left}")


def _enter(namespace: dict[str, object]) -> None:
    """A page's examples run in a new folder with ``tiles.csv`` and ``Images/``."""
    folder = Path(tempfile.mkdtemp(prefix="lazytiles-page-"))
    namespace["_left"], namespace["_folder"] = os.getcwd(), folder
    os.chdir(folder)
    from lazytiles.cli import demo

    demo.make_data(folder, seed=0, regions=6, size=256, tile=32)
    namespace["has_torch"] = importlib.util.find_spec("torch") is not None
    real = ROOT.parent / "shared" / "slides" / "CMU-1-Small-Region.svs"  # lies where the project is worked on
    namespace["has_slide"] = real.exists()
    if real.exists():
        shutil.copy(real, folder)


def _leave(namespace: dict[str, object]) -> None:
    os.chdir(str(namespace["_left"]))
    shutil.rmtree(str(namespace["_folder"]), ignore_errors=True)


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("console", _run_commands), PythonCodeBlockParser(doctest_optionflags=FLAGS), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    setup=_enter,
    teardown=_leave,
).pytest()


# Sybil's own filter ends the whole run where a chained exception did not pass through it, as warnings may.
SybilItem._traceback_filter = lambda self, excinfo: excinfo.traceback


@pytest.fixture(autouse=True)
def _examples_write_elsewhere(request: pytest.FixtureRequest, tmp_path_factory, monkeypatch) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("example"))
