"""The manifest's doctor: every finding about a table and the images that it opens, in one pass and with rows."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays import MapBoxes, MultiSourceArray, codec_name, ground_of, level_of, results
from lazytiles.config import usable_cpus
from lazytiles.errors import LazyTilesError, ManifestError
from lazytiles.images import Page, Region, is_remote, open_region, split_name
from lazytiles.indexing import Ground, size_words
from lazytiles.manifests.asked import Asked
from lazytiles.manifests.columns import joint_codes, names_of
from lazytiles.manifests.findings import (
    Report,
    check_frames,
    check_leaks,
    check_targets,
    check_windows,
    table_facts,
    tile_at,
)
from lazytiles.manifests.manifest import inspect_manifest
from lazytiles.manifests.paths import default_template, sha256, verify_digests
from lazytiles.manifests.problems import Problems
from lazytiles.manifests.samples import SIZE_CURES, Frames, Images, several_rows, windows_of
from lazytiles.manifests.tiles import tiles_of

Progress = Callable[[str, int, int], None]
Seen = tuple[Region | None, str, str]
_CURES = {
    "bands": '; choose bands=[...], bands="rgb" or gray=True',
    "dtype": "; convert it, or cast all by dtype=",
    "scale": " (scale, offset); scaled=True reads what the numbers mean",
}
_READ_BYTES = 32 * 2**20
_MOVED = 0.01  # pixels by which a box on the ground may miss whole pixels unsaid


def check(
    manifest: pd.DataFrame | str | os.PathLike[str],
    image_dir: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    min_size: int | tuple[int, int] | None = None,
    split: str | None = None,
    read: bool = False,
    digest: bool = False,
    threads: int | None = None,
    client: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Find everything that is wrong or odd about a manifest and its images; it is sound where `open_tiles` can read it.

    Parameters
    ----------
    manifest : DataFrame, or path of a CSV or Parquet file
    image_dir : the folder of the images; None checks the table alone
    min_size : fewest pixels of a window, one number or (height, width)
    split : a column whose different values must not share pixels, such as ``"fold"``
    read : decode every segment of every image, not only its tags
    digest : take the SHA-256 of every image
    threads : images looked at together
    client : a `distributed.Client` whose workers look at the images; None looks here
    progress : called with what is being done, how much is done, and of how much (0 where unknown)
    options : those of `open_tiles`, such as `frames`, `path`, `masks`, `size`, `bands`, `pad`, `missing` and `where`;
        the images and masks that it would read with them are looked at, in the same way

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
    asked = Asked(**options)
    if min_size is not None and asked.coordinates == "map":
        raise ValueError("min_size= counts pixels, and the boxes are in map units")
    wanted = Frames.of(asked.frames)
    name = "the DataFrame" if isinstance(manifest, pd.DataFrame) else os.fspath(manifest)
    warnings = Problems(name, shown=1)
    try:
        columns = asked.columns(*([split] if split else []))
        table, problems = inspect_manifest(manifest, columns, lambda rows: tell("reading rows", rows, 0))
        if split and split not in table:
            raise ManifestError(f"there is no column {split}; there are {', '.join(table.columns)}")
    except ManifestError as error:
        broken = Problems(name)
        broken.add("not a table", str(error).removeprefix(f"{name}: "))
        return Report(name, broken, warnings)
    report = Report(name, problems, warnings, table=table, boxes_crs=asked.boxes_crs, level=asked.drawn_level)
    report.facts = table_facts(table)
    check_windows(report, table, min_size)
    check_targets(report, table, names_of(asked.target))
    lost = check_frames(report, table, wanted.labels)
    look = partial(_look, read=read, digest=digest)
    checkup = _Checkup(report, table, image_dir, asked, lambda openers: _looks(look, openers, threads, client), tell)
    if len(table):
        checkup.run(wanted, lost)
    if split is not None:
        check_leaks(report, table, split, checkup.ground())
    if asked.verify is not None and image_dir is not None and not isinstance(image_dir, Mapping):
        present = [file for file, _ in map(split_name, report.images) if os.path.isfile(file)]
        for kind, texts in verify_digests(asked.verify, image_dir, images=present, progress=tell).texts.items():
            report.problems.extend(kind, texts)
    return report


def _look(opener: Any, read: bool, digest: bool) -> Seen:
    """A region, what is wrong with it, and its digest; its segments are read, and its bytes taken, where asked for."""
    region, said, path = None, "", opener.args[0]
    try:
        region = opener()
        damaged = sum(int(np.count_nonzero(page.is_cut)) for page in region.pages)
        if damaged:
            said = f"{path}: {damaged} segments are damaged or cut off"
        elif read:
            rows = max(region.chunks[0], _READ_BYTES // max(region.nbytes // max(len(region), 1), 1))
            for start in range(0, len(region), rows):
                region[start : start + rows]
    except LazyTilesError as error:
        return region, str(error), ""
    file, _ = split_name(path)
    return region, said, sha256(file) if digest and os.path.isfile(file) else ""


def _looks(look: Callable[[Any], Seen], openers: Sequence[Any], threads: int | None, client: Any) -> Iterator[Seen]:
    """What is seen of each image, in their order: on threads here, or on the workers of a cluster."""
    if client is None:
        with ThreadPoolExecutor(threads or min(4, usable_cpus())) as pool:
            yield from pool.map(look, openers)
        return
    places = [one.args[0] if is_remote(one.args[0]) else os.path.abspath(one.args[0]) for one in openers]
    found = [partial(one.func, place, **one.keywords) for one, place in zip(openers, places, strict=True)]
    yield from results(client, client.map(look, found, pure=False))


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """The boxes of one image, or of none, as `ground_of` asks for them."""

    region: Region | None
    boxes: NDArray[Any]
    asked: Asked

    def __len__(self) -> int:
        return len(self.boxes)

    def base(self) -> Page | None:
        """The image's page."""
        return None if self.region is None else self.region.pages[0]

    @property
    def base_windows(self) -> NDArray[Any]:
        """(y0, x0, y1, x1), pixels of that page."""
        page, kind = self.base(), self.asked.units.kind
        if kind == "base" and self.region is not None:
            return np.asarray(self.boxes / np.array(level_of(self.region).downsample * 2))
        if kind != "map" or page is None:
            return self.boxes
        return MapBoxes(self.boxes[:, [1, 0, 3, 2]].astype(np.float64), self.asked.boxes_crs).windows(page)


