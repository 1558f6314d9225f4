"""What an array of samples says of itself: in a line, as facts for a notebook, a strip of pictures, and its place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.arrays.reading import open_ahead
from lazytiles.arrays.relations import ground_of
from lazytiles.display import CHEAP_BYTES, side_by_side, stretched
from lazytiles.indexing import Ground

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


def ground(array: Any) -> Ground | None:
    """Where the samples lie on the ground, as `leakage` asks for it; None where the sources are no images."""
    if array.form is None:
        return None
    open_ahead(array.sources)
    starts = np.cumsum([0, *map(len, array.sources)])
    return ground_of(array.sources).at(starts[array.index_pairs[:, 0]] + array.index_pairs[:, 1])


def bounds(array: Any) -> NDArray[np.float64] | None:
    """(left, bottom, right, top) of each sample, map units, in the current order; None where an image does not say.

    Every image is opened that was not yet.
    """
    found = ground(array)
    return None if found is None or np.isnan(found.boxes).any() else found.boxes
