"""What tests of slides and of series share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def quiet() -> Iterator[None]:
    """Leave out what tifffile logs, which it does of all that it finds odd."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def pixels(shape: tuple[int, ...] | list[int], dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Random numbers below 256."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
