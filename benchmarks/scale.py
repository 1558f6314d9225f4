"""How a manifest of many tiles opens, shuffles, splits and shards: ``python -m benchmarks.scale``.

The manifest is Parquet, its images are links to one small TIFF. Each figure is of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

PIECE = 500_000


def make(folder: Path, tiles: int, regions: int, *, seed: int = 0) -> None:
    """Write ``tiles.parquet`` of random windows, region by region, and ``Images/<region>.tif``."""
    images = folder / "Images"
    images.mkdir(parents=True)
    first = images / "000000.tif"
    tifffile.imwrite(first, np.zeros((512, 512), np.uint8), compression="zlib", tile=(128, 128))
    for k in range(1, regions):
        os.link(first, images / f"{k:06}.tif")
    rng = np.random.default_rng(seed)
    writer = None
    for start in range(0, tiles, PIECE):
        number = np.arange(start, min(tiles, start + PIECE), dtype=np.int64)
        region = number * regions // tiles
        y, x = rng.integers(0, 512 - 64, (2, len(number)), dtype=np.int32)
        columns = {
            "tile_id": pa.array(number).cast(pa.string()),
            "region_id": pa.DictionaryArray.from_arrays(region, [f"{k:06}" for k in range(regions)]).cast(pa.string()),
            "xmin": x,
            "ymin": y,
            "xmax": x + 64,
            "ymax": y + 64,
            "target": rng.random(len(number), dtype=np.float32),
        }
        piece = pa.table(columns)
        writer = writer or pq.ParquetWriter(folder / "tiles.parquet", piece.schema)
        writer.write_table(piece)
    if writer:
        writer.close()


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(folder: Path) -> dict[str, Any]:
    """Seconds of each step, also of CPU, and the most memory that the process had when it was done."""
    import lazytiles as lt

    lt.open_region(folder / "Images" / "000000.tif")
    found: dict[str, Any] = {"before_bytes": _resident()}

    def step(name: str, work: Callable[[], Any]) -> Any:
        started, busy = time.perf_counter(), time.process_time()
        result = work()
        found[f"{name}_cpu_s"] = round(time.process_time() - busy, 2)
        found[f"{name}_s"] = round(time.perf_counter() - started, 2)
        found[f"{name}_peak_bytes"] = _resident()
        return result

    tiles = step("open", lambda: lt.open_tiles(folder / "tiles.parquet", folder / "Images"))
    step("shuffle", lambda: tiles.shuffle(0))
    step("shuffle_window", lambda: tiles.shuffle(0, window=64))
    step("split", lambda: tiles.split(0.8, by="region_id", seed=0))
    step("shard", lambda: lt.BatchFlow(tiles, 32, shuffle=True, seed=0, shard=(3, 8)))
    step("batch", lambda: tiles.take(np.arange(32)))
    step("to_dask", tiles.reset_order().to_dask)
    return {"tiles": len(tiles), "regions": len(tiles.sources), **found}


def main() -> None:
    """Make the data, measure in a new process, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=10_000_000)
    parser.add_argument("--regions", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="use the data there instead of making them")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made) / "data"
        if not (folder / "tiles.parquet").exists():
            make(folder, given.tiles, given.regions)
        code = f"import json; from benchmarks.scale import *; print(json.dumps(measure(Path({str(folder)!r}))))"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    frame = pd.Series(figures)
    print(f"{figures['tiles']:,} tiles of {figures['regions']:,} regions")
    for name in ("open", "shuffle", "shuffle_window", "split", "shard", "batch", "to_dask"):
        peak = (frame[f"{name}_peak_bytes"] - frame["before_bytes"]) / 2**30
        seconds, busy = frame[f"{name}_s"], frame[f"{name}_cpu_s"]
        print(f"{name:>15} {seconds:8.2f} s ({busy:6.2f} s of CPU)   at most {peak:5.2f} GiB so far")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