@dataclass(slots=True, eq=False)
class _Checkup:
    """The images of a manifest while they are looked at, and opened as `open_tiles` opens them."""

    report: Report
    table: pd.DataFrame
    folder: Any  # of the images; None looks at none
    asked: Asked
    looks: Callable[[Sequence[Any]], Iterator[Seen]]  # from what opens images to what is seen of each
    tell: Progress
    regions: dict[str, Region] = field(default_factory=dict)  # that were opened
    damaged: dict[str, str] = field(default_factory=dict)  # what is wrong with segments of some of them

    def run(self, wanted: Frames, lost: NDArray[np.bool_]) -> None:
        """Note what is wrong with the samples and their images, and what they are like."""
        problems, table = self.report.problems, self.table
        windows = windows_of(table)
        whole = ~lost  # what is no box, or lacks its frame, is noted
        if windows is not None:
            low, high = np.split(windows, 2, axis=1)
            whole &= (high > low).all(axis=1)
        left = np.flatnonzero(whole)
        each = Frames.of("each")
        try:
            part = table if len(left) == len(table) else table.iloc[left]
            rows = left[(each if wanted.labels is None else wanted).samples(part, self.asked.where)]
        except ManifestError as error:
            problems.add("frames", str(error))
            return
        if wanted.labels is None and not wanted.each:
            said = several_rows(table if len(rows) == len(table) else table.iloc[rows])
            problems.extend("several rows", [said] * bool(said))
            wanted = each  # to look at them all the same
        good = np.ones(len(rows), np.bool_)
        if self.asked.size is None and windows is not None and len(rows) and self.asked.units.kind == "pixels":
            good = self._usual(rows, (high - low)[rows])
        if self.folder is None:
            return
        if not isinstance(self.folder, Mapping):
            try:
                images, masks = self._images(rows, wanted)
            except ManifestError as error:
                problems.add("image folder", str(error))
                return
            good &= self._look_at(images, masks)
        if good.any():
            every = good.all() and len(left) == len(table) and self.asked.where is None
            self._open(rows[good], wanted, every=bool(every))

    def ground(self) -> Ground | None:
        """Where the rows of the table lie on the ground by the images that were opened; None where none says it."""
        codes, windows = self.report.paths, windows_of(self.table)
        if codes is None or windows is None or windows.shape[1] != 4:
            return None
        by_image = np.argsort(codes, kind="stable")
        cuts = np.searchsorted(codes[by_image], np.arange(-1, len(self.report.images) + 1))
        images = [None, *map(self.regions.get, self.report.images)]
        parts = [
            _Placed(region, windows[by_image[start:stop]], self.asked)
            for region, start, stop in zip(images, cuts[:-1], cuts[1:], strict=True)
        ]
        place = np.empty(len(codes), np.int64)
        place[by_image] = np.arange(len(codes))
        return ground_of(parts).at(place)

    def _usual(self, rows: Int64s, extents: Int64s) -> NDArray[np.bool_]:
        """The samples whose window has the usual size: without `size`, all must have it."""
        codes = joint_codes(extents.T)
        counts = np.bincount(codes)
        usual = int(counts.argmax())
        if len(counts) > 1:
            at = [int(np.flatnonzero(condition)[0]) for condition in (codes == usual, codes != usual)]
            one, other = (size_words(extents[k].tolist()) for k in at)
            self.report.problems.add(
                "window sizes",
                f"windows have {len(counts)} different sizes, such as {one} and {other} "
                f"({tile_at(self.report, int(rows[at[1]]))}); {SIZE_CURES[extents.shape[1]]}",
                int(rows[at[1]]),
            )
        return np.asarray(codes == usual)

    def _images(self, rows: Int64s, wanted: Frames) -> tuple[Images, Images | None]:
        """Where the images and masks of the samples lie; what is wrong with that is noted."""
        report, asked = self.report, self.asked
        find = partial(
            Images.of,
            self.table,
            rows,
            image_dir=self.folder,
            follow_symlinks=asked.follow_symlinks,
            problems=report.problems,
            name_row=lambda row: f"{tile_at(report, row)}: ",
        )
        volumes: dict[str, Any] | None = {"page": "all"} if "zmin" in self.table else None
        images = find(
            asked.path or default_template(self.table),
            frames=wanted,
            opener=partial(open_region, **(volumes or asked.opening)),
            missing=asked.missing,
            mpp=asked.source_mpp,
        )
        report.paths, report.images = images.by_row(len(self.table))
        report.facts["images"] = len(report.images)
        if not isinstance(asked.masks, str):
            return images, None
        opener = partial(open_region, **(volumes or asked.mask_opening))
        masks = find(asked.masks, frames=Frames(None, False), opener=opener)
        report.facts["masks"] = len(masks.by_row(len(self.table))[1])
        return images, masks

    def _look_at(self, images: Images, masks: Images | None) -> NDArray[np.bool_]:
        """Look at every image and mask; the samples whose images are all there and alike."""
        report, may_lack = self.report, self.asked.missing == "fill"
        both = [images] if masks is None else [images, masks]
        names = list(dict.fromkeys(name for part in both for name in part.names()))
        openers = {name: opener for part in reversed(both) for name, opener in part.opener_of_each().items()}
        first: dict[str, int] = {}  # the first row that names each image
        for file in itertools.chain.from_iterable(part.files for part in both):
            least = np.full(len(file.names), len(self.table), np.int64)
            np.minimum.at(least, file.codes, file.rows)
            for name, row in zip(file.names, least.tolist(), strict=True):
                first[name] = min(row, first.get(name, row))
        bad: set[str] = set()
        are_images = set(images.names())
        for done, (name, seen) in enumerate(zip(names, self.looks([openers[name] for name in names]), strict=True)):
            region, wrong, digest = seen
            if region is not None:
                self.regions[name] = region
                if wrong:
                    self.damaged[name] = f"{tile_at(report, first[name])}: {wrong}"
            elif wrong:
                bad.add(name)
                report.problems.add("unreadable image", f"{tile_at(report, first[name])}: {wrong}", first[name])
            if digest and name in are_images:
                report.digests[split_name(name)[0]] = digest
            self.tell("looking at images", done + 1, len(names))
        self._note_pages(images)
        for number in range(images.parts):
            own = [name for name in images.names(number) if name in self.regions]
            bad |= self._check_alike({name: self.regions[name] for name in own}, first)
        good = np.ones(len(images.files[0].codes), np.bool_)
        for part in both:
            for file in part.files:
                fine = np.array([name not in bad for name in file.names], np.bool_)
                good &= (fine & (file.there | (may_lack and part is images)))[file.codes]
            # The last frame has its own row: without a name, it was refused.
            good &= np.array([bool(name) for name in part.files[-1].names], np.bool_)[part.files[-1].codes]
        if may_lack:
            lacks = ~images.valid().all(axis=1)
            says = "lacks the image of a frame, which is filled"
            rows = images.files[-1].rows[lacks]
            report.warnings.add_rows("filled frames", rows, lambda row: f"{tile_at(report, row)} {says}")
        return good

    def _note_pages(self, images: Images) -> None:
        """Files of several images of one shape, of which one is read because nothing is said."""
        if self.asked.page is not None or self.asked.has_axes:
            return
        held: dict[int, list[str]] = {}
        for name in images.names():
            with suppress(LazyTilesError):  # what is wrong with a file is noted where it is opened
                if name in self.regions and (count := self.regions[name].in_series) > 1:
                    held.setdefault(count, []).append(name)
        for count, names in held.items():
            one = self.regions[names[0]].pages[0].number
            have = f"{len(names)} files hold" if len(names) > 1 else "1 file holds"
            said = f"{have} {count} pages of one shape, such as {names[0]}; page {one} is read: "
            said += 'pass channels=[...] or axes=, such as "CYX", to read them all, or page= to say which'
            self.report.warnings.add("other pages", said)

    def _check_alike(self, regions: dict[str, Region], first: dict[str, int]) -> set[str]:
        """Images of one training set have one dtype, and bands unless some are chosen; codecs may differ, at a cost."""
        report, odd = self.report, set()
        chosen = self.asked.bands is not None or self.asked.gray
        fact: Callable[[Region], str]
        casts = self.asked.dtype is not None
        for name, sink, fact in (
            ("dtype", None if casts else report.problems, lambda r: str(r.dtype)),
            ("bands", report.problems, lambda r: str(r.inner_shape[2])),
            ("codec", report.warnings, codec_name),
            ("size", None, lambda r: f"{r.inner_shape[0]} x {r.inner_shape[1]}"),
            ("nodata", report.warnings, lambda r: str(r.nodata)),
            ("scale", None if self.asked.scaled else report.warnings, lambda r: str(r.scale_offset)),
        ):
            facts = {path: fact(region) for path, region in regions.items()}
            counts = Counter(facts.values())
            if not counts:
                break
            if set(counts) == {"None"}:  # no image has it
                continue
            known = Counter(report.facts.get(name, {}))  # of other files of the same tiles
            report.facts[name] = dict((known + counts).most_common(10))
            if name == "codec":  # how long strips are follows from how large images are
                facts = {path: found.partition(",")[0] for path, found in facts.items()}
                counts = Counter(facts.values())
            usual = counts.most_common(1)[0][0]
            if sink is None or (name == "bands" and chosen):
                continue
            cure = _CURES.get(name, "")
            for path, found in facts.items():
                if found != usual:
                    text = f"{path}: {name} {found}, others have {usual}{cure}"
                    sink.add(f"mixed {name}", f"{tile_at(report, first[path])}: {text}", first[path])
                    odd |= {path} if sink is report.problems else set()
        return odd

    def _open(self, rows: Int64s, wanted: Frames, *, every: bool) -> None:
        """Open the samples that seem sound, as a user would, and note what else is wrong with them."""
        keep = np.arange(len(self.table)) if every else rows
        if wanted.labels is not None and not every:
            tiles = pd.factorize(self.table["tile_id"])[0]
            keep = np.flatnonzero(np.isin(tiles, tiles[rows]))
        table = self.table if len(keep) == len(self.table) else self.table.iloc[keep].reset_index(drop=True)
        asked = replace(self.asked, where=None, verify=None, frames="each" if wanted.each else self.asked.frames)

        def opener(path: str, **options: Any) -> Region:
            region = self.regions.get(path)
            if region is not None and region.level == options.get("level", 0):
                return region
            return open_region(path, **options)

        try:
            opened = tiles_of(table, self.folder, asked, opener)
        except (LazyTilesError, ValueError) as error:
            self.report.problems.add("cannot be opened", str(error))
            return
        said: dict[str, NDArray[np.bool_]] = {}
        untested = set(self.damaged)
        for array in (opened, opened.labels):
            if not isinstance(array, MultiSourceArray):
                continue
            pairs = array.index_pairs
            order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # the samples of each source, in its own order
            ends = np.cumsum([len(source) for source in array.sources])
            for source, stop in zip(array.sources, ends.tolist(), strict=True):
                mine = rows[order[stop - len(source) : stop]]
                self._note_faults(source, mine, said)
                self._note_damage(source, untested)
        for name in untested:
            self.report.problems.add("unreadable image", self.damaged[name])

    def _note_faults(self, source: Any, rows: Int64s, said: dict[str, NDArray[np.bool_]]) -> None:
        """What is wrong with the windows of a source, and which boxes on the ground are moved to whole pixels."""
        report, faults = self.report, list(source.faults())
        outside = any(kind == "window outside" for kind, _, _ in faults)
        for kind, bad, cause in faults:
            if kind == "frames differ" and outside:  # one cause is said once
                continue
            known = said.setdefault(kind, np.zeros(len(self.table), np.bool_))
            new = rows[bad & ~known[rows]]
            known[rows[bad]] = True
            if kind != "window outside":  # one for all windows of a region
                new = new[:1]
            report.problems.add_rows(kind, new, lambda row, said=cause: f"{tile_at(report, row)}{said}")  # type: ignore[misc]
        if getattr(source, "boxes", None) is None or source.follows:
            return
        with suppress(LazyTilesError):  # which is noted
            base = source.base()
            moved = abs(source.windows - source.boxes.exactly(base)).max(axis=1)
            report.warnings.add_rows(
                "boxes between pixels",
                rows[moved > _MOVED],
                lambda row: f"{tile_at(report, row)} is moved by {moved[rows == row][0]:.2f} pixels of {base}",
            )

    def _note_damage(self, source: Any, untested: set[str]) -> None:
        """Damaged segments matter where a window needs them."""
        openers = getattr(source, "regions", None) or (source.opener,)
        for frame, opener in enumerate(openers):
            name = opener.args[0] if isinstance(opener, partial) and opener.args else None
            if not isinstance(name, str) or name not in untested:
                continue
            untested.discard(name)
            timed = getattr(source, "timed", False)
            frame //= getattr(source, "parts", 1)
            try:
                for k in range(len(source)):
                    source[(k, frame) if timed else k]
            except LazyTilesError:
                self.report.problems.add("unreadable image", self.damaged[name])
            else:
                self.report.warnings.add("damage outside windows", f"{self.damaged[name]}, under no window")
