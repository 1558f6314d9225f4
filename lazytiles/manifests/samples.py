"""Which label ids make the frames of a tile, which rows are its samples, and which image each frame lies in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays import held
from lazytiles.errors import ManifestError
from lazytiles.images import are_there, is_remote, split_name
from lazytiles.indexing import region_column
from lazytiles.manifests.catalog import rows_where
from lazytiles.manifests.columns import column_hashes, count_distinct, first_of, joint_codes, names_of
from lazytiles.manifests.paths import checked_columns, resolve_paths, verify_digests
from lazytiles.manifests.problems import BOX_3D, IDS, Problems, tile_words

SIZE_CURES = {
    2: "pass size=(height, width) to resample them to one size",
    3: 'boxes of volumes have one extent: make the grid with edge="shift" or "pad"',
}


@dataclass(frozen=True, slots=True)
class Frames:
    """Which label ids make the frames of a tile: several (a time axis), one, or what the rows say."""

    labels: list[str] | None  # in their order; None for the rows as they are
    timed: bool  # whether the frames are an axis of the samples
    each: bool = False  # whether every row is a sample of its own, also where a tile has several

    @classmethod
    def of(cls, frames: Any) -> Frames:
        """From what a user gives: None, ``"each"``, one label id, or several.

        >>> Frames.of([2017, 2018]).labels, Frames.of("2018").timed, Frames.of("each").each
        (['2017', '2018'], False, True)
        """
        if frames is None:
            return cls(None, False)
        if isinstance(frames, str) and frames == "each":
            return cls(None, False, True)
        if isinstance(frames, str | int | np.integer):
            return cls([str(frames)], False)
        labels = [str(frame) for frame in frames]
        if not labels:
            raise ValueError("frames is empty; name at least one label id, or pass None")
        return cls(labels, True)

    def samples(self, table: pd.DataFrame, where: Mapping[str, Any] | None = None) -> Int64s:
        """The numbers of the rows that are the samples: those of the last frame, as far as `where` keeps them.

        Refused are tiles of several rows where nothing says what the rows are, and tiles without the last frame.
        """
        rows, wanted = np.arange(len(table), dtype=np.int64), self.labels
        if wanted is not None:
            if "label_id" not in table:
                raise ManifestError(f"frames={wanted} given, but the manifest has no column label_id")
            label = table["label_id"]
            last = (label == wanted[-1]).to_numpy()
            if not last.any():
                there = ", ".join(map(str, label.cat.categories[:10]))
                raise ManifestError(f"no row of the manifest has label_id {wanted[-1]!r}; there are {there}")
            others = label.isin(wanted).to_numpy() & ~last
            if others.any():
                tiles = pd.factorize(table["tile_id"])[0]
                has_last = np.zeros(len(table), dtype=np.bool_)
                has_last[tiles[last]] = True
                lost = table["tile_id"][others & ~has_last[tiles]]
                if len(lost):
                    raise ManifestError(
                        f"tile {lost.iloc[0]} has no row for the last frame {wanted[-1]!r}, where its target and box "
                        f"are taken from ({lost.nunique()} such tiles); leave its other rows out or add one"
                    )
            rows = np.flatnonzero(last)
        if where is not None:
            some = rows
            rows = rows[rows_where(table if len(rows) == len(table) else table.iloc[rows], where)]
            if len(some) and not len(rows):
                raise ManifestError(f"where={dict(where)} keeps none of the {len(some):,} samples of the manifest")
        if wanted is None and not self.each:
            said = several_rows(table if len(rows) == len(table) else table.iloc[rows])
            if said:
                raise ManifestError(said)
        return rows


def several_rows(table: pd.DataFrame) -> str:
    """What to do about tiles that have rows of several labels; empty where each tile has one row.

    >>> rows = pd.DataFrame({"tile_id": ["a", "a"], "label_id": pd.Categorical(["2017", "2018"])})
    >>> several_rows(rows).partition(":")[0]
    'tile a has rows of the labels 2017, 2018 (1 of 1 tiles has several rows)'
    """
    if "label_id" not in table or count_distinct(column_hashes(table["tile_id"])) == len(table):
        return ""
    codes, tiles = pd.factorize(table["tile_id"])
    counts = np.bincount(codes)
    many = np.flatnonzero(counts > 1)
    if not len(many):
        return ""
    labels = [str(label) for label in table["label_id"][codes == many[0]].unique()]
    have = "has" if len(many) == 1 else "have"
    return (
        f"tile {tiles[many[0]]} has rows of the labels {', '.join(labels)} ({len(many):,} of {len(tiles):,} tiles "
        f"{have} several rows): pass frames={labels} to stack them as a time axis, frames={labels[-1]!r} to take one "
        'of them, or frames="each" to make every row a sample of its own, which split(by="tile_id") keeps together'
    )


class File(NamedTuple):
    """Which image each sample lies in: in one frame, or in one of the several files of a frame."""

    codes: Int64s  # of each sample, as an index into the names
    names: list[str]  # the different images; empty text for samples that no row names an image of
    there: NDArray[np.bool_]  # which exist; behind addresses all, unless images may be missing and servers are asked
    rows: Int64s  # of the table, that name the image of each sample


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """For each frame which image each sample lies in, and how to open it; for each file of it, where it has several."""

    files: list[File]  # of the first frame, of the second, and so on
    opener: Any  # from a path to what is there
    arrays: dict[str, Any] | None = None  # what is there, by its name, where that is given
    parts: int = 1  # how many files make a frame
    mpp: NDArray[np.float64] | None = None  # of the image that each row names, where a column says them

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        rows: Int64s,
        template: str | Sequence[str],
        image_dir: str | os.PathLike[str] | None,
        frames: Frames,
        opener: Any,
        *,
        missing: str = "raise",
        mpp: Any = None,
        follow_symlinks: bool = True,
        problems: Problems | None = None,
        name_row: Callable[[int], str] | None = None,
    ) -> Images:
        """The images that a template names, or several of each frame, each by that frame's own row of the tile.

        A tile without a row for a frame has its image there named by its last row and the frame's label, where
        the template holds `label_id` and its other columns say the same in all rows of a tile. With `problems`, what
        is wrong is noted there, by its row, instead of raised; `name_row` has the words that stand before it.
        """
        noted = Problems("the manifest") if problems is None else problems
        templates = names_of(template)
        words = name_row or (lambda row: f"{tile_words(table, row)}: ")
        scales = table[mpp].to_numpy(np.float64) if isinstance(mpp, str) else None
        found: list[File] = []
        tiles = None
        if frames.labels is not None and len(frames.labels) > 1:
            every = {column for one in templates for column in checked_columns(table.columns, one)}
            plain = "label_id" in every and every <= set(IDS)  # on which all rows of a tile agree, but the label
            if not plain or problems is not None:
                tiles = pd.factorize(table["tile_id"])[0].astype(np.int64)  # to find the rows of other frames
        for label, one in itertools.product(frames.labels if frames.labels is not None else [None], templates):
            columns = checked_columns(table.columns, one)
            part, own, named = _naming(table, rows, columns, label, frames, tiles)
            if missing == "raise":
                said = f"there is no row for the frame {label}, which would name its image by {one!r}; "
                said += 'add it, or pass missing="fill"'
                noted.add_rows("missing frame", rows[~named], lambda row, said=said: f"{words(row)}{said}")  # type: ignore[misc]
            code, names = resolve_paths(
                part,
                one,
                image_dir,
                follow_symlinks=follow_symlinks,
                problems=noted,
                rows=own[named],
                name_row=words,
                may_lack=missing == "fill",
            )
            if not named.all():
                some, code = code, np.full(len(rows), len(names), np.int64)
                code[named], names = some, [*names, ""]
            found.append(File(code, names, _there(names, asked=missing == "fill"), own))
            if scales is not None:
                values, first = scales[own], own[first_of(code, len(names))]
                odd = np.flatnonzero(values != scales[first][code])
                said = f"the rows of one image, {{}}, say different micrometres in the column {mpp}"
                for k in odd[np.unique(code[odd], return_index=True)[1]].tolist():
                    noted.add("source_mpp", words(int(own[k])) + said.format(names[int(code[k])]), int(own[k]))
        if problems is None:
            noted.raise_any()
        return cls(found, opener, parts=len(templates), mpp=scales)

    @classmethod
    def given(cls, table: pd.DataFrame, rows: Int64s, arrays: Mapping[str, Any]) -> Images:
        """The arrays that stand for the regions of some rows of a table."""
        codes, names = pd.factorize(table[region_column(table)].iloc[rows].astype(str))
        absent = [name for name in names if name not in arrays]
        if absent:
            raise ManifestError(f"there is no volume for region {absent[0]} ({len(absent)} of {len(names)} lack one)")
        named = {name: held(arrays[name]) for name in names}
        file = File(codes.astype(np.int64), list(names), np.ones(len(names), np.bool_), rows)
        return cls([file], None, named)

    def first_row(self) -> int:
        """The first sample that has the last frame that any has; an error where there is none."""
        there = self.valid()
        for frame in reversed(range(there.shape[1])):
            if there[:, frame].any():
                return int(np.argmax(there[:, frame]))
        names = next((f": {name} is missing" for file in self.files for name in file.names if name), "")
        raise ManifestError(f"the manifest has no rows, or none of its images is there{names}")

    def first(self) -> list[Any]:
        """The one image that tells dtype and bands of all, or each file of one frame: that sample's last."""
        openers = self.openers(self.first_row())
        last = max(number for number, opener in enumerate(openers) if opener is not None) + 1
        return [opener() for opener in openers[last - self.parts : last]]

    def verify(self, digests: str | os.PathLike[str] | None, image_dir: str | os.PathLike[str]) -> None:
        """Compare the images that are there with a file of digests, if one is given."""
        if digests is not None:
            verify_digests(digests, image_dir, images=[split_name(name)[0] for name in self.names()]).raise_any()

    def names(self, part: int | None = None) -> list[str]:
        """The different images of all frames that are there; of one of the files of a frame, where one is named."""
        chosen = self.files if part is None else self.files[part :: self.parts]
        pairs = (pair for file in chosen for pair in zip(file.names, file.there, strict=True))
        return list(dict.fromkeys(name for name, there in pairs if there))

    def by_row(self, count: int) -> tuple[Int64s, list[str]]:
        """The image that each row of the table names, as an index into the list of all; -1 where it names none."""
        names = list(dict.fromkeys(name for file in self.files for name in file.names if name))
        numbers = {name: k for k, name in enumerate(names)} | {"": -1}
        row_codes = np.full(count, -1, np.int64)
        for file in self.files:
            row_codes[file.rows] = np.array([numbers[name] for name in file.names], np.int64)[file.codes]
        return row_codes, names

    def openers(self, sample: int) -> list[Any]:
        """For each file of each frame what opens the image of a sample; None for all of a frame that lacks one."""
        found = []
        for file in self.files:
            code = int(file.codes[sample])
            found.append(self._opener(file.names[code], int(file.rows[sample])) if file.there[code] else None)
        frames = (found[k : k + self.parts] for k in range(0, len(found), self.parts))
        return [one for frame in frames for one in (frame if None not in frame else [None] * self.parts)]

    def _opener(self, name: str, row: int) -> Any:
        """What opens an image that a row of the table names."""
        if self.arrays is not None:
            return partial(_itself, self.arrays[name])
        return partial(self.opener, name) if self.mpp is None else partial(self.opener, name, mpp=float(self.mpp[row]))

    def opener_of_each(self) -> dict[str, Any]:
        """What opens each of the images that are there, by its name."""
        found: dict[str, Any] = {}
        for file in self.files:
            first = file.rows[first_of(file.codes, len(file.names))].tolist()
            every = zip(file.names, first, file.there, strict=True)
            found |= {name: self._opener(name, row) for name, row, there in every if there}
        return found

    def groups(self, beside: Images | None = None) -> Int64s:
        """Samples that share the images of all frames, and the masks, have one number, by first appearance."""
        return joint_codes([file.codes for file in self.files + ([] if beside is None else beside.files)])

    def valid(self) -> NDArray[np.bool_]:
        """Which frames of which samples are there, (n, frames)."""
        every = np.stack([file.there[file.codes] for file in self.files], axis=1)
        return np.asarray(every.reshape(len(every), -1, self.parts).all(axis=2))


