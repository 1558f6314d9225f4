"""What a flow holds and draws: everything as it was given, and for each sample the same in any company."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import loky
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lazytiles as lt
from lazytiles.augment import Augment
from lazytiles.indexing.orders import permutation
from lazytiles.reports.statistics import statistics
from lazytiles.training.batches import parts_of
from lazytiles.training.schedule import Feed
from lazytiles.training.tandem import Tandem
from lazytiles.trees import leaves

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "streams.json").read_text())


# ---------------------------------------------------------------- held as it was given


def label_of(images: np.ndarray) -> np.ndarray:
    """The label of each image is a function of its pixels."""
    return images.reshape(len(images), -1)[:, 0].astype(np.int64) % 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("held")
    rng = np.random.default_rng(1)
    for name in "abc":
        tifffile.imwrite(folder / f"{name}.tif", rng.integers(0, 255, (24, 16, 3), dtype=np.uint8), rowsperstrip=8)
    return folder


def tiles_of(folder: Path) -> lt.MultiSourceArray:
    table = lt.make_grid([folder / f"{name}.tif" for name in "abc"], size=8)
    images = np.asarray(lt.open_tiles(table, folder)[:])
    return lt.open_tiles(table.assign(target=label_of(images)), folder)


def in_memory(seed: int) -> lt.MultiSourceArray:
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 255, (6, 8, 8, 2), dtype=np.uint8) for _ in range(3)]
    return lt.MultiSourceArray(parts, labels=[label_of(part) for part in parts])


def arrays_of(kind: str, folder: Path, seed: int) -> tuple[Any, list[Any]]:
    """An array of 18 labelled images, and everything that it is made of and that can be reordered."""
    if kind == "tiles":
        tiles = tiles_of(folder)
        return tiles, [tiles]
    array = in_memory(seed)
    if kind == "memory":
        return array, [array]
    view = lt.DelayedView(array, shuffle=True, seed=seed)
    if kind == "view":
        return view, [view, array]
    array.shuffle(seed)
    nest = lt.MultiSourceArray([view, array], labels=[label_of(view[:]), array.labels])
    return nest.select(np.arange(0, len(nest), 2)), [nest, view, array]


FORMS = {
    "pair": lambda a, y: (a, y),
    "list": lambda a, y: [a, y],
    "dict": lambda a, y: {"image": a, "y": y},
    "nested": lambda a, y: ({"one": a, "two": lt.DelayedView(a)}, y),
    "view": lambda a, y: (lt.DelayedView(a), y),
}
DEEDS = ("shuffle", "window", "order", "reset", "pairs", "select", "split", "kfold", "write")


def do(deed: str, array: Any, labels: np.ndarray, seed: int) -> None:
    """Something that a user may do to an array while a flow over it is at work."""
    is_many = isinstance(array, lt.MultiSourceArray)
    if deed == "write":
        labels[:] = -1
    elif deed == "order":
        array.order = permutation(len(array), seed)
    elif deed == "window" and is_many:
        array.shuffle(seed, window=1)
    elif deed == "reset" and is_many:
        array.reset_order()
    elif deed == "pairs" and is_many:
        array.index_pairs = array.index_pairs[::-1]
    elif deed == "select" and is_many:
        array.select(slice(2, 7)).shuffle(seed)
    elif deed == "split" and is_many:
        array.split(0.5, seed=seed)[0].shuffle(seed)
    elif deed == "kfold" and is_many:
        next(array.kfold(3, seed=seed))[0].reset_order()
    else:
        array.shuffle(seed)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_nothing_done_to_an_array_later_reaches_a_flow(folder, data):
    kind = data.draw(st.sampled_from(["tiles", "memory", "view", "nest"]))
    form = data.draw(st.sampled_from(sorted(FORMS)))
    seed = data.draw(st.integers(0, 99))
    array, parts = arrays_of(kind, folder, seed)
    if data.draw(st.booleans()):
        array.shuffle(seed)
    dense = np.array(array[:])
    labels = array.labels if isinstance(array, lt.MultiSourceArray) else label_of(dense)
    np.testing.assert_array_equal(labels, label_of(dense))
    options = data.draw(
        st.fixed_dictionaries({"shuffle": st.booleans(), "prefetch": st.integers(0, 2)})
        | st.just({"replacement": True})
        | (
            st.just({"weights": "balanced"})
            if isinstance(array, lt.MultiSourceArray) and form != "view"
            else st.nothing()
        )
    )
    given_labels = labels.copy()
    flow = lt.BatchFlow(FORMS[form](array, given_labels), 5, seed=seed, **options)
    deeds = st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 2), st.integers(0, 9)), max_size=3)
    for epoch in range(2):
        for k, batch in enumerate(flow):
            for deed, which, of in data.draw(deeds):
                do(deed, parts[which % len(parts)], given_labels, of)
            *images, y = leaves(batch)
            rows = flow.rows(epoch, k)
            np.testing.assert_array_equal(y, labels[rows])
            for x in images:
                np.testing.assert_array_equal(x, dense[rows])
                np.testing.assert_array_equal(y, label_of(x))


@pytest.mark.parametrize("form", ["alone", "tuple", "dict", "view"])
def test_what_an_adapter_reads_stays_with_its_labels(form):
    array, other = in_memory(0).shuffle(1), in_memory(1)
    x = {
        "alone": array,
        "tuple": (array, lt.DelayedView(other)),
        "dict": {"image": array},
        "view": lt.DelayedView(array),
    }
    feed = Feed(parts_of(x[form], array.labels if form == "view" else None), 5, shuffle=True, seed=2)
    array.shuffle(3)
    other.order = other.order[::-1]
    for k in range(len(feed.schedule)):
        images, labels = feed.read((0, k))
        np.testing.assert_array_equal(label_of(leaves(images)[0]), labels)


def test_volumes_given_by_name_are_held_too():
    slices = lt.MultiSourceArray([np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)])
    before = np.array(slices[:])
    volumes = lt.open_volumes(pd.DataFrame({"tile_id": ["t"], "region_id": ["r"]}), {"r": slices})
    slices.shuffle(1)
    np.testing.assert_array_equal(volumes[0], before)


def test_balanced_weights_are_of_the_labels_as_they_were():
    array = lt.MultiSourceArray([np.zeros((90, 2)), np.ones((10, 2))])
    flow = lt.BatchFlow((array, array.labels), 100, weights="balanced", seed=0)
    array.shuffle(1)
    (batch,) = flow
    assert 0.35 < batch[1].mean() < 0.65
    np.testing.assert_array_equal(batch[0][:, 0], batch[1])


def test_weights_are_held_as_they_were():
    weights = np.ones(40)
    flow, twin = (lt.BatchFlow(np.arange(40), 8, weights=weights, replacement=True, seed=0) for _ in range(2))
    expected = list(twin)
    weights[:] = np.arange(40) == 7
    np.testing.assert_array_equal(list(flow), expected)
    assert len(np.unique(list(flow))) > 5


def test_an_array_keeps_its_sources_as_they_were():
    view = lt.DelayedView(np.arange(6))
    both = lt.MultiSourceArray([view, np.arange(6, 9)], labels=[np.arange(6), np.arange(6, 9)])
    onto = lt.DelayedView(both, idx_min=1)
    view.order = np.arange(6)[::-1]
    both.order = np.arange(9)[::-1]
    assert both[:].tolist() == both.labels.tolist() == list(range(8, -1, -1))
    assert onto[:].tolist() == list(range(1, 9))


# ---------------------------------------------------------------- what brings labels


def test_labels_follow_an_array_into_a_dict_or_tuple():
    array = in_memory(0)
    for x in ({"image": array}, (array, np.zeros((18, 3))), ({"deep": array},)):
        found, y = parts_of(x)
        np.testing.assert_array_equal(y, array.labels)
        assert len(leaves(found)) == len(leaves(x))
    assert len(parts_of({"image": lt.DelayedView(array)})) == 1
    assert len(parts_of({"image": np.zeros((18, 3))})) == 1
    np.testing.assert_array_equal(parts_of({"a": array, "b": array})[1], array.labels)


def test_table_columns_follow_an_array_into_a_dict_or_tuple():
    array = in_memory(0)
    table = pd.DataFrame({"height": np.arange(18.0)})
    array = lt.MultiSourceArray([array], array.labels, table=table)
    array.companions = replace(array.companions, tabular=("height",))
    for x in (array, (array,), [array, array]):
        (found, _) = parts_of(x)
        np.testing.assert_array_equal(found[-1], table)
        assert len(found) == len(leaves(x)) + 1
    assert list(parts_of({"image": array})[0]) == ["image", "tabular"]
    assert list(parts_of({"image": array, "more": array.tabular})[0]) == ["image", "more"]
    assert len(parts_of((array, array.tabular))[0]) == 2
    with pytest.raises(
        ValueError, match=r"x\['image'\] brings its tabular columns as x\['tabular'\], which is something"
    ):
        parts_of({"image": array, "tabular": np.zeros((18, 1))})
    other = array.copy().shuffle(3)
    with pytest.raises(ValueError, match=r"x\[0\] and x\[1\] bring different tabular columns; .* DelayedView"):
        parts_of((array, other), array.labels)
    assert len(parts_of((array, lt.DelayedView(other)))[0]) == 3
    ((scan, *_),) = [list(lt.predict(lambda x: x["tabular"][:, 0], {"image": array}))]
    assert scan["y_pred"]["prediction"].to_list() == list(range(len(scan["y_pred"])))


def test_labels_that_disagree_are_refused_by_name():
    one, other = in_memory(0), in_memory(1)
    with pytest.raises(ValueError, match=r"x\['a'\] and x\['b'\] bring different labels; pass the targets as y"):
        parts_of({"a": one, "b": other})
    assert len(parts_of({"a": one, "b": other}, np.arange(18))) == 2
    assert len(parts_of({"a": one, "b": lt.DelayedView(other)})) == 2


# ---------------------------------------------------------------- others' arrays


def others(dense: np.ndarray) -> list[Any]:
    jax, torch, tensorflow = (pytest.importorskip(name) for name in ("jax.numpy", "torch", "tensorflow"))
    return [jax.asarray(dense), torch.from_numpy(dense.copy()), tensorflow.constant(dense)]


@pytest.mark.parametrize("shape", [(9,), (9, 2), (9, 4, 3, 2)])
def test_tensors_are_read_by_rows_and_not_by_their_own_take(shape):
    dense = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    rows = permutation(9, 3, epoch=0)
    for tensor in others(dense):
        (batch,) = lt.BatchFlow({"t": tensor}, 9, shuffle=True, seed=3)
        np.testing.assert_array_equal(batch["t"], dense[rows])
        np.testing.assert_array_equal(lt.MultiSourceArray([tensor, tensor])[[10, 0]], dense[[1, 0]])
        np.testing.assert_array_equal(lt.DelayedView(tensor, idx_min=2)[::2], dense[2::2])
        np.testing.assert_array_equal(parts_of(tensor, tensor)[1], dense)
        labels = lt.MultiSourceArray([dense], labels=tensor).labels
        assert type(labels) is np.ndarray
        np.testing.assert_array_equal(labels, dense)
        if len(shape) == 4:
            np.testing.assert_allclose(statistics(tensor).mean, dense.mean((0, 1, 2)))


def test_tensors_that_numpy_cannot_see_are_refused_by_name():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"a torch Tensor cannot be read as a NumPy array \(.*requires grad"):
        lt.BatchFlow(torch.zeros((4, 2), requires_grad=True), 2)
    with pytest.raises(TypeError, match=r"y\['a'\]: a torch Tensor cannot be read"):
        parts_of(np.zeros((4, 2)), {"a": torch.zeros((4,), requires_grad=True)})
    tensorflow = pytest.importorskip("tensorflow")
    (batch,) = lt.BatchFlow(tensorflow.Variable([1, 2]), 2)  # by value, as it is now
    np.testing.assert_array_equal(batch, [1, 2])


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pd.Series([3, 1, 2], dtype="Int64"), np.array([3, 1, 2])),
        (pd.Series([0.5, 1, 2], dtype="Float32"), np.array([0.5, 1, 2])),
        (pd.Series([True, False, True], dtype="boolean"), np.array([True, False, True])),
        (pd.Series([3, 1, 3], dtype="category"), np.array([3, 1, 3])),
        (pd.Index([3, 1, 2]), np.array([3, 1, 2])),
        (pd.DataFrame({"a": pd.Series([1, 2, 3], dtype="Int64"), "b": [0.5, 1, 2]}), [[1, 0.5], [2, 1], [3, 2]]),
    ],
)
def test_columns_of_any_kind_are_numbers(column, values):
    for found in (next(iter(lt.BatchFlow(column, 3))), parts_of(np.zeros(3), column)[1]):
        np.testing.assert_array_equal(found, values)
        assert found.dtype.kind in "bif"


def test_columns_of_any_kind_are_labels():
    images = np.zeros((3, 2))
    for column in (pd.Series([3, 1, 2], dtype="Int64"), pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1, 2]})):
        labels = lt.MultiSourceArray([images], labels=column).labels
        np.testing.assert_array_equal(labels, column.to_numpy())
        assert labels.dtype.kind in "if"
    with pytest.raises(ValueError, match="1 of 3 values of a column are missing"):
        lt.MultiSourceArray([images], labels=pd.Series([3, None, 2], dtype="Int64"))


def test_missing_values_in_a_column_are_refused():
    column = pd.Series([1, None, 2], dtype="Int64", name="age")
    with pytest.raises(ValueError, match=r"1 of 3 values of column 'age' are missing \(NA\), first in row 1"):
        lt.BatchFlow(column, 2)
    with pytest.raises(ValueError, match="y: 1 of 3 values"):
        parts_of(np.zeros(3), column)
    with pytest.raises(TypeError, match=r"y is of .*no Keras backend takes"):
        parts_of(np.zeros(3), pd.Series(["a", "b", "c"], dtype="category"))
    with pytest.raises(ValueError, match="masked"):
        lt.BatchFlow(np.ma.masked_equal(np.arange(3), 1), 2)


class Taking:
    """A source of a user's own, which can do nothing but give batches."""

    shape, dtype = (5, 2), np.dtype("i4")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError

    def take(self, indices: Any, out: Any = None) -> Any:
        return np.repeat(np.asarray(indices, np.int32)[:, None], 2, axis=1)


