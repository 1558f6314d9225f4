"""A transform applied to batches, on the threads of this process or in processes of its own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import numpy as np

from lazytiles.augment import as_transform
from lazytiles.errors import LazyTilesError, require
from lazytiles.order import generator
from lazytiles.tandem import Structure

Transform = Callable[[Structure, np.random.Generator], Structure]

_IDLE_S = 60  # a worker process that had nothing to do for so long ends
_WORKER_ENVIRONMENT = dict.fromkeys(("LAZYTILES_THREADS", "OMP_NUM_THREADS", "BLOSC_NTHREADS"), "1")


def _apply(transform: Transform, batch: Structure, seed: int, key: tuple[int, int]) -> Structure:
    return transform(batch, generator(seed, *key))


class Stage:
    """A transform whose randomness is a function of (seed, epoch, batch), wherever it runs.

    Parameters
    ----------
    transform : (batch, rng) -> batch, or a function of images, ``fn(image=..., mask=...) -> dict``
    seed : int
    processes : worker processes, started when first needed; 0 runs the transform where it is called

    Raises
    ------
    ImportError : processes are wanted and loky is not installed
    """

    def __init__(self, transform: Transform, seed: int, *, processes: int = 0) -> None:
        self.transform = as_transform(transform)
        self.seed = seed
        self.processes = processes
        self._lock = threading.Lock()
        self._executor: Any = None
        if processes:
            require("loky", extra="processes")

    def __getstate__(self) -> dict[str, Any]:
        return {"transform": self.transform, "seed": self.seed, "processes": self.processes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # nothing else makes the lock

    def __call__(self, key: tuple[int, int], batch: Structure) -> Structure:
        """The transformed batch.

        Raises
        ------
        LazyTilesError : the worker process died; the next batch gets new ones
        """
        if not self.processes:
            return _apply(self.transform, batch, self.seed, key)
        executor = self._workers()
        try:
            return executor.submit(_apply, self.transform, batch, self.seed, key).result()
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

    def _workers(self) -> Any:
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
            return self._executor


def _end(stage: weakref.ref[Stage]) -> None:
    alive = stage()
    if alive is not None:
        alive.close()
