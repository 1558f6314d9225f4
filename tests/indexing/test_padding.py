"""Windows that leave an axis against NumPy's padding of the whole axis."""

from __future__ import annotations

import numpy as np
import pytest

from lazytiles.indexing.padding import LINE_MODES, PAD_MODES, folded, needed, padded


@pytest.mark.parametrize("mode", [*PAD_MODES, *LINE_MODES])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_window_is_cut_out_of_what_numpy_pads(mode, length):
    image = np.arange(1, 2 * length + 1, dtype=np.float64).reshape(length, 2) ** 2
    for start in range(-2 * length - 1, 2 * length + 1):
        for stop in range(start + 1, 3 * length + 2):
            before, after = max(0, -start), max(0, stop - length)
            wide = np.pad(image, [(before, after), (0, 0)], mode=mode)
            first, last, places = needed(start, stop, length, mode)
            assert 0 <= first <= last <= length
            np.testing.assert_array_equal(
                padded(image[first:last], [places], mode), wide[start + before : stop + before]
            )


def test_axes_are_padded_together():
    image = np.arange(12).reshape(3, 4)
    rows, columns = needed(-1, 5, 3, "symmetric"), needed(2, 6, 4, "symmetric")
    near = image[rows[0] : rows[1], columns[0] : columns[1]]
    whole = np.pad(image, [(1, 2), (0, 2)], mode="symmetric")
    np.testing.assert_array_equal(padded(near, [rows[2], columns[2]], "symmetric"), whole[:, 2:])


@pytest.mark.parametrize(("fill", "mode"), [("reflect", "symmetric"), ("nearest", "edge")])
def test_folding_is_padding_by_indices(fill, mode):
    for length in (1, 3, 4):
        wide = np.pad(np.arange(length), 7, mode=mode)
        np.testing.assert_array_equal(folded(np.arange(-7, length + 7), length, fill), wide)
