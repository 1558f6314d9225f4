"""The laws of the random transforms, against NumPy for what is exact and SciPy for what is interpolated."""

from __future__ import annotations

import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

import lazytiles as lt
from lazytiles.augment import Augment, ImageFunction, Recipe, random_transform, random_transform_stack
from lazytiles.augment.geometry import spline_basis
from lazytiles.training.flow import BatchFlow

DTYPES = ["?", "u1", "i1", "u2", ">i2", "u4", "i8", "u8", "f2", "f4", ">f4", "f8", "g", "c8", "c16"]
FULL: dict[str, Any] = {
    "rotation": 25,
    "shift": (0.1, 5),
    "shear": 8,
    "zoom": 0.2,
    "intensity": 6,
    "flip": (True, True),
    "warp": (2.0, 4),
    "crop": (20, 17),
}
# What scipy.ndimage calls our fills; ours blends "constant" across the border, as its "grid-constant".
MODES = {"nearest": "nearest", "reflect": "reflect", "constant": "grid-constant"}
PADS = {"nearest": "edge", "reflect": "symmetric", "constant": "constant"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def image(shape: tuple[int, ...] = (24, 31, 3), dtype: str = "u1", seed: int = 0) -> np.ndarray:
    values = rng(seed).integers(0, 2 if dtype == "?" else 120, shape).astype(dtype)
    values.flags.writeable = False
    return values


@given(
    x=hnp.arrays(
        st.sampled_from([np.dtype(d) for d in DTYPES]),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6)),
    ),
    seed=st.integers(0, 99),
    fill=st.sampled_from(sorted(PADS)),
)
@settings(max_examples=80, deadline=None)
def test_identity_is_bit_for_bit(x: np.ndarray, seed: int, fill: str) -> None:
    x.flags.writeable = False
    moved, mask = random_transform(x, x, fill=fill, zoom=(1, 1), shear=(0, 0), warp=0, rng=rng(seed))
    assert moved.tobytes() == mask.tobytes() == x.tobytes()
    assert moved.dtype == mask.dtype == x.dtype
    assert not np.shares_memory(moved, x)
    assert not np.shares_memory(mask, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quarters", [-5, -3, -2, -1, 0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("n", [1, 4, 7])
def test_quarter_turns_are_rot90(dtype: str, quarters: int, n: int) -> None:
    x = image((n, n, 2), dtype)
    moved, mask = random_transform(x, x[..., 0], rotation=(90 * quarters,) * 2, rng=rng())
    np.testing.assert_array_equal(moved, np.rot90(x, quarters), strict=True)
    np.testing.assert_array_equal(mask, np.rot90(x[..., 0], quarters), strict=True)


def test_half_turn_of_any_shape_is_two_flips() -> None:
    x = image()
    np.testing.assert_array_equal(random_transform(x, rotation=(180, 180), rng=rng()), x[::-1, ::-1])
    np.testing.assert_array_equal(random_transform(x, rotation=(-180, -180), rng=rng()), x[::-1, ::-1])


@pytest.mark.parametrize("flip", [(0, 0), (0, 1.0), (1.0, 0), (1.0, 1.0)])
def test_flips_are_rows_then_columns(flip: tuple[float, float]) -> None:
    x = image()
    wanted = x[:: -1 if flip[0] else 1, :: -1 if flip[1] else 1]
    np.testing.assert_array_equal(random_transform(x, flip=flip, rng=rng()), wanted, strict=True)


@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    shift=st.tuples(st.integers(-16, 16), st.integers(-16, 16)),
    fill=st.sampled_from(sorted(PADS)),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=150, deadline=None)
def test_whole_shifts_are_a_slice_of_the_padded_image(
    size: tuple[int, int], shift: tuple[int, int], fill: str, dtype: str
) -> None:
    x = image((*size, 2), dtype)
    (h, w), (dy, dx) = size, shift
    padded = np.pad(x, ((16, 16), (16, 16), (0, 0)), mode=PADS[fill])  # type: ignore[call-overload]
    wanted = padded[16 - dy : 16 - dy + h, 16 - dx : 16 - dx + w]
    moved = random_transform(x, shift=((dy, dy), (dx, dx)), fill=fill, rng=rng())
    np.testing.assert_array_equal(moved, wanted, strict=False)


