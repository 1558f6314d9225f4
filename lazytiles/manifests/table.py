"""Tables as pieces of Arrow columns: strict CSV, Parquet and DataFrames; nothing is guessed, ids are text."""

from __future__ import annotations

import codecs
import csv
import os
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from lazytiles.errors import ManifestError
from lazytiles.manifests.problems import Problems

BLOCK_BYTES = 8 * 2**20
PIECE_ROWS = 2**18

_OTHER_FORMATS = {
    b"\x1f\x8b": "it is compressed with gzip: unpack it",
    b"PK\x03\x04": "it is a zip archive or a spreadsheet: save it as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "it is a spreadsheet: save it as CSV UTF-8",
    b"\xff\xfe": "it is UTF-16: save it as UTF-8",
    b"\xfe\xff": "it is UTF-16: save it as UTF-8",
    b"II*\x00": "it is a TIFF image",
    b"MM\x00*": "it is a TIFF image",
}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(slots=True)
class Pieces:
    """A table to be read once, piece by piece."""

    name: str
    columns: list[str]
    pieces: Iterable[pa.Table]  # of text (CSV), or of the types that they have elsewhere
    where: Callable[[int], str]  # a row number, from 0 as delivered, to how the user finds it, such as "line 3"


def open_table(manifest: object, problems: Problems) -> Pieces:
    """A DataFrame, or a CSV or Parquet path, as pieces; an error says why a file is no table, as far as can be told."""
    if isinstance(manifest, pd.DataFrame):
        columns = _checked_names("the DataFrame", manifest.columns)
        arrays = [_to_arrow(manifest.iloc[:, k]) for k in range(len(columns))]
        batches = pa.Table.from_arrays(arrays, names=columns).combine_chunks().to_batches(PIECE_ROWS)
        tables = (pa.Table.from_batches([batch]) for batch in batches)
        return Pieces("the DataFrame", columns, tables, "row {}".format)
    if not isinstance(manifest, str | os.PathLike):
        raise ManifestError(
            f"a manifest is a DataFrame or the path of a CSV or Parquet file, not {type(manifest).__name__}"
        )
    path = Path(os.fspath(manifest))
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: there is no such manifest") from error
    if not stat.S_ISREG(status.st_mode):
        raise ManifestError(f"{path}: not a regular file; a manifest is a CSV or Parquet file")
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"PAR1" and path.suffix.lower() not in {".parquet", ".pq"}:
        return _CsvFile(path, problems).open()
    try:
        parquet = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: cannot be read as Parquet: {error}") from error
    names = _checked_names(str(path), parquet.schema_arrow.names)
    columns = [column for column in names if not column.startswith("__index_level_")]

    def pieces() -> Iterator[pa.Table]:
        try:
            with parquet:
                for batch in parquet.iter_batches(batch_size=PIECE_ROWS, columns=columns):
                    yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{path}: cannot be read as Parquet: {error}") from error

    return Pieces(str(path), columns, pieces(), "row {}".format)


def _checked_names(name: str, given: Iterable[object]) -> list[str]:
    """The names of columns as text; refuses columns without a name or with the name of another."""
    columns = [str(column) for column in given]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ManifestError(f"{name}: line 1: the column {', '.join(twice)} appears more than once")
    if not all(column.strip() for column in columns):
        raise ManifestError(f"{name}: line 1: column {1 + [c.strip() for c in columns].index('')} has no name")
    return columns


def _to_arrow(series: pd.Series) -> pa.Array | pa.ChunkedArray:
    """One column as Arrow; mixed objects become text, whole numbers without a point."""
    plain = {"string", "bytes", "integer", "floating", "boolean", "empty"}
    if series.dtype != object or pd.api.types.infer_dtype(series, skipna=True) in plain:
        with suppress(pa.ArrowException, OverflowError):
            return pa.Array.from_pandas(series)
    texts: list[str | None] = []
    for value in series:
        if isinstance(value, tuple | list | np.ndarray):
            texts.append("(" + ", ".join(str(part) for part in value) + ")")
        else:
            texts.append(None if value is None or value is pd.NA or value != value else str(value))
    return pa.array(texts, pa.string())


