"""Predictions back into whole regions: the canvas on which tiles are put together again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lazytiles.indexing import boxes_from_windows
from lazytiles.predictions.blends import BOXES, COMBINE, Band, tile_weights, windows_of
from lazytiles.predictions.sinks import FileSink, FramesFirst, Out, RowSink, check_out, open_sink
from lazytiles.stores import Ground, cast


class Canvas:
    """One region, put together from tiles: where tiles overlap, a blend says what a pixel becomes.

    Parameters
    ----------
    shape : the region's extent in pixels, `(height, width)` or `(depth, height, width)`; the shape of the
        values of one pixel may follow, such as `(height, width, classes)`, and is then checked; None is that of `like`
    like : the region, whose place on the ground, micrometres a pixel and nodata a TIFF then says; with a smaller
        `shape`, each pixel stands for several of the region
    blend : what a pixel under several tiles becomes: ``"mean"`` of all; ``"hann"`` or ``"gaussian"``, a mean
        weighted by closeness to the tile's centre (sine squared over the tile; a sigma of an eighth of it);
        ``"crop"``, the value of the tile whose centre is nearest, the first added of equals; ``"max"``, the
        largest value of each channel
    dtype : of the result; by default that of an `out` that has one; else that of the values for ``"crop"`` and
        ``"max"``, and float32 for the others, or float64 where float32 does not hold the values. Integers are
        rounded and clipped; they hold no NaN, which is refused
    fill : value of pixels under no tile; by default NaN in a floating-point result, the nodata value of `like` in
        a result of its dtype, and an error in others
    out : where finished rows go: nothing (a fresh array), an array (`memmap`, Zarr, HDF5 dataset), a path
        that ends in ``.tif``, ``.npy`` or ``.zarr`` and does not exist, or an object with `append(rows)` and `close()`
    boxes : all boxes that will be added, in the order in which they will be. With them the canvas keeps only
        rows that a later tile can still touch, and hands the others to `out` at once.

    Notes
    -----
    What was cut from one image comes back bit for bit for ``"crop"``, ``"max"`` and wherever one tile alone
    lies, and within rounding elsewhere. Tiles may leave the region, as padded ones do; what is outside is
    cut off.
    `add` may be called from several threads; the order of adding decides only ties and rounding.
    A TIFF has overviews: of integers, which may be classes, the first of four pixels, else the mean of those that
    are no nodata. Its nodata value is `fill`, else that of `like` in its dtype, else NaN; a value that was also
    predicted, where the region is not nodata itself, is none.

    Examples
    --------
    >>> canvas = Canvas((2, 4), blend="mean")
    >>> canvas.add([(0, 0, 3, 2), (1, 0, 4, 2)], np.stack([np.zeros((2, 3)), np.ones((2, 3))]))
    >>> canvas.finish()
    array([[0. , 0.5, 0.5, 1. ],
           [0. , 0.5, 0.5, 1. ]])
    """

    def __init__(
        self,
        shape: Sequence[int] | None = None,
        *,
        like: Any = None,
        blend: str = "mean",
        dtype: DTypeLike | None = None,
        fill: Any = None,
        out: Out = None,
        boxes: Any = None,
    ) -> None:
        if blend not in COMBINE:
            raise ValueError(f"blend={blend!r} is not known; choose one of {', '.join(COMBINE)}")
        self._ground = like if isinstance(like, Ground) else Ground()
        if hasattr(like, "inner_shape"):
            shape, self._ground = _laid_on(shape, like)
        elif not isinstance(like, Ground | None):
            raise TypeError(f"like= is a region, as open_region gives it, not a {type(like).__name__}")
        if shape is None:
            raise ValueError("a canvas needs a shape, such as (height, width), or a region: like=region")
        self.shape = tuple(int(extent) for extent in shape)
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape} is no region: two or three positive extents in pixels are needed")
        self.blend, self.fill = blend, fill
        goal = out.out if isinstance(out, FramesFirst) else out
        check_out(goal)
        if dtype is None and hasattr(goal, "__setitem__"):
            dtype = getattr(goal, "dtype", None)
        self._dtype = None if dtype is None else np.dtype(dtype)
        self._out = out
        self._plan = None if boxes is None else Band.of(windows_of(boxes), self.shape[0])
        self._added = 0
        self._top = 0
        self._sums: NDArray[Any] | None = None
        self._weights: NDArray[Any] = np.zeros(0, np.float32)
        self._sink: RowSink | None = None
        self._result: Any = None
        self._mark: Any = None
        self._bare: tuple[int, int] | None = None  # the first pixel under no tile that is marked as nodata
        self._finished = False
        self._lock = threading.RLock()

    def add(self, boxes: Any, values: ArrayLike, *, source: ArrayLike | None = None) -> None:
        """Put tiles on the canvas.

        Parameters
        ----------
        boxes : `(n, 4)` integers `(xmin, ymin, xmax, ymax)` in pixels, half-open, or `(n, 6)` integers
            `(xmin, ymin, zmin, xmax, ymax, zmax)`; or a table with these columns
        values : `(n, height, width, ...)` or `(n, depth, height, width, ...)`, what lies in each box
        source : `(n, height, width, bands)` or with the depth, what the region of `like` has there: nodata that is
            predicted where the region is nodata is no class

        Raises
        ------
        ValueError : a box has another extent than its values, or is not the one that was announced
        """
        windows, block = windows_of(boxes), np.asarray(values)
        axes = windows.shape[1] // 2
        if not len(windows) and not len(block):
            return
        with self._lock:
            self._check(windows, block)
            if self._sums is None:
                self._begin(axes, block)
            assert self._sums is not None  # for mypy: it has begun
            if self._mark is not None:
                # What is predicted where the region itself says something cannot mark nothing.
                said = (cast(block, self._final) == self._mark).any(axis=tuple(range(1 + axes, block.ndim)))
                if said.any() and source is not None and self._ground.nodata is not None:
                    said &= ~(np.asarray(source) == self._ground.nodata).any(axis=-1)
                if said.any():
                    self._mark = None
                    if isinstance(self._sink, FileSink):
                        self._sink.ground = replace(self._ground, nodata=None)
                    if self._bare is not None:
                        self._refuse_bare(*self._bare)
            for window, tile in zip(windows, block, strict=True):
                if self._plan is not None:
                    self._release(int(self._plan.frontier[self._added]))
                low, high, held = window[:axes], window[axes:], np.array([self._top] + [0] * (axes - 1))
                start, stop = np.maximum(low, 0), np.minimum(high, self.shape[:axes])
                if (start < stop).all():
                    inside, there = (
                        tuple(map(slice, (start - origin).tolist(), (stop - origin).tolist())) for origin in (low, held)
                    )
                    weight = tile_weights(self.blend, tile.shape[:axes], self._weights.dtype.str)[inside]
                    COMBINE[self.blend](self._sums[there], self._weights[there], tile[inside], weight)
                self._added += 1

    def finish(self) -> Any:
        """The whole region: an array of shape `(height, width, ...)`, or what `out` became.

        Raises
        ------
        ValueError : pixels lie under no tile, the result has no NaN, and no `fill` was given
        """
        with self._lock:
            if not self._finished:
                if self._sums is None:
                    raise ValueError("nothing was added to this canvas, so its channels and dtype are not known")
                if self._plan is not None and self._added < len(self._plan):
                    raise ValueError(f"{self._added} of the {len(self._plan)} announced boxes were added")
                self._release(self.shape[0])
                self._result = self._result if self._sink is None else self._sink.close()
                self._finished, self._sums, self._weights = True, None, self._weights[:0]
            return self._result

    def close(self) -> None:
        """Give up what is not finished: free the buffers, remove half-written files. May be called twice."""
        with self._lock:
            if not self._finished and self._sink is not None:
                self._sink.abort()
            self._finished, self._sums, self._weights = True, None, self._weights[:0]

    @property
    def rows_held(self) -> int:
        """How many rows of the region are in memory at once."""
        return self.shape[0] if self._plan is None else self._plan.rows

    def _check(self, windows: NDArray[np.int64], block: NDArray[Any]) -> None:
        if self._finished:
            raise ValueError("this canvas is finished; make a new one for more tiles")
        axes = windows.shape[1] // 2
        if len(block) != len(windows) or block.ndim < 1 + axes:
            raise ValueError(f"{len(windows)} boxes of {axes} axes do not fit values of shape {block.shape}")
        extents = windows[:, axes:] - windows[:, :axes]
        wrong = np.flatnonzero((extents != block.shape[1 : 1 + axes]).any(axis=1))
        if wrong.size:
            box = tuple(boxes_from_windows(windows[wrong[:1]])[0].tolist())
            raise ValueError(
                f"box {box} is {tuple(extents[wrong[0]].tolist())} pixels, its values are "
                f"{block.shape[1 : 1 + axes]}; a box is {', '.join(BOXES[2 * axes])}"
            )
        if self._sums is not None and (
            block.shape[1 + axes :] != self._sums.shape[axes:] or not np.can_cast(block.dtype, self._kind, "same_kind")
        ):
            raise ValueError(
                f"values of shape {block.shape} and dtype {block.dtype} follow values of {self._kind} "
                f"with {self._sums.shape[axes:]} numbers a pixel; all tiles of a canvas must agree"
            )
        announced = None if self._plan is None else self._plan.windows[self._added : self._added + len(windows)]
        if announced is not None and not np.array_equal(announced, windows):
            raise ValueError("these boxes are not the ones announced in boxes=; add them in that order")

    def _begin(self, axes: int, block: NDArray[Any]) -> None:
        space, pixel = self.shape[:axes], block.shape[1 + axes :]
        if len(space) < axes or self.shape[axes:] not in ((), pixel):
            raise ValueError(f"values with {pixel} numbers a pixel in {axes} axes do not fit a canvas of {self.shape}")
        keeps = self.blend in ("crop", "max")
        self._kind = block.dtype.newbyteorder("=") if keeps else np.result_type(block.dtype, np.float32)
        final = self._dtype or self._kind
        precise = np.float64 if np.finfo(np.result_type(self._kind, np.float32)).bits > 32 else np.float32
        rows = min(self.rows_held, space[0])
        self._sums = np.zeros((rows, *space[1:], *pixel), self._kind)
        self._weights = np.zeros((rows, *space[1:]), precise)
        whole = self._out is None and rows == space[0] and final == self._kind
        self._final = np.dtype(final)
        own, given = self._ground.nodata, self.fill
        same = own is not None and own.dtype == self._final
        mark = (own if same else None) if given is None else given if np.ndim(given) == 0 else None
        # What nothing is marked by; None where nothing is, or where it turns out to be predicted too.
        self._mark = None if mark is None or mark != mark else cast(np.array([mark]), self._final)[0]
        if self._mark != mark and self._final.kind in "biu":
            self._mark = None
        self._sink = None
        if not whole:
            ground = replace(self._ground, nodata=self._mark)
            self._sink = open_sink(self._out, (*space, *pixel), self._final, axes=axes, ground=ground)

    def _release(self, upto: int) -> None:
        """Hand over the rows above `upto`, which no later tile touches, and move the others up."""
        assert self._sums is not None
        while self._top < upto:
            count = min(upto - self._top, len(self._sums))
            bare = self._weights[:count] == 0
            block = cast(self._sums[:count], self._final)
            if bare.any() and self.fill is not None:
                if self._final.kind in "biu" and np.any(cast(np.atleast_1d(self.fill), self._final) != self.fill):
                    raise ValueError(f"fill={self.fill!r} is no {self._final}; choose another fill= or dtype=")
                block[bare] = self.fill
            elif bare.any() and self._final.kind in "fc":
                block[bare] = np.nan
            elif bare.any():
                if self._bare is None:
                    first = np.argwhere(bare)[0]
                    self._bare = int(first[0]) + self._top, int(first[-1])
                if self._mark is None:
                    self._refuse_bare(*self._bare)
                block[bare] = self._mark
            if self._sink is None:
                self._result = block
                return
            self._sink.append(block)
            for moved in (self._sums, self._weights):
                for row in range(0, len(moved) - count, count):
                    step = min(count, len(moved) - count - row)
                    moved[row : row + step] = moved[row + count : row + count + step]
                moved[len(moved) - count :] = 0
            self._top += count

    def _refuse_bare(self, row: int, column: int) -> NoReturn:
        raise ValueError(
            f"pixels lie under no tile, the first at row {row}, column {column}; {self._final} has no NaN: pass fill= "
            "or a floating dtype="
        )

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.finish(), dtype=dtype, copy=copy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        if self._sink is not None and not self._finished:
            raise TypeError("a canvas that is writing rows cannot be pickled; finish it first")
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_sink")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock(), _sink=None)

    def __repr__(self) -> str:
        state = "finished" if self._finished else f"{self._added} tiles, rows held: {self.rows_held}"
        return f"<Canvas {' x '.join(map(str, self.shape))}, blend {self.blend}, {state}>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


def _laid_on(shape: Sequence[int] | None, region: Any) -> tuple[Sequence[int], Ground]:
    """The shape of a canvas over a region, and where it lies."""
    ground = Ground.of(region.pages[0])
    stack = region.shape[: region.axes.index("Y")]
    stack = stack if len(stack) == 1 else ()
    space = (*stack, *region.inner_shape[:2])
    if shape is None:
        return space, ground
    scale = []
    for length, pixels in zip(space[len(stack) :], tuple(shape)[len(stack) :][:2], strict=False):
        # A whole number of pixels, where the last one may be cut off by the edge.
        whole = max(1, round(length / max(1, pixels)))
        scale.append(float(whole) if -(-length // whole) == pixels else length / max(1, pixels))
    y, x = scale
    return shape, ground.shifted(0, 0, (y, x))
