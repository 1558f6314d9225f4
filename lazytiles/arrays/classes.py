"""Class names and their numbers: what counts as a class, and which columns hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def class_name(value: object) -> str:
    """A value of a target column as the text that classes are compared by; whole numbers without a point.

    >>> class_name("cat"), class_name(3.0), class_name(True)
    ('cat', '3', 'True')
    """
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def check_classes(classes: Sequence[Any] | None) -> list[Any] | None:
    """The classes that a user names, as a list; refused where they are no list, or not different.

    Raises
    ------
    ValueError : saying what they are
    """
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Sequence | np.ndarray | pd.Index | pd.Series):
        raise ValueError(f"classes are a list of names, such as ['cat', 'dog'], not {classes!r}")
    given = [value.item() if isinstance(value, np.generic) else value for value in classes]
    names = [class_name(value) for value in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ValueError(f"classes={given}: " + (f"{twice[0]!r} is there twice" if twice else "no class is named"))
    return given


def is_numeric(column: pd.Series) -> bool:
    """Whether a column is of numbers by its type; booleans are none."""
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
