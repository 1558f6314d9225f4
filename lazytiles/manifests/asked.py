"""What `open_tiles` is asked for, and what its tiles look like by the first of their images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lazytiles.arrays import ONE_PAGE, Layout, MapBoxes, TileForm, Units, level_of
from lazytiles.errors import ManifestError, RegionError
from lazytiles.images import METHODS, Bands, Region, asked_bands, bands_read, check_resample
from lazytiles.indexing import LINE_MODES, PAD_MODES
from lazytiles.manifests.columns import names_of
from lazytiles.manifests.manifest import Columns, inspect_manifest
from lazytiles.manifests.paths import template_columns
from lazytiles.manifests.samples import Frames, Images, common_extent


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `open_tiles` is asked for, by its keywords; `check` is asked the same, `open_volumes` some of it."""

    frames: Any = None
    path: str | Sequence[str] | None = None
    target: str | Sequence[str] | None = "target"
    tabular: str | Sequence[str] | None = None
    masks: str | Mapping[str, Any] | None = None
    mask_axes: str | None = None
    coordinates: str = "pixels"
    boxes_crs: str | None = None
    size: tuple[int, int] | None = None
    resample: str = "bilinear"
    pad: str | None = None
    fill: float | Sequence[float] = 0
    mask_fill: float = 0
    bands: Bands = None
    gray: bool = False
    dtype: Any = None
    scaled: bool = False
    page: int | str | None = None
    series: int | None = None
    axes: str | None = None
    channels: Sequence[int | str] | None = None
    level: int = 0
    mpp: float | None = None
    source_mpp: float | Sequence[float] | str | None = None
    mask_scale: float | str | None = None
    missing: str = "raise"
    scale_boxes: Sequence[str] = ()
    box_format: str = "xyxy"
    classes: Sequence[Any] | None = None
    where: Mapping[str, Any] | None = None
    follow_symlinks: bool = True
    verify: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        size: Any = self.size
        is_pair = isinstance(size, Sequence | np.ndarray) and len(size) == 2
        is_whole = is_pair and all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in size)
        if size is not None and not (is_whole and min(size) > 0):
            raise ValueError(f"size is (height, width) in pixels, such as (64, 64), not {size!r}")
        for name, allowed in (
            ("resample", METHODS),
            ("pad", (None, *PAD_MODES, *LINE_MODES)),
            ("missing", ("raise", "fill")),
            ("coordinates", ("pixels", "base", "map")),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
        if self.boxes_crs is not None and self.coordinates != "map":
            raise ValueError('boxes_crs= is for boxes in map units: pass coordinates="map" too')
        if self.mpp is not None and not _is_positive(self.mpp):
            raise ValueError(f"mpp is micrometres a pixel of the tiles, above 0, not {self.mpp!r}")
        if self.mpp is not None and (self.level or self.coordinates == "map"):
            raise ValueError("mpp= chooses the level by itself, and its boxes are in pixels of level 0")
        scale = self.mask_scale
        if scale not in (None, "mpp") and not _is_positive(scale):
            raise ValueError(f'mask_scale is pixels of an image in one of its mask\'s, or "mpp", not {scale!r}')
        if scale is not None and (self.masks is None or self.coordinates == "map"):
            raise ValueError("mask_scale= is for masks=, of images whose boxes are in pixels")
        if self.scaled and (self.gray or self.bands == "rgb" or self.dtype is not None):
            raise ValueError("scaled=True gives float32 of each band; pass it without gray=, bands='rgb' and dtype=")
        if not isinstance(self.path, str | None) and (self.gray or self.bands == "rgb" or not len(self.path)):
            raise ValueError("of several files, path=[...], choose bands by their numbers: bands=[0, 2]")

    @property
    def units(self) -> Units:
        """What boxes count, and at which scale images and masks are read."""
        kind = "base" if self.mpp is not None else self.coordinates
        return Units(kind, None if self.mpp is None else float(self.mpp), self.mask_scale)

    @property
    def opening(self) -> dict[str, Any]:
        """How `open_region` opens the images."""
        given: dict[str, Any] = {"page": self.page, "series": self.series, "axes": self.axes}
        given["channels"] = None if self.channels is None else tuple(self.channels)
        given["mpp"] = None if isinstance(self.source_mpp, str) else self.source_mpp
        is_plain = np.ndim(self.fill) == 0 and not self.scaled and self.dtype is None
        given["fill"] = self.fill if is_plain and self.fill != 0 else None
        return {"level": self.level, **{name: value for name, value in given.items() if value is not None}}

    @property
    def has_axes(self) -> bool:
        """Whether more of a file is asked for than one image."""
        return self.page == "all" or any(one is not None for one in (self.series, self.axes, self.channels))

    @property
    def mask_opening(self) -> dict[str, Any]:
        """How it opens the masks: where they need not be of the level of their image, at their full resolution."""
        named = {} if self.mask_axes is None else {"axes": self.mask_axes}
        return {"level": 0 if self.units.knows_levels else self.level, **named}

    @property
    def drawn_level(self) -> int:
        """The level of an image whose pixels its boxes count."""
        return 0 if self.units.kind == "base" else self.level

    def refuse_for_volumes(self, why: str) -> None:
        """Refuse what is asked for and says nothing about volumes."""
        flat = {"frames": Frames.of(self.frames).timed, "missing": self.missing == "fill"}
        named = "size dtype mpp source_mpp mask_scale page series axes channels mask_axes"
        flat |= {name: getattr(self, name) is not None for name in named.split()}
        flat |= {name: bool(np.any(getattr(self, name))) for name in ("gray", "scaled", "level", "fill", "mask_fill")}
        flat |= {"coordinates": self.coordinates != "pixels", "path": not isinstance(self.path, str | None)}
        flat |= {"scale_boxes": len(self.scale_boxes) > 0}
        if wrong := [name for name, value in flat.items() if value]:
            raise ManifestError(f"{why}; {wrong[0]}={getattr(self, wrong[0])!r} is for images")

    def columns(self, *text: str) -> Columns:
        """How `read_manifest` reads the table for this; the columns of `text` stay text too."""
        if self.masks is not None and self.classes is not None:
            raise ManifestError("classes= is for names in a column; with masks= the labels are masks")
        by_default = isinstance(self.target, str) and self.target == "target"
        files = names_of(self.path)
        templates = [*files, *([self.masks] if isinstance(self.masks, str) else [])]
        return Columns(
            target=None if by_default else self.target,
            tabular=[*names_of(self.tabular), *([self.source_mpp] if isinstance(self.source_mpp, str) else [])],
            frames=Frames.of(self.frames).labels,
            optional=["target"] if by_default else (),
            text=[*(column for template in templates for column in template_columns(template)), "path", *text],
            file=files[0] if files else None,
            classes=self.classes,
            allow_outside=self.pad is not None,
            coordinates=self.coordinates,
        )

    def read(self, manifest: Any) -> pd.DataFrame:
        """The table, as `read_manifest` gives it for this."""
        table, problems = inspect_manifest(manifest, self.columns())
        problems.raise_any()
        return table


def _is_positive(number: Any) -> bool:
    return isinstance(number, int | float | np.number) and not isinstance(number, bool) and bool(0 < number < np.inf)


def form_of(
    firsts: Sequence[Region], row: int, windows: NDArray[Any] | MapBoxes | None, table: pd.DataFrame, asked: Asked
) -> TileForm:
    """What tiles look like, by the images of one of them, which stands at a row."""
    units, bands = asked.units, asked_bands(asked.bands)
    first = units.level_read(firsts[0])
    page = first.pages[0]
    if asked.bands is not None and asked.gray:
        raise ValueError("pass bands= or gray=True, not both")
    resampled, area = None if asked.size is None and asked.mpp is None else asked.resample, 0
    if asked.size is not None:
        size = int(asked.size[0]), int(asked.size[1])
        check_resample(page, asked.resample)
    elif isinstance(windows, MapBoxes):
        low, left, high, right = windows.part(slice(row, row + 1)).windows(page)[0].tolist()
        size = high - low, right - left
    elif units.kind == "base" and not isinstance(windows, MapBoxes):
        level = level_of(first)
        low, left, high, right = (0, 0, *level.shape) if windows is None else windows[row].tolist()
        size = units.size((high - low, right - left), page, level)
    else:
        height, width = first.inner_shape[:2] if windows is None else common_extent(table, windows)
        size = height, width
    if units.kind == "base" and not isinstance(windows, MapBoxes):
        level = level_of(first)
        extent = np.array(level.shape) if windows is None else windows[row][2:] - windows[row][:2]
        if units.mpp is not None:
            extent = np.multiply(size, units.ratio(page, level))
        height, width = np.ceil(extent / level.downsample).tolist()
        if (height, width) != size or level.downsample != (1, 1):
            area = max(1, int(height * width))
    stored, dtype = _dtypes(firsts, asked)
    layout = Layout.of(first) if asked.has_axes else ONE_PAGE
    bands = first.bands if bands is None else bands  # channels that are samples
    counts = tuple(one.pages[0].shape[2] for one in firsts for _ in range(layout.channels))
    parts = _stacked([one.path for one in firsts], counts, bands) if len(counts) > 1 else ()
    read = bands_read(page, bands, asked.gray) if not parts else tuple(at for _, part in parts for at in part)
    return TileForm(
        size=size,
        samples=len(read),
        asked=bands,
        dtype=dtype,
        bands=read if isinstance(bands, tuple) and not parts else None,
        gray=asked.gray,
        pad=asked.pad,
        resample=resampled,
        method=asked.resample,
        segment=page.segment,
        pixels=stored,
        casts=asked.dtype is not None,
        layout=layout,
        files=len(firsts),
        counts=counts if parts else (),
        parts=parts,
        fill=_fill(asked.fill, len(read), dtype, "fill"),
        scaled=asked.scaled,
        area=area,
    )


def _dtypes(firsts: Sequence[Region], asked: Asked) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The dtype of images, and that of tiles."""
    stored = firsts[0].dtype
    other = next((one for one in firsts if one.dtype != stored), None)
    if asked.dtype is not None:
        wanted = np.dtype(asked.dtype)
        wrong = next((one for one in firsts if wanted.kind != "f" and not np.can_cast(one.dtype, wanted)), None)
        if wanted.kind not in "uif" or wrong is not None:
            said = "" if wrong is None else f": {wrong.path} holds {wrong.dtype}, which {wanted} cannot hold"
            raise ValueError(f"dtype={asked.dtype!r}{said}; pass a wider one, such as 'float32'")
        return wanted, wanted
    if other is not None:
        raise RegionError(
            f"{other.path}: holds {other.dtype}, {firsts[0].path} holds {stored}; the files of one tile have one "
            "dtype: say which they are to be cast to, such as dtype='float32'"
        )
    return stored, np.dtype(np.float32) if asked.scaled else stored


def _stacked(
    paths: Sequence[str], counts: Sequence[int], bands: Any
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Of each page of a tile which samples are read, and which bands of the tile they are."""
    every = [(part, sample) for part, count in enumerate(counts) for sample in range(count)]
    if bands is not None and (isinstance(bands, str) or not bands):
        raise RegionError(f"bands={bands!r}: of several channels choose by their numbers, such as bands=[0, 2]")
    if bands is not None and any(not -len(every) <= band < len(every) for band in bands):
        raise RegionError(f"bands {list(bands)} asked for; {', '.join(paths)} have bands 0 to {len(every) - 1}")
    chosen = every if bands is None else [every[band] for band in bands]
    parts = []
    for part in range(len(counts)):
        own = [(sample, at) for at, (one, sample) in enumerate(chosen) if one == part]
        parts.append((tuple(sample for sample, _ in own), tuple(at for _, at in own)))
    return tuple(parts)


def mask_form_of(masked: Images, form: TileForm, asked: Asked) -> TileForm:
    """What mask tiles look like."""
    one = masked.first()[0]
    layout = ONE_PAGE if asked.mask_axes is None else Layout.of(one)
    counts = (one.pages[0].shape[2],) * layout.channels
    return TileForm(
        size=form.size,
        samples=sum(counts),
        asked=None,
        dtype=one.dtype,
        pad=form.pad,
        resample="nearest" if form.resample else None,
        method="nearest",
        layout=layout,
        counts=counts if len(counts) > 1 else (),
        parts=_stacked([one.path], counts, None) if len(counts) > 1 else (),
        fill=_fill(asked.mask_fill, sum(counts), one.dtype, "mask_fill"),
    )


def _fill(given: Any, bands: int, dtype: np.dtype[Any], name: str) -> tuple[float, ...]:
    """One value for all bands, or one for each, that a dtype can hold."""
    values = np.atleast_1d(np.asarray(given))
    is_held = values.dtype.kind in "buif" and (dtype.kind in "fc" or (values == values.astype(dtype)).all())
    if values.ndim > 1 or len(values) not in (1, bands) or not is_held:
        raise ValueError(f"{name}={given!r}: one value, or one for each of the {bands} bands, that {dtype} can hold")
    return tuple(values.tolist())
