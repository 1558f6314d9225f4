"""Many windows, regions and sources as one lazy array."""

from lazytiles.arrays.cluster import connected, in_order, result_of, results
from lazytiles.arrays.companions import Companions, check_classes, class_name, is_numeric
from lazytiles.arrays.cost import codec_name, mebibytes
from lazytiles.arrays.form import ONE_PAGE, Layout, TileForm
from lazytiles.arrays.kept import KeptValid
from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.arrays.patches import PatchGenerator
from lazytiles.arrays.reading import open_ahead
from lazytiles.arrays.region_tiles import RegionTiles
from lazytiles.arrays.relations import MapBoxes, Units, ground_of, level_of
from lazytiles.arrays.view import DelayedView, held
from lazytiles.arrays.volumes import Sampling, VolumeTiles, open_volume
