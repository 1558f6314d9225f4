"""What stands beside the samples of an array, and how a store carries it: labels, table, order."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import parquet

from lazytiles.aliases import Int64s
from lazytiles.arrays import Companions, KeptValid, MultiSourceArray, RegionTiles, VolumeTiles, open_ahead
from lazytiles.augment import Boxes
from lazytiles.errors import LazyTilesError, LimitError, StoreError
from lazytiles.stores.formats.base import array_in, saved
from lazytiles.stores.geotiff import Ground
from lazytiles.stores.journal import labels_path
from lazytiles.stores.store_array import StoreArray

_SMALL_TABLE = 16 * 2**20  # bytes
_MOST_PACKED = 200  # bytes of a larger table for each that is stored


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredRegion:
    """A region whose tiles were written: where they lay in it, so that predictions find back."""

    name: Any  # or its number where it has none
    windows: Int64s | None  # shape (n, 4) or (n, 6), starts then stops; None where samples are no windows
    space: tuple[int, ...]  # extents, pixels
    flat: bool  # whether its tiles lack the axis of slices that the region has
    ground: Ground = field(default_factory=Ground)

    def __repr__(self) -> str:
        return f"<StoredRegion {self.name!r} of {' x '.join(map(str, self.space)) or 'samples'}>"


def windows_in(source: Any, indices: Int64s) -> tuple[tuple[int, ...], Int64s] | None:
    """The extents of the region that a source is, which is opened, and the windows of some tiles in it; else None."""
    windows = getattr(source, "windows", None)
    if windows is None:
        return None
    space = getattr(source, "space", None)
    if space is None:
        try:
            first = source.base()
        except LazyTilesError as error:
            raise type(error)(f"{source.describe(int(indices[0]))}: {error}") from error
        if first is None:  # no frame of it is there: it is as large as its tiles need it
            windows = np.tile([0, 0, *source.form.size], (len(windows), 1)) if source.whole else windows
            return tuple(windows[:, 2:].max(axis=0).tolist()), windows[indices]
        space, windows, _ = source.grid()  # those of whole images are known now
    return tuple(space), windows[indices]


def ground_of(source: Any) -> Ground:
    """Where the region that a source is lies, which `windows_in` has opened; nowhere where it is no region."""
    if isinstance(source, StoredRegion):
        return source.ground
    if isinstance(source, VolumeTiles):
        return Ground.of(next(iter(getattr(source.volume(), "pages", ())), None))
    if not isinstance(source, RegionTiles) or source.base() is None:
        return Ground()
    ground, page, (_, _, scale) = Ground.of(source.base()), source.last_page(), source.grid()
    ground = ground if scale == (1, 1) else ground.shifted(0, 0, scale)
    return replace(ground, nodata=None if page is None else page.nodata)


def region_name(source: Any, number: int) -> Any:
    """The name of a region, or its number where it has none."""
    return getattr(source, "name", "") or number


def _regions_of(tiles: MultiSourceArray, keep_open: bool) -> tuple[tuple[StoredRegion, ...], Int64s] | None:
    """The `places` of samples in their current order; None of one source that is no region."""
    sources, places = tiles.places
    if not keep_open:  # others read the tiles: what is opened here is forgotten
        sources = tuple(copy.copy(source) if isinstance(source, RegionTiles) else source for source in sources)
    pairs, numbers = places[:, :2], places[:, 2]
    used, codes = np.unique(pairs[:, 0], return_inverse=True)
    if not len(used) or (len(used) == 1 and not hasattr(sources[used[0]], "windows")):
        return None
    open_ahead(source for k in used.tolist() if isinstance(source := sources[k], RegionTiles))
    by_region = np.argsort(codes, kind="stable")
    regions, tile = [], np.empty(len(pairs), np.int64)
    for number, rows in zip(used.tolist(), np.split(by_region, np.cumsum(np.bincount(codes))[:-1]), strict=True):
        source = sources[number]
        found = windows_in(source, pairs[rows, 1])
        space, windows = found or ((), None)
        flat = found is not None and getattr(source, "flat", False)
        ground = ground_of(source) if found is not None else Ground()
        regions.append(StoredRegion(region_name(source, number), windows, space, flat, ground))
        tile[rows] = np.arange(len(rows))
    return tuple(regions), np.stack([codes.astype(np.int64), tile, numbers], axis=1)


@dataclass(frozen=True, slots=True)
class StoredCompanions:
    """What stands beside the samples of an array, in the order in which its rows are written.

    `order` and `seed` are those of the array where it is not in that order.
    """

    held: Companions = field(default_factory=Companions)
    order: Int64s | None = None
    seed: int | None = None

    @classmethod
    def of(cls, tiles: MultiSourceArray, *, keep_open: bool = True) -> StoredCompanions:
        """What stands beside the samples in their current order.

        The tags of regions, which are read for their extents, are kept for reading tiles with `keep_open`.
        """
        held = tiles.companions.at(tiles.order)
        return cls(replace(held, table=tiles.table, places=_regions_of(tiles, keep_open), by_source=False))

    def join(self, source: Any) -> MultiSourceArray:
        """One source with all this beside it."""
        kept = self.held
        if kept.labels is not None:  # of as many rows; those of earlier versions may be text
            made = Companions.of([source], kept.labels, None, kept.table)
            kept = replace(kept, labels=made.labels, classes=kept.classes or made.classes)
        result = MultiSourceArray.assembled([source], kept)
        if self.order is not None:
            result.order = self.order
            result.seed = self.seed
        return result

    def _arrays(self) -> dict[str, Any]:
        return {"labels": self.held.labels, "valid": self.held.valid, "order": self.order}

    def members(self) -> dict[str, bytes]:
        """All that is not lazy, as members of a store."""
        found: dict[str, bytes] = {}
        for name, values in self._arrays().items():
            if isinstance(values, np.ndarray):
                found[f"{name}.npy"] = saved(values)
        held = self.held
        if held.places is not None:
            regions, pairs = held.places
            found["regions.npy"] = saved(pairs)
            windows = [region.windows for region in regions if region.windows is not None]
            if len(windows) == len(regions):
                found["windows.npy"] = saved(np.concatenate(windows))
        if held.classes is not None or held.boxes is not None:
            meaning = {"classes": held.classes, "boxes": None if held.boxes is None else asdict(held.boxes)}
            found["labels.json"] = json.dumps(meaning).encode()
        if held.table is not None:
            buffer = io.BytesIO()
            held.table.to_parquet(buffer, index=False)
            found["table.parquet"] = buffer.getvalue()
        if held.kept is not None and len(held.kept.packed):
            found |= {"kept.npy": saved(held.kept.packed), "kept_ends.npy": saved(held.kept.ends)}
        return found

    def about(self) -> dict[str, Any]:
        """What a store's record says of it, as JSON takes it."""
        regions = [] if self.held.places is None else self.held.places[0]
        systems: dict[Any, int] = {}
        said = [
            {"name": region.name, "space": region.space, "flat": region.flat, **region.ground.record(systems)}
            for region in regions
        ]
        facts = {"tabular": self.held.tabular, "seed": self.seed, "regions": said, "systems": list(systems)}
        return facts | ({} if self.held.kept is None else {"kept": True})

    def difference(self, other: StoredCompanions) -> str | None:
        """What of another is not the same, such as ``"label of row 3"``; None where all is. Mask labels are not read.

        >>> one, two = (StoredCompanions(Companions(np.array([1, n]))) for n in (2, 3))
        >>> one.difference(two)
        'label of row 1'
        """
        for name, values in self._arrays().items():
            # As a store keeps them; what is lazy is left out.
            pair = (values, other._arrays()[name])
            one, two = (array_in(saved(a)) if isinstance(a, np.ndarray) else None for a in pair)
            if one is None and two is None:
                continue
            if one is None or two is None or one.shape != two.shape or one.dtype.kind != two.dtype.kind:
                return f"{name} of all rows"
            unequal = (one != two) & ~((one != one) & (two != two))
            if unequal.any():
                row = int(unequal.reshape(len(unequal), -1).any(axis=1).argmax())
                return f"{'label' if name == 'labels' else name} of row {row}"
        mine, theirs = self.held, other.held
        if isinstance(mine.labels, np.ndarray | None) != isinstance(theirs.labels, np.ndarray | None):
            return "labels of all rows"
        if (mine.tabular, self.seed, mine.table is None) != (theirs.tabular, other.seed, theirs.table is None):
            return "table or order of all rows"
        if mine.table is None or theirs.table is None:
            return None
        if list(mine.table.columns) != list(theirs.table.columns) or len(mine.table) != len(theirs.table):
            return "table's columns or length"
        for name in mine.table.columns:
            first, second = mine.table[name].astype(object), theirs.table[name].astype(object)
            unequal = ((first != second) & ~(first.isna() & second.isna())).to_numpy()
            if unequal.any():
                return f"{name} in the table of row {int(unequal.argmax())}"
        return None

    @classmethod
    def load(cls, store: StoreArray) -> StoredCompanions:
        """What a store carries beside its rows."""
        opened = store.opened
        arrays = {
            name: array_in(opened.members[f"{name}.npy"])
            for name in ("labels", "valid", "order", "regions", "windows")
            if f"{name}.npy" in opened.members
        }
        about, rows = opened.record.about, opened.record.rows
        for name, values in arrays.items():
            if not values.shape or len(values) != rows:
                raise StoreError(f"{store.path} is damaged: {name} of shape {values.shape} for {rows} rows")
        table = opened.members.get("table.parquet")
        labels: Any = arrays.get("labels")
        meaning = json.loads(opened.members.get("labels.json", b"{}"))
        boxes = meaning.get("boxes")
        if "labels" in about:
            labels = label_store(store.path, about["labels"], check=store.check)
        held = Companions(
            labels,
            meaning.get("classes"),
            None if boxes is None else Boxes(boxes["format"], boxes["columns"] and tuple(boxes["columns"])),
            None if table is None else _table_in(store.path, table, rows),
            tuple(about["tabular"]) if about.get("tabular") else None,
            arrays.get("valid"),
            _places_of(about.get("regions"), arrays.get("regions"), arrays.get("windows"), about.get("systems", ())),
            kept=_kept_of(store) if about.get("kept") else None,
        )
        return cls(held, arrays.get("order"), about.get("seed"))


