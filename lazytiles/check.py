"""The manifest's doctor: every finding about a table and its images, in one pass and with rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.cost import codec_name
from lazytiles.digest import sha256
from lazytiles.errors import LazyTilesError, ManifestError
from lazytiles.manifest import BOX_2D, BOX_3D, inspect_manifest
from lazytiles.overlap import overlapping_pairs
from lazytiles.paths import default_template, region_names, resolve_paths
from lazytiles.problems import Problems
from lazytiles.region import Region, open_region

Progress = Callable[[str, int, int], None]
_FEW_CLASSES = 50
_READ_BYTES = 32 * 2**20


@dataclass(slots=True)
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
    """

    name: str
    problems: Problems
    warnings: Problems
    facts: dict[str, Any] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    paths: NDArray[np.int64] | None = None
    images: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """Whether nothing stops training."""
        return not len(self.problems)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "manifest": self.name,
            "ok": self.is_sound,
            "problems": _kinds(self.problems),
            "warnings": _kinds(self.warnings),
            "facts": self.facts,
            "digests": self.digests,
        }


def _kinds(found: Problems) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "count": found.counts[kind], "rows": found.rows.get(kind, []), "messages": texts}
        for kind, texts in found.texts.items()
    ]


def check(
    manifest: pd.DataFrame | str | os.PathLike[str],
    image_dir: str | os.PathLike[str] | None = None,
    *,
    path: str | None = None,
    target: str | Sequence[str] | None = "target",
    frames: Sequence[object] | None = None,
    pad: bool = False,
    min_size: int | tuple[int, int] | None = None,
    split: str | None = None,
    read: bool = False,
    digest: bool = False,
    threads: int | None = None,
    client: Any = None,
    progress: Progress | None = None,
) -> Report:
    """Everything that is wrong or odd about a manifest and its images.

    Parameters
    ----------
    manifest : DataFrame, or path of a CSV or Parquet file
    image_dir : the folder of the images; None checks the table alone
    path : where an image lies, as for `open_tiles`
    target : the columns that must be finite numbers; the default is left out where there is none
    frames : label ids of which every tile needs an image
    pad : whether windows may leave their image
    min_size : fewest pixels of a window, one number or (height, width)
    split : a column whose different values must not share pixels, such as ``"fold"``
    read : decode every segment of every image, not only its tags
    digest : take the SHA-256 of every image
    threads : images looked at together
    client : a `distributed.Client` whose workers look at the images; None looks here
    progress : called with what is being done, how much is done, and of how much (0 where unknown)

    Returns
    -------
    Report
    """
    tell = progress or (lambda stage, done, total: None)
    name = "the DataFrame" if isinstance(manifest, pd.DataFrame) else os.fspath(manifest)
    warnings = Problems(name)
    try:
        table, problems = _inspect(manifest, target, frames, [split] if split else [], pad, tell)
    except ManifestError as error:
        broken = Problems(name)
        broken.add("not a table", str(error).removeprefix(f"{name}: "))
        return Report(name, broken, warnings)
    report = Report(name, problems, warnings, table=table)
    report.facts = _table_facts(table)
    _check_windows(report, min_size)
    _check_targets(report, [target] if isinstance(target, str) else list(target or []))
    if split is not None:
        _check_leaks(report, split)
    if image_dir is not None:
        _check_images(report, image_dir, path, frames, pad, _Look(read, digest), threads, client, tell)
    return report


def _inspect(
    manifest: Any, target: Any, frames: Any, text: list[str], pad: bool, tell: Progress
) -> tuple[pd.DataFrame, Problems]:
    def count(rows: int) -> None:
        tell("reading rows", rows, 0)

    wanted = {"optional": ["target"]} if target == "target" else {"target": target}
    table, problems = inspect_manifest(manifest, **wanted, frames=frames, text=text, allow_outside=pad, progress=count)
    if any(name not in table for name in text):
        raise ManifestError(f"there is no column {text[0]}; there are {', '.join(table.columns)}")
    return table, problems


def _table_facts(table: pd.DataFrame) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "rows": len(table),
        "tiles": int(table["tile_id"].nunique()),
        "regions": int(region_names(table).nunique()),
        "bytes_per_row": round(int(table.memory_usage(deep=True).sum()) / max(len(table), 1), 1),
    }
    if "label_id" in table:
        facts["labels"] = {str(k): int(n) for k, n in table["label_id"].value_counts().items()}
    return facts


def _tile(report: Report, row: int) -> str:
    table = report.table
    assert table is not None
    names = [name for name in BOX_3D if name in table]
    box = f" with box ({', '.join(str(table[name].iloc[row]) for name in names)})" if names else ""
    return f"{report.problems.where(row)}: tile {table['tile_id'].iloc[row]}{box}"


