"""Labels that are class names or boxes: numbered, kept, moved, and refused where they are not clear."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

import lazytiles as lt
from lazytiles.augment import Augment
from lazytiles.augment.boxes import FORMATS, Boxes
from lazytiles.training.batches import class_count, one_hot

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shape in (("a", (40, 60, 3)), ("b", (50, 70, 3))):
        tifffile.imwrite(tmp_path / f"{name}.tif", RNG.integers(0, 256, shape, np.uint8), photometric="rgb")
    return tmp_path


def table_of(targets: Any, **columns: Any) -> pd.DataFrame:
    n = len(targets)
    boxes = {"xmin": 4, "ymin": 8, "xmax": 28, "ymax": 24}
    ids = {"tile_id": [f"t{k}" for k in range(n)], "region_id": ["ab"[k % 2] for k in range(n)]}
    return pd.DataFrame({**ids, "target": targets, **boxes, **columns})


NAMED: dict[str, tuple[Any, list[str], list[int]]] = {
    "text": (["dog", "cat", "dog", "ox"], ["cat", "dog", "ox"], [1, 0, 1, 2]),
    "booleans": ([True, False, True], ["False", "True"], [1, 0, 1]),
    "only true": ([True, True], ["False", "True"], [1, 1]),
    "text of booleans": (["true", "false"], ["False", "True"], [1, 0]),
    "categories": (pd.Categorical(["b", "a"], categories=["c", "b", "a"]), ["c", "b", "a"], [1, 2]),
    "nullable booleans": (pd.array([True, False], dtype="boolean"), ["False", "True"], [1, 0]),
    "arrow": (pd.array(["x y", "é"], dtype="string[pyarrow]"), ["x y", "é"], [0, 1]),
}


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("form", ["frame", "csv", "parquet"])
def test_names_become_class_numbers(kind: str, form: str, folder: Path) -> None:
    given, classes, numbers = NAMED[kind]
    table = table_of(given)
    manifest: Any = table
    if form == "csv":
        if kind == "categories":
            pytest.skip("a CSV file has no categories")
        manifest = folder / "tiles.csv"
        table.to_csv(manifest, index=False)
    elif form == "parquet":
        manifest = folder / "tiles.parquet"
        table.to_parquet(manifest)
    tiles = lt.open_tiles(manifest, folder)
    assert (tiles.classes, tiles.labels.tolist()) == (classes, numbers)
    assert tiles.labels.dtype == np.int64
    assert tiles.table["target"].astype(str).to_list() == [classes[k] for k in numbers]
    assert f"labels of {len(classes)} classes" in repr(tiles)
    again = lt.open_tiles(tiles.table, folder)
    assert (again.classes, again.labels.tolist()) == (classes, numbers)


def test_named_classes_are_the_same_for_every_table(folder: Path) -> None:
    names = ["ox", "dog", "cat"]
    train = lt.open_tiles(table_of(["cat", "dog"]), folder, classes=names)
    test = lt.open_tiles(table_of(["dog"]), folder, classes=np.array(names))
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 1], [1])
    assert train.classes == test.classes == names
    unknown = lt.open_tiles(table_of([None, None]), folder, classes=names)
    assert (unknown.labels, unknown.classes, unknown.persist().classes) == (None, names, names)
    with pytest.raises(lt.ManifestError, match=r"row 1: tile t1: target 'cow' is none of the classes 'ox', 'dog'"):
        lt.open_tiles(table_of(["cat", "cow"]), folder, classes=names)
    with pytest.raises(lt.ManifestError, match="classes= is given, but there is no label column"):
        lt.open_tiles(table_of(["a"]), folder, target=None, classes=["a"])
    for options, option in (
        ({"classes": ["a"]}, "classes"),
        ({"target": ["x", "y"], "scale_boxes": ["x", "y"]}, "scale_boxes"),
    ):
        with pytest.raises(lt.ManifestError, match=f"{option}= is for .*with masks= the labels are masks"):
            lt.open_tiles(table_of(["a"], x=1, y=2), folder, masks="{region_id}.tif", **options)
    flags = folder / "flags.csv"
    table_of(["true", "false"]).to_csv(flags, index=False)
    assert lt.open_tiles(flags, folder, classes=[True, False]).labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="'a' is there twice"):
        lt.open_tiles(table_of(["a"]), folder, classes=["a", "a"])
    with pytest.raises(ValueError, match="classes are a list of names"):
        lt.open_tiles(table_of(["a"]), folder, classes="ab")


def test_numbers_stay_numbers_unless_classes_are_named(folder: Path) -> None:
    table = table_of([30, 10, 30])
    plain = lt.open_tiles(table, folder)
    assert (plain.classes, plain.labels.tolist()) == (None, [30, 10, 30])
    named = lt.open_tiles(table, folder, classes=[10, 20, 30])
    assert (named.classes, named.labels.tolist()) == ([10, 20, 30], [2, 0, 2])
    with pytest.raises(lt.ManifestError, match="row 0: tile t0: target '30' is none of the classes 10"):
        lt.open_tiles(table, folder, classes=[10])
    assert lt.open_tiles(table_of(["0.5", "2"]), folder).labels.tolist() == [0.5, 2]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["cat", "", "dog"], "row 1: tile t1: target is empty; write what it is"),
        (["cat", None], "row 1: tile t1: target is empty"),
        ([1.0, np.nan], "row 1: tile t1: target is empty or NaN"),
        (["1", "cat"], r"row 1: tile t1: target 'cat' is not a finite number; .* classes=\[...\]"),
        (["0,5", "0,7"], "target '0,5' is not a finite number; a decimal comma"),
        (["nan", "cat"], "row 0: tile t0: target 'nan' is not a finite number"),
        (["cat", "cat "], "row 1: tile t1: target 'cat ' has spaces around it"),
        (["2020-01-01"], "not a finite number"),
    ],
)
def test_labels_that_are_not_clear_are_refused_with_their_rows(targets: Any, message: str, folder: Path) -> None:
    with pytest.raises(lt.ManifestError, match=message):
        lt.open_tiles(table_of(targets), folder)
    report = lt.check(table_of(targets), folder)
    assert not report.is_sound


@pytest.mark.parametrize("nothing", [np.nan, None, "", "  "])
def test_an_empty_target_column_opens_for_prediction_and_says_so(nothing: Any, folder: Path) -> None:
    tiles = lt.open_tiles(table_of([nothing] * 3), folder)
    assert tiles.labels is None
    assert tiles.classes is None
    assert "no labels (nothing in target)" in repr(tiles)
    report = lt.check(table_of([nothing] * 3), folder)
    assert report.is_sound
    assert "nothing is written in target" in str(report.warnings)
    with pytest.raises(lt.ManifestError, match="row 0: tile t0: y is empty"):
        lt.open_tiles(table_of([1, 2, 3], y=nothing), folder, target=["target", "y"])


def test_one_of_several_columns_may_hold_names(folder: Path) -> None:
    table = table_of(["ox", "cat"], x=[1, 2], indoors=[True, False], other=["p", "q"])
    tiles = lt.open_tiles(table, folder, target=["x", "target", "indoors"])
    assert tiles.labels.tolist() == [[1, 1, 1], [2, 0, 0]]
    assert tiles.classes == ["cat", "ox"]
    with pytest.raises(lt.ManifestError, match="columns target, other hold names: classes are those of one"):
        lt.open_tiles(table, folder, target=["target", "other"])
    with pytest.raises(lt.ManifestError, match=r"classes= is given, but of the label columns x, w none holds names"):
        lt.open_tiles(table.assign(w=1), folder, target=["x", "w"], classes=["a"])


def test_classes_go_along_and_are_used(folder: Path) -> None:
    table = table_of(["cat"] * 12 + ["dog"] * 4)
    tiles = lt.open_tiles(table, folder).shuffle(1)
    train, test = tiles.split(0.75, stratify="labels", seed=0)
    assert train.classes == test.classes == pickle.loads(pickle.dumps(tiles)).classes == ["cat", "dog"]
    assert np.bincount(test.labels).tolist() == [3, 1]
    assert np.bincount(tiles.split(0.75, stratify="target", seed=0)[1].labels).tolist() == [3, 1]
    drawn = lt.BatchFlow((tiles, tiles.labels), 16, weights="balanced", replacement=True, seed=0)
    shares = np.mean([labels.mean() for _ in range(40) for _, labels in drawn])
    assert abs(shares - 0.5) < 0.1
    assert lt.open_tiles(table, folder, where={"target": "dog"}).labels.tolist() == [1] * 4
    flags = table_of([True, False, True])
    assert lt.open_tiles(flags, folder, where={"target": True}).table["tile_id"].to_list() == ["t0", "t2"]
    numbers = lt.open_tiles(table_of([10, 20]), folder, classes=[10, 20], where={"target": [20.0]})
    assert numbers.labels.tolist() == [1]
    facts = lt.check(table, folder).facts["targets"]["target"]
    assert facts == {"classes": {"cat": 12, "dog": 4}}
    unseen = lt.check(table, folder, classes=["cat", "dog", "ox"])
    assert "target: no row is of class ox" in str(unseen.warnings)


@pytest.mark.usefixtures("zarr_threads")
@pytest.mark.parametrize("ending", [".zarr", ".h5", ".b2nd", ".npy", ".tfrecord", None])
def test_stores_keep_classes_and_boxes(ending: str | None, folder: Path) -> None:
    names = ["x0", "y0", "x1", "y1"]
    table = table_of(["dog", "cat"], x0=10.0, y0=10.0, x1=15.0, y1=16.0)
    tiles = lt.open_tiles(table, folder, target=["target", *names], scale_boxes=names, classes=["ox", "dog", "cat"])
    store = lt.persist(tiles, None if ending is None else folder / f"tiles{ending}")
    assert store.classes == ["ox", "dog", "cat"]
    assert store.boxes == tiles.boxes == Boxes("xyxy", (1, 2, 3, 4))
    np.testing.assert_array_equal(store.labels, tiles.labels)
    if ending is not None:
        with pytest.raises(lt.StoreError, match="exists"):
            lt.export(tiles, folder / f"tiles{ending}")
        assert lt.open_store(folder / f"tiles{ending}").table["target"].to_list() == ["dog", "cat"]


def test_text_labels_of_any_array_are_classes() -> None:
    sources = [np.zeros((2, 4)), np.ones((1, 4))]
    by_sample = lt.MultiSourceArray(sources, np.array(["b", "a", "b"]))
    assert (by_sample.labels.tolist(), by_sample.classes) == ([1, 0, 1], ["a", "b"])
    own = lt.MultiSourceArray(sources, pd.Categorical(["b", "a", "b"], categories=["b", "a"]))
    assert (own.labels.tolist(), own.classes) == ([0, 1, 0], ["b", "a"])
    given = lt.MultiSourceArray(sources, [["b", "a"], ["b"]], classes=["c", "b", "a"])
    assert (given.labels.tolist(), given.classes) == ([1, 2, 1], ["c", "b", "a"])
    by_source = lt.MultiSourceArray(sources, classes=["z", "a"])
    assert (by_source.labels.tolist(), by_source.classes) == ([0, 0, 1], ["z", "a"])
    with pytest.raises(ValueError, match="1 classes for 2 sources"):
        lt.MultiSourceArray(sources, classes=["z"])
    with pytest.raises(ValueError, match=r"sample 2 has the label 'b', which is none of the classes \['a'\]"):
        lt.MultiSourceArray(sources, [["a", "a"], ["b"]], classes=["a"])


def test_ids_of_npy_files_with_a_table_of_names(tmp_path: Path) -> None:
    for k in range(3):
        np.save(tmp_path / f"id-{k}.npy", np.full((8, 8, 40), k))
    table = pd.DataFrame({"tile_id": ["id-0", "id-1", "id-2"], "target": ["b", "a", "b"]})
    tiles = lt.open_tiles(table, tmp_path, path="{tile_id}.npy", classes=["b", "a"])
    assert (tiles.labels.tolist(), tiles.classes, tiles.shape) == ([0, 1, 0], ["b", "a"], (3, 8, 8, 40, 1))
    assert class_count(True, tiles, None) == 2
    assert lt.open_volumes(table, tmp_path, path="{tile_id}.npy").classes == ["a", "b"]


def test_one_array_in_place_of_a_list_is_refused() -> None:
    for one in (np.zeros((100, 8, 8, 3)), lt.MultiSourceArray([np.zeros((3, 2))])):
        with pytest.raises(ValueError, match=r"one array of shape .* pass a list of arrays: \[array\]"):
            lt.MultiSourceArray(one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not one dict"):
        lt.MultiSourceArray({"a": np.zeros((3, 2))})  # type: ignore[arg-type]


def test_labelled_arrays_joined_keep_what_stands_beside_them(folder: Path) -> None:
    tiles = lt.open_tiles(table_of(["dog", "cat", "dog", "ox"], w=[1, 2, 3, 4]), folder, tabular="w").shuffle(3)
    train, test = tiles.split(0.5, seed=1)
    both = lt.MultiSourceArray([train, test])
    np.testing.assert_array_equal(both.labels, np.concatenate([train.labels, test.labels]))
    expected = pd.concat([train.table, test.table])
    assert both.table["tile_id"].to_list() == expected["tile_id"].to_list()
    assert both.classes == tiles.classes
    np.testing.assert_array_equal(both.tabular, np.concatenate([train.tabular, test.tabular]))
    before, labels = both[:], both.labels
    train.shuffle(9)
    np.testing.assert_array_equal(both[:], before)
    np.testing.assert_array_equal(both.labels, labels)
    other = lt.open_tiles(table_of(["ox"], w=[0]), folder, tabular="w")
    with pytest.raises(ValueError, match=r"the classes of source 1, \['ox'\], are not those of source 0"):
        lt.MultiSourceArray([train, other])
    with pytest.raises(ValueError, match="some sources have labels, or mask tiles, and others have none"):
        lt.MultiSourceArray([train, np.zeros(train.shape, np.uint8)])


def test_a_choice_by_a_fresh_seed_is_told_when_orders_are_compared() -> None:
    sources = [np.arange(50)]
    with pytest.warns(UserWarning, match="maxlen keeps were chosen by a fresh seed"):
        lt.MultiSourceArray(sources, maxlen=10, shuffle=True).shuffle(1)
    a, b = (lt.MultiSourceArray(sources, maxlen=10, shuffle=True, seed=4).shuffle(1)[:] for _ in range(2))
    np.testing.assert_array_equal(a, b)
    lt.MultiSourceArray(sources, maxlen=50, shuffle=True).shuffle(1)


def test_one_hot_targets_of_the_classes(folder: Path) -> None:
    tiles = lt.open_tiles(table_of(["cat", "ox"]), folder, classes=["cat", "dog", "ox"])
    assert class_count(True, tiles, None) == class_count(True, (tiles, np.zeros(2)), tiles.labels) == 3
    assert one_hot(tiles.labels, 3).tolist() == [[1, 0, 0], [0, 0, 1]]
    for x, y in ((np.zeros((2, 3)), None), (tiles, np.array([1, 1]))):
        with pytest.raises(ValueError, match="num_classes=True takes the classes that the data name"):
            class_count(True, x, y)


def corners_of(box: Any, form: str) -> list[float]:
    a, b, c, d = box
    return {
        "xyxy": [a, b, c, d],
        "xywh": [a, b, a + c, b + d],
        "cxcywh": [a - c / 2, b - d / 2, a + c / 2, b + d / 2],
        "xyhw": [a, b, a + d, b + c],
    }[form]


@pytest.mark.parametrize("form", ["xyxy", "xywh", "cxcywh", "xyhw"])
def test_boxes_are_scaled_with_their_tile(form: str, folder: Path) -> None:
    columns = ["p", "q", "r", "s", "p2", "q2", "r2", "s2"]
    values = RNG.uniform(6, 12, (3, 8)).round(2)
    table = table_of([0, 1, 2], **dict(zip(columns, values.T, strict=True)))
    tiles = lt.open_tiles(
        table, folder, size=(48, 40), target=["target", *columns], scale_boxes=columns, box_format=form
    )
    for k, row in enumerate(tiles.labels):
        assert row[0] == k
        for part in (slice(0, 4), slice(4, 8)):
            x0, y0, x1, y1 = corners_of(values[k, part], form)
            wanted = [(x0 - 4) * 40 / 24, (y0 - 8) * 48 / 16, (x1 - 4) * 40 / 24, (y1 - 8) * 48 / 16]
            np.testing.assert_allclose(corners_of(row[1:][part], form), wanted)
    assert tiles.shuffle(2).select([1, 0]).boxes == Boxes(form, tuple(range(1, 9)))


def test_columns_that_are_no_boxes_are_refused(folder: Path) -> None:
    table = table_of([0], x=[1.0], y=[2.0], w=[3.0], h=[4.0])
    names = ["x", "y", "w", "h"]
    with pytest.raises(ValueError, match="boxes are written as one of 'xyxy'"):
        lt.open_tiles(table, folder, target=names, scale_boxes=names, box_format="yxyx")
    with pytest.raises(lt.ManifestError, match="4 columns to a box of the format 'xywh', not 2"):
        lt.open_tiles(table, folder, target=names, scale_boxes=["x", "y"], box_format="xywh")
    with pytest.raises(lt.ManifestError, match=r"scale_boxes=\['x', 'z'\]: different label columns"):
        lt.open_tiles(table, folder, target=names, scale_boxes=["x", "z"])


GEOMETRY: dict[str, dict[str, Any]] = {
    "flip": {"flip": (1.0, 1.0)},
    "quarter": {"rotation": (90, 90)},
    "turned": {"rotation": 40},
    "shift": {"shift": (9, 14)},
    "zoom": {"zoom": 0.4},
    "shear": {"shear": 25},
    "crop": {"crop": (44, 52)},
    "warp": {"warp": 0.03},
    "all": {"rotation": 15, "zoom": 0.2, "shift": 0.1, "shear": 8, "flip": (True, True), "crop": (50, 64)},
}


@pytest.mark.parametrize("kind", GEOMETRY)
@pytest.mark.parametrize("form", ["xyxy", "xywh", "cxcywh", "xyhw"])
def test_boxes_move_as_the_pixels_that_they_hold(kind: str, form: str) -> None:
    """The oracle: a painted box, moved as an image is, and the bounds of what is seen of it."""
    n, rng = 8, np.random.default_rng(11)
    x, corners = np.zeros((n, 60, 80, 1), np.float32), np.zeros((n, 2, 4))
    for k in range(n):
        for j in range(2):
            x0, y0 = rng.integers(8, 40, 2)
            w, h = rng.integers(6, 20, 2)
            corners[k, j] = x0, y0, x0 + w, y0 + h
    given = Boxes(form).from_corners(corners)
    augment = Augment(boxes=form, fill="constant", **GEOMETRY[kind])
    for j in range(2):
        x[:] = 0
        for k, (x0, y0, x1, y1) in enumerate(corners[:, j].astype(int)):
            x[k, y0:y1, x0:x1] = 1
        images, moved = augment((x, given.reshape(n, 8)), np.random.default_rng(5))
        assert moved.shape == (n, 8)
        for k in range(n):
            # Of a sharp corner, pixels show little: all that is seen of it counts, and surely what is mostly seen.
            most, all_ = (bounds_of_seen(images[k, ..., 0] > least) for least in (0.5, 0.02))
            found = np.array(corners_of(moved[k, 4 * j : 4 * j + 4], form))
            if min(found[2] - found[0], found[3] - found[1]) < 2 and not any(most):
                continue  # too thin a rest for interpolated pixels to show it
            low, high = np.minimum(most, all_), np.maximum(most, all_)
            assert ((found > low - 2) & (found < high + 2)).all(), (k, found, most, all_)


def bounds_of_seen(mask: np.ndarray) -> list[int]:
    """The box around what is true."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1] if len(rows) else [0, 0, 0, 0]


