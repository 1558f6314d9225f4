"""The manifest's doctor: every finding about a table and its images, in one pass and with rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.config import usable_cpus
from lazytiles.cost import codec_name
from lazytiles.digest import sha256, verify_digests
from lazytiles.errors import LazyTilesError, ManifestError
from lazytiles.findings import Report, check_frames, check_leaks, check_targets, check_windows, table_facts, tile_at
from lazytiles.kinds import split_name
from lazytiles.manifest import inspect_manifest
from lazytiles.paths import default_template, first_of, region_names, resolve_paths, template_columns
from lazytiles.problems import Problems
from lazytiles.region import Region, open_region
from lazytiles.remote import is_remote

Progress = Callable[[str, int, int], None]
_READ_BYTES = 32 * 2**20


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
    verify: str | os.PathLike[str] | None = None,
    follow_symlinks: bool = True,
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
    verify : a file of digests, as ``lazytiles check --digest`` writes it; images are compared with it
    follow_symlinks : whether links inside the folder may lead elsewhere
    threads : images looked at together
    client : a `distributed.Client` whose workers look at the images; None looks here
    progress : called with what is being done, how much is done, and of how much (0 where unknown)

    Returns
    -------
    Report; `is_sound` says whether nothing stops training, ``str(report.problems)`` what does

    Examples
    --------
    >>> table = pd.DataFrame({"tile_id": ["a", "b"], "region_id": "r", "region_coordinates": ["(0, 0, 8, 8)", "8"]})
    >>> check(table).problems.counts
    {'not a box': 1}
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
    report.facts = table_facts(table)
    check_windows(report, min_size)
    check_targets(report, [target] if isinstance(target, str) else list(target or []))
    check_frames(report, frames)
    if split is not None:
        check_leaks(report, split)
    if image_dir is not None and len(table):
        look = _Look(read, digest, "zmin" in table)
        _Images(report, table, path or default_template(table), image_dir, frames, follow_symlinks).check(
            look, pad, lambda paths: _looks(look, paths, threads, client), tell
        )
    if verify is not None and image_dir is not None:
        present = [file for file, _ in map(split_name, report.images) if os.path.isfile(file)]
        for kind, texts in verify_digests(verify, image_dir, images=present, progress=tell).texts.items():
            report.problems.extend(kind, texts)
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


@dataclass(frozen=True, slots=True)
class _Look:
    """What is done with one image: its tags are read always, its segments and its bytes if asked for."""

    read: bool
    digest: bool
    deep: bool

    def __call__(self, path: str) -> tuple[Region | None, str, str]:
        """The region, what is wrong with it, and its digest."""
        try:
            region = open_region(path, page="all") if self.deep else open_region(path)
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
        file, _ = split_name(path)
        return sha256(file) if self.digest and os.path.isfile(file) else ""


def _looks(
    look: _Look, images: Sequence[str], threads: int | None, client: Any
) -> Iterator[tuple[Region | None, str, str]]:
    """What is seen of each image, in their order: on threads here, or on the workers of a cluster."""
    if client is None:
        with ThreadPoolExecutor(threads or min(4, usable_cpus())) as pool:
            yield from pool.map(look, images)
        return
    futures = client.map(look, [image if is_remote(image) else os.path.abspath(image) for image in images], pure=False)
    try:
        for future in futures:
            yield future.result()
    finally:
        client.cancel(futures)


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """The images of a manifest while they are looked at."""

    report: Report
    table: pd.DataFrame
    template: str
    folder: str | os.PathLike[str]
    frames: Sequence[object] | None
    follow_symlinks: bool

    def check(
        self,
        look: _Look,
        pad: bool,
        looks: Callable[[Sequence[str]], Iterator[tuple[Region | None, str, str]]],
        tell: Progress,
    ) -> None:
        """Note what is wrong with the images, and what they are like."""
        report = self.report
        try:
            codes, images = self._resolve(self.table)
            self._check_every_frame(codes, images)
        except ManifestError as error:
            report.problems.add("image folder", str(error))
            return
        report.paths, report.images = codes, images
        report.facts["images"] = len(images)
        present = [k for k, name in enumerate(images) if is_remote(name) or os.path.exists(split_name(name)[0])]
        first = first_of(codes, len(images))
        regions: dict[int, Region] = {}
        for done, (k, seen) in enumerate(zip(present, looks([images[k] for k in present]), strict=True)):
            region, wrong, digest = seen
            if region is not None:
                regions[k] = region
            if wrong:
                report.problems.add("unreadable image", f"{tile_at(report, int(first[k]))}: {wrong}", int(first[k]))
            if digest:
                report.digests[split_name(images[k])[0]] = digest
            tell("looking at images", done + 1, len(present))
        if not pad:
            self._check_bounds(codes, regions)
        self._check_alike({int(first[k]): region for k, region in regions.items()})

    def _resolve(
        self, table: pd.DataFrame, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], list[str]]:
        return resolve_paths(
            table,
            self.template,
            self.folder,
            follow_symlinks=self.follow_symlinks,
            problems=self.report.problems,
            rows=rows,
            name_row=lambda row: f"{self.report.problems.where(row)}: tile {self.table['tile_id'].iloc[row]}: ",
        )

    def _check_every_frame(self, codes: NDArray[np.int64], images: Sequence[str]) -> None:
        """Each region has an image in every frame, whether the table has a row for it or not.

        Without `frames` the table's labels are frames if some tile has two, and a region counts that has an image.
        """
        table = self.table
        if "label_id" not in table or "label_id" not in template_columns(self.template):
            return
        if self.frames is None and self.report.facts["tiles"] == len(table):
            return  # labels of which no tile has two are no frames
        labels, regions = table["label_id"].cat, region_names(table)
        once = ~regions.duplicated().to_numpy() & (table["label_id"] != "").to_numpy()
        heads = np.flatnonzero(once)
        if self.frames is None:
            heads = heads[[os.path.exists(split_name(images[k])[0]) for k in codes[heads].tolist()]]
        for frame in self.frames if self.frames is not None else [name for name in labels.categories if name]:
            have = regions[(table["label_id"] == str(frame)).to_numpy()].unique()
            rows = heads[~regions.iloc[heads].isin(have).to_numpy()]
            if len(rows):
                asked = table.iloc[rows].assign(label_id=pd.Categorical([str(frame)]).repeat(len(rows)))
                self._resolve(asked, rows)

    def _check_bounds(self, codes: NDArray[np.int64], regions: dict[int, Region]) -> None:
        """No window leaves its image."""
        table, report = self.table, self.report
        if "xmin" not in table:
            return
        axes = ("zmax", "ymax", "xmax") if "zmin" in table else ("ymax", "xmax")
        extents = np.full((len(report.images), len(axes)), np.iinfo(np.int32).max, np.int32)
        for k, region in regions.items():
            height, width, _ = region.inner_shape
            extents[k] = (len(region.pages), height, width)[-len(axes) :]
        outside = np.zeros(len(table), bool)
        for axis, name in enumerate(axes):
            outside |= table[name].to_numpy() > extents[codes, axis]
        names = region_names(table)

        def describe(row: int) -> str:
            shape = " x ".join(map(str, extents[codes[row]].tolist()))
            image = report.images[int(codes[row])]
            cause = f'leaves region {names.iloc[row]} ({image}, {shape}); pass pad="reflect" or correct the box'
            return f"{tile_at(report, row)} {cause}"

        report.problems.add_rows("window outside", outside, describe)

    def _check_alike(self, regions: dict[int, Region]) -> None:
        """Images of one training set have one dtype and one number of bands; codecs may differ, at a cost."""
        report = self.report
        for name, sink, fact in (
            ("dtype", report.problems, lambda r: str(r.dtype)),
            ("bands", report.problems, lambda r: str(r.inner_shape[2])),
            ("codec", report.warnings, codec_name),
            ("size", report.warnings, _size),
        ):
            facts = {row: fact(region) for row, region in regions.items()}
            counts = Counter(facts.values())
            if not counts:
                return
            report.facts[name] = dict(counts.most_common(10))
            usual = self._usual_sizes(facts) if name == "size" else dict.fromkeys(facts, counts.most_common(1)[0][0])
            for row, found in facts.items():
                if found != usual[row]:
                    text = f"{regions[row].path}: {name} {found}, others have {usual[row]}"
                    sink.add(f"mixed {name}", f"{report.problems.where(row)}: {text}", row)

    def _usual_sizes(self, sizes: dict[int, str]) -> dict[int, str]:
        """The size that each image should have: that of its region's first frame, or of all where it is the tile."""
        names = region_names(self.table).cat.codes.to_numpy()
        group = {row: int(names[row]) if "xmin" in self.table else 0 for row in sizes}
        first: dict[int, str] = {}
        for row, size in sizes.items():
            first.setdefault(group[row], size)
        return {row: first[group[row]] for row in sizes}


def _size(region: Region) -> str:
    return f"{region.inner_shape[0]} x {region.inner_shape[1]}"
