"""A collector of problems: all that is wrong with a table is said once, in one error; and the words for its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lazytiles.display import plural
from lazytiles.errors import ManifestError, visible

IDS = ("tile_id", "region_id", "label_id")
BOX_2D = ("xmin", "ymin", "xmax", "ymax")
BOX_3D = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
SHOWN = 20
"""How many problems of one kind are written out by default; the rest are counted."""


def tile_words(table: pd.DataFrame, row: int) -> str:
    """The words for the tile of a row, and its box if it has one.

    >>> tile_words(pd.DataFrame({"tile_id": ["a"], "xmin": [0], "ymin": [1], "xmax": [8], "ymax": [9]}), 0)
    'tile a with box (0, 1, 8, 9)'
    """
    tile = f"tile {table['tile_id'].iloc[row]}" if "tile_id" in table else f"row {row}"
    box = [str(table[name].iloc[row]) for name in BOX_3D if name in table]
    return f"{tile} with box ({', '.join(box)})" if box else tile


@dataclass(slots=True, repr=False)
class Problems:
    """Findings by kind: the first `SHOWN` of each as text, and how many there are.

    Parameters
    ----------
    name : what is being checked, such as the manifest's path
    where : a row number to how the user finds it, such as ``"line 3"``
    shown : how many of one kind are written out; with 1, each kind is one line with its count

    >>> found = Problems("tiles.csv")
    >>> found.add("duplicate", "line 3: tile t0 is already on line 2")
    >>> print(found)
    tiles.csv: line 3: tile t0 is already on line 2
    """

    name: str
    texts: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    where: Callable[[int], str] = "row {}".format
    shown: int = SHOWN

    def add(self, kind: str, text: str, row: int | None = None) -> None:
        """Note one problem of a kind, and the row that it lies in, if it is one row's."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        shown = self.texts.setdefault(kind, [])
        if len(shown) < self.shown:
            shown.append(text)
            if row is not None:
                self.rows.setdefault(kind, []).append(row)

    def add_rows(self, kind: str, rows: np.ndarray, describe: Callable[[int], str]) -> None:
        """Note one problem per row; only the rows that are shown are described.

        Parameters
        ----------
        rows : row numbers, or a boolean mask over the rows
        describe : a row number to its text
        """
        numbers = np.flatnonzero(rows) if rows.dtype == bool else rows
        if not len(numbers):
            return
        shown = self.texts.setdefault(kind, [])
        for row in numbers[: self.shown - len(shown)].tolist():
            shown.append(describe(row))
            self.rows.setdefault(kind, []).append(row)
        self.counts[kind] = self.counts.get(kind, 0) + len(numbers)

    def extend(self, kind: str, texts: Iterable[str]) -> None:
        """Note several problems of a kind."""
        for text in texts:
            self.add(kind, text)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __repr__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.counts.items())
        return f"<Problems of {self.name}: {kinds or 'none'}>"

    def __str__(self) -> str:
        if len(self) == 1:
            return f"{self.name}: {visible(next(iter(self.texts.values()))[0])}"
        word = "problem" if self.shown > 1 else "warning"
        return "\n".join([f"{self.name}: {plural(len(self), word)}", *self.lines()])

    def lines(self) -> list[str]:
        """The texts, and after those of each kind how many more there are."""
        lines = []
        for kind, texts in self.texts.items():
            more = self.counts[kind] - len(texts)
            if self.shown == 1:
                lines.append(f"  {kind}: {visible(texts[0])}" + (f" (and {more:,} more)" if more else ""))
                continue
            lines += [f"  {visible(text)}" for text in texts]
            if more:
                lines.append(f"  and {more} more of this kind ({kind})")
        return lines

    def raise_any(self) -> None:
        """Raise all that was noted.

        Raises
        ------
        ManifestError : there is at least one problem
        """
        if len(self):
            raise ManifestError(str(self))
