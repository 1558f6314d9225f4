"""Splits by their laws, overlaps by a double loop."""

from __future__ import annotations

from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from lazytiles import MultiSourceArray, open_tiles
from lazytiles.indexing import overlaps as overlap
from lazytiles.indexing.orders import permutation
from lazytiles.indexing.overlaps import overlapping_pairs
from lazytiles.indexing.splits import kfold_indices, kfold_rows, leakage, split_groups, split_rows

fractions = st.floats(0.05, 0.95)
columns = st.lists(st.integers(0, 9), min_size=2, max_size=80)


def are_complete(parts, n):
    return np.array_equal(np.sort(np.concatenate(parts)), np.arange(n)) and all(len(part) for part in parts)


@given(st.integers(2, 200), fractions, st.integers(0, 99))
def test_a_plain_split_has_the_size_asked_for(n, fraction, seed):
    first, second = split_groups(None, fraction, seed=seed, n=n)
    assert are_complete([first, second], n)
    assert abs(len(first) - fraction * n) <= 1


@given(columns, fractions, st.integers(0, 99))
def test_a_stratified_split_keeps_the_shares(classes, fraction, seed):
    classes = np.array(classes)
    first, second = split_groups(None, fraction, seed=seed, n=len(classes), stratify=classes)
    assert are_complete([first, second], len(classes))
    share = len(first) / len(classes)
    for value in np.unique(classes):
        assert abs((classes[first] == value).sum() - share * (classes == value).sum()) <= 1


@given(columns.filter(lambda c: len(set(c)) > 1), fractions, st.integers(0, 99), st.booleans())
def test_no_group_is_on_both_sides(groups, fraction, seed, stratified):
    groups = np.array(groups)
    classes = np.arange(len(groups)) % 3 if stratified else None
    first, second = split_groups(groups, fraction, seed=seed, n=len(groups), stratify=classes)
    assert are_complete([first, second], len(groups))
    assert not set(groups[first]) & set(groups[second])
    if not stratified:
        assert abs(len(first) - fraction * len(groups)) <= np.bincount(groups).max()


def test_many_groups_come_close_to_the_fraction():
    sizes = np.random.default_rng(0).integers(1, 60, 40)
    groups = np.repeat(np.arange(40), sizes)
    for seed in range(20):
        first, _ = split_groups(groups, 0.8, seed=seed, n=len(groups))
        assert abs(len(first) / len(groups) - 0.8) < 0.02


def test_groups_of_one_class_each_are_stratified():
    groups = np.repeat(np.arange(60), 10)
    classes = groups % 3
    first, _ = split_groups(groups, 0.7, seed=1, n=600, stratify=classes)
    assert np.bincount(classes[first]).tolist() == [140, 140, 140]


def test_a_split_is_a_function_of_its_seed():
    first = [split_groups(None, 0.5, seed=seed, n=100)[0].tolist() for seed in (1, 1, 2)]
    assert first[0] == first[1] != first[2]
    assert split_groups(None, 0.5, seed=3, n=12)[0].tolist() == [3, 4, 5, 7, 9, 10]
    assert sorted(permutation(12, 3)[:6]) != [3, 4, 5, 7, 9, 10]


@given(columns, st.integers(2, 5), st.integers(0, 99), st.booleans())
def test_folds_without_groups_differ_by_one(classes, k, seed, stratified):
    classes = np.array(classes)
    n = len(classes)
    if k > n:
        return
    folds = kfold_indices(k, n, seed=seed, stratify=classes if stratified else None)
    assert are_complete([fold for _, fold in folds], n)
    assert all(are_complete([rest, fold], n) for rest, fold in folds)
    assert np.ptp([len(fold) for _, fold in folds]) <= 1
    if stratified:
        for value in np.unique(classes):
            assert np.ptp([(classes[fold] == value).sum() for _, fold in folds]) <= 1


@given(columns, st.integers(2, 5), st.integers(0, 99), st.booleans())
def test_folds_share_no_group(groups, k, seed, stratified):
    groups = np.array(groups)
    n = len(groups)
    if k > len(set(groups.tolist())):
        return
    classes = np.arange(n) % 2 if stratified else None
    folds = [fold for _, fold in kfold_indices(k, n, seed=seed, groups=groups, stratify=classes)]
    assert are_complete(folds, n)
    assert sum(len(set(groups[fold])) for fold in folds) == len(set(groups.tolist()))