def _check_windows(report: Report, min_size: int | tuple[int, int] | None) -> None:
    table = report.table
    if table is None or "xmin" not in table:
        return
    sizes = np.stack([table["ymax"] - table["ymin"], table["xmax"] - table["xmin"]], axis=1)
    joint = pd.Series(sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1]).value_counts()
    usual = zip(joint.index[:10].to_numpy(np.int64).tolist(), joint[:10].to_list(), strict=True)
    report.facts["sizes"] = {f"{code >> 32} x {code & 0xFFFFFFFF}": count for code, count in usual}
    if len(joint) > 1:
        report.warnings.add(
            "window sizes",
            f"windows have {len(joint)} different sizes: open them with size=(height, width)",
        )
    if min_size is not None:
        least = np.broadcast_to(np.array(min_size), 2)
        report.problems.add_rows(
            "window too small",
            np.flatnonzero((sizes < least).any(axis=1)),
            lambda row: f"{_tile(report, row)} is {sizes[row, 0]} x {sizes[row, 1]}, less than {least[0]} x {least[1]}",
        )


def _check_targets(report: Report, columns: Sequence[str]) -> None:
    table = report.table
    for name in columns:
        if table is None or name not in table or not len(table):
            continue
        values = table[name].to_numpy()
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        classes, counts = np.unique(values, return_counts=True)
        facts: dict[str, Any] = {
            "min": float(values.min()),
            "max": float(values.max()),
            "mean": float(values.mean()),
        }
        if len(classes) <= _FEW_CLASSES and (classes == np.floor(classes)).all():
            facts["classes"] = {f"{value:g}": int(n) for value, n in zip(classes, counts, strict=True)}
            if len(classes) > 1 and counts.min() < 0.01 * counts.sum():
                rare = f"{classes[counts.argmin()]:g}"
                report.warnings.add("class balance", f"{name}: class {rare} is {counts.min()} of {counts.sum()} rows")
        else:
            bars, edges = np.histogram(values, bins=20)
            facts["histogram"] = {"counts": bars.tolist(), "edges": edges.tolist()}
        if len(classes) == 1:
            report.warnings.add("class balance", f"{name} is {classes[0]:g} in every row")
        report.facts.setdefault("targets", {})[name] = facts


