"""What stands beside the samples of an array, and how a store carries it: labels, table, order."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.boxlabels import Boxes
from lazytiles.errors import StoreError
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
    classes: list[Any] | None = None
    boxes: Boxes | None = None

    @classmethod
    def of(cls, tiles: MultiSourceArray, positions: NDArray[np.int64]) -> Beside:
        """What stands beside the samples at some positions of the current order."""
        labels = tiles.labels
        if labels is not None:
            labels = labels[positions] if isinstance(labels, np.ndarray) else labels.select(positions)
        table, valid = tiles.table, tiles.valid
        table = None if table is None else table.iloc[positions].reset_index(drop=True)
        return cls(
            labels,
            table,
            tiles.tabular_columns,
            None if valid is None else valid[positions],
            classes=tiles.classes,
            boxes=tiles.boxes,
        )

    def join(self, source: Any) -> MultiSourceArray:
        """One source with all this beside it."""
        result = MultiSourceArray([source], self.labels, table=self.table)
        if self.labels is None:
            result._labels = None
        result._classes, result._boxes = self.classes or result._classes, self.boxes
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
        if self.classes is not None or self.boxes is not None:
            meaning = {"classes": self.classes, "boxes": None if self.boxes is None else asdict(self.boxes)}
            found["labels.json"] = json.dumps(meaning).encode()
        if self.table is not None:
            buffer = io.BytesIO()
            self.table.to_parquet(buffer, index=False)
            found["table.parquet"] = buffer.getvalue()
        return found

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
        meaning = json.loads(opened.members.get("labels.json", b"{}"))
        boxes = meaning.get("boxes")
        if "labels" in about:
            labels = label_store(store.path, about["labels"], check=store.check)
        return cls(
            labels,
            None if table is None else pd.read_parquet(io.BytesIO(table)),
            tuple(about["tabular"]) if about.get("tabular") else None,
            arrays.get("valid"),
            arrays.get("order"),
            about.get("seed"),
            meaning.get("classes"),
            None if boxes is None else Boxes(boxes["format"], boxes["columns"] and tuple(boxes["columns"])),
        )


def _saved(values: NDArray[Any]) -> bytes:
    if values.dtype.kind == "O":
        # Text only: objects of other kinds would need pickle, which runs code when it is loaded.
        if not all(isinstance(value, str) for value in values.reshape(-1)):
            raise StoreError("labels that are neither numbers nor text cannot be stored")
        values = values.astype(np.str_)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def labels_path(path: Path) -> Path:
    """Where the mask labels of a store lie."""
    return path.with_name(f"{path.stem}.labels{path.suffix}")


def label_store(path: Path, uid: str, *, check: bool) -> StoreArray:
    """The mask labels that were written with a store, or a StoreError when they are others."""
    labels = StoreArray(labels_path(path), check=check)
    if labels.opened.record.uid != uid:
        raise StoreError(f"{labels.path} is not the one that was written with {path}; export both again")
    return labels
