"""Data sets by name: a dictionary from names to functions that open them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from lazytiles.errors import ManifestError
from lazytiles.multisource import MultiSourceArray

Opener = Callable[..., MultiSourceArray]

catalog: dict[str, Opener] = {}
"""What is registered in this process."""


def register(name: str, function: Opener) -> Opener:
    r"""Give a data set a name, by which `open_tiles` then opens it.

    Parameters
    ----------
    name : not a path: no ``/``, ``\`` or ``.``; a name that is taken is given to the new function
    function : called with the options that `open_tiles` was given, returns the tiles

    Returns
    -------
    the function itself

    Raises
    ------
    ValueError : the name could be a path

    Examples
    --------
    >>> import pandas as pd
    >>> def squares(n=3):
    ...     return MultiSourceArray([np.eye(n)[None]] * 2, table=pd.DataFrame({"split": ["train", "test"]}))
    >>> _ = register("squares", squares)
    >>> open_registered("squares", where={"split": "test"}, n=4).shape
    (1, 4, 4)
    """
    if not name or any(mark in name for mark in "/\\."):
        raise ValueError(f"name {name!r} could be a path; a name has no /, \\ or .")
    if not callable(function):
        raise TypeError(f"{name}: a function that opens the tiles is needed, not {type(function).__name__}")
    catalog[name] = function
    return function


def open_registered(name: str, *, where: Mapping[str, Any] | None = None, **options: Any) -> MultiSourceArray:
    """The tiles of a registered data set, all or those with given values in their table.

    Parameters
    ----------
    name : as registered
    where : see `filtered`
    options : for the registered function

    Raises
    ------
    ManifestError : no such name, or no such column
    """
    if name not in catalog:
        there = ", ".join(sorted(catalog)) or "none yet"
        raise ManifestError(f"no data set {name!r} is registered; there are: {there}. Use lazytiles.register")
    tiles = catalog[name](**options)
    return tiles if where is None else filtered(tiles, where)


def filtered(tiles: MultiSourceArray, where: Mapping[str, Any]) -> MultiSourceArray:
    """The tiles whose table has given values.

    Parameters
    ----------
    tiles : an array with a table
    where : for each column a value, a collection of values, or a function from the column to a mask

    Raises
    ------
    ManifestError : no table, or no such column
    """
    table = tiles.table
    mask = np.ones(len(tiles), np.bool_)
    for column, wanted in where.items():
        if table is None or column not in table:
            there = "no table" if table is None else ", ".join(map(str, table.columns))
            raise ManifestError(f"no column {column!r} to filter by; there are {there}")
        if callable(wanted):
            mask &= np.asarray(wanted(table[column]), np.bool_)
        elif isinstance(wanted, Collection) and not isinstance(wanted, str):
            mask &= table[column].isin(list(wanted)).to_numpy()
        else:
            mask &= (table[column] == wanted).to_numpy()
    return tiles.select(mask)
