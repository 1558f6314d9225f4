"""`open_volumes`: from a manifest of boxes in volumes to one lazy array, with labels and table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays import Companions, MultiSourceArray, VolumeTiles, held
from lazytiles.errors import ManifestError
from lazytiles.images import Bands, open_region, split_name
from lazytiles.indexing import PAD_MODES, region_column
from lazytiles.manifests.columns import labels_of_table, names_of
from lazytiles.manifests.digest import verify_digests
from lazytiles.manifests.manifest import BOX_3D, read_manifest
from lazytiles.manifests.paths import default_template, folder_of, resolve_paths, template_columns
from lazytiles.manifests.samples import Frames

Volumes = str | os.PathLike[str] | Mapping[str, Any] | None


def open_volumes(
    manifest: pd.DataFrame | str | os.PathLike[str],
    volumes: Volumes = None,
    *,
    path: str | None = None,
    target: str | Sequence[str] | None = "target",
    tabular: str | Sequence[str] | None = None,
    masks: str | Mapping[str, Any] | None = None,
    frames: Any = None,
    pad: str | None = None,
    context: int | None = None,
    bands: Bands = None,
    classes: Sequence[Any] | None = None,
    where: Mapping[str, Any] | None = None,
    follow_symlinks: bool = True,
    verify: str | os.PathLike[str] | None = None,
) -> MultiSourceArray:
    """The boxes of volumes in a manifest as one lazy array; no voxel is read and one volume is opened.

    Parameters
    ----------
    manifest : DataFrame, or path of a CSV or Parquet file, as `read_manifest` takes it, with boxes ``(xmin,
        ymin, zmin, xmax, ymax, zmax)``, such as `make_grid` writes for a size of three numbers; without
        boxes each row is a whole volume
    volumes : the folder of the volumes; or a mapping from `region_id` to arrays `(Z, H, W[, S])`: NumPy, memory
        maps, HDF5, Zarr, regions, `stack_regions`
    path : where a volume lies in its folder, as a template over the columns; default ``"{region_id}.tif"``, or
        with a `label_id` column ``"{label_id}/{region_id}.tif"``. All pages of a TIFF are slices
    target, classes : the column of the labels, a list of columns, or None; and its classes, as in `open_tiles`
    tabular : columns given to the model as a second input
    masks : a path template or a mapping; the labels are then boxes of the masks (the middle slice, with
        `context`)
    frames : one label id, whose rows are read, or ``"each"``: every row is a sample of its own
    pad : a NumPy pad mode for boxes that leave their volume; None refuses them
    context : boxes of one slice get so many neighbouring slices on either side as bands; at the ends of the
        volume the last slice is repeated, or `pad` says what is there
    bands : which samples of volumes in files, or ``"rgb"``
    where : keeps the boxes whose table has these values, as in `open_tiles`
    follow_symlinks, verify : as in `open_tiles`, of volumes in files

    Returns
    -------
    MultiSourceArray of shape (N, depth, height, width, S), or with `context` (N, height, width, (2 context + 1) S),
    slice by slice, the bands of one slice together

    Raises
    ------
    ManifestError : the table is damaged, boxes differ in extent or have four numbers, a volume is missing
    RegionError : the first volume cannot be opened

    Examples
    --------
    >>> table = pd.DataFrame({"tile_id": ["t"], "region_id": ["r"], "region_coordinates": ["(0,0,1,4,4,3)"]})
    >>> tiles = open_volumes(table, {"r": np.arange(48).reshape(3, 4, 4)})
    >>> tiles.shape, tiles[0, :, 0, 0, 0]
    ((1, 2, 4, 4, 1), array([16, 32]))
    """
    if pad not in (None, *PAD_MODES):
        raise ValueError(f"pad is None or one of {', '.join(PAD_MODES)}, not {pad!r}")
    wanted = Frames.of(frames)
    if wanted.timed:
        raise ManifestError(f'frames={list(frames)}: volumes have no time axis; name one label id, or "each"')
    if masks is not None and classes is not None:
        raise ManifestError("classes= is for names in a column; with masks= the labels are masks")
    by_default = target == "target"
    table = read_manifest(
        manifest,
        target=None if by_default else target,
        optional=["target"] if by_default else (),
        tabular=tabular,
        frames=wanted.labels,
        text=[*(name for one in (path, masks) if isinstance(one, str) for name in template_columns(one)), "path"],
        file=path,
        allow_outside=pad is not None,
        classes=classes,
    )
    folder = folder_of(manifest) if volumes is None else volumes
    table = table.iloc[wanted.samples(table, where)].reset_index(drop=True)
    if not len(table):
        raise ManifestError("the manifest has no rows")
    windows = _windows_of(table)
    codes, openers = _openers(table, folder, path, bands, follow_symlinks)
    if verify is not None and not isinstance(folder, Mapping):
        verify_digests(verify, folder, images=[split_name(one.args[0])[0] for one in openers]).raise_any()
    joint, masked = codes, None
    if masks is not None:
        place, template = (folder, masks) if isinstance(masks, str) else (masks, None)
        masked = _openers(table, place, template, None, follow_symlinks)
        joint = pd.factorize(codes * (len(masked[1]) + 1) + masked[0])[0].astype(np.int64)
    array = _assembled(table, windows, joint, codes, openers, pad=pad, context=context)
    if masked is not None:
        labels = _assembled(table, windows, joint, *masked, pad=pad, context=context and 0)
        for tiles, mask in zip(array.sources, labels.sources, strict=True):
            tiles.partner, mask.partner = mask, tiles
        set_labels(array, table, None, tabular)
        array.companions = replace(array.companions, labels=labels)
    else:
        set_labels(array, table, target, tabular)
    return array


def set_labels(
    array: MultiSourceArray,
    table: pd.DataFrame,
    target: str | Sequence[str] | None,
    tabular: str | Sequence[str] | None,
) -> None:
    """Give an array the labels and the tabular columns of its table, in the order of the array's samples."""
    labels, found = labels_of_table(table, target)
    columns = [name for name in names_of(target) if name in table]
    note = f"nothing in {', '.join(columns)}" if columns and labels is None else ""
    names = None if tabular is None else tuple(names_of(tabular))
    array.companions = replace(array.companions, labels=labels, classes=found, tabular=names, note=note)


