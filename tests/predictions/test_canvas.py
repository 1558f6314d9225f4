"""What was cut comes back: the canvas against a dense canvas, and its rows on their way out."""

from __future__ import annotations

import itertools
import pickle
import threading

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from lazytiles.errors import StoreError
from lazytiles.predictions.blends import COMBINE, Band, tile_weights, windows_of
from lazytiles.predictions.canvas import Canvas
from lazytiles.predictions.sinks import Replacing, open_sink, sweep
from lazytiles.stores import cast

ZARR = pytest.param(".zarr", marks=pytest.mark.leaks(reason="zarr keeps its event loop"))


def boxes_of(windows):
    axes = windows.shape[1] // 2
    return np.concatenate([windows[:, :axes][:, ::-1], windows[:, axes:][:, ::-1]], axis=1)


def cuts(shape, size, stride, pad):
    """Windows of a naive grid that covers a shape, from -pad on, in raster order."""
    starts = [
        range(-p, max(extent - s + p, -p) + t, t) for extent, s, t, p in zip(shape, size, stride, pad, strict=True)
    ]
    return np.array([[*low, *(a + s for a, s in zip(low, size, strict=True))] for low in itertools.product(*starts)])


def cut(image, windows, axes):
    """The tiles of the windows, with 77 where they leave the image."""
    tiles = []
    for window in windows:
        tile = np.full((*(window[axes:] - window[:axes]), *image.shape[axes:]), 77, image.dtype)
        low, high = np.maximum(window[:axes], 0), np.minimum(window[axes:], image.shape[:axes])
        if (low < high).all():
            inside = tuple(slice(a, b) for a, b in zip(low - window[:axes], high - window[:axes], strict=True))
            tile[inside] = image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        tiles.append(tile)
    return np.stack(tiles)


def dense(shape, windows, tiles, blend):
    """The oracle: sums and weights of whole regions in float64, pixel by pixel."""
    axes = windows.shape[1] // 2
    space, pixel = shape[:axes], tiles.shape[1 + axes :]
    total, weights = np.zeros((*space, *pixel)), np.zeros(space)
    best, largest = np.full((*space, *pixel), np.nan), np.full((*space, *pixel), -np.inf)
    near = np.full(space, np.inf)
    weight_of = tile_weights(blend, tiles.shape[1 : 1 + axes])
    for window, tile in zip(windows, tiles, strict=True):
        for at in np.ndindex(*tile.shape[:axes]):
            y = tuple(int(i) for i in np.add(window[:axes], at))
            if any(i < 0 or i >= n for i, n in zip(y, space, strict=True)):
                continue
            total[y] += weight_of[at] * tile[at].astype(float)
            weights[y] += weight_of[at]
            largest[y] = np.maximum(largest[y], tile[at])
            far = sum((2 * i + 1 - n) ** 2 for i, n in zip(at, tile.shape[:axes], strict=True))
            if far < near[y]:
                near[y], best[y] = far, tile[at]
    if blend == "crop":
        return best
    if blend == "max":
        return largest
    return total / weights.reshape(weights.shape + (1,) * len(pixel))


@st.composite
def grids(draw):
    axes = draw(st.sampled_from([2, 3]))
    most = 14 if axes == 2 else 7
    shape = tuple(draw(st.lists(st.integers(1, most), min_size=axes, max_size=axes)))
    size = tuple(draw(st.integers(1, most)) for _ in shape)
    stride = tuple(draw(st.integers(1, s)) for s in size)
    pad = tuple(draw(st.integers(0, s - 1)) for s in size)
    pixel = draw(st.sampled_from([(), (1,), (3,)]))
    return shape, cuts(shape, size, stride, pad), pixel


@settings(max_examples=60, deadline=None)
@given(
    grids(),
    st.sampled_from(sorted(COMBINE)),
    st.sampled_from(["uint8", "float32", "float64", "int16"]),
    st.data(),
)
def test_stitching_what_was_cut_gives_the_image_back(grid, blend, dtype, data):
    shape, windows, pixel = grid
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    image = (rng.normal(size=(*shape, *pixel)) * 100).astype(dtype)
    tiles = cut(image, windows, len(shape))
    canvas = Canvas(shape, blend=blend)
    for part in np.array_split(np.arange(len(windows)), data.draw(st.integers(1, 3))):
        canvas.add(boxes_of(windows)[part], tiles[part])
    whole = canvas.finish()
    # Stronger than asked: tiles that agree leave a running mean where it is.
    np.testing.assert_array_equal(whole, image)
    if blend in ("crop", "max"):
        assert whole.dtype == image.dtype


