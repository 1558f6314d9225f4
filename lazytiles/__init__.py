"""Windows of big TIFFs as one lazy NumPy array: shuffled, labelled, and fed to Keras.

The public names are those of `__all__`; each is imported from its module when it is first used, so that
``import lazytiles`` loads no framework.

>>> import lazytiles as lt
>>> "open_tiles" in dir(lt)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lazytiles.verbs import offer

if TYPE_CHECKING:
    import lazytiles.augment as augment  # noqa: F401  # the form of re-export that mypy takes for a submodule
    from lazytiles.arrays.multisource import MultiSourceArray as MultiSourceArray
    from lazytiles.arrays.patches import PatchGenerator as PatchGenerator
    from lazytiles.arrays.view import DelayedView as DelayedView
    from lazytiles.arrays.volumes import stack_regions as stack_regions
    from lazytiles.config import configure as configure
    from lazytiles.config import counters as counters
    from lazytiles.config import settings as settings
    from lazytiles.errors import LazyTilesError as LazyTilesError
    from lazytiles.errors import LimitError as LimitError
    from lazytiles.errors import ManifestError as ManifestError
    from lazytiles.errors import RegionError as RegionError
    from lazytiles.errors import SegmentError as SegmentError
    from lazytiles.errors import StoreError as StoreError
    from lazytiles.images.cache import clear_cache as clear_cache
    from lazytiles.images.region import Region as Region
    from lazytiles.images.region import open_region as open_region
    from lazytiles.indexing.orders import mixing as mixing
    from lazytiles.indexing.splits import leakage as leakage
    from lazytiles.manifests.catalog import open_registered as open_registered
    from lazytiles.manifests.catalog import register as register
    from lazytiles.manifests.checks import check as check
    from lazytiles.manifests.grids import make_grid as make_grid
    from lazytiles.manifests.manifest import read_manifest as read_manifest
    from lazytiles.manifests.tiles import open_tiles as open_tiles
    from lazytiles.manifests.tiles import open_volumes as open_volumes
    from lazytiles.predictions.canvas import Canvas as Canvas
    from lazytiles.predictions.regions import predict as predict
    from lazytiles.stores.patch_sets import create_dataset as create_dataset
    from lazytiles.stores.saving import export as export
    from lazytiles.stores.saving import open_store as open_store
    from lazytiles.stores.saving import persist as persist
    from lazytiles.stores.saving import verify_store as verify_store
    from lazytiles.stores.store_array import StoreArray as StoreArray
    from lazytiles.stores.writers import Blosc2Writer as Blosc2Writer
    from lazytiles.stores.writers import BufferedWriter as BufferedWriter
    from lazytiles.stores.writers import HDF5Writer as HDF5Writer
    from lazytiles.stores.writers import NpyWriter as NpyWriter
    from lazytiles.stores.writers import ZarrWriter as ZarrWriter
    from lazytiles.training.flow import BatchFlow as BatchFlow
    from lazytiles.training.keras import KerasAdapter as KerasAdapter

__version__ = "0.1.0"

# The one public list: name -> module that has it, or "" where the name is itself a module.
_PUBLIC = {
    "BatchFlow": "training.flow",
    "Blosc2Writer": "stores.writers",
    "BufferedWriter": "stores.writers",
    "Canvas": "predictions.canvas",
    "DelayedView": "arrays.view",
    "HDF5Writer": "stores.writers",
    "KerasAdapter": "training.keras",
    "LazyTilesError": "errors",
    "LimitError": "errors",
    "ManifestError": "errors",
    "MultiSourceArray": "arrays.multisource",
    "NpyWriter": "stores.writers",
    "PatchGenerator": "arrays.patches",
    "Region": "images.region",
    "RegionError": "errors",
    "SegmentError": "errors",
    "StoreArray": "stores.store_array",
    "StoreError": "errors",
    "ZarrWriter": "stores.writers",
    "augment": "",
    "check": "manifests.checks",
    "clear_cache": "images.cache",
    "configure": "config",
    "counters": "config",
    "create_dataset": "stores.patch_sets",
    "export": "stores.saving",
    "leakage": "indexing.splits",
    "make_grid": "manifests.grids",
    "mixing": "indexing.orders",
    "open_region": "images.region",
    "open_registered": "manifests.catalog",
    "open_store": "stores.saving",
    "open_tiles": "manifests.tiles",
    "open_volumes": "manifests.tiles",
    "persist": "stores.saving",
    "predict": "predictions.regions",
    "read_manifest": "manifests.manifest",
    "register": "manifests.catalog",
    "settings": "config",
    "stack_regions": "arrays.volumes",
    "verify_store": "stores.saving",
}
__all__ = list(_PUBLIC)

# What arrays can do beside reading, by the rooms that do it.
offer(
    {
        "persist": "lazytiles.stores.saving",
        "plot_region": "lazytiles.reports.plots",
        "plot_tiles": "lazytiles.reports.plots",
        "region_to_dask": "lazytiles.arrays.graphs",
        "statistics": "lazytiles.reports.statistics",
        "tiles_to_dask": "lazytiles.arrays.graphs",
        "to_torch": "lazytiles.training.torch",
    }
)


def __getattr__(name: str) -> object:
    """The public object of that name, imported now and kept (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name] or name}")
    value = getattr(module, name) if _PUBLIC[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
