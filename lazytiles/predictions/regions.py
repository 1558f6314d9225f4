"""`predict`: a model over every tile, and whole regions back, one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lazytiles.arrays import DelayedView, MultiSourceArray, in_order
from lazytiles.manifests import is_component
from lazytiles.predictions.assembly import Assembly, Layout, Options, layouts_of
from lazytiles.predictions.blends import COMBINE
from lazytiles.predictions.model import Loaded
from lazytiles.predictions.sinks import FILES, Replacing, check_out, sweep
from lazytiles.stores import OnProgress, reporting
from lazytiles.training import BatchFlow, Inputs, Scaling, as_sources, with_tabular
from lazytiles.trees import Structure, leaves, rebuilt

Batch = NDArray[Any]
READAHEAD_BYTES = 32 * 2**20
BATCH_SIZE = 32
_SAID = "predicting tiles"


def predict(
    model: Any,
    tiles: Any,
    *,
    normalize: Any = False,
    blend: str = "mean",
    out: Any = None,
    overwrite: bool = False,
    progress: bool | OnProgress = False,
    batch_size: int = BATCH_SIZE,
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
        each sample is a slice. A tuple or dict of sources of one length goes to the model in that form; the first
        that comes from regions, else the first, says where the tiles lie. A `KerasAdapter` without a transform:
        its sources in their own order, its normalisation and its batch size
    normalize : as in `KerasAdapter`: what the model was trained with, done to each batch before the model has it
    blend : what a pixel under several tiles becomes, see `Canvas`
    out : where the maps go: None for new arrays; a folder, which gets ``{id}.tif``; a path with ``{id}`` in
        it that ends in .tif, .npy or .zarr; a mapping or a function from the id to an array or path; for one
        region alone also an array or a path
    overwrite : whether maps replace files that are there, each once it is complete
    progress : whether to draw a bar, or a function that is called with (tiles done, all tiles)
    batch_size : tiles a batch; a batch may hold tiles of two regions
    by : a column of the table: all regions of one value are one scan, stacked as the slices of a volume
    activation : ``"softmax"``, ``"sigmoid"`` or a function, applied to each batch of predictions
    with_x : whether the images are stitched as well, as they were read
    fill, dtype : of the maps, see `Canvas`
    paint : whether predictions of one class or number a tile are also painted on a map
    threads : threads that read
    client : a `distributed.Client`; each scan is then made on a worker, `model` is a function without arguments that
        makes the model, called once in each worker, and `out` is None or names files

    Yields
    ------
    dict with ``id`` (the region's, or the value of `by`), ``y_pred`` of shape `(height, width, ...)` (frames, or
    the depth, before them), the same whatever `out` is, or a table by `tile_id` for `(n, k)` predictions,
    ``y_true`` where there are mask tiles or labels of such tiles, ``x`` and ``map`` if asked for, ``seconds``
    spent on it, the consumer's own time left out

    Raises
    ------
    ValueError : predictions that are no map of their tile, unknown options, one `out` for several regions
    StoreError : a file of `out` exists; said before the model runs

    Notes
    -----
    Regions come in the manifest's order, their tiles from top to bottom, so the result is the same for a
    shuffled array. With `out`, only those rows of a region are in memory which a later tile can touch. A
    consumer that stops early leaves no thread and no half-written file. Where masks are stitched, pixels
    under no tile are 0; `y_pred` has NaN or `fill` there.

    Examples
    --------
    >>> from lazytiles.arrays.multisource import MultiSourceArray
    >>> scans = MultiSourceArray([np.zeros((2, 4, 4, 1)), np.ones((3, 4, 4, 1))]).shuffle(1)
    >>> [(scan["id"], scan["y_pred"].shape) for scan in predict(lambda x: x, scans)]
    [(0, (2, 4, 4, 1)), (1, (3, 4, 4, 1))]
    """
    if blend not in COMBINE:
        raise ValueError(f"blend={blend!r} is not known; choose one of {', '.join(COMBINE)}")
    given = _given(tiles, normalize, batch_size)
    layouts = layouts_of(given.tiles, by)
    outs = outputs(out, [layout.id for layout in layouts], overwrite=overwrite)
    options = Options(blend, fill, dtype, with_x, paint)
    if client is not None:
        job = _Job(Loaded(model), activation, given, options, threads or 1)
        return _scans_on(client, job, by, layouts, outs, progress)
    return _Job(model, activation, given, options, threads).scans(layouts, outs, progress)