def test_shifts_below_one_are_fractions_and_integers_are_whole_pixels() -> None:
    x = image((100, 50, 1), "f4")
    moved = random_transform(x, shift=((0.07, 0.07), (-0.1, -0.1)), fill="constant", rng=rng())
    wanted = random_transform(x, shift=((7, 7), (-5, -5)), fill="constant", rng=rng())
    np.testing.assert_array_equal(moved, wanted)
    for seed in range(20):
        moved = random_transform(x, shift=3, rng=rng(seed))
        assert set(np.unique(moved)) <= set(np.unique(x))


@given(
    size=st.tuples(st.integers(3, 14), st.integers(3, 14)),
    seed=st.integers(0, 10**6),
    fill=st.sampled_from(sorted(MODES)),
    chain=st.fixed_dictionaries(
        {},
        optional={
            "rotation": st.just(180),
            "shift": st.just((0.9, 0.9)),
            "shear": st.sampled_from([20, ((-20, 20), (-30, 30))]),
            "zoom": st.sampled_from([0.5, ((0.5, 1.5), (0.5, 1.5))]),
            "flip": st.just((True, True)),
            "warp": st.sampled_from([(1.0, 3), (0.2, (2, 5))]),
        },
    ),
)
@settings(max_examples=120, deadline=None)
def test_the_whole_chain_is_one_map_coordinates(
    size: tuple[int, int], seed: int, fill: str, chain: dict[str, Any]
) -> None:
    """SciPy on the coordinates of a ramp image moved by the same draw, float64 in and out."""
    x = rng(seed).random((*size, 3))
    place = Recipe.of(**chain).place(rng(seed).random(Recipe.of(**chain).draws), size)
    y, c = (np.concatenate(part) for part in zip(*[band[1:] for band in place.bands()], strict=True))
    moved = random_transform(x, fill=fill, cval=0.25, rng=rng(seed), **chain)
    for k in range(3):
        wanted = ndimage.map_coordinates(x[..., k], [y, c], order=1, mode=MODES[fill], cval=0.25)
        np.testing.assert_allclose(moved[..., k].ravel(), wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("chain", "matrix"),
    [
        ({"rotation": (30, 30)}, lambda c, s: [[c, s], [-s, c]]),
        ({"zoom": (2, 2)}, lambda c, s: [[0.5, 0], [0, 0.5]]),
        ({"zoom": ((2, 2), (0.5, 0.5))}, lambda c, s: [[0.5, 0], [0, 2]]),
        ({"shear": (30, 30)}, lambda c, s: [[1, 0], [-s / c, 1]]),
        ({"shear": ((30, 30), (0, 0))}, lambda c, s: [[1, -s / c], [0, 1]]),
    ],
)
def test_each_part_is_the_affine_that_scipy_knows(chain: dict[str, Any], matrix: Any) -> None:
    x = rng().random((16, 21))
    wanted_matrix = np.array(matrix(np.cos(np.pi / 6), np.sin(np.pi / 6)))
    centre = (np.array(x.shape) - 1) / 2
    wanted = ndimage.affine_transform(x, wanted_matrix, centre - wanted_matrix @ centre, order=1, mode="nearest")
    np.testing.assert_allclose(random_transform(x, rng=rng(), **chain), wanted, atol=1e-9)


def test_rotation_turns_as_scipy_rotate() -> None:
    x = rng().random((20, 20))
    wanted = ndimage.rotate(x, 33, reshape=False, order=1, mode="nearest")
    np.testing.assert_allclose(random_transform(x, rotation=(33, 33), rng=rng()), wanted, atol=1e-9)


@pytest.mark.parametrize("fill", sorted(PADS))
@pytest.mark.parametrize("seed", range(6))
def test_a_grid_drawn_in_image_and_mask_stays_one_grid(fill: str, seed: int) -> None:
    grid = np.zeros((96, 96), "u1")
    grid[8::16], grid[:, 8::16] = 200, 200
    grid = ndimage.maximum_filter(grid, 3)
    grid.flags.writeable = False
    moved, mask = random_transform(grid, grid, **{**FULL, "intensity": 0, "crop": (80, 70)}, fill=fill, rng=rng(seed))
    # Bilinear values on the other side of one half lie beside the edges of lines only.
    edge = ndimage.maximum_filter(mask, 3) != ndimage.minimum_filter(mask, 3)
    assert set(np.unique(mask)) <= {0, 200}
    assert ((moved >= 100) == (mask >= 100))[~edge].all()
    assert mask.any()