def _there(names: Sequence[str], *, asked: bool) -> NDArray[np.bool_]:
    """Which images are there; behind addresses, all are taken to be unless the servers shall be asked."""
    files = [split_name(name)[0] if name else "" for name in names]
    behind = [file for file in dict.fromkeys(files) if is_remote(file)]
    known = dict(zip(behind, are_there(behind) if asked else [True] * len(behind), strict=True))
    return np.array([known[f] if f in known else bool(f) and os.path.exists(f) for f in files], dtype=np.bool_)


def _itself(array: Any) -> Any:
    return array


def windows_of(table: pd.DataFrame) -> NDArray[Any] | None:
    """The boxes of a table, rows before columns and slices before both; None where tiles are whole images.

    Those of map units are floats.

    >>> windows_of(pd.DataFrame({"xmin": [1], "ymin": [2], "xmax": [5], "ymax": [8]})).tolist()
    [[2, 1, 8, 5]]
    """
    names = [name for name in BOX_3D if name in table]
    if not names:
        return None
    axes = len(names) // 2
    kind = np.float64 if any(table[name].dtype.kind == "f" for name in names) else np.int64  # map units, or pixels
    windows = np.empty((len(table), 2 * axes), dtype=kind)
    for place, name in zip([*range(axes)[::-1], *range(axes, 2 * axes)[::-1]], names, strict=True):
        windows[:, place] = table[name]
    return windows