@settings(max_examples=40, deadline=None)
@given(grids(), st.sampled_from(sorted(COMBINE)), st.booleans(), st.integers(0, 99))
def test_blends_equal_a_dense_canvas(grid, blend, announced, seed):
    shape, windows, pixel = grid
    extents = windows[0, len(shape) :] - windows[0, : len(shape)]
    tiles = np.random.default_rng(seed).normal(size=(len(windows), *extents, *pixel))
    out = np.full((*shape, *pixel), -1.0)
    canvas = Canvas(shape, blend=blend, boxes=boxes_of(windows) if announced else None, out=out)
    canvas.add(boxes_of(windows), tiles)
    assert canvas.finish() is out
    np.testing.assert_allclose(out, dense(shape, windows, tiles, blend), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blend", sorted(COMBINE))
def test_where_one_tile_lies_it_comes_back_bit_for_bit(blend):
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(2, 8, 8, 2)).astype("float32")
    tiles[0, 0, 0], tiles[0, 1, 1, 0] = -0.0, np.inf
    canvas = Canvas((8, 12), blend=blend)
    canvas.add([(0, 0, 8, 8), (4, 0, 12, 8)], tiles)
    whole = canvas.finish()
    assert whole.dtype == np.float32
    assert whole[:, :4].tobytes() == tiles[0, :, :4].tobytes()
    assert whole[:, 8:].tobytes() == tiles[1, :, 4:].tobytes()


def test_infinite_values_meet_without_becoming_nan():
    canvas = Canvas((2, 2), blend="mean")
    canvas.add([(0, 0, 2, 2)] * 2, np.full((2, 2, 2), np.inf))
    assert np.isinf(canvas.finish()).all()


@pytest.mark.parametrize("blend", sorted(COMBINE))
def test_weights_are_positive_and_symmetric(blend):
    for extents in [(1, 1), (2, 5), (7, 4, 3)]:
        weights = tile_weights(blend, extents, "<f4")
        assert (weights > 0).all()
        np.testing.assert_allclose(weights, np.flip(weights), rtol=1e-6)


def test_the_band_holds_only_rows_that_later_windows_touch():
    windows = cuts((100, 20), (8, 8), (6, 6), (2, 2))
    band = Band.of(windows, 100)
    assert band.rows == 8
    held = []
    canvas = Canvas((100, 20), boxes=boxes_of(windows), out=np.zeros((100, 20)))
    for window in windows:
        canvas.add(boxes_of(window[None]), np.ones((1, 8, 8)))
        held.append(canvas._sums.shape[0])
    assert max(held) == 8 == canvas.rows_held
    assert (canvas.finish() == 1).all()


def test_rows_leave_as_soon_as_they_are_finished():
    class Rows:
        def __init__(self):
            self.rows = []

        def append(self, rows):
            self.rows.append(rows)

        def close(self):
            self.closed = True

    windows = cuts((24, 8), (8, 8), (8, 8), (0, 0))
    rows = Rows()
    canvas = Canvas((24, 8), boxes=boxes_of(windows), out=rows)
    seen = []
    for k, window in enumerate(windows):
        canvas.add(boxes_of(window[None]), np.full((1, 8, 8), k, "float32"))
        seen.append(sum(map(len, rows.rows)))
    assert seen == [0, 8, 16]
    assert canvas.finish() is rows
    np.testing.assert_array_equal(np.concatenate(rows.rows)[::8, 0], [0, 1, 2])


