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
from lazytiles.predictions.assembly import Assembly, Options, ScanTiles, scans_of
from lazytiles.predictions.blends import COMBINE
from lazytiles.predictions.model import Caller, Loaded
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
    """Run a model over every tile, and give back its predictions as whole regions, one after the other.

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
    inputs: Any = getattr(tiles, "inputs", None)
    is_adapter = isinstance(inputs, Inputs)
    if is_adapter:
        if inputs.has_transform:
            raise ValueError(
                "predict takes an adapter without a transform, which may augment and so move what is predicted: pass "
                "KerasAdapter(tiles, normalize=...), and do what must be done to the tiles in the model"
            )
        if normalize is not False or batch_size not in (BATCH_SIZE, inputs.batch_size):
            raise ValueError("an adapter brings its own normalize and batch_size; leave them out, or pass its tiles")
        x, scaling, batch_size = inputs.x, inputs.scaling, inputs.batch_size
        labels = None if isinstance(inputs.y, tuple | list | Mapping) else inputs.y
    else:
        if not isinstance(tiles, tuple | list | Mapping) and not getattr(tiles, "shape", ()):
            kind = type(tiles).__name__
            raise TypeError(f"predict takes tiles, such as open_tiles gives, or another source, not {kind}")
        x, labels = with_tabular(tiles), None
        scaling = Scaling.of(normalize, x)
    sources = leaves(as_sources(x))
    if not sources or len({len(source) for source in sources}) > 1:
        raise ValueError(f"sources of one length are needed, these have {[len(source) for source in sources]}")
    # A view of tiles is a selection of them.
    views = [(isinstance(source, DelayedView) and source.source, source) for source in sources]
    arrays = [view.select(one.samples) if isinstance(view, MultiSourceArray) else one for view, one in views]
    number = next((k for k, array in enumerate(arrays) if isinstance(array, MultiSourceArray)), 0)
    main = arrays[number] if isinstance(arrays[number], MultiSourceArray) else MultiSourceArray([arrays[number]])
    scans = scans_of(main, by)
    outs = outputs(out, [scan.id for scan in scans], overwrite=overwrite)
    options = Options(blend, fill, dtype, with_x, paint)
    call = Caller.of(model if client is None else Loaded(model), activation, scaling)
    x, labels = rebuilt(x, iter(sources)), labels if is_adapter else main.labels
    job = _Job(call, x, main, number, labels, batch_size, options, threads if client is None else threads or 1)
    return job.scans(scans, outs, progress) if client is None else _scans_on(client, job, by, scans, outs, progress)


def rows_of(source: Any, positions: NDArray[np.int64]) -> Any:
    """Some samples of a source; those of a small array are copied, others stay lazy."""
    if isinstance(source, np.ndarray) and source.ndim < 3:
        return source[positions]
    return (source if isinstance(source, MultiSourceArray) else MultiSourceArray([source])).select(positions)


@dataclass(frozen=True, slots=True)
class _Job:
    """A model, what it is given and what is wanted of it."""

    call: Caller
    x: Structure  # of sources
    tiles: MultiSourceArray  # the one of them that says where samples lie, as an array
    number: int  # its place among them
    labels: Any  # in step with the samples, or None
    batch_size: int
    options: Options
    threads: int | None

    def select(self, positions: NDArray[np.int64]) -> _Job:
        """Some of the samples, in another order."""
        sources = [rows_of(source, positions) for source in leaves(self.x)]
        labels = None if self.labels is None else rows_of(self.labels, positions)
        tiles = sources[self.number] = self.tiles.select(positions)
        return replace(self, x=rebuilt(self.x, iter(sources)), tiles=tiles, labels=labels)

    def scans(
        self, scans: Sequence[ScanTiles], outs: Sequence[Any], progress: bool | OnProgress = False
    ) -> Iterator[dict[str, Any]]:
        """What comes of some scans, one after the other."""
        if not scans:
            return
        chosen = self.select(np.concatenate([scan.positions for scan in scans]))
        sources, labels = {"x": chosen.x}, chosen.labels
        if labels is not None and (not isinstance(labels, np.ndarray) or labels.ndim > 2):
            sources, labels = sources | {"masks": labels}, None
        how: dict[str, Any] = {"prefetch": 1, "readahead_bytes": READAHEAD_BYTES, "threads": self.threads, "seed": 0}
        flow = BatchFlow(sources, chosen.batch_size, **how)
        waiting, now, first = iter(zip(scans, outs, strict=True)), None, 0
        done, total = 0, len(chosen.tiles)
        with flow, reporting(progress, total, _SAID) as report:
            batches = flow.flow()
            try:
                started = time.perf_counter()
                for batch in batches:
                    values = self.call(batch["x"])
                    rows = {**batch, "x": leaves(batch["x"])[chosen.number], "y": values}
                    done, used = done + len(values), 0
                    report(done, total)
                    while used < len(values):
                        if now is None:
                            scan, goal = next(waiting)
                            part = None if labels is None else labels[first : first + len(scan)]
                            now, first = Assembly(scan, self.tiles, part, self.options, goal), first + len(scan)
                        used += now.add(rows, used)
                        if not now.missing:
                            found = now.finish(time.perf_counter() - started)
                            now = None
                            yield found
                            started = time.perf_counter()
                    ended = time.perf_counter()
                    if now is not None:
                        now.seconds += ended - started
                    started = ended
            finally:
                if now is not None:
                    now.close()
                batches.close()  # type: ignore[attr-defined]  # a generator, which its type hides


def _scans_on(
    client: Any, job: _Job, by: str | None, scans: Sequence[ScanTiles], outs: Sequence[Any], progress: bool | OnProgress
) -> Iterator[dict[str, Any]]:
    """Scans made on the workers of a cluster, one a task, in their order."""
    if any(not isinstance(goal, str | os.PathLike | None) for goal in outs):
        raise ValueError("with client= the maps go to files that all workers see, or come back: out is None or paths")
    # Each is written by its task alone, perhaps twice: what lies there already is the work of its first run.
    paths = [None if goal is None else Replacing(goal) for goal in outs]
    parts = [(scan.positions, path) for scan, path in zip(scans, paths, strict=True)]
    shared = (job, job.tiles, by)
    total, done = sum(map(len, scans)), 0
    with (
        reporting(progress, total, _SAID) as report,
        closing(in_order(client, _scan_on_worker, shared, parts)) as results,
    ):
        for found, path, scan in zip(results, paths, scans, strict=True):
            if path is not None:
                sweep(Path(path))
            done += len(scan)
            report(done, total)
            yield found


def _scan_on_worker(shared: tuple[_Job, Any, str | None], part: tuple[NDArray[np.int64], Any]) -> dict[str, Any]:
    job, _, by = shared
    positions, path = part
    job = job.select(positions)
    return next(job.scans(scans_of(job.tiles, by), [path]))


def outputs(out: Any, ids: Sequence[Any], *, overwrite: bool = False) -> list[Any]:
    """The output of each scan, by its id, for the `out` of `predict`: each its own, and one that can be written.

    >>> [str(path) for path in outputs("maps/{id}.npy", ["a", "b"])]
    ['maps/a.npy', 'maps/b.npy']
    """
    goals: list[Any] = [out] * len(ids)
    if isinstance(out, Mapping):
        try:
            goals = [out[key] for key in ids]
        except KeyError as error:
            raise ValueError(f"out= has nothing for the scan {error}; there are {len(ids)} scans") from error
    elif isinstance(out, (str, os.PathLike)):
        path = Path(out)
        if "{id}" not in str(path) and path.suffix.lower() in FILES:
            if len(ids) > 1:
                raise ValueError(f"{path}: one file for {len(ids)} regions; write {{id}} where its name goes")
            goals = [path] * len(ids)
        else:
            if "{id}" not in str(path):
                path.mkdir(parents=True, exist_ok=True)
                path = path / "{id}.tif"
            for key in ids:
                # A region without a `region_id` is named by its path, which may lie in folders.
                if not all(map(is_component, str(key).split("/"))):
                    raise ValueError(f"id {key!r} cannot be part of a file name; pass a function from the id to a path")
            goals = [Path(str(path).replace("{id}", str(key))) for key in ids]
    elif callable(out) and not hasattr(out, "append"):
        goals = [out(key) for key in ids]
    elif out is not None and len(ids) > 1:
        raise ValueError(f"one array for {len(ids)} regions; pass a mapping or a function from the id to an array")
    names: dict[str, Any] = {}
    for number, (key, goal) in enumerate(zip(ids, goals, strict=True)):
        if isinstance(goal, str | os.PathLike):
            place = os.path.abspath(goal)
            if place in names:
                raise ValueError(
                    f"{goal}: the scans {names[place]} and {key} would be one file; pass a function from the id to a "
                    "path, or open the tiles by frames= so that each region is one scan"
                )
            names[place] = key
            goals[number] = Replacing(goal) if overwrite else goal
        check_out(goals[number])
    return goals
