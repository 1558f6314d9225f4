"""Labels that are boxes or points of an image: how they are written, cut out with their tile, and moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.errors import ManifestError

Floats = NDArray[np.float64]

# One letter, beside the c of centres, for each number of a box: places x and y, sizes w and h.
FORMATS = ("xyxy", "xywh", "cxcywh", "xyhw", "xy")


@dataclass(frozen=True, slots=True)
class Boxes:
    """How boxes are written in rows of labels, in pixels.

    Parameters
    ----------
    format : ``"xyxy"`` (both corners, half-open), ``"xywh"`` or ``"xyhw"`` (the first corner, width and height in that
        order), ``"cxcywh"`` (the centre, width and height); or ``"xy"``, points
    columns : where in the last axis of the labels their numbers stand, one box after the other; None is everywhere

    >>> Boxes("xywh", (1, 2, 3, 4))
    Boxes(format='xywh', columns=(1, 2, 3, 4))
    """

    format: str
    columns: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"boxes are written as one of {', '.join(map(repr, FORMATS))}, not {self.format!r}")

    @classmethod
    def of(cls, format: str, columns: Sequence[str], names: Sequence[str]) -> Boxes:  # noqa: A002
        """The boxes in some label columns.

        Parameters
        ----------
        format : as of the class; columns in ``"xyxy"`` that are not four to a box are points
        columns : those of the boxes, in the order of their numbers
        names : all label columns

        Raises
        ------
        ManifestError : a column is no label column or there twice, or their number does not fit the format

        >>> Boxes.of("xyxy", ["x", "y"], ["kind", "x", "y"])
        Boxes(format='xy', columns=(1, 2))
        """
        columns = [columns] if isinstance(columns, str) else list(columns)
        format = "xy" if format == "xyxy" and len(columns) % 4 == 2 else format  # noqa: A001
        known = cls(format)
        if any(column not in names for column in columns) or len(set(columns)) < len(columns) or not columns:
            raise ManifestError(f"scale_boxes={columns}: different label columns; the labels are {list(names)}")
        if len(columns) % known.count:
            raise ManifestError(
                f"scale_boxes={columns}: {known.count} columns to a box of the format {format!r}, "
                f"not {len(columns)} columns"
            )
        return cls(format, tuple(list(names).index(column) for column in columns))

    @property
    def count(self) -> int:
        """The numbers of one box."""
        return len(self.format.replace("c", ""))

    def take(self, labels: NDArray[Any]) -> Floats:
        """The boxes of labels, float64, shape (n, k, `count`).

        Raises
        ------
        ValueError : the labels are no rows of so many numbers
        """
        labels = np.asarray(labels)
        width = labels.shape[-1] if self.columns is None else len(self.columns)
        if labels.ndim < 2 or labels.dtype.kind not in "iuf" or not width or width % self.count:
            raise ValueError(
                f"labels of shape {labels.shape} {labels.dtype} are no boxes {self.format!r}: they are numbers, "
                f"{self.count} to a box along the last axis"
            )
        chosen = labels if self.columns is None else labels[..., list(self.columns)]
        return chosen.astype(np.float64).reshape(len(labels), -1, self.count)

    def put(self, labels: NDArray[Any], boxes: Floats) -> NDArray[Any]:
        """The labels with other boxes in place of theirs; whole numbers become float32."""
        kind = labels.dtype if labels.dtype.kind == "f" else np.dtype(np.float32)
        result = labels.astype(kind)
        if self.columns is None:
            result[...] = boxes.reshape(labels.shape)
        else:
            result[..., list(self.columns)] = boxes.reshape(*labels.shape[:-1], len(self.columns))
        return result

    def scaled(self, boxes: Floats, origin: Floats, ratio: Floats) -> Floats:
        """Boxes from pixels of an image to those of a tile: places are shifted and scaled, sizes scaled.

        Parameters
        ----------
        boxes : shape (n, k, `count`)
        origin, ratio : shape (n, 2), along y and x: where each window begins, and the tile's size over the window's
        """
        result = boxes.copy()
        for k, letter in enumerate(self.format.replace("c", "")):
            at = 0 if letter in "yh" else 1
            shift = origin[:, at, None] if letter in "xy" else 0.0
            result[..., k] = (result[..., k] - shift) * ratio[:, at, None]
        return result

    def corners(self, boxes: Floats) -> Floats:
        """x0, y0, x1, y1 of boxes, shape (..., 4); of points twice the point."""
        first, second = boxes[..., :2], boxes[..., -2:]
        if self.format == "xyhw":
            second = second[..., ::-1]
        if self.format == "cxcywh":
            return np.concatenate([first - second / 2, first + second / 2], axis=-1)
        return np.concatenate([first, second if self.format in ("xyxy", "xy") else first + second], axis=-1)

    def from_corners(self, corners: Floats) -> Floats:
        """The inverse of `corners`."""
        first, second = corners[..., :2], corners[..., 2:]
        size = second - first
        if self.format == "xy":
            return first
        if self.format == "xyxy":
            return corners
        start = (first + second) / 2 if self.format == "cxcywh" else first
        return np.concatenate([start, size[..., ::-1] if self.format == "xyhw" else size], axis=-1)

    def moved(self, labels: NDArray[Any], moves: Sequence[Callable[[Floats], Floats] | None]) -> NDArray[Any]:
        """The labels of a batch, the boxes of each sample moved.

        Parameters
        ----------
        labels : shape (n, ...)
        moves : for each sample a function from corners or points, shape (k, 4) or (k, 2), to others; None leaves all
        """
        boxes = self.take(labels)
        for k, move in enumerate(moves):
            if move is not None:
                given = boxes[k] if self.format == "xy" else self.corners(boxes[k])
                boxes[k] = move(given) if self.format == "xy" else self.from_corners(move(given))
        return self.put(np.asarray(labels), boxes)


def scaled_boxes(tiles: Any, labels: NDArray[Any], boxes: Boxes) -> Floats:
    """The labels of tiles with their boxes turned from pixels of the image to pixels of the tile.

    A tile that shows a window of another size was resampled; what its labels say about places and sizes is resampled
    with it: ``(place - where the window begins) * tile size / window size``. Tags of all images are read.

    Parameters
    ----------
    tiles : a MultiSourceArray from a manifest
    labels : shape (n, k), of the tiles in their order
    boxes : which of the k columns

    Returns
    -------
    float64 array, shape (n, k)
    """
    for source in tiles.sources:
        if source.whole:
            source.base()  # opened, a whole image knows its extent
    starts, pairs = np.cumsum([0, *map(len, tiles.sources)]), tiles.index_pairs
    every = np.concatenate([source.exact_windows() for source in tiles.sources])
    windows = every[starts[pairs[:, 0]] + pairs[:, 1]]
    size = np.array(tiles.shape[-3:-1], np.float64)
    ratio = size / (windows[:, 2:] - windows[:, :2])
    labels = np.array(labels, np.float64)
    return boxes.put(labels, boxes.scaled(boxes.take(labels), windows[:, :2].astype(np.float64), ratio))
