"""Tiles as files of their own: a GeoTIFF for each, which lies where its window lies."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.arrays import MultiSourceArray
from lazytiles.errors import LazyTilesError, ManifestError, StoreError
from lazytiles.images import open_region
from lazytiles.manifests.paths import checked_columns, is_component
from lazytiles.manifests.tiles import open_tiles, open_volumes
from lazytiles.stores import (
    PARTIAL,
    Ground,
    OnProgress,
    Pyramid,
    StoredCompanions,
    StoredRegion,
    cause_of,
    failed,
    reporting,
)

_READ_BYTES = 64 * 2**20
_WRITERS = 8


def export_tiffs(
    tiles: MultiSourceArray,
    path: str | os.PathLike[str],
    *,
    progress: bool | OnProgress = False,
    threads: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    sync: bool = False,
) -> MultiSourceArray:
    """Write each tile as a GeoTIFF of its own; what `lazytiles.export` does for a path that ends in ``.tif``.

    The path names columns of the table, as in ``"chips/{tile_id}.tif"``; masks become ``"{tile_id}.labels.tif"``. Gives
    the files as an array, with labels and table.

    Raises
    ------
    ManifestError : no such column, a value that is no part of a path, or two tiles of one name
    StoreError : a file exists, which is said before any is written, or cannot be written
    """
    folder, names = _named(tiles, os.fspath(path))
    masks = tiles.labels if isinstance(tiles.labels, MultiSourceArray) else None
    jobs = [_Files(tiles, folder, names, _places(tiles))]
    if masks is not None:
        place, own = jobs[0].ground, _places(masks)
        # Masks lie on the grid of their tiles, whatever their own is; what marks their nodata is their own.
        both = [f"{os.path.splitext(name)[0]}.labels.tif" for name in names]
        jobs.append(_Files(masks, folder, both, lambda row: replace(place(row), nodata=own(row).nodata)))
    there = [file for job in jobs for file in job.files if file.exists()]
    if there and not (overwrite or resume):
        others = f", as do {len(there) - 1} others" if len(there) > 1 else ""
        raise StoreError(f"{there[0]} exists{others}; pass overwrite=True to replace them, resume=True to go on")
    done, total = 0, len(jobs) * len(tiles)
    with reporting(progress, total) as report:
        for job in jobs:
            for count in job.write(threads, keep=resume and not overwrite, sync=sync):
                done += count
                report(done, total)
    opened = [job.opened() for job in jobs]
    held = StoredCompanions.of(tiles).held
    labels = held.labels if masks is None else opened[1]
    return MultiSourceArray.assembled(opened[0].sources, replace(held, labels=labels))


def _named(tiles: MultiSourceArray, path: str) -> tuple[Path, list[str]]:
    """The folder of all files, and the name in it of each tile's."""
    parts = Path(path).parts
    fixed = next((k for k, part in enumerate(parts) if "{" in part), len(parts) - 1)
    folder, template = Path(*parts[:fixed]), "/".join(parts[fixed:])
    if tiles.table is None:
        raise ManifestError(
            f"{path}: these tiles have no table whose columns could name files; write one store instead"
        )
    columns = checked_columns(tiles.table.columns, template)
    if not columns:
        raise ManifestError(f"{path}: each tile becomes a file; write {{tile_id}} where its name goes")
    values = [tiles.table[name].astype(str).tolist() for name in columns]
    known: dict[str, int] = {}
    for row, texts in enumerate(zip(*values, strict=True)):
        bad = next((text for text in texts if not all(map(is_component, text.split("/")))), None)
        if bad is not None:
            raise ManifestError(f"{path}: {bad!r} of sample {row} cannot be part of a file name")
        name = template.format(**dict(zip(columns, texts, strict=True)))
        if known.setdefault(name, row) != row:
            raise ManifestError(f"{path}: samples {known[name]} and {row} would both be {name}; name more columns")
    return folder, list(known)


def _places(tiles: MultiSourceArray) -> Callable[[int], Ground]:
    """Where each tile lies, by its number in the current order; refuses frames, which a TIFF does not hold."""
    found = StoredCompanions.of(tiles).held.places
    regions, places = found if found is not None else ((), None)
    inner, axes = tiles.shape[1:], {r.windows.shape[1] // 2 for r in regions if r.windows is not None}
    if not 2 <= len(inner) <= 4 or (len(inner) == 4 and axes == {2}):
        raise ManifestError(f"tiles of {inner} are no images: a TIFF holds no frames; open one frame, or write a .zarr")

    def ground(row: int) -> Ground:
        if places is None:
            return Ground()
        region: StoredRegion = regions[places[row, 0]]
        if region.windows is None:
            return region.ground
        window = region.windows[places[row, 1]].tolist()
        (y0, x0), (y1, x1) = window[: len(window) // 2][-2:], window[-2:]
        height, width = inner[-3:-1]
        here = region.ground.shifted(y0, x0, ((y1 - y0) / height, (x1 - x0) / width))
        is_own = here.nodata is not None and here.nodata.dtype == tiles.dtype
        return here if is_own else replace(here, nodata=None)

    return ground


@dataclass(frozen=True, slots=True)
class _Files:
    """Tiles, and the file that each becomes."""

    tiles: MultiSourceArray
    folder: Path
    names: Sequence[str]
    ground: Callable[[int], Ground]

    @property
    def files(self) -> list[Path]:
        """Where the tiles go."""
        return [self.folder / name for name in self.names]

    def opened(self) -> MultiSourceArray:
        """The files as an array."""
        opener: Callable[..., MultiSourceArray] = open_volumes if self.tiles.ndim == 5 else open_tiles
        return opener(pd.DataFrame({"path": self.names}), self.folder, target=None)

    def write(self, threads: int | None, *, keep: bool, sync: bool) -> Iterator[int]:
        """Write all tiles; how many, block by block. With `keep`, files that hold the same pixels stay."""
        tiles = self.tiles
        step = max(1, _READ_BYTES // max(1, tiles.nbytes // max(1, len(tiles))))
        put = partial(self._put, keep=keep, sync=sync)
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="lazytiles-export") as pool:
            for start in range(0, len(tiles), step):
                rows = np.arange(start, min(len(tiles), start + step))
                list(pool.map(put, rows.tolist(), tiles.take(rows, threads=threads)))
                yield len(rows)

    def _put(self, row: int, tile: NDArray[Any], keep: bool, sync: bool) -> None:
        file, is_volume = self.folder / self.names[row], tile.ndim == 4
        image = tile[..., 0] if tile.ndim > 2 and tile.shape[-1] == 1 else tile
        if keep and file.exists():
            cure = "pass overwrite=True to replace it"
            try:
                there = open_region(file, page="all" if is_volume else 0)
                has_nan = image.dtype.kind in "fc"
                is_same = there.shape == image.shape and np.array_equal(there[...], image, equal_nan=has_nan)
            except LazyTilesError as error:
                raise StoreError(f"{file} exists; {cure}: {error}") from error
            if not is_same:
                raise StoreError(f"{file} exists and holds other pixels than its tile; {cure}")
            return
        unfinished = file.with_name(f"{file.name}{PARTIAL}tiff")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "w+b") as out:
                pyramid = Pyramid(io.BytesIO(), image.shape, image.dtype, is_volume=is_volume)
                ground = self.ground(row)
                pyramid.append(image, ground.nodata)
                pyramid.finish(out, ground)
                if sync:
                    out.flush()
                    os.fsync(out.fileno())
            unfinished.replace(file)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise failed(f"{file} cannot be written: {cause_of(error)}", error) from error
