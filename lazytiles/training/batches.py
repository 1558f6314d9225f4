"""Batches that every Keras backend takes: scaled, one-hot, and in the few forms that are portable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazytiles.arrays import held
from lazytiles.errors import LazyTilesError
from lazytiles.training.tandem import Array, as_source, native
from lazytiles.trees import Path, Structure, leaves, mapped, walk, words

_TOO_WIDE = (
    "images are float64, twice the size of what a model computes in; pass normalize=True or (mean, std), "
    "or a transform that casts them"
)


@dataclass(frozen=True)
class Standard:
    """Values minus a mean, over a standard deviation, as float32; one of each, or one a band (last axis).

    Where `invalid` is given, it stands in the result for NaN and for values that are `nodata`.

    >>> Standard([1, 2], [1, 4])(np.array([[1, 10]], "uint8"))
    array([[0., 2.]], dtype=float32)
    >>> Standard(1, 2, nodata=255, invalid=0)(np.array([3, 255], "uint8"))
    array([1., 0.], dtype=float32)
    """

    mean: Any
    std: Any
    nodata: float | None = None
    invalid: float | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float32))
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise ValueError(f"normalize needs finite means and positive deviations, not {self.mean} and {self.std}")

    def __call__(self, images: Array) -> Array:
        """Scale images, bands last."""
        for values in (self.mean, self.std):
            if values.ndim > 1 or values.size not in (1, images.shape[-1]):
                raise ValueError(f"normalize has {values.size} bands, the images have {images.shape[-1]}")
        scaled: Array = np.subtract(images, self.mean, dtype=np.float32)
        scaled /= self.std
        if self.invalid is not None:
            absent = np.isnan(scaled) if self.nodata is None else np.isnan(scaled) | (images == self.nodata)
            scaled[absent] = self.invalid
        return scaled


@dataclass(frozen=True)
class Scaling:
    """What `normalize` does to the inputs of a model, whatever a transform has made of them.

    `scales` has the form of the sources: the scale of each image, None for what stays as it is.

    >>> scaling = Scaling.of(True, {"image": np.zeros((9, 4, 4), "uint8"), "height": np.zeros((9, 2))})
    >>> scaling({"image": np.full((1, 4, 4), 51.0), "height": np.ones((1, 2))})["image"][0, 0, 0]
    np.float32(0.2)
    """

    scales: Structure

    @classmethod
    def of(cls, normalize: Any, x: Structure) -> Scaling | None:
        """The scaling that `KerasAdapter(normalize=)` and `predict(normalize=)` name, for these sources; None for none.

        True maps the range of each source's dtype before any transform to 0..1, int16 from -32768 on; the others are
        as `standard_of` takes them. Sources of rank 3 and more, and a single one, are images.
        """
        if normalize is None or normalize is False:
            return None
        units: dict[np.dtype[Any], Standard] = {}
        given = None if normalize is True else standard_of(normalize)
        is_single = not isinstance(x, tuple | list | Mapping)

        def scale(path: Path, source: Any) -> Standard | None:
            if not is_single and len(source.shape) < 3:
                return None
            dtype = np.dtype(source.dtype)
            return given if given is not None else units.setdefault(dtype, unit_range(dtype, words(path, "x")))

        return cls(mapped(as_sources(x), scale, as_tuples=True))

    def __call__(self, x: Structure) -> Structure:
        """Arrays in the form of the sources, scaled."""
        return self._scaled(self.scales, x)

    def _scaled(self, scales: Structure, x: Structure) -> Structure:
        if isinstance(x, Mapping):
            named = scales if isinstance(scales, Mapping) else {}
            return {key: self._scaled(named.get(key, _UNKNOWN), part) for key, part in x.items()}
        if isinstance(x, tuple | list):
            is_alike = isinstance(scales, tuple) and len(scales) == len(x)
            known = scales if is_alike else (_UNKNOWN,) * len(x)
            return tuple(self._scaled(scale, part) for scale, part in zip(known, x, strict=True))
        if scales is None:
            return x
        if not isinstance(scales, Standard):
            # An input that is none of the sources: images are scaled where all sources are scaled alike.
            found = {id(scale): scale for scale in leaves(self.scales) if scale is not None}
            if x.ndim < 3:
                return x
            if len(found) != 1:
                raise LazyTilesError(
                    f"the transform gives {x.dtype} images of shape {x.shape} that are none of the sources, which "
                    "are not all scaled alike; scale in the transform, and leave normalize out"
                )
            (scales,) = found.values()
        scaled: Array = scales(x)
        return scaled


_UNKNOWN = "an input that the sources lack"


def unit_range(dtype: np.dtype[Any], name: str = "x") -> Standard:
    """The scale that maps the range of an integer dtype to 0..1, its least value to 0.

    >>> unit_range(np.dtype("uint8"))(np.array([0, 51, 255], "uint8"))
    array([0. , 0.2, 1. ], dtype=float32)
    """
    if dtype.kind == "b":
        return Standard(0, 1)
    if dtype.kind not in "iu":
        raise ValueError(
            f"normalize=True maps the range of integers to 0..1, but {name} is {dtype}, whose range is not known; pass "
            "normalize=(mean, std) or the result of tiles.statistics(), or leave normalize out and scale in a transform"
        )
    limits = np.iinfo(dtype)
    return Standard(limits.min, limits.max - limits.min)


def standard_of(normalize: Any) -> Standard:
    """The mean and deviation that are given: as a pair, or under the names ``mean`` and ``std`` as keys or attributes.

    As keys also ``invalid``, which stands for NaN, and for the values that ``nodata`` names.

    >>> standard_of({"mean": 0, "std": 2})(np.array([4.0]))
    array([2.], dtype=float32)
    """
    if isinstance(normalize, Mapping) and {"mean", "std"} <= set(normalize):
        return Standard(normalize["mean"], normalize["std"], normalize.get("nodata"), normalize.get("invalid"))
    if hasattr(normalize, "mean") and hasattr(normalize, "std") and not callable(normalize.mean):
        return Standard(normalize.mean, normalize.std)
    if isinstance(normalize, tuple | list) and len(normalize) == 2:
        return Standard(*normalize)
    raise ValueError(f"normalize is True, False, (mean, std), or something with a mean and a std; not {normalize!r}")


def as_sources(x: Structure) -> Structure:
    """The structure with sources at its ends, see `as_source`."""
    return mapped(x, lambda _, leaf: as_source(leaf))


def one_hot(labels: Array, classes: int) -> Array:
    """Class numbers as float32 rows with a single 1, shape (n, classes) or (n, height, width, classes).

    A last axis of one is replaced; a label that is no whole number in 0..classes - 1 is refused.

    >>> one_hot(np.array([[2], [0]]), 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    if labels.ndim > 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    wrong = (labels < 0) | (labels >= classes) | (labels != np.floor(labels))
    if wrong.any():
        raise ValueError(f"label {labels[wrong][0].item()} is not a class number in 0..{classes - 1}")
    return np.asarray(labels[..., None].astype(np.int64) == np.arange(classes), dtype=np.float32)


@dataclass(frozen=True)
class Output:
    """The last step of a batch before Keras: a tuple of one to three portable parts.

    Inputs are scaled; float64 features become float32, as Keras itself does with arrays; a single target becomes
    one-hot where `classes` is given.
    """

    scaling: Scaling | None = None
    classes: int | None = None

    def __call__(self, batch: Structure) -> tuple[Structure, ...]:
        """The batch as Keras gets it."""
        parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if not 1 <= len(parts) <= 3:
            raise LazyTilesError(f"a batch is (x,), (x, y) or (x, y, sample_weight); this one has {len(parts)} parts")
        x, *rest = (mapped(part, _portable, as_tuples=True) for part in parts)
        x = mapped(x if self.scaling is None else self.scaling(x), _narrow)
        if self.classes is not None and rest:
            classes = self.classes
            rest[0] = mapped(rest[0], lambda _, labels: one_hot(labels, classes))
        return (x, *rest)

    def check(self, data: tuple[Structure, ...], *, is_final: bool) -> None:
        """Refuse sources, as `parts_of` gives them, that no batch could be made of; `is_final` without a transform."""
        if self.classes is not None and one_target(data) is None:
            raise ValueError("num_classes makes one target one-hot; there must be exactly one")
        images = [source for source in leaves(as_sources(data[0])) if len(source.shape) > 2]
        if is_final and self.scaling is None and any(np.dtype(source.dtype) == np.float64 for source in images):
            raise TypeError(_TOO_WIDE)


def one_target(data: tuple[Structure, ...]) -> Any:
    """The target in ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``, if there is exactly one; or None."""
    targets = leaves(data[1]) if len(data) > 1 and not isinstance(data[1], Mapping) else []
    return targets[0] if len(targets) == 1 else None


@dataclass(frozen=True, repr=False)
class Inputs:
    """What an adapter was made with, by which `predict` goes on from it: its sources, and what is done to batches."""

    x: Structure
    y: Structure  # or None
    scaling: Scaling | None  # of batches of `x`
    batch_size: int
    has_transform: bool

    def __repr__(self) -> str:
        return f"<Inputs of {len(leaves(self.x))} sources, in batches of {self.batch_size}>"


def class_count(given: Any, x: Structure, y: Structure) -> int | None:
    """How many classes ``KerasAdapter(num_classes=)`` means: that number, or with True those that the data name.

    The `classes` of `y` count, or of the arrays in `x` whose labels `y` is.

    >>> class_count(3, np.zeros(2), None), class_count(None, np.zeros(2), None)
    (3, None)
    """
    if given is None or given is False:
        return None
    if given is not True:
        if not isinstance(given, int | np.integer) or given < 1:
            raise ValueError(f"num_classes is a number of classes, or True for the classes of the tiles, not {given!r}")
        return int(given)
    arrays = [leaf for leaf in [*leaves(x), *leaves(y)] if getattr(leaf, "classes", None)]
    if y is not None:
        arrays = [leaf for leaf in arrays if leaf is y or np.array_equal(leaf.labels, y)]
    named = [leaf.classes for leaf in arrays]
    if not named or any(classes != named[0] for classes in named):
        what = "different classes" if named else "no classes"
        raise ValueError(
            f"num_classes=True takes the classes that the data name, but there are {what}; pass a number, such as "
            "num_classes=len(tiles.classes)"
        )
    return len(named[0])


def parts_of(x: Structure, y: Structure = None, sample_weight: Structure = None) -> tuple[Structure, ...]:
    """The sources as ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``, from what `KerasAdapter` takes.

    An array with labels brings them as `y`, alone or among others, and its table columns, see `with_tabular`.
    """
    if y is None and (brought := _brought(x, "labels")):
        (first, y), *others = brought
        for path, other in others:
            if not (isinstance(y, np.ndarray) and isinstance(other, np.ndarray) and np.array_equal(y, other)):
                raise ValueError(
                    f"{first} and {path} bring different labels; pass the targets as y, or leave out the labels of "
                    "one by DelayedView(array)"
                )
    x = with_tabular(x)
    if y is None and sample_weight is not None:
        raise ValueError("sample_weight needs targets: pass y")
    given = {"x": x, "y": y, "sample_weight": sample_weight}
    return tuple(check_part(part, name) for name, part in given.items() if part is not None)


def with_tabular(x: Structure) -> Structure:
    """The inputs, and the table columns that arrays among them bring: as a last one, in a dict as ``"tabular"``.

    Columns that are among the inputs already are not brought again.
    """
    found = _brought(x, "tabular")
    if not found:
        return x
    (first, columns), *others = found
    if any(not np.array_equal(columns, other) for _, other in others):
        raise ValueError(
            f"{first} and {others[0][0]} bring different tabular columns; leave out those of one by DelayedView(array)"
        )
    given = [leaf for leaf in leaves(x) if tuple(getattr(leaf, "shape", ())) == columns.shape]
    if any(np.array_equal(np.asarray(leaf, np.float32), columns) for leaf in given):
        return x
    if isinstance(x, Mapping):
        if "tabular" in x:
            raise ValueError(f"{first} brings its tabular columns as x['tabular'], which is something else already")
        return {**x, "tabular": columns}
    return (*x, columns) if isinstance(x, tuple | list) else (x, columns)


def _brought(x: Structure, attribute: str) -> list[tuple[str, Any]]:
    """What the arrays among the inputs have under a name, with the words for each of them."""
    found = ((words(path, "x"), getattr(leaf, attribute, None)) for path, leaf in walk(x))
    return [(name, value) for name, value in found if value is not None]


def check_part(data: Structure, name: str) -> Structure:
    """The sources of one part of a batch as they are now, lists as tuples; what no backend takes is refused by name."""

    def checked(path: Path, data: Any) -> Any:
        called = words(path, name)
        if data is None:
            raise TypeError(f"{called} is None; leave it out")
        data = np.asarray(data) if isinstance(data, list) else data
        try:
            source = held(data)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{called}: {error}") from error
        if np.dtype(getattr(source, "dtype", object)).kind in "OSUMmV":
            kind = getattr(data, "dtype", type(data).__name__)
            raise TypeError(f"{called} is of {kind}, which no Keras backend takes; map it to numbers")
        return source

    def is_array(data: Any) -> bool:
        """Whether a list is of numbers, and no list of sources."""
        return isinstance(data, list) and not any(hasattr(value, "shape") for value in data)

    return mapped(data, checked, as_tuples=True, is_end=is_array)


def differences(first: Structure, batch: Structure) -> str:
    """How the dtypes and ranks of a batch differ from the first one's; an empty text if they do not.

    >>> differences((np.zeros(2, "uint8"),), (np.zeros(2, "float32"),))
    'float32 where the first batch had uint8'
    """
    was, now = leaves(first), leaves(batch)
    if len(was) != len(now):
        return f"{len(now)} arrays where the first batch had {len(was)}"
    for old, new in zip(was, now, strict=True):
        if old.dtype != new.dtype:
            return f"{new.dtype} where the first batch had {old.dtype}"
        if old.ndim != new.ndim:
            return f"{new.ndim} axes where the first batch had {old.ndim}"
    return ""


def copied(batch: Structure) -> Structure:
    """The same batch in arrays of its own."""
    return mapped(batch, lambda _, array: np.array(array))


def _portable(path: Path, array: Any) -> Array:
    if array is None:
        raise LazyTilesError("a batch holds None; leave the part out")
    array = np.asarray(array)
    if array.ndim == 0 or array.dtype.kind in "OSUMmV":
        raise LazyTilesError(f"a batch holds {array.dtype} of shape {array.shape}; Keras takes arrays of numbers")
    return native(array)


def _narrow(path: Path, array: Array) -> Array:
    if array.dtype != np.float64:
        return array
    if array.ndim > 2:
        raise TypeError(_TOO_WIDE)
    return array.astype(np.float32)
