"""Windows against sets of pixels, and arrays of windows against one window at a time."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from lazytiles.indexing.windows import (
    Window,
    boxes_from_windows,
    check_inside,
    clip_windows,
    shared_pixels,
    windows_from_boxes,
)


@st.composite
def windows(draw, axes=2):
    starts = tuple(draw(st.integers(-5, 8)) for _ in range(axes))
    return Window(starts, tuple(start + draw(st.integers(1, 6)) for start in starts))


pairs = st.integers(1, 3).flatmap(lambda axes: st.tuples(windows(axes), windows(axes)))


def pixels(window):
    return set() if window is None else set(itertools.product(*map(range, window.starts, window.stops)))


def row_of(window):
    return [*window.starts, *window.stops]


@given(pairs)
def test_intersections_are_those_of_pixels(pair):
    first, second = pair
    both = first.intersect(second)
    assert pixels(both) == pixels(first) & pixels(second)
    assert shared_pixels([row_of(first)], [row_of(second)]).tolist() == [len(pixels(both))]
    assert (0 if both is None else both.size) == len(pixels(both))


@given(windows(), st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_clipping_keeps_the_pixels_inside(window, shape):
    image = set(itertools.product(*map(range, shape)))
    assert pixels(window.clip(shape)) == pixels(window) & image
    assert window.is_inside(shape) == (pixels(window) <= image)
    assert check_inside([row_of(window)], shape).tolist() == [window.is_inside(shape)]
    clipped = clip_windows([row_of(window)], [shape])[0]
    inside = set(itertools.product(range(clipped[0], clipped[2]), range(clipped[1], clipped[3])))
    assert inside == pixels(window) & image


@given(windows(), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_clipped_window_and_its_padding_have_its_shape(window, shape):
    part = window.clip(shape)
    if part is not None:
        padded = np.pad(np.ones(shape)[part.slices()], window.pad_amounts(shape))
        assert padded.shape == window.shape


@given(windows(3), st.tuples(*[st.integers(-9, 9)] * 3))
def test_shifting_there_and_back(window, offset):
    assert window.shift(offset).shift([-move for move in offset]) == window
    assert window.shift(offset).shape == window.shape


@given(st.integers(2, 3).flatmap(windows))
def test_boxes_are_windows_written_x_first(window):
    assert Window.from_box(window.to_box()) == window
    assert windows_from_boxes([window.to_box()]).tolist() == [row_of(window)]
    assert boxes_from_windows([row_of(window)]).tolist() == [list(window.to_box())]


def test_width_and_height_are_not_swapped():
    assert Window.from_box((0, 0, 30, 20)).shape == (20, 30)
    assert Window.from_box((1, 2, 3, 11, 12, 13)) == Window((3, 2, 1), (13, 12, 11))


@pytest.mark.parametrize(
    ("starts", "stops", "message"),
    [
        ((0,), (0,), "holds no pixel"),
        ((0, 0), (5,), "as many starts as stops"),
        ((), (), "as many starts as stops"),
    ],
)
def test_windows_are_valid_from_birth(starts, stops, message):
    with pytest.raises(ValueError, match=message):
        Window(starts, stops)


def test_windows_are_whole_numbers_and_values():
    assert Window((np.int64(1),), (np.int32(3),)) == Window((1,), (3,))
    assert hash(Window([1], [3])) == hash(Window((1,), (3,)))
    with pytest.raises(TypeError, match="integer"):
        Window((0.5,), (2,))


def test_a_negative_start_is_no_key():
    with pytest.raises(ValueError, match="clip it first"):
        Window((-1, 0), (2, 2)).slices()


def test_arrays_of_windows_have_two_halves():
    with pytest.raises(ValueError, match=r"not \(4,\)"):
        check_inside([0, 0, 5, 5], (9, 9))
    with pytest.raises(ValueError, match=r"not \(1, 5\)"):
        clip_windows([[0, 0, 5, 5, 5]], (9, 9))
    with pytest.raises(ValueError, match="whole pixels, not float64"):
        clip_windows([[0, 0, 5, 5.5]], (9, 9))
    assert check_inside(np.empty((0, 4)), (9, 9)).shape == (0,)