def test_folds_of_many_groups_are_of_one_size():
    groups = np.repeat(np.arange(50), np.arange(50) % 7 + 1)
    classes = groups % 2
    for stratify in (None, classes):
        folds = [fold for _, fold in kfold_indices(5, len(groups), seed=0, groups=groups, stratify=stratify)]
        assert np.ptp([len(fold) for fold in folds]) <= 3
        assert np.ptp([classes[fold].mean() for fold in folds]) < 0.1 or stratify is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_groups(None, 0.0, seed=0, n=5), "above 0 and below 1"),
        (lambda: split_groups(None, 1, seed=0, n=5), "above 0 and below 1"),
        (lambda: split_groups(None, 0.5, seed=0, n=1), "only 1 samples"),
        (lambda: split_groups([1, 1, 1], 0.5, seed=0, n=3), "only 1 groups"),
        (lambda: split_groups([1, 2], 0.5, seed=0, n=3), "groups has 2 values for 3 samples"),
        (lambda: split_groups(None, 0.5, seed=0, n=3, stratify=[1]), "stratify has 1 values for 3 samples"),
        (lambda: kfold_indices(1, 5, seed=0), "at least 2"),
        (lambda: kfold_indices(6, 5, seed=0), "only 5 samples"),
        (lambda: kfold_indices(3, 4, seed=0, groups=[0, 0, 1, 1]), "only 2 groups: 3 parts"),
    ],
)
def test_splits_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@st.composite
def places(draw, axes):
    count = draw(st.integers(0, 12))
    starts = draw(st.lists(st.tuples(*[st.integers(-3, 30)] * axes), min_size=count, max_size=count))
    windows = [[*start, *(s + draw(st.integers(0, 9)) for s in start)] for start in starts]
    regions = draw(st.lists(st.sampled_from(["p", "q"]), min_size=count, max_size=count))
    return np.array(windows, dtype=np.int64).reshape(-1, 2 * axes), np.array(regions, dtype="U1")


def share(window, other):
    axes = len(window) // 2
    sets = [set(range(w[k], w[k + axes])) for k in range(axes) for w in (window, other)]
    return all(first & second for first, second in zip(sets[::2], sets[1::2], strict=True))