@dataclass(frozen=True, slots=True)
class _Given:
    """What the model gets, the tiles among it, and what stands beside.

    Parameters
    ----------
    x : a source, or tuples and dicts of sources
    tiles : the one of `x` that says where samples lie, as an array
    number : its place among the sources of `x`
    labels : in step with the samples, or None
    scaling : of a batch of `x`
    """

    x: Structure
    tiles: MultiSourceArray
    number: int
    labels: Any
    scaling: Scaling | None
    batch_size: int

    def select(self, positions: NDArray[np.int64]) -> _Given:
        """Some of the samples, in another order."""
        sources = [rows_of(source, positions) for source in leaves(self.x)]
        labels = None if self.labels is None else rows_of(self.labels, positions)
        tiles = sources[self.number] = self.tiles.select(positions)
        return replace(self, x=rebuilt(self.x, iter(sources)), tiles=tiles, labels=labels)


def rows_of(source: Any, positions: NDArray[np.int64]) -> Any:
    """Some samples of a source; those of a small array are copied, others stay lazy."""
    if isinstance(source, np.ndarray) and source.ndim < 3:
        return source[positions]
    return (source if isinstance(source, MultiSourceArray) else MultiSourceArray([source])).select(positions)


def _as_array(source: Any) -> tuple[MultiSourceArray, bool]:
    """A source as an array of tiles, and whether it is one; a view of tiles is a selection of them."""
    if isinstance(source, DelayedView) and isinstance(source.source, MultiSourceArray):
        return source.source.select(source.samples), True
    is_array = isinstance(source, MultiSourceArray)
    return (source if is_array else MultiSourceArray([source])), is_array


def _given(tiles: Any, normalize: Any, batch_size: int) -> _Given:
    """The sources of `predict`, from tiles, any sources or an adapter."""
    inputs = getattr(tiles, "inputs", None)
    if isinstance(inputs, Inputs):
        if inputs.has_transform:
            raise ValueError(
                "predict takes an adapter without a transform, which may augment and so move what is predicted: pass "
                "KerasAdapter(tiles, normalize=...), and do what must be done to the tiles in the model"
            )
        if normalize is not False or batch_size not in (BATCH_SIZE, inputs.batch_size):
            raise ValueError("an adapter brings its own normalize and batch_size; leave them out, or pass its tiles")
        x, labels, scaling, batch_size = inputs.x, inputs.y, inputs.scaling, inputs.batch_size
        if isinstance(labels, tuple | list | Mapping):
            labels = None
    else:
        is_single = not isinstance(tiles, tuple | list | Mapping)
        if is_single and not getattr(tiles, "shape", ()):
            kind = type(tiles).__name__
            raise TypeError(f"predict takes tiles, such as open_tiles gives, or another source, not {kind}")
        x = with_tabular(tiles)
        labels, scaling = None, Scaling.of(normalize, x)
    sources = leaves(as_sources(x))
    x = rebuilt(x, iter(sources))
    if not sources or len({len(source) for source in sources}) > 1:
        raise ValueError(f"sources of one length are needed, these have {[len(source) for source in sources]}")
    arrays = [_as_array(source) for source in sources]
    number = next((k for k, (_, is_placed) in enumerate(arrays) if is_placed), 0)
    main = arrays[number][0]
    if labels is None and not isinstance(inputs, Inputs):
        labels = main.labels
    return _Given(x, main, number, labels, scaling, batch_size)


@dataclass(frozen=True, slots=True)
class _Job:
    """A model, what it is given and what is wanted of it."""

    model: Any
    activation: Any
    given: _Given
    options: Options
    threads: int | None

    def scans(
        self, layouts: Sequence[Layout], outs: Sequence[Any], progress: bool | OnProgress = False
    ) -> Iterator[dict[str, Any]]:
        """The scans of some layouts, one after the other."""
        return _scans(Caller.of(self.model, self.activation, self.given.scaling), self, layouts, outs, progress)


