"""The manifest: read, checked as a whole, and given back as one lean table."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lazytiles.arrays import check_classes, is_numeric
from lazytiles.errors import ManifestError
from lazytiles.manifests.columns import (
    as_text,
    box_numbers,
    is_blank,
    is_like_number,
    is_text,
    label_column,
    mask,
    names_of,
    number_fault,
    parse_boxes,
    plain_numbers,
    shortened,
    to_numbers,
)
from lazytiles.manifests.conflicts import conflicts
from lazytiles.manifests.paths import checked_columns
from lazytiles.manifests.problems import BOX_2D, BOX_3D, IDS, Problems
from lazytiles.manifests.table import Pieces, open_table

_BAD_ID = r"[/\\\x00-\x1f\x7f]|^\.\.?$|^ *$"
_LARGEST = 2**31 - 1
_TEXT = pd.Series(["text"]).dtype
if not isinstance(_TEXT, pd.StringDtype):
    # Before pandas 3 text is Python objects by default, 60 bytes and more each.
    _TEXT = pd.StringDtype("pyarrow")


def read_manifest(
    manifest: pd.DataFrame | str | os.PathLike[str],
    *,
    target: str | Sequence[str] | None = None,
    tabular: str | Sequence[str] | None = None,
    frames: Sequence[object] | None = None,
    optional: Sequence[str] = (),
    text: Sequence[str] = (),
    file: str | None = None,
    allow_outside: bool = False,
    classes: Sequence[Any] | None = None,
    coordinates: str = "pixels",
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Read a manifest as one normalised table; everything that is wrong with it comes in one error.

    Nothing of the table is evaluated and no file but the manifest is opened.

    Parameters
    ----------
    manifest : DataFrame, or path of a CSV (UTF-8, commas) or Parquet file, with the columns `tile_id`,
        `region_id` (or `path`, a file below the image folder, or those of `file`), optionally `label_id`, and boxes in
        half-open pixels: `region_coordinates` as ``"(xmin, ymin, xmax, ymax)"``, or four columns `xmin, ymin, xmax,
        ymax` (six with `zmin`, `zmax`), or none, for whole images, which need no `region_id` where `text` names others
    target : the label columns: finite numbers, or in one of them the names of classes, or nothing in any row
    tabular : the columns that must be finite numbers
    optional : further label columns, if the table has them
    frames : the label ids in use; targets are then checked in the rows of the last one only
    text : further columns that stay text, such as those named in a path template
    file : the template of the images' paths, for tables of files: without `tile_id` and `label_id` each file is a tile
        of its own, named after it, and must be there once
    allow_outside : accept boxes that begin before pixel 0 (they are padded later)
    classes : the names of the classes in the order of their numbers; default those of the column, a categorical
        column's own or else sorted
    coordinates : what boxes count: ``"pixels"``, or ``"map"`` units, which may have fractions
    progress : called with the number of rows read so far

    Returns
    -------
    DataFrame, one row per row of the manifest, in its order: `tile_id` text, `region_id` and `label_id`
    categories of text, the box columns int32 (float64 in map units), a label column of names categories in the order
    of the classes, every other column as it was (from CSV: numbers where all cells are plain numbers, else text)

    Raises
    ------
    ManifestError : the table is damaged or contradicts itself; the first 20 problems of each kind, with
        their lines, and how many there are

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"tile_id": [7], "region_id": ["001"], "region_coordinates": ["(0, 0, 32, 32)"]})
    >>> read_manifest(table).to_dict("list")
    {'tile_id': ['7'], 'region_id': ['001'], 'xmin': [0], 'ymin': [0], 'xmax': [32], 'ymax': [32]}
    """
    columns = Columns(target, tabular, frames, optional, text, file, allow_outside, classes, coordinates)
    table, problems = inspect_manifest(manifest, columns, progress)
    problems.raise_any()
    return table


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table are read, and as what: the options of `read_manifest`, in its order."""

    target: str | Sequence[str] | None = None
    tabular: str | Sequence[str] | None = None
    frames: Sequence[object] | None = None
    optional: Sequence[str] = ()
    text: Sequence[str] = ()
    file: str | None = None
    allow_outside: bool = False
    classes: Sequence[Any] | None = None
    coordinates: str = "pixels"


def inspect_manifest(
    manifest: pd.DataFrame | str | os.PathLike[str], columns: Columns, progress: Callable[[int], None] | None = None
) -> tuple[pd.DataFrame, Problems]:
    """As `read_manifest`, but what is wrong is given back beside the table, unless it is no table at all.

    Rows that a problem names may hold 0 or empty text in the cell concerned.
    """
    problems = Problems("the manifest")
    source = open_table(manifest, problems)
    problems.name, problems.where = source.name, source.where
    source, is_of_files = _with_file(source, columns.file)
    reading = _Reading(source, problems, columns, is_of_files=is_of_files)
    reading.take_in(progress)
    table = reading.finished()
    pa.default_memory_pool().release_unused()
    return table, problems


def _with_file(source: Pieces, template: str | None) -> tuple[Pieces, bool]:
    """A table with what the files in it stand for, and whether they are the ids of its tiles.

    Without `tile_id` each row's file is its tile; without `region_id` it is what boxes are cut from, a `path`.
    """
    have = source.columns
    is_of_files = "tile_id" not in have and "label_id" not in have and (template is not None or "path" in have)
    boxes = "region_coordinates" in have or "xmin" in have
    cut_from = template is not None and not {"region_id", "path"} & {*have} and (boxes or is_of_files)
    new = ["tile_id"] * is_of_files + ["path"] * cut_from
    if not new:
        return source, False
    template = template or "{path}"
    checked_columns(have, template)

    def named(piece: pa.Table) -> pa.Table:
        parts: list[Any] = []
        for literal, name, _, _ in Formatter().parse(template):
            try:
                column = None if name is None else pc.fill_null(as_text(piece.column(name)), "")
            except TypeError as error:
                raise ManifestError(f"{source.name}: the column {name}, which names files: {error}") from None
            parts += [pa.scalar(literal)] + ([] if column is None else [column])
        files = pc.binary_join_element_wise(*parts, "")
        for name in new:
            piece = piece.append_column(name, files)
        return piece

    return replace(source, columns=[*have, *new], pieces=(named(piece) for piece in source.pieces)), is_of_files


def _check_columns(source: Pieces, numbers: Sequence[str], text: Collection[str]) -> list[str]:
    """The columns beside ids and boxes; refuses a table that lacks a column."""
    have = source.columns
    box = [name for name in BOX_3D if name in have]
    # A row without a box is an image of its own, for which another column may stand in a template.
    whole = not box and "region_coordinates" not in have
    named = "path" in have or (whole and text and "region_id" not in text)
    wanted = ["tile_id", *numbers] if named else ["tile_id", "region_id", *numbers]
    if box:
        wanted += BOX_3D if "zmin" in have or "zmax" in have else BOX_2D
    missing = [name for name in wanted if name not in have]
    if missing:
        near = [name for name in have if name.strip().lower() in missing and name not in missing]
        said = f"columns {', '.join(missing)} are" if len(missing) > 1 else f"column {missing[0]} is"
        hint = ""
        if near:
            hint = f"; is {near[0]!r} meant? Names have no spaces and small letters"
        elif "tile_id" in missing and not {*IDS} & {*have}:
            hint = (
                "; rename those that hold them. If each row is a whole file, say instead which column names it, "
                f'such as path="{{{have[0]}}}"'
            )
        elif "tile_id" in missing:
            hint = "; a tile_id is a name of your choice for each tile, the same in all its frames"
        raise ManifestError(f"{source.name}: the {said} missing; there are {', '.join(have)}{hint}")
    return [name for name in have if name not in {*IDS, *BOX_3D, "region_coordinates"}]


class _Reading:
    """The columns of a manifest while its pieces come in."""

    def __init__(self, source: Pieces, problems: Problems, asked: Columns, *, is_of_files: bool) -> None:
        self.source, self.problems, self.asked, self.is_of_files = source, problems, asked, is_of_files
        self.targets = [*names_of(asked.target), *(name for name in asked.optional if name in source.columns)]
        self.numbers = [*self.targets, *names_of(asked.tabular)]
        self.kept = _check_columns(source, self.numbers, {*asked.text} - {"path"})
        self.text = {*asked.text} & {*self.kept}
        self.own_classes: dict[str, list[Any]] = {}  # of categorical columns, in their own order
        self.ids = [name for name in IDS if name in source.columns]
        self.has_written_boxes = "region_coordinates" in source.columns
        self.box_columns = tuple(name for name in BOX_3D if name in source.columns)
        self.box_names = self.box_columns or (BOX_2D if self.has_written_boxes else ())
        self.columns: dict[str, list[pa.Array]] = {name: [] for name in (*self.ids, *self.kept)}
        self.is_on_ground = asked.coordinates == "map"
        self.boxes: list[list[NDArray[Any]]] = [[] for _ in BOX_3D]
        self.headers: list[int] = []
        self.length = 0

    def take_in(self, progress: Callable[[int], None] | None) -> None:
        """Take every piece in."""
        for piece in self.source.pieces:
            for name in self.kept if not self.length and not self.box_names else ():
                # Boxes under another name would make every tile its whole image, and nobody would be told.
                column = piece.column(name).slice(0, 1000)
                looks = any(word in name.lower() for word in ("region", "coord", "window"))
                if looks and is_text(column.type) and not parse_boxes(column)[1].all():
                    said = f"line 1: the column {name} holds boxes; name it region_coordinates"
                    self.problems.add("boxes unnamed", said)
            skip, ids = np.zeros(len(piece), bool), [piece.column(name) for name in self.ids]
            if all(is_text(column.type) for column in ids):
                same = [pc.equal(one, pa.scalar(name, one.type)) for name, one in zip(self.ids, ids, strict=True)]
                skip = np.logical_and.reduce([mask(one) for one in same])
                self._note("repeated header", skip, lambda _: "the header again; were files joined?")
                self.headers += (np.flatnonzero(skip) + self.length).tolist()
            if skip.any():  # the piece without the text of those rows
                blanked = [pc.if_else(pa.array(skip), "", one) if is_text(one.type) else one for one in piece.columns]
                piece = pa.Table.from_arrays(blanked, names=piece.column_names)
            self.piece = piece
            for name in self.ids:
                self._take_ids(name, piece.column(name), skip)
            for name in self.kept:
                column = piece.column(name)
                if name in self.targets and pa.types.is_dictionary(column.type):
                    own = self.own_classes.setdefault(name, [])
                    own += [value for chunk in column.chunks for value in chunk.dictionary.to_pylist()]
                    self.own_classes[name] = list(dict.fromkeys(own))
                self.columns[name] += (as_text(column) if name in self.text else column).chunks
            if self.box_names:
                for parts, column in zip(self.boxes, self._take_boxes(piece, skip), strict=False):
                    parts.append(column)
            self.length += len(piece)
            if progress:
                progress(self.length)

    def _note(self, kind: str, bad: NDArray[np.bool_], text: Callable[[int], str]) -> None:
        """Note rows of the piece that is being taken in."""
        start = self.length
        self.problems.add_rows(
            kind, np.flatnonzero(bad) + start, lambda row: f"{self.source.where(row)}: {text(row - start)}"
        )

    def _take_ids(self, name: str, column: pa.ChunkedArray, skip: NDArray[np.bool_]) -> None:
        try:
            text = pc.fill_null(as_text(column), "").combine_chunks()
        except TypeError:
            raise ManifestError(
                f"{self.source.name}: the column {name} holds {column.type}, ids are text; "
                "read the table with dtype=str, so that 001 stays 001 and 1 does not become 1.0"
            ) from None
        if name == "tile_id":
            bad = mask(pc.match_substring_regex(text, _BAD_ID)) & (not self.is_of_files)
            self.columns[name].append(text)
        else:
            # Few regions and labels, many tiles: the categories are looked at instead of the rows.
            encoded = text.dictionary_encode()
            bad = mask(pc.match_substring_regex(encoded.dictionary, _BAD_ID))
            bad = bad[encoded.indices.to_numpy()] if bad.any() else np.zeros(len(text), bool)
            self.columns[name].append(encoded)

        def says(row: int) -> str:
            value = self._cell(name, row)
            cause = r"an id is one name, without / or \ or .. or control characters"
            if "://" in value:
                cause = "an id is not an address; give the address as the image folder"
            said = f"{name} {value!r}: {cause}" if value.strip() else f"the {name} is empty"
            return f"{self._tile(row)}: {said}"

        self._note(f"bad {name}", bad & ~skip, says)

    def _take_boxes(self, piece: pa.Table, skip: NDArray[np.bool_]) -> list[NDArray[Any]]:
        """The columns of the boxes, 0 where one is none."""
        kind: type = np.float64 if self.is_on_ground else np.int64
        if self.has_written_boxes:
            text = as_text(piece.column("region_coordinates"))
            count = len(self.box_names) if self.length or self.box_columns or self.is_on_ground else None
            boxes, bad = parse_boxes(text, count, kind)
            self.box_names = BOX_2D if boxes.shape[1] == 4 else BOX_3D
        names = ", ".join(self.box_names)
        if self.box_columns:
            found = [box_numbers(piece.column(name), kind) for name in self.box_names]
            numbers, wrong = np.stack([one for one, _ in found], 1), np.logical_or.reduce([one for _, one in found])
            if self.has_written_boxes:
                differ = ~bad & ~skip & (wrong | (numbers != boxes).any(axis=1))
                said = f", but the columns {names} say ({{}}); leave one of the two out, or correct it"
                self._note("boxes disagree", differ, lambda row: f"{self._tile(row)}{said.format(self._box(row))}")
            else:
                boxes, bad = numbers, wrong
        axes = boxes.shape[1] // 2
        low, high = boxes[:, :axes], boxes[:, axes:]
        good = ~(bad | skip)
        pixels = good & (not self.is_on_ground)
        huge = pixels & ((boxes > _LARGEST) | (boxes < -_LARGEST)).any(axis=1)
        good &= ~huge
        empty = good & (high <= low).any(axis=1)
        apart = pixels & good & ~empty & (high <= 0).any(axis=1)
        negative = pixels & good & (low < 0).any(axis=1) & (not self.asked.allow_outside) & ~apart
        what, unit = ("numbers", "map units") if self.is_on_ground else ("whole numbers", "pixels")
        for problem, rows, cause in (
            ("not a box", bad & ~skip, f"is not ({names}): {2 * axes} {what} in brackets"),
            ("box too large", huge, f"holds a number beyond {_LARGEST}"),
            ("box outside", negative & ~empty, 'begins before pixel 0; correct it, or pass pad="reflect"'),
            ("box outside", apart, "ends before pixel 0 and does not meet its image; correct it"),
            ("empty box", empty, f"is empty or inverted; it is ({names}), half-open, in {unit}"),
        ):

            def says(row: int, cause: str = cause) -> str:
                region = f" of region {self._cell('region_id', row)}" if "region_id" in self.ids else ""
                return f"{self._tile(row)}{region} {cause}"

            self._note(problem, rows, says)
        boxes = np.where((bad | skip)[:, None], 0, boxes)
        if self.is_on_ground:
            return list(boxes.T)
        return [np.clip(column, -_LARGEST, _LARGEST).astype(np.int32) for column in boxes.T]

    def _cell(self, name: str, row: int) -> str:
        """A cell of the piece that is being taken in, as it was given."""
        value = as_text(self.piece.column(name).slice(row, 1))[0].as_py()
        return shortened(value or "")

    def _box(self, row: int) -> str:
        return ", ".join(str(self.piece.column(name)[row].as_py()) for name in self.box_names)

    def _tile(self, row: int) -> str:
        """The words for a row of that piece: its tile, and its box if it has one."""
        tile = f"tile {self._cell('tile_id', row)}"
        if self.has_written_boxes:
            return f"{tile}: box {self._cell('region_coordinates', row)}"
        return f"{tile}: box ({self._box(row)})" if self.box_names else tile

    def finished(self) -> pd.DataFrame:
        """The table, its rows checked against each other and its targets against arithmetic."""
        data: dict[str, object] = {}
        for name in self.source.columns:
            chunks = self.columns.pop(name, None)
            if name in self.ids:
                kind = pa.string() if name == "tile_id" else pa.dictionary(pa.int32(), pa.string())
                data[name] = _series(pa.chunked_array(chunks or [], kind).unify_dictionaries())
            elif name in self.kept:
                column = pa.chunked_array(chunks) if chunks else pa.chunked_array([], pa.string())
                data[name] = _series(column if name in self.text else plain_numbers(column, name in self.numbers))
            else:  # the boxes, at the place of the first of their columns
                for box_name, parts in zip(self.box_names, self.boxes, strict=False):
                    if box_name not in data:
                        none = np.zeros(0, np.float64 if self.is_on_ground else np.int32)
                        data[box_name] = np.concatenate([none, *parts])
                        parts.clear()
        table = pd.DataFrame(data, copy=False)
        if not self.length:
            self.problems.add("empty", "the table has no rows")
            return table
        rows_of_tiles = np.ones(len(table), bool)
        rows_of_tiles[self.headers] = False
        hint = "; the table has no tile_id, so each file is one tile: add a column tile_id" * self.is_of_files
        for problem, rows, text in conflicts(table, self.source.where):
            self.problems.add_rows(problem, rows & rows_of_tiles, lambda row, text=text: text(row) + hint)  # type: ignore[misc]
        used, frames = rows_of_tiles, self.asked.frames
        if frames is not None and len(frames) and "label_id" in table:
            used = used & (table["label_id"] == str(frames[-1])).to_numpy()
        is_unlabelled = bool(self.targets) and all(
            is_blank(table[name][:most][rows_of_tiles[:most]]).all()
            for most in (1000, None)  # few rows tell it of nearly every table
            for name in self.targets
        )
        if is_unlabelled:
            for name in self.targets:
                table[name] = np.full(len(table), np.nan)
        else:
            self._check_targets(table, used, check_classes(self.asked.classes))
        for name in self.numbers:
            if name not in self.targets:
                self._check_numbers(table, name, used)
        return table

    def _check_targets(self, table: pd.DataFrame, used: NDArray[np.bool_], classes: list[Any] | None) -> None:
        """Label columns as numbers, and one of them, where it holds names, as categories in the classes' order."""
        alone, named = len(self.targets) == 1, []
        for name in self.targets:
            given = table[name]
            asked = classes if alone or not is_numeric(given) else None
            labels, faults = label_column(given, used, self.own_classes.get(name), asked, alone=alone)
            if labels is None:
                self._check_numbers(table, name, used)
                continue
            table[name] = labels
            named += [name] if isinstance(labels, pd.Categorical) else []
            for kind, rows, said in faults:

                def says(row: int, given: pd.Series = given, said: str = said) -> str:
                    cell = given.iloc[row : row + 1]
                    return f"{'' if is_blank(cell).all() else f' {shortened(str(cell.iloc[0]))!r}'} {said}"

                self.problems.add_rows(f"{name} {kind}", rows, self._says(table, name, says))
        if len(named) > 1:
            columns = ", ".join(named)
            self.problems.add("several columns of names", f"the columns {columns} hold names: classes are those of one")
        if classes is not None and not named:
            columns = ", ".join(self.targets)
            said = f"of the label columns {columns} none holds names" if columns else "there is no label column"
            self.problems.add("no names", f"classes= is given, but {said}")

    def _check_numbers(self, table: pd.DataFrame, name: str, used: NDArray[np.bool_]) -> None:
        given = table[name]
        values = to_numbers(given)
        if name not in self.text:  # what stands in a path stays as it is written
            table[name] = values

        def says(row: int) -> str:
            cell = given.iloc[row]
            is_name = name in self.targets and isinstance(cell, str) and not is_like_number(cell)
            hint = "; if all cells are names of classes, say so by classes=[...]" if is_name else ""
            return f" {number_fault(cell)}{hint}"

        bad = used & ~np.isfinite(values)
        self.problems.add_rows(f"{name} not a number", bad, self._says(table, name, says))

    def _says(self, table: pd.DataFrame, name: str, says: Callable[[int], str]) -> Callable[[int], str]:
        """From a row to its place, its tile, a column, and what is said of the cell."""
        return lambda row: f"{self.source.where(row)}: tile {table['tile_id'].iloc[row]}: {name}{says(row)}"


def _series(column: pa.ChunkedArray) -> pd.Series:
    series: pd.Series = column.to_pandas(split_blocks=True, types_mapper={pa.string(): _TEXT}.get)
    return series