def test_boxes_that_leave_the_tile_become_nothing_and_nothing_stays() -> None:
    x = np.zeros((1, 20, 20, 1))
    boxes = np.array([[[0.0, 0, 4, 4], [0, 0, 0, 0], [-1, -1, -1, -1], [10, 10, 20, 20]]])
    _, moved = Augment(boxes="xyxy", shift=((-8, -8), (0, 0)))((x, boxes), np.random.default_rng(0))
    assert moved.tolist() == [[[0, 0, 0, 0], [0, 0, 0, 0], [-1, -1, -1, -1], [10, 2, 20, 12]]]
    whole = np.array([[2, 3, 9, 9]])
    same = Augment(boxes="xyxy", intensity=3)((x, whole), np.random.default_rng(0))[1]
    assert (same.dtype, same.tolist()) == (np.float32, whole.tolist())


def test_points_move_to_their_pixel() -> None:
    x = np.zeros((1, 30, 40, 1))
    x[0, 7, 31] = 1
    augment = Augment(boxes={"points": "xy"}, flip=(0.0, 1.0), rotation=(180, 180), shift=((2, 2), (3, 3)))
    batch = augment({"x": x, "points": np.array([[31.5, 7.5]]), "y": np.array([3])}, np.random.default_rng(0))
    place = np.argwhere(batch["x"][0, ..., 0])[0]
    assert batch["points"].tolist() == [[place[1] + 0.5, place[0] + 0.5]]
    assert batch["y"].tolist() == [3]
    with pytest.raises(ValueError, match="a warp does not move points"):
        Augment(boxes="xy", warp=0.1)((x, np.zeros((1, 2))), np.random.default_rng(0))


