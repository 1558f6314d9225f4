"""Windows against sets of pixels, and the boxes that users write."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from lazytiles.indexing.windows import boxes_from_windows, shared_pixels, windows_from_boxes


@st.composite
def windows(draw, axes=2):
    starts = [draw(st.integers(-5, 8)) for _ in range(axes)]
    return [*starts, *(start + draw(st.integers(1, 6)) for start in starts)]


pairs = st.integers(1, 3).flatmap(lambda axes: st.tuples(windows(axes), windows(axes)))


def pixels(window):
    half = len(window) // 2
    return set(itertools.product(*map(range, window[:half], window[half:])))


@given(pairs)
def test_shared_pixels_are_those_of_both(pair):
    first, second = pair
    assert shared_pixels([first], [second]).tolist() == [len(pixels(first) & pixels(second))]


@given(st.integers(2, 3).flatmap(windows))
def test_boxes_are_windows_written_x_first(window):
    half = len(window) // 2
    box = window[:half][::-1] + window[half:][::-1]
    assert windows_from_boxes([box]).tolist() == [window]
    assert boxes_from_windows([window]).tolist() == [box]


def test_width_and_height_are_not_swapped():
    assert windows_from_boxes([(0, 0, 30, 20)]).tolist() == [[0, 0, 20, 30]]
    assert windows_from_boxes([(1, 2, 3, 11, 12, 13)]).tolist() == [[3, 2, 1, 13, 12, 11]]


def test_arrays_of_windows_have_two_halves():
    with pytest.raises(ValueError, match=r"not \(4,\)"):
        windows_from_boxes([0, 0, 5, 5])
    with pytest.raises(ValueError, match=r"not \(1, 5\)"):
        windows_from_boxes([[0, 0, 5, 5, 5]])
    with pytest.raises(ValueError, match="whole pixels, not float64"):
        windows_from_boxes([[0, 0, 5, 5.5]])
    assert windows_from_boxes(np.empty((0, 4))).shape == (0, 4)