def _kept_of(store: StoreArray) -> KeptValid:
    """Which values of a store are valid, as it says it."""
    members, inner = store.opened.members, store.shape[1:]
    if "kept.npy" not in members:
        return KeptValid.whole(len(store), inner)
    packed, ends = array_in(members["kept.npy"]), array_in(members["kept_ends.npy"])
    forms = (str(packed.dtype), packed.ndim, str(ends.dtype), ends.shape)
    is_sound = forms == ("uint8", 1, "int64", (len(store) + 1,))
    if not is_sound or (np.diff(ends, prepend=0) < 0).any() or ends[-1] > len(packed):
        raise StoreError(f"{store.path} is damaged: what says which values are valid has other lengths")
    return KeptValid(packed, ends, inner)


def _places_of(
    said: list[dict[str, Any]] | None, places: Int64s | None, windows: Int64s | None, systems: Sequence[Any] = ()
) -> tuple[tuple[StoredRegion, ...], Int64s] | None:
    """The places that a store carries, if it does and they can be."""
    if not said or places is None:
        return None
    if places.dtype != np.int64 or places.ndim != 2 or places.shape[1] != 3 or (places < 0).any():
        raise ValueError(f"regions are {places.dtype} of shape {places.shape}; three numbers a row are needed")
    if (places[:, 0] >= len(said)).any():
        raise ValueError(f"tiles lie in region {places[:, 0].max()} of {len(said)}")
    counts = np.bincount(places[:, 0], minlength=len(said))
    if (places[:, 1] >= counts[places[:, 0]]).any():
        raise ValueError("tiles have higher numbers than their regions have tiles")
    if windows is not None and (windows.dtype != np.int64 or windows.shape[1:] not in ((4,), (6,))):
        raise ValueError(f"windows are {windows.dtype} of shape {windows.shape}; four or six integers a row are needed")
    parts = [None] * len(said) if windows is None else np.split(windows, np.cumsum(counts)[:-1])
    regions = []
    for one, part in zip(said, parts, strict=True):
        space = tuple(int(extent) for extent in one["space"])
        if min(space, default=1) < 1 or (part is not None and 2 * len(space) != part.shape[1]):
            raise ValueError(f"region {one['name']!r} has the extents {space}")
        regions.append(StoredRegion(one["name"], part, space, bool(one["flat"]), Ground.recorded(one, systems)))
    return tuple(regions), places