def test_a_take_of_the_protocol_is_used():
    assert [b[:, 0].tolist() for b in lt.BatchFlow(Taking(), 3)] == [[0, 1, 2], [3, 4]]


def test_labels_are_copied_and_images_are_not():
    images, labels = np.zeros((4, 3, 3)), np.arange(4)
    tandem = Tandem((images, labels))
    assert tandem.sources[0] is images
    assert not np.shares_memory(tandem.sources[1], labels)


# ---------------------------------------------------------------- windows of sources


def test_a_window_mixes_so_many_sources_anew_each_epoch():
    array = lt.MultiSourceArray([np.full(8, k) for k in range(6)]).shuffle(3)
    flow = lt.BatchFlow((array, array.labels), 16, shuffle=True, window=2, seed=7)
    orders = []
    for epoch in range(3):
        expected = permutation(48, 7, epoch=epoch, groups=array.labels, window=2)
        orders.append(np.concatenate([y for _, y in flow]))
        np.testing.assert_array_equal(orders[-1], array.labels[expected])
        assert [len(set(orders[-1][k : k + 16].tolist())) for k in (0, 16, 32)] == [2, 2, 2]
    assert not np.array_equal(orders[0], orders[1])
    other = lt.BatchFlow((array, array.labels), 16, shuffle=True, window=3, seed=7)
    with pytest.raises(lt.LazyTilesError, match="something else"):
        other.load_state_dict(flow.state_dict())
    view = lt.DelayedView(array)
    viewed = lt.BatchFlow((view, array.labels), 16, shuffle=True, window=2, seed=7)
    np.testing.assert_array_equal(np.concatenate([y for _, y in viewed]), orders[0])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"window": 2}, r"window=2 says how shuffle=True mixes"),
        ({"window": 2, "shuffle": True, "weights": np.ones(48)}, r"not with weights="),
        ({"window": 0, "shuffle": True}, r"at least 1; not 0"),
        ({"window": 1.5, "shuffle": True}, r"at least 1; not 1.5"),
    ],
)
def test_windows_that_mean_nothing_are_refused(options, what):
    array = lt.MultiSourceArray([np.full(8, k) for k in range(6)])
    with pytest.raises(ValueError, match=what):
        lt.BatchFlow(array, 4, **options)
    with pytest.raises(ValueError, match="array of several sources"):
        lt.BatchFlow(np.zeros((48, 3)), 4, shuffle=True, window=2)


