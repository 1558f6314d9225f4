"""`open_tiles`: from a manifest to one lazy array of tiles, with labels and table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.arrays import LINE_MODES, PAD_MODES, MultiSourceArray, RegionTiles, TileForm
from lazytiles.augment import Boxes, scaled_boxes
from lazytiles.errors import ManifestError
from lazytiles.images import METHODS, Bands, Region, asked_bands, bands_read, check_resample, open_region
from lazytiles.indexing import region_column
from lazytiles.manifests.catalog import by_name
from lazytiles.manifests.columns import names_of
from lazytiles.manifests.manifest import BOX_2D, read_manifest
from lazytiles.manifests.paths import default_template, folder_of, template_columns
from lazytiles.manifests.samples import Frames, Images
from lazytiles.manifests.volumes import open_volumes, set_labels

Int64s: TypeAlias = NDArray[np.int64]


@by_name
def open_tiles(
    manifest: pd.DataFrame | str | os.PathLike[str],
    image_dir: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    frames: Any = None,
    path: str | None = None,
    target: str | Sequence[str] | None = "target",
    tabular: str | Sequence[str] | None = None,
    masks: str | Mapping[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    resample: str = "bilinear",
    pad: str | None = None,
    bands: Bands = None,
    gray: bool = False,
    level: int = 0,
    missing: str = "raise",
    scale_boxes: Sequence[str] = (),
    box_format: str = "xyxy",
    classes: Sequence[Any] | None = None,
    where: Mapping[str, Any] | None = None,
    follow_symlinks: bool = True,
    verify: str | os.PathLike[str] | None = None,
) -> MultiSourceArray:
    """The tiles of a manifest as one lazy array; no image is decoded and only one is opened.

    Parameters
    ----------
    manifest : DataFrame, or path of a CSV or Parquet file, see `read_manifest` for its columns; or a name that
        was given to `register`, whose function then opens the tiles, with the other options that are given. Boxes
        of six numbers, and files that hold an array of slices and have no box, are volumes, as `open_volumes`
        opens them
    image_dir : the folder of the images; default the manifest's own. Of volumes also a mapping from ids to arrays
    frames : a list of label ids gives a time axis in that order, one label id its rows alone; ``"each"`` makes every
        row a sample of its own (split those by ``"tile_id"``). None is for tables of one row a tile
    path : where an image lies, relative to `image_dir`, as a template over the manifest's columns; default
        ``"{path}"`` where there is a column of that name, ``"{label_id}/{region_id}.tif"`` where there is a
        `label_id`, else ``"{region_id}.tif"``. Each frame's image is named by that frame's own row, a mask by the last
    target : the column of the labels, a list of columns (labels of shape (N, k)), or None. A column of names, of
        categories or of True and False gives class numbers, see `classes`; of several columns one may. In a column
        where nothing is written the tiles have no labels and are for prediction
    tabular : columns given to the model as a second input
    masks : a path template; the labels are then mask tiles cut with the same windows, of masks of the same extent as
        their image. Of volumes also a mapping
    size : (height, width), pixels, to which every window is resampled; without it all windows have one size
    resample : ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"area"``; masks are always nearest
    pad : NumPy's ``"constant"``, ``"edge"``, ``"reflect"``, ``"symmetric"`` or ``"wrap"`` for windows that leave
        their region; None refuses them. NumPy's ``"maximum"``, ``"mean"``, ``"median"``, ``"minimum"`` and
        ``"linear_ramp"`` read the whole lines of the region that such a window crosses
    bands : which samples of the images, in this order; or ``"rgb"``: red, green and blue of images of one, three or
        four bands, gray ones repeated and opacity left out
    gray : whether red, green and blue become one luminance band
    level : resolution of each pyramid; boxes are in pixels of that level
    missing : ``"raise"``, or ``"fill"`` to give zeros for a frame whose image or row is missing (see `valid`); behind
        an address the server is asked for it
    scale_boxes : label columns that are boxes in pixels of the image, four to a box; they become boxes in pixels of
        the tile, scaled as it is by `size` (the tags of every image are read), and `Augment` moves them
    box_format : what the four numbers of a box are: ``"xyxy"`` its corners, ``"xywh"`` or ``"xyhw"`` its first
        corner, then width and height in that order, ``"cxcywh"`` its centre, width and height; ``"xy"`` are points,
        two numbers each, as are columns in ``"xyxy"`` that are not four to a box
    classes : the names of the classes in the order of their numbers, so that they are the same for every table; an
        unknown name is an error. Default the column's names sorted, or a categorical column's own order
    where : keeps the tiles whose table has these values: for each column a value, a collection of values, or a
        function from the column to a mask; no image of the others is looked for
    follow_symlinks : whether links inside `image_dir` may lead elsewhere; False refuses them
    verify : a file of digests, as ``lazytiles check --digest`` writes it: each image is read whole now, and refused
        where it is no longer the bytes it was

    Returns
    -------
    MultiSourceArray of shape (N, height, width, C), or (N, T, height, width, C) with a list of frames, or
    (N, depth, height, width, C) of volumes; sample i is the i-th tile of the table

    Raises
    ------
    ManifestError : the table is damaged or contradicts itself, an image is missing or lies outside `image_dir`
    RegionError : the first image cannot be opened
    """
    check_options(size, resample, pad, missing)
    wanted = Frames.of(frames)
    table = _table_of(manifest, target, tabular, wanted.labels, path, masks, classes, outside=pad is not None)
    opener = partial(manifest.opener if isinstance(manifest, Inspected) else open_region, level=level)
    image_dir = folder_of(manifest) if image_dir is None else image_dir
    flat = {"frames": wanted.timed, "size": size, "gray": gray, "level": level, "missing": missing}
    given: dict[str, Any] = {
        "classes": classes,
        "path": path,
        "target": target,
        "tabular": tabular,
        "masks": masks,
        "frames": frames,
    }
    given |= {"pad": pad, "bands": bands, "where": where, "follow_symlinks": follow_symlinks, "verify": verify}
    as_volumes = partial(_volumes, flat | {"scale_boxes": scale_boxes}, given, table, image_dir)
    if "zmin" in table or isinstance(image_dir, Mapping):
        return as_volumes(f"{'boxes of six numbers lie in' if 'zmin' in table else 'a mapping holds'} volumes")
    rows = wanted.samples(table, where)
    images = partial(Images.of, table, rows, image_dir=image_dir, opener=opener, follow_symlinks=follow_symlinks)
    found = images(path or default_template(table), frames=wanted, missing=missing)
    found.verify(verify, image_dir)
    first = found.first()
    table = table if len(rows) == len(table) else table.iloc[rows].reset_index(drop=True)
    windows = _windows_of(table)
    if windows is None and first.axes.startswith("P"):
        return as_volumes(f"{first.path} is a volume")
    form = _form(first, windows, table, size=size, resample=resample, pad=pad, bands=bands, gray=gray)
    masked = None if masks is None else images(_mask_template(masks), frames=Frames(None, False))
    groups = found.groups(masked)
    array = _assembled(table, windows, found, groups, form, timed=wanted.timed)
    array._segment = first.pages[0].segment
    array._valid = found.valid() if missing == "fill" else None
    masks_ = None if masked is None else _mask_tiles(table, windows, masked, groups, form)
    _label(array, table, target, tabular, classes, scale_boxes, box_format, masks_)
    return array


def _label(
    array: MultiSourceArray,
    table: pd.DataFrame,
    target: Any,
    tabular: Any,
    classes: Any,
    scale_boxes: Sequence[str],
    box_format: str,
    masks: MultiSourceArray | None,
) -> None:
    """Give an array its labels: mask tiles, or those of its table, boxes scaled as their tiles are."""
    set_labels(array, table, None if masks is not None else target, tabular, classes)
    if masks is not None:
        if len(scale_boxes):
            raise ManifestError("scale_boxes= is for labels in columns; with masks= the labels are masks")
        array._labels = masks
        for tiles, mask in zip(array.sources, masks.sources, strict=True):
            tiles.pair(mask)
    elif len(scale_boxes):
        boxes = Boxes.of(box_format, scale_boxes, names_of(target))
        if array._labels is not None:
            array._labels, array._boxes = scaled_boxes(array, array._labels, boxes), boxes


@dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """What `check` hands to `open_tiles`: the rows of a manifest that it found sound, and images it has opened.

    Parameters
    ----------
    table : from `inspect_manifest`
    opener : serves for `open_region`
    """

    table: pd.DataFrame
    opener: Any


def _table_of(
    manifest: Any,
    target: Any,
    tabular: Any,
    frames: list[str] | None,
    path: str | None,
    masks: Any,
    classes: Sequence[Any] | None,
    *,
    outside: bool,
) -> pd.DataFrame:
    if isinstance(manifest, Inspected):
        return manifest.table
    return read_manifest(manifest, **reading(target, tabular, frames, path, masks, classes, outside=outside))


def reading(
    target: Any,
    tabular: Any,
    frames: list[str] | None,
    path: str | None,
    masks: Any,
    classes: Sequence[Any] | None,
    *,
    outside: bool,
) -> dict[str, Any]:
    """The options of `read_manifest` for those of `open_tiles`."""
    if masks is not None and classes is not None:
        raise ManifestError("classes= is for names in a column; with masks= the labels are masks")
    by_default = isinstance(target, str) and target == "target"
    templates = [template for template in (path, masks) if isinstance(template, str)]
    return {
        "target": None if by_default else target,
        "tabular": tabular,
        "frames": frames,
        "optional": ["target"] if by_default else (),
        "text": [*(column for template in templates for column in template_columns(template)), "path"],
        "file": path,
        "classes": classes,
        "allow_outside": outside,
    }


def check_options(size: Any, resample: str, pad: str | None, missing: str) -> None:
    """Refuse values that no manifest could be opened with."""
    if size is not None and not _is_size(size):
        raise ValueError(f"size is (height, width) in pixels, not {size!r}")
    for name, value, allowed in (
        ("resample", resample, METHODS),
        ("pad", pad, (None, *PAD_MODES, *LINE_MODES)),
        ("missing", missing, ("raise", "fill")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _is_size(size: Any) -> bool:
    if not isinstance(size, Sequence | np.ndarray) or len(size) != 2:
        return False
    return all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in size)


def _volumes(
    flat: Mapping[str, Any], given: Mapping[str, Any], table: pd.DataFrame, folder: Any, why: str
) -> MultiSourceArray:
    """Volumes by the given options; those that say nothing about volumes are refused."""
    wrong = [name for name, value in flat.items() if value and value != "raise"]
    if wrong:
        raise ManifestError(f"{why}; {wrong[0]}= is for images")
    return open_volumes(table, folder, **given)


def _windows_of(table: pd.DataFrame) -> Int64s | None:
    """(y0, x0, y1, x1) of each row; None where tiles are whole images."""
    if "xmin" not in table:
        return None
    windows = np.empty((len(table), 4), dtype=np.int64)
    for place, name in zip((1, 0, 3, 2), BOX_2D, strict=True):
        windows[:, place] = table[name]
    return windows


def _form(
    first: Region,
    windows: Int64s | None,
    table: pd.DataFrame,
    *,
    size: tuple[int, int] | None,
    resample: str,
    pad: str | None,
    bands: Bands,
    gray: bool,
) -> TileForm:
    page = first.pages[0]
    if bands is not None and gray:
        raise ValueError("pass bands= or gray=True, not both")
    asked = asked_bands(bands)
    read = bands_read(page, asked, gray)
    if size is None:
        size, resampled = _common_size(first, windows, table), None
    else:
        size, resampled = (int(size[0]), int(size[1])), resample
        check_resample(page, resample)
    return TileForm(
        size, len(read), asked, first.dtype, read if isinstance(asked, tuple) else None, gray, pad, resampled
    )


def _common_size(first: Region, windows: Int64s | None, table: pd.DataFrame) -> tuple[int, int]:
    if windows is None:
        return first.inner_shape[0], first.inner_shape[1]
    extents = windows[:, 2:] - windows[:, :2]
    other = np.flatnonzero((extents != extents[0]).any(axis=1))
    if len(other):
        row = int(other[0])
        raise ManifestError(
            f"{_tile_name(table, windows, row)} is {extents[row, 0]} x {extents[row, 1]} pixels, "
            f"{_tile_name(table, windows, 0)} is {extents[0, 0]} x {extents[0, 1]} ({len(other)} tiles differ from "
            "the first); pass size=(height, width) to resample them to one size"
        )
    return int(extents[0, 0]), int(extents[0, 1])


def _tile_name(table: pd.DataFrame, windows: Int64s | None, row: int) -> str:
    tile = f"tile {table['tile_id'].iloc[row]}"
    if windows is None:
        return tile
    y0, x0, y1, x1 = windows[row].tolist()
    return f"{tile} with box ({x0}, {y0}, {x1}, {y1})"


@dataclass(frozen=True, slots=True, eq=False)
class _Names:
    """The words for the tiles of one region."""

    table: pd.DataFrame
    rows: Int64s

    def __call__(self, number: int) -> str:
        return f"tile {self.table['tile_id'].iloc[int(self.rows[number])]}"


def _assembled(
    table: pd.DataFrame, windows: Int64s | None, images: Images, groups: Int64s, form: TileForm, *, timed: bool
) -> MultiSourceArray:
    """One source per region, and the samples in the order of the table."""
    lengths = np.bincount(groups)
    mixed = bool((groups[1:] < groups[:-1]).any())  # else ten million rows are neither sorted nor copied
    by_region = np.argsort(groups, kind="stable") if mixed else np.arange(len(table), dtype=np.int64)
    boxes = windows[by_region] if mixed and windows is not None else windows
    names = table[region_column(table)]
    sources = []
    for stop, length in zip(np.cumsum(lengths).tolist(), lengths.tolist(), strict=True):
        rows = by_region[stop - length : stop]
        sources.append(
            RegionTiles(
                images.openers(int(rows[0])),
                np.zeros((length, 4), np.int64) if boxes is None else boxes[stop - length : stop],
                form,
                timed=timed,
                name=str(names.iat[int(rows[0])]),
                tile_name=_Names(table, rows),
                whole=windows is None,
            )
        )
    array = MultiSourceArray(sources, labels=np.zeros(len(table), np.int8).reshape(-1, 1))
    array._rows = np.argsort(by_region, kind="stable").astype(np.int64) if mixed else by_region
    array._table = table
    return array


def _mask_template(masks: Any) -> str:
    if not isinstance(masks, str):
        raise ManifestError("masks= is a path template, such as 'masks/{region_id}.tif'; of volumes also a mapping")
    return masks


def _mask_tiles(
    table: pd.DataFrame, windows: Int64s | None, images: Images, groups: Int64s, form: TileForm
) -> MultiSourceArray:
    """Tiles of the masks under the same windows, nearest neighbour where they are resampled."""
    first = images.first()
    samples = first.inner_shape[2]
    resample = "nearest" if form.resample else None
    mask_form = TileForm(form.size, samples, None, first.dtype, pad=form.pad, resample=resample)
    return _assembled(table, windows, images, groups, mask_form, timed=False)