@pytest.mark.parametrize("structure", ["tuple", "dict", "list", "views", "more"])
def test_a_flow_knows_which_labels_are_boxes(structure: str, folder: Path) -> None:
    names = ["x0", "y0", "x1", "y1"]
    table = table_of([0] * 4, **dict(zip(names, [[5] * 4, [9] * 4, [9] * 4, [20] * 4], strict=True)))
    tiles = lt.open_tiles(table, folder, target=names, scale_boxes=names).shuffle(3)
    labels = tiles.labels
    data: Any = {
        "tuple": (tiles, labels),
        "list": [tiles, labels, np.arange(4)],
        "more": (tiles, labels, np.arange(20.0).reshape(4, 5)),
        "views": (lt.DelayedView(tiles, idx_max=4), lt.DelayedView(labels)),
        "dict": {"x": tiles, "boxes": labels, "id": np.arange(4)},
    }[structure]
    flow = lt.BatchFlow(data, 4, transform=Augment(flip=(0.0, 1.0)), seed=0)
    (batch,) = flow
    found = batch["boxes"] if structure == "dict" else batch[1]
    assert found.tolist() == [[24 - 5, 1, 24 - 1, 12]] * 4
    (plain,) = lt.BatchFlow(data, 4, transform=Augment(flip=(0.0, 1.0), boxes=()), seed=0)
    np.testing.assert_array_equal(plain["boxes"] if structure == "dict" else plain[1], labels)


