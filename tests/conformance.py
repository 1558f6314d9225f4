"""What every source keeps, ours and others': `check_source` runs on all of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.anykey import same_as_numpy

FULL_KEYS = [
    np.s_[::-1],
    np.s_[-1:0:-2],
    np.s_[5:2],
    np.s_[...],
    np.s_[..., 0],
    np.s_[None, 1],
    np.s_[[2, 0, -1, 2]],
    np.s_[np.array([[0, 1], [2, 1]])],
    np.s_[[]],
    (),
    np.s_[0, ..., -1],
    np.s_[[0, 2], ..., [0, 0]],
    "a",
    1.5,
    10**6,
    [10**6],
]


def check_source(make: Callable[[], Any], expected: np.ndarray, *, full: bool = True, pickles: bool = True) -> None:
    """A source is the array that it stands for.

    Parameters
    ----------
    make : gives the source, anew each time
    expected : what it holds, with its samples along axis 0
    full : whether it takes every key that NumPy takes
    pickles : whether it travels to other processes
    """
    source = make()
    assert tuple(source.shape) == expected.shape
    assert np.dtype(source.dtype).newbyteorder("=") == expected.dtype
    assert not hasattr(source, "__len__") or len(source) == len(expected)  # zarr.Array has none
    for key in (0, len(expected) - 1, np.s_[:], np.s_[1:3], np.s_[len(expected) - 1 :], np.s_[0:0]):
        np.testing.assert_array_equal(np.asarray(source[key]), expected[key])
    if full:
        mask = np.arange(len(expected)) % 2 == 0
        for key in [*FULL_KEYS, mask, mask.tolist(), (mask, ..., 0), ~mask & mask, *range(-len(expected), 0)]:
            same_as_numpy(source, expected, key)
        np.testing.assert_array_equal(np.asarray(source), expected)
        np.testing.assert_array_equal(np.stack(list(source)), expected)
    if hasattr(source, "take") and not isinstance(source, np.ndarray):
        rows = np.array([2, 0, 2, len(expected) - 1])
        np.testing.assert_array_equal(source.take(rows), expected[rows])
        out = np.zeros((4, *expected.shape[1:]), expected.dtype)
        assert source.take(rows, out=out) is out
        np.testing.assert_array_equal(out, expected[rows])
        for wrong in (out[:1], out.astype("c16")) if full else ():
            with pytest.raises(ValueError, match="out is"):
                source.take(rows, out=wrong)
        assert source.take(np.empty(0, np.int64)).shape == (0, *expected.shape[1:])
    fresh = np.asarray(source[1:3])
    if full and not isinstance(source, np.ndarray):
        fresh[...] = 0  # what was handed out is the caller's own
        np.testing.assert_array_equal(np.asarray(source[1:3]), expected[1:3])
    with ThreadPoolExecutor(4) as threads:
        for k, part in threads.map(lambda k: (k, np.asarray(source[k])), list(range(len(expected))) * 4):
            np.testing.assert_array_equal(part, expected[k])
    if pickles:
        for twin in (pickle.loads(pickle.dumps(source)), copy.copy(source), copy.deepcopy(source)):
            np.testing.assert_array_equal(np.asarray(twin[:]), expected)
    assert len(repr(source).splitlines()) <= (1 if full and not isinstance(source, np.ndarray) else 10**6)
