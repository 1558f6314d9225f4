"""Names of types that many rooms use."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Int64s: TypeAlias = NDArray[np.int64]
Box: TypeAlias = tuple[tuple[int, int], ...]  # (start, stop) of each axis, half-open
Fault: TypeAlias = tuple[str, NDArray[np.bool_], str]  # kind, which rows have it, the words that follow their name