def _windows_of(table: pd.DataFrame) -> Int64s | None:
    if "xmin" not in table:
        return None
    if "zmin" not in table:
        raise ManifestError("volumes need boxes of six numbers, (xmin, ymin, zmin, xmax, ymax, zmax); see make_grid")
    xmin, ymin, zmin, xmax, ymax, zmax = (table[name].to_numpy(dtype=np.int64) for name in BOX_3D)
    windows = np.stack([zmin, ymin, xmin, zmax, ymax, xmax], axis=1)
    extents = windows[:, 3:] - windows[:, :3]
    other = np.flatnonzero((extents != extents[:1]).any(axis=1))
    if len(other):
        first, second = extents[0].tolist(), extents[other[0]].tolist()
        raise ManifestError(
            f"tile {table['tile_id'].iloc[other[0]]} is {second} voxels, tile {table['tile_id'].iloc[0]} {first} "
            f"({len(other)} tiles differ from the first); boxes of volumes have one extent: make the grid with "
            'edge="shift" or "pad"'
        )
    return windows


def _openers(
    table: pd.DataFrame, where: Any, path: str | None, bands: Bands, follow_symlinks: bool
) -> tuple[Int64s, list[partial[Any]]]:
    """The volume of every row as an index into a list, and how each is opened."""
    if isinstance(where, Mapping):
        codes, names = pd.factorize(table[region_column(table)].astype(str))
        absent = [name for name in names if name not in where]
        if absent:
            raise ManifestError(f"there is no volume for region {absent[0]} ({len(absent)} of {len(names)} lack one)")
        return codes.astype(np.int64), [partial(_given, held(where[name])) for name in names]
    template = path or default_template(table)
    places, paths = resolve_paths(table, template, where, follow_symlinks=follow_symlinks)
    return places, [partial(open_region, one, page="all", bands=bands) for one in paths]


def _given(volume: Any) -> Any:
    return volume


def _assembled(
    table: pd.DataFrame,
    windows: Int64s | None,
    groups: Int64s,
    codes: Int64s,
    openers: Sequence[Callable[[], Any]],
    *,
    pad: str | None,
    context: int | None,
) -> MultiSourceArray:
    """One source per volume (and mask), and the samples in the order of the table."""
    first = openers[int(codes[0])]()
    if len(first.shape) not in (3, 4):
        raise ManifestError(f"a volume is (Z, H, W) or (Z, H, W, S); the first is {tuple(first.shape)}")
    boxes = np.tile([0, 0, 0, *first.shape[:3]], (len(table), 1)) if windows is None else windows
    by_volume = np.argsort(groups, kind="stable")
    names = table[region_column(table)]
    sources = []
    for rows in np.split(by_volume, np.flatnonzero(np.diff(groups[by_volume])) + 1):
        source = VolumeTiles(
            openers[int(codes[rows[0]])],
            boxes[rows],
            (*first.shape, 1)[3],
            first.dtype,
            pad=pad,
            context=context,
            whole=windows is None,
            name=str(names.iat[int(rows[0])]),
            tile_name=partial(_name, table["tile_id"].to_numpy()[rows]),
        )
        sources.append(source)
    return MultiSourceArray.assembled(sources, Companions(table=table), np.argsort(by_volume, kind="stable"))


def _name(ids: NDArray[Any], number: int) -> str:
    return f"tile {ids[number]}"
