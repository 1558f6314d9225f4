"""Work on the workers of a `distributed.Client`: exports chunk by chunk, models loaded once in each worker.

Tasks may run twice, and run again when a worker dies; what they do twice is done once. A task that fails for good
ends the work with its own error, and the others are cancelled.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.errors import LazyTilesError, require


@contextmanager
def connected(scheduler: Any) -> Iterator[Any]:
    """The client of a dask scheduler, closed at the end if it is opened here; None works on this machine's threads.

    `scheduler` is None or ``"threads"``; an address, such as ``"tcp://host:8786"``; or a `distributed.Client`, which
    stays open. Something else is a ValueError.
    """
    if scheduler is None or scheduler == "threads":
        yield None
    elif isinstance(scheduler, str):
        if ":" not in scheduler:
            raise ValueError(
                f"scheduler is 'threads', an address such as tcp://host:8786, or a client, not {scheduler!r}"
            )
        # A client that failed to connect would remain the default of dask and break the next `compute`.
        with require("distributed", extra="cluster").Client(scheduler, set_as_default=False) as client:
            yield client
    else:
        yield scheduler


def result_of(future: Any, tiles: Any, samples: Sequence[int] | NDArray[np.int64]) -> Any:
    """The result of a task about samples at some positions of an array of tiles, or its error.

    Where every worker died of the task, so that it is not tried again, a LazyTilesError names samples and files.
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


def results(
    client: Any,
    futures: Iterable[Any],
    tiles: Any = None,
    parts: Iterable[Any] | None = None,
    most: Callable[[], int] | None = None,
) -> Generator[Any, None, None]:
    """The results of tasks in their order, each released when it was given; what is left at the end is cancelled.

    The tasks may be submitted as they are taken; `parts` has the positions of the samples of each, see `result_of`.
    `most` gives how many are taken before the first result is waited for; None takes all at once.
    """
    waiting = zip(futures, itertools.repeat(()) if parts is None else parts, strict=False)
    ahead = deque[Any]()
    try:
        while True:
            ahead.extend(itertools.islice(waiting, None if most is None else max(0, most() - len(ahead))))
            if not ahead:
                return
            yield result_of(ahead[0][0], tiles, ahead[0][1])
            ahead.popleft()[0].release()
    finally:
        client.cancel([future for future, _ in ahead])


def in_order(client: Any, work: Callable[..., Any], shared: Any, parts: Sequence[Any]) -> Generator[Any, None, None]:
    """``work(shared, part)`` for each part, on the workers, in the order of the parts, some ahead of the one wanted.

    A part has the positions of its samples first. `shared` has the tiles second; it is held as a task of its own, and
    made again when its worker dies.
    """
    held = client.submit(_same, shared, pure=False)
    futures = (client.submit(work, held, part, pure=False) for part in parts)
    try:
        yield from results(
            *(client, futures, shared[1], (part[0] for part in parts)),
            most=lambda: 2 * max(1, sum(client.nthreads().values())),
        )
    finally:
        held.release()


def _same(shared: Any) -> Any:
    return shared
