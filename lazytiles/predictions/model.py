"""A model on the workers of a cluster, loaded once in each."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import require


class Loaded:
    """A model made by a function that can be sent; each process calls the function once.

    Parameters
    ----------
    factory : without arguments; returns the model

    Notes
    -----
    The threads of a worker call the model one after the other.
    """

    _models: ClassVar[dict[str, Any]] = {}
    _lock: ClassVar[Any] = threading.RLock()

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.pickled = _sent(factory)
        self.name = hashlib.sha256(self.pickled).hexdigest()

    def __call__(self, batch: Any) -> NDArray[Any]:
        """The model's predictions of a batch."""
        with Loaded._lock:
            if self.name not in Loaded._models:
                model = pickle.loads(self.pickled)()  # noqa: S301 # made by the constructor above
                Loaded._models[self.name] = getattr(model, "predict_on_batch", model)
            found = Loaded._models[self.name](batch)
            return np.asarray(found.detach().cpu() if hasattr(found, "detach") else found)


def _sent(factory: Callable[[], Any]) -> bytes:
    """A function as bytes; one of a notebook or script too, where cloudpickle is there, as it is beside dask."""
    if not callable(factory):
        raise TypeError(
            f"with client= the model is a function without arguments that makes it, such as "
            f"functools.partial(keras.models.load_model, path), not a {type(factory).__name__}"
        )
    dumped: bytes = require("cloudpickle", extra="cluster").dumps(factory)
    return dumped
