"""Orders are pure functions of their seeds: pinned by golden files, checked by laws."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from lazytiles.indexing import orders, seeds
from lazytiles.indexing.orders import (
    balanced_weights,
    draw,
    mixing,
    permutation,
    shard_batches,
    shard_slice,
)
from lazytiles.indexing.seeds import generator, seed_of, stream

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "orders.json").read_text())


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda case: "-".join(f"{k}{case[k]}" for k in ("n", "k", "seed") if k in case)
)
def test_golden_orders(case):
    arguments = {name: value for name, value in case.items() if name != "order"}
    made = (draw if "k" in case else permutation)(**arguments)
    assert made.dtype == np.int64
    assert made.tolist() == case["order"]


@given(st.integers(0, 300), st.integers(-(2**70), 2**70), st.none() | st.integers(0, 100))
def test_an_order_is_a_permutation(n, seed, epoch):
    assert np.array_equal(np.sort(permutation(n, seed, epoch=epoch)), np.arange(n))


@given(st.lists(st.integers(0, 9), max_size=200), st.integers(0, 100), st.integers(1, 12))
def test_a_window_keeps_runs_of_groups_together(groups, seed, window):
    groups = np.array(groups, dtype=np.int64)
    order = permutation(len(groups), seed, groups=groups, window=window)
    assert np.array_equal(np.sort(order), np.arange(len(groups)))
    seen, runs = groups[order].tolist(), []
    while seen:
        run = set()
        while seen and (seen[0] in run or len(run) < window):
            run.add(seen.pop(0))
        assert not run & set().union(*runs)
        runs.append(run)
    if window >= len(set(groups.tolist())):
        assert np.array_equal(order, permutation(len(groups), seed))


def test_a_window_mixes_within_it():
    groups = np.repeat(np.arange(20), 50)
    order = permutation(1000, 3, groups=groups, window=4)
    assert [len(set(groups[order[k : k + 200]])) for k in range(0, 1000, 200)] == [4] * 5
    assert mixing(order[:200], groups).correlation < 0.3


def test_groups_are_told_apart_by_any_values():
    names = np.array(["b", "a", "c"] * 10)
    numbers = np.array([1, 0, 2] * 10)
    plain = permutation(30, 5, groups=numbers, window=1)
    assert np.array_equal(permutation(30, 5, groups=names, window=1), plain)
    assert np.array_equal(permutation(30, 5, groups=names.astype(object), window=1), plain)
    assert np.array_equal(permutation(30, 5, groups=numbers.astype(np.uint64), window=1), plain)
    assert np.array_equal(permutation(30, 5, groups=numbers * 10**12 - 7, window=1), plain)


def test_seeds_and_epochs_are_not_added():
    assert not np.array_equal(permutation(100, 42, epoch=1), permutation(100, 43, epoch=0))
    assert not np.array_equal(permutation(100, 42), permutation(100, 42, epoch=0))


@pytest.mark.parametrize("seed", [0.5, "7", None, np.float64(3)])
def test_a_seed_is_a_whole_number(seed):
    if seed is None or isinstance(seed, str):
        stream("order", seed)
        return
    with pytest.raises(TypeError, match="integer"):
        permutation(5, seed)


def test_numpy_integers_are_the_same_seeds():
    assert np.array_equal(permutation(50, np.int32(9), epoch=np.uint8(1)), permutation(50, 9, epoch=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 2}, "it needs groups"),
        ({"window": 0, "groups": [0] * 5}, "at least 1"),
        ({"window": 1, "groups": [0] * 4}, "groups for 4 samples, but 5"),
    ],
)
def test_windows_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        permutation(5, 0, **arguments)


def test_ties_are_sorted_stably(monkeypatch):
    monkeypatch.setattr(seeds, "_CHUNK", 7)
    words = np.random.default_rng(0).integers(0, 5, 100).astype(np.uint64)
    assert np.array_equal(seeds.stable_argsort(words), np.argsort(words, kind="stable"))


def test_an_order_holds_no_python_objects():
    tracemalloc.start()
    permutation(1_000_000, 0, groups=np.arange(1_000_000) // 100, window=8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 1_000_000


def test_another_process_gives_the_same():
    code = "from lazytiles.indexing.orders import permutation; print(permutation(1000, 1234)[:5].tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == permutation(1000, 1234)[:5].tolist()


def test_positions_are_uniform():
    first = np.array([permutation(8, seed) for seed in range(4000)])
    counts = np.array([np.bincount(column, minlength=8) for column in first.T])
    assert (abs(counts - 500) < 5 * np.sqrt(500)).all()


def test_draws_with_replacement_follow_the_weights():
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    counts = np.bincount(draw(4, 80_000, 0, weights=weights, replacement=True), minlength=4)
    assert counts[0] == 0
    assert (abs(counts / 10_000 - weights) < 0.1).all()
    assert (abs(np.bincount(draw(4, 80_000, 0, replacement=True)) / 20_000 - 1) < 0.05).all()


def test_draws_without_replacement_follow_the_weights():
    weights = np.array([1.0, 2.0, 5.0])
    drawn = np.array([draw(3, 3, seed, weights=weights) for seed in range(8000)])
    assert (np.sort(drawn, axis=1) == np.arange(3)).all()
    assert (abs(np.bincount(drawn[:, 0]) / 1000 - weights) < 0.2).all()
    after = drawn[drawn[:, 0] == 2, 1]
    assert abs(np.mean(after == 1) - 2 / 3) < 0.03


def test_a_logarithm_of_our_own():
    words = stream("log").random_raw(10_000)
    words[:4] = [0, 2**64 - 1, 2**63, 2**63 - 1]
    exact = -np.log(((words >> np.uint64(12)) + 0.5) / 2.0**52)
    np.testing.assert_allclose(orders._minus_log(words), exact, rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 6}, "cannot draw 6 of 5 samples without replacement"),
        ({"k": 2, "weights": [1, 1]}, r"shape \(2,\).*must be \(5,\)"),
        ({"k": 2, "weights": [1, 1, -1, 1, 1]}, "sample 2 has -1.0"),
        ({"k": 2, "weights": [1, 1, 1, np.nan, 1]}, "sample 3 has nan"),
        ({"k": 2, "weights": [1, 0, 1, 0, 1]}, "2 of 5 weights are zero: without replacement"),
        ({"k": 2, "weights": [0] * 5, "replacement": True}, "all weights are zero"),
    ],
)
def test_draws_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(5, seed=0, **arguments)


def test_nothing_can_be_drawn_from_nothing():
    assert draw(0, 0, 1).shape == (0,)
    with pytest.raises(ValueError, match="cannot draw 1 of 0 samples with replacement"):
        draw(0, 1, 1, replacement=True)
    with pytest.raises(ValueError, match="at most 4294967295"):
        draw(2**32, 1, 1, replacement=True)


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 1], ["a", "a", "a", "b"], np.array(["x", "x", "x", "y"], object), [[1, 0]] * 3 + [[0, 1]]],
)
def test_balanced_classes_are_equally_likely(labels):
    np.testing.assert_allclose(balanced_weights(labels), [1 / 3, 1 / 3, 1 / 3, 1])


@given(st.integers(0, 300), st.integers(1, 10), st.integers(1, 5))
def test_shards_unite_to_the_global_order(n, size, count):
    order = permutation(n, 0)
    batches = shard_batches(n, size, (0, count), drop_last=True)
    shards = [[order[shard_slice(i, size, (rank, count))] for i in range(batches)] for rank in range(count)]
    united = [np.concatenate(parts) for parts in zip(*shards, strict=True)]
    total = size * count
    assert [part.tolist() for part in united] == [order[i * total : (i + 1) * total].tolist() for i in range(batches)]
    assert batches == shard_batches(n, total, drop_last=True)


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0), 2, (1,), "rank 1", (0.5, 2), None])
def test_shards_that_are_none(shard):
    with pytest.raises(ValueError, match="must be \\(index, count\\)"):
        shard_batches(10, 2, shard)
    with pytest.raises(ValueError, match="at least 1"):
        shard_batches(10, 0)


def test_mixing_of_a_full_shuffle_is_what_is_expected():
    groups = np.repeat(np.arange(30), np.arange(1, 31) * 5)
    measured = [mixing(permutation(len(groups), seed), groups) for seed in range(30)]
    assert abs(np.mean([m.distinct for m in measured]) - measured[0].expected) < 0.05
    assert abs(np.mean([m.correlation for m in measured])) < 0.005


def test_mixing_of_no_shuffle():
    measured = mixing(None, np.repeat(["x", "y"], 64))
    assert (measured.distinct, round(measured.correlation, 2)) == (1.0, 0.98)
    assert str(measured) == "1.00 groups in a batch (2.00 in a full shuffle), correlation of neighbours 0.984"
    assert mixing(np.arange(0), []).distinct == mixing([], []).distinct == 0
    assert mixing(None, [5, 5, 5]).correlation == 0
    assert mixing(None, [5, 5, 6]).expected == 2


def test_generators_belong_to_their_tuple():
    first = generator(1, 2, 3).integers(0, 2**60, 4)
    assert np.array_equal(first, generator(1, 2, 3).integers(0, 2**60, 4))
    for other in (generator(1, 3, 2), generator(12, 3), generator(1, 23), generator(1, 2, 3, 0)):
        assert not np.array_equal(first, other.integers(0, 2**60, 4))


def test_fresh_seeds_differ():
    assert len({seed_of(None) for _ in range(20)}) == 20