# ---------------------------------------------------------------- balanced


def test_balanced_draws_with_replacement_unless_told_otherwise():
    array = lt.MultiSourceArray([np.zeros((190, 2)), np.ones((10, 2))])
    (drawn,) = lt.BatchFlow((array, array.labels), 200, weights="balanced", seed=0)
    assert 0.4 < drawn[1].mean() < 0.6
    (once,) = lt.BatchFlow((array, array.labels), 200, weights="balanced", replacement=False, seed=0)
    assert once[1].sum() == 10
    (ones,) = lt.BatchFlow((array, array.labels), 200, weights=np.ones(200), seed=0)
    assert ones[1].sum() == 10


def test_balanced_over_no_classes_is_refused():
    images = np.zeros((40, 2))
    for labels in (np.random.default_rng(0).random(40), np.arange(40), np.random.default_rng(0).random((40, 2))):
        array = lt.MultiSourceArray([images], labels=[labels])
        with pytest.raises(ValueError, match=r"40 different values, as targets of a regression do; make classes"):
            lt.BatchFlow((array, array.labels), 4, weights="balanced")
    masks = lt.MultiSourceArray([images], labels=np.zeros((40, 8, 8), np.uint8))
    lazy = lt.MultiSourceArray([images], labels=lt.DelayedView(np.zeros((40, 8, 8), np.uint8)))
    for array in (masks, lazy):
        with pytest.raises(ValueError, match=r"the labels are masks, \(40, 8, 8\); pass one number a sample"):
            lt.BatchFlow((array, array.labels), 4, weights="balanced")
    with pytest.raises(ValueError, match=r"balanced_weights\(labels\) gives them"):
        lt.BatchFlow((images, np.arange(40)), 4, weights="balanced")


