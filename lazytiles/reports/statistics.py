"""Exact streaming statistics of tiles: per band and frame, in one pass, on threads or a dask cluster."""

from __future__ import annotations

import importlib
import json
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays import MultiSourceArray, connected, held, in_order, results
from lazytiles.display import plural
from lazytiles.training import read_rows

_BATCH_BYTES = 16 * 2**20
_BINS = 256
_SHOWN = 4  # means in a repr
_COUNTS = ("count", "not_finite", "not_valid")


@dataclass(frozen=True, slots=True, repr=False)
class Statistics:
    """What pixel values are like, per band and per frame; frames that are missing (see `valid`) are left out.

    Integer images are summed in integers, so their mean and deviation are exact to the last rounding and do not
    depend on batches, threads or workers.

    Parameters
    ----------
    count : finite values of each band, shape (C,), of frames that are there
    mean, std, min, max : shape (C,); the deviation of the population (divided by `count`)
    frames : the same of each frame, with its own `histogram`, a list of dicts; empty where tiles have no time axis
    histogram : ``"counts"``, shape (C, bins), and ``"edges"``, shape (bins + 1,)
    tiles : how many tiles were read
    not_finite : NaN and infinite values left out, shape (C,)
    not_valid : finite values left out, shape (C,): nodata, masked, transparent, or outside the image
    """

    count: Int64s
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    frames: list[dict[str, Any]]
    histogram: dict[str, Any]
    tiles: int
    not_finite: Int64s
    not_valid: Int64s

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        arrays = {name: getattr(self, name).tolist() for name in (*_COUNTS, "mean", "std", "min", "max")}
        return {**arrays, "tiles": self.tiles, "frames": self.frames, "histogram": self.histogram}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON; `load_statistics` reads it."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")

    def __repr__(self) -> str:
        means = ", ".join(f"{mean:.4g}" for mean in self.mean[:_SHOWN].tolist())
        more = ", ..." if len(self.mean) > _SHOWN else ""
        return f"<Statistics of {self.tiles} tiles, {plural(len(self.mean), 'band')}: mean {means}{more}>"

    def __str__(self) -> str:
        lines = [f"{self.tiles} tiles; band: mean ± deviation, from least to most"]
        rows = zip(self.mean, self.std, self.min, self.max, strict=True)
        lines += [f"  {k}: {m:.6g} ± {s:.6g}, {a:g} to {b:g}" for k, (m, s, a, b) in enumerate(rows)]
        return "\n".join(lines)


