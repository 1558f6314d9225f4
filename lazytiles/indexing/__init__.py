"""Keys, windows, tilings, orders: integers only, no file."""

from lazytiles.indexing.keys import select_rows
from lazytiles.indexing.lazy import LazyArray, by, each_at, fits, into, token, trimmed
from lazytiles.indexing.orders import balanced_weights, draw, permutation, shard_batches, shard_slice
from lazytiles.indexing.overlaps import Ground, brought, overlapping_pairs, pairs_on_ground
from lazytiles.indexing.padding import LINE_MODES, PAD_MODES, folded, needed, padded
from lazytiles.indexing.requests import Request, request
from lazytiles.indexing.seeds import BatchGenerator, Seed, samples_of, seed_of, stream
from lazytiles.indexing.splits import kfold_rows, region_column, split_rows
from lazytiles.indexing.tilings import EDGES, Edge, cover, tiling
from lazytiles.indexing.windows import box_words, boxes_from_windows, size_words, windows_from_boxes