# ---------------------------------------------------------------- random numbers by sample


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 255, (n, 6, 6, 3), dtype=np.uint8)


def speckle(image: Any, rng: np.random.Generator) -> dict[str, Any]:
    """A function of one image."""
    return {"image": image ^ rng.integers(0, 255, image.shape, dtype=np.uint8)}


AUGMENT = Augment(rotation=30, shift=0.2, zoom=0.2, intensity=9, flip=(True, True), warp=1.0)


def inside(batch: Any, rng: np.random.Generator) -> Any:
    """A transform of the user's own that calls ours."""
    return AUGMENT(batch, rng)


def epochs(flow: lt.BatchFlow) -> list[np.ndarray]:
    return [np.concatenate([x for x, _ in flow]) for _ in range(2)]


@pytest.mark.parametrize("transform", [AUGMENT, speckle, inside])
@pytest.mark.parametrize("batch_size", [4, 7])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [{"shuffle": True}, {"replacement": True}, {}])
def test_shards_of_any_batch_size_together_are_the_single_stream(transform, batch_size, ranks, order):
    n = 2 * 4 * 7 * 5
    data = (pictures(n), np.arange(n))
    single = epochs(lt.BatchFlow(data, 10, transform=transform, seed=6, **order))
    parts = [
        lt.BatchFlow(data, batch_size, transform=transform, seed=6, shard=(r, ranks), threads=1 + r % 2, **order)
        for r in range(ranks)
    ]
    for whole in single:
        together = np.concatenate([x for batches in zip(*parts, strict=True) for x, _ in batches])
        assert len(together) > n - batch_size * ranks
        np.testing.assert_array_equal(together, whole[: len(together)])
    assert not np.array_equal(*single)


