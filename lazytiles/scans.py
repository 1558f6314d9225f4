"""`predict`: a model over every tile, and whole regions back, one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lazytiles.assembly import Assembly, Layout, Options, layouts_of
from lazytiles.blends import COMBINE
from lazytiles.cluster import Loaded, in_order
from lazytiles.flow import BatchFlow
from lazytiles.multisource import MultiSourceArray
from lazytiles.paths import is_component
from lazytiles.rows import FILES, Replacing, check_out, sweep

Batch = NDArray[Any]
READAHEAD_BYTES = 32 * 2**20


def predict(
    model: Any,
    tiles: Any,
    *,
    blend: str = "mean",
    out: Any = None,
    batch_size: int = 32,
    by: str | None = None,
    activation: str | Callable[[Batch], Batch] | None = None,
    with_x: bool = False,
    fill: Any = None,
    dtype: DTypeLike | None = None,
    paint: bool = False,
    threads: int | None = None,
    client: Any = None,
) -> Iterator[dict[str, Any]]:
    """A model's predictions of every tile, given back as whole regions, one after the other.

    Parameters
    ----------
    model : a Keras model, or any callable from a batch of tiles to a batch of predictions: `(n, height,
        width, ...)` for maps, `(n, k)` or `(n,)` for classes and numbers. Where the tiles have `tabular`
        columns, the batch is the tuple of images and columns.
    tiles : `MultiSourceArray`, whatever its order; it is left as it is. Any other source is one scan, of which
        each sample is a slice
    blend : what a pixel under several tiles becomes, see `Canvas`
    out : where the maps go: None for new arrays; a folder, which gets ``{id}.tif``; a path with ``{id}`` in
        it that ends in .tif, .npy or .zarr; a mapping or a function from the id to an array or path; for one
        region alone also an array or a path
    batch_size : tiles a batch; a batch may hold tiles of two regions
    by : a column of the table: all regions of one value are one scan, stacked as the slices of a volume
    activation : ``"softmax"``, ``"sigmoid"`` or a function, applied to each batch of predictions
    with_x : whether the images are stitched as well
    fill, dtype : of the maps, see `Canvas`
    paint : whether predictions of one class or number a tile are also painted on a map
    threads : threads that read
    client : a `distributed.Client`; each scan is then made on a worker, `model` is a function without arguments that
        makes the model, called once in each worker, and `out` is None or names files

    Yields
    ------
    dict with ``id`` (the region's, or the value of `by`), ``y_pred`` of shape `(height, width, ...)` (the
    depth before them, for volumes) or a table by `tile_id` for `(n, k)` predictions, ``y_true`` where there
    are mask tiles or labels of such tiles, ``x`` and ``map`` if asked for, ``seconds`` spent on it, the
    consumer's own time left out

    Raises
    ------
    ValueError : predictions that are no map of their tile, unknown options, one `out` for several regions

    Notes
    -----
    Regions come in the manifest's order, their tiles from top to bottom, so the result is the same for a
    shuffled array. With `out`, only those rows of a region are in memory which a later tile can touch. A
    consumer that stops early leaves no thread and no half-written file. Where masks are stitched, pixels
    under no tile are 0; `y_pred` has NaN or `fill` there.

    Examples
    --------
    >>> from lazytiles.multisource import MultiSourceArray
    >>> scans = MultiSourceArray([np.zeros((2, 4, 4, 1)), np.ones((3, 4, 4, 1))]).shuffle(1)
    >>> [(scan["id"], scan["y_pred"].shape) for scan in predict(lambda x: x, scans)]
    [(0, (2, 4, 4, 1)), (1, (3, 4, 4, 1))]
    """
    if blend not in COMBINE:
        raise ValueError(f"blend={blend!r} is not known; choose one of {', '.join(COMBINE)}")
    if not getattr(tiles, "shape", ()):
        raise TypeError(f"predict takes tiles, such as open_tiles gives, or another source, not {type(tiles).__name__}")
    if not hasattr(tiles, "index_pairs"):
        tiles = MultiSourceArray([tiles])
    layouts = layouts_of(tiles, by)
    outs = outputs(out, [layout.id for layout in layouts])
    if client is not None:
        rest = {"blend": blend, "batch_size": batch_size, "by": by, "activation": activation, "with_x": with_x}
        rest |= {"fill": fill, "dtype": dtype, "paint": paint, "threads": threads or 1}
        return _scans_on(client, Loaded(model), tiles, layouts, outs, rest)
    options = Options(blend, fill, dtype, with_x, paint)
    return _scans(Caller.of(model, activation), tiles, layouts, outs, options, batch_size, threads)


def _scans_on(
    client: Any, model: Loaded, tiles: Any, layouts: Sequence[Layout], outs: Sequence[Any], options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Scans made on the workers of a cluster, one a task, in their order."""
    if any(not isinstance(goal, str | os.PathLike | None) for goal in outs):
        raise ValueError("with client= the maps go to files that all workers see, or come back: out is None or paths")
    paths = [None if goal is None else Path(goal) for goal in outs]
    for path in paths:
        if path is not None:
            check_out(path)  # before any work; later it would be the work of a task that runs again
    parts = [(layout.positions, path) for layout, path in zip(layouts, paths, strict=True)]
    with closing(in_order(client, _scan_on_worker, (model, tiles, options), parts)) as scans:
        for scan, path in zip(scans, paths, strict=True):
            if path is not None:
                sweep(path)
            yield scan