@dataclass(slots=True)
class _CsvFile:
    """A CSV file whose bytes are checked, whose fields are counted, and whose cells stay text."""

    path: Path
    problems: Problems
    columns: list[str] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))

    def open(self) -> Pieces:
        self._check_bytes()
        try:
            line, header = next(self._rows())
        except StopIteration:
            raise ManifestError(f"{self.path}: the file is empty") from None
        except csv.Error as error:
            raise ManifestError(f"{self.path}: line 1: {error}") from error
        for separator, called in _SEPARATORS.items() if len(header) == 1 else ():
            if separator in header[0]:
                raise ManifestError(
                    f"{self.path}: line {line}: the fields are separated by {called} ({separator!r}); "
                    "a manifest is separated by commas, with points in decimal numbers"
                )
        self.columns = _checked_names(str(self.path), header)
        return Pieces(str(self.path), self.columns, self._pieces(), self._where)

    def _check_bytes(self) -> None:
        """Refuse what is not text in UTF-8, and quotes that are never closed."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        quotes, position = 0, 0
        with self.path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                if position == 0:
                    cause = next((cause for magic, cause in _OTHER_FORMATS.items() if block.startswith(magic)), None)
                    if b"\0\0\0\0" in {block[:8:2], block[1:8:2]}:  # letters of two bytes each, without the mark for it
                        cause = cause or _OTHER_FORMATS[codecs.BOM_UTF16_LE]
                    if cause is not None:
                        raise ManifestError(f"{self.path}: line 1: not a CSV file; {cause}")
                if (nul := block.find(b"\0")) >= 0:
                    raise ManifestError(self._at(position + nul, "a NUL byte; the file is damaged or binary"))
                pending = len(decoder.getstate()[0])
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    raise ManifestError(self._at(position - pending + error.start, None)) from error
                quotes += block.count(b'"')
                position += len(block)
        if decoder.getstate()[0]:
            raise ManifestError(self._at(position - 1, "the file ends within a character; it is cut short"))
        if position <= 3:
            raise ManifestError(f"{self.path}: the file is empty")
        if quotes % 2:
            with self.path.open("rb") as file:
                odd = next(number for number, line in enumerate(file, 1) if line.count(b'"') % 2)
            raise ManifestError(f"{self.path}: line {odd}: a quote is opened and never closed")

    def _at(self, offset: int, cause: str | None) -> str:
        """Line and column of a byte, and what is wrong there."""
        with self.path.open("rb") as file:
            before = file.read(offset)
            byte = file.read(1)
        line = before.count(b"\n") + 1
        column = before[before.rfind(b"\n") + 1 :].count(b",") + 1
        cause = cause or f"the byte 0x{byte.hex()} is not UTF-8; Latin-1 or Windows text? Save it as UTF-8"
        return f"{self.path}: line {line}, column {column}: {cause}"

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Every row that is not blank, with its first line: slow, for the header and for messages."""
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            line = 1
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1

    def _pieces(self) -> Iterator[pa.Table]:
        refused: list[int] = []

        def refuse(row: pacsv.InvalidRow) -> str:
            refused.append(row.actual_columns)
            return "skip"

        text = {column: pa.string() for column in self.columns}
        try:
            with pacsv.open_csv(
                self.path,
                read_options=pacsv.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
                convert_options=pacsv.ConvertOptions(column_types=text, strings_can_be_null=False),
            ) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
        except pa.ArrowException as error:
            raise ManifestError(f"{self.path}: cannot be read as CSV: {error}") from error
        if refused:
            self._count_fields()

    def _count_fields(self, *, note: bool = True) -> None:
        """Find the line of every row, and note those of another length than the header."""
        del self.lines[:]
        rows = self._rows()
        next(rows)
        for line, row in rows:
            if len(row) == len(self.columns):
                self.lines.append(line)
            elif note:
                counted = f"line {line}: {len(row)} fields where the header has {len(self.columns)}"
                self.problems.add("field count", f"{counted}; {_field_count_cause(row, len(self.columns))}")

    def _where(self, row: int) -> str:
        if not len(self.lines):  # rows of another length are noted once, when all rows have been read
            self._count_fields(note=False)
        return f"line {self.lines[row]}"


def _field_count_cause(row: list[str], expected: int) -> str:
    if len(row) == 1 and any(separator in row[0] for separator in _SEPARATORS):
        return "are its fields separated by something else than commas?"
    if any('"' in cell or "\n" in cell for cell in row):
        return "is a quote opened and never closed, or does one stand inside a cell?"
    if len(row) < expected:
        return "is the line cut short?"
    if any(cell.strip()[:1] in {"(", "["} and cell.strip()[-1] not in ")]" for cell in row if cell.strip()):
        return 'a box is written in quotes: "(0, 0, 32, 32)"'
    if any(a.strip().isdigit() and b.strip().isdigit() for a, b in pairwise(row)):
        return "a decimal comma? Numbers are written with a point"
    return "a comma inside a cell? Put the cell in quotes"
