"""The public list: sorted, importable, documented, annotated; importing the package loads no framework."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lazytiles as lt

HEAVY = ("keras", "tensorflow", "torch", "jax", "dask.array", "dask.dataframe", "matplotlib", "h5py", "zarr",
         "blosc2", "distributed", "fsspec", "scipy.ndimage", "rich", "click")  # fmt: skip


def test_the_list_is_sorted() -> None:
    assert lt.__all__ == sorted(lt.__all__)
    assert len(set(lt.__all__)) == len(lt.__all__)


def test_dir_has_the_whole_list() -> None:
    assert set(lt.__all__) <= set(dir(lt))
    assert dir(lt) == sorted(dir(lt))


def test_editors_see_the_same_names() -> None:
    seen = {}
    for node in ast.parse(Path(str(lt.__file__)).with_suffix(".pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            (alias,) = node.names  # one name a line is what `__init__.py` reads, and a name twice what is exported
            assert alias.asname == alias.name, f"line {node.lineno}: import {alias.name} as {alias.name}"
            seen[alias.name] = str(node.module)
    assert seen == lt._PUBLIC
    assert set(seen) == set(lt.__all__)


def test_no_module_hides_a_public_name() -> None:
    # Importing lazytiles.x binds the module x in the package, over a function of that name.
    modules = {path.stem for path in Path(str(lt.__file__)).parent.glob("*") if path.suffix in {".py", ""}}
    assert not {name for name, module in lt._PUBLIC.items() if module != "lazytiles"} & modules


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lazytiles' has no attribute 'open_tyles'"):
        _ = lt.open_tyles


def public_members(value: object) -> list[object]:
    if not inspect.isclass(value):
        return [value]
    own = [m for n, m in vars(value).items() if not n.startswith("_")]
    return [value, *(m for m in own if inspect.isfunction(m) or isinstance(m, property))]


@pytest.mark.parametrize("name", lt.__all__)
def test_a_public_name_is_documented_and_annotated(name: str) -> None:
    if name == "KerasAdapter":
        pytest.importorskip("keras")
    value = getattr(lt, name)
    assert getattr(lt, name) is value
    if isinstance(value, ModuleType):
        assert value.__doc__
        return
    for member in public_members(value):
        function = member.fget if isinstance(member, property) else member
        label = f"{name}.{getattr(function, '__name__', '')}"
        assert inspect.getdoc(member), f"{label} has no docstring"
        if inspect.isfunction(function):
            parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in {"self", "cls"}]
            bare = [p.name for p in parameters if p.annotation is p.empty]
            assert not bare, f"{label}: parameters without annotation: {bare}"
            assert "return" in function.__annotations__, f"{label}: no return annotation"


@pytest.mark.parametrize("name", [n for n in lt.__all__ if n[0].islower()])
def test_options_are_keyword_only(name: str) -> None:
    value = getattr(lt, name)
    if inspect.isfunction(value):
        optional = [
            p.name
            for p in inspect.signature(value).parameters.values()
            if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        assert len(optional) <= 2, f"{name}: {optional} may be given by position"


def test_the_exceptions_are_builtins_too() -> None:
    refined = {
        lt.ManifestError: ValueError,
        lt.LimitError: ValueError,
        lt.RegionError: OSError,
        lt.SegmentError: lt.RegionError,
        lt.StoreError: OSError,
    }
    for error, builtin in refined.items():
        assert issubclass(error, lt.LazyTilesError)
        assert issubclass(error, builtin)


def _run(code: str) -> str:
    root = str(Path(str(lt.__file__)).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_no_framework() -> None:
    loaded = json.loads(_run("import sys, json, lazytiles; print(json.dumps(sorted(sys.modules)))"))
    assert not set(HEAVY) & set(loaded)


def test_opening_tiles_loads_no_framework() -> None:
    code = (
        "import sys, json, lazytiles as lt\n"
        "lt.open_tiles, lt.MultiSourceArray, lt.BatchFlow, lt.DelayedView, lt.open_region\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    frameworks = {"keras", "tensorflow", "torch", "jax", "dask.array", "matplotlib"}
    assert not frameworks & set(json.loads(_run(code)))


def test_importing_imports_little_of_its_own() -> None:
    loaded = json.loads(_run("import sys, json, lazytiles; print(json.dumps(sorted(sys.modules)))"))
    assert [m for m in loaded if m.startswith("lazytiles")] == ["lazytiles", "lazytiles.verbs"]


def test_python_m_lazytiles_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lazytiles", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(str(lt.__file__)).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert lt.__version__ in done.stdout