def test_a_mask_is_never_blended_and_keeps_any_dtype() -> None:
    y = rng().choice(np.array(["sea", "field", "wood"]), (24, 31))
    _, moved = random_transform(image(), y, **FULL, rng=rng())
    assert moved.shape == (20, 17)
    assert set(np.unique(moved)) <= set(np.unique(y))
    whole = rng().integers(-(2**63), 2**63 - 1, (24, 31, 4))
    _, moved = random_transform(image(), whole, **FULL, rng=rng())
    assert set(np.unique(moved)) <= set(np.unique(whole))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_goes_through_the_whole_chain(dtype: str) -> None:
    x = image(dtype=dtype)
    wanted = random_transform(x.astype("c16"), **{**FULL, "warp": (2.0, 4)}, rng=rng(4))
    moved = random_transform(x, **FULL, rng=rng(4))
    assert moved.dtype == x.dtype
    if dtype == "?":
        return
    tolerance = 0.51 if x.dtype.kind in "iu" else 0.1 if dtype == "f2" else 1e-3
    low = {"u1": 0, "u2": 0, "u4": 0, "u8": 0}.get(dtype, -np.inf)
    np.testing.assert_allclose(moved.astype("c16"), np.maximum(wanted.real, low), atol=tolerance)


def test_channels_are_moved_alike_however_many_and_wherever() -> None:
    x = image((24, 31, 7))
    last = random_transform(x, **FULL, rng=rng(1))
    for k in range(7):
        np.testing.assert_array_equal(last[..., k], random_transform(x[..., k], **FULL, rng=rng(1)))
    first = random_transform(np.moveaxis(x, -1, 0), channel_axis=0, **FULL, rng=rng(1))
    np.testing.assert_array_equal(np.moveaxis(first, 0, -1), last)
    both = random_transform(np.moveaxis(x, -1, 0), np.moveaxis(x, -1, 0), channel_axis=0, **FULL, rng=rng(1))
    one = random_transform(np.moveaxis(x, -1, 0), x[..., 0], channel_axis=0, **FULL, rng=rng(1))
    np.testing.assert_array_equal(both[1][0], one[1])
    middle = random_transform(np.moveaxis(x, -1, 1), channel_axis=1, **FULL, rng=rng(1))
    np.testing.assert_array_equal(np.moveaxis(middle, 1, -1), last)


@pytest.mark.parametrize("channel_axis", [-1, -3, None])
def test_a_stack_is_moved_by_one_draw(channel_axis: int | None) -> None:
    x = image((2, 3, 24, 31, 2))
    given = {-1: x, -3: np.moveaxis(x, -1, -3), None: x[..., 0]}[channel_axis]
    y = x[..., :1] if channel_axis == -1 else x[..., 0]
    moved, masks = random_transform_stack(given, y, channel_axis=channel_axis, **FULL, rng=rng(3))
    for i, j in np.ndindex(2, 3):
        axis = -1 if channel_axis == -1 else 0
        one, mask = random_transform(given[i, j], y[i, j], channel_axis=axis, **FULL, rng=rng(3))
        np.testing.assert_array_equal(moved[i, j], one)
        np.testing.assert_array_equal(masks[i, j], mask)


def test_one_mask_may_serve_all_frames() -> None:
    x = image((4, 24, 31, 2))
    for y in (x[0, ..., :1], x[0, ..., 0]):
        moved, mask = random_transform_stack(x, y, **FULL, rng=rng(3))
        np.testing.assert_array_equal(mask, random_transform(x[0], y, **FULL, rng=rng(3))[1])
        assert moved.shape == (4, 20, 17, 2)


def test_the_result_is_a_function_of_the_generator() -> None:
    x = image()
    twice = [random_transform(x, x, **FULL, rng=rng(8)) for _ in range(2)]
    np.testing.assert_array_equal(twice[0][0], twice[1][0])
    np.testing.assert_array_equal(twice[0][1], twice[1][1])
    assert (random_transform(x, **FULL, rng=rng(9)) != twice[0][0]).any()


