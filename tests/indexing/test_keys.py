"""Selections of samples: NumPy's answers along a first axis, everything else refused."""

from __future__ import annotations

import numpy as np
import pytest

from lazytiles.indexing.keys import select_rows


@pytest.mark.parametrize(
    "key", [3, -1, slice(None), slice(8, 2, -2), [3, -1], np.arange(9) % 2 == 0, [], ...], ids=repr
)
def test_selecting_rows_is_indexing_their_numbers(key):
    rows = select_rows(key, 9)
    assert rows.dtype == np.int64
    assert rows.tolist() == np.atleast_1d(np.arange(9)[key]).tolist()


@pytest.mark.parametrize("key", [None, (0, 0), [[0]], True, np.ones((3, 3), bool), 9, [9], "a", [True]], ids=repr)
def test_selecting_rows_refuses_all_else(key):
    with pytest.raises(IndexError, match=r"one axis|out of bounds|too many|only integers|boolean index"):
        select_rows(key, 9)