def _scan_on_worker(shared: tuple[Loaded, Any, dict[str, Any]], part: tuple[NDArray[np.int64], Any]) -> dict[str, Any]:
    model, tiles, options = shared
    positions, path = part
    out = None if path is None else lambda _: Replacing(path)
    return next(iter(predict(model, tiles.select(positions), out=out, **options)))


def _scans(
    call: Caller,
    tiles: Any,
    layouts: Sequence[Layout],
    outs: Sequence[Any],
    options: Options,
    batch_size: int,
    threads: int | None,
) -> Iterator[dict[str, Any]]:
    if not layouts:
        return
    chosen = tiles.select(np.concatenate([layout.positions for layout in layouts]))
    sources, labels = _sources(chosen)
    flow = BatchFlow(sources, batch_size, prefetch=1, readahead_bytes=READAHEAD_BYTES, threads=threads, seed=0)
    queue = _Queue(layouts, outs, tiles, labels, options)
    with flow:
        batches = flow.flow()
        try:
            started = time.perf_counter()
            for batch in batches:
                for assembly in queue.put({**batch, "y": call(batch)}):
                    scan = assembly.finish(time.perf_counter() - started)
                    yield scan
                    started = time.perf_counter()
                started = queue.spent(started)
        finally:
            queue.close()
            batches.close()  # type: ignore[attr-defined]  # a generator, which its type hides


def _sources(tiles: Any) -> tuple[dict[str, Any], Batch | None]:
    """What is read in tandem, and the labels that are no masks."""
    sources: dict[str, Any] = {"x": tiles}
    if tiles.tabular is not None:
        sources["tabular"] = tiles.tabular
    labels = tiles.labels
    if labels is not None and (not isinstance(labels, np.ndarray) or labels.ndim > 2):
        return {**sources, "masks": labels}, None
    return sources, labels


class _Queue:
    """The scans in their order, of which one is in the making."""

    def __init__(
        self,
        layouts: Sequence[Layout],
        outs: Sequence[Any],
        tiles: Any,
        labels: Batch | None,
        options: Options,
    ) -> None:
        self._waiting = iter(zip(layouts, outs, strict=True))
        self._tiles, self._labels, self._options = tiles, labels, options
        self._taken = 0
        self._now: Assembly | None = None

    def put(self, batch: Mapping[str, Batch]) -> Iterator[Assembly]:
        """Hand the rows of a batch to their scans; those that are complete with it."""
        done = 0
        while done < len(batch["y"]):
            now = self._now = self._now or self._next()
            done += now.add(batch, done)
            if not now.missing:
                yield now
                self._now = None

    def _next(self) -> Assembly:
        layout, goal = next(self._waiting)
        part = slice(self._taken, self._taken + len(layout))
        self._taken += len(layout)
        labels = None if self._labels is None else self._labels[part]
        return Assembly(layout, self._tiles, labels, self._options, goal)

    def spent(self, since: float) -> float:
        """Count the time since then for the scan in the making; the time now."""
        now = time.perf_counter()
        if self._now is not None:
            self._now.seconds += now - since
        return now

    def close(self) -> None:
        """Give up the scan in the making."""
        if self._now is not None:
            self._now.close()


