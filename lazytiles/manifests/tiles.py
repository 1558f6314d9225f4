"""`open_tiles` and `open_volumes`: from a manifest to one lazy array of tiles, with labels and table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.aliases import Int64s
from lazytiles.arrays import Companions, MapBoxes, MultiSourceArray, RegionTiles, Sampling, VolumeTiles, open_volume
from lazytiles.augment import Boxes, scaled_boxes
from lazytiles.errors import ManifestError
from lazytiles.images import METHODS, Bands, open_region
from lazytiles.indexing import PAD_MODES, region_column
from lazytiles.manifests.asked import Asked, form_of, mask_form_of
from lazytiles.manifests.catalog import by_name
from lazytiles.manifests.columns import labels_of_table, names_of
from lazytiles.manifests.paths import default_template, folder_of
from lazytiles.manifests.problems import BOX_2D
from lazytiles.manifests.samples import Frames, Images, common_extent, windows_of

_Part: TypeAlias = tuple[Images, Callable[..., Any]]  # images or masks, and what makes the source of a region of them


@by_name
def open_tiles(
    manifest: pd.DataFrame | str | os.PathLike[str],
    image_dir: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    frames: Any = None,
    path: str | Sequence[str] | None = None,
    target: str | Sequence[str] | None = "target",
    tabular: str | Sequence[str] | None = None,
    masks: str | Mapping[str, Any] | None = None,
    mask_axes: str | None = None,
    coordinates: str = "pixels",
    boxes_crs: str | None = None,
    size: tuple[int, int] | None = None,
    resample: str = "bilinear",
    pad: str | None = None,
    fill: float | Sequence[float] = 0,
    mask_fill: float = 0,
    bands: Bands = None,
    gray: bool = False,
    dtype: Any = None,
    scaled: bool = False,
    page: int | str | None = None,
    series: int | None = None,
    axes: str | None = None,
    channels: Sequence[int | str] | None = None,
    level: int = 0,
    mpp: float | None = None,
    source_mpp: float | Sequence[float] | str | None = None,
    mask_scale: float | str | None = None,
    missing: str = "raise",
    scale_boxes: Sequence[str] = (),
    box_format: str = "xyxy",
    classes: Sequence[Any] | None = None,
    where: Mapping[str, Any] | None = None,
    follow_symlinks: bool = True,
    verify: str | os.PathLike[str] | None = None,
) -> MultiSourceArray:
    """Open the tiles of a manifest as one lazy array; no image is decoded and only one is opened.

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
        `label_id`, else ``"{region_id}.tif"``. Each frame's image is named by that frame's own row, a mask by the last.
        A list of templates stacks files as bands, in that order; those of another resolution are brought to the grid
        of the first by their georeference, or where there is none by the ratio of their sizes, a whole number
    target : the column of the labels, a list of columns (labels of shape (N, k)), or None. A column of names, of
        categories or of True and False gives class numbers, see `classes`; of several columns one may. In a column
        where nothing is written the tiles have no labels and are for prediction
    tabular : columns given to the model as a second input
    masks : a path template; the labels are then mask tiles cut with the same windows, of masks of the same extent as
        their image, or on the same grid where both say where they lie. Of volumes also a mapping
    mask_axes : of masks, as `axes` of images
    coordinates : what boxes count: ``"pixels"`` of the level that is read; ``"base"``, pixels of level 0, whatever
        `level` is read; or ``"map"`` units of their CRS, where each box is
        rounded to whole pixels of the image of the last frame, and other frames, masks and files of bands are
        sampled at the centres of these, by their own georeference (masks take the nearest pixel)
    boxes_crs : the CRS of boxes in map units, such as ``"EPSG:4326"``, where it is not that of the images; they are
        reprojected by pyproj (the extra `geo`)
    size : (height, width), pixels, to which every window is resampled; without it all windows have one size
    resample : ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"area"``, also for images on another grid; masks are
        always nearest. Pixels that are not valid (nodata, NaN, masked, transparent) are left out, band by band
    pad : NumPy's ``"constant"``, ``"edge"``, ``"reflect"``, ``"symmetric"`` or ``"wrap"`` for windows that leave
        their region; None refuses them. NumPy's ``"maximum"``, ``"mean"``, ``"median"``, ``"minimum"`` and
        ``"linear_ramp"`` read the whole lines of the region that such a window crosses
    fill : what padding by ``"constant"`` and missing frames hold: one value, or one a band. One value also stands for
        segments that a file leaves out, such as 255 for the white of a slide, unless the file has a nodata value
    mask_fill : the same for masks, such as 255
    bands : which samples of the images, in this order (of several files they are numbered through); or ``"rgb"``: red,
        green and blue of images of one, three or four bands, gray ones repeated and opacity left out
    gray : whether red, green and blue become one luminance band
    dtype : what values are cast to; without it all images have one dtype
    scaled : whether values become what they mean by the scale and offset of their file, float32, NaN where not valid
    page, series, axes, channels : what of each file is read, as in `open_region`. Channels become bands, a time axis
        stands behind that of the samples, an axis of slices behind both
    level : resolution of each pyramid; boxes are in pixels of that level, or with ``coordinates="base"`` of level 0:
        tiles are then read straight where their box falls on whole pixels of the level, else resampled
    mpp : micrometres a pixel of the tiles: boxes are in pixels of level 0 (``coordinates="base"``), as
        ``make_grid(mpp=)`` writes them, and a tile is `size` pixels of that scale from the upper left corner of its
        box, resampled from the level of its slide that is just fine enough. A box of another extent than that, by more
        than a pixel, is refused; without `size` it follows from the boxes
    source_mpp : micrometres a pixel of the images at level 0, where they do not say it, or say it wrongly: a number,
        (y, x), or the name of a column of the table
    mask_scale : of masks that are smaller than their image: how many of its pixels at level 0 one of theirs is, such
        as 16; or ``"mpp"``, where both files say their micrometres. Tiles have the nearest pixel of the mask
    missing : ``"raise"``, or ``"fill"`` to give `fill` for a frame whose image or row is missing (see `valid`); behind
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
    (N, depth, height, width, C) of volumes; sample i is the i-th tile of the table. Its ``valid_pixels`` say which
    pixels are not nodata, NaN, masked, transparent, padding, or of a missing frame

    Raises
    ------
    ManifestError : the table is damaged or contradicts itself, an image is missing or lies outside `image_dir`
    RegionError : the first image cannot be opened
    """
    asked = Asked(
        frames=frames, path=path, target=target, tabular=tabular, masks=masks, mask_axes=mask_axes,
        coordinates=coordinates, boxes_crs=boxes_crs, size=size, resample=resample, pad=pad, fill=fill,
        mask_fill=mask_fill, bands=bands, gray=gray, dtype=dtype, scaled=scaled, page=page, series=series, axes=axes,
        channels=channels, level=level, mpp=mpp, source_mpp=source_mpp, mask_scale=mask_scale, missing=missing,
        scale_boxes=scale_boxes, box_format=box_format, classes=classes, where=where, follow_symlinks=follow_symlinks,
        verify=verify,
    )  # fmt: skip
    table = asked.read(manifest)
    return tiles_of(table, folder_of(manifest) if image_dir is None else image_dir, asked)


def open_volumes(
    manifest: pd.DataFrame | str | os.PathLike[str],
    volumes: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    path: str | None = None,
    target: str | Sequence[str] | None = "target",
    tabular: str | Sequence[str] | None = None,
    masks: str | Mapping[str, Any] | None = None,
    frames: Any = None,
    pad: str | None = None,
    context: int | None = None,
    size: tuple[int, int, int] | None = None,
    spacing: float | tuple[float, float, float] | None = None,
    source_spacing: float | tuple[float, float, float] | None = None,
    resample: str = "bilinear",
    series: int | None = None,
    axes: str | None = None,
    channels: Sequence[int | str] | None = None,
    level: int = 0,
    bands: Bands = None,
    classes: Sequence[Any] | None = None,
    where: Mapping[str, Any] | None = None,
    follow_symlinks: bool = True,
    verify: str | os.PathLike[str] | None = None,
) -> MultiSourceArray:
    """Open the boxes of volumes in a manifest as one lazy array; no voxel is read and one volume is opened.

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
    size : (depth, height, width), voxels: every box, or whole volume, is resampled to it, masks by the nearest voxel
    spacing : micrometres from one voxel of such a tile to the next, (z, y, x) or one number for all: a tile then begins
        at its box's first corner and is `size` times `spacing` large, which the box has to agree with
    source_spacing : of the volumes, where they do not say it or say something wrong
    resample : ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"area"``, along each axis; smoothed when reducing
    series, axes, channels, level : of volumes in files, as in `open_region`; channels come last. By default all
        pages are slices
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
    if Frames.of(frames).timed:
        raise ManifestError(f'frames={list(frames)}: volumes have no time axis; name one label id, or "each"')
    asked = Asked(
        path=path, target=target, tabular=tabular, masks=masks, frames=frames, pad=pad, bands=bands, classes=classes,
        where=where, follow_symlinks=follow_symlinks, verify=verify,
    )  # fmt: skip
    sampling = _sampling(size, spacing, source_spacing, resample)
    opening = {"series": series, "axes": axes, "channels": channels, "level": level}
    table = asked.read(manifest)
    return _volumes_of(table, folder_of(manifest) if volumes is None else volumes, asked, context, sampling, opening)


