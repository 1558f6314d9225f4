"""The reference is complete: every public object, every member, every option, and no section mangled."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lazytiles as lt

pytest.importorskip("keras")
DOCS = Path(__file__).resolve().parents[1] / "docs"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


style = load("house_style")
pages = load("reference_pages")  # which imports the one before
NAMES = [name for names in pages.GROUPS.values() for name in names]
RESULTS = {  # what calls give back, and the page that shows it
    "Region.plan": "Plan", "Region.levels": "Level", "MultiSourceArray.cost": "Cost", "check": "Report",
    "mixing": "Mixing", "leakage": "Leak",
    "verify_store": "Verified", "settings": "Settings", "MultiSourceArray.statistics": "Statistics",
    "stack_regions": "RegionStack", "KerasAdapter.callback": "EpochCallback",
    "KerasAdapter.resume_callback": "ResumeCallback",
}  # fmt: skip


def test_every_public_name_has_one_page() -> None:
    assert len(NAMES) == len({pages.slug(name) for name in NAMES})
    assert set(lt.__all__) - pages.MODULES <= set(NAMES)
    assert set(lt.augment.__all__) == {pages.slug(name) for name in NAMES if name.startswith("augment.")}


def test_what_the_pages_import_has_a_page() -> None:
    text = "".join(path.read_text() for path in [DOCS.parent / "README.md", *DOCS.glob("*/*.md")])
    imported = re.findall(r"^(?:>>> )?from lazytiles\.([\w.]+) import (.+)$", text, flags=re.MULTILINE)
    names = {f"{module}.{name}" for module, named in imported for name in re.findall(r"\w+", named.partition("#")[0])}
    # The module of torch is there where torch is; the page on torch says what its data set can do.
    assert names - {"training.torch.to_torch"} <= set(NAMES)


@pytest.mark.parametrize("name", RESULTS)
def test_what_a_call_gives_back_has_a_page(name: str) -> None:
    call: Any = lt
    for part in name.split("."):
        call = getattr(call, part)
    assert RESULTS[name] in {pages.slug(other) for other in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_every_attribute(name: str) -> None:
    value = pages.resolve(name)
    if not inspect.isclass(value) or issubclass(value, BaseException):
        return
    ours = [base for base in value.__mro__ if base.__module__.startswith("lazytiles")]
    wanted = {n for n in dir(value) if n[0] != "_" and any(n in vars(base) for base in ours)}
    listed = re.search(r":members: (.*)", pages.object_page(name))
    told = pages.told_by_class(value)
    assert told <= wanted
    assert told | (set(listed[1].split(", ")) if listed else set()) == wanted - {"annotations"}


@pytest.mark.parametrize("name", lt.__all__)
def test_every_member_says_what_it_is(name: str) -> None:
    value = getattr(lt, name)
    if not inspect.isclass(value):
        return
    for member in pages.members_of(value):
        found = inspect.getattr_static(value, member)
        if callable(found) or hasattr(found, "__get__"):
            assert inspect.getdoc(found), f"{name}.{member}"


@pytest.mark.parametrize("name", sorted(pages.main.commands))
def test_a_command_s_page_has_every_option(name: str) -> None:
    text = pages.command_page(name)
    for parameter in pages.main.commands[name].params:
        shown = parameter.opts if hasattr(parameter, "is_flag") else [parameter.name.upper()]
        assert all(f"`{one}`" in text for one in shown), shown


def documented() -> dict[str, Any]:
    found = {}
    for name in NAMES:
        value = found[name] = pages.resolve(name)
        if inspect.isclass(value):
            for member in pages.members_of(value):
                part = inspect.getattr_static(value, member)
                function = getattr(part, "fget", None) or getattr(part, "__func__", part)
                if inspect.isfunction(function):
                    found[f"{name}.{member}"] = function
    return found


@pytest.mark.parametrize("name", documented())
def test_no_section_is_mangled(name: str) -> None:
    value = documented()[name]
    lines = (inspect.getdoc(value) or "").splitlines()
    for title, body in style.sections(lines):
        text = "\n".join(body)
        if title in {"Parameters", "Other Parameters", "Raises", "Attributes"}:
            assert ">>>" not in text, f"{name}: an example inside {title}"
            for line in body:
                entry = style.ENTRY.fullmatch(line) or re.fullmatch(r"[\w*, ]+", line)
                assert not line or line[0] == " " or entry, f"{name}: {title}: {line!r} is no entry"
        if title in {"Parameters", "Other Parameters"}:
            known = set(inspect.signature(value).parameters)
            entries = [style.ENTRY.fullmatch(line) for line in body if line and line[0] != " "]
            named = {part.strip("* ") for entry in entries if entry for part in entry[1].split(",")}
            assert named <= known, f"{name}: parameters that are not there: {named - known}"
    told = style.retold(lines)
    titles = [title for title, _ in style.sections(told)]
    assert len(titles) == len(set(titles)), f"{name}: {titles}"
    numpydoc = pytest.importorskip("numpydoc.docscrape")
    parsed = numpydoc.NumpyDocString("\n".join(told))
    assert not [p.name for p in parsed["Parameters"] if " " in p.name.replace(", ", "")], name