def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Read what `Statistics.save` wrote; ``KerasAdapter(normalize=load_statistics(path))`` takes it.

    Raises
    ------
    ValueError : the file holds something else
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {"not_valid": [0] * len(found["count"]), **found}  # earlier versions did not write it
        arrays: dict[str, Any] = {name: np.array(found[name], np.int64) for name in _COUNTS}
        arrays |= {name: np.array(found[name], np.float64) for name in ("mean", "std", "min", "max")}
        return Statistics(**arrays, frames=found["frames"], histogram=found["histogram"], tiles=found["tiles"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not statistics written by lazytiles: {error}") from error


@dataclass(slots=True)
class _Sums:
    """Sums of some tiles, shape (T, C) each, `bins` (T, C, bins); two of them add up to those of both."""

    count: Int64s
    total: NDArray[Any]
    squares: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    bins: Int64s
    not_valid: Int64s
    tiles: int

    def __add__(self, other: _Sums) -> _Sums:
        how = {"low": np.minimum, "high": np.maximum}
        names = [one.name for one in fields(self)]
        return _Sums(*(how.get(name, operator.add)(getattr(self, name), getattr(other, name)) for name in names))


def statistics(
    tiles: Any,
    *,
    client: Any = None,
    scheduler: Any = None,
    threads: int | None = None,
    limits: tuple[float, float] | None = None,
    batch_bytes: int = _BATCH_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Measure mean, deviation, extremes and histogram over all tiles; each is read once.

    Parameters
    ----------
    tiles : a source of samples (H, W), (H, W, C) or (T, H, W, C), such as `open_tiles` gives
    client : a `distributed.Client`; None works here
    scheduler : the same by another name: ``"threads"`` works here, an address such as ``"tcp://host:8786"`` on the
        workers of that dask scheduler, a `distributed.Client` on its own
    threads : as for reading
    limits : ends of the histogram for dtypes of more than 16 bits; None takes those of the data, in a pass more
    batch_bytes : bytes of tiles in memory at once, for each worker
    progress : called with tiles done and tiles in all

    Returns
    -------
    Statistics; NaN and infinities are counted apart and left out, so are nodata, masked and transparent pixels of
    images and what lies outside them, band by band, and so is what stands for frames that are missing

    Raises
    ------
    ValueError : there are no tiles, or a band has no finite value

    Examples
    --------
    >>> found = statistics(np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1))
    >>> found.mean, found.max
    (array([5.5]), array([11.]))
    """
    if scheduler is not None:
        if client is not None:
            raise ValueError("pass client= or scheduler=, not both")
        with connected(scheduler) as found_client:
            options: dict[str, Any] = {"threads": threads, "limits": limits, "batch_bytes": batch_bytes}
            return statistics(tiles, client=found_client, progress=progress, **options)
    tiles = held(tiles)
    if not len(tiles):
        raise ValueError("statistics of no tiles")
    edges = _edges(np.dtype(tiles.dtype), limits)
    there, framed = getattr(tiles, "valid", None), len(tiles.shape) == 5
    shape = len(tiles), tiles.shape[1] if framed else 1
    if not isinstance(there, np.ndarray) or there.shape != shape or there.all():
        there = None  # all are there
    judge = tiles.of_validity("bands") if hasattr(tiles, "of_validity") else None
    # Tiles that are read together are those of one region, where the array knows its regions.
    step = max(1, batch_bytes // max(1, int(np.prod(tiles.shape[1:], dtype=np.int64)) * np.dtype(tiles.dtype).itemsize))
    pairs = getattr(tiles, "index_pairs", None)
    order = np.arange(len(tiles)) if pairs is None else np.argsort(pairs[:, 0], kind="stable")
    parts = [order[start : start + step] for start in range(0, len(tiles), step)]
    asked = [(part, None if there is None else there[part]) for part in parts]
    total = len(tiles) * (1 if edges is not None else 2)
    done = 0

    def summed() -> _Sums:
        nonlocal done
        found: _Sums | None = None
        for sums in _each(tiles, judge, asked, edges, client, threads):
            found = sums if found is None else found + sums
            done += sums.tiles
            if progress:
                progress(done, total)
        assert found is not None
        return found

    if edges is None:
        first = summed()
        low, high = float(first.low.min()), float(first.high.max())
        if not np.isfinite([low, high]).all():
            raise ValueError("no value of the tiles is finite")
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    values = int(np.prod(tiles.shape, dtype=np.int64)) // int(tiles.shape[-1] if tiles.ndim >= 4 else 1)
    values = values if there is None else values // there.size * int(there.sum())
    return _finished(summed(), edges, len(tiles), framed, values)


def _edges(dtype: np.dtype[Any], given: tuple[float, float] | None) -> NDArray[np.float64] | None:
    if dtype.kind == "b":
        return np.array([0.0, 1.0, 2.0])
    if dtype.kind in "ui" and dtype.itemsize <= 2 and given is None:
        whole = np.iinfo(dtype)
        return np.linspace(whole.min, whole.max + 1, _BINS + 1)
    if dtype.kind not in "uif":
        raise ValueError(f"statistics of {dtype} values: integers, floats and booleans are summed up")
    return None if given is None else np.linspace(*given, _BINS + 1)


def _each(
    tiles: Any, judge: Any, asked: Sequence[tuple[Int64s, Any]], edges: Any, client: Any, threads: int | None
) -> Iterator[_Sums]:
    """The sums of each part, in their order, so that floats add up alike everywhere."""
    if client is None:
        yield from (_sum_part((edges, tiles, judge), one, threads) for one in asked)
        return
    if not isinstance(tiles, MultiSourceArray):
        yield from in_order(client, _sum_part, (edges, tiles, judge), asked)
        return
    # Each task carries its own windows; the array itself, with its table, is not sent.
    parts = [part for part, _ in asked]
    chunks = (tuple(map(len, parts)), *tiles.shape[1:])
    arrays = [each.select(np.concatenate(parts)).to_dask(chunks=chunks) for each in (tiles, judge) if each is not None]
    blocks = zip(*(array.to_delayed().ravel() for array in arrays), strict=True)
    sums = importlib.import_module("dask").delayed(_sums, pure=False)
    tasks = (sums(block[0], edges, there, *block[1:]) for block, (_, there) in zip(blocks, asked, strict=True))
    futures = client.compute(list(tasks))
    yield from results(client, futures, tiles, parts)


def _sum_part(shared: tuple[Any, Any, Any], asked: tuple[Int64s, Any], threads: int | None = 1) -> _Sums:
    (edges, tiles, judge), (part, there) = shared, asked
    is_ours = hasattr(tiles, "take_batches")
    block = tiles.take(part, threads=threads) if is_ours else read_rows(tiles, part)
    if judge is not None and isinstance(tiles, MultiSourceArray):  # by now the images are open
        numbers = np.unique(tiles.index_pairs[part, 0]).tolist()
        judge = None if all(getattr(tiles.sources[k], "is_all_valid", False) for k in numbers) else judge
    if judge is None:
        return _sums(block, edges, there)
    return _sums(block, edges, there, judge.take(part, **({"threads": threads} if is_ours else {})))


def _sums(
    block: NDArray[Any],
    edges: NDArray[np.float64] | None,
    there: NDArray[np.bool_] | None,
    valid: NDArray[np.bool_] | None = None,
) -> _Sums:
    """Sums of tiles, (n[, T], H, W[, C]), of which those frames are there, (n, T), and those values are valid."""
    block, valid = _with_all_axes(block), None if valid is None else _with_all_axes(valid)
    frames, bands = block.shape[1], block.shape[-1]
    shape = (frames, bands)
    count, total, squares = np.zeros(shape, np.int64), np.zeros(shape, object), np.zeros(shape, object)
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    bins = np.zeros((*shape, 0 if edges is None else len(edges) - 1), np.int64)
    not_valid = np.zeros(shape, np.int64)
    for place in np.ndindex(shape):
        frame, band = place
        samples = slice(None) if there is None else there[:, frame]
        one = block[samples, frame, ..., band].ravel()
        good = np.isfinite(one) if one.dtype.kind == "f" else np.ones(one.shape, np.bool_)
        if valid is not None:
            counts = valid[samples, frame, ..., band].ravel()
            not_valid[place] = np.count_nonzero(good & ~counts)
            good &= counts
        one = one if good.all() else one[good]
        if not one.size:
            continue
        count[place], low[place], high[place] = one.size, one.min(), one.max()
        total[place], squares[place], bins[place] = _moments(one, edges)
    return _Sums(count, total, squares, low, high, bins, not_valid, len(block))


def _with_all_axes(block: NDArray[Any]) -> NDArray[Any]:
    """(n, T, H, W, C), also of tiles without frames or bands."""
    block = block if block.ndim > 3 else block[..., None]
    return block if block.ndim > 4 else block[:, None]


def _moments(one: NDArray[Any], edges: NDArray[np.float64] | None) -> tuple[Any, Any, Int64s]:
    """Sum, sum of squares and histogram: of integers exactly, of floats in double precision around the mean."""
    if one.dtype.kind == "b":
        one = one.view(np.uint8)
    if one.dtype.kind != "f" and one.dtype.itemsize <= 2:  # each value is counted
        lowest = int(np.iinfo(one.dtype).min)
        counts = np.bincount(one.astype(np.int64) - lowest)
        values = np.flatnonzero(counts)
        counts, values = counts[values], values + lowest
        pairs = list(zip(values.tolist(), counts.tolist(), strict=True))
        bins = np.zeros(0, np.int64) if edges is None else np.histogram(values, edges, weights=counts)[0]
        return sum(n * v for v, n in pairs), sum(n * v * v for v, n in pairs), bins.astype(np.int64)
    counted = np.zeros(0, np.int64) if edges is None else np.histogram(one.astype(np.float64), edges)[0]
    if one.dtype.kind == "f":
        wide = one.astype(np.float64)
        centre = Fraction(float(wide.mean()))
        wide -= float(centre)
        rest, spread = Fraction(float(wide.sum())), Fraction(float((wide * wide).sum()))
        return centre * one.size + rest, spread + 2 * centre * rest + centre**2 * one.size, counted
    if one.dtype.itemsize == 8:
        numbers = one.astype(object)
        return int(numbers.sum()), int((numbers * numbers).sum()), counted
    # Halves of each number: the sums of their products fit 64 bits.
    wide_int = one.astype(np.int64)
    high, low = wide_int >> 16, wide_int & 0xFFFF
    squares = (int((high * high).sum()) << 32) + (int((high * low).sum()) << 17) + int((low * low).sum())
    return int(wide_int.sum()), squares, counted


def _finished(sums: _Sums, edges: NDArray[np.float64], tiles: int, framed: bool, values: int) -> Statistics:
    count, total, squares = (array.sum(axis=0) for array in (sums.count, sums.total, sums.squares))
    if not count.all():
        raise ValueError(f"band {int(np.argmin(count))} has no finite value in {tiles} tiles")
    whole = _described(count, total, squares, sums.low.min(axis=0), sums.high.max(axis=0))
    frames: list[dict[str, Any]] = []
    if framed:
        parts = zip(sums.count, sums.total, sums.squares, sums.low, sums.high, strict=True)
        frames = [{name: array.tolist() for name, array in _described(*part).items()} for part in parts]
        for frame, bins in zip(frames, sums.bins, strict=True):
            frame["histogram"] = {"counts": bins.tolist(), "edges": edges.tolist()}
    histogram = {"counts": sums.bins.sum(axis=0).tolist(), "edges": edges.tolist()}
    left_out = {"not_valid": sums.not_valid.sum(axis=0)}
    left_out["not_finite"] = values - whole["count"] - left_out["not_valid"]
    return Statistics(**whole, frames=frames, histogram=histogram, tiles=tiles, **left_out)


def _described(
    count: Int64s, total: NDArray[Any], squares: NDArray[Any], low: NDArray[Any], high: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    mean, std = np.full(len(count), np.nan), np.full(len(count), np.nan)
    for k, n in enumerate(count.tolist()):
        if n:
            centre = Fraction(total[k]) / n
            mean[k] = float(centre)
            std[k] = float(max(Fraction(squares[k]) / n - centre * centre, Fraction(0))) ** 0.5
    ends = (np.where(count > 0, end.astype(float), np.nan) for end in (low, high))
    return {"count": count, "mean": mean, "std": std, **dict(zip(("min", "max"), ends, strict=True))}
