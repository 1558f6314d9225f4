"""What `normalize` does: the scale follows the dtype of the source, whatever a transform makes of the batch."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import lazytiles as lt
from lazytiles.adapters.portable import Output, Scaling
from lazytiles.errors import LazyTilesError

FRAMEWORK = pytest.mark.leaks(reason="a framework keeps its threads")


def images(dtype: str, n: int = 6) -> np.ndarray:
    limits = np.iinfo(dtype)
    native = np.dtype(dtype).newbyteorder("=")
    drawn = np.random.default_rng(0).integers(limits.min, limits.max, (n, 4, 5, 3), native, endpoint=True)
    drawn[0, 0, 0], drawn[0, 0, 1] = limits.min, limits.max
    return drawn.astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", ">u2", "uint32", "int32", "uint64", "int64"])
def test_integers_of_each_dtype_are_mapped_from_their_least_value_on(dtype: str) -> None:
    x = images(dtype)
    scaling = Scaling.of(True, x)
    assert scaling is not None
    limits = np.iinfo(dtype)
    expected = [[(int(v) - limits.min) / (limits.max - limits.min) for v in row] for row in x.reshape(-1, 3).tolist()]
    for batch in (x, x.astype(np.float32), x.astype(np.float64)):
        found = scaling(batch)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.reshape(-1, 3), expected, rtol=1e-6, atol=2e-7)
        assert (found[0, 0, 0] == 0).all()
        assert (found[0, 0, 1] == 1).all()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scaling))(x), scaling(x))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_images_that_are_no_integers_are_refused_with_the_way_out(dtype: str) -> None:
    x = np.zeros((2, 4, 4, 3), dtype)
    way_out = rf"x\['b'\] is {dtype}, whose range is not known; pass normalize=\(mean, std\) or the result of "
    with pytest.raises(
        ValueError, match=way_out + r"tiles\.statistics\(\), or leave normalize out and scale in a tran"
    ):
        Scaling.of(True, {"a": images("uint8", 2), "b": x})
    with pytest.raises(ValueError, match=rf"but x is {dtype}"):
        Scaling.of(True, np.zeros((2, 4), dtype))
    if dtype != "complex64":
        scaling = Scaling.of((1, 2), x)
        assert scaling is not None
        assert (scaling(x) == -0.5).all()


def test_bits_stay_what_they_are() -> None:
    scaling = Scaling.of(True, np.ones((2, 3, 3), bool))
    assert scaling is not None
    assert scaling(np.array([[[True, False]]])).tolist() == [[[1.0, 0.0]]]


def test_each_input_has_the_scale_of_its_own_source() -> None:
    small, wide, features = images("uint8"), images("uint16"), np.arange(12.0).reshape(6, 2)
    by_name = Scaling.of(True, {"small": small, "wide": wide, "features": features})
    assert by_name is not None
    # Another order of the names, as a transform may give, parts no image from its scale.
    found = by_name({"features": features, "wide": wide, "small": small.astype("f4")})
    np.testing.assert_allclose(found["small"], small / 255, rtol=1e-6)
    np.testing.assert_allclose(found["wide"], wide / 65535, rtol=1e-6)
    np.testing.assert_array_equal(found["features"], features)
    by_place = Scaling.of(True, (small, (wide, features)))
    assert by_place is not None
    found = by_place((small, [wide, features]))
    np.testing.assert_allclose(found[1][0], wide / 65535, rtol=1e-6)
    with pytest.raises(LazyTilesError, match=r"images of shape .* none of the sources, which are not all scaled alike"):
        by_name({"small": small, "new": small})
    with pytest.raises(LazyTilesError, match="none of the sources"):
        by_place((small, wide, features))
    # Where all sources are scaled alike, what a transform splits off is scaled so too.
    alone = Scaling.of(True, small)
    assert alone is not None
    found = alone({"left": small[:, :2], "right": small[:, 2:], "features": features})
    np.testing.assert_allclose(found["right"], small[:, 2:] / 255, rtol=1e-6)
    np.testing.assert_array_equal(found["features"], features)


def test_means_and_deviations_come_in_any_form() -> None:
    x = images("uint8")
    found = lt.MultiSourceArray([x]).statistics()
    expected = (x - found.mean) / found.std
    for normalize in (found, (found.mean, found.std), [*(found.mean, found.std)], found.to_dict()):
        output = Output(Scaling.of(normalize, x))
        for batch in (x, x.astype(np.float64), x.astype(">f4")):
            np.testing.assert_allclose(output((batch,))[0], expected, rtol=1e-4, atol=1e-5)
    assert Scaling.of(False, x) is None
    assert Scaling.of(None, x) is None
    for wrong in ("yes", 1.5, (1, 2, 3), {"mean": 1}):
        with pytest.raises(ValueError, match=r"normalize is True, False, \(mean, std\), or something with a mean"):
            Scaling.of(wrong, x)
    with pytest.raises(ValueError, match="positive deviations"):
        Scaling.of((0, 0), x)


@FRAMEWORK
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_training_with_a_transform_and_validation_without_agree(dtype: str) -> None:
    pytest.importorskip("keras")
    x, y = images(dtype), np.arange(6)

    def as_floats(batch: Any, rng: Any) -> Any:
        return batch[0].astype(np.float32), batch[1]

    def as_wider(batch: Any, rng: Any) -> Any:
        return batch[0].astype(np.int32), batch[1]

    plain = lt.KerasAdapter(x, y, batch_size=4, normalize=True)
    for transform in (as_floats, as_wider):
        changed = lt.KerasAdapter(x, y, batch_size=4, normalize=True, transform=transform)
        for k in range(2):
            np.testing.assert_array_equal(changed[k][0], plain[k][0])
        assert changed[0][0].max() == 1
        np.testing.assert_array_equal(changed.sequential()[1][0], plain[1][0])
    with pytest.raises(ValueError, match="x is float32, whose range is not known"):
        lt.KerasAdapter(x.astype(np.float32), y, normalize=True)
    with pytest.raises(ValueError, match="x is float32, whose range is not known"):
        lt.KerasAdapter(x.astype(np.float32), y, normalize=True, transform=as_floats)


@FRAMEWORK
def test_a_tensorflow_dataset_has_the_same_scale() -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("keras")
    x = images("uint8")

    def as_floats(batch: Any, rng: Any) -> Any:
        return batch[0].astype(np.float32), batch[1]

    dataset = lt.KerasAdapter(x, np.arange(6), batch_size=6, normalize=True, transform=as_floats).to_tf_dataset()
    ((batch, _),) = list(dataset.as_numpy_iterator())
    np.testing.assert_allclose(batch, x / 255, rtol=1e-6)