@dataclass(frozen=True, slots=True)
class Caller:
    """A model as a function from the sources of a batch to an array of predictions."""

    function: Callable[[Any], Any]
    activation: Callable[[Batch], Batch] | None

    @classmethod
    def of(cls, model: Any, activation: str | Callable[[Batch], Batch] | None) -> Caller:
        """From what a user gives.

        >>> Caller.of(lambda x: x - 1, "sigmoid")({"x": np.ones((1, 1))})
        array([[0.5]])
        """
        function = getattr(model, "predict_on_batch", model)
        if not callable(function):
            raise TypeError(f"the model is a {type(model).__name__}; a Keras model or a callable is needed")
        if isinstance(activation, str):
            if activation not in ACTIVATIONS:
                raise ValueError(f"activation={activation!r} is not known; choose {' or '.join(ACTIVATIONS)}")
            activation = ACTIVATIONS[activation]
        return cls(function, activation)

    def __call__(self, batch: Mapping[str, Batch]) -> Batch:
        """The predictions, in step with the batch."""
        given = batch["x"]
        found = self.function((given, batch["tabular"]) if "tabular" in batch else given)
        if isinstance(found, list | tuple | dict):
            raise ValueError(f"the model gives {len(found)} outputs; wrap it so that it gives one array")
        if hasattr(found, "detach"):
            found = found.detach().cpu()
        array = np.asarray(found)
        if not array.ndim or len(array) != len(given):
            raise ValueError(f"the model gives an array of shape {array.shape} for {len(given)} tiles")
        return array if self.activation is None else self.activation(array)


def _softmax(values: Batch) -> Batch:
    powers: Batch = np.exp(values - values.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def _sigmoid(values: Batch) -> Batch:
    # By tanh, which overflows nowhere.
    return 0.5 * (1 + np.tanh(0.5 * values))


ACTIVATIONS: dict[str, Callable[[Batch], Batch]] = {"softmax": _softmax, "sigmoid": _sigmoid}


def outputs(out: Any, ids: Sequence[Any]) -> list[Any]:
    """The output of each scan, by its id, for the `out` of `predict`.

    Parameters
    ----------
    out : as `predict` takes it
    ids : of the scans

    Raises
    ------
    ValueError : one array or file for several scans, none for one of them, or an id that cannot be part of a
        file name

    >>> [str(path) for path in outputs("maps/{id}.npy", ["a", "b"])]
    ['maps/a.npy', 'maps/b.npy']
    """
    if out is None:
        return [None] * len(ids)
    if isinstance(out, Mapping):
        try:
            return [out[key] for key in ids]
        except KeyError as error:
            raise ValueError(f"out= has nothing for the scan {error}; there are {len(ids)} scans") from error
    if isinstance(out, (str, os.PathLike)):
        return _paths(Path(out), ids)
    if callable(out) and not hasattr(out, "append"):
        return [out(key) for key in ids]
    if len(ids) > 1:
        raise ValueError(f"one array for {len(ids)} regions; pass a mapping or a function from the id to an array")
    return [out] * len(ids)


def _paths(path: Path, ids: Sequence[Any]) -> list[Path]:
    if "{id}" not in str(path):
        if path.suffix.lower() in FILES:
            if len(ids) > 1:
                raise ValueError(f"{path}: one file for {len(ids)} regions; write {{id}} where its name goes")
            return [path] * len(ids)
        path.mkdir(parents=True, exist_ok=True)
        path = path / "{id}.tif"
    for key in ids:
        # A region without a `region_id` is named by its path, which may lie in folders.
        if not all(map(is_component, str(key).split("/"))):
            raise ValueError(f"id {key!r} cannot be part of a file name; pass a function from the id to a path")
    return [Path(str(path).replace("{id}", str(key))) for key in ids]