@given(st.integers(1, 3).flatmap(lambda axes: st.tuples(places(axes), places(axes))), st.integers(1, 50))
def test_overlaps_are_those_of_a_double_loop(sides, candidates):
    (windows_a, regions_a), (windows_b, regions_b) = sides
    expected = [
        [i, j]
        for i, (window, region) in enumerate(zip(windows_a, regions_a, strict=True))
        for j, (other, its) in enumerate(zip(windows_b, regions_b, strict=True))
        if region == its and share(window, other)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_CANDIDATES", candidates)
        pairs = overlapping_pairs(windows_a, regions_a, windows_b, regions_b)
    assert pairs.dtype == np.int64
    assert pairs.tolist() == expected


def test_a_giant_window_does_not_make_all_compare_with_all(monkeypatch):
    compared = []
    exact = overlap.shared_pixels
    monkeypatch.setattr(overlap, "shared_pixels", lambda a, b: compared.append(len(a)) or exact(a, b))
    starts = np.stack(np.divmod(np.arange(10_000), 100), axis=1) * 20
    windows = np.concatenate([starts, starts + 10], axis=1)
    giant = np.concatenate([windows, [[0, 0, 2000, 2000]]])
    pairs = overlapping_pairs(windows, np.zeros(10_000), giant, np.zeros(10_001))
    assert len(pairs) == 20_000
    assert sum(compared) < 150_000


class Tiles(SimpleNamespace):
    """What a split sees of an opened array."""

    def __len__(self):
        return len(self.order)


def tiles(windows, regions, order=None, **columns):
    order = np.arange(len(windows)) if order is None else order
    table = pd.DataFrame({"tile_id": [f"t{i}" for i in range(len(windows))], "region_id": regions, **columns})
    return Tiles(
        order=order,
        sample_windows=np.asarray(windows)[order],
        table=table.iloc[order].reset_index(drop=True),
        labels=np.arange(len(windows))[order] % 2,
        region_ids=pd.factorize(np.asarray(regions))[0][order],
    )


def part(array, positions):
    return Tiles(
        order=np.arange(len(positions)),
        sample_windows=array.sample_windows[positions],
        table=array.table.iloc[positions].reset_index(drop=True),
        labels=array.labels[positions],
        region_ids=array.region_ids[positions],
    )


def overlapping_tiles(order=None):
    starts = np.stack(np.divmod(np.arange(100), 10), axis=1) * 8
    windows = np.tile(np.concatenate([starts, starts + 10], axis=1), (3, 1))
    regions = np.repeat(["007", "8", "n"], 100)
    return tiles(windows, regions, order, fold=np.arange(300) % 4)


def test_a_split_by_region_does_not_leak_and_a_random_one_does():
    array = overlapping_tiles()
    first, second = (part(array, side) for side in split_rows(array, 0.6, by="region_id", seed=0))
    assert leakage(first, second) == []
    first, second = (part(array, side) for side in split_rows(array, 0.6, seed=0))
    leaks = leakage(first, second)
    assert leaks
    boxes = {
        row.tile_id: window
        for array in (first, second)
        for row, window in zip(array.table.itertuples(), array.sample_windows.tolist(), strict=True)
    }
    for leak in leaks:
        y0, x0, y1, x1 = boxes[leak.tile_a]
        assert leak.box_a == (x0, y0, x1, y1)
        assert leak.shared_pixels in (4, 20)
        assert int(leak.tile_a[1:]) // 100 == int(leak.tile_b[1:]) // 100
        assert leak.region_id in ("007", "8", "n")


@pytest.mark.parametrize(
    "options",
    [{}, {"by": "region_id"}, {"by": "source"}, {"stratify": "labels"}, {"by": "fold", "stratify": "labels"}],
)
def test_the_sides_of_a_split_do_not_depend_on_an_earlier_shuffle(options):
    plain = overlapping_tiles()
    shuffled = overlapping_tiles(permutation(300, 5))
    expected = [set(plain.table.tile_id[side]) for side in split_rows(plain, 0.7, **options)]
    assert [set(shuffled.table.tile_id[side]) for side in split_rows(shuffled, 0.7, **options)] == expected
    folds = [set(plain.table.tile_id[test]) for _, test in kfold_rows(plain, 3, **options)]
    assert [set(shuffled.table.tile_id[test]) for _, test in kfold_rows(shuffled, 3, **options)] == folds


def test_columns_that_are_not_there():
    array = overlapping_tiles()
    with pytest.raises(ValueError, match=r"by='site' is no column.*'region_id', 'fold', 'source'"):
        split_rows(array, 0.5, by="site")
    with pytest.raises(ValueError, match=r"stratify='target' is no column.*'labels'"):
        split_rows(array, 0.5, stratify="target")
    array.labels = None
    with pytest.raises(ValueError, match="no array"):
        split_rows(array, 0.5, stratify="labels")


def test_leakage_needs_windows():
    with pytest.raises(ValueError, match="the second array has no windows"):
        leakage(overlapping_tiles(), np.zeros((4, 5)))


def test_whole_images_leak_into_every_window_of_theirs():
    whole = tiles(np.zeros((1, 4), np.int64), ["007"])
    assert len(leakage(whole, overlapping_tiles())) == 100


def test_images_named_by_their_path_are_told_apart(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((9, 9), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((9, 9), np.uint8))
    rows = [(f"t{k}", f"{'ab'[k % 2]}.npy", 2 * k, 0, 2 * k + 3, 9) for k in range(4)]
    table = pd.DataFrame(rows, columns=["tile_id", "path", "xmin", "ymin", "xmax", "ymax"])
    array = open_tiles(table, tmp_path)
    assert leakage(array.select([0, 1]), array.select([3])) == []
    assert [leak[:3] for leak in leakage(array, array.select([2]))] == [("t2", "t2", "a.npy")]


def test_folds_stay_apart_when_the_array_is_shuffled_between():
    array = MultiSourceArray([np.arange(30).reshape(10, 3) + 30 * k for k in range(4)])
    tested = []
    for train, test in array.kfold(4, seed=1):
        array.shuffle(len(tested))
        assert not set(np.asarray(train)[:, 0]) & set(np.asarray(test)[:, 0])
        tested += np.asarray(test)[:, 0].tolist()
    assert sorted(tested) == list(range(0, 120, 3))


def test_folds_that_cannot_be_are_refused_at_once():
    array = MultiSourceArray([np.arange(9)])
    with pytest.raises(ValueError, match="at least 2"):
        array.kfold(1)
    with pytest.raises(ValueError, match="only 9 samples"):
        array.kfold(10)


def test_an_array_splits_by_source_with_its_labels():
    array = MultiSourceArray([np.full((n, 2), n) for n in (5, 9, 4, 7)], labels=list("abcd"))
    first, second = array.shuffle(3).split(0.6, by="source", seed=2)
    assert not set(first.labels) & set(second.labels)
    assert len(first) + len(second) == 25
    assert all(
        np.asarray(part)[i, 0] == {"a": 5, "b": 9, "c": 4, "d": 7}[part.classes[label]]
        for part in (first, second)
        for i, label in enumerate(part.labels)
    )


@pytest.mark.parametrize("values", [True, 3, [1, 2]])
@pytest.mark.parametrize("option", ["by", "stratify"])
def test_values_that_are_not_one_a_sample_are_refused(option, values):
    array = MultiSourceArray([np.zeros((4, 2))])
    with pytest.raises(ValueError, match=rf"{option} is a column of the table, .* or one value a sample; not "):
        array.split(0.5, **{option: values})