def test_bare_pixels_are_nan_or_named_or_filled():
    box, tile = [(0, 0, 2, 2)], np.ones((1, 2, 2, 3))
    with Canvas((4, 3)) as canvas:
        canvas.add(box, tile)
    assert np.isnan(canvas.finish()).sum() == 8 * 3
    canvas = Canvas((4, 3), blend="crop")
    canvas.add(box, tile.astype("uint8"))
    with pytest.raises(ValueError, match=r"pixels lie under no tile, the first at row 0, column 2; uint8 .*fill="):
        canvas.finish()
    canvas = Canvas((4, 3), blend="crop", fill=9)
    canvas.add(box, tile.astype("uint8"))
    assert (canvas.finish() == 9).sum() == 8 * 3
    canvas = Canvas((4, 3), blend="crop", dtype="float32", boxes=box, out=np.zeros((4, 3, 3), "float32"))
    canvas.add(box, tile.astype("uint8"))
    assert np.isnan(canvas.finish()).sum() == 8 * 3


def test_integers_asked_for_are_rounded_and_clipped():
    canvas = Canvas((1, 4), dtype="uint8")
    canvas.add([(0, 0, 4, 1)], np.array([[[-3.0, 1.6, 254.7, 900.0]]]))
    np.testing.assert_array_equal(canvas.finish(), [[0, 2, 255, 255]])
    canvas = Canvas((1, 1), dtype="uint8")
    canvas.add([(0, 0, 1, 1)], np.array([[[np.nan]]]))
    with pytest.raises(ValueError, match="hold NaN, which uint8 cannot"):
        canvas.finish()


def test_a_shape_may_name_the_channels():
    canvas = Canvas((2, 2, 3))
    with pytest.raises(ValueError, match=r"\(4,\) numbers a pixel in 2 axes do not fit a canvas of \(2, 2, 3\)"):
        canvas.add([(0, 0, 2, 2)], np.zeros((1, 2, 2, 4)))
    canvas.add([(0, 0, 2, 2)], np.zeros((1, 2, 2, 3)))
    assert np.asarray(canvas).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("boxes", "values", "message"),
    [
        (
            [(0, 0, 2, 3)],
            np.zeros((1, 2, 3)),
            r"box \(0, 0, 2, 3\) is \(3, 2\) pixels, its values are \(2, 3\)",
        ),
        ([(0, 0, 2, 2)], np.zeros((2, 2, 2)), "1 boxes of 2 axes do not fit values"),
        ([(0, 0, 2)], np.zeros((1, 2, 2)), r"they are \(n, 4\) or \(n, 6\)"),
        ([(0, 0, 0, 2)], np.zeros((1, 2, 2)), r"box \(0, 0, 0, 2\) holds no pixel"),
        ([(0, 0, 1.5, 2)], np.zeros((1, 2, 2)), "boxes are whole pixels"),
        ([(0, 0, 0, 2, 2, 2)], np.zeros((1, 2, 2, 2)), r"do not fit a canvas of \(4, 4\)"),
    ],
)
def test_wrong_tiles_are_refused(boxes, values, message):
    with pytest.raises(ValueError, match=message):
        Canvas((4, 4)).add(boxes, values)


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match="blend='feather' is not known; choose one of crop, gaussian"):
        Canvas((4, 4), blend="feather")
    with pytest.raises(ValueError, match="two or three positive extents"):
        Canvas((4,))
    with pytest.raises(ValueError, match="nothing was added"):
        Canvas((4, 4)).finish()
    canvas = Canvas((4, 4), boxes=[(0, 0, 2, 2), (2, 2, 4, 4)])
    with pytest.raises(ValueError, match="not the ones announced"):
        canvas.add([(2, 2, 4, 4)], np.zeros((1, 2, 2)))
    canvas.add([(0, 0, 2, 2)], np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="1 of the 2 announced boxes were added"):
        canvas.finish()
    with pytest.raises(ValueError, match="all tiles of a canvas must agree"):
        canvas.add([(2, 2, 4, 4)], np.zeros((1, 2, 2, 5)))
    canvas.close()
    with pytest.raises(ValueError, match="is finished"):
        canvas.add([(2, 2, 4, 4)], np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"can be written to \.npy, \.tif, \.tiff, \.zarr"):
        open_sink(tmp_path / "x.png", (2, 2), np.dtype("u1"))
    with pytest.raises(ValueError, match=r"out= has shape \(3, 3\)"):
        open_sink(np.zeros((3, 3)), (2, 2), np.dtype("u1"))
    with pytest.raises(ValueError, match="no array, path or object"):
        open_sink(7, (2, 2), np.dtype("u1"))


