"""One image file as a lazy array; the only wing that opens image files."""

from lazytiles.images.bands import Bands, asked_bands, bands_read, check_resample, to_gray, to_rgb
from lazytiles.images.cache import segment_cache
from lazytiles.images.containers import datasets, open_zarr, refuse_bomb, unpacked
from lazytiles.images.files import FileKey, descriptor, open_plain, pool, unlinked, write_new
from lazytiles.images.georeference import Georeference
from lazytiles.images.layouts.levels import Level
from lazytiles.images.mapped import cut_windows, slice_page
from lazytiles.images.page import Page
from lazytiles.images.pictures import split_name
from lazytiles.images.plan import Plan, Targets, Windows, planned
from lazytiles.images.reader import carry_out, read_windows
from lazytiles.images.readers import is_sendable
from lazytiles.images.region import Region, open_region, thumbnail
from lazytiles.images.remote import are_there, is_remote, listed
from lazytiles.images.resample import METHODS, Extent, around, resize, resize_valid, to_integers
from lazytiles.images.validity import has_invalid, judged, mask_of, may_be_invalid, scaled, valid_windows
