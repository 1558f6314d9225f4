"""Which label ids make the frames of a tile, and which rows of a manifest are then its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lazytiles.errors import ManifestError


@dataclass(frozen=True, slots=True)
class Frames:
    """Which label ids make the frames of a tile: several (a time axis), one, or whatever each row says."""

    labels: list[str] | None
    timed: bool

    @classmethod
    def of(cls, frames: Any) -> Frames:
        """From what a user gives: None, one label id, or several.

        >>> Frames.of([2017, 2018]), Frames.of("2018").timed
        (Frames(labels=['2017', '2018'], timed=True), False)
        """
        if frames is None:
            return cls(None, False)
        if isinstance(frames, str | int | np.integer):
            return cls([str(frames)], False)
        labels = [str(frame) for frame in frames]
        if not labels:
            raise ValueError("frames is empty; name at least one label id, or pass None")
        return cls(labels, True)

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows that are the samples: those of the last frame."""
        if self.labels is None:
            return table
        if "label_id" not in table:
            raise ManifestError(f"frames={self.labels} given, but the manifest has no column label_id")
        label = table["label_id"]
        last = (label == self.labels[-1]).to_numpy()
        if not last.any():
            there = ", ".join(map(str, label.cat.categories[:10]))
            raise ManifestError(f"no row of the manifest has label_id {self.labels[-1]!r}; there are {there}")
        others = label.isin(self.labels).to_numpy() & ~last
        kept = table[last].reset_index(drop=True)
        if others.any():
            codes = pd.factorize(table["tile_id"])[0]
            kept_codes = np.zeros(len(table), dtype=np.bool_)
            kept_codes[codes[last]] = True
            lost = table["tile_id"][others & ~kept_codes[codes]]
            if len(lost):
                raise ManifestError(
                    f"tile {lost.iloc[0]} has no row for the last frame {self.labels[-1]!r}, where its target and "
                    f"box are taken from ({lost.nunique()} such tiles); leave its other rows out or add one"
                )
        return kept