@pytest.mark.parametrize("names", [["cat", "dog"], ["01", "02"]])
def test_folders_may_be_the_classes(names: list[str], folder: Path) -> None:
    for name in names:
        (folder / name).mkdir()
        tifffile.imwrite(folder / name / "t.tif", np.full((4, 4), len(name), np.uint8))
    csv = folder / "files.csv"
    csv.write_text("tile_id,kind\n" + "".join(f"{name}-t,{name}\n" for name in names))
    tiles = lt.open_tiles(csv, folder, path="{kind}/t.tif", target="kind")
    assert tiles.labels.tolist() == ([0, 1] if names[0] == "cat" else [1, 2])
    assert tiles.classes == (names if names[0] == "cat" else None)
    assert lt.open_tiles(csv, folder, path="{kind}/t.tif", target="kind", classes=names).labels.tolist() == [0, 1]
    assert tiles[:].shape == (2, 4, 4, 1)
    assert lt.check(csv, folder, path="{kind}/t.tif", target="kind").is_sound


def test_pictures_and_pages_say_the_names(folder: Path) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot as plt

    from lazytiles.reports.html import check_page, preview_page

    table = table_of(["cat", "dog", "cat", "dog"])
    tiles = lt.open_tiles(table, folder)
    drawn = [text.get_text() for text in tiles.plot(4).texts]
    assert drawn == ["t0\ncat", "t1\ndog", "t2\ncat", "t3\ndog"]
    for given in (tiles, table):
        legend = lt.open_region(folder / "b.tif").plot(given).get_legend()
        assert [text.get_text() for text in legend.get_texts()] == ["dog"]
    (folder / "deep").mkdir()
    (folder / "b.tif").rename(folder / "deep/x.tif")
    named = table.assign(path=[f"{'deep/x' if name == 'b' else name}.tif" for name in table.region_id])
    for given in (lt.open_tiles(named, folder), named):
        legend = lt.open_region(folder / "deep/x.tif").plot(given).get_legend()
        assert [text.get_text() for text in legend.get_texts()] == ["dog"]
    (folder / "deep/x.tif").rename(folder / "b.tif")
    plt.close("all")
    page = preview_page(tiles.table, np.array([0, 1, 0, 1]), [str(folder / "a.tif"), str(folder / "b.tif")])
    assert "target: <b" in page
    assert ">cat</b>" in page
    assert "target dog" in page
    assert "cat: 2" in check_page(lt.check(table, folder))


