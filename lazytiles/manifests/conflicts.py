"""What rows of one tile say otherwise than each other, or twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.manifests.columns import column_hashes, count_distinct, first_of, first_rows, joint_codes
from lazytiles.manifests.problems import BOX_3D

_IMAGES = (("region", "region_id"), ("path", "path"))
_SAID = ("region_id", *BOX_3D)


def _said_of_tiles(table: pd.DataFrame) -> list[NDArray[np.generic]]:
    """The columns that all rows of one tile must agree on."""
    columns = [table[name] for name in _SAID if name in table]
    return [(one.cat.codes if one.name == "region_id" else one).to_numpy() for one in columns]


def _may_conflict(table: pd.DataFrame) -> bool:
    """Whether any rows of one tile are alike or differ; few bytes a row, and never a false no.

    Tiles of one hash are taken for one: two of them look like a conflict, and hide none.
    """
    hashes = column_hashes(table["tile_id"])
    if count_distinct(hashes.copy()) == len(table):
        return False
    first = first_rows(hashes)
    del hashes
    keys = first.astype(np.int64)
    if "label_id" in table:
        keys *= len(table["label_id"].cat.categories)
        keys += table["label_id"].cat.codes.to_numpy()
    if count_distinct(keys) < len(table):
        return True
    del keys
    return any(bool((values != values[first]).any()) for values in _said_of_tiles(table))


def conflicts(
    table: pd.DataFrame, where: Callable[[int], str]
) -> Iterator[tuple[str, NDArray[np.bool_], Callable[[int], str]]]:
    """Rows that say of one tile what another row says otherwise, or again: their kind, mask, and words for each."""
    if not _may_conflict(table):
        return
    codes, unique = pd.factorize(table["tile_id"])
    first = first_of(codes, len(unique))
    tile = table["tile_id"]
    pairs = joint_codes([codes, table["label_id"].cat.codes.to_numpy()]) if "label_id" in table else codes
    seen = first_of(pairs, pairs.max() + 1)
    again = seen[pairs] != np.arange(len(pairs))

    def place(row: int) -> str:
        box = ", ".join(str(table[name].iloc[row]) for name in _SAID[1:] if name in table)
        of = [f"{word} {table[name].iloc[row]}" for word, name in _IMAGES if name in table][:1]
        return " of ".join(([f"box ({box})"] if box else []) + of) or "the same image"

    def describe_again(row: int) -> str:
        label = f" (label {table['label_id'].iloc[row]})" if "label_id" in table else ""
        first_row = where(int(seen[pairs[row]]))
        return f"{where(row)}: tile {tile.iloc[row]}{label} is already on {first_row}, here with {place(row)}"

    yield "duplicate", again, describe_again
    differs = np.zeros(len(table), bool)
    for values in _said_of_tiles(table):
        differs |= values != values[first[codes]]
    if "xmin" in table:
        # A cell that is no box was noted already, and holds 0.
        is_box = (table["xmax"] > table["xmin"]).to_numpy()
        differs &= is_box & is_box[first[codes]]

    def describe(row: int) -> str:
        other = int(first[codes[row]])
        return f"{where(row)}: tile {tile.iloc[row]}: {place(row)}, but {place(other)} on {where(other)}"

    yield "frames disagree", differs & ~again, describe
