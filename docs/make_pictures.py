"""Makes the pictures of guide-pictures.md: ``python docs/make_pictures.py``, with Chromium for the two pages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import lazytiles as lt
from lazytiles.cli import demo
from lazytiles.manifests.paths import resolve_paths
from lazytiles.reports.html import check_page, preview_page
from lazytiles.reports.plots import plot_region, plot_tiles

IMAGES = Path(__file__).parent / "images"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def tiles_png(path: Path) -> None:
    """A montage: `plot_tiles`."""
    tiles = lt.open_tiles("tiles.csv", "Images", frames=[2016, 2017, 2018]).shuffle(0)
    plot_tiles(tiles, 12).figure.savefig(path, dpi=80)


def region_png(path: Path) -> None:
    """A region with its windows: `plot_region`."""
    tiles = lt.open_tiles("tiles.csv", "Images", frames=2018)
    plot_region(lt.open_region(tiles_region(tiles)), tiles).figure.savefig(path, dpi=80)


def tiles_region(tiles: lt.MultiSourceArray) -> str:
    """The image of the first tile."""
    return f"Images/2018/{tiles.table.region_id.iloc[0]}.tif"


def preview_png(path: Path) -> None:
    """The page of ``lazytiles preview``."""
    table = lt.read_manifest("tiles.csv", target="target")
    codes, images = resolve_paths(table, "{label_id}/{region_id}.tif", "Images")
    screenshot(preview_page(table, codes, images, title="tiles.csv"), path)


def check_png(path: Path) -> None:
    """The page of ``lazytiles check --html``, of a table with three faults."""
    table = lt.read_manifest("tiles.csv", target="target")
    faulty = table.assign(
        target=np.where(table.index == 5, np.nan, table.target),
        xmax=np.where(table.tile_id == table.tile_id.iloc[0], 999, table.xmax),
    )
    screenshot(check_page(lt.check(faulty, "Images", frames=[2016, 2017, 2018], size=(32, 32))), path, height=2000)


def screenshot(html: str, path: Path, height: int = 900) -> None:
    """What a browser 1100 pixels wide shows of a page."""
    Path("page.html").write_text(html, encoding="utf-8")
    browser = shutil.which("chromium")
    if browser is None:
        raise SystemExit("pictures of pages need chromium: apt-get install chromium")
    command = [browser, *FLAGS, "--user-data-dir=profile", f"--window-size=1100,{height}", f"--screenshot={path}"]
    subprocess.run([*command, Path("page.html").resolve().as_uri()], check=True, capture_output=True)
    with Image.open(path) as picture:
        few_colours = picture.convert("RGB").quantize(128)
    few_colours.save(path, optimize=True)


PICTURES: dict[str, Callable[[Path], None]] = {
    "check.png": check_png,
    "preview.png": preview_png,
    "region.png": region_png,
    "tiles.png": tiles_png,
}


def main() -> None:
    """Make every picture anew."""
    import matplotlib as mpl

    mpl.use("Agg")
    IMAGES.mkdir(exist_ok=True)
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        demo.make_data(Path(folder), seed=0, regions=6, size=256, tile=32)
        for name, make in PICTURES.items():
            make(IMAGES / name)
            sys.stdout.write(f"{IMAGES / name}\n")
        os.chdir(before)


if __name__ == "__main__":
    main()
