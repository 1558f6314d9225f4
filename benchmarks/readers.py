"""The readers that are compared: lazytiles, the limit of the machine, and the peers that are installed.

Each is a function from a workload to a function from a batch of sample numbers to pixels
``(batch, frames, height, width, bands)``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray

import lazytiles as lt
from benchmarks.workloads import Workload

Read: TypeAlias = Callable[[NDArray[np.int64]], NDArray[Any]]

THREADS = 2
_pool = ThreadPoolExecutor(THREADS)


def lazytiles_reader(workload: Workload) -> Read:
    """This library: a manifest, opened, and `take`."""
    tiles = open_workload(workload)
    frames = tiles.ndim == 5
    return lambda batch: tiles.take(batch) if frames else tiles.take(batch)[:, None]


def open_workload(workload: Workload) -> lt.MultiSourceArray:
    """The workload as an array of tiles."""
    y0, x0, y1, x1 = workload.windows.T
    table = pd.DataFrame(
        {
            "tile_id": np.arange(len(y0)).astype(str),
            "region_id": np.char.mod("r%d", workload.region),
            "xmin": x0,
            "ymin": y0,
            "xmax": x1,
            "ymax": y1,
        }
    )
    folder = os.path.dirname(workload.paths[0][0])
    names = [[os.path.basename(path) for path in frame] for frame in workload.paths]
    if len(names) == 1:
        table["path"] = np.array(names[0])[workload.region]
        return lt.open_tiles(table, folder)
    # One frame after another lies in one folder: the label is the number of the first image of the frame.
    count = len(names[0])
    links = os.path.join(folder, f"frames_{count}")
    for frame, files in enumerate(names):
        os.makedirs(os.path.join(links, str(frame)), exist_ok=True)
        for k, name in enumerate(files):
            link = os.path.join(links, str(frame), f"r{k}.tif")
            if not os.path.exists(link):
                os.link(os.path.join(folder, name), link)
    assert count == len(set(names[0]))
    table["label_id"] = str(len(names) - 1)
    return lt.open_tiles(table, links, frames=[str(k) for k in range(len(names))])


@lru_cache(maxsize=4096)
def _page(path: str) -> tuple[Any, Any, Any]:
    """tifffile's page, kept parsed; the file's descriptor."""
    tiff = tifffile.TiffFile(path)
    page = tiff.pages[0]
    return page, page.decode, os.open(path, os.O_RDONLY)


def _touched(page: Any, window: NDArray[np.int64]) -> list[int]:
    y0, x0, y1, x1 = window.tolist()
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    across = -(-page.imagewidth // width)
    down = -(-page.imagelength // height)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    return [
        (plane * down + row) * across + column
        for plane in range(planes)
        for row in range(y0 // height, (y1 - 1) // height + 1)
        for column in range(x0 // width, (x1 - 1) // width + 1)
    ]


class Limit:
    """The limit: decode exactly the segments that a batch touches, on two threads, and copy the batch once.

    What is touched and what comes out is worked out by `prepare`, outside the time that is measured.
    """

    def __init__(self, workload: Workload, expected: Read) -> None:
        self.workload = workload
        self.expected = expected
        self.prepared: dict[bytes, tuple[list[tuple[str, int]], NDArray[Any]]] = {}

    def prepare(self, batch: NDArray[np.int64]) -> None:
        """Find the segments and the pixels of a batch."""
        w = self.workload
        segments = {
            (frame[w.region[k]], segment)
            for frame in w.paths
            for k in batch
            for segment in _touched(_page(frame[w.region[k]])[0], w.windows[k])
        }
        self.prepared[batch.tobytes()] = sorted(segments), self.expected(batch)

    def __call__(self, batch: NDArray[np.int64]) -> NDArray[Any]:
        segments, pixels = self.prepared[batch.tobytes()]
        halves = [segments[k::THREADS] for k in range(THREADS)]
        for _ in _pool.map(lambda half: [_decode(item) for item in half], halves):
            pass
        return pixels.copy()


def _decode(item: tuple[str, int]) -> Any:
    page, decode, fd = _page(item[0])
    data = os.pread(fd, page.databytecounts[item[1]], page.dataoffsets[item[1]])
    return decode(data, item[1], jpegtables=page.jpegtables)[0]


def memory_map(workload: Workload) -> Read:
    """The limit for uncompressed pages: slices of a memory map on one thread."""
    maps = [tifffile.memmap(path, mode="r") for path in workload.paths[0]]
    height, width = (workload.windows[0, 2:] - workload.windows[0, :2]).tolist()
    boxes, regions = workload.windows.tolist(), workload.region.tolist()

    def read(batch: NDArray[np.int64]) -> NDArray[Any]:
        out = np.empty((len(batch), 1, height, width, 1), maps[0].dtype)
        for k, number in enumerate(batch.tolist()):
            y0, x0, y1, x1 = boxes[number]
            out[k, 0, :, :, 0] = maps[regions[number]][y0:y1, x0:x1]
        return out

    return read


def _per_window(workload: Workload, crop: Callable[[str, int, int, int, int], NDArray[Any]], threads: int) -> Read:
    boxes, regions = workload.windows.tolist(), workload.region.tolist()

    def one(item: tuple[int, int]) -> NDArray[Any]:
        frame, number = item
        pixels = crop(workload.paths[frame][regions[number]], *boxes[number])
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def read(batch: NDArray[np.int64]) -> NDArray[Any]:
        items = [(frame, number) for number in batch.tolist() for frame in range(len(workload.paths))]
        crops = list(_pool.map(one, items)) if threads > 1 else [one(item) for item in items]
        out = np.stack(crops)
        return out.reshape(len(batch), len(workload.paths), *out.shape[1:])

    return read


def rasterio_reader(workload: Workload) -> Read:
    """rasterio (GDAL) on two threads, each with its own handles, 64 MB of block cache."""
    import threading

    import rasterio
    from rasterio.windows import Window

    os.environ["GDAL_CACHEMAX"] = "64"
    local = threading.local()

    def crop(path: str, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        handles = local.__dict__.setdefault("handles", {})
        if path not in handles:
            handles[path] = rasterio.open(path)
        pixels = handles[path].read(window=Window(x0, y0, x1 - x0, y1 - y0))
        return np.moveaxis(pixels, 0, -1)

    return _per_window(workload, crop, THREADS)


def openslide_reader(workload: Workload) -> Read:
    """openslide on two threads."""
    import openslide

    slides: dict[str, Any] = {}

    def crop(path: str, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        if path not in slides:
            slides[path] = openslide.OpenSlide(path)
        return np.asarray(slides[path].read_region((x0, y0), 0, (x1 - x0, y1 - y0)))[..., :3]

    return _per_window(workload, crop, THREADS)


def _samples_last(pixels: NDArray[Any], page: Any) -> NDArray[Any]:
    return np.moveaxis(pixels, 0, -1) if page.planarconfig == 2 and page.samplesperpixel > 1 else pixels


def zarr_reader(workload: Workload) -> Read:
    """tifffile's own Zarr store, sliced."""
    import zarr

    @cache
    def array(path: str) -> tuple[Any, bool]:
        page = _page(path)[0]
        planar = page.planarconfig == 2 and page.samplesperpixel > 1
        return zarr.open(tifffile.imread(path, aszarr=True), mode="r"), planar

    def crop(path: str, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        pixels, planar = array(path)
        return np.moveaxis(pixels[:, y0:y1, x0:x1], 0, -1) if planar else pixels[y0:y1, x0:x1]

    return _per_window(workload, crop, 1)


def dask_reader(workload: Workload) -> Read:
    """tifffile through Zarr into dask, one compute a window."""
    import dask.array as da
    import zarr

    @cache
    def array(path: str) -> tuple[Any, bool]:
        page = _page(path)[0]
        planar = page.planarconfig == 2 and page.samplesperpixel > 1
        return da.from_zarr(zarr.open(tifffile.imread(path, aszarr=True), mode="r")), planar

    def crop(path: str, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        pixels, planar = array(path)
        cut = pixels[:, y0:y1, x0:x1] if planar else pixels[y0:y1, x0:x1]
        out = np.asarray(cut.compute(scheduler="threads", num_workers=THREADS))
        return np.moveaxis(out, 0, -1) if planar else out

    return _per_window(workload, crop, 1)


def whole_reader(workload: Workload) -> Read:
    """What people write by hand: the whole image for each tile."""

    def crop(path: str, y0: int, x0: int, y1: int, x1: int) -> NDArray[Any]:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            return _samples_last(page.asarray(maxworkers=THREADS), page)[y0:y1, x0:x1]

    return _per_window(workload, crop, 1)


PEERS: dict[str, tuple[str, Callable[[Workload], Read]]] = {
    "rasterio": ("rasterio", rasterio_reader),
    "openslide": ("openslide", openslide_reader),
    "tifffile+zarr": ("zarr", zarr_reader),
    "dask": ("dask", dask_reader),
    "whole image": ("tifffile", whole_reader),
}


def installed() -> dict[str, Callable[[Workload], Read]]:
    """The peers that can be imported here."""
    return {name: make for name, (module, make) in PEERS.items() if importlib.util.find_spec(module)}