def common_extent(table: pd.DataFrame, windows: Int64s) -> tuple[int, ...]:
    """The extent of every window; an error where they differ."""
    axes = windows.shape[1] // 2
    extents = windows[:, axes:] - windows[:, :axes]
    other = np.flatnonzero((extents != extents[0]).any(axis=1))
    if len(other):
        said = [f"{tile_words(table, row)} is {' x '.join(map(str, extents[row]))}" for row in (int(other[0]), 0)]
        many = f"({len(other)} tiles differ from the first)"
        raise ManifestError(f"{said[0]} {'voxels' if axes > 2 else 'pixels'}, {said[1]} {many}; {SIZE_CURES[axes]}")
    return tuple(extents[0].tolist())


def _naming(
    table: pd.DataFrame, rows: Int64s, columns: Sequence[str], label: str | None, frames: Frames, tiles: Int64s | None
) -> tuple[pd.DataFrame, Int64s, NDArray[np.bool_]]:
    """What names the image of each sample in a frame.

    The columns of the template for samples that have a name; the row which says so, of every sample; and the mask of
    those that have one.
    """
    every = np.ones(len(rows), np.bool_)
    if label is None or frames.labels is None or label == frames.labels[-1]:
        return table[columns] if len(rows) == len(table) else table[columns].iloc[rows], rows, every
    own = np.full(len(rows), -1, np.int64)
    if tiles is not None:
        mine = np.flatnonzero((table["label_id"] == label).to_numpy())
        at = np.full(int(tiles.max(initial=0)) + 1, -1, np.int64)
        at[tiles[mine[::-1]]] = mine[::-1]
        own = at[tiles[rows]]
    has = own >= 0
    others = [pd.factorize(table[name])[0] for name in columns if name not in IDS]
    by_label = "label_id" in columns and not any((codes[own[has]] != codes[rows[has]]).any() for codes in others)
    named = every if by_label else has
    said = np.where(has, own, rows)
    part = table[columns].iloc[said[named]].reset_index(drop=True)
    if "label_id" in columns:
        part["label_id"] = pd.Categorical([label]).repeat(len(part))
    return part, said, named
