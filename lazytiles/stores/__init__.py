"""Samples written once, whole or not at all, and read again."""

from lazytiles.stores.companions import StoredCompanions, StoredRegion, ground_of, region_name, windows_in
from lazytiles.stores.geotiff import TILE, Ground, Pyramid
from lazytiles.stores.journal import OLD, PARTIAL, cause_of, failed, publish, recover, remove
from lazytiles.stores.saving import OnProgress, export, open_store, reporting, verify_store
from lazytiles.stores.writers import ArraySink, BufferedWriter, Sink, cast