def test_a_draw_does_not_depend_on_the_other_parameters() -> None:
    """Adding a parameter changes nothing about what the others draw."""
    u = rng(5).random(Recipe.of(**FULL).draws)
    alone = Recipe.of(rotation=30, intensity=3).place(u, (40, 40))
    both = Recipe.of(rotation=30, intensity=3, zoom=0.2, shift=4, flip=(1.0, 1.0)).place(u, (40, 40))
    assert both.amount == alone.amount
    assert both.linear[1] / both.linear[0] == pytest.approx(alone.linear[1] / alone.linear[0])


def test_ranges_are_covered_and_kept() -> None:
    recipe = Recipe.of(rotation=(10, 20), zoom=((0.5, 0.7), (1.5, 1.7)), intensity=(-3, -1))
    draws = [recipe.place(u, (9, 9)) for u in rng().random((300, recipe.draws))]
    amounts = [place.amount for place in draws]
    assert -3 <= min(amounts) < -2.9
    assert -1.1 < max(amounts) <= -1
    areas = [1 / (p.linear[0] * p.linear[3] - p.linear[1] * p.linear[2]) for p in draws]
    assert 0.75 <= min(areas) < max(areas) <= 1.19
    flips = [Recipe.of(flip=(True, 0.1)).place(u, (9, 9)).linear for u in rng().random((2000, 12))]
    assert abs(np.mean([f[0] < 0 for f in flips]) - 0.5) < 0.05
    assert abs(np.mean([f[3] < 0 for f in flips]) - 0.1) < 0.03


def test_zoom_above_one_enlarges_about_the_centre() -> None:
    x = np.zeros((21, 21), "u1")
    x[9:12, 9:12] = 255
    assert random_transform(x, zoom=(3, 3), rng=rng()).sum() > 6 * x.sum()
    assert random_transform(x, zoom=(0.5, 0.5), rng=rng()).sum() < x.sum()


def test_intensity_saturates_and_leaves_masks_and_constants() -> None:
    x = np.full((4, 4), 250, "u1")
    moved, mask = random_transform(x, x, intensity=(20, 20), rng=rng())
    assert (moved == 255).all()
    assert (mask == 250).all()
    moved = random_transform(x, intensity=(-20, -20), shift=((1, 1), 0), fill="constant", cval=7, rng=rng())
    assert (moved[0] == 7).all()
    assert (moved[1:] == 230).all()
    big = np.array([[2**63 - 1, -(2**63)]])
    np.testing.assert_array_equal(random_transform(big, intensity=(9, 9), rng=rng()), big)
    assert (random_transform(x.astype("f4"), intensity=(20, 20), rng=rng()) == 270).all()


def test_image_and_mask_have_fills_and_constants_of_their_own() -> None:
    x, y = np.full((4, 4, 1), 9, "u1"), np.full((4, 4), 2, "i2")
    chain: dict[str, Any] = {"shift": ((2, 2), 0), "rng": rng()}
    moved, mask = random_transform(x, y, fill=("nearest", "constant"), cval=(0, -1), **chain)
    assert (moved == 9).all()
    assert mask[:, 0].tolist() == [-1, -1, 2, 2]
    x, y = np.full((8, 8, 1), 9, "u1"), np.full((8, 8), 2, "i2")
    moved, mask = random_transform(x, y, rotation=(45, 45), fill="constant", cval=(3, -1), rng=rng())
    assert moved[0, 0, 0] == 3
    assert mask[0, 0] == -1


def test_a_crop_is_a_window_of_the_whole_result() -> None:
    x = image((30, 40, 2))
    chain = {k: v for k, v in FULL.items() if k != "crop"}
    whole = random_transform(x, **chain, rng=rng(6))
    part = random_transform(x, **chain, crop=(12, 9), rng=rng(6))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (12, 9), axis=(0, 1))
    assert (windows == part.transpose(2, 0, 1)).all(axis=(2, 3, 4)).sum() == 1
    assert random_transform(x, crop=(30, 40), rng=rng(6)).tobytes() == x.tobytes()
    starts = {random_transform(np.arange(4)[:, None], crop=(3, 1), rng=rng(s))[0, 0] for s in range(20)}
    assert starts == {0, 1}