@pytest.fixture(scope="session")
def trackers() -> None:
    """The two processes that watch over semaphores: started with the first executor, they stay to the end."""
    with loky.ProcessPoolExecutor(1) as executor:
        executor.submit(int).result()


@pytest.mark.usefixtures("trackers")
def test_processes_draw_the_same():
    data = (pictures(20), np.arange(20))
    for transform in (AUGMENT, speckle):
        with lt.BatchFlow(data, 7, shuffle=True, transform=transform, seed=6, processes=2) as flow:
            apart = epochs(flow)
        here = epochs(lt.BatchFlow(data, 4, shuffle=True, transform=transform, seed=6))
        for one, other in zip(apart, here, strict=True):
            np.testing.assert_array_equal(one, other)


def test_functions_of_a_whole_batch_draw_by_batch_and_rank():
    def noise(batch: Any, rng: np.random.Generator) -> Any:
        return batch[0] + rng.random(len(batch[0])), batch[1]

    data = (np.zeros(24), np.arange(24))
    one, other = (lt.BatchFlow(data, 4, transform=noise, seed=1, shard=(r, 2)) for r in range(2))
    drawn = [x for flow in (one, other) for x, _ in flow]
    assert len(np.unique(np.stack(drawn))) == 24
    again = [x for r in range(2) for x, _ in lt.BatchFlow(data, 4, transform=noise, seed=1, shard=(r, 2), threads=3)]
    np.testing.assert_array_equal(drawn, again)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"seed{case['seed']}-epoch{case['epoch']}")
