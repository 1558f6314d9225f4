"""``python -m benchmarks``: every workload by every reader, interleaved in one process, as ratios to the limit."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import lazytiles as lt
from benchmarks import readers, workloads
from benchmarks.workloads import Workload

SLOW = {"whole image", "dask", "tifffile+zarr"}
WHOLE_WINDOWS = 4  # of one batch, where each costs the decoding of a whole image
CACHED, CACHE_BYTES = "with 64 MB cache", 64 * 10**6  # the budget that rasterio is given
SHORTEST_TURN_S = 0.1


def measure(workload: Workload, *, repeats: int, batches: int, slow_batches: int) -> dict[str, Any]:
    """Windows a second of each reader, median of interleaved repeats; pixels are checked first.

    The cache is one for the whole process, so lazytiles with one runs in a second round, again beside the limit.
    """
    lt.configure(cache_bytes=0)
    uncompressed = workload.name.startswith("W4")
    ours = readers.lazytiles_reader(workload)
    made: dict[str, Callable[..., Any]] = {"lazytiles": ours}
    made["limit"] = readers.memory_map(workload) if uncompressed else readers.Limit(workload, ours)
    skipped: dict[str, str] = {}
    probe = workload.order[:2]
    truth = readers.whole_reader(workload)(probe)
    for name, make in readers.installed().items():
        if name == "openslide" and not workload.name.startswith("W2"):
            continue
        try:
            reader = make(workload)
            if not np.array_equal(reader(probe), truth):
                skipped[name] = "pixels differ"
            made[name] = reader
        except Exception as error:  # a peer that cannot read the workload is reported, not hidden
            skipped[name] = f"{type(error).__name__}"
    assert np.array_equal(ours(probe), truth), f"{workload.name}: lazytiles' pixels differ"
    counts = {name: slow_batches if name in SLOW else batches for name in made}
    speed = _interleaved(workload, made, counts, repeats)
    ratio = {name: value / speed["limit"] for name, value in speed.items()}
    lt.configure(cache_bytes=CACHE_BYTES)
    cached = _interleaved(workload, {"lazytiles": ours, "limit": made["limit"]}, counts, repeats)
    lt.configure(cache_bytes=0)
    ratio = {"lazytiles": ratio.pop("lazytiles"), CACHED: cached["lazytiles"] / cached["limit"], **ratio}
    return {
        "workload": workload.name,
        "windows_per_second": {name: round(value, 1) for name, value in speed.items()},
        "ratio_to_limit": {name: round(value, 3) for name, value in ratio.items()},
        "notes": skipped,
    }


def _interleaved(
    workload: Workload, made: dict[str, Callable[..., Any]], counts: dict[str, int], repeats: int
) -> dict[str, float]:
    """Median windows a second of each reader, all of them in turn in every repeat, after a round that is not timed."""
    times: dict[str, list[float]] = {name: [] for name in made}
    counts, names = dict(counts), list(made)
    for repeat in range(repeats + 1):
        turn = repeat % len(names)  # who comes first finds the files' bytes farthest from the processor
        for name in names[turn:] + names[:turn]:
            asked = workload.batches(counts[name], repeat)
            if name == "whole image":
                asked = [batch[:WHOLE_WINDOWS] for batch in asked]
            if isinstance(made[name], readers.Limit):
                for batch in asked:
                    made[name].prepare(batch)
            start = time.perf_counter()
            for batch in asked:
                made[name](batch)
            taken = time.perf_counter() - start
            if repeat:
                times[name].append(sum(map(len, asked)) * len(workload.paths) / taken)
            else:  # a turn is long enough for the clock and for the interpreter to be warm
                counts[name] = max(counts[name], int(counts[name] * SHORTEST_TURN_S / taken))
    return {name: statistics.median(values) for name, values in times.items()}


def readahead(folder: Path, *, full: bool, budget: int) -> dict[str, Any]:
    """Segments decoded and time of a globally shuffled W1, with reading ahead and without."""
    workload = workloads.w1(folder, full=full)
    tiles = readers.open_workload(workload)
    lt.configure(cache_bytes=0)
    row = int(np.prod(tiles.shape[1:])) * tiles.dtype.itemsize
    ahead = max(1, budget // (row * workloads.BATCH))
    result: dict[str, Any] = {"workload": workload.name, "batches_ahead": ahead}
    batches = [workload.order[k : k + workloads.BATCH] for k in range(0, len(tiles), workloads.BATCH)]
    batches = batches[: 2 * ahead] if full else batches
    for name, block in (("without", 1), ("with", ahead)):
        before = lt.counters()["segments_decoded"]
        start = time.perf_counter()
        for k in range(0, len(batches), block):
            tiles.take_batches(batches[k : k + block], lambda number, array: None)
        taken = time.perf_counter() - start
        result[name] = {
            "segments": lt.counters()["segments_decoded"] - before,
            "windows_per_second": round(sum(map(len, batches)) * 3 / taken, 1),
        }
    result["decodes_divided_by"] = round(result["without"]["segments"] / result["with"]["segments"], 2)
    result["faster_by"] = round(result["with"]["windows_per_second"] / result["without"]["windows_per_second"], 2)
    return result


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """The ratios as bars, one group a workload."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = ["lazytiles", CACHED, "rasterio", "openslide", "tifffile+zarr", "dask", "whole image"]
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    for k, name in enumerate(names):
        heights = [r["ratio_to_limit"].get(name, 0) for r in results]
        axes.bar(np.arange(len(results)) + (k - 3) * 0.12, heights, 0.11, label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(results)), [r["workload"] for r in results], rotation=20, ha="right")
    axes.set_ylabel("windows per second, limit = 1")
    axes.legend(ncols=7, frameon=False, loc="upper center")
    axes.set_ylim(0, max(1.9, axes.get_ylim()[1] * 1.1))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the sizes of the documentation (several GB, half an hour)")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--dir", type=Path, help="where the images are made and kept (default: temporary)")
    parser.add_argument("--out", type=Path, help="folder for results.json and results.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.dir or Path(temporary)
        lt.configure(threads=readers.THREADS)
        results = []
        for workload in workloads.every(folder, full=options.full):
            if options.only in workload.name:
                results.append(measure(workload, repeats=options.repeats, batches=options.batches, slow_batches=1))
                _show(results[-1:])
        ahead = readahead(folder, full=options.full, budget=133 * 10**6) if options.only in "W1 rgb shuffled" else {}
    console = Console(width=150)
    _show(results, console)
    console.print(ahead)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        machine = {"machine": platform.platform(), "python": platform.python_version(), "numpy": np.__version__}
        text = json.dumps({"machine": machine, "results": results, "readahead": ahead}, indent=1)
        (options.out / "results.json").write_text(text + "\n")
        picture(results, options.out / "results.png")


def _show(results: list[dict[str, Any]], console: Console | None = None) -> None:
    names = list(dict.fromkeys(name for r in results for name in r["ratio_to_limit"]))
    table = Table("workload", *names, title="windows per second as a ratio to the limit")
    for r in results:
        cells = [f"{r['ratio_to_limit'][n]:.3g}" if n in r["ratio_to_limit"] else "" for n in names]
        marks = [f"{c} ({r['notes'][n]})" if n in r["notes"] else c for c, n in zip(cells, names, strict=True)]
        table.add_row(r["workload"], *marks)
    (console or Console(width=150)).print(table)


if __name__ == "__main__":
    main()
