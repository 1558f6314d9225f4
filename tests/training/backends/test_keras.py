"""`KerasAdapter` on the backend that KERAS_BACKEND names; one backend a process."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tifffile

import lazytiles as lt
from lazytiles import KerasAdapter
from lazytiles.errors import LazyTilesError
from tests.limits import within_limits
from tests.sources import Planned

ROOT = Path(__file__).resolve().parents[3]
BACKEND = keras.backend.backend()
N, B = 23, 4
IDS = np.arange(N, dtype="float32").reshape(N, 1)
Y = np.arange(N, dtype="float32")
gc.freeze()


@pytest.fixture(autouse=True)
def few_functions_to_collect() -> Iterator[None]:
    """Collect each test's models with it: hundreds at once hold up a later one, on TensorFlow for half a minute."""
    yield
    gc.collect()


class Watched(keras.Sequential):
    """Writes down the samples of every step; `(data)` or, on JAX, `(state, data)` come in."""

    seen: list[list[int]]

    def train_step(self, *arguments: Any) -> Any:
        self.note(arguments[-1])
        return super().train_step(*arguments)

    def test_step(self, *arguments: Any) -> Any:
        self.note(arguments[-1])
        return super().test_step(*arguments)

    def note(self, data: Any) -> None:
        self.seen.append(keras.ops.convert_to_numpy(data[0])[:, 0].astype(int).tolist())


def watched(*, built: bool = True) -> tuple[keras.Model, list[list[int]]]:
    layers = [keras.layers.Dense(1, kernel_initializer="zeros")]
    model = Watched([keras.Input((1,)), *layers] if built else layers)
    seen: list[list[int]] = []
    object.__setattr__(model, "seen", seen)
    model.compile(keras.optimizers.SGD(1e-4), "mse", run_eagerly=True)
    return model, seen


def plain(optimizer: Any = None) -> keras.Model:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(optimizer or keras.optimizers.SGD(1e-4), "mse", weighted_metrics=["mae"])
    return model


def planned(adapter: KerasAdapter, epochs: range) -> list[list[int]]:
    return [adapter.sample_ids(e, k).tolist() for e in epochs for k in range(len(adapter))]


def ids_of(batch: Any) -> list[int]:
    return np.asarray(batch[0])[:, 0].astype(int).tolist()


def reading() -> int:
    return sum(t.name == "lazytiles-ahead" for t in threading.enumerate())


def settle() -> None:
    end = time.monotonic() + 2
    while reading() and time.monotonic() < end:
        time.sleep(0.002)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("kind", [np.asarray, Planned])
def test_fit_consumes_exactly_the_planned_samples(prefetch, threads, kind):
    model, seen = watched()
    adapter = KerasAdapter(kind(IDS), Y, batch_size=B, shuffle=True, seed=3, prefetch=prefetch, threads=threads)
    model.fit(adapter, epochs=3, verbose=0, callbacks=[adapter.callback()])
    assert seen == planned(adapter, range(3))
    assert sorted(np.concatenate(seen[:6])) == list(range(N))
    assert seen[:6] != seen[6:12]


def by_epoch(seen: list[list[int]], epochs: range, adapter: KerasAdapter) -> bool:
    """Whether epoch after epoch has the planned batches, in whatever order."""
    n = len(adapter)
    assert len(seen) == n * len(epochs)
    return all(
        sorted(seen[k * n : k * n + n]) == sorted(planned(adapter, range(e, e + 1))) for k, e in enumerate(epochs)
    )


@pytest.mark.parametrize("callback", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("built", [False, True])
def test_default_fit_serves_each_batch_once(shuffle, built, callback):
    orders = []
    for globally in (1, 2):
        random.seed(globally)
        model, seen = watched(built=built)
        source = Planned(IDS)
        adapter = KerasAdapter(source, Y, batch_size=B, shuffle=shuffle, seed=3)
        model.fit(adapter, epochs=2, verbose=0, callbacks=[adapter.callback()] * callback)
        orders.append(seen)
        assert source.read in (12, 13)
        assert by_epoch(seen, range(2), adapter)
        # Where the model is built in the midst of the first epoch, that batch has its place by chance.
        if shuffle and (callback or BACKEND == "tensorflow"):
            assert seen == planned(adapter, range(2))
    if shuffle:
        assert orders[0][6:] == orders[1][6:]
    assert seen[:6] != seen[6:]


@pytest.mark.parametrize("asked", [[0, 1, 2, 3, 4, 5], [3, 1, 0, 2, 5, 4], [5, 4, 3, 2, 1, 0]])
def test_an_index_of_a_shuffled_adapter_means_the_next_planned_batch_and_stays_with_it(asked):
    adapter = KerasAdapter(Planned(IDS), Y, batch_size=B, shuffle=True, seed=1)
    for epoch in range(3):
        adapter.on_epoch_begin()
        served = [ids_of(adapter[k]) for k in asked]
        assert [ids_of(adapter[k]) for k in asked] == served
        adapter.on_epoch_end()
        assert served == planned(adapter, range(epoch, epoch + 1))


@pytest.mark.parametrize("asked", [[0, 1, 2, 3, 4, 5], [3, 1, 0, 2, 5, 4], [5, 4, 3, 2, 1, 0]])
@pytest.mark.parametrize("budget", [0, 2**20])
def test_an_index_of_an_unshuffled_adapter_means_its_rows(asked, budget):
    source = Planned(IDS)
    adapter = KerasAdapter(source, Y, batch_size=B, readahead_bytes=budget)
    for epoch in range(3):
        adapter.on_epoch_begin()
        for k in asked:
            assert ids_of(adapter[k]) == [*range(N)][k * B : k * B + B]
        adapter.on_epoch_end()
        assert adapter.epoch == epoch + 1
    assert source.read == 18 or budget == 0


def test_a_class_that_inherits_is_served_as_ours_is():
    class Counted(KerasAdapter):
        asked = 0

        def __getitem__(self, index: int) -> Any:
            self.asked += 1
            return super().__getitem__(index)

        def on_epoch_begin(self) -> None:
            super().on_epoch_begin()

    class Silent(KerasAdapter):
        def on_epoch_end(self) -> None:
            pass

    for kind, seed in [(Counted, 0), (Counted, 1), (Silent, 0)]:
        random.seed(seed)
        model, seen = watched()
        adapter = kind(Planned(IDS[:12]), Y[:12], batch_size=B, shuffle=True, seed=3)
        model.fit(adapter, epochs=3, verbose=0)
        assert by_epoch(seen, range(3), adapter)
        assert seen[:3] != seen[3:6]


def test_decode_counts_of_a_shuffled_fit_equal_those_of_a_plain_one(tiles):
    counts = []
    for shuffle in (False, True):
        lt.clear_cache()
        before = lt.counters()["segments_decoded"]
        adapter = KerasAdapter(tiles, batch_size=3, readahead_bytes=3 * 3 * 24 * 32 * 3)
        with within_limits(readers=0):  # while reader processes start, threads decode what these decode again
            image_model(adapter).fit(adapter, epochs=2, verbose=0, shuffle=shuffle)
        counts.append(lt.counters()["segments_decoded"] - before)
    assert abs(counts[1] - counts[0]) <= 0.1 * counts[0]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("peeked", [False, True])
def test_what_a_trainer_looks_at_first_is_decoded_with_the_rest(tiles, shuffle, built, peeked):
    with within_limits(cache_bytes=0):
        adapter = KerasAdapter(tiles, batch_size=3, shuffle=shuffle)
        model = image_model(adapter)
        if built:
            model.fit(adapter, verbose=0)
        whole = tiles.plan(np.arange(len(tiles))).segments
        before = lt.counters()["segments_decoded"]
        if peeked:
            assert len(adapter[0][1]) == 3
        model.fit(adapter, verbose=0)
        once = lt.counters()["segments_decoded"] - before
        # What the user looks at is read by itself; JAX and torch, too, ask for a batch before the others.
        first = max(tiles.plan(adapter.sample_ids(int(built), k)).segments for k in range(len(adapter)))
        assert once <= (whole if BACKEND == "tensorflow" and not peeked else whole + first)


def test_initial_epoch_and_two_fits_in_a_row():
    model, seen = watched()
    adapter = KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=3)
    model.fit(adapter, epochs=4, initial_epoch=2, verbose=0, callbacks=[adapter.callback()])
    assert seen == planned(adapter, range(2, 4))
    seen.clear()
    model.fit(adapter, epochs=1, verbose=0, callbacks=[adapter.callback()])
    model.fit(adapter, epochs=1, verbose=0)
    assert seen == planned(adapter, range(2))