def _table_in(path: Path, content: bytes, rows: int) -> pd.DataFrame:
    """The table in the bytes of a Parquet file, if it has a row for each row of the store and is no bomb."""
    file = parquet.ParquetFile(io.BytesIO(content), pre_buffer=False)
    facts = file.metadata
    if facts.num_rows != rows:
        raise StoreError(f"{path} is damaged: its table has {facts.num_rows} rows, the store has {rows}")
    groups = [facts.row_group(k) for k in range(facts.num_row_groups)]
    unpacked = max(sum(group.total_byte_size for group in groups), 8 * rows * facts.num_columns)
    if unpacked > max(_SMALL_TABLE, _MOST_PACKED * len(content)):
        raise LimitError(f"{path} is refused: its table of {len(content)} bytes unpacks to {unpacked}")
    # Without threads: what one of Arrow still holds of Python when the interpreter ends would abort the process.
    table: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    return table


def label_store(path: Path, about: Mapping[str, Any], *, check: bool) -> StoreArray:
    """The mask labels that were written with a store, as its record says, or a StoreError when they are others."""
    place = labels_path(path, int(about["version"]))
    if place.is_symlink():
        raise StoreError(f"{place} is a link, which may lead anywhere; put the labels themselves beside {path}")
    labels = StoreArray(place, check=check)
    if labels.opened.record.uid != about["uid"]:
        raise StoreError(f"{labels.path} is not the one that was written with {path}; export both again")
    return labels