def _check_leaks(report: Report, split: str) -> None:
    table = report.table
    if table is None or "xmin" not in table:
        return
    sides = pd.factorize(table[split])[0]
    boxes, regions = table[list(BOX_2D)].to_numpy(np.int64), region_names(table).cat.codes.to_numpy()
    others: dict[int, int] = {}
    for side in range(int(sides.max(initial=0))):
        one, rest = np.flatnonzero(sides == side), np.flatnonzero(sides > side)
        pairs = overlapping_pairs(boxes[one], regions[one], boxes[rest], regions[rest])
        for a, b in zip(one[pairs[:, 0]].tolist(), rest[pairs[:, 1]].tolist(), strict=True):
            others.setdefault(max(a, b), min(a, b))
    report.problems.add_rows(
        "shared pixels",
        np.array(sorted(others), np.int64),
        lambda row: (
            f"{_tile(report, row)} ({split} {table[split].iloc[row]}) shares pixels with tile "
            f"{table['tile_id'].iloc[others[row]]} ({split} {table[split].iloc[others[row]]})"
        ),
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What is done with one image: its tags are read always, its segments and its bytes if asked for."""

    read: bool
    digest: bool

    def __call__(self, path: str) -> tuple[Region | None, str, str]:
        """The region, what is wrong with it, and its digest."""
        try:
            region = open_region(path)
            damaged = sum(int((page.offsets < 0).sum()) for page in region.pages)
            if damaged:
                return region, f"{path}: {damaged} segments are damaged or cut off", self._digest(path)
            if self.read:
                rows = max(region.chunks[0], _READ_BYTES // max(region.nbytes // max(len(region), 1), 1))
                for start in range(0, len(region), rows):
                    region[start : start + rows]
        except LazyTilesError as error:
            return None, str(error), ""
        return region, "", self._digest(path)

    def _digest(self, path: str) -> str:
        return sha256(path) if self.digest else ""


def _check_images(
    report: Report,
    image_dir: str | os.PathLike[str],
    path: str | None,
    frames: Sequence[object] | None,
    pad: bool,
    look: _Look,
    threads: int | None,
    client: Any,
    tell: Progress,
) -> None:
    table = report.table
    if table is None or not len(table):
        return
    template = path or default_template(table)
    try:
        codes, images = resolve_paths(table, template, image_dir, problems=report.problems)
    except ManifestError as error:
        report.problems.add("image folder", str(error))
        return
    report.paths, report.images = codes, images
    if frames is not None and "label_id" in table:
        _check_every_frame(report, template, image_dir, frames)
    regions: list[Region | None] = [None] * len(images)
    present = [k for k, name in enumerate(images) if os.path.isfile(name)]
    first = np.zeros(len(images), np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    looks = _looks(look, [images[k] for k in present], threads, client)
    for done, (k, (region, wrong, digest)) in enumerate(zip(present, looks, strict=True)):
        regions[k] = region
        if wrong:
            report.problems.add("unreadable image", f"{_tile(report, int(first[k]))}: {wrong}")
            report.problems.rows.setdefault("unreadable image", []).append(int(first[k]))
        if digest:
            report.digests[images[k]] = digest
        tell("looking at images", done + 1, len(present))
    report.facts["images"] = len(images)
    _check_bounds(report, regions, pad)
    _check_alike(report, regions)
    _check_frames(report, frames)


def _looks(
    look: _Look, images: Sequence[str], threads: int | None, client: Any
) -> Iterator[tuple[Region | None, str, str]]:
    """What is seen of each image, in their order: on threads here, or on the workers of a cluster."""
    if client is None:
        with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
            yield from pool.map(look, images)
        return
    futures = client.map(look, [os.path.abspath(image) for image in images], pure=False)
    try:
        for future in futures:
            yield future.result()
    finally:
        client.cancel(futures)


def _check_every_frame(
    report: Report, template: str, image_dir: str | os.PathLike[str], frames: Sequence[object]
) -> None:
    """Each region has an image in every frame, whether the table has a row for it or not."""
    table = report.table
    assert table is not None
    regions = table[~region_names(table).duplicated()]
    known = Problems(report.name)
    for frame in frames:
        rows = regions.assign(label_id=pd.Categorical([str(frame)] * len(regions)))
        resolve_paths(rows, template, image_dir, problems=known)
    said = {text for texts in report.problems.texts.values() for text in texts}
    for kind, texts in known.texts.items():
        report.problems.extend(kind, (text for text in texts if text not in said))


def _check_bounds(report: Report, regions: Sequence[Region | None], pad: bool) -> None:
    table, codes = report.table, report.paths
    if table is None or codes is None or pad or "xmin" not in table:
        return
    largest = np.iinfo(np.int32).max
    shapes = np.array([region.inner_shape[:2] if region else (largest, largest) for region in regions])
    bounds, names = shapes[codes], region_names(table)
    outside = (table["xmax"].to_numpy() > bounds[:, 1]) | (table["ymax"].to_numpy() > bounds[:, 0])
    report.problems.add_rows(
        "window outside",
        outside,
        lambda row: (
            f"{_tile(report, row)} leaves region {names.iloc[row]} "
            f"({report.images[codes[row]]}, {bounds[row, 0]} x {bounds[row, 1]}); "
            'pass pad="reflect" or correct the box'
        ),
    )


def _check_alike(report: Report, regions: Sequence[Region | None]) -> None:
    """Images of one training set have one dtype and one number of bands; codecs may differ, at a cost."""
    opened = [region for region in regions if region is not None]
    if not opened:
        return
    for name, sink, fact in (
        ("dtype", report.problems, lambda r: str(r.dtype)),
        ("bands", report.problems, lambda r: str(r.inner_shape[2])),
        ("codec", report.warnings, codec_name),
        ("size", None, lambda r: f"{r.inner_shape[0]} x {r.inner_shape[1]}"),
    ):
        counts = Counter(fact(region) for region in opened)
        report.facts[name] = dict(counts.most_common(10))
        usual = counts.most_common(1)[0][0]
        if len(counts) > 1 and sink is not None:
            odd = [region for region in opened if fact(region) != usual]
            sink.extend(f"mixed {name}", (f"{r.path}: {name} {fact(r)}, others have {usual}" for r in odd))


def _check_frames(report: Report, frames: Sequence[object] | None) -> None:
    """Frames of a region have one size, and each tile has every frame that is asked for."""
    table = report.table
    if table is None or "label_id" not in table:
        return
    wanted = [str(frame) for frame in frames] if frames is not None else list(table["label_id"].cat.categories)
    have = table[table["label_id"].isin(wanted)].groupby("tile_id", observed=True)["label_id"].nunique()
    short = have[have < len(wanted)]
    if len(short) and len(wanted) > 1:
        rows = np.flatnonzero(~table["tile_id"].duplicated() & table["tile_id"].isin(short.index))
        report.warnings.add_rows(
            "missing frames",
            rows,
            lambda row: (
                f"{_tile(report, row)} has rows for {short[table['tile_id'].iloc[row]]} "
                f"of the {len(wanted)} frames {', '.join(wanted[:6])}"
            ),
        )