def _sampling(size: Any, spacing: Any, source: Any, method: str) -> Sampling | None:
    """How the boxes of volumes are resampled; None where no size is asked for."""
    if size is None:
        if spacing is not None or source is not None:
            raise ValueError("spacing= and source_spacing= are for tiles of size=(depth, height, width) voxels")
        return None
    if method not in METHODS:
        raise ValueError(f"resample must be one of {', '.join(METHODS)}, not {method!r}")

    def triple(name: str, value: Any, kind: type) -> Any:
        if value is None:
            return None
        numbers = (value,) * 3 if kind is float and isinstance(value, int | float) else value
        try:
            found = tuple(kind(number) for number in numbers)
            if len(found) == 3 and min(found) > 0 and all(a == b for a, b in zip(found, numbers, strict=True)):
                return found
        except (TypeError, ValueError):
            pass
        raise ValueError(f"{name} is three numbers above 0, for slices, rows and columns, not {value!r}")

    own, given = triple("spacing", spacing, float), triple("source_spacing", source, float)
    return Sampling(triple("size", size, int), own, given, method)


def tiles_of(table: pd.DataFrame, image_dir: Any, asked: Asked, opener: Any = open_region) -> MultiSourceArray:
    """The tiles of a table that was read for this and is sound, as `open_tiles` gives them."""
    wanted = Frames.of(asked.frames)
    if "zmin" in table or isinstance(image_dir, Mapping):
        why = "boxes of six numbers lie in volumes" if "zmin" in table else "a mapping holds volumes"
        asked.refuse_for_volumes(why)
        return _volumes_of(table, image_dir, asked)
    rows = wanted.samples(table, asked.where)
    images = partial(Images.of, table, rows, image_dir=image_dir, follow_symlinks=asked.follow_symlinks)
    found = images(
        asked.path or default_template(table),
        frames=wanted,
        opener=partial(opener, **asked.opening),
        missing=asked.missing,
        mpp=asked.source_mpp,
    )
    found.verify(asked.verify, image_dir)
    firsts = found.first()
    if "xmin" not in table and firsts[0].lead and not asked.has_axes:
        asked.refuse_for_volumes(f"{firsts[0].path} is a volume")
        return _volumes_of(table, image_dir, asked)
    table = table if len(rows) == len(table) else table.iloc[rows].reset_index(drop=True)
    windows: NDArray[Any] | MapBoxes | None = windows_of(table)
    if asked.coordinates == "map" and "xmin" in table:
        windows = MapBoxes(table[list(BOX_2D)].to_numpy(np.float64), asked.boxes_crs)
    form = form_of(firsts, found.first_row(), windows, table, asked)
    if wanted.timed and "T" in form.layout.letters:
        raise ManifestError(f"frames={list(wanted.labels or ())}: the images have a time axis of their own")
    masks = None
    source = partial(RegionTiles, form=form, timed=wanted.timed, units=asked.units)
    if asked.masks is not None:
        if not isinstance(asked.masks, str):
            raise ManifestError("masks= is a path template, such as 'masks/{region_id}.tif'; of volumes also a mapping")
        masked = images(asked.masks, frames=Frames(None, False), opener=partial(opener, **asked.mask_opening))
        masks = masked, partial(source, form=mask_form_of(masked, form, asked), timed=False)
    array = _labelled(table, windows, asked, (found, source), masks)
    if asked.missing == "fill":
        array.companions = replace(array.companions, valid=found.valid())
    return array


