"""The methods of arrays that open a higher room when they are called: pictures, statistics, stores, frameworks.

Each imports its room where it is called, so that an array costs nothing that is not used; these are the only
imports of the library that go upward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    import dask.array as da

    from lazytiles.arrays.cost import Cost
    from lazytiles.arrays.multisource import MultiSourceArray
    from lazytiles.reports.statistics import Statistics


class RegionDoors:
    """What a `Region` can do beside reading."""

    def to_dask(self, chunks: Any = None) -> da.Array:
        """The region as a dask array whose chunks follow its segments; no pixel is read.

        Parameters
        ----------
        chunks : as dask takes them; by default whole segments, joined to some 16 MiB
        """
        from lazytiles.arrays.graphs import region_to_dask

        return region_to_dask(self, chunks)

    def plot(
        self: Any, tiles: Any = None, *, bands: Sequence[int] | None = None, target: str = "target", ax: Any = None
    ) -> Any:
        """A thumbnail, with the windows of some tiles drawn over it; see `lazytiles.reports.plots.plot_region`."""
        from lazytiles.reports.plots import plot_region

        return plot_region(self, tiles, bands=bands, target=target, ax=ax)


class TileDoors:
    """What a `MultiSourceArray` can do beside reading."""

    def to_dask(self, chunks: Any = None) -> da.Array:
        """The samples as a dask array, in the current order; no pixel is read.

        Chunks lie by region. Of a shuffled array they do so underneath, and any chunk on top may depend on all of
        them: call ``reset_order()`` first where the order does not matter.

        Parameters
        ----------
        chunks : samples in a chunk, or as dask takes them; by default some 16 MiB
        """
        from lazytiles.arrays.graphs import tiles_to_dask

        tiles: Any = self
        return tiles_to_dask(tiles, chunks)

    def to_torch(self, y: Any = None, **options: Any) -> Any:
        """A map-style torch dataset whose batches are planned reads; see `lazytiles.training.torch.to_torch`."""
        from lazytiles.training.torch import to_torch

        return to_torch(self, y, **options)

    def plot(self, n: int = 16, **options: Any) -> Any:
        """A montage of the first n tiles with their labels; see `lazytiles.reports.plots.plot_tiles`."""
        from lazytiles.reports.plots import plot_tiles

        return plot_tiles(self, n, **options)

    def statistics(
        self,
        *,
        client: Any = None,
        scheduler: Any = None,
        threads: int | None = None,
        limits: tuple[float, float] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Statistics:
        """Mean, deviation, extremes and histogram by band and frame, exact; see `lazytiles.reports.statistics.statistics`."""
        from lazytiles.reports.statistics import statistics

        cluster = {"client": client, "scheduler": scheduler}
        return statistics(self, **cluster, threads=threads, limits=limits, progress=progress)

    def cost(self, *, batch_size: int = 32, readahead_bytes: int = 256 * 2**20) -> Cost:
        """What an epoch in batches would read and decode, by order, from tags alone; see `lazytiles.arrays.cost`."""
        from lazytiles.arrays.cost import reading_cost

        return reading_cost(self, batch_size=batch_size, readahead_bytes=readahead_bytes)

    def persist(self, path: str | os.PathLike[str] | None = None, **options: Any) -> MultiSourceArray:
        """The same array over tiles written once, to memory or a store; see `lazytiles.stores.saving.persist`."""
        from lazytiles.stores.saving import persist

        return persist(self, path, **options)
