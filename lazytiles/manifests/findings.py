"""What a manifest's table tells by itself: facts, odd windows and targets, windows that leak, frames that lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.display import plural
from lazytiles.indexing import Ground, overlapping_pairs, pairs_on_ground
from lazytiles.manifests.columns import column_hashes, count_distinct, first_of, to_numbers
from lazytiles.manifests.paths import region_names
from lazytiles.manifests.problems import Problems, tile_words
from lazytiles.manifests.samples import windows_of

_FEW_CLASSES = 50
_LOOKED_AT = 100_000
_PARTS = 1024  # of a box's side, to which boxes in map units are rounded where they are compared


@dataclass(slots=True, repr=False)
class Report:
    """What was found: problems that stop training, warnings that may not, and the facts.

    Parameters
    ----------
    name : the manifest
    problems, warnings : by kind, each with its first 20 and a count
    facts : numbers and names worth knowing
    table : the manifest as read, or None where it is no table
    paths : the image of each row, as an index into `images`
    images : the different images
    digests : SHA-256 of each image, where asked for
    boxes_crs : of boxes in map units, where it is not that of the images
    level : of the images, whose pixels boxes count
    """

    name: str
    problems: Problems
    warnings: Problems
    facts: dict[str, Any] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    paths: Int64s | None = None
    images: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    boxes_crs: str | None = None
    level: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether nothing stops training."""
        return not len(self.problems)

    def __repr__(self) -> str:
        counts = plural(len(self.problems), "problem"), plural(len(self.warnings), "warning")
        return f"<Report on {self.name}: {', '.join(counts)}>"

    def __str__(self) -> str:
        return "\n".join([repr(self), *self.problems.lines(), *self.warnings.lines()])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        said = {
            name: [
                {"kind": kind, "count": found.counts[kind], "rows": found.rows.get(kind, []), "messages": texts}
                for kind, texts in found.texts.items()
            ]
            for name, found in (("problems", self.problems), ("warnings", self.warnings))
        }
        return {"manifest": self.name, "ok": self.is_sound, **said, "facts": self.facts, "digests": self.digests}


def table_facts(table: pd.DataFrame) -> dict[str, Any]:
    """How many rows, tiles, regions and labels a manifest has."""
    facts: dict[str, Any] = {
        "rows": len(table),
        "tiles": count_distinct(column_hashes(table["tile_id"])),
        "regions": int(region_names(table).nunique()),
        "bytes_per_row": round(int(table.memory_usage(deep=True).sum()) / max(len(table), 1), 1),
    }
    if "label_id" in table:
        facts["labels"] = {str(k): int(n) for k, n in table["label_id"].value_counts().items()}
    return facts


def tile_at(report: Report, row: int) -> str:
    """The words for a row: where it is, its tile and its box."""
    assert report.table is not None
    return f"{report.problems.where(row)}: {tile_words(report.table, row)}"


def check_windows(report: Report, table: pd.DataFrame, min_size: int | tuple[int, int] | None) -> None:
    """The sizes of windows, and those below the least size; rows whose box is none are left out."""
    if "xmin" not in table:
        return
    heights, widths = ((table[high] - table[low]).to_numpy() for low, high in (("ymin", "ymax"), ("xmin", "xmax")))
    is_box = (heights > 0) & (widths > 0)
    if heights.dtype.kind == "f":  # map units
        sizes = pd.DataFrame({"high": heights[is_box], "wide": widths[is_box]}).round(6).value_counts()[:10]
        names = (f"{high:.10g} x {wide:.10g}" for high, wide in sizes.index.to_list())
        report.facts["sizes"] = dict(zip(names, sizes.to_list(), strict=True))
        return
    joint = pd.Series(heights[is_box].astype(np.int64) << 32 | widths[is_box]).value_counts()
    usual = zip(joint.index[:10].to_numpy(np.int64).tolist(), joint[:10].to_list(), strict=True)
    report.facts["sizes"] = {f"{code >> 32} x {code & 0xFFFFFFFF}": count for code, count in usual}
    if min_size is not None:
        high, wide = np.broadcast_to(np.array(min_size), 2).tolist()
        report.problems.add_rows(
            "window too small",
            is_box & ((heights < high) | (widths < wide)),
            lambda row: f"{tile_at(report, row)} is {heights[row]} x {widths[row]}, less than {high} x {wide}",
        )