def _volumes_of(
    table: pd.DataFrame,
    volumes: Any,
    asked: Asked,
    context: int | None = None,
    sampling: Sampling | None = None,
    opening: Mapping[str, Any] | None = None,
) -> MultiSourceArray:
    """The boxes of volumes of a table that was read for this and is sound."""
    rows = Frames.of(asked.frames).samples(table, asked.where)
    if not len(rows):
        raise ManifestError("the manifest has no rows")
    if "xmin" in table and "zmin" not in table:
        raise ManifestError("volumes need boxes of six numbers, (xmin, ymin, zmin, xmax, ymax, zmax); see make_grid")

    def images(place: Any, template: Any, **how: Any) -> Images:
        if isinstance(place, Mapping):
            return Images.given(table, rows, place)
        opener = partial(open_volume, **how)
        links, frames = asked.follow_symlinks, Frames(None, False)
        return Images.of(table, rows, template or default_template(table), place, frames, opener, follow_symlinks=links)

    found, masked = images(volumes, asked.path, bands=asked.bands, **(opening or {})), None
    if not isinstance(volumes, Mapping):
        found.verify(asked.verify, volumes)
    if isinstance(asked.masks, str):
        masked = images(volumes, asked.masks)
    elif asked.masks is not None:
        masked = images(asked.masks, None)
    table = table if len(rows) == len(table) else table.iloc[rows].reset_index(drop=True)
    windows = windows_of(table)
    if windows is not None and sampling is None:
        common_extent(table, windows)

    def source_of(part: Images, context: int | None, sampling: Sampling | None) -> Callable[..., VolumeTiles]:
        (first,) = part.first()
        if len(first.shape) not in (3, 4):
            raise ManifestError(
                f"a volume is (Z, H, W) or (Z, H, W, S); the first is {tuple(first.shape)}; "
                'of a TIFF, open_region(path, page="all") takes all pages'
            )
        if sampling is not None and np.dtype(first.dtype).kind not in "uif" and sampling.method != "nearest":
            raise ManifestError(
                f"{sampling.method} resampling of {first.dtype} makes no sense; pass resample='nearest'"
            )

        def source(openers: Sequence[Any], boxes: Int64s, *, tile_name: _Names, **named: Any) -> VolumeTiles:
            boxes = np.tile([0, 0, 0, *first.shape[:3]], (len(boxes), 1)) if named["whole"] else boxes
            form: dict[str, Any] = {"samples": (*first.shape, 1)[3], "dtype": first.dtype, "pad": asked.pad}
            form |= {"context": context, "sampling": sampling, "tile_name": tile_name.alone()}
            return VolumeTiles(openers[0], boxes, **form, **named)

        return source

    tiles, near = (found, source_of(found, context, sampling)), sampling and replace(sampling, method="nearest")
    masks = None if masked is None else (masked, source_of(masked, context and 0, near))
    return _labelled(table, windows, asked, tiles, masks)


