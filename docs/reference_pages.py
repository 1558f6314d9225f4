"""Writes the pages of the reference: one for each public object, and one for each command.

Sphinx calls `write` before it reads the pages, so that the reference is what the code is. `GROUPS` says what is public
beside `lazytiles.__all__`: the results that calls give back, and what the pages name.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import click
import house_style

from lazytiles.cli.commands import main

GROUPS: dict[str, list[str]] = {
    "Opening": [
        "open_tiles", "open_region", "open_volumes", "open_store", "stack_regions", "register", "open_registered",
    ],
    "Tables": ["read_manifest", "make_grid", "check", "manifests.findings.Report", "manifests.problems.Problems"],
    "Arrays": [
        "Region", "MultiSourceArray", "DelayedView", "StoreArray", "arrays.volumes.RegionStack",
        "images.layouts.levels.Level", "images.plan.Plan", "arrays.cost.Cost", "arrays.cost.OrderCost",
    ],
    "Orders and splits": [
        "mixing", "leakage", "indexing.orders.Mixing", "indexing.splits.Leak", "indexing.orders.permutation",
        "indexing.orders.draw", "indexing.orders.balanced_weights", "indexing.seeds.stream",
    ],
    "Training": [
        "BatchFlow", "KerasAdapter", "training.shards.own_shard", "indexing.seeds.BatchGenerator",
        "training.keras_callbacks.EpochCallback", "training.keras_callbacks.ResumeCallback",
    ],
    "Augmentation": [
        "augment.Augment", "augment.ImageFunction", "augment.random_transform", "augment.random_transform_stack",
        "augment.as_transform", "augment.with_boxes", "augment.scaled_boxes", "augment.Boxes", "augment.Recipe",
    ],
    "Statistics and pictures": [
        "reports.statistics.statistics", "reports.statistics.Statistics", "reports.statistics.load_statistics",
        "reports.plots.plot_tiles", "reports.plots.plot_region", "reports.html.preview_page", "reports.html.check_page",
    ],
    "Predicting": ["predict", "Canvas"],
    "Writing": [
        "export", "persist", "verify_store", "stores.saving.Verified", "HDF5Writer", "ZarrWriter", "Blosc2Writer",
        "NpyWriter", "BufferedWriter",
    ],
    "Patches": ["PatchGenerator", "create_dataset"],
    "Settings": ["configure", "settings", "config.Settings", "counters", "clear_cache"],
    "Errors": ["LazyTilesError", "ManifestError", "RegionError", "SegmentError", "LimitError", "StoreError"],
}  # fmt: skip
# Classes whose values only calls give back.
GIVEN_BACK = {
    "Region", "StoreArray", "arrays.volumes.RegionStack", "images.plan.Plan", "arrays.cost.Cost",
    "arrays.cost.OrderCost", "images.layouts.levels.Level", "indexing.orders.Mixing", "indexing.splits.Leak",
    "indexing.seeds.BatchGenerator",
    "manifests.findings.Report", "manifests.problems.Problems", "reports.statistics.Statistics",
    "stores.saving.Verified", "config.Settings", "training.keras_callbacks.EpochCallback",
    "training.keras_callbacks.ResumeCallback",
}  # fmt: skip
# The module `lazytiles.augment` is public; its page is those of its names.
MODULES = {"augment"}


def resolve(name: str) -> Any:
    """The object of a dotted name under ``lazytiles``."""
    module, _, last = f"lazytiles.{name}".rpartition(".")
    return getattr(importlib.import_module(module), last)


def members_of(cls: type) -> list[str]:
    """The public attributes of a class that its own house made, inherited ones and fields too, by name."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("lazytiles")]
    names = {name for base in ours for name in vars(base) if not name.startswith("_")}
    return sorted(names - {"annotations"})


def told_by_class(cls: type) -> set[str]:
    """The fields that the class describes under Attributes, and that say nothing of themselves."""
    entries = [
        house_style.ENTRY.fullmatch(line)
        for title, body in house_style.sections((inspect.getdoc(cls) or "").splitlines())
        for line in body
        if title == "Attributes"
    ]
    named = {name for entry in entries if entry for name in entry[1].split(", ")}
    fields = {*getattr(cls, "__dataclass_fields__", ()), *getattr(cls, "_fields", ())}
    return named & fields


def slug(name: str) -> str:
    """The name of an object's page."""
    return name.rpartition(".")[2]


def first_sentence(value: Any) -> str:
    """The first line of a docstring, as Markdown."""
    said = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r"``(.*?)``", r"`\1`", said.replace("|", "\\|"))


