"""A model as a function from a batch to an array of predictions, here or loaded once in each worker of a cluster."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import require
from lazytiles.training import Scaling
from lazytiles.trees import Structure, leaves

Batch = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """A model as a function from a batch of its inputs, as they were read, to an array of predictions."""

    function: Callable[[Any], Any]
    activation: Callable[[Batch], Batch] | None
    scaling: Scaling | None

    @classmethod
    def of(
        cls, model: Any, activation: str | Callable[[Batch], Batch] | None = None, scaling: Scaling | None = None
    ) -> Caller:
        """From what a user gives.

        >>> Caller.of(lambda x: x - 1, "sigmoid")(np.ones((1, 1)))
        array([[0.5]])
        """
        function = getattr(model, "predict_on_batch", model)
        if not callable(function):
            raise TypeError(f"the model is a {type(model).__name__}; a Keras model or a callable is needed")
        if isinstance(activation, str):
            if activation not in ACTIVATIONS:
                raise ValueError(f"activation={activation!r} is not known; choose {' or '.join(ACTIVATIONS)}")
            activation = ACTIVATIONS[activation]
        return cls(function, activation, scaling)

    def __call__(self, x: Structure) -> Batch:
        """The predictions, in step with the batch."""
        count = len(leaves(x)[0])
        found = self.function(x if self.scaling is None else self.scaling(x))
        if isinstance(found, list | tuple | dict):
            raise ValueError(f"the model gives {len(found)} outputs; wrap it so that it gives one array")
        array = _as_batch(found)
        if not array.ndim or len(array) != count:
            raise ValueError(f"the model gives an array of shape {array.shape} for {count} tiles")
        return array if self.activation is None else self.activation(array)


def _softmax(values: Batch) -> Batch:
    powers: Batch = np.exp(values - values.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def _sigmoid(values: Batch) -> Batch:
    # By tanh, which overflows nowhere.
    return 0.5 * (1 + np.tanh(0.5 * values))


ACTIVATIONS: dict[str, Callable[[Batch], Batch]] = {"softmax": _softmax, "sigmoid": _sigmoid}


class Loaded:
    """A model made by a function that can be sent; each process calls it once, its threads the model in turn."""

    _models: ClassVar[dict[str, Any]] = {}
    _lock: ClassVar[Any] = threading.RLock()

    def __init__(self, factory: Callable[[], Any]) -> None:
        if not callable(factory):
            raise TypeError(
                f"with client= the model is a function without arguments that makes it, such as "
                f"functools.partial(keras.models.load_model, path), not a {type(factory).__name__}"
            )
        # By cloudpickle, which is there beside dask: functions of a notebook or script can be sent too.
        self.pickled: bytes = require("cloudpickle", extra="cluster").dumps(factory)
        self.name = hashlib.sha256(self.pickled).hexdigest()

    def __call__(self, batch: Any) -> NDArray[Any]:
        """The model's predictions of a batch."""
        with Loaded._lock:
            if self.name not in Loaded._models:
                model = pickle.loads(self.pickled)()  # noqa: S301 # made by the constructor above
                Loaded._models[self.name] = getattr(model, "predict_on_batch", model)
            return _as_batch(Loaded._models[self.name](batch))


def _as_batch(found: Any) -> Batch:
    return np.asarray(found.detach().cpu() if hasattr(found, "detach") else found)
