"""Every key against NumPy: a request is read by the plainest reader there is and must give NumPy's answer."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

from lazytiles.indexing.requests import request

SIZES = st.integers(0, 6)
MANY = settings(max_examples=max(700, settings().max_examples), deadline=None, suppress_health_check=list(HealthCheck))


def read(asked, array):
    """The block that a request asks for, row by row."""
    block = np.empty(asked.block_shape, array.dtype)
    for k in range(asked.n):
        row = array[tuple(rows[k] for rows in asked.rows)]
        block[k] = row[tuple(slice(start, stop) for start, stop in boxes_of(asked)[k])]
    return block


def boxes_of(asked):
    """The box of every row, with its origin."""
    if asked.origins is None:
        return [asked.box] * asked.n
    assert all(start == 0 for start, _ in asked.box)
    return [
        [(start + int(move), stop + int(move)) for (start, stop), move in zip(asked.box, origin, strict=True)]
        for origin in asked.origins
    ]


def cells_read(asked, cells):
    """(row, cell) tuples that a request touches."""
    touched = set()
    for k, box in enumerate(boxes_of(asked)):
        row = tuple(int(rows[k]) for rows in asked.rows)
        if all(start < stop for start, stop in box):
            spans = [
                range(start // cell, (stop - 1) // cell + 1) for (start, stop), cell in zip(box, cells, strict=True)
            ]
            touched.update(row + cell for cell in itertools.product(*spans))
    return touched


def cells_needed(key, shape, row_axes, cells):
    """(row, cell) tuples under the elements that NumPy gives."""
    edges = [1] * row_axes + list(cells)
    indices = [
        np.atleast_1d(np.broadcast_to(index, shape)[key]).reshape(-1) // edge
        for index, edge in zip(np.ogrid[tuple(map(slice, shape))], edges, strict=True)
    ]
    return set(zip(*(column.tolist() for column in indices), strict=True))


@st.composite
def slices(draw, size):
    bound = st.none() | st.integers(-size - 2, size + 2)
    step = st.none() | st.sampled_from([1, 2, 3, 5, -1, -2, -3, -7])
    return slice(draw(bound), draw(bound), draw(step))


@st.composite
def index_arrays(draw, size, shape):
    """Integers for one axis, of a shape that broadcasts to `shape`; now and then one of them is outside."""
    own = [length if draw(st.booleans()) else 1 for length in shape[draw(st.integers(0, len(shape))) :]]
    count = int(np.prod(own))
    low, high = (-size, size - 1) if draw(st.integers(0, 15)) else (-size - 1, size)
    values = draw(st.lists(st.integers(low, max(low, high)), min_size=count, max_size=count))
    array = np.array(values, dtype=draw(st.sampled_from([np.int64, np.int32, np.int8]))).reshape(own)
    return array.tolist() if draw(st.booleans()) else array


@st.composite
def masks(draw, shape):
    values = draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    return np.array(values, dtype=bool).reshape(shape)


ODD = [
    True,
    False,
    np.True_,
    "a",
    1.5,
    [1.5],
    object(),
    slice(0, 1, 0),
    [[1], [1, 2]],
    2**70,
    [2**70],
    np.uint8(0),
]
ODD += [
    range(2),
    (),
    [],
    [[]],
    np.array([]),
    np.array(0),
    slice(0.5),
    np.zeros((1, 0), bool),
    [True],
    {0},
    b"x",
]


@st.composite
def keys(draw, shape):
    """Keys of every kind for an array of that shape, mostly good ones."""
    points = draw(st.sampled_from([(2,), (3,), (1,), (0,), (5,), (2, 3), (3, 1)]))
    key, axis, ellipsis = [], 0, False
    end = draw(st.integers(0, len(shape)))
    while axis < end:
        size = shape[axis]
        kind = draw(st.sampled_from("iiisssaaamnneo"))
        if kind == "i":
            key.append(draw(st.integers(-size, max(size - 1, -size))))
        elif kind == "s":
            key.append(draw(slices(size)))
        elif kind == "a":
            key.append(draw(index_arrays(size, points)))
        elif kind == "m":
            width = draw(st.integers(0, min(3, len(shape) - axis)))
            key.append(draw(masks(shape[axis : axis + width])))
            axis += width - 1
        elif kind == "n":
            key.append(None)
            axis -= 1
        elif kind == "e" and not ellipsis:
            key.append(Ellipsis)
            ellipsis, axis = True, axis + draw(st.integers(0, 2)) - 1
        elif not draw(st.integers(0, 6)):
            key.append(draw(st.sampled_from(ODD)))
        axis += 1
    return key[0] if len(key) == 1 and draw(st.booleans()) else tuple(key)


@st.composite
def cases(draw, row_axes):
    shape = tuple(draw(st.lists(SIZES, min_size=max(1, row_axes), max_size=5)))
    cells = [draw(st.integers(1, 4)) for _ in shape[row_axes:]]
    return shape, draw(keys(shape)), cells


def answer(call):
    """What a call returns, and the type of what it raises."""
    try:
        return call(), None
    except Exception as refusal:
        return None, type(refusal)


def check(shape, key, cells, row_axes):
    """The request of a key gives what NumPy gives, or raises what it raises, and reads the cells it needs."""
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    wanted, refusal = answer(lambda: array[key])
    if refusal is not None:
        assert answer(lambda: request(key, shape, row_axes=row_axes, cells=cells)) == (None, refusal)
        return
    asked = request(key, shape, row_axes=row_axes, cells=cells)
    given = asked.finish(read(asked, array))
    assert type(given) is type(wanted)
    assert given.dtype == wanted.dtype
    assert given.shape == wanted.shape
    np.testing.assert_array_equal(given, wanted)
    if cells is not None:
        assert cells_read(asked, cells) == cells_needed(key, shape, row_axes, cells)


@pytest.mark.parametrize("row_axes", [0, 1, 2])
@pytest.mark.parametrize("celled", [False, True])
def test_every_key_gives_what_numpy_gives(row_axes, celled):
    @MANY
    @given(cases(row_axes))
    @example(((2, 3, 4), (slice(None), [0], ..., [0]), [1] * (3 - row_axes)))
    @example(((2, 3, 0), ([], [7]), [1] * (3 - row_axes)))
    @example(((4, 5), (..., 1, 2), [2] * (2 - row_axes)))
    def law(case):
        shape, key, cells = case
        check(shape, key, cells if celled else None, row_axes)

    law()


SEPARATED = [
    np.s_[:, [0, 1], ..., [1, 2]],
    np.s_[[0, 1], :, :, [1, 2]],
    np.s_[0, :, [1, 2]],
    np.s_[:, 0, [1, 2]],
    np.s_[:, None, [1, 2], 0],
    np.s_[:, [1, 2], None, 0],
    np.s_[True, :, [0, 1]],
    np.s_[False],
    np.s_[..., True],
    np.s_[-1, ..., None],
    np.s_[[[0], [1]], [0, 1, 2], ::-1],
    np.s_[2:0:-1, ::-2, 1:3, -1],
    np.s_[0, 0, 0, 0],
    np.s_[0, 0, 0, 0, ...],
    np.s_[np.array(0), 0, 0, 0],
    np.s_[:, :, [3, 3, 0]],
    np.s_[[2, 2, 0, -1]],
    np.s_[5:2],
    np.s_[1 :: 2**64],
    np.s_[:, :: -(2**70)],
    [np.empty((0, 3), bool)],
    (),
]


@pytest.mark.parametrize("row_axes", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("key", SEPARATED, ids=str)
def test_keys_where_numpy_moves_dimensions(key, row_axes):
    check((3, 3, 4, 3), key, [2] * (4 - row_axes), row_axes)


@pytest.mark.parametrize(
    "key", ["a", 1.5, 9, (0, 0, 0), slice(0, 1, 0), [9], [[1], [1, 2]], [True], {0}, np.timedelta64(1, "s")], ids=repr
)
def test_the_message_is_numpys(key):
    with pytest.raises((IndexError, TypeError, ValueError)) as theirs:
        np.empty((4, 5), bool)[key]
    with pytest.raises(type(theirs.value)) as ours:
        request(key, (4, 5), row_axes=1)
    assert str(ours.value) == str(theirs.value)
    assert ours.value.__context__ is None


def test_the_block_itself_where_nothing_is_left_to_do():
    for key in (
        slice(3, 7),
        [1, 2, -1],
        np.arange(10) % 2 == 0,
        slice(None),
        np.s_[2:5, 3:6],
        np.s_[..., 1:2],
    ):
        asked = request(key, (10, 8, 8, 3), row_axes=1)
        block = np.zeros(asked.block_shape)
        assert asked.finish(block) is block
    asked = request(np.s_[:, -1], (10, 3, 8, 8, 1), row_axes=2)
    block = np.zeros(asked.block_shape)
    assert asked.n == 10
    assert asked.rows[1].tolist() == [2] * 10
    assert asked.finish(block) is block


def test_a_strided_block_is_a_view():
    asked = request(np.s_[:, -1, 10:20, ::2], (4, 3, 64, 64, 3), row_axes=2, cells=(16, 16, 3))
    assert asked.block_shape == (4, 10, 63, 3)
    block = np.zeros(asked.block_shape)
    assert np.shares_memory(asked.finish(block), block)


def test_steps_that_leap_over_cells_read_single_lines():
    asked = request(np.s_[::40, :], (100, 64), row_axes=0, cells=(16, 16))
    assert asked.origins.tolist() == [[0, 0], [40, 0], [80, 0]]
    assert asked.box == ((0, 1), (0, 64))


def test_a_coarse_look_at_a_big_image_does_not_allocate_it():
    asked = request(np.s_[::64, ::64], (100_000, 10_000, 3), row_axes=0, cells=(256, 256, 3))
    assert np.prod(asked.block_shape) < 100_000 * 10_000 * 3 / 60


def test_a_mask_over_pixels_reads_its_extent_when_it_is_dense_and_points_when_not():
    mask = np.zeros((100, 100), bool)
    mask[10:20, 10:30] = True
    dense = request(mask, (100, 100, 3), row_axes=0, cells=(8, 8, 3))
    assert dense.block_shape == (1, 10, 20, 3)
    mask[10:20, 10:30] = False
    mask[[5, 95], [5, 95]] = True
    sparse = request(mask, (100, 100, 3), row_axes=0, cells=(8, 8, 3))
    assert sparse.block_shape == (2, 1, 1, 3)


def test_lists_of_bands_are_taken_from_whole_windows():
    asked = request(np.s_[..., [2, 0]], (10, 3, 64, 64, 3), row_axes=2, cells=(16, 16, 3))
    assert asked.block_shape == (30, 64, 64, 3)


def test_without_cells_a_row_is_asked_for_once():
    asked = request((np.repeat([4, 2], 50), np.arange(100) % 8), (10, 8, 3), row_axes=1)
    assert asked.n == 2


def test_it_prints_itself():
    assert repr(request(3, (9, 4, 5), row_axes=1)) == "<Request: 1 rows of 4 x 5>"
    assert "own origin" in repr(request([0, 90], (99, 4), row_axes=0, cells=(2, 4)))