@pytest.mark.parametrize(("length", "points"), [(2, 2), (17, 3), (64, 9)])
def test_the_spline_is_a_partition_of_unity(length: int, points: int) -> None:
    basis = spline_basis(length, points)
    np.testing.assert_allclose(basis.sum(axis=1), 1)
    assert (basis >= 0).all()
    np.testing.assert_allclose(basis, basis[::-1, ::-1], atol=1e-12)


def test_bands_do_not_show() -> None:
    """A tall image is made in several bands; its transpose, in others."""
    x = image((400, 50, 1), "f8")
    for chain in ({"rotation": (37, 37)}, {"warp": (3.0, 4), "zoom": (1.3, 1.3)}):
        recipe = Recipe.of(**chain)  # type: ignore[arg-type]
        place = recipe.place(rng(2).random(recipe.draws), (400, 50))
        assert len(list(place.bands())) > 1
        y, c = (np.concatenate(part) for part in zip(*[band[1:] for band in place.bands()], strict=True))
        wanted = ndimage.map_coordinates(x[..., 0], [y, c], order=1, mode="nearest")
        moved = random_transform(x, rng=rng(2), **chain)  # type: ignore[arg-type]
        np.testing.assert_allclose(moved[..., 0].ravel(), wanted, atol=1e-9)


