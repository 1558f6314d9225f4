"""How reading grows with the cores: ``python -m benchmarks.cores``; segments a second by threads and by processes.

*Alone* is decoding and nothing else, by as many threads, and *apart* by as many processes; *loader* a torch
`DataLoader` of as many processes over a windowed reader written by hand. The last columns are microseconds of
processor time a segment.

With ``--sleep 0.001`` every decoder sleeps instead of computing, which shows the serial part of the reader on any
machine: what sleeping alone would reach is known. The images are the large ones then, as with ``--full``: a plan must
have many segments for each worker.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import lazytiles as lt
from benchmarks import readers, workloads
from lazytiles.config import usable_cpus
from lazytiles.images import jobs as jobs_room
from lazytiles.images import readers as room
from lazytiles.images.codecs import Codec

BATCHES = 40  # of W2, about as many bytes as a flow reads ahead
WAYS = ("threads", "readers", "alone", "apart", "loader")
_blank: dict[tuple[int, ...], np.ndarray] = {}


def sleep_instead(seconds: float) -> None:
    """Let every TIFF segment take so long, and be blank."""

    def blank(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if (key := (*shape, hash(dtype))) not in _blank:
            _blank[key] = np.zeros(shape, dtype)
        return _blank[key]

    def one(self: Codec, data: Any, index: int, row: int, column: int) -> np.ndarray:
        time.sleep(seconds)
        return blank(self.segment, self.dtype)

    def run(self: Codec, datas: Any, sizes: Any, rows: int) -> np.ndarray:
        time.sleep(seconds * len(sizes))
        return blank((rows, *self.segment[1:]), self.dtype)

    Codec.__call__ = one  # type: ignore[method-assign]
    Codec.decode_run = run  # type: ignore[method-assign]


class _Alone:
    """The decoding of a plan's segments and nothing else: their bytes are read before, what comes out is dropped."""

    def __init__(self, tiles: lt.MultiSourceArray, batches: list[np.ndarray]) -> None:
        plan = tiles.plan(np.concatenate(batches))
        jobs = jobs_room.Jobs.of(plan, {})
        self.numbers = range(len(plan.jobs))
        self.given: list[tuple[Any, ...]] = []
        for at, first, length, row, column, rows, offset, size, *_ in jobs.lines.tolist():
            page, segments = jobs.pages[at], range(first, first + length)
            self.given.append((page, segments, row, column, rows, jobs_room.pool.read(page.file, offset, size)))

    def _decode(self, number: int) -> None:
        jobs_room._decoded(*self.given[number])

    def __call__(self, threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            parts = [self.numbers[k::threads] for k in range(threads)]
            list(pool.map(lambda part: [self._decode(k) for k in part], parts))

    def apart(self, processes: int) -> float:
        """Seconds of as many processes, from where all are there to where the last has done its part."""
        fork = multiprocessing.get_context("fork")
        gate = fork.Barrier(processes + 1)

        def child(k: int) -> None:
            gate.wait()
            for number in self.numbers[k::processes]:
                self._decode(number)
            gate.wait()

        children = [fork.Process(target=child, args=(k,)) for k in range(processes)]
        for each in children:
            each.start()
        gate.wait()
        begin = time.perf_counter()
        gate.wait()
        seconds = time.perf_counter() - begin
        for each in children:
            each.join()
        return seconds


class _ByHand:
    """What people write for a `DataLoader`: one window at a time, its segments decoded, nothing shared."""

    def __init__(self, workload: workloads.Workload) -> None:
        self.workload = workload

    def __len__(self) -> int:
        return len(self.workload.region)

    def __getitem__(self, k: int) -> np.ndarray:
        w = self.workload
        return np.stack([self._window(frame[w.region[k]], w.windows[k]) for frame in w.paths])

    def _window(self, path: str, window: np.ndarray) -> np.ndarray:
        page, decode, fd = readers._page(path)
        y0, x0, y1, x1 = window.tolist()
        out = np.empty((y1 - y0, x1 - x0, page.samplesperpixel), page.dtype)
        for segment in readers._touched(page, window):
            data = os.pread(fd, page.databytecounts[segment], page.dataoffsets[segment])
            block, (_, _, y, x, _), (_, height, width, _) = decode(data, segment, jpegtables=page.jpegtables)
            top, left, bottom, right = max(y0, y), max(x0, x), min(y1, y + height), min(x1, x + width)
            out[top - y0 : bottom - y0, left - x0 : right - x0] = block[0, top - y : bottom - y, left - x : right - x]
        return out


def _loader(workload: workloads.Workload, batches: list[np.ndarray], processes: int) -> Callable[[], None] | None:
    """An epoch over the same windows by a torch `DataLoader` of so many processes; None without torch."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return None
    order = np.concatenate(batches).tolist()
    options: dict[str, Any] = {"batch_size": len(batches[0]), "num_workers": processes, "persistent_workers": True}
    loader = DataLoader(_ByHand(workload), sampler=order, **options)
    for _ in loader:
        pass  # the processes are there now

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def _segments(tiles: lt.MultiSourceArray, batches: list[np.ndarray]) -> int:
    return int(tiles.plan(np.concatenate(batches)).segments)


def _processor_s() -> float:
    """Processor time of this process and of its workers so far."""
    total = time.process_time()
    ticks = 100
    for worker in room.readers.workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def _ways(workload: workloads.Workload, n: int, each: int) -> dict[str, Callable[[list[np.ndarray]], None]]:
    tiles = readers.open_workload(workload)
    processes = max(1, n // each)

    def threads(batches: list[np.ndarray]) -> None:
        tiles.take_batches(batches, lambda k, batch: None, threads=n, readers=0)

    def by_readers(batches: list[np.ndarray]) -> None:
        tiles.take_batches(batches, lambda k, batch: None, readers=processes)

    return {"threads": threads, "readers": by_readers}


def measure(
    workload: workloads.Workload, n: int, *, repeats: int, sleep: float, each: int, count: int
) -> dict[str, float]:
    """Segments a second of each way on n workers, medians of interleaved repeats."""
    tiles, ways = readers.open_workload(workload), _ways(workload, n, min(n, each))
    room._MOST_THREADS, room.usable_cpus = min(n, each), lambda: n  # as on a machine of so many cores
    batches = workload.batches(count, 0)
    alone = None if sleep else _Alone(tiles, batches)
    loader = None if sleep else _loader(workload, batches, n)
    segments = _segments(tiles, batches)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    deadline = time.monotonic() + 30
    while (n > 1 and not all(worker.is_ready for worker in room.readers.workers)) or not room.readers.workers:
        ways["readers"](batches)
        if time.monotonic() > deadline:
            raise SystemExit("the reader processes do not start")
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            begin, before = time.perf_counter(), _processor_s()
            way(batches)
            if repeat:
                times[name].append(time.perf_counter() - begin)
                spent[name].append(_processor_s() - before)
        for name, beside in (("alone", alone and partial(alone, n)), ("loader", loader)):
            begin = time.perf_counter()
            if beside is not None:
                beside()
            if repeat and beside is not None:
                times[name].append(time.perf_counter() - begin)
        if repeat and alone is not None:
            times["apart"].append(alone.apart(n))
    room.readers.close()
    row = {name: segments / statistics.median(each) for name, each in times.items() if each}
    if sleep:
        row["alone"] = n / sleep
    row |= {f"{name} us": statistics.median(each) / segments * 1e6 for name, each in spent.items()}
    return row


def picture(results: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """A line for each way and workload, beside the ideal."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4 * len(results), 3.6), layout="constrained", squeeze=False)
    for ax, (name, rows) in zip(axes[0], results.items(), strict=True):
        n = sorted(rows)
        for way in ("apart", "alone", "readers", "threads", "loader"):
            if way in rows[n[0]]:
                ax.plot(n, [rows[k][way] for k in n], marker="o", label=way)
        first = rows[n[0]].get("apart", rows[n[0]]["alone"]) / n[0]
        ax.plot(n, [first * k for k in n], color="grey", linestyle=":", label="ideal")
        ax.set(title=name, xlabel="workers", ylabel="segments a second", xlim=(0, None), ylim=(0, None))
        ax.set_xticks(n, [str(k) for k in n])
    axes[0][0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks-data"), help="where the images are made")
    parser.add_argument("--workers", default="", help="numbers of workers, such as 1,2,4; default up to the cores")
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds that each decoder sleeps instead")
    parser.add_argument("--only", default="W1,W2,W5", help="workloads, as `docs/understand/speed.md` names them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads-a-process", type=int, default=4, help="threads of each reader process")
    parser.add_argument("--batches", type=int, default=BATCHES, help="batches of 32 that are planned together")
    parser.add_argument("--full", action="store_true", help="large images, of which many segments are read")
    parser.add_argument("--json", type=Path, nargs="?", const=Path("cores.json"))
    parser.add_argument("--png", type=Path, help="a picture, as docs/images/cores.png")
    given = parser.parse_args()
    n_cores = usable_cpus()
    numbers = [int(k) for k in given.workers.split(",") if k] or [
        1 << k for k in range(n_cores.bit_length()) if 1 << k <= n_cores
    ]
    given.folder.mkdir(parents=True, exist_ok=True)
    made = {"W1": workloads.w1, "W2": workloads.w2, "W3": workloads.w3, "W5": workloads.w5}
    every = {name: made[name](given.folder, full=given.full or given.sleep > 0) for name in given.only.split(",")}
    if given.sleep:
        sleep_instead(given.sleep)
        room.PROGRAM = f"from benchmarks.cores import sleep_instead; sleep_instead({given.sleep}); {room.PROGRAM}"
    lt.configure(cache_bytes=0)
    results: dict[str, dict[int, dict[str, float]]] = {}
    for name, workload in every.items():
        options = {
            "repeats": given.repeats,
            "sleep": given.sleep,
            "each": given.threads_a_process,
            "count": given.batches,
        }
        results[name] = {n: measure(workload, n, **options) for n in numbers}
    table = Table("workload", "workers", *WAYS, "readers / apart", "us of threads", "us of readers")
    for name, rows in results.items():
        for n, row in rows.items():
            figures = [f"{row[way]:,.0f}" if way in row else "" for way in WAYS]
            ratio = f"{row['readers'] / row.get('apart', row['alone']):.2f}"
            table.add_row(name, str(n), *figures, ratio, f"{row['threads us']:.0f}", f"{row['readers us']:.0f}")
    Console(width=110).print(table)
    if given.json:
        about = {"machine": platform.processor() or platform.machine(), "cores": n_cores, "sleep_s": given.sleep}
        given.json.write_text(json.dumps(about | {"segments_a_second": results}, indent=1))
    if given.png:
        picture(results, given.png)


if __name__ == "__main__":
    main()
