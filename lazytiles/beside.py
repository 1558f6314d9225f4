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

from lazytiles.errors import StoreError
from lazytiles.journal import labels_path
from lazytiles.multisource import MultiSourceArray
from lazytiles.stored import StoreArray


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
            name: np.load(io.BytesIO(opened.members[f"{name}.npy"]))
            for name in ("labels", "valid", "order")
            if f"{name}.npy" in opened.members
        }
        table = opened.members.get("table.parquet")
        about = opened.record.about
        labels = arrays.get("labels")
        if "labels" in about:
            labels = label_store(store.path, about["labels"], check=store.check)
        return cls(
            labels,
            None if table is None else pd.read_parquet(io.BytesIO(table)),
            tuple(about["tabular"]) if about.get("tabular") else None,
            arrays.get("valid"),
            arrays.get("order"),
            about.get("seed"),
        )


def _array_of(values: Any) -> NDArray[Any] | None:
    """What a store keeps of an array of labels and the like; None of what is lazy."""
    return np.load(io.BytesIO(_saved(values))) if isinstance(values, np.ndarray) else None


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
    labels = StoreArray(labels_path(path, int(about["version"])), check=check)
    if labels.opened.record.uid != about["uid"]:
        raise StoreError(f"{labels.path} is not the one that was written with {path}; export both again")
    return labels