def test_a_crash_with_backup_and_restore_repeats_the_epoch(tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise RuntimeError("power cut")

    def callbacks(adapter: KerasAdapter) -> list[keras.callbacks.Callback]:
        return [keras.callbacks.BackupAndRestore(tmp_path / "backup"), adapter.callback()]

    model, seen = watched()
    adapter = KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=3)
    with pytest.raises(RuntimeError, match="power cut"):
        model.fit(adapter, epochs=3, verbose=0, callbacks=[*callbacks(adapter), Crash()])
    model, more = watched()
    adapter = KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=3)
    model.fit(adapter, epochs=3, verbose=0, callbacks=callbacks(adapter))
    assert seen + more == planned(adapter, range(3))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("killed_at", [3, 6, 8])
def test_a_killed_fit_goes_on_with_the_very_next_batch(tmp_path, shuffle, killed_at):
    class Kill(keras.callbacks.Callback):
        count = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.count += 1
            if self.count == killed_at:
                raise RuntimeError("killed")

    def fit(model: keras.Model, more: tuple[Any, ...] = ()) -> None:
        adapter = KerasAdapter(IDS / N, Y, batch_size=B, shuffle=shuffle, seed=3)
        resume = adapter.resume_callback(tmp_path / "resume", save_freq=1)
        model.fit(adapter, epochs=3, verbose=0, callbacks=[resume, *more], shuffle=shuffle)

    whole = plain(keras.optimizers.Adam(0.1))
    fit(whole)
    with pytest.raises(RuntimeError, match="killed"):
        fit(plain(keras.optimizers.Adam(0.1)), (Kill(),))
    assert (tmp_path / "resume" / "state.json").exists()
    second = plain(keras.optimizers.Adam(0.1))
    fit(second)
    for one, other in zip(whole.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert not (tmp_path / "resume").exists()


def test_two_adapters_over_one_array_at_once():
    source = Planned(IDS)
    one = KerasAdapter(source, Y, batch_size=B, shuffle=True, seed=1)
    two = KerasAdapter(source, Y, batch_size=B, shuffle=True, seed=2)
    for adapter in (one, two):
        adapter.on_epoch_begin()
    for k in range(len(one)):
        for adapter in (one, two):
            assert adapter[k][0][:, 0].astype(int).tolist() == adapter.sample_ids(0, k).tolist()
    for adapter in (one, two):
        adapter.on_epoch_end()


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"), [(4, False, [4] * 5 + [3]), (4, True, [4] * 5), (50, False, [N])]
)
def test_partial_and_single_batches(batch_size, drop_last, sizes):
    model, seen = watched()
    adapter = KerasAdapter(IDS, Y, batch_size=batch_size, drop_last=drop_last)
    model.fit(adapter, epochs=2, verbose=0, shuffle=False)
    assert [len(ids) for ids in seen] == sizes * 2


@pytest.mark.parametrize("built", [False, True])
def test_a_single_batch_is_one_epoch(built):
    model, seen = watched(built=built)
    adapter = KerasAdapter(IDS, Y, batch_size=N, shuffle=True, seed=1)
    # Without the callback, the epoch of one batch in which JAX and torch build a model is one that was passed over.
    model.fit(adapter, epochs=3, verbose=0, callbacks=[adapter.callback()] * (BACKEND != "tensorflow"))
    assert seen == planned(adapter, range(3))
    assert adapter.epoch == 3


def test_no_batch_at_all_is_refused():
    with pytest.raises(ValueError, match="0 samples give no batch"):
        KerasAdapter(IDS[:0], Y[:0])
    with pytest.raises(ValueError, match=r"23 samples give no batch: batch_size=32.*drop_last=True"):
        KerasAdapter(IDS, Y, drop_last=True)


def test_evaluate_and_predict_equal_the_dense_arrays():
    model = plain()
    model.set_weights([np.array([[0.7]]), np.array([0.3])])
    adapter = KerasAdapter(Planned(IDS), Y, batch_size=B, shuffle=True, seed=1)
    found = model.evaluate(adapter, verbose=0, return_dict=True)
    answer = 0.7 * Y + 0.3
    assert found["loss"] == pytest.approx(np.mean((answer - Y) ** 2), rel=1e-5)
    assert found["mae"] == pytest.approx(np.mean(abs(answer - Y)), rel=1e-5)
    np.testing.assert_allclose(model.predict(adapter.sequential(), verbose=0)[:, 0], answer, rtol=1e-5)
    np.testing.assert_allclose(model.predict(KerasAdapter(IDS, batch_size=7), verbose=0)[:, 0], answer, rtol=1e-5)


def test_validation_data_and_frequency():
    model, seen = watched()
    adapter = KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=1)
    held = KerasAdapter(IDS + 100, Y, batch_size=12)
    history = model.fit(adapter, epochs=4, verbose=0, validation_data=held, validation_freq=2)
    assert len(history.history["val_loss"]) == 2
    assert by_epoch([s for s in seen if s[0] < 100], range(4), adapter)
    assert [s for s in seen if s[0] >= 100] == [[*range(100, 112)], [*range(112, 123)]] * 2


