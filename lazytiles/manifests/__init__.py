"""The table: read, checked, made, opened."""

from lazytiles.manifests.asked import Asked
from lazytiles.manifests.checks import check
from lazytiles.manifests.findings import Report
from lazytiles.manifests.grids import COORDINATES, Division, Grid, make_grid
from lazytiles.manifests.manifest import inspect_manifest, read_manifest
from lazytiles.manifests.paths import default_template, is_component, region_names, verify_digests, write_digests
from lazytiles.manifests.problems import BOX_2D, Problems
from lazytiles.manifests.samples import Frames, Images
from lazytiles.manifests.tiles import open_tiles
