"""Data sets by name: a dictionary from names to functions that open them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.arrays import MultiSourceArray, class_name
from lazytiles.errors import ManifestError
from lazytiles.manifests.problems import IDS

Opener = Callable[..., MultiSourceArray]
Door = TypeVar("Door", bound=Opener)

catalog: dict[str, Opener] = {}
"""What is registered in this process."""


def register(name: str, function: Opener) -> Opener:
    r"""Give a data set a name, by which `open_tiles` then opens it.

    Parameters
    ----------
    name : not a path: no ``/``, ``\`` or ``.``; a name that is taken is given to the new function
    function : called with the options that `open_tiles` was given (all but `where`), returns the tiles

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
    if not _may_be_name(name):
        raise ValueError(f"name {name!r} could be a path; a name has no /, \\ or .")
    if not callable(function):
        raise TypeError(f"{name}: a function that opens the tiles is needed, not {type(function).__name__}")
    catalog[name] = function
    return function


def by_name(function: Door) -> Door:
    """The function, which opens manifests, made to open registered names as well.

    >>> _ = register("grid", lambda n: MultiSourceArray([np.zeros((n, 2))]))
    >>> by_name(lambda manifest, **options: manifest)("grid", n=3).shape
    (3, 2)
    """

    @wraps(function)
    def opened(manifest: Any, *folder: Any, **options: Any) -> MultiSourceArray:
        if isinstance(manifest, str) and (
            manifest in catalog or (_may_be_name(manifest) and not os.path.lexists(manifest))
        ):  # a name that nobody registered, which is no path and no file, is refused as a name
            return open_registered(manifest, *folder, **options)
        return function(manifest, *folder, **options)

    return cast(Door, opened)


def _may_be_name(text: str) -> bool:
    return bool(text) and not any(mark in text for mark in "/\\.\0")


def open_registered(
    name: str, *folder: Any, where: Mapping[str, Any] | None = None, **options: Any
) -> MultiSourceArray:
    """Open the tiles of a registered data set, all or those with given values in their table.

    Parameters
    ----------
    name : as registered
    where : for each column a value, a collection of values, or a function from the column to a mask
    folder, options : for the registered function, as they are

    Raises
    ------
    ManifestError : no such name, or no such column
    """
    if name not in catalog:
        there = ", ".join(sorted(catalog)) or "none yet"
        raise ManifestError(f"no data set {name!r} is registered; there are: {there}. Use lazytiles.register")
    tiles = catalog[name](*folder, **options)
    table = None if where is None else tiles.table
    if where and table is None:
        raise ManifestError(f"no column {next(iter(where))!r} to filter by; there is no table")
    return tiles if where is None or table is None else tiles.select(rows_where(table, where))


def rows_where(table: pd.DataFrame, where: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask of the rows that have given values, see `open_registered`.

    >>> rows_where(pd.DataFrame({"fold": [0, 1, 2]}), {"fold": [0, 2]}).tolist()
    [True, False, True]
    """
    mask = np.ones(len(table), np.bool_)
    for column, wanted in where.items():
        if column not in table:
            raise ManifestError(f"no column {column!r} to filter by; there are {', '.join(map(str, table.columns))}")
        if callable(wanted):
            mask &= np.asarray(wanted(table[column]), np.bool_)
            continue
        values = list(wanted) if isinstance(wanted, Collection) and not isinstance(wanted, str) else [wanted]
        if isinstance(table[column].dtype, pd.CategoricalDtype):  # ids and classes are text, whatever is asked for
            texts = {class_name(value) for value in values}
            kept = [class_name(name) in texts for name in table[column].cat.categories]
            mask &= np.array([*kept, False])[table[column].cat.codes.to_numpy()]
            continue
        # Ids are text, so that 001 stays 001; who asks for label 2018 means "2018", as in `frames=`.
        mask &= table[column].isin([str(value) for value in values] if column in IDS else values).to_numpy()
    return mask