@pytest.mark.parametrize("shuffle", [False, True])
def test_virtual_epochs_continue_the_passes(shuffle):
    model, seen = watched()
    adapter = KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=1, steps_per_epoch=4)
    assert len(adapter) == 4
    model.fit(adapter, epochs=3, verbose=0, shuffle=shuffle, callbacks=[adapter.callback()])
    assert seen == planned(KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=1), range(2))
    assert seen == planned(adapter, range(3))


@pytest.mark.parametrize("callback", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_keras_own_steps_per_epoch_continue_one_pass(callback, shuffle):
    model, seen = watched()
    adapter = KerasAdapter(IDS, Y, batch_size=B, seed=1)
    model.fit(
        adapter, epochs=2, steps_per_epoch=3, verbose=0, shuffle=shuffle, callbacks=[adapter.callback()] * callback
    )
    assert len(seen) == 6
    assert (sorted(seen) if shuffle else seen) == planned(adapter, range(1))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras runs one step at a time on torch")
def test_several_steps_per_execution():
    source = Planned(IDS)
    adapter = KerasAdapter(source, Y, batch_size=B, shuffle=True)
    model = plain()
    model.compile(keras.optimizers.SGD(1e-4), "mse", steps_per_execution=3)
    model.fit(adapter, epochs=2, verbose=0, callbacks=[adapter.callback()])
    assert source.read == 12
    assert adapter.epoch == 2


def head(inputs: Any, outputs: Any, loss: Any) -> keras.Model:
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(1e-4), loss)
    return model


def test_forms_of_inputs_targets_and_weights():
    a, b = keras.Input((1,), name="a"), keras.Input((1,), name="b")
    total = keras.layers.Dense(1, name="p")(keras.layers.Concatenate()([a, b]))
    other = keras.layers.Dense(1, name="q")(a)
    single = head([a, b], total, "mse")
    single.fit(KerasAdapter((IDS, IDS), Y, batch_size=B), verbose=0)
    single.fit(KerasAdapter([IDS, Planned(IDS)], Y, np.ones(N), batch_size=B), verbose=0)
    single.fit(KerasAdapter({"a": IDS, "b": IDS}, Y, batch_size=B), verbose=0)
    assert single.predict(KerasAdapter((IDS, IDS), batch_size=B), verbose=0).shape == (N, 1)
    double = head({"a": a, "b": b}, {"p": total, "q": other}, {"p": "mse", "q": "mae"})
    double.fit(KerasAdapter({"a": IDS, "b": IDS}, {"p": Y, "q": Y}, batch_size=B), verbose=0)


def test_class_weights_equal_sample_weights():
    losses = []
    classes = np.arange(N) % 3
    weights = {0: 1.0, 1: 2.5, 2: 0.5}
    for manual in (False, True):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3, activation="softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        sample = np.array([weights[c] for c in classes], "float32") if manual else None
        adapter = KerasAdapter(IDS / N, classes, sample, batch_size=B)
        losses.append(model.fit(adapter, epochs=2, verbose=0, class_weight=None if manual else weights).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "int64", "bool", ">f4", ">i2"])
def test_dtypes_arrive_native_and_unchanged(dtype, tmp_path):
    dense = (np.arange(N * 12).reshape(N, 2, 2, 3) % 2).astype(dtype)
    np.save(tmp_path / "x.npy", dense)
    dense.flags.writeable = False
    mapped = [] if BACKEND == "tensorflow" else [np.load(tmp_path / "x.npy", mmap_mode="r")]
    for source in (dense, *mapped):  # TensorFlow keeps every data set, and what that has open, for ever
        adapter = KerasAdapter(source, Y, batch_size=B)
        x, _ = adapter[1]
        np.testing.assert_array_equal(x, dense[B : 2 * B])
        assert x.dtype == np.dtype(dtype).newbyteorder("=")
        assert x.flags.c_contiguous
        i = keras.Input((2, 2, 3))
        model = head(i, keras.layers.Dense(1)(keras.layers.Flatten()(i)), "mse")
        model.fit(adapter, verbose=0)


def test_wide_images_text_and_none_are_refused():
    with pytest.raises(TypeError, match=r"float64.*normalize"):
        KerasAdapter(np.zeros((4, 2, 2, 3)), np.zeros(4))
    assert KerasAdapter(np.zeros((4, 2)), np.zeros(4))[0][0].dtype == np.float32
    with pytest.raises(TypeError, match=r"y is of <U1.*map it to numbers"):
        KerasAdapter(IDS[:2], np.array(["a", "b"]))
    with pytest.raises(TypeError, match=r"x\[1\] is None"):
        KerasAdapter((IDS, None), Y)
    with pytest.raises(ValueError, match="needs targets"):
        KerasAdapter(IDS, None, Y)
    with pytest.raises(ValueError, match="one length"):
        KerasAdapter(IDS, Y[1:])


def test_dtype_drift_raises_with_the_tiles():
    adapter = KerasAdapter(
        IDS, Y, batch_size=B, transform=lambda b, rng: (b[0].astype("f2") if b[1][0] > 7 else b[0], b[1])
    )
    with pytest.raises(Exception, match=r"batch 2 of epoch 0 \(sample 8, .*float16 where the first batch had float32"):
        plain().fit(adapter, verbose=0, shuffle=False)