def check_targets(report: Report, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """The range of each target, and the balance of its classes or its histogram."""
    for name in columns:
        if name not in table or not len(table):
            continue
        facts: dict[str, Any] = {}
        if isinstance(table[name].dtype, pd.CategoricalDtype):
            counts = facts["classes"] = {str(key): int(n) for key, n in table[name].value_counts(sort=False).items()}
        else:
            values = to_numbers(table[name])
            finite = np.isfinite(values)
            values = values if finite.all() else values[finite]
            if not len(values):
                if table[name].isna().all():
                    report.warnings.add(
                        "no labels", f"nothing is written in {name}: the tiles are for prediction alone"
                    )
                continue
            facts = {"min": float(values.min()), "max": float(values.max()), "mean": float(values.mean())}
            few = len(np.unique(values[:_LOOKED_AT])) <= _FEW_CLASSES
            classes, numbers = np.unique(values, return_counts=True) if few else (values, values)
            counts = {f"{facts['min']:.15g}": len(values)} if facts["min"] == facts["max"] else {}
            if few and len(classes) <= _FEW_CLASSES and (classes == np.floor(classes)).all():
                counts = {f"{value:.15g}": int(n) for value, n in zip(classes, numbers, strict=True)}
                facts["classes"] = counts
            else:
                bars, edges = np.histogram(values, bins=20)
                facts["histogram"] = {"counts": bars.tolist(), "edges": edges.tolist()}
        there = {key: n for key, n in counts.items() if n}
        total, rare = sum(counts.values()), min(there, key=there.__getitem__, default="")
        if len(there) == 1:
            report.warnings.add("class balance", f"{name} is {rare} in every row")
        elif there and there[rare] < 0.01 * total:
            report.warnings.add("class balance", f"{name}: class {rare} is {there[rare]} of {total} rows")
        absent = [key for key, n in counts.items() if not n]
        if there and absent:
            report.warnings.add("class balance", f"{name}: no row is of class {', '.join(absent[:10])}")
        if there or "min" in facts:
            report.facts.setdefault("targets", {})[name] = facts


def check_leaks(report: Report, table: pd.DataFrame, split: str, ground: Ground | None) -> None:
    """Windows of one region that share pixels, or of several that share ground, with different values of a column."""
    boxes = windows_of(table)
    if boxes is None:
        return
    sides, regions = pd.factorize(table[split])[0], region_names(table).cat.codes.to_numpy()
    if boxes.dtype.kind == "f":  # map units, in parts of the smallest side
        extents = boxes[:, 2:] - boxes[:, :2]
        boxes = np.round(boxes / (extents[extents > 0].min(initial=np.inf) / _PARTS))
    boxes = boxes.astype(np.int64)
    others: dict[int, int] = {}
    for side in range(int(sides.max(initial=0))):
        one, rest = np.flatnonzero(sides == side), np.flatnonzero(sides > side)
        pairs = overlapping_pairs(boxes[one], regions[one], boxes[rest], regions[rest])
        if ground is not None:
            pairs = np.concatenate([pairs, pairs_on_ground(ground.at(one), ground.at(rest))])
        for a, b in zip(one[pairs[:, 0]].tolist(), rest[pairs[:, 1]].tolist(), strict=True):
            others.setdefault(max(a, b), min(a, b))
    report.problems.add_rows(
        "shared pixels",
        np.array(sorted(others), np.int64),
        lambda row: (
            f"{tile_at(report, row)} ({split} {table[split].iloc[row]}) shares "
            f"{'pixels' if regions[row] == regions[others[row]] else 'ground'} with tile "
            f"{table['tile_id'].iloc[others[row]]} ({split} {table[split].iloc[others[row]]})"
        ),
    )


def check_frames(report: Report, table: pd.DataFrame, wanted: Sequence[str] | None) -> NDArray[np.bool_]:
    """Each tile has a row for every frame: the mask of rows of tiles without the last, which has targets and boxes."""
    if wanted is None or len(wanted) < 2 or "label_id" not in table or not (table["label_id"] == wanted[-1]).any():
        return np.zeros(len(table), bool)
    tiles, names = pd.factorize(table["tile_id"])
    has = [np.bincount(tiles[table["label_id"] == name], minlength=len(names)) > 0 for name in wanted]
    have, first = np.sum(has, axis=0), first_of(tiles, len(names))
    short = (have > 0) & (have < len(wanted))
    lost = short & ~has[-1]
    said = f"of the {len(wanted)} frames {', '.join(wanted[:6])}"
    report.problems.add_rows(
        "last frame missing",
        first[lost],
        lambda row: (
            f"{tile_at(report, row)} has no row for the last frame {wanted[-1]}, where its target and box are "
            "taken from; add it, or leave the tile's other rows out"
        ),
    )
    report.warnings.add_rows(
        "missing frames",
        first[short & ~lost],
        lambda row: f"{tile_at(report, row)} has rows for {have[tiles[row]]} {said}",
    )
    return np.asarray(lost[tiles])
