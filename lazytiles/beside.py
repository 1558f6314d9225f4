"""What stands beside the samples of an array, and how a store carries it: labels, table, order."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import parquet

from lazytiles.errors import LimitError, StoreError
from lazytiles.formats import array_in
from lazytiles.journal import labels_path
from lazytiles.multisource import MultiSourceArray
from lazytiles.stored import StoreArray

_SMALL_TABLE = 16 * 2**20  # bytes
_MOST_PACKED = 200  # bytes of a larger table for each that is stored


@dataclass(frozen=True, slots=True)
class Beside:
    """What stands beside the samples of an array, in the order in which its rows are written."""

    labels: Any = None
    table: pd.DataFrame | None = None
    tabular: tuple[str, ...] | None = None
    valid: NDArray[np.bool_] | None = None
    order: NDArray[np.int64] | None = None
    seed: int | None = None

    @classmethod
    def of(cls, tiles: MultiSourceArray, positions: NDArray[np.int64]) -> Beside:
        """What stands beside the samples at some positions of the current order."""
        labels = tiles.labels
        if labels is not None:
            labels = labels[positions] if isinstance(labels, np.ndarray) else labels.select(positions)
        table, valid = tiles.table, tiles.valid
        table = None if table is None else table.iloc[positions].reset_index(drop=True)
        return cls(labels, table, tiles.tabular_columns, None if valid is None else valid[positions])

    def join(self, source: Any) -> MultiSourceArray:
        """One source with all this beside it."""
        result = MultiSourceArray([source], self.labels, table=self.table)
        if self.labels is None:
            result._labels = None
        result.tabular_columns = self.tabular
        result._valid = self.valid
        if self.order is not None:
            result.order = self.order
            result.seed = self.seed
        return result

    def members(self) -> dict[str, bytes]:
        """All that is not lazy, as members of a store."""
        found: dict[str, bytes] = {}
        for name, values in (("labels", self.labels), ("valid", self.valid), ("order", self.order)):
            if isinstance(values, np.ndarray):
                found[f"{name}.npy"] = _saved(values)
        if self.table is not None:
            buffer = io.BytesIO()
            self.table.to_parquet(buffer, index=False)
            found["table.parquet"] = buffer.getvalue()
        return found

    def difference(self, other: Beside) -> str | None:
        """What of another is not the same, such as ``"label of row 3"``; None where all is. Mask labels are not read.

        >>> Beside(np.array([1, 2])).difference(Beside(np.array([1, 3])))
        'label of row 1'
        """
        for name in ("labels", "valid", "order"):
            one, two = (_array_of(getattr(beside, name)) for beside in (self, other))
            if one is None and two is None:
                continue
            if one is None or two is None or one.shape != two.shape or one.dtype.kind != two.dtype.kind:
                return f"{name} of all rows"
            unequal = (one != two) & ~((one != one) & (two != two))
            if unequal.any():
                row = int(unequal.reshape(len(unequal), -1).any(axis=1).argmax())
                return f"{'label' if name == 'labels' else name} of row {row}"
        if isinstance(self.labels, np.ndarray | None) != isinstance(other.labels, np.ndarray | None):
            return "labels of all rows"
        if (self.tabular, self.seed, self.table is None) != (other.tabular, other.seed, other.table is None):
            return "table or order of all rows"
        if self.table is not None and other.table is not None:
            return _table_difference(self.table, other.table)
        return None

    @classmethod
    def load(cls, store: StoreArray) -> Beside:
        """What a store carries beside its rows."""
        opened = store.opened
        arrays = {
            name: array_in(opened.members[f"{name}.npy"])
            for name in ("labels", "valid", "order")
            if f"{name}.npy" in opened.members
        }
        about, rows = opened.record.about, opened.record.rows
        for name, values in arrays.items():
            if not values.shape or len(values) != rows:
                raise StoreError(f"{store.path} is damaged: {name} of shape {values.shape} for {rows} rows")
        table = opened.members.get("table.parquet")
        labels: Any = arrays.get("labels")
        if "labels" in about:
            labels = label_store(store.path, about["labels"], check=store.check)
        return cls(
            labels,
            None if table is None else _table_in(store.path, table, rows),
            tuple(about["tabular"]) if about.get("tabular") else None,
            arrays.get("valid"),
            arrays.get("order"),
            about.get("seed"),
        )


def _array_of(values: Any) -> NDArray[Any] | None:
    """What a store keeps of an array of labels and the like; None of what is lazy."""
    return array_in(_saved(values)) if isinstance(values, np.ndarray) else None


def _table_in(path: Path, content: bytes, rows: int) -> pd.DataFrame:
    """The table in the bytes of a Parquet file, if it has a row for each row of the store and is no bomb."""
    facts = parquet.ParquetFile(io.BytesIO(content)).metadata
    if facts.num_rows != rows:
        raise StoreError(f"{path} is damaged: its table has {facts.num_rows} rows, the store has {rows}")
    groups = [facts.row_group(k) for k in range(facts.num_row_groups)]
    unpacked = max(sum(group.total_byte_size for group in groups), 8 * rows * facts.num_columns)
    if unpacked > max(_SMALL_TABLE, _MOST_PACKED * len(content)):
        raise LimitError(f"{path} is refused: its table of {len(content)} bytes unpacks to {unpacked}")
    return pd.read_parquet(io.BytesIO(content))


def _table_difference(one: pd.DataFrame, two: pd.DataFrame) -> str | None:
    if list(one.columns) != list(two.columns) or len(one) != len(two):
        return "table's columns or length"
    for name in one.columns:
        first, second = one[name].astype(object), two[name].astype(object)
        unequal = ((first != second) & ~(first.isna() & second.isna())).to_numpy()
        if unequal.any():
            return f"{name} in the table of row {int(unequal.argmax())}"
    return None


def _saved(values: NDArray[Any]) -> bytes:
    if values.dtype.kind == "O":
        # Text only: objects of other kinds would need pickle, which runs code when it is loaded.
        if not all(isinstance(value, str) for value in values.reshape(-1)):
            raise StoreError("labels that are neither numbers nor text cannot be stored")
        values = values.astype(np.str_)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def label_store(path: Path, about: Mapping[str, Any], *, check: bool) -> StoreArray:
    """The mask labels that were written with a store, or a StoreError when they are others.

    Parameters
    ----------
    path : the store
    about : its record's words of them: their version and uid
    """
    place = labels_path(path, int(about["version"]))
    if place.is_symlink():
        raise StoreError(f"{place} is a link, which may lead anywhere; put the labels themselves beside {path}")
    labels = StoreArray(place, check=check)
    if labels.opened.record.uid != about["uid"]:
        raise StoreError(f"{labels.path} is not the one that was written with {path}; export both again")
    return labels