def batch(n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    return image((n, 24, 31, 3)), image((n, 24, 31, 1), seed=1)


def test_a_batch_is_a_loop_over_its_samples_with_the_same_generator() -> None:
    x, y = batch()
    moved, masks = Augment(**FULL)((x, y), rng(7))
    one = rng(7)
    for i in range(len(x)):
        wanted = random_transform(x[i], y[i], **FULL, rng=one)
        np.testing.assert_array_equal(moved[i], wanted[0])
        np.testing.assert_array_equal(masks[i], wanted[1])


def test_samples_do_not_depend_on_how_many_come_after() -> None:
    x, _ = batch()
    whole = Augment(**FULL)(x, rng(7))
    np.testing.assert_array_equal(Augment(**FULL)(x[:2], rng(7)), whole[:2])
    assert Augment(**FULL)(x[:0], rng(7)).shape == (0, 20, 17, 3)


def test_threads_change_nothing() -> None:
    x, y = batch()
    augment = Augment(**FULL)
    alone = [augment((x, y), rng(seed)) for seed in range(24)]
    for threads in (1, 2, 8):
        with ThreadPoolExecutor(threads) as pool:
            together = list(pool.map(lambda seed: augment((x, y), rng(seed)), range(24)))
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("ahead", [{}, {"prefetch": 0, "readahead_bytes": 0}])
def test_a_flow_repeats_its_augmentation(threads: int, ahead: dict[str, int]) -> None:
    x, y = batch(20)
    wanted = flowed(x, y, threads=1)
    for one, other in zip(flowed(x, y, threads=threads, **ahead), wanted, strict=True):
        np.testing.assert_array_equal(one[0], other[0], strict=True)
        np.testing.assert_array_equal(one[1], other[1], strict=True)
    assert (wanted[0][0] != wanted[1][0]).any()


def flowed(x: np.ndarray, y: np.ndarray, **options: int) -> list[Any]:
    with BatchFlow((x, y), 8, shuffle=True, seed=3, transform=Augment(**FULL), **options) as flow:
        return list(flow)


def test_structures_come_back_and_labels_are_left_alone() -> None:
    x, y = batch()
    labels, weights, table = np.arange(5), np.ones(5), np.ones((5, 2))
    augment = Augment(**FULL)
    wanted_x, wanted_y = augment((x, y), rng(7))
    assert isinstance(augment([x], rng(7)), list)
    answer = augment((x, labels, weights), rng(7))
    np.testing.assert_array_equal(answer[0], wanted_x)
    assert answer[1] is labels
    assert answer[2] is weights
    answer = augment(((x, table), {"mask": y, "class": labels}), rng(7))
    np.testing.assert_array_equal(answer[0][0], wanted_x)
    assert answer[0][1] is table
    np.testing.assert_array_equal(answer[1]["mask"], wanted_y)
    assert answer[1]["class"] is labels
    answer = augment({"image": x, "mask": y[..., 0], "y": labels}, rng(7))
    np.testing.assert_array_equal(answer["mask"], wanted_y[..., 0])
    assert answer["y"] is labels
    assert augment((x, None), rng(7))[1] is None


def test_frames_share_a_draw_and_the_mask_is_theirs() -> None:
    x = image((3, 4, 24, 31, 2))
    for y in (x[:, 0, ..., :1], x[:, 0, ..., 0], x[..., :1], x[..., 0]):
        moved, masks = Augment(**FULL)((x, y), rng(7))
        one = rng(7)
        for i in range(3):
            wanted = random_transform_stack(x[i], y[i], **FULL, rng=one)
            np.testing.assert_array_equal(moved[i], wanted[0])
            np.testing.assert_array_equal(masks[i], wanted[1])


def test_roles_may_be_said_outright() -> None:
    x, y = batch()
    moved = Augment(**FULL, images=("left", "right"), masks=("where",))(
        {"left": x, "right": x[..., :1], "where": y, "other": x}, rng(7)
    )
    np.testing.assert_array_equal(moved["left"][..., :1], moved["right"])
    assert moved["other"] is x
    assert moved["where"].shape == (5, 20, 17, 1)
    moved = Augment(**FULL, masks=())((x, y), rng(7))
    assert moved[1] is y
    series = np.zeros((5, 7, 2))
    moved = Augment(**FULL, images=("photo",), masks=(1,))(({"photo": x, "series": series}, y), rng(7))
    np.testing.assert_array_equal(moved[1], Augment(**FULL)((x, y), rng(7))[1])
    assert moved[0]["series"] is series
    with pytest.raises(ValueError, match=r"3 masks for 5 images: 1 has shape \(3, 24, 31, 1\)"):
        Augment(rotation=3, masks=(1,))((x, y[:3]), rng())
    with pytest.raises(ValueError, match="pass channel_axis=None if it has no channels"):
        Augment(rotation=3)(x[..., 0], rng())
    assert Augment(rotation=3, channel_axis=None)(x[..., 0], rng()).shape == (5, 24, 31)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, y: (x, y[:, :10]), r"item 1 of shape \(5, 10, 31, 1\) is neither a label"),
        (lambda x, y: (x, y[:3]), r"item 1 of shape \(3, 24, 31, 1\) is neither a label"),
        (lambda x, y: {"image": x, "depth": y}, "item 'depth' .* name the items"),
        (lambda x, y: {"a": x, "b": y}, "no images in the batch of a .* name them with images="),
        (lambda x, y: x[0, 0], "no images in the batch of array"),
        (lambda x, y: ((x, x[:, :10]), y), "images of one batch must agree"),
        (lambda x, y: (x[:, :24, :24], x.transpose(0, 3, 1, 2)), "item 1"),
        (
            lambda x, y: (np.zeros((2, 8, 8, 8, 1)), np.zeros((2, 8, 8, 8))),
            r"\(8, 8, 8\) can be read both with channels and without",
        ),
    ],
)
def test_what_may_be_mask_or_label_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(rotation=10)(given(*batch()), rng())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rotation": -3}, "rotation=-3: a number must be finite and at least 0"),
        ({"rotation": (3, 1)}, "expected finite low <= high"),
        ({"rotation": (1, 2, 3)}, "rotation=.*expected a number or two values"),
        ({"rotation": np.nan}, "must be finite"),
        ({"rotation": ((1, 2), 3)}, r"expected a number or a pair \(low, high\)"),
        ({"shift": (1, 2, 3)}, "shift="),
        ({"shear": 90}, "must stay within -90 and 90"),
        ({"zoom": 1}, "factors must stay above 0"),
        ({"flip": (2, 0)}, r"a pair \(rows, columns\) of booleans or probabilities"),
        ({"flip": True}, "flip=True: expected a pair"),
        ({"warp": (-1, 3)}, "jitter of the control points"),
        ({"warp": (1, 1)}, "points of warp=1: expected whole numbers .* of at least 2"),
        ({"crop": (0, 3)}, "crop=.* at least 1"),
        ({"crop": (2.5, 3)}, "crop=.* whole numbers"),
        ({"fill": "wrap"}, "expected one of nearest, reflect, constant"),
        ({"cval": "x"}, "cval='x'"),
    ],
)
def test_bad_parameters_are_refused_at_birth(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**parameters)
    with pytest.raises(ValueError, match=message):
        random_transform(image(), **parameters, rng=rng())


