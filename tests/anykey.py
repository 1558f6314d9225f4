"""Every kind of key that NumPy takes, and those that it refuses, quickly drawn for arrays of any size."""

from __future__ import annotations

import warnings
from typing import Any

import hypothesis.strategies as st
import numpy as np

WRONG = [
    "a",
    1.5,
    [1.5],
    None,
    np.zeros((1, 0), bool),
    {0},
    slice(0, 1, 0),
    slice(0.5),
    2**70,
    [[1], [1, 2]],
    object(),
    np.timedelta64(1, "s"),
]


@st.composite
def slices(draw: Any, size: int) -> slice:
    bound = st.none() | st.integers(-2 * size - 2, 2 * size + 2) | st.integers(-size, size).map(np.int16)
    step = st.none() | st.sampled_from([1, 1, 2, 3, 7, 19, -1, -2, -5, -17, 10**9, -(10**9), -(2**70)])
    return slice(draw(bound), draw(bound), draw(step))


@st.composite
def keys(draw: Any, shape: tuple[int, ...]) -> Any:
    """A key for an array of that shape; one in ten has something wrong with it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    points = draw(st.sampled_from([(3,), (1,), (0,), (5,), (2, 3), (3, 1), (1, 3), (2, 1, 2), ()]))
    key: list[Any] = []
    axis, ellipsis, advanced = 0, False, 0
    stop = draw(st.integers(0, len(shape)))
    while axis < stop:
        kind = draw(st.sampled_from("iissssaamne"))
        size = shape[axis]
        if kind == "i":
            as_type = draw(st.sampled_from([int, np.int64, np.int8, np.int32]))
            key.append(as_type(rng.integers(-size, max(size, 1))))
        elif kind == "s":
            key.append(draw(slices(size)))
        elif kind == "a" and advanced < 3:
            own = tuple(n if rng.random() < 0.8 else 1 for n in points[int(rng.integers(0, len(points) + 1)) :])
            array = rng.integers(-size, size, own) if size else np.zeros((0,), np.int64)
            array = array.astype(draw(st.sampled_from([np.int64, np.int32, np.int16])))
            key.append(array.tolist() if draw(st.booleans()) and array.size else array)
            advanced += 1
        elif kind == "m" and advanced < 2:
            width = draw(st.integers(0, min(3, len(shape) - axis)))
            count = draw(st.sampled_from([0, 1, 2, 3]))
            mask = np.zeros(shape[axis : axis + width], dtype=bool)
            if mask.size:
                mask.flat[rng.integers(0, mask.size, count)] = True
            key.append(mask.tolist() if width == 1 and draw(st.booleans()) else mask)
            axis += width - 1
            advanced += 1
        elif kind == "n":
            key.append(None)
            axis -= 1
        elif kind == "e" and not ellipsis:
            key.append(Ellipsis)
            ellipsis, axis = True, axis + draw(st.integers(0, 2)) - 1
        else:
            axis -= 1
            stop -= 1
        axis += 1
    if not draw(st.integers(0, 9)):
        size = shape[0]
        wrong = draw(st.sampled_from([*WRONG, size, -size - 1, [size], np.ones(size + 1, bool), [0] * len(shape)]))
        key.insert(draw(st.integers(0, len(key))), wrong)
    return key[0] if len(key) == 1 and draw(st.booleans()) else tuple(key)


def answer(call: Any) -> tuple[Any, type[BaseException] | None]:
    """What a call returns, and the type of what it raises."""
    try:
        return call(), None
    except Exception as refusal:
        return None, type(refusal)


def same_as_numpy(lazy: Any, dense: np.ndarray, key: Any, *, atol: float = 0) -> None:
    """One key gives what NumPy gives: value, shape, dtype and type, or the kind of exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's own, of what it will refuse one day
        wanted, refusal = answer(lambda: dense[key])
        given, ours = answer(lambda: lazy[key])
    assert ours == refusal, (key, ours, refusal)
    if refusal is not None:
        return
    assert type(given) is type(wanted), key
    assert given.shape == wanted.shape, key
    assert given.dtype == wanted.dtype, key
    if atol:
        np.testing.assert_allclose(given, wanted, atol=atol)
    else:
        np.testing.assert_array_equal(given, wanted)
