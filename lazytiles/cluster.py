"""Work on the workers of a `distributed.Client`: exports chunk by chunk, models loaded once in each worker.

Tasks may run twice, and run again when a worker dies; what they do twice is done once. A task that fails for good
ends the work with its own error, and the others are cancelled.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lazytiles.blockwise import BlockTarget, write_block
from lazytiles.errors import LazyTilesError, require
from lazytiles.multisource import MultiSourceArray
from lazytiles.sink import StoreSink

STEP_BYTES = 16 * 2**20


@contextmanager
def connected(scheduler: Any) -> Iterator[Any]:
    """The client of a dask scheduler, closed at the end if it is opened here; None works on this machine's threads.

    Parameters
    ----------
    scheduler : None or ``"threads"``; the address of a scheduler, such as ``"tcp://host:8786"``; or a
        `distributed.Client`, which stays open

    Raises
    ------
    ValueError : something else
    """
    if scheduler is None or scheduler == "threads":
        yield None
    elif isinstance(scheduler, str):
        if ":" not in scheduler:
            raise ValueError(
                f"scheduler is 'threads', an address such as tcp://host:8786, or a client, not {scheduler!r}"
            )
        with require("distributed", extra="cluster").Client(scheduler) as client:
            yield client
    else:
        yield scheduler


def write_on(client: Any, tiles: MultiSourceArray, sink: StoreSink, report: Callable[[int, int], object]) -> None:
    """Write all samples into the chunks of a scattered sink, on the workers of a cluster, and complete it.

    Parameters
    ----------
    client : a `distributed.Client`; its workers see the same file system
    tiles : the samples, in the order of the store
    sink : begun, for ``len(tiles)`` rows; chunks that it has already are not written again
    report : told (samples written, all samples)

    Raises
    ------
    LazyTilesError : a sample cannot be read or written, as the task said it; what is there stays for `resume`
    """
    try:
        layout = BlockTarget.of(sink, len(tiles)).layout
        step = layout.chunk * max(1, STEP_BYTES // max(1, layout.chunk * layout.row_bytes))
        starts = sorted({start // step * step for start in sink.missing})
        there = sorted({*range(0, len(tiles), step)} - {*starts})
        sink.compare((start, tiles.take(np.arange(start, min(start + step, len(tiles))))) for start in there)
        target = BlockTarget.of(sink, len(tiles))
        starts = sorted({start // step * step for start in sink.missing})
        done = len(tiles) - sum(min(step, len(tiles) - start) for start in starts)
        blocks = tiles.to_dask(chunks=(step, *tiles.shape[1:])).to_delayed().ravel()
        delayed = importlib.import_module("dask").delayed
        writes = [delayed(write_block, pure=False)(target, start, blocks[start // step]) for start in starts]
        parts = [range(start, min(start + step, len(tiles))) for start in starts]
        for start, crcs in _as_they_end(client, client.compute(writes), tiles, parts):
            sink.place(start, crcs)
            done += min(step, len(tiles) - start)
            report(done, len(tiles))
        sink.close()
    finally:
        sink.abort()


def _as_they_end(client: Any, futures: Sequence[Any], tiles: Any, parts: Sequence[Any]) -> Iterator[Any]:
    completed = require("distributed", extra="cluster").as_completed(futures)
    samples = {future.key: part for future, part in zip(futures, parts, strict=True)}
    try:
        for future in completed:
            yield result_of(future, tiles, samples[future.key])
            future.release()
    finally:
        client.cancel(futures)


def result_of(future: Any, tiles: Any, samples: Sequence[int] | NDArray[np.int64]) -> Any:
    """The result of a task, or its error, which names samples and files where every worker died of them.

    Parameters
    ----------
    future : of the task
    tiles : an array of samples
    samples : the positions of those that the task is about

    Raises
    ------
    LazyTilesError : the task has killed so many workers that it is not tried again
    """
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ != "KilledWorker" or not isinstance(tiles, MultiSourceArray):
            raise
        sources = np.unique(tiles.index_pairs[np.asarray(samples), 0]).tolist()
        openers = [opener for number in sources for opener in getattr(tiles.sources[number], "regions", ())]
        paths = [str(opener.args[0]) for opener in openers if isinstance(opener, partial)]
        more = f" and {len(paths) - 5} more files" if len(paths) > 5 else ""
        raise LazyTilesError(
            f"{tiles.name_of(int(samples[0]))} to {tiles.name_of(int(samples[-1]))} ({', '.join(paths[:5])}{more}): "
            "every worker that worked on them died, for want of memory or by a crash; see the workers' logs, and "
            "give them more memory or fewer threads"
        ) from error


def in_order(client: Any, work: Callable[..., Any], shared: Any, parts: Sequence[Any]) -> Generator[Any, None, None]:
    """``work(shared, part)`` for each part, on the workers, in the order of the parts.

    Parameters
    ----------
    client : a `distributed.Client`
    work : a function that can be sent
    shared : what every task needs, with the tiles second; it is held as a task of its own, and made again when
        its worker dies
    parts : one for each task, the positions of its samples first; some are worked on ahead of the one that is
        waited for
    """
    held = client.submit(_same, shared, pure=False)
    waiting = iter(parts)
    ahead: deque[Any] = deque()
    try:
        while True:
            most = 2 * max(1, sum(client.nthreads().values()))
            while len(ahead) < most and (part := next(waiting, waiting)) is not waiting:
                ahead.append((client.submit(work, held, part, pure=False), part))
            if not ahead:
                return
            future, part = ahead[0]
            yield result_of(future, shared[1], part[0])
            ahead.popleft()
            future.release()
    finally:
        client.cancel([future for future, _ in ahead])
        held.release()


def _same(shared: Any) -> Any:
    return shared


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
