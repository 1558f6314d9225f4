"""``python -m benchmarks.write``: writers against their libraries, and persisted epochs against a memory map.

Every pair is measured interleaved in one process; a ratio is the library's best time of all repeats divided by our
best, so that 1.00 is the library itself and 0.80 the least that we allow. On a machine that does other work too the
ratio of processor time is the one to look at.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.stores.saving import open_store, persist, verify_store
from lazytiles.stores.writers import Blosc2Writer, HDF5Writer, NpyWriter, StoreWriter, ZarrWriter

BATCH = 32
WRITERS: dict[str, type[StoreWriter]] = {
    ".h5": HDF5Writer, ".zarr": ZarrWriter, ".b2nd": Blosc2Writer, ".npy": NpyWriter
}  # fmt: skip


def samples(count: int, size: int) -> np.ndarray:
    """Tiles as an aerial camera gives them: smooth shapes with some noise, of which LZ4 keeps about two thirds."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    waves = np.stack([np.sin(7 * x + a) + np.cos(9 * y - a) for a in np.linspace(0, 6, 16)])
    tiles = waves[rng.integers(0, 16, (count, 3))].transpose(0, 2, 3, 1) * 50 + 120
    return (tiles + rng.integers(0, 8, tiles.shape)).astype(np.uint8)


def hdf5_itself(path: Path, tiles: np.ndarray) -> None:
    import h5py

    with h5py.File(path, "w", rdcc_nbytes=0) as file:
        data = file.create_dataset(
            "data", tiles.shape, tiles.dtype, chunks=(BATCH, *tiles.shape[1:]), compression="lzf", fletcher32=True
        )
        for start in range(0, len(tiles), BATCH):
            data[start : start + BATCH] = tiles[start : start + BATCH]


def zarr_itself(path: Path, tiles: np.ndarray) -> None:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    codecs = [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec()]
    array = zarr.create_array(
        str(path), shape=tiles.shape, dtype=tiles.dtype, chunks=(BATCH, *tiles.shape[1:]), compressors=codecs
    )
    for start in range(0, len(tiles), BATCH):
        array[start : start + BATCH] = tiles[start : start + BATCH]


def blosc2_itself(path: Path, tiles: np.ndarray) -> None:
    import blosc2

    array = blosc2.empty(
        tiles.shape,
        dtype=tiles.dtype,
        chunks=(BATCH, *tiles.shape[1:]),
        urlpath=str(path),
        cparams=blosc2.CParams(codec=blosc2.Codec.LZ4),
    )
    for start in range(0, len(tiles), BATCH):
        array[start : start + BATCH] = tiles[start : start + BATCH]


def numpy_itself(path: Path, tiles: np.ndarray) -> None:
    with path.open("wb", buffering=0) as file:
        facts = {"descr": tiles.dtype.str, "fortran_order": False, "shape": tiles.shape}
        np.lib.format.write_array_header_1_0(file, facts)
        for start in range(0, len(tiles), BATCH):
            file.write(tiles[start : start + BATCH].data)


ITSELF: dict[str, Callable[[Path, np.ndarray], None]] = {
    ".h5": hdf5_itself, ".zarr": zarr_itself, ".b2nd": blosc2_itself, ".npy": numpy_itself
}  # fmt: skip


def ours(path: Path, tiles: np.ndarray) -> None:
    with WRITERS[path.suffix](path, chunk=BATCH, length=len(tiles)) as writer:
        for start in range(0, len(tiles), BATCH):
            writer.write(tiles[start : start + BATCH])


def timed(work: Callable[[], Any]) -> np.ndarray:
    """Seconds on the clock, and of processor time."""
    start = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])


def compare(pairs: Mapping[str, Callable[[], Any]], repeats: int, clean: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Best seconds of each on the clock and of processor time, interleaved, after one unmeasured round."""
    times: dict[str, list[np.ndarray]] = {name: [] for name in pairs}
    for repeat in range(repeats + 1):
        names = list(pairs)
        for name in names if repeat % 2 else reversed(names):
            taken = timed(pairs[name])
            clean()
            if repeat:
                times[name].append(taken)
    return {name: np.min(taken, axis=0) for name, taken in times.items()}


def write_speeds(folder: Path, tiles: np.ndarray, repeats: int) -> Table:
    table = Table(
        "store",
        "library MB/s",
        "lazytiles MB/s",
        "ratio",
        "of processor time",
        title="writing, whole chunks of 32 tiles",
    )

    def clean() -> None:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    for suffix, itself in ITSELF.items():
        pairs = {
            "library": lambda itself=itself, path=folder / f"library{suffix}": itself(path, tiles),
            "ours": lambda path=folder / f"ours{suffix}": ours(path, tiles),
        }
        took = compare(pairs, repeats, clean)
        speeds = {name: tiles.nbytes / 1e6 / seconds[0] for name, seconds in took.items()}
        ratios = took["library"] / took["ours"]
        table.add_row(
            suffix,
            f"{speeds['library']:.0f}",
            f"{speeds['ours']:.0f}",
            f"{ratios[0]:.2f}",
            f"{ratios[1]:.2f}",
        )
    return table


def epoch_speeds(folder: Path, tiles: np.ndarray, repeats: int) -> Table:
    """An epoch of shuffled batches: fancy indexing of a memory map, and persisted tiles."""
    np.save(folder / "raw.npy", tiles)
    mapped = np.load(folder / "raw.npy", mmap_mode="r")
    array = MultiSourceArray([tiles])
    sources: dict[str, Callable[[np.ndarray], Any]] = {
        "memory map": lambda rows: mapped[rows],
        "persisted .npy": persist(array, folder / "kept.npy").take,
        "persisted in memory": persist(array).take,
    }
    assert verify_store(folder / "kept.npy").rows == len(tiles)
    order = np.random.default_rng(1).permutation(len(tiles))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    pairs = {name: lambda take=take: [take(batch) for batch in batches] and None for name, take in sources.items()}
    took = compare(pairs, repeats, lambda: None)
    first = timed(lambda: [open_store(folder / "kept.npy").take(batches[0])])[0]
    table = Table("source", "tiles/s", "ratio", "of processor time", title="an epoch in shuffled batches of 32")
    for name, seconds in took.items():
        ratios = took["memory map"] / seconds
        table.add_row(name, f"{len(tiles) / seconds[0]:.0f}", f"{ratios[0]:.2f}", f"{ratios[1]:.2f}")
    table.caption = f"opening the store and reading its first batch, 32 chunks checked: {first * 1e3:.1f} ms"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=3000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    tiles = samples(options.tiles, options.size)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        for measure in (write_speeds, epoch_speeds):
            place = Path(folder) / measure.__name__
            place.mkdir()
            console.print(measure(place, tiles, options.repeats))


if __name__ == "__main__":
    main()