def _labelled(
    table: pd.DataFrame, windows: NDArray[Any] | MapBoxes | None, asked: Asked, images: _Part, masks: _Part | None
) -> MultiSourceArray:
    """The tiles with their labels: mask tiles, or those of their table, boxes scaled as their tiles are."""
    groups = images[0].groups(None if masks is None else masks[0])
    array = _assembled(table, windows, groups, *images)
    target = asked.target if masks is None else None
    labels, names = labels_of_table(table, target)
    columns = [name for name in names_of(target) if name in table]
    note = f"nothing in {', '.join(columns)}" if columns and labels is None else ""
    tabular = None if asked.tabular is None else tuple(names_of(asked.tabular))
    # Tiles without labels have the classes that are named, too, for what a model says of them.
    classes = list(asked.classes) if names is None and asked.classes is not None else names
    array.companions = replace(array.companions, labels=labels, classes=classes, tabular=tabular, note=note)
    if masks is not None:
        if len(asked.scale_boxes):
            raise ManifestError("scale_boxes= is for labels in columns; with masks= the labels are masks")
        mask_tiles = _assembled(table, windows, groups, *masks)
        array.companions = replace(array.companions, labels=mask_tiles)
        for tiles, mask in zip(array.sources, mask_tiles.sources, strict=True):
            tiles.pair(mask)
    elif len(asked.scale_boxes):
        boxes = Boxes.of(asked.box_format, asked.scale_boxes, names_of(target))
        if labels is not None:
            array.companions = replace(array.companions, labels=scaled_boxes(array, labels, boxes), boxes=boxes)
    return array


