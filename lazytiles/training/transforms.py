"""A transform applied to batches, on the threads of this process or in processes of its own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import numpy as np

from lazytiles.augment import as_transform
from lazytiles.errors import LazyTilesError, require
from lazytiles.indexing import BatchGenerator
from lazytiles.trees import Structure, leaves

Transform = Callable[..., Structure]
Draw = tuple[int, int, int, int]  # the words of a `BatchGenerator`: seed, epoch, place of the first sample, size

_IDLE_S = 60  # a worker process that had nothing to do for so long ends
_WORKER_ENVIRONMENT = dict.fromkeys(("LAZYTILES_THREADS", "OMP_NUM_THREADS", "BLOSC_NTHREADS"), "1")


def _apply(transform: Transform, batch: Structure, draw: Draw) -> Structure:
    return transform(batch, BatchGenerator(*draw))


class Stage:
    """A transform whose randomness is a function of (seed, epoch, place of the sample), wherever it runs.

    It is given as `as_transform` takes it, and called with a `lazytiles.indexing.seeds.BatchGenerator`: by worker
    `processes`, started when first needed; by 0 of them where it is called.
    """

    def __init__(self, transform: Transform, *, processes: int = 0) -> None:
        if not callable(transform):
            raise TypeError(f"transform is a function, (batch, rng) -> batch or batch -> batch; not {transform!r}")
        self.transform = as_transform(transform)
        self.processes = processes
        self._lock = threading.RLock()
        self._executor: Any = None
        if processes:
            require("loky", extra="processes")

    def __getstate__(self) -> dict[str, Any]:
        return {"transform": self.transform, "processes": self.processes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # nothing else makes the lock

    def __call__(self, batch: Structure, draw: Draw) -> Structure:
        """The transformed batch, of as many samples; where a worker process died, the next batch gets new ones."""
        given = self._in_worker(batch, draw) if self.processes else _apply(self.transform, batch, draw)
        check_parts(batch, given, draw[3])
        return given

    def _in_worker(self, batch: Structure, draw: Draw) -> Structure:
        with self._lock:
            if self._executor is None:
                loky = require("loky", extra="processes")
                self._executor = loky.ProcessPoolExecutor(
                    max_workers=self.processes, timeout=_IDLE_S, env=_WORKER_ENVIRONMENT
                )
                # loky waits at exit for what its workers do. It says so when the first job starts them, and what
                # was registered last is called first, so ours ends them before.
                self._executor.submit(int)
                threading._register_atexit(partial(_end, weakref.ref(self)))  # type: ignore[attr-defined]  # typeshed
            executor = self._executor
        try:
            return executor.submit(_apply, self.transform, batch, draw).result()
        except BrokenProcessPool as error:
            with self._lock:
                if self._executor is executor:
                    self._executor = None
            executor.shutdown(wait=False, kill_workers=True)
            raise LazyTilesError(
                "a worker process ended before its transform did (killed, out of memory, or crashed); "
                f"use fewer processes, smaller batches, or processes=0 to see the cause: {error}"
            ) from error

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, kill_workers=True)


def check_parts(before: Structure, after: Structure, samples: int) -> None:
    """Refuse what a transform gave where it lacks a part of the batch or holds another number of samples.

    >>> import numpy as np
    >>> check_parts((np.zeros(3), np.zeros(3)), np.zeros(3), 3)
    Traceback (most recent call last):
    ValueError: the transform was given a batch of 2 parts and gave one array; let it give all of them back
    """
    _check_forms(before, after, "a batch")
    for leaf in leaves(after):
        shape = getattr(leaf, "shape", None)
        if not shape:
            raise ValueError(f"the transform gave {leaf!r:.60} as a part of the batch; parts are arrays of samples")
        if shape[0] != samples:
            raise ValueError(
                f"the transform was given {samples} samples and gave {shape[0]}, an array of shape {tuple(shape)}; "
                "let it keep their number"
            )


def _check_forms(before: Structure, after: Structure, name: str) -> None:
    """Refuse what has fewer parts than there were, also within a part; there, several may be joined to one array."""
    parts, left = (len(b) if isinstance(b, tuple | list | Mapping) else 0 for b in (before, after))
    if after is None or max(left, 1) < parts or (parts > 1 and not left):
        gave = "None" if after is None else f"{left} of them" if left else "one array"
        was = f"{name} of {parts} part{'s' * (parts != 1)}" if parts else "an array"
        raise ValueError(f"the transform was given {was} and gave {gave}; let it give all of them back")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        pairs = [(key, part, after[key]) for key, part in before.items() if key in after]
    elif isinstance(before, tuple | list) and isinstance(after, tuple | list):
        pairs = [(k, *both) for k, both in enumerate(zip(before, after, strict=False))]
    else:
        pairs = []
    for key, one, other in pairs:
        shape = getattr(other, "shape", None)
        is_joined = shape is not None and all(np.shape(leaf) != shape for leaf in leaves(one))
        if isinstance(one, tuple | list | Mapping) and not is_joined:
            _check_forms(one, other, f"part {key!r} of {name},")


def _end(stage: weakref.ref[Stage]) -> None:
    alive = stage()
    if alive is not None:
        alive.close()