def test_boxes_are_never_left_behind(folder: Path) -> None:
    names = ["x", "y", "w", "h"]
    table = table_of([0, 0], **dict.fromkeys(names, 5))
    tiles = lt.open_tiles(table, folder, target=names, scale_boxes=names, box_format="xywh")
    with pytest.raises(ValueError, match=r"the tiles' labels are boxes, but 1, of shape \(2, 4\), is not those"):
        lt.BatchFlow((tiles, tiles.labels + 1), 2, transform=Augment(rotation=5))
    lt.BatchFlow((tiles, tiles.labels + 1), 2, transform=Augment(intensity=5))
    with pytest.raises(ValueError, match=r"labels of shape \(2, 3\) float64 are no boxes 'xyxy'"):
        Augment(boxes="xyxy", flip=(True, True))((np.zeros((2, 8, 8, 1)), np.zeros((2, 3))), np.random.default_rng(0))
    with pytest.raises(ValueError, match="boxes are written as one of"):
        Augment(boxes="xyzw")
    with pytest.raises(ValueError, match="of which there are 0 arrays"):
        Augment(boxes="xyxy")(np.zeros((2, 8, 8, 1)), np.random.default_rng(0))
    augment = Augment(boxes={"b": "xyxy"}, flip=(True, True))
    assert hash(augment) == hash(pickle.loads(pickle.dumps(augment)))


@pytest.mark.parametrize("form", FORMATS)
def test_corners_and_back(form: str) -> None:
    boxes = Boxes(form)
    given = RNG.uniform(0, 9, (3, 2, boxes.count))
    np.testing.assert_allclose(boxes.from_corners(boxes.corners(given)), given)