def test_tables_of_boxes_are_taken_by_their_columns():
    import pandas as pd

    table = pd.DataFrame({"ymax": [4], "xmin": [1], "ymin": [2], "xmax": [5], "region_id": ["a"]})
    np.testing.assert_array_equal(windows_of(table), [[2, 1, 4, 5]])
    table = table.assign(zmin=0, zmax=1)
    np.testing.assert_array_equal(windows_of(table), [[0, 2, 1, 1, 4, 5]])


@pytest.mark.parametrize("ending", [".npy", ".tif", ZARR])
@pytest.mark.parametrize("shape", [(300, 270), (300, 270, 1), (300, 270, 3), (3, 260, 270), (3, 260, 270, 2)])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_files_hold_what_was_stitched(tmp_path, ending, shape, dtype):
    if ending == ".zarr":
        pytest.importorskip("zarr")
    axes = 3 if shape[0] == 3 else 2
    image = (np.random.default_rng(0).random(shape) * 3).astype(dtype)
    windows = cuts(shape[:axes], (2, 100, 90)[-axes:], (1, 70, 90)[-axes:], (1, 10, 0)[-axes:])
    out = tmp_path / f"a{ending}"
    with Canvas(shape[:axes], blend="crop", boxes=boxes_of(windows), out=out) as canvas:
        for window in windows:
            canvas.add(boxes_of(window[None]), cut(image, window[None], axes))
            assert not out.exists()
    result = canvas.finish()
    if ending == ".tif":
        with tifffile.TiffFile(out) as file:
            assert file.pages[0].is_tiled
            assert sum(not page.is_reduced for page in file.pages) == (shape[0] if axes == 3 else 1)
        np.testing.assert_array_equal(tifffile.imread(out).reshape(shape), image)
    else:
        np.testing.assert_array_equal(np.asarray(result[:]), image)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("ending", [".npy", ".tif", ZARR])
def test_an_abandoned_file_leaves_nothing_and_nothing_is_overwritten(tmp_path, ending):
    if ending == ".zarr":
        pytest.importorskip("zarr")
    boxes = [(0, 0, 8, 8), (0, 8, 8, 16)]
    canvas = Canvas((16, 8), boxes=boxes, out=tmp_path / f"a{ending}")
    canvas.add(boxes[:1], np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match="not the ones announced"), canvas:
        canvas.add(boxes[:1], np.zeros((1, 8, 8)))
    canvas.close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / f"a{ending}").write_text("mine")
    with pytest.raises(StoreError, match="exists; remove it"):
        Canvas((8, 8), out=tmp_path / f"a{ending}").add(boxes[:1], np.zeros((1, 8, 8)))


@pytest.mark.parametrize("ending", [".npy", ".tif", ZARR])
def test_a_task_that_runs_again_replaces_its_own_file(tmp_path, ending):
    if ending == ".zarr":
        pytest.importorskip("zarr")
    out = tmp_path / f"a[1]{ending}"
    dead = open_sink(Replacing(out), (8, 8), np.dtype("u1"))
    for value in (1, 2):
        sink = open_sink(Replacing(out), (8, 8), np.dtype("u1"))
        sink.append(np.full((8, 8), value, "u1"))
        result = sink.close()
        assert (np.asarray(result[:]) == value).all()
    (tmp_path / f"a1{ending}.partial-other").touch()
    sweep(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a1{ending}.partial-other", out.name]
    dead.abort()


def test_a_memory_map_is_an_array(tmp_path):
    out = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "float32", (8, 8))
    canvas = Canvas((8, 8), out=out)
    canvas.add([(0, 0, 8, 8)], np.full((1, 8, 8), 3, "float32"))
    canvas.finish()
    assert (np.load(tmp_path / "a.npy") == 3).all()


def test_canvases_print_and_pickle():
    canvas = Canvas((8, 8))
    canvas.add([(0, 0, 8, 8)], np.ones((1, 8, 8)))
    assert repr(canvas) == "<Canvas 8 x 8, blend mean, 1 tiles, rows held: 8>"
    assert canvas._repr_html_().startswith("<code>&lt;Canvas")
    copied = pickle.loads(pickle.dumps(canvas))
    assert (copied.finish() == 1).all()
    writing = Canvas((8, 8), out=np.zeros((8, 8)))
    writing.add([(0, 0, 8, 8)], np.ones((1, 8, 8)))
    with pytest.raises(TypeError, match="writing rows cannot be pickled"):
        pickle.dumps(writing)