@pytest.mark.parametrize("bad", [0, 9, N - 1])
@pytest.mark.parametrize("stage", ["read", "transform", "validation"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_errors_are_raised_with_the_tile_and_do_no_harm(bad, stage, shuffle):
    def transform(batch: Any, rng: Any) -> Any:
        if stage == "transform" and fails and bad in batch[0][:, 0]:
            raise ValueError("odd")
        return batch

    fails = True
    source = Planned(IDS, bad=() if stage == "transform" else (bad,))
    # Of an unshuffled adapter, a fit that shuffles may ask for the bad batch first, which JAX does not forgive.
    adapter = KerasAdapter(source, Y, batch_size=B, transform=transform, shuffle=shuffle)
    model = plain()
    model.fit(IDS, Y, verbose=0)
    train = KerasAdapter(IDS, Y, batch_size=B) if stage == "validation" else adapter
    before = time.monotonic()
    named = rf"tile t{bad:03}" if stage != "transform" else r"odd.*transform of batch \d of epoch 0: tile t\d"
    with pytest.raises(Exception, match=named):
        model.fit(train, verbose=0, shuffle=shuffle, validation_data=adapter if stage == "validation" else None)
    assert time.monotonic() - before < 30  # promptly: not after a time-out
    assert all(np.isfinite(w).all() for w in model.get_weights())
    source.bad, fails = (), False
    model.fit(adapter, verbose=0)
    assert adapter.epoch == 1


def test_what_a_fit_leaves_behind():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 2:
                self.model.stop_training = True

    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise RuntimeError("of a callback")

    adapter = KerasAdapter(Planned(IDS), Y, batch_size=B, shuffle=True)
    model = plain()
    model.fit(adapter, epochs=2, verbose=0)
    model.fit(adapter, epochs=2, verbose=0, callbacks=[Stop(), adapter.callback()])
    with pytest.raises(RuntimeError, match="of a callback"):
        model.fit(adapter, verbose=0, callbacks=[Fail()])
    settle()
    assert reading() == 0
    assert len(os.listdir("/proc/self/fd")) < 200


def test_fifty_evaluates_leave_nothing():
    adapter = KerasAdapter(Planned(IDS), Y, batch_size=B)
    model = plain()
    model.evaluate(adapter, verbose=0)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        model.evaluate(adapter, verbose=0)
    settle()
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files + 2


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("kind", [np.asarray, Planned])
def test_a_stalled_consumer_bounds_what_is_alive(prefetch, kind):
    adapter = KerasAdapter(kind(IDS), Y, batch_size=1, prefetch=prefetch)
    gc.collect()  # what earlier tests left in cycles is not to go in the middle of this one
    before = lt.counters()["batches_alive"]
    adapter.on_epoch_begin()
    held = adapter[0]
    time.sleep(0.2)
    assert lt.counters()["batches_alive"] - before <= prefetch + 1
    del held
    adapter.on_epoch_end()
    adapter.close()


def test_what_a_consumer_drops_is_not_kept():
    adapter = KerasAdapter(IDS, Y, batch_size=1, prefetch=0)
    gc.collect()  # what earlier tests left in cycles is not to go in the middle of this one
    before = lt.counters()["batches_alive"]
    adapter.on_epoch_begin()
    for k in range(4):
        batch = adapter[k]
    assert lt.counters()["batches_alive"] - before == 1
    del batch
    assert lt.counters()["batches_alive"] == before
    adapter.on_epoch_end()


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow reads ahead by itself")
def test_loading_and_stepping_overlap():
    met = []

    class Step(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            end = time.monotonic() + 20
            while source.read < min(batch + 2, len(adapter)) and time.monotonic() < end:
                time.sleep(0.002)
            met.append(source.read >= min(batch + 2, len(adapter)))

    source = Planned(np.tile(IDS, (8, 1)), pause_s=0.02)
    adapter = KerasAdapter(source, np.tile(Y, 8), batch_size=B, shuffle=True)
    model = plain()
    model.fit(IDS, Y, batch_size=B, verbose=0)
    model.fit(adapter, verbose=0, callbacks=[Step()])
    assert met == [True] * len(adapter)  # while a step went on, its next batch was read


@pytest.mark.parametrize("change", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_in_mid_use(change):
    adapter = KerasAdapter(Planned(IDS), Y, batch_size=B, shuffle=True)
    adapter.on_epoch_begin()
    adapter[0]
    twin = change(adapter)
    np.testing.assert_array_equal(twin[1][0], adapter[1][0])
    model, seen = watched()
    model.fit(twin, verbose=0)
    assert by_epoch(seen, range(1), twin)
    adapter[4]
    for one, other in zip(change(adapter), adapter, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    adapter.on_epoch_end()
    adapter.close()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shards_unite_to_the_global_batches(ranks):
    single = KerasAdapter(IDS, Y, batch_size=2 * ranks, shuffle=True, seed=5, drop_last=ranks > 1)
    parts = [KerasAdapter(IDS, Y, batch_size=2, shuffle=True, seed=5, shard=(r, ranks)) for r in range(ranks)]
    for k in range(len(single)):
        together = np.concatenate([part[k][0] for part in parts])
        np.testing.assert_array_equal(together, single[k][0])


def test_the_launcher_is_asked_for_the_shard(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    adapter = KerasAdapter(IDS, Y, batch_size=B, shard="auto")
    assert adapter.sample_ids(0, 0).tolist() == [4, 5, 6, 7]


def test_classes_and_boxes_of_a_table_train(tmp_path: Path) -> None:
    names = ["x", "y", "w", "h"]
    table = pd.DataFrame({"tile_id": range(8), "region_id": "r", "kind": ["ox", "cat"] * 4, "xmin": 0, "ymin": 0})
    table = table.assign(xmax=12, ymax=10, x=2.0, y=3.0, w=4.0, h=5.0)
    tifffile.imwrite(tmp_path / "r.tif", np.arange(600, dtype=np.uint16).reshape(20, 30))
    tiles = lt.open_tiles(table, tmp_path, target="kind", classes=["cat", "dog", "ox"])
    adapter = KerasAdapter(tiles, batch_size=4, shuffle=True, num_classes=True, normalize=True)
    model = keras.Sequential([keras.Input(tiles.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "categorical_crossentropy")
    model.fit(adapter, verbose=0)
    np.testing.assert_array_equal(KerasAdapter(tiles, num_classes=True)[0][1], np.eye(3)[[2, 0] * 4])
    boxed = lt.open_tiles(table, tmp_path, target=names, scale_boxes=names, box_format="xywh")
    flipped = KerasAdapter(boxed, transform=lt.augment.Augment(flip=(0.0, 1.0)))[0]
    np.testing.assert_array_equal(flipped[1], [[12 - 2 - 4, 3, 4, 5]] * 8)
    np.testing.assert_array_equal(flipped[0], tiles[:, :, ::-1])


def test_normalising_and_one_hot():
    images = np.arange(N * 12, dtype="uint8").reshape(N, 2, 2, 3)
    classes = np.arange(N) % 4
    x, y = KerasAdapter(images, classes, batch_size=B, normalize=True, num_classes=4)[1]
    np.testing.assert_allclose(x, images[4:8] / np.float32(255))
    np.testing.assert_array_equal(y, np.eye(4, dtype="float32")[classes[4:8]])
    mean, std = [1, 2, 3], [2, 4, 8]
    for pair in ((mean, std), {"mean": mean, "std": std}):
        x, _ = KerasAdapter(images, classes, batch_size=B, normalize=pair)[0]
        np.testing.assert_allclose(x, (images[:4] - np.float32(mean)) / np.float32(std), rtol=1e-6)
        assert x.dtype == np.float32
    with pytest.raises(LazyTilesError, match=r"label 3 is not a class number in 0..2"):
        KerasAdapter(images, classes, num_classes=3)[0]
    masks = (images[..., :1] % 2).astype("uint8")
    _, y = KerasAdapter(images, masks, batch_size=B, num_classes=2)[0]
    assert y.shape == (4, 2, 2, 2)


def test_augmentation_repeats_exactly():
    def noise(batch: Any, rng: np.random.Generator) -> Any:
        return batch[0] + rng.normal(size=batch[0].shape).astype("f4"), batch[1]

    histories = [
        plain()
        .fit(
            KerasAdapter(IDS, Y, batch_size=B, transform=noise, threads=t, prefetch=p),
            epochs=2,
            verbose=0,
            shuffle=False,
        )
        .history
        for t, p in [(1, 0), (4, 8)]
    ]
    assert histories[0] == histories[1]


def test_positions_can_be_saved_and_loaded():
    adapter = KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=1)
    adapter.on_epoch_begin()
    for k in range(2):
        adapter[k]
    state = adapter.state_dict()
    assert (state["epoch"], state["batch"]) == (0, 2)
    twin = KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=1)
    twin.load_state_dict(state)
    model, seen = watched()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(twin, epochs=2, verbose=0)
    assert sorted(seen[:4]) == sorted(planned(adapter, range(1))[2:])
    assert seen[4:] == planned(adapter, range(1, 2))
    adapter.on_epoch_end()
    with pytest.raises(LazyTilesError, match="something else"):
        KerasAdapter(IDS, Y, batch_size=B, seed=1).load_state_dict(state)


CONTROL_C = """
import _thread, os, threading, time, sys
import numpy as np, keras
sys.path.insert(0, "tests/training/backends")
from test_keras import Planned, plain
from lazytiles import KerasAdapter
model = plain()
model.fit(np.zeros((8, 1)), np.zeros(8), verbose=0)
source = Planned(np.zeros((40000, 1)), pause_s=0.02)
adapter = KerasAdapter(source, np.zeros(40000), batch_size=4)
def press():
    global pressed
    pressed = source.read
    _thread.interrupt_main()
threading.Timer(1, press).start()
try:
    model.fit(adapter, verbose=0)
except KeyboardInterrupt:
    print(pressed, source.read, flush=True)
# TensorFlow waits at exit for its own reader of any PyDataset, ours or a hand-written one, and may wait for ever.
os._exit(0)
"""


def test_control_c_returns_at_once():
    child = subprocess.run(
        [sys.executable, "-c", CONTROL_C], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    pressed, read = map(int, child.stdout.split()[-2:])
    assert read <= pressed + 100  # batches, of 10,000


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is JAX's")
def test_data_parallel_over_virtual_devices():
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import sys; sys.path.insert(0, "tests/training/backends")
import keras, numpy as np
from test_keras import plain, IDS, Y
from lazytiles import KerasAdapter
assert len(keras.distribution.list_devices()) == 4
single = plain(); single.fit(KerasAdapter(IDS, Y, batch_size=4, drop_last=True), epochs=2, verbose=0, shuffle=False)
keras.distribution.set_distribution(keras.distribution.DataParallel())
spread = plain()
spread.fit(KerasAdapter(IDS, Y, batch_size=4, drop_last=True, shard="auto"), epochs=2, verbose=0, shuffle=False)
for a, b in zip(single.get_weights(), spread.get_weights()):
    np.testing.assert_allclose(a, b, rtol=1e-5)
"""
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute is TensorFlow's")
def test_mirrored_strategy_over_logical_devices():
    code = """
import sys; sys.path.insert(0, "tests/training/backends")
import tensorflow as tf, numpy as np
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from test_keras import plain, Planned, IDS, Y
from lazytiles import KerasAdapter
single = plain(); single.fit(KerasAdapter(IDS, Y, batch_size=4, drop_last=True), epochs=2, verbose=0, shuffle=False)
source = Planned(IDS)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    spread = plain()
adapter = KerasAdapter(source, Y, batch_size=4, drop_last=True)
spread.fit(adapter, epochs=2, verbose=0, shuffle=False, callbacks=[adapter.callback()])
assert adapter.epoch == 2
for a, b in zip(single.get_weights(), spread.get_weights()):
    np.testing.assert_allclose(a, b, rtol=1e-4)
"""
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr


@pytest.mark.skipif(BACKEND != "tensorflow", reason="needs TensorFlow")
def test_as_a_tf_dataset():
    adapter = KerasAdapter(Planned(IDS), Y, batch_size=B, shuffle=True, seed=2)
    dataset = adapter.to_tf_dataset()
    assert dataset.cardinality() == len(adapter)
    assert not dataset.options().autotune.enabled
    found = [x.numpy()[:, 0].astype(int).tolist() for _ in range(2) for x, _ in dataset]
    assert found == planned(adapter, range(2))


def rest_of(epochs: int, seen: list[list[int]]) -> None:
    """Each trained epoch has every sample once, in batches whose sizes may have changed places."""
    samples = np.concatenate(seen)
    assert len(samples) == epochs * N
    for k in range(epochs):
        assert sorted(samples[k * N : k * N + N]) == list(range(N))


class Nested(keras.callbacks.Callback):
    """Does something after every second batch of training."""

    def __init__(self, work: Any, every: int = 2) -> None:
        super().__init__()
        self.work, self.every, self.found = work, every, []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch % self.every == 1:
            self.found.append(self.work())


@pytest.mark.parametrize("callback", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", ["predict", "evaluate"])
def test_line_1_predicting_in_the_midst_of_fit_takes_nothing_away(kind, shuffle, callback):
    model, seen = watched()
    other = plain()
    other.set_weights([np.array([[1.0]]), np.array([0.0])])
    adapter = KerasAdapter(Planned(IDS), Y, batch_size=B, shuffle=shuffle, seed=3)
    # Several evaluations of a shuffled adapter in one epoch need its callback: see docs/do/training.md.
    nested = Nested(lambda: getattr(other, kind)(adapter, verbose=0), every=2 if callback or not shuffle else 6)
    model.fit(adapter, epochs=3, verbose=0, callbacks=[adapter.callback()] * callback + [nested])
    rest_of(3, seen)
    for found in nested.found:
        if kind == "predict" and not shuffle:
            np.testing.assert_array_equal(found[:, 0], Y)
        elif kind == "predict":
            assert sorted(found[:, 0]) == list(range(N))
        else:
            assert found[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("callback", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_line_2_a_look_in_the_midst_of_fit_is_of_the_same_batch_and_stops_nothing(shuffle, callback):
    model, seen = watched()
    source = Planned(IDS)
    adapter = KerasAdapter(source, Y, batch_size=B, shuffle=shuffle, seed=3)
    nested = Nested(lambda: (adapter.epoch, ids_of(adapter[0])), every=2)
    model.fit(adapter, epochs=3, verbose=0, callbacks=[adapter.callback()] * callback + [nested])
    rest_of(3, seen)
    for epoch, ids in nested.found:
        assert ids == [0, 1, 2, 3] if not shuffle else ids in planned(adapter, range(max(epoch - 1, 0), epoch + 1))
    assert source.read <= 3 * 6 + 2 * len(nested.found)


def test_line_3_copies_of_callbacks_steer_the_same_adapter_and_copies_of_adapters_share_arrays():
    images = np.zeros((N, 2, 2, 3), "uint8")
    big = KerasAdapter(images, Y, batch_size=B)
    assert copy.deepcopy(big)._feed.tandem.sources[0] is images
    adapter = KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=3)
    callback = adapter.callback()
    for _ in range(3):
        model, seen = watched()
        twin = copy.deepcopy([callback])
        assert twin[0] is not callback
        assert twin[0].adapter is adapter
        model.fit(adapter, epochs=2, verbose=0, callbacks=twin)
        assert seen == planned(adapter, range(2))


def test_line_4_own_loops_and_own_hooks_get_another_order_every_epoch():
    adapter = KerasAdapter(IDS, Y, batch_size=B, shuffle=True, seed=3)
    seen = []
    for _ in range(3):
        seen += [ids_of(adapter[k]) for k in range(len(adapter))]
        adapter.on_epoch_end()
    assert seen == planned(adapter, range(3))
    assert [ids_of(batch) for epoch in adapter.epochs(2) for batch in epoch] == planned(adapter, range(3, 5))
    assert adapter.epoch == 5
    for few in (1, 2):
        small = KerasAdapter(IDS, Y, batch_size=-(-N // few), shuffle=True, seed=3)
        seen = []
        for _ in range(3):
            seen += [ids_of(batch) for batch in small]
            small.on_epoch_end()
        assert seen == planned(small, range(3))


def test_epochs_of_an_own_loop_stay_what_they_are_whoever_looks():
    adapter = KerasAdapter(Planned(IDS), Y, batch_size=B, shuffle=True, seed=3)
    model = plain()
    seen = []
    for epoch in adapter.epochs(2):
        for batch in epoch:
            seen.append(ids_of(batch))
            model.evaluate(adapter, verbose=0)
            model.predict(adapter, verbose=0)
    assert sorted(seen) == sorted(planned(adapter, range(2)))
    for epoch in adapter.epochs(2):
        next(epoch)  # and is left
    assert adapter.epoch == 4
    adapter.set_epoch(1)
    model, seen = watched()
    model.fit(adapter, epochs=2, verbose=0)
    assert by_epoch(seen, range(1, 3), adapter)


def test_line_5_workers_cannot_be_set():
    adapter = KerasAdapter(IDS, Y)
    for name, value in (("workers", 4), ("use_multiprocessing", True)):
        with pytest.raises(AttributeError, match=rf"{name} = {value} cannot be set.*threads=.*processes="):
            setattr(adapter, name, value)
    assert (adapter.workers, adapter.use_multiprocessing) == (1, False)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="needs TensorFlow")
def test_line_6_a_tf_dataset_follows_the_epoch_of_its_adapter(tmp_path):
    adapter = KerasAdapter(Planned(IDS), Y, batch_size=B, shuffle=True, seed=2)
    dataset = adapter.to_tf_dataset()
    assert len([*dataset.take(1)]) == 1
    assert adapter.epoch == 0
    model, seen = watched()
    model.fit(dataset, shuffle=False, epochs=2, verbose=0)
    assert seen == planned(adapter, range(2))
    seen.clear()
    model.fit(dataset, shuffle=False, epochs=5, initial_epoch=3, verbose=0, callbacks=[adapter.callback()])
    assert seen == planned(adapter, range(3, 5))
    adapter.set_epoch(1)
    assert [ids_of(batch) for _ in range(2) for batch in dataset] == planned(adapter, range(1, 3))
    state = {**adapter.state_dict(epoch=1, step=4)}
    adapter.load_state_dict(state)
    assert [ids_of(batch) for _ in range(2) for batch in dataset] == planned(adapter, range(1, 3))[4:]
    seen.clear()
    with pytest.raises(RuntimeError, match="power cut"):
        model.fit(
            dataset,
            shuffle=False,
            epochs=3,
            verbose=0,
            callbacks=[adapter.resume_callback(tmp_path, save_freq=1), Cut(8)],
        )
    first = seen[:8]
    seen.clear()
    model.fit(dataset, shuffle=False, epochs=3, verbose=0, callbacks=[adapter.resume_callback(tmp_path, save_freq=1)])
    assert first + seen == planned(adapter, range(3))


@pytest.mark.parametrize(
    "harm", ["cut", "foreign", "flipped", "swapped", "missing", "outside", "folder", "model", "data"]
)
def test_a_damaged_or_foreign_backup_is_refused(tmp_path, harm):
    """Whatever lies in the folder: the very next batch, or an error that says what to do."""

    def fit(folder: Any, cut: int | None, ids: Any = IDS, model: Any = None) -> Any:
        adapter = KerasAdapter(ids / N, Y[: len(ids)], batch_size=B, shuffle=True, seed=3)
        more = [] if cut is None else [Cut(cut)]
        model = model or plain(keras.optimizers.Adam(0.1))
        model.fit(adapter, epochs=2, verbose=0, callbacks=[adapter.resume_callback(folder, save_freq=1), *more])
        return model

    folder, other = tmp_path / "a", tmp_path / "b"
    for place, cut in ((folder, 3), (other, 4)):
        with pytest.raises(RuntimeError, match="power cut"):
            fit(place, cut)
    state = folder / "state.json"
    weights = next(path for path in folder.rglob("*") if path.name.endswith(".h5"))
    (folder / "mine.txt").write_text("mine")
    (folder / "models").mkdir()
    ids, model = IDS, None
    if harm == "cut":
        state.write_bytes(state.read_bytes()[:-9])
    elif harm == "foreign":
        state.write_text("[1, 2]")
    elif harm == "flipped":
        raw = bytearray(weights.read_bytes())
        raw[len(raw) // 2] ^= 1
        weights.write_bytes(raw)
    elif harm == "swapped":
        weights.write_bytes(next(path for path in other.rglob("*") if path.name.endswith(".h5")).read_bytes())
    elif harm == "missing":
        weights.unlink()
    elif harm == "outside":
        state.write_text(json.dumps({**json.loads(state.read_text()), "model": "../b"}))
    elif harm == "folder":
        state.unlink()
        state.mkdir()
    elif harm == "model":
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(7), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.1), "mse")
    else:
        ids = IDS[: N // 2]
    says = {"model": "does not fit this model", "data": "this state"}.get(harm, "is damaged: its state.json is")
    with pytest.raises(LazyTilesError, match=says):
        fit(folder, None, ids, model)
    assert (folder / "mine.txt").read_text() == "mine"
    if harm in ("model", "data"):
        for one, two in zip(fit(folder, None).get_weights(), fit(tmp_path / "c", None).get_weights(), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6)
        assert sorted(path.name for path in folder.iterdir()) == ["mine.txt", "models"]


class Cut(keras.callbacks.Callback):
    """Ends the process, as it were, after so many batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("work", ["look", "predict"])
def test_resuming_after_looks_gives_each_remaining_sample_once(tmp_path, shuffle, before, work):
    def fit(more: list[Any]) -> list[list[int]]:
        model, seen = watched()
        adapter = KerasAdapter(Planned(IDS), Y, batch_size=B, shuffle=shuffle, seed=3)
        looks = {"look": lambda: adapter[5], "predict": lambda: plain().predict(adapter, verbose=0, steps=2)}
        resume, nested = adapter.resume_callback(tmp_path / "r", save_freq=1), Nested(looks[work], every=3)
        try:
            model.fit(adapter, epochs=2, verbose=0, callbacks=([nested, resume] if before else [resume, nested]) + more)
        except RuntimeError:
            saved = json.loads((tmp_path / "r" / "state.json").read_text())["flow"]
            # On TensorFlow what a callback predicted on may have been trained on: the save before is kept.
            assert saved["batch"] >= (1 if work == "predict" and BACKEND == "tensorflow" else 4 - before)
            return seen[: saved["batch"]]
        return seen

    seen = fit([Cut(4)])
    seen += fit([])
    rest_of(2, seen)


@pytest.mark.parametrize("target", ["Int64", "boolean", "category", "Float32", "frame", "list", "tensor", "variable"])
def test_line_7_forms_of_targets(target):
    values = np.arange(N) % 2
    y = {
        "frame": pd.DataFrame({"a": values, "b": pd.Series(values, dtype="Int64")}),
        "list": [values],
        "tensor": keras.ops.convert_to_tensor(values.astype("float32")),
        "variable": keras.Variable(values.astype("float32")),
    }
    y = y[target] if target in y else pd.Series(values).astype(target)
    found = KerasAdapter(IDS, y, batch_size=B)[1][1]
    found = found[0] if target == "list" else found
    np.testing.assert_array_equal(found if found.ndim == 1 else found[:, 1], values[B : 2 * B])
    if target == "list":
        assert KerasAdapter(IDS, y, batch_size=B, num_classes=2)[0][1][0].shape == (B, 2)


def test_line_7_what_is_no_target_or_option_is_named():
    for y in (pd.Series([1, None] * 5, dtype="Int64"), pd.Series(["a", "b"] * 5, dtype="category")):
        with pytest.raises((TypeError, ValueError), match="y"):
            KerasAdapter(IDS[:10], y)
    for steps in (6 / 4, 0, "3", True):
        with pytest.raises(ValueError, match=r"steps_per_epoch must be an integer of at least 1"):
            KerasAdapter(IDS, Y, steps_per_epoch=steps)
    with pytest.raises(TypeError, match="seed"):
        KerasAdapter(IDS, Y, shuffle=True, seed="one")
    fresh = [KerasAdapter(IDS, Y, shuffle=True, batch_size=N, seed=None) for _ in range(2)]
    assert fresh[0].sample_ids(0, 0).tolist() != fresh[1].sample_ids(0, 0).tolist()
    tensor = keras.ops.convert_to_tensor(IDS)
    assert KerasAdapter(tensor, Y, batch_size=B)[0][0].shape == (B, 1)


@pytest.mark.leaks("loky keeps watch over semaphores to the end of the process")
def test_weights_windows_and_processes():
    pytest.importorskip("loky")
    classes = np.repeat([0, 1], [N - 3, 3])
    adapter = KerasAdapter(IDS, classes, batch_size=N, weights="balanced", seed=1)
    share = np.mean([classes[adapter.sample_ids(e, 0)].mean() for e in range(40)])
    assert 0.4 < share < 0.6
    drawn = KerasAdapter(IDS, Y, batch_size=B, replacement=True, seed=1)
    model, seen = watched()
    model.fit(drawn, epochs=2, verbose=0, callbacks=[drawn.callback()])
    assert seen == planned(drawn, range(2))
    assert seen[:6] != seen[6:]
    with contextlib.closing(
        KerasAdapter(IDS, Y, batch_size=B, shuffle=True, transform=lambda b: (2 * b[0], b[1]), processes=1)
    ) as adapter:
        for k in range(2):
            np.testing.assert_array_equal(adapter[k][0][:, 0], 2 * adapter.sample_ids(0, k))


class Schedule:
    """Random things to do with an adapter, and an oracle for each: a plain `PyDataset` over dense arrays."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        random.seed(seed)
        n, self.size = int(self.rng.integers(2, 30)), int(self.rng.integers(1, 7))
        self.n, self.shuffle = n, bool(self.rng.integers(2))
        self.ids = np.arange(n, dtype="float32").reshape(n, 1)
        source = self.pick([np.asarray, Planned])(self.ids)
        self.adapter = KerasAdapter(
            *(source, 3 * self.ids[:, 0]),
            batch_size=self.size,
            shuffle=self.shuffle,
            seed=seed,
            prefetch=int(self.rng.integers(3)),
            readahead_bytes=int(self.pick([0, 4 * 3 * self.size, 2**20])),
        )
        self.dense = Dense(self.ids, self.size)
        self.other = plain()
        self.other.set_weights([np.array([[2.0]]), np.array([1.0])])

    def pick(self, options: list[Any]) -> Any:
        return options[self.rng.integers(len(options))]

    def look(self, adapter: KerasAdapter, *, whole: bool) -> None:
        """One of the things that a callback may do, or a user between two fits."""
        kind = self.pick(["index", "copy", "predict", "evaluate", "few"])
        if kind == "copy":
            adapter = copy.deepcopy(adapter) if self.rng.integers(2) else pickle.loads(pickle.dumps(adapter))
        if kind in ("index", "copy"):
            k = int(self.rng.integers(len(adapter)))
            x, y = adapter[k]
            np.testing.assert_array_equal(3 * np.asarray(x)[:, 0], y)
            if not self.shuffle:
                np.testing.assert_array_equal(x, self.dense[k][0])
            if kind == "index":
                np.testing.assert_array_equal(adapter[k][0], x)
        elif not whole:
            return
        elif kind == "evaluate":
            found = self.other.evaluate(adapter, verbose=0)
            np.testing.assert_allclose(found, self.other.evaluate(self.dense, verbose=0), rtol=1e-4)
        else:
            steps = 1 if kind == "few" else None
            found = self.other.predict(adapter, verbose=0, steps=steps)
            wanted = self.other.predict(self.dense, verbose=0, steps=steps)
            if kind == "predict" and self.shuffle:
                found, wanted = np.sort(found, axis=0), np.sort(wanted, axis=0)
            if kind == "predict" or not self.shuffle:
                np.testing.assert_allclose(found, wanted, rtol=1e-6)

    def fit(self) -> None:
        """A fit with callbacks that do any of it, which may end before its end."""
        model, seen = watched(built=bool(self.rng.integers(2)))
        has_callback, ends = bool(self.rng.integers(2)), self.pick(["", "", "", "stop", "raise"])
        may_pass = has_callback or not self.shuffle
        epochs, schedule = int(self.rng.integers(1, 4)), self

        class Busy(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if schedule.rng.random() < 0.3:
                    schedule.look(schedule.adapter, whole=may_pass)
                if schedule.rng.random() < 0.1 and ends == "stop":
                    self.model.stop_training = True
                if schedule.rng.random() < 0.1 and ends == "raise":
                    raise RuntimeError("of a callback")

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                if schedule.rng.random() < 0.2:
                    schedule.look(schedule.adapter, whole=may_pass)

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                trained = np.concatenate(seen)  # and validated on after that
                if not self.model.stop_training:
                    assert len(trained) == schedule.n * (1 if held is None else 2)
                    assert sorted(trained[: schedule.n]) == list(range(schedule.n))
                seen.clear()

        own = [self.adapter.callback(), Busy()] if has_callback else [Busy()]
        own = copy.deepcopy(own[:1]) + own[1:] if has_callback and self.rng.integers(2) else own
        held = self.pick([None, self.adapter.sequential(), self.dense])
        try:
            model.fit(
                self.adapter, epochs=epochs, verbose=0, callbacks=own, shuffle=bool(self.rng.integers(2)),
                validation_data=held,
            )  # fmt: skip
        except RuntimeError as error:
            if "of a callback" not in str(error):
                raise
            if has_callback:
                self.adapter.close()

    def run(self) -> None:
        for _ in range(int(self.rng.integers(2, 6))):
            kind = self.pick(["fit", "fit", "look", "set_epoch", "epochs", "loop"])
            if kind == "fit":
                self.fit()
            elif kind == "look":
                self.look(self.adapter, whole=True)
            elif kind == "set_epoch":
                self.adapter.set_epoch(int(self.rng.integers(5)))
            elif kind == "epochs":
                for epoch in self.adapter.epochs(2):
                    rows = [np.asarray(x)[:, 0] for x, _ in epoch]
                    assert sorted(np.concatenate(rows)) == list(range(self.n))
            else:
                self.adapter.on_epoch_end()
                rows = [np.asarray(x)[:, 0] for x, _ in self.adapter]
                assert sorted(np.concatenate(rows)) == list(range(self.n))
                self.adapter.on_epoch_end()


class Dense(keras.utils.PyDataset):
    """The oracle."""

    def __init__(self, ids: np.ndarray, size: int) -> None:
        super().__init__()
        self.ids, self.size = ids, size

    def __len__(self) -> int:
        return -(-len(self.ids) // self.size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        x = self.ids[index * self.size : (index + 1) * self.size]
        return x, 3 * x[:, 0]


# LAZYTILES_SCHEDULES=1000-2000 runs those seeds instead.
FIRST, LAST = map(int, os.environ.get("LAZYTILES_SCHEDULES", "0-20").split("-"))


@pytest.mark.parametrize("seed", range(FIRST, LAST))
def test_random_schedules(seed):
    Schedule(seed).run()


MISSING = """
import sys
sys.modules[{name!r}] = None
try:
    import lazytiles
    lazytiles.KerasAdapter
except ImportError as error:
    print(error)
"""


def test_what_is_missing_is_named():
    def message(name: str) -> str:
        code = MISSING.format(name=name)
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "lazytiles[keras]" in message("keras")
    assert "lazytiles[keras]" not in message(BACKEND)
    assert BACKEND in message(BACKEND)


@pytest.fixture
def tiles(tmp_path) -> lt.MultiSourceArray:
    rng = np.random.default_rng(4)
    rows = []
    (tmp_path / "masks").mkdir()
    for region in range(3):
        image = rng.integers(0, 255, (96, 80, 3), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"r{region}.tif", image, compression="lzw", rowsperstrip=8)
        tifffile.imwrite(tmp_path / "masks" / f"r{region}.tif", (image[..., :1] > 127).astype("u1"), compression="lzw")
        for k in range(8):
            x, y = rng.integers(0, 48, 2)
            rows.append((f"t{region}-{k}", f"r{region}", f"({x}, {y}, {x + 32}, {y + 24})", k / 8, region * 1.5))
    columns = ["tile_id", "region_id", "region_coordinates", "target", "height"]
    return lt.open_tiles(pd.DataFrame(rows, columns=columns), tmp_path, tabular=["height"])


def image_model(adapter: KerasAdapter) -> keras.Model:
    image, height = keras.Input((24, 32, 3)), keras.Input((1,))
    flat = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model([image, height], keras.layers.Dense(1)(keras.layers.Concatenate()([flat, height])))
    model.compile("sgd", "mse")
    return model


def test_opened_tiles_with_table_columns_train_evaluate_and_predict(tiles):
    tiles.shuffle(7)
    adapter = KerasAdapter(tiles, batch_size=5)
    (x, height), y = adapter[1]
    np.testing.assert_array_equal(x, tiles[5:10])
    np.testing.assert_array_equal(height, tiles.tabular[5:10])
    np.testing.assert_array_equal(y, tiles.labels[5:10])
    model = image_model(adapter)
    model.fit(adapter, epochs=2, verbose=0)
    dense = [np.asarray(tiles[:]), tiles.tabular]
    assert model.evaluate(adapter, verbose=0) == pytest.approx(
        model.evaluate(dense, tiles.labels, batch_size=5, verbose=0), rel=1e-5
    )
    np.testing.assert_allclose(
        model.predict(adapter, verbose=0), model.predict(dense, batch_size=5, verbose=0), rtol=1e-5
    )


def test_mask_tiles_are_targets_in_step(tiles, tmp_path):
    masked = lt.open_tiles(tiles.table, tmp_path, masks="masks/{region_id}.tif", target=None)
    masked.shuffle(5)
    adapter = KerasAdapter(
        masked, batch_size=5, shuffle=True, seed=2, num_classes=2, normalize=tiles_statistics(masked)
    )
    inputs = keras.Input((24, 32, 3))
    model = head(inputs, keras.layers.Conv2D(2, 1, activation="softmax")(inputs), "categorical_crossentropy")
    model.fit(adapter, epochs=2, verbose=0)
    x, y = adapter[1]
    rows = adapter.sample_ids(2, 1)
    np.testing.assert_array_equal(y[..., 1], np.asarray(masked.labels[rows])[..., 0])
    np.testing.assert_array_equal(y[..., 1], masked[rows][..., 0] > 127)
    assert x.dtype == np.float32


def tiles_statistics(tiles: lt.MultiSourceArray) -> dict[str, np.ndarray]:
    dense = np.asarray(tiles[:], "f8").reshape(-1, 3)
    return {"mean": dense.mean(0), "std": dense.std(0)}


def test_a_later_shuffle_does_not_part_tiles_from_labels(tiles):
    adapter = KerasAdapter(tiles, batch_size=5)
    (x, _), y = adapter[0]
    tiles.shuffle(1)
    (again, _), same = KerasAdapter(tiles, batch_size=5).sequential()[0]
    np.testing.assert_array_equal(again, tiles[:5])
    np.testing.assert_array_equal(same, tiles.labels[:5])
    adapter.close()
    (other, _), labels = adapter[0]
    np.testing.assert_array_equal(other, x)
    np.testing.assert_array_equal(labels, y)


def test_a_bad_window_is_named_before_training(tiles, tmp_path):
    table = tiles.table.copy()
    table.loc[3, "xmax"] = 700
    broken = lt.open_tiles(table, tmp_path, size=(24, 32))
    with pytest.raises(LazyTilesError, match=r"tile t0-3.*700"):
        KerasAdapter(broken, batch_size=5)
