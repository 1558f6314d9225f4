"""What an array of samples says of itself: in a line, as facts for a notebook, and as a strip of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.display import CHEAP_BYTES, side_by_side, stretched

_FEW = 4  # samples of a strip
_NAMED = 4  # names that are listed before the rest is counted


def in_a_line(array: Any) -> str:
    """The ``repr`` of a `MultiSourceArray`."""
    beside = array.companions
    kind = {type(None): "no labels", np.ndarray: "labels"}.get(type(beside.labels), "mask tiles")
    kind += f" ({beside.note})" if beside.note else f" of {len(beside.classes)} classes" if beside.classes else ""
    sources = f"{len(array.sources)} sources, with {kind}, {order_of(array)}"
    return f"<MultiSourceArray: {array.shape} {array.dtype} from {sources}>"


def order_of(array: Any) -> str:
    """Whether an array is shuffled, and by which seed."""
    return f"shuffled, seed {array.seed}" if array._order is not None else "in order"


def facts_of(array: Any) -> dict[str, str]:
    """Labels, frames, order, regions and columns of a `MultiSourceArray`, as far as there are any; nothing is read."""
    table, frames = array.table, array.form is not None and array.ndim == 5
    regions = [] if table is None or "region_id" not in table else [str(name) for name in table["region_id"].unique()]
    found = {
        "labels": _labels(array),
        "frames": str(array.shape[1]) if frames else "",
        "order": order_of(array),
        "sources": str(len(array.sources)),
        "regions": _listed(regions),
        "table": "" if table is None else _listed([str(column) for column in table.columns], 12),
    }
    return {name: text for name, text in found.items() if text}


def _labels(array: Any) -> str:
    beside = array.companions
    if beside.labels is None:
        return f"none ({beside.note})" if beside.note else "none"
    if not isinstance(beside.labels, np.ndarray):
        return "mask tiles"
    if beside.classes:
        return f"{len(beside.classes)} classes: {_listed([str(name) for name in beside.classes])}"
    shape = " × ".join(str(length) for length in beside.labels.shape)
    if beside.labels.ndim == 1 and beside.labels.size and beside.labels.dtype.kind in "iuf":
        return f"{shape}, from {np.nanmin(beside.labels):.6g} to {np.nanmax(beside.labels):.6g}"
    return shape


def _listed(names: list[str], most: int = _NAMED) -> str:
    more = f", … ({len(names):,})" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def glimpse(array: Any, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint8] | None:
    """Some samples side by side, uint8 (h, w, 3); None where they are no images or reading them would cost much."""
    few = np.arange(min(_FEW, len(array))) if rows is None else rows
    is_image = (array.form is not None and not array.form.valid) or (array.ndim == 4 and array.shape[-1] in (1, 3, 4))
    if not is_image or not len(few) or array.nbytes // len(array) * len(few) > CHEAP_BYTES:
        return None
    if array.form is not None and getattr(array.plan(few), "bytes_decoded", 0) > CHEAP_BYTES:
        return None
    return side_by_side(stretched(array.take(few)), columns=1 if array.ndim == 5 else _FEW, gap=1)[0]
