"""Tilings: the edge laws of one axis, their product, coverage against a double loop."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from lazytiles.errors import ManifestError
from lazytiles.images.region import open_region
from lazytiles.indexing.tilings import EDGES, Edge, cover, coverage, cuts, tiling
from lazytiles.manifests.grids import make_grid
from lazytiles.manifests.manifest import read_manifest
from lazytiles.manifests.rules import parse_rule

edges = st.sampled_from(EDGES)
shapes = st.lists(st.integers(1, 12), min_size=1, max_size=3)


def naive_cuts(length: int, size: int, stride: int, edge: Edge) -> list[list[int]]:
    """The definition: windows one after the other until the end of the axis is reached."""
    found = []
    for start in range(0, length, stride):
        stop = start + size
        if stop <= length:
            found.append([start, stop])
        elif edge == "shift":
            found.append([length - size, length])
        elif edge == "pad":
            found.append([start, stop])
        elif edge == "partial":
            found.append([start, length])
        if stop >= length:
            break
    return found


@pytest.mark.parametrize("edge", EDGES)
def test_cuts_are_the_definition_everywhere(edge: Edge) -> None:
    for length, size, stride in itertools.product(range(1, 14), range(1, 15), range(1, 15)):
        if edge == "shift" and size > length:
            with pytest.raises(ValueError, match=f"of {size} pixels cannot be shifted into {length}"):
                cuts(length, size, stride, edge)
            continue
        expected = np.array(naive_cuts(length, size, stride, edge), np.int64).reshape(-1, 2)
        np.testing.assert_array_equal(cuts(length, size, stride, edge), expected)


@pytest.mark.parametrize("edge", EDGES)
def test_every_pixel_is_covered_as_the_policy_says(edge: Edge) -> None:
    for length, size, stride in itertools.product(range(1, 14), range(1, 14), range(1, 14)):
        if stride > size or (edge == "shift" and size > length):
            continue
        windows = cuts(length, size, stride, edge)
        counts = coverage(windows, (length,))
        if edge != "drop":
            assert counts.min() >= 1
        if edge == "partial" and stride == size:
            assert (counts == 1).all()
        if edge == "drop":
            assert (windows[:, 1] - windows[:, 0] == size).all()
            assert (counts[: max(0, length - size + 1)] >= 1).all() or length < size
        if edge in {"shift", "drop", "partial"}:
            assert (windows >= 0).all()
            assert (windows <= length).all()
        if edge in {"shift", "pad", "drop"}:
            assert (windows[:, 1] - windows[:, 0] == size).all()
        assert (np.diff(windows[:, 0]) > 0).all()


@given(shapes, st.data())
def test_a_tiling_is_the_product_of_its_axes(shape: list[int], data: st.DataObject) -> None:
    size = [data.draw(st.one_of(st.none(), st.integers(1, length))) for length in shape]
    stride = [data.draw(st.integers(1, 5)) for _ in shape]
    policies = [data.draw(edges) for _ in shape]
    one_for_all = data.draw(st.booleans())
    edge = policies[0] if one_for_all else policies
    windows = tiling(shape, size, stride=stride, edge=edge)
    axes = [
        [(0, length)] if one is None else naive_cuts(length, one, step, policies[0] if one_for_all else policy)
        for length, one, step, policy in zip(shape, size, stride, policies, strict=True)
    ]
    expected = [[a for a, _ in pick] + [b for _, b in pick] for pick in itertools.product(*axes)]
    np.testing.assert_array_equal(windows, np.array(expected, np.int64).reshape(-1, 2 * len(shape)))


@given(shapes, st.data())
def test_coverage_is_a_loop_over_windows(shape: list[int], data: st.DataObject) -> None:
    box = st.tuples(*[st.integers(-3, length + 3) for length in shape])
    windows = [a + b for a, b in data.draw(st.lists(st.tuples(box, box), max_size=5))]
    expected = np.zeros(shape, np.int64)
    for window in windows:
        expected[tuple(slice(max(0, a), max(0, b)) for a, b in np.reshape(window, (2, -1)).T)] += 1
    np.testing.assert_array_equal(coverage(windows, shape), expected)
    short = cover(windows, shape)
    assert (short.fewest, short.most) == (expected.min(), expected.max())
    assert short.fraction == pytest.approx((expected > 0).mean())


@pytest.mark.parametrize(
    ("size", "stride", "edge", "message"),
    [
        (0, None, "shift", "each is 1 pixel or more"),
        (4, 0, "shift", "each is 1 pixel or more"),
        (4, None, "wrap", "it is one of 'shift', 'pad', 'drop', 'partial'"),
        ((4, 4, 4), None, "shift", "has 3 numbers for 2 axes"),
        (4, (4,), "shift", "has 1 numbers for 2 axes"),
        (4, None, ("pad",), "edge .'pad',. has 1 words for 2 axes"),
        (4, None, ("pad", "wrap"), "edge is 'wrap'; it is one of"),
        (11, None, "shift", "of 11 pixels cannot be shifted into 10"),
    ],
)
def test_what_is_no_tiling_is_refused(size: object, stride: object, edge: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiling((10, 10), size, stride=stride, edge=edge)  # type: ignore[arg-type]


def test_a_large_image_is_summed_up_without_an_array() -> None:
    windows = tiling((10**6, 10**6), 50_000, stride=30_000)
    assert str(cover(windows, (10**6, 10**6))).endswith("100.0% covered")


# -- make_grid


def write_images(folder: Path, **images: np.ndarray) -> Path:
    for name, pixels in images.items():
        path = folder / (name.replace("__", "/") + ".tif")
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, pixels, tile=(16, 16), compression="deflate")
    return folder


def boxes(table: pd.DataFrame) -> np.ndarray:
    return table[["ymin", "xmin", "ymax", "xmax"]].to_numpy()


@pytest.mark.parametrize("edge", EDGES)
def test_a_grid_over_images_is_their_tiling(edge: Edge, tmp_path: Path) -> None:
    folder = write_images(
        tmp_path, a=np.zeros((40, 70), np.uint8), b=np.zeros((33, 32, 3), np.uint8), skip=np.zeros((32, 32))
    )
    (folder / "skip.tif").rename(folder / ".skip.tif")
    table = make_grid(folder, (32, 16), stride=(32, 8), edge=edge)
    assert list(table.columns) == ["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax"]
    for region, shape in {"a": (40, 70), "b": (33, 32)}.items():
        mine = table[table.region_id == region]
        np.testing.assert_array_equal(boxes(mine), tiling(shape, (32, 16), stride=(32, 8), edge=edge))
        if edge != "drop":
            assert coverage(boxes(mine), shape).min() >= 1
    again = read_manifest(table, allow_outside=True)
    pd.testing.assert_frame_equal(again, table, check_dtype=False, check_categorical=False)


def test_yearly_folders_become_frames(tmp_path: Path) -> None:
    image = np.zeros((32, 32), np.uint8)
    folder = write_images(tmp_path, **{"2018__r": image, "2019__r": image, "2019__s": image})
    table = make_grid(folder, 16)
    assert table.groupby("label_id", observed=True).size().to_dict() == {"2018": 4, "2019": 8}
    assert table.tile_id[:4].to_list() == ["r_0_0", "r_0_16", "r_16_0", "r_16_16"]
    read_manifest(table)
    paths = sorted(folder.glob("*/*.tif"))
    pd.testing.assert_frame_equal(make_grid(paths, 16), table)
    assert "label_id" not in make_grid(paths[:1], 16)


def test_shapes_regions_and_volumes(tmp_path: Path) -> None:
    folder = write_images(tmp_path, a=np.zeros((32, 48), np.uint8))
    region = open_region(folder / "a.tif")
    expected = boxes(make_grid(folder, 16))
    for given_ in ({"a": (32, 48)}, {"a": np.zeros((32, 48, 3))}, [region], {"a": region}, folder / "a.tif"):
        np.testing.assert_array_equal(boxes(make_grid(given_, 16)), expected)
    volume = make_grid({"v": (8, 32, 48)}, (4, None, 16))
    names = ["zmin", "ymin", "xmin", "zmax", "ymax", "xmax"]
    np.testing.assert_array_equal(volume[names].to_numpy(), tiling((8, 32, 48), (4, None, 16)))
    assert read_manifest(volume)[names].equals(volume[names])
    mixed = make_grid({"v": (8, 32, 48)}, (3, 20, 20), edge=("shift", "pad", "drop"))
    assert mixed[["zmax", "ymax", "xmax"]].max().tolist() == [8, 40, 40]


def test_a_rule_keeps_what_it_says(tmp_path: Path) -> None:
    image = np.zeros((64, 64), np.uint8)
    image[:32, :32] = np.arange(32)
    image[32:, 32:] = 9
    image[:32, 32:48] = 5
    folder = write_images(tmp_path, a=image)
    kept = {
        "nodata<0.5": ["a_0_0", "a_32_32"],
        "nodata<=0.5": ["a_0_0", "a_0_32", "a_32_32"],
        "std>3": ["a_0_0"],
        "nodata<.5": ["a_0_0", "a_32_32"],
        "mean >= 2.5 and max<20": ["a_0_32", "a_32_32"],
    }
    for rule, tiles in kept.items():
        assert make_grid(folder, 32, keep=rule).tile_id.to_list() == tiles
    assert make_grid(folder, 32, keep=lambda tile: tile.max() == 9).tile_id.to_list() == ["a_32_32"]
    colours = np.full((32, 64, 3), 240, np.uint8)
    colours[:, 32:, 1] = 90
    tissue = write_images(tmp_path / "rgb", b=colours)
    assert make_grid(tissue, 32, keep="tissue>0.5").tile_id.to_list() == ["b_0_32"]
    with pytest.raises(ValueError, match="needs images of red, green and blue"):
        make_grid(folder, 32, keep="tissue>0.5")


@pytest.mark.parametrize(
    "rule", ["nodata", "nodata<", "nodata<x", "__import__('os')", "std>1 or max>2", "foo<1", "std>1 and", ""]
)
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"keep rule .* comparisons such as 'nodata<0.5'"):
        parse_rule(rule)


def test_what_cannot_be_divided_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="there is no such image folder"):
        make_grid(tmp_path / "absent", 16)
    with pytest.raises(ManifestError, match="there are no images"):
        make_grid(tmp_path, 16)
    folder = write_images(
        tmp_path, **{"1__r": np.zeros((32, 32)), "2__r": np.zeros((32, 40)), "1__s": np.zeros((8, 8))}
    )
    with pytest.raises(ManifestError) as raised:
        make_grid(folder, 16)
    assert "r.tif is 32 x 40" in str(raised.value)
    assert "region s (8 x 8): a window of 16 pixels cannot be shifted into 8" in str(raised.value)
    with pytest.raises(ManifestError, match="a rule to keep tiles needs its image"):
        make_grid({"a": (32, 32)}, 16, keep="std>1")
    with pytest.raises(ManifestError, match="an id is one name"):
        make_grid({"../a": (32, 32)}, 16)
    with pytest.raises(ValueError, match="depth, height, width"):
        make_grid({"a": (32, 32)}, (1, 2, 3, 4))