@dataclass(frozen=True, slots=True, eq=False)
class _Names:
    """The words for the tiles of one region."""

    table: pd.DataFrame
    rows: Int64s

    def __call__(self, number: int) -> str:
        return f"tile {self.table['tile_id'].iloc[int(self.rows[number])]}"

    def alone(self) -> _Names:
        """The same without the rest of the table, to travel with one source."""
        return _Names(self.table[["tile_id"]].iloc[self.rows], np.arange(len(self.rows)))


def _assembled(
    table: pd.DataFrame,
    windows: NDArray[Any] | MapBoxes | None,
    groups: Int64s,
    images: Images,
    source: Callable[..., Any],
) -> MultiSourceArray:
    """One source per region, made of openers, windows (0 for whole images) and words; samples in the table's order."""
    boxes = np.zeros((len(table), 4), np.int64) if windows is None else windows

    def part(key: Any) -> Any:
        return boxes.part(key) if isinstance(boxes, MapBoxes) else boxes[key]

    lengths = np.bincount(groups)
    mixed = bool((groups[1:] < groups[:-1]).any())  # else ten million rows are neither sorted nor copied
    by_region = order = np.arange(len(table), dtype=np.int64)
    if mixed:
        by_region = np.argsort(groups, kind="stable")
        boxes, order = part(by_region), np.argsort(by_region, kind="stable").astype(np.int64)
    names = table[region_column(table)]
    sources = []
    for stop, length in zip(np.cumsum(lengths).tolist(), lengths.tolist(), strict=True):
        rows = by_region[stop - length : stop]
        tiles = source(
            images.openers(int(rows[0])),
            part(slice(stop - length, stop)),
            name=str(names.iat[int(rows[0])]),
            tile_name=_Names(table, rows),
            whole=windows is None,
        )
        sources.append(tiles)
    return MultiSourceArray.assembled(sources, Companions(table=table), order)