def test_bad_arrays_are_refused() -> None:
    x = image()
    with pytest.raises(ValueError, match=r"crop=\(25, 3\) does not fit into an image of 24 x 31"):
        random_transform(x, crop=(25, 3), rng=rng())
    with pytest.raises(ValueError, match="for frames and stacks call random_transform_stack"):
        random_transform(x[None], rng=rng())
    with pytest.raises(ValueError, match=r"shape \(24, 30\) does not fit .* expected 24 x 31 pixels"):
        random_transform(x, x[:, :30, 0], rng=rng())
    with pytest.raises(ValueError, match="cval=-1 is not a value of dtype uint8: whole numbers 0 to 255"):
        random_transform(x, fill="constant", cval=-1, rng=rng())
    with pytest.raises(TypeError, match="an image of dtype <U3 cannot be transformed"):
        random_transform(x.astype(str), rng=rng())
    with pytest.raises(TypeError, match=r"rng=3: expected a Generator, such as numpy.random.default_rng\(seed\)"):
        random_transform(x, rng=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channel_axis=5 does not exist"):
        random_transform_stack(x, channel_axis=5, rng=rng())


def test_augment_is_frozen_described_and_pickled() -> None:
    augment = Augment(rotation=20, flip=(False, True), fill=("reflect", "constant"), cval=(0, 255))
    assert repr(augment) == ("Augment(rotation=20, flip=(False, True), fill=('reflect', 'constant'), cval=(0, 255))")
    assert "rotation=20" in augment._repr_html_()
    assert eval(repr(augment)) == augment  # noqa: S307
    given = Augment(rotation=np.array([-20, 20]), zoom=[[0.8, 1.2], [0.9, 1.1]], crop=np.array([8, 9]))  # type: ignore[arg-type]
    assert repr(given) == "Augment(rotation=(-20, 20), zoom=((0.8, 1.2), (0.9, 1.1)), crop=(8, 9))"
    assert given == eval(repr(given))  # noqa: S307
    assert hash(given) == hash(pickle.loads(pickle.dumps(given)))
    again = pickle.loads(pickle.dumps(augment))
    assert again == augment
    np.testing.assert_array_equal(again(batch()[0], rng()), augment(batch()[0], rng()))
    with pytest.raises(AttributeError, match="cannot assign to field"):
        augment.rotation = 3  # type: ignore[misc]


def test_augment_has_the_parameters_and_defaults_of_random_transform() -> None:
    theirs = inspect.signature(random_transform).parameters
    ours = inspect.signature(Augment).parameters
    shared = [name for name in theirs if name not in ("x", "y", "rng")]
    assert [theirs[n].default for n in shared] == [ours[n].default for n in shared]
    assert set(ours) - set(shared) == {"images", "masks", "boxes"}
    assert inspect.signature(Recipe.of).parameters.keys() == set(shared) - {"channel_axis"}


GOLDEN = [
    0.9258942735401263,
    0.2986801597116158,
    -0.30814391338245584,
    0.9228414028845272,
    -5.2185400954665155,
    6.252625196512769,
    1.0,
    2.0,
    3.5718173392191463,
    1.8519466380320666,
]


def test_a_golden_draw() -> None:
    """The same seed gives the same draws for ever."""
    recipe = Recipe.of(**FULL)
    place = recipe.place(np.random.Generator(np.random.Philox(5)).random(recipe.draws), (24, 31))
    got = [*place.linear, *place.offset, *place.origin, place.amount, float(place.warp[0, 0, 0])]  # type: ignore[index]
    np.testing.assert_allclose(got, GOLDEN, rtol=1e-12)


def flip_function(image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, Any]:
    image[0] = 0  # its own array: the batch's is read-only
    return {"image": image[:, ::-1], "mask": None if mask is None else mask[:, ::-1], "more": 1}


def noisy_function(image: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"image": image + rng.integers(0, 9, image.shape, image.dtype)}


class Seeded:
    """A pipeline with its own random state, as Albumentations has it."""

    def set_random_seed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        k = int(self.rng.integers(0, image.shape[1]))
        return {"image": np.roll(image, k, axis=1), "mask": np.roll(mask, k, axis=1)}


def test_an_image_function_gets_images_and_masks() -> None:
    x, y = batch()
    moved, masks = ImageFunction(flip_function)((x, y), rng())
    np.testing.assert_array_equal(moved[:, 1:], x[:, 1:, ::-1])
    np.testing.assert_array_equal(masks, y[:, :, ::-1])
    labels = np.arange(5)
    assert ImageFunction(flip_function)((x, labels), rng())[1] is labels
    assert ImageFunction(flip_function)(x[:0], rng()).shape == (0, 24, 31, 3)


class Pipeline:
    """Called as Albumentations' pipelines are, and only by names."""

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        assert not args
        return flip_function(**data)


@pytest.mark.parametrize(
    "fn",
    [
        flip_function,
        Pipeline(),
        lambda **data: flip_function(**data),
        lambda *, image, mask: flip_function(image, mask),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_flow_takes_a_function_of_images_as_it_is(fn: Any, threads: int) -> None:
    x, y = batch()
    with BatchFlow((x, y), 2, transform=fn, threads=threads) as flow:
        moved, masks = (np.concatenate(part) for part in zip(*flow, strict=True))
    np.testing.assert_array_equal(moved[:, 1:], x[:, 1:, ::-1])
    np.testing.assert_array_equal(masks, y[:, :, ::-1])


def test_a_function_of_images_may_take_a_generator() -> None:
    x, _ = batch()
    one, other = (list(BatchFlow(x, 2, transform=noisy_function, seed=4, threads=k)) for k in (1, 3))
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)


def test_frames_reach_an_image_function_as_channels() -> None:
    x = image((2, 3, 24, 31, 2))
    moved = ImageFunction(flip_function)(x, rng())
    np.testing.assert_array_equal(moved[:, :, 1:], x[:, :, 1:, ::-1])


def test_an_image_function_is_seeded_per_sample() -> None:
    x, _ = batch()
    for fn, arrays in ((noisy_function, (x,)), (Seeded(), (x, x[..., :1]))):
        transform = ImageFunction(fn)
        first = transform(arrays, rng(3))
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(transform, arrays, rng(3)) for _ in range(16)]
        for future in futures:
            np.testing.assert_array_equal(future.result()[0], first[0])
        assert (transform(arrays, rng(4))[0] != first[0]).any()
    np.testing.assert_array_equal(first[0][..., :1], first[1])
    assert pickle.loads(pickle.dumps(ImageFunction(noisy_function))) == ImageFunction(noisy_function)


@pytest.mark.parametrize(
    ("fn", "given", "message"),
    [
        (flip_function, lambda x, y: ((x, x), y), "the batch has 2 and 1"),
        (lambda image: {"picture": image}, lambda x, y: x, "gave no image"),
        (lambda image, mask: {"image": image}, lambda x, y: (x, y), "gave no mask"),
        (lambda image: image, lambda x, y: x, "gave no image; it must answer with a dict"),
        (
            lambda image, rng: {"image": image[: rng.integers(1, 20)]},
            lambda x, y: x,
            "crop or resize to one size",
        ),
    ],
)
def test_what_an_image_function_cannot_do_is_refused(fn: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFunction(fn)(given(*batch()), rng())


def test_a_function_of_images_does_not_leave_boxes_behind(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.png")
    names = ["x", "y", "w", "h"]
    table = pd.DataFrame({"path": ["a.png"], "x": 2.0, "y": 3.0, "w": 4.0, "h": 5.0})
    tiles = lt.open_tiles(table, tmp_path, target=names, scale_boxes=names, box_format="xywh")

    def brighter(image: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image + 1}

    for data in ((tiles, tiles.labels), {"x": tiles, "boxes": tiles.labels}):
        for fn in (brighter, ImageFunction(brighter)):
            with pytest.raises(ValueError, match=r"function of one image would leave them .*: use Augment"):
                BatchFlow(data, 1, transform=fn)
    ((x, y),) = BatchFlow((tiles, tiles.labels), 1, transform=ImageFunction(brighter, boxes=()))
    assert x.max() == 1
    assert y.tolist() == [[2, 3, 4, 5]]
    with pytest.raises(ValueError, match="moves no boxes"):
        ImageFunction(brighter, boxes="xywh")  # type: ignore[arg-type]
