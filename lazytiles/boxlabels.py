"""Labels that are places in an image, such as corners of boxes, brought to the pixels of the tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import ManifestError


def scaled_boxes(tiles: Any, labels: NDArray[Any], names: Sequence[str], columns: Sequence[str]) -> NDArray[np.float64]:
    """The labels of tiles with some columns turned from pixels of the image to pixels of the tile.

    A tile that shows a window of another size was resampled; what its labels say about places is resampled
    with it: ``(place - where the window begins) * tile size / window size``. Tags of all images are read.

    Parameters
    ----------
    tiles : a MultiSourceArray from a manifest
    labels : shape (n, k), of the tiles in their order
    names : the label columns, k of them
    columns : those that are places, x and y in turn, such as ``["x0", "y0", "x1", "y1"]``

    Returns
    -------
    float64 array, shape (n, k)

    Raises
    ------
    ManifestError : a column is no label column, or they are not pairs
    """
    absent = [column for column in columns if column not in names]
    if absent or len(columns) % 2:
        raise ManifestError(
            f"scale_boxes={list(columns)}: label columns, x and y in turn; the labels are {list(names)}"
        )
    windows = _windows(tiles)
    height, width = tiles.shape[-3:-1]
    ratio = np.array([height, width]) / (windows[:, 2:] - windows[:, :2])
    labels = np.array(labels, np.float64)
    for k, column in enumerate(columns):
        axis = 1 - k % 2
        at = list(names).index(column)
        labels[:, at] = (labels[:, at] - windows[:, axis]) * ratio[:, axis]
    return labels


def _windows(tiles: Any) -> NDArray[np.int64]:
    """The window of every tile, (y0, x0, y1, x1); of whole images their extents."""
    pairs = tiles.index_pairs
    windows = np.zeros((len(tiles), 4), np.int64)
    for number, source in enumerate(tiles.sources):
        rows = np.flatnonzero(pairs[:, 0] == number)
        if not len(rows):
            continue
        if source.whole:
            pages = (source.page(frame) for frame in reversed(range(len(source.regions))))
            windows[rows, 2:] = next(page.shape[:2] for page in pages if page is not None)
        else:
            windows[rows] = source.windows[pairs[rows, 1]]
    return windows
