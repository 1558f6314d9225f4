"""Writes a store of each format to tests/golden/stores/COMMIT, as the version at that commit writes it.

    git worktree add /tmp/old d44110b
    PYTHONPATH=/tmp/old python tests/golden/make_stores.py d44110b

Run it only to add a version: stores that are there are read for ever.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

import lazytiles as lt

ENDINGS = ("npy", "h5", "zarr", "b2nd", "tfrecord")


def main(here: Path) -> None:
    """All that a store carries: labels, a table, an order, regions and windows, and of one mask labels too."""
    here.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        for k in range(2):
            image = np.arange(8 * 8, dtype=np.uint8).reshape(8, 8) + 64 * k
            tifffile.imwrite(f"{folder}/r{k}.tif", image, compression="zlib")
        boxes = [(0, 0, 4, 4), (4, 0, 8, 4), (0, 4, 4, 8)]
        table = pd.DataFrame(
            [(f"t{k}{i}", f"r{k}", f"r{k}.tif", *box, 2 * k + i) for k in range(2) for i, box in enumerate(boxes)],
            columns=["tile_id", "region_id", "path", "xmin", "ymin", "xmax", "ymax", "target"],
        )
        tiles = lt.open_tiles(table, folder).shuffle(5)
        for ending in ENDINGS:
            tiles.persist(here / f"tiles.{ending}", chunk=4)
        masks = lt.MultiSourceArray([np.arange(5 * 2 * 2, dtype=np.int16).reshape(5, 2, 2)])
        images = lt.MultiSourceArray([np.arange(5 * 2 * 2 * 3, dtype=np.float32).reshape(5, 2, 2, 3)], labels=masks)
        lt.export(images, here / "masks.npy", chunk=2)
        lt.create_dataset(here, 3, np.arange(12.0).reshape(3, 4), np.eye(3, 4, dtype=int), [1], progress=False)


if __name__ == "__main__":
    main(Path(__file__).parent / "stores" / sys.argv[1])
