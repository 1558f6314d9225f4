# The one public list: `__init__.py` imports from it by need; editors and type checkers read it, too.

from lazytiles import augment as augment
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

__version__: str
