"""Pictures of tiles and regions on matplotlib axes, and the small tables that notebooks show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lazytiles.arrays import MapBoxes
from lazytiles.display import colours, side_by_side, stretched
from lazytiles.errors import require
from lazytiles.images import Region, thumbnail
from lazytiles.manifests import BOX_2D, read_manifest, region_names

MOST_CLASSES = 50


def plot_tiles(
    tiles: Any,
    n: int = 16,
    *,
    bands: Sequence[int] | None = None,
    limits: tuple[float, float] | None = None,
    columns: int | None = None,
    labels: Any = None,
    ax: Any = None,
) -> Any:
    """Draw the first tiles as one picture, frames side by side, each with its label.

    Parameters
    ----------
    tiles : a source of samples (H, W, C) or (T, H, W, C)
    n : how many tiles
    bands : which bands are shown, three or one
    limits : values shown as black and white; default by percentiles of what is shown
    columns : tiles in a row; default makes the picture about as wide as high
    labels : what is written over each; default the tiles' own labels
    ax : matplotlib axes to draw on; default new ones

    Returns
    -------
    the axes
    """
    n = min(n, len(tiles))
    if not n:
        raise ValueError("there are no tiles to plot")
    indices = np.arange(n)
    samples = tiles.take(indices) if hasattr(tiles, "take_batches") else np.asarray(tiles[:n])
    samples = samples if samples.ndim > 3 else samples[..., None]
    there = getattr(tiles, "valid", None)
    if isinstance(there, np.ndarray) and limits is None and not there[:n].all():
        # What stands for missing frames is black, and says nothing of the contrast of the others.
        known = there[:n].reshape(n, *there.shape[1:] * (samples.ndim == 5), *[1] * (3 if samples.ndim > 3 else 2))
        samples = np.where(known, samples, np.nan)
    shown = stretched(samples, bands=bands, limits=limits)
    frames = shown.shape[1] if shown.ndim == 5 else 1
    wide, high = frames * shown.shape[-2], shown.shape[-3]
    columns = columns or max(1, min(n, round((n * 1.5 * high / wide) ** 0.5)))
    sheet, places = side_by_side(shown, columns, gap=max(1, high // 40))
    rows = -(-n // columns)
    if ax is None:
        ax = _axes(10.0, 10.0 * sheet.shape[0] / sheet.shape[1])
    ax.imshow(sheet, interpolation="nearest")
    ax.set_axis_off()
    table = getattr(tiles, "table", None)
    names = [] if table is None else table["tile_id"].iloc[:n].astype(str).to_list()
    given = names or [str(k) for k in range(n)]
    own, classes = getattr(tiles, "labels", None), getattr(tiles, "classes", None)
    if labels is not None:
        given = [str(label) for label in labels]
    elif isinstance(own, np.ndarray) and own.ndim <= 2 and len(own) >= n:
        if classes is not None and own.ndim == 1:
            given = [str(classes[label]) for label in own[:n]]
        else:
            given = [" ".join(f"{value:.4g}" for value in np.atleast_1d(label)) for label in own[:n]]
        given = [f"{name}\n{value}" for name, value in zip(names, given, strict=True)] if names else given
    size = max(4.0, min(9.0, 60 / max(rows, columns)))
    for text, (top, left) in zip(given, places, strict=False):
        style = {"facecolor": "black", "alpha": 0.6, "pad": 1.0, "edgecolor": "none"}
        ax.text(left, top, text, color="white", fontsize=size, va="top", ha="left", bbox=style)
    return ax


def plot_region(
    region: Region, tiles: Any = None, *, bands: Sequence[int] | None = None, target: str = "target", ax: Any = None
) -> Any:
    """Draw a region, made small, with the windows of its tiles over it, coloured by their target.

    Parameters
    ----------
    region : the image; an overview is read where it has one
    tiles : an array of `open_tiles`, or a manifest: a DataFrame, or a CSV or Parquet path; its tiles of this region
        are drawn. None draws none
    bands : which bands are shown, three or one
    target : the column that colours the windows, of numbers or of class names
    ax : matplotlib axes to draw on; default new ones

    Returns
    -------
    the axes, in full-resolution pixels of the region
    """
    small = thumbnail(region, longest=1024)
    assert small is not None
    height, width = region.inner_shape[:2]
    ax = ax if ax is not None else _axes(8.0, max(2.0, 8.0 * height / width))
    ax.imshow(stretched(small, bands=bands), extent=(0, width, height, 0), interpolation="nearest")
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_xlabel("x, pixels")
    ax.set_ylabel("y, pixels")
    table = getattr(tiles, "table", tiles)
    if table is not None and (isinstance(table, str | os.PathLike) or "xmin" not in table):
        table = read_manifest(table, optional=[target], allow_outside=True)
    if table is not None:
        _draw_windows(ax, region, table, target)
    return ax


def _axes(width: float, height: float) -> Any:
    pyplot = require("matplotlib.pyplot", extra="plot")
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def _draw_windows(ax: Any, region: Region, table: Any, target: str) -> None:
    patches = require("matplotlib.patches", extra="plot")
    collections = require("matplotlib.collections", extra="plot")
    # The rows of that region: by their path where they have one and it ends so, else by the region's name.
    by_name = region_names(table)
    by_path = table["path"].astype("category") if "path" in table else by_name
    fits = [f"/{region.path}".endswith(f"/{name}") for name in by_path.cat.categories.astype(str)]
    if not any(fits):
        stem = region.path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        by_path, fits = by_name, [name == stem for name in by_name.cat.categories.astype(str)]
    mine = table[np.array([*fits, False])[by_path.cat.codes]]
    mine = mine[~mine["tile_id"].duplicated(keep="last").to_numpy()]
    if not len(mine) or "xmin" not in mine:
        return
    corners = boxes_on(region, mine)
    boxes = [patches.Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in corners]
    drawn = collections.PatchCollection(boxes, facecolor="none", linewidth=1.8)
    each, classes, ends = coloured_by(mine, target)
    drawn.set_edgecolor(each)
    if classes:
        keys = [patches.Patch(color=colour, label=name) for name, colour in classes.items()]
        ax.legend(handles=keys, title=target, loc="upper left", bbox_to_anchor=(1, 1))
    if ends is not None:
        scale = require("matplotlib.cm", extra="plot").ScalarMappable(cmap="viridis")
        scale.set_clim(*ends)
        ax.figure.colorbar(scale, ax=ax, label=target, shrink=0.8)
    ax.add_collection(drawn)


def boxes_on(region: Region, table: Any, crs: str | None = None) -> list[list[float]]:
    """The boxes of some rows as (xmin, ymin, xmax, ymax), pixels of a region; those of no box are the whole of it.

    Boxes in map units (floats) may be in another CRS; the region must say where it lies.
    """
    if "xmin" not in table:
        return [[0, 0, *region.inner_shape[1::-1]]] * len(table)
    boxes = table[list(BOX_2D)].to_numpy()
    if boxes.dtype.kind == "f":
        boxes = MapBoxes(boxes, crs).exactly(region.pages[0])[:, [1, 0, 3, 2]]
    return list(boxes.tolist())


def coloured_by(table: pd.DataFrame, column: str) -> tuple[list[str], dict[str, str], tuple[float, float] | None]:
    """The colour of each row's window, by a column of numbers or of class names, that of each class, and the ends.

    Numbers have no classes, and classes no ends: the least and the greatest number. There is neither where there is
    no such column, or its names are too many to be told apart.

    >>> coloured_by(pd.DataFrame({"target": ["dog", "cat"]}), "target")
    (['#fde725', '#440154'], {'cat': '#440154', 'dog': '#fde725'}, None)
    """
    plain: list[str] = ["#ffcc00"] * len(table)
    if column not in table or not len(table):
        return plain, {}, None
    values = table[column]
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, names = values.cat.codes.to_numpy(np.int64), values.cat.categories
    elif pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        known = numbers[~np.isnan(numbers)]
        return colours(numbers), {}, (float(known.min()), float(known.max())) if len(known) else None
    else:
        codes, names = pd.factorize(values.astype(str), sort=True)
        if len(names) > MOST_CLASSES:
            return plain, {}, None
    each = colours(np.where(codes < 0, np.nan, codes))
    there, first = np.unique(codes, return_index=True)
    return each, {str(names[k]): each[row] for k, row in zip(there, first, strict=True) if k >= 0}, None
