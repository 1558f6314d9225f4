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

if TYPE_CHECKING:
    import lazytiles.augment as augment  # noqa: F401  # the form of re-export that mypy takes for a submodule
    from lazytiles.adapters.keras import KerasAdapter as KerasAdapter
    from lazytiles.cache import clear_cache as clear_cache
    from lazytiles.catalog import open_registered as open_registered
    from lazytiles.catalog import register as register
    from lazytiles.config import configure as configure
    from lazytiles.config import counters as counters
    from lazytiles.config import settings as settings
    from lazytiles.doctor import check as check
    from lazytiles.errors import LazyTilesError as LazyTilesError
    from lazytiles.errors import LimitError as LimitError
    from lazytiles.errors import ManifestError as ManifestError
    from lazytiles.errors import RegionError as RegionError
    from lazytiles.errors import SegmentError as SegmentError
    from lazytiles.errors import StoreError as StoreError
    from lazytiles.flow import BatchFlow as BatchFlow
    from lazytiles.manifest import read_manifest as read_manifest
    from lazytiles.multisource import MultiSourceArray as MultiSourceArray
    from lazytiles.order import mixing as mixing
    from lazytiles.patches import PatchGenerator as PatchGenerator
    from lazytiles.patches import create_dataset as create_dataset
    from lazytiles.region import Region as Region
    from lazytiles.region import open_region as open_region
    from lazytiles.scans import predict as predict
    from lazytiles.scenes import open_volumes as open_volumes
    from lazytiles.split import leakage as leakage
    from lazytiles.stitch import Canvas as Canvas
    from lazytiles.store import export as export
    from lazytiles.store import open_store as open_store
    from lazytiles.store import persist as persist
    from lazytiles.store import verify_store as verify_store
    from lazytiles.stored import StoreArray as StoreArray
    from lazytiles.survey import make_grid as make_grid
    from lazytiles.tiles import open_tiles as open_tiles
    from lazytiles.view import DelayedView as DelayedView
    from lazytiles.volumes import stack_regions as stack_regions
    from lazytiles.write import Blosc2Writer as Blosc2Writer
    from lazytiles.write import BufferedWriter as BufferedWriter
    from lazytiles.write import HDF5Writer as HDF5Writer
    from lazytiles.write import NpyWriter as NpyWriter
    from lazytiles.write import ZarrWriter as ZarrWriter

__version__ = "0.1.0"

# The one public list: name -> module that has it, or "" where the name is itself a module.
_PUBLIC = {
    "BatchFlow": "flow",
    "Blosc2Writer": "write",
    "BufferedWriter": "write",
    "Canvas": "stitch",
    "DelayedView": "view",
    "HDF5Writer": "write",
    "KerasAdapter": "adapters.keras",
    "LazyTilesError": "errors",
    "LimitError": "errors",
    "ManifestError": "errors",
    "MultiSourceArray": "multisource",
    "NpyWriter": "write",
    "PatchGenerator": "patches",
    "Region": "region",
    "RegionError": "errors",
    "SegmentError": "errors",
    "StoreArray": "stored",
    "StoreError": "errors",
    "ZarrWriter": "write",
    "augment": "",
    "check": "doctor",
    "clear_cache": "cache",
    "configure": "config",
    "counters": "config",
    "create_dataset": "patches",
    "export": "store",
    "leakage": "split",
    "make_grid": "survey",
    "mixing": "order",
    "open_region": "region",
    "open_registered": "catalog",
    "open_store": "store",
    "open_tiles": "tiles",
    "open_volumes": "scenes",
    "persist": "store",
    "predict": "scans",
    "read_manifest": "manifest",
    "register": "catalog",
    "settings": "config",
    "stack_regions": "volumes",
    "verify_store": "store",
}
__all__ = list(_PUBLIC)


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