def test_threads_may_add_at_once():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(64, 64))
    windows = cuts((64, 64), (16, 16), (8, 8), (0, 0))
    canvas = Canvas((64, 64), blend="hann")

    def add(part):
        for k in part:
            canvas.add(boxes_of(windows)[k : k + 1], cut(image, windows[k : k + 1], 2))

    threads = [threading.Thread(target=add, args=(part,)) for part in np.array_split(np.arange(len(windows)), 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(canvas.finish(), image)


NUMBERS = [0, 0.5, 1.5, 2.5, -0.5, -3, 254.5, 300.7, -1e4, 3e4, np.inf, -np.inf, 2.0**31, 2.0**63, 2.0**64, -(2.0**70)]


@pytest.mark.parametrize("given", ["f4", "f8", "i1", "u1", "i4", "u4", "i8", "u8", "?"])
@pytest.mark.parametrize("wanted", ["u1", "i2", "i4", "u4", "i8", "u8", "?"])
def test_what_becomes_integers_is_rounded_and_clipped_never_wrapped(given, wanted):
    dtype, goal = np.dtype(given), np.dtype(wanted)
    if dtype.kind == "f":
        values = np.array(NUMBERS, dtype)
    else:
        values = np.array([0, 1] if given == "?" else [np.iinfo(dtype).min, np.iinfo(dtype).max, 0, 1, 100], dtype)
    low, high = (0, 1) if wanted == "?" else (np.iinfo(goal).min, np.iinfo(goal).max)
    expected = []
    for value in values.tolist():
        inside = min(max(value, low), high)  # infinities become a limit
        expected.append(int(value >= 0.5) if wanted == "?" else round(inside))
    assert [int(value) for value in cast(values, goal)] == expected
    assert cast(values, goal).dtype == goal


def test_an_array_of_integers_gets_rounded_and_clipped_values_and_no_nan(tmp_path):
    values = np.array([[300.7, -3, 1.6], [2.5, 255, 254.4]], np.float32)
    for out in (np.zeros((2, 3), np.uint8), np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "u1", (2, 3))):
        for dtype in (None, "float32"):
            with Canvas((2, 3), out=out, dtype=dtype) as canvas:
                canvas.add([(0, 0, 3, 2)], values[None])
            np.testing.assert_array_equal(out, [[255, 0, 2], [2, 255, 254]])
    integers = np.zeros((2, 3), np.uint8)
    for out, dtype, fill, message in [
        (integers, None, None, "the values hold NaN, which uint8 cannot; choose a floating dtype= or out="),
        (integers, "bool", None, "the values hold NaN, which bool cannot"),
        (integers, "float32", None, "the values hold NaN, which uint8 cannot"),
    ]:
        with pytest.raises(ValueError, match=message), Canvas((2, 3), out=out, dtype=dtype, fill=fill) as canvas:
            canvas.add([(0, 0, 3, 2)], values[None] * np.nan)
    for fill, message in [
        (None, r"pixels lie under no tile, .* uint8 has no NaN: pass fill="),
        (300, "fill=300 is no uint8; choose another"),
        (0.5, r"fill=0\.5 is no uint8"),
        (np.nan, "the values hold NaN, which uint8 cannot"),
    ]:
        wide = np.zeros((2, 4), np.uint8)
        with pytest.raises(ValueError, match=message), Canvas((2, 4), out=wide, fill=fill) as canvas:
            canvas.add([(0, 0, 3, 2)], values[None])
    with Canvas((1, 2), blend="crop", dtype="uint8") as canvas:
        canvas.add([(0, 0, 2, 1)], np.array([[[300, -1]]]))
    np.testing.assert_array_equal(canvas.finish(), [[255, 0]])


def test_a_canvas_says_at_once_that_its_file_exists_or_cannot_be(tmp_path):
    (tmp_path / "a.tif").touch()
    with pytest.raises(StoreError, match=r"a\.tif exists; remove it"):
        Canvas((2, 3), out=tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"rows can be written to \.npy"):
        Canvas((2, 3), out=tmp_path / "a.png")