@pytest.mark.parametrize(("size", "ranks"), [(4, 1), (7, 1), (1, 61), (3, 2)])
def test_the_golden_stream(case, size, ranks):
    n, images = case["n"], pictures(case["n"])
    turned = [
        images[row][:: -1 if down else 1, :: -1 if across else 1]
        for row, (down, across) in zip(case["order"], case["flips"], strict=True)
    ]
    place = np.argsort(case["order"])
    drawn: dict[int, float] = {}
    by_batch: list[float] = []

    def watched(batch: Any, rng: Any) -> Any:
        for row, random in zip(batch[1].tolist(), rng.samples, strict=True):
            drawn[int(place[row])] = random.random()
        by_batch.append(rng.random())
        return batch

    found = []
    for transform in (Augment(flip=(0.5, 0.5)), watched):
        options = {"shuffle": True, "seed": case["seed"], "transform": transform, "prefetch": 0}
        parts = [lt.BatchFlow((images, np.arange(n)), size, shard=(r, ranks), **options) for r in range(ranks)]
        for flow in parts:
            flow.load_state_dict({**flow.state_dict(), "epoch": case["epoch"]})
        found.append([x for batches in zip(*parts, strict=True) for x, _ in batches])
    together = np.concatenate(found[0])
    assert len(together) > n - size * ranks
    np.testing.assert_array_equal(together, np.stack(turned)[: len(together)])
    assert [drawn[k] for k in range(len(drawn))] == case["first"][: len(together)]
    if (size, ranks) == (4, 1):
        assert by_batch == case["batches_of_4"]


@pytest.mark.parametrize("size", [2.5, "4", None])
def test_a_batch_size_that_is_no_integer_is_named(size: Any) -> None:
    with pytest.raises(TypeError, match="batch_size must be an integer, not"):
        lt.BatchFlow(np.zeros((5, 2)), size)
