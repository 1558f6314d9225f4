"""What reading costs, from tags alone: codecs, segments, and bytes decoded for bytes delivered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazytiles.config import MIB, settings
from lazytiles.display import plural
from lazytiles.images import Page
from lazytiles.indexing import permutation

_SAMPLED = 12
_WINDOW = 8
_SEGMENT = 256


def codec_name(region: Any) -> str:
    """How the segments of a region are stored, such as ``"LZW, tiles of 256 x 256"``."""
    return stored_as(region.pages[0])


# TIFF 6.0 section 3 and its successors.
COMPRESSIONS = {
    1: "uncompressed", 2: "CCITT", 5: "LZW", 6: "old JPEG", 7: "JPEG", 8: "deflate", 32773: "PackBits",
    32946: "deflate", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC",
    34925: "LZMA", 34933: "PNG", 50000: "zstd", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip


def stored_as(page: Page) -> str:
    """How the segments of a page are stored; see `codec_name`."""
    height, width = page.segment
    kind = "strips" if width >= page.shape[1] else "tiles"
    codec: Any = page.codec
    if hasattr(codec, "compression"):
        name = COMPRESSIONS.get(codec.compression, f"compression {codec.compression}")
        return f"{name}, {kind} of {height} x {width}"
    return f"{codec.format}, one picture" if hasattr(codec, "format") else "an array"


@dataclass(frozen=True, slots=True)
class OrderCost:
    """What batches cost in one order, per batch, over some batches spread through the epoch.

    Parameters
    ----------
    order : which order
    segments : segments decoded
    bytes_read : read from files
    bytes_decoded : after decoding
    bytes_delivered : in the batch
    """

    order: str
    segments: float
    bytes_read: float
    bytes_decoded: float
    bytes_delivered: float

    @property
    def amplification(self) -> float:
        """Bytes decoded for each byte delivered."""
        return self.bytes_decoded / max(self.bytes_delivered, 1)


@dataclass(frozen=True, slots=True, repr=False)
class Cost:
    """What reading tiles in batches costs, from tags alone.

    Parameters
    ----------
    tiles, regions : how many
    batch_size : tiles of a batch
    batch_bytes : bytes of a batch
    memory_bytes : about what training holds: batches planned together, finished ones and the segment cache
    stored : how the images of the batches looked at are stored, and how many are stored so
    segments : segments of these images
    orders : the costs of several orders
    advice : what would make it cheaper
    """

    tiles: int
    regions: int
    batch_size: int
    batch_bytes: int
    memory_bytes: int
    stored: dict[str, int]
    segments: int
    orders: list[OrderCost]
    advice: list[str]

    def __repr__(self) -> str:
        first = self.orders[0]
        return (
            f"<Cost of {self.tiles:,} tiles of {plural(self.regions, 'region')} in batches of {self.batch_size}: "
            f"{first.amplification:.2f} times as much decoded as delivered {first.order}>"
        )

    def __str__(self) -> str:
        first = f"{self.tiles:,} tiles of {self.regions:,} regions; a batch of {self.batch_size}: "
        first += f"{mebibytes(self.batch_bytes)}; memory: about {mebibytes(self.memory_bytes)}"
        kinds = ", ".join(f"{name} ({count:,})" for name, count in self.stored.items())
        first += f"\n{sum(self.stored.values()):,} images looked at, of {self.segments:,} segments: {kinds}"
        lines = [
            f"  {order.order}: per batch {order.segments:.1f} segments, {mebibytes(order.bytes_read)} read, "
            f"{mebibytes(order.bytes_decoded)} decoded for {mebibytes(order.bytes_delivered)} "
            f"({order.amplification:.2f} times)"
            for order in self.orders
        ]
        return "\n".join([first, *lines, *(f"- {said}" for said in self.advice)])

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        found = asdict(self)
        for row, order in zip(found["orders"], self.orders, strict=True):
            row["amplification"] = order.amplification
        return found


def mebibytes(count: float) -> str:
    """Bytes as text, in MiB."""
    return f"{count / MIB:,.2f} MiB"


def reading_cost(tiles: Any, *, batch_size: int = 32, readahead_bytes: int = 256 * MIB) -> Cost:
    """What batches of tiles cost in their order, shuffled, and shuffled within groups of regions.

    No pixel is read; the tags of the regions that the sampled batches touch are. `readahead_bytes` are bytes of batches
    planned together, as for `BatchFlow`.
    """
    n, groups = len(tiles), tiles.region_ids
    each = int(np.prod(tiles.shape[1:], dtype=np.int64)) * tiles.dtype.itemsize
    batch = min(batch_size, n)
    together = max(1, min(readahead_bytes // max(each * batch, 1), -(-n // batch)))
    own = "in its own order" if tiles.seed is None else f"as it is, shuffled with seed {tiles.seed}"
    own = "as in the table" if (tiles.order == np.arange(n)).all() else own
    shuffled = permutation(n, 0)
    windowed = permutation(n, 0, groups=groups, window=_WINDOW)
    orders = [
        _order_cost(own, tiles, np.arange(n), batch, 1),
        _order_cost("shuffled", tiles, shuffled, batch, 1),
        _order_cost(f"shuffled, {together} batches read together", tiles, shuffled, batch, together),
        _order_cost(f"shuffled in windows of {_WINDOW} regions", tiles, windowed, batch, together),
    ]
    # Pixels of the images that a usual tile is made of: those of its window, whatever it is resampled to.
    extent, windows = tiles.shape[-3:-1], tiles.sample_windows
    if windows is not None and (windows[:, 2:] > windows[:, :2]).all():
        extent = np.median(windows[:, 2:] - windows[:, :2], axis=0).tolist()
    memory = each * batch * (together + 2) + settings().cache_bytes
    pages = [page for source in tiles.sources for page in source.there().values()]
    stored = dict(Counter(map(stored_as, pages)).most_common())
    segments = sum(int(np.prod(page.grid)) * page.planes for page in pages)
    regions = int(groups.max()) + 1 if n else 0
    return Cost(n, regions, batch, each * batch, memory, stored, segments, orders, _advice(orders, *extent))


def _order_cost(name: str, tiles: Any, order: NDArray[np.int64], batch: int, together: int) -> OrderCost:
    """Batches are planned in groups; some groups, spread evenly, stand for all."""
    step = batch * together
    starts = np.arange(0, len(order), step)
    few = max(1, _SAMPLED // together)
    chosen = starts[np.unique(np.linspace(0, len(starts) - 1, few).astype(int))]
    plans = [tiles.plan(order[start : start + step]) for start in chosen.tolist()]
    batches = sum(-(-len(order[start : start + step]) // batch) for start in chosen.tolist())
    fields = ("segments", "bytes_read", "bytes_decoded", "bytes_delivered")
    sums = [sum(getattr(plan, field) for plan in plans) / batches for field in fields]
    return OrderCost(name, *sums)


def _advice(orders: Sequence[OrderCost], height: float, width: float) -> list[str]:
    _, shuffled, together, windowed = orders
    said = []
    read_together = "readahead_bytes is worth it: batches planned together decode {:.1f} times less than one by one"
    in_windows = f"shuffle(seed, window={_WINDOW}) decodes {{:.1f}} times less, and mixes fewer regions in a batch"
    for better, usual, words in ((together, shuffled, read_together), (windowed, together, in_windows)):
        if better.amplification < 0.8 * usual.amplification:
            said.append(words.format(usual.amplification / max(better.amplification, 1e-9)))
    tiled = (1 + _SEGMENT / height) * (1 + _SEGMENT / width)
    best = min(order.amplification for order in orders)
    if best > 2 * tiled:
        said.append(
            f"rewriting the images with tiles of {_SEGMENT} x {_SEGMENT} pixels would pay: about {tiled:.1f} bytes "
            f"decoded for each delivered instead of {best:.1f}; or export the tiles: lazytiles export"
        )
    return said or ["nothing to gain: the images are stored well for these tiles"]