def _scans_on(
    client: Any, job: _Job, by: str | None, layouts: Sequence[Layout], outs: Sequence[Any], progress: bool | OnProgress
) -> Iterator[dict[str, Any]]:
    """Scans made on the workers of a cluster, one a task, in their order."""
    if any(not isinstance(goal, str | os.PathLike | None) for goal in outs):
        raise ValueError("with client= the maps go to files that all workers see, or come back: out is None or paths")
    paths = [None if goal is None else Path(goal) for goal in outs]
    parts = [(layout.positions, path) for layout, path in zip(layouts, paths, strict=True)]
    shared = (job, job.given.tiles, by)
    total, done = sum(map(len, layouts)), 0
    with (
        reporting(progress, total, _SAID) as report,
        closing(in_order(client, _scan_on_worker, shared, parts)) as scans,
    ):
        for scan, path, layout in zip(scans, paths, layouts, strict=True):
            if path is not None:
                sweep(path)
            done += len(layout)
            report(done, total)
            yield scan


def _scan_on_worker(shared: tuple[_Job, Any, str | None], part: tuple[NDArray[np.int64], Any]) -> dict[str, Any]:
    job, _, by = shared
    positions, path = part
    # A path that this task alone writes, perhaps twice: what lies there already is the work of its first run.
    out = None if path is None else Replacing(path)
    given = job.given.select(positions)
    return next(replace(job, given=given).scans(layouts_of(given.tiles, by), [out]))


def _scans(
    call: Caller, job: _Job, layouts: Sequence[Layout], outs: Sequence[Any], progress: bool | OnProgress
) -> Iterator[dict[str, Any]]:
    if not layouts:
        return
    chosen = job.given.select(np.concatenate([layout.positions for layout in layouts]))
    sources, labels = {"x": chosen.x}, chosen.labels
    if labels is not None and (not isinstance(labels, np.ndarray) or labels.ndim > 2):
        sources, labels = sources | {"masks": labels}, None
    how: dict[str, Any] = {"prefetch": 1, "readahead_bytes": READAHEAD_BYTES, "threads": job.threads, "seed": 0}
    flow = BatchFlow(sources, chosen.batch_size, **how)
    queue = _Queue(layouts, outs, job.given.tiles, labels, job.options)
    total, done = len(chosen.tiles), 0
    with flow, reporting(progress, total, _SAID) as report:
        batches = flow.flow()
        try:
            started = time.perf_counter()
            for batch in batches:
                values = call(batch["x"])
                done += len(values)
                report(done, total)
                for assembly in queue.put({**batch, "x": leaves(batch["x"])[chosen.number], "y": values}):
                    scan = assembly.finish(time.perf_counter() - started)
                    yield scan
                    started = time.perf_counter()
                started = queue.spent(started)
        finally:
            queue.close()
            batches.close()  # type: ignore[attr-defined]  # a generator, which its type hides


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
        if hasattr(found, "detach"):
            found = found.detach().cpu()
        array = np.asarray(found)
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


def outputs(out: Any, ids: Sequence[Any], *, overwrite: bool = False) -> list[Any]:
    """The output of each scan, by its id, for the `out` of `predict`.

    Parameters
    ----------
    out : as `predict` takes it
    ids : of the scans
    overwrite : whether files may be replaced

    Raises
    ------
    ValueError : one array or file for several scans, none for one of them, an id that cannot be part of a
        file name, or a file that cannot be written
    StoreError : a file exists

    >>> [str(path) for path in outputs("maps/{id}.npy", ["a", "b"])]
    ['maps/a.npy', 'maps/b.npy']
    """
    goals = _goals(out, ids)
    names: dict[str, Any] = {}
    for number, (key, goal) in enumerate(zip(ids, goals, strict=True)):
        if isinstance(goal, str | os.PathLike):
            path = os.path.abspath(goal)
            if path in names:
                raise ValueError(
                    f"{goal}: the scans {names[path]} and {key} would be one file; pass a function from the id to a "
                    "path, or open the tiles by frames= so that each region is one scan"
                )
            names[path] = key
            goals[number] = Replacing(goal) if overwrite else goal
        check_out(goals[number])
    return goals


def _goals(out: Any, ids: Sequence[Any]) -> list[Any]:
    if out is None:
        return [None] * len(ids)
    if isinstance(out, Mapping):
        try:
            return [out[key] for key in ids]
        except KeyError as error:
            raise ValueError(f"out= has nothing for the scan {error}; there are {len(ids)} scans") from error
    if isinstance(out, (str, os.PathLike)):
        return list(_paths(Path(out), ids))
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