def object_page(name: str) -> str:
    """The page of one object: its signature, its docstring and all of its members."""
    value = resolve(name)
    lines = [f"# {slug(name)}", ""]
    if "." in name and name not in GIVEN_BACK:
        lines += [f"`from lazytiles.{name.rpartition('.')[0]} import {slug(name)}`", ""]
    lines.append("```{eval-rst}")
    if inspect.isclass(value) and issubclass(value, BaseException):
        lines += [f".. autoexception:: lazytiles.{name}", "   :show-inheritance:"]
    elif inspect.isclass(value):
        lines += [f".. autoclass:: lazytiles.{name}"]
        members = [name for name in members_of(value) if name not in told_by_class(value)]
        lines += [f"   :members: {', '.join(members)}", "   :undoc-members:"] if members else []
    else:
        lines += [f".. autofunction:: lazytiles.{name}"]
    return "\n".join([*lines, "```", ""])


def coded(text: str) -> str:
    """Options and quoted values as code."""
    return re.sub(r"(?<![\w`])(--[a-z-]+|'[^']+')", lambda found: f"`{found[0]}`".replace("'", ""), text)


def options_of(command: click.Command) -> list[str]:
    """A table of the arguments and options of a command."""
    rows = ["| option | value | default | what it does |", "|---|---|---|---|"]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            rows.append(f"| `{parameter.name.upper()}` | {parameter.type.name} |  | given by its place |")
            continue
        names = ", ".join(f"`{name}`" for name in parameter.opts)
        kind = "" if parameter.is_flag else parameter.type.name
        if isinstance(parameter.type, click.Choice):
            kind = ", ".join(f"`{choice}`" for choice in parameter.type.choices)
        known = isinstance(parameter.default, (str, int)) and not parameter.is_flag
        told = re.sub(r"\s*\[default: .*\]", "", parameter.help or "").replace("|", "\\|")
        told = coded(told)
        rows.append(f"| {names} | {kind} | {f'`{parameter.default}`' if known else ''} | {told} |")
    return rows


def command_page(name: str) -> str:
    """The page of one command: what it does, examples, and every option."""
    command = main.commands[name]
    said, _, examples = inspect.cleandoc(command.help or "").partition("Examples:\n")
    places = [p.name.upper() for p in command.params if isinstance(p, click.Argument)]
    usage = " ".join(["lazytiles", name, "[OPTIONS]", *places])
    lines = [
        f"# lazytiles {name}",
        "",
        coded(said.strip()),
        "",
        "```text",
        f"lazytiles {name} {usage}".rstrip(),
        "```",
        "",
    ]
    if examples:
        lines += ["Examples:", "", "```text", inspect.cleandoc(examples), "```", ""]
    return "\n".join([*lines, "## Options", "", *options_of(command), ""])


def index_page(groups: dict[str, list[str]]) -> str:
    """The first page of the reference: every object in its group, with a sentence, and the commands."""
    lines = [
        "# Reference",
        "",
        "Every public name has a page. After `import lazytiles as lt` it is `lt.NAME`, unless its page says how it is",
        "imported. Options are given by name. Sizes are `(height, width)` in pixels, boxes `(xmin, ymin, xmax, ymax)`.",
        "",
    ]
    for title, names in groups.items():
        lines += [f"## {title}", "", "| name | what it is |", "|---|---|"]
        lines += [f"| [{shown(name)}](api/{slug(name)}.md) | {first_sentence(resolve(name))} |" for name in names]
        lines += ["", "```{toctree}", ":hidden:", ""] + [f"api/{slug(name)}" for name in names] + ["```", ""]
    lines += ["## Commands", "", "| command | what it does |", "|---|---|"]
    for name in sorted(main.commands):
        said = (main.commands[name].help or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| [lazytiles {name}](commands/{name}.md) | {coded(' '.join(said.split()))} |")
    lines += ["", "```{toctree}", ":hidden:", ""] + [f"commands/{name}" for name in sorted(main.commands)] + ["```", ""]
    return "\n".join(lines)


def shown(name: str) -> str:
    """How the index names an object: public names as they are, results by their own name."""
    return name if name.startswith("augment.") else slug(name)


def pages() -> dict[str, str]:
    """The text of every page of the reference, by its path under ``docs/reference``."""
    texts = {"index.md": index_page(GROUPS)}
    texts |= {f"api/{slug(name)}.md": object_page(name) for names in GROUPS.values() for name in names}
    return texts | {f"commands/{name}.md": command_page(name) for name in main.commands}


def write(folder: Path) -> None:
    """Write what has changed, and remove the pages of what is no more."""
    wanted = pages()
    for path in [*folder.glob("api/*.md"), *folder.glob("commands/*.md")]:
        if path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
