"""Makes the pictures of the documentation: ``python docs/make_pictures.py``, with Chromium for the two pages."""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

import lazytiles as lt
from lazytiles.cli import demo, kinds
from lazytiles.display import stretched
from lazytiles.manifests.paths import resolve_paths
from lazytiles.manifests.rules import Stain
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
    """What a browser 1100 pixels wide shows of a page, down to its end."""
    Path("page.html").write_text(html, encoding="utf-8")
    browser = shutil.which("chromium")
    if browser is None:
        raise SystemExit("pictures of pages need chromium: apt-get install chromium")
    command = [browser, *FLAGS, "--user-data-dir=profile", f"--window-size=1100,{height}", f"--screenshot={path}"]
    subprocess.run([*command, Path("page.html").resolve().as_uri()], check=True, capture_output=True)
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
        *_, end = ImageChops.invert(rgb).getbbox() or (0, 0, 0, height)
        few_colours = rgb.crop((0, 0, rgb.width, min(height, end + 16))).quantize(128)
    few_colours.save(path, optimize=True)


def card(path: Path, samples: list[np.ndarray], height: int = 160, width: int = 400) -> None:
    """Some samples side by side, enlarged without smoothing, as wide as a card."""
    side = height - 8
    sheet = Image.new("RGB", (width, height), "white")
    for k, sample in enumerate(samples[: width // (side + 8)]):
        shown = Image.fromarray(stretched(sample)).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(shown, (8 + k * (side + 38), 4))
    sheet.save(path, optimize=True)


def years_card(path: Path) -> None:
    """One tile of three years would be small: two of them."""
    kinds.make("years", "years")
    tiles = lt.open_tiles("years/tiles.csv", "years/Images", frames=[2016, 2018])
    card(path, list(tiles[np.argsort(-np.ptp(tiles.take(range(200)).astype(float), axis=(1, 2, 3, 4)))[0]]))


def photos_card(path: Path) -> None:
    """Two photos."""
    kinds.make("photos", "photos")
    card(path, [lt.open_region(f"photos/images/photo-00{k}.jpg")[:96, :96] for k in (5, 6)])


def arrays_card(path: Path) -> None:
    """Two samples."""
    kinds.make("arrays", "arrays")
    card(path, list(lt.open_region("arrays/images.npy")[:2]))


def slides_card(path: Path) -> None:
    """A slide from afar, and from near."""
    kinds.make("slides", "slides")
    card(
        path,
        [lt.open_region("slides/slides/s2.tif", level=2)[:], lt.open_region("slides/slides/s2.tif")[200:296, 200:296]],
    )


def scans_card(path: Path) -> None:
    """A slice, and its mask."""
    kinds.make("scans", "scans")
    scan, mask = (lt.stack_regions(f"scans/{kind}/patient-2") for kind in ("images", "masks"))
    z = int(np.argmax(mask[:].sum(axis=(1, 2))))
    card(path, [scan[z, :, :64, None], mask[z, :, :64, None]])


def overview_png(path: Path) -> None:
    """Windows on a slide, a batch of them, and the map that a model makes of all: what the script of slides does."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    kinds.make("slides", "slides")
    done = runpy.run_path(str(Path(__file__).parent / "start" / "scripts" / "slides.py"))
    test, name = done["test"].reset_order(), "s2"
    table = test.table
    here = np.flatnonzero((table.region_id == name).to_numpy())
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    scene, batch, result = figure.subplots(1, 3)
    scene.imshow(lt.open_region(f"slides/slides/{name}.tif")[:])
    picks = here[np.linspace(10, len(here) - 10, 16).astype(int)]
    for row in table.iloc[picks].itertuples():
        edge = {"fill": False, "edgecolor": "#0b5fa5", "linewidth": 2}
        scene.add_patch(Rectangle((row.xmin, row.ymin), 64, 64, **edge))
    scene.set_title("an image, and the windows of a table")
    tiles = np.full((4 * 70, 4 * 70, 3), 255, np.uint8)
    for k, tile in enumerate(test.take(picks)):
        y, x = k // 4 * 70 + 3, k % 4 * 70 + 3
        tiles[y : y + 64, x : x + 64] = tile
    batch.imshow(tiles)
    batch.set_title("a batch of them, for a model")
    result.imshow(np.ma.masked_invalid(lt.open_region(f"slides/maps/{name}.tif")[:]), cmap="viridis", vmin=0, vmax=1)
    result.set_title("what the model says, as a map")
    for axes in (scene, batch, result):
        axes.set_axis_off()
    figure.savefig(path, dpi=80)


def map_png(path: Path) -> None:
    """A slide's map and its mask; `overview_png` has made them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    for axes, name, title in zip(figure.subplots(1, 2), ("masks", "maps"), ("mask", "prediction"), strict=True):
        axes.imshow(lt.open_region(f"slides/{name}/s2.tif")[:], cmap="viridis", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=80)


def tissue_png(path: Path) -> None:
    """A slide on white glass, beside black fill, and on tinted glass, and what the rule `tissue` sees of each."""
    from matplotlib.figure import Figure

    slide = lt.open_region("slides/slides/s2.tif", level=1)[:]
    filled, tinted = slide.copy(), (slide * np.array([0.97, 0.93, 0.82])).astype(np.uint8)
    filled[:, :90] = filled[300:] = 0
    figure = Figure(figsize=(10, 6.8), layout="constrained")
    shown = {"glass": slide, "black fill": filled, "tinted glass": tinted}
    for column, (title, image) in zip(figure.subplots(2, 3).T, shown.items(), strict=True):
        stain = Stain.of(image)
        column[0].imshow(image)
        column[0].set_title(title)
        column[1].imshow(stain(image), cmap="gray")
        column[1].set_title(f"tissue: saturation above {stain.threshold:.2f}")
        for axes in column:
            axes.set_axis_off()
    figure.savefig(path, dpi=64)


def boxes_png(path: Path) -> None:
    """Photos with the boxes that their labels are."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    corners = ["left", "top", "right", "bottom"]
    tiles = lt.open_tiles(
        "photos/photos.csv", "photos/images", path="{file}", size=(96, 96), target=corners, scale_boxes=corners
    )
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    for axes, k in zip(figure.subplots(1, 4), range(4), strict=True):
        x0, y0, x1, y1 = tiles.labels[k]
        axes.imshow(tiles[k])
        axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="red", linewidth=2))
        axes.set_axis_off()
    figure.savefig(path, dpi=80)


def run_page(name: str) -> dict[str, Any]:
    """What the Python blocks of a page have made when they were run in the current folder."""
    made: dict[str, Any] = {}
    text = (IMAGES.parent / f"{name}.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        steps = [example.source for example in doctest.DocTestParser().get_examples(block)] or [block]
        for step in steps:
            with contextlib.suppress(lt.LazyTilesError):  # a page shows what is refused, too
                exec(step, made)  # noqa: S102  # our own page
    return made


def heatmap_png(path: Path) -> None:
    """What the page on slides makes of a made slide and of a real one: tiles with tissue, and the map over it."""
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    name = "CMU-1-Small-Region"
    real = IMAGES.parents[2] / "shared" / "slides" / f"{name}.svs"
    if not real.exists():
        sys.stdout.write(f"{path} stays as it is: {real} is not here\n")
        return
    shutil.copy(real, ".")
    made = run_page("do/slide-to-heatmap")
    here = made["test"].table.region_id.iloc[0]
    shown = [(f"slides/slides/{here}.tif", made["grid"], here, 64), (f"{name}.svs", made["real_grid"], name, 256)]
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(1, 1, 0.75, 0.75))
    for k, (file, grid, region_id, side) in enumerate(shown):
        image, heat = lt.open_region(file)[:], lt.open_region(f"maps/{region_id}.tif")[:]
        boxes = grid[grid.region_id == region_id]
        squares = [Rectangle((x, y), side, side) for x, y in zip(boxes.xmin, boxes.ymin, strict=True)]
        windows, over = panels[2 * k : 2 * k + 2]
        windows.imshow(image)
        windows.add_collection(PatchCollection(squares, facecolor="none", edgecolor="#0b5fa5", linewidth=0.6))
        over.imshow(image)
        over.imshow(np.ma.masked_invalid(heat), cmap="inferno", alpha=0.65, vmin=0, vmax=np.nanquantile(heat, 0.99))
    for axes, title in zip(panels, ("tiles with tissue", "what the model says") * 2, strict=True):
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=80)
    with Image.open(path) as picture:
        few_colours = picture.convert("RGB").quantize(256)
    few_colours.save(path, optimize=True)


def augment_png(path: Path) -> None:
    """A tile and its mask, and four draws of a random transform."""
    from matplotlib.figure import Figure

    grid = lt.make_grid("slides/slides", 128, keep="tissue>0.9")
    tiles = lt.open_tiles(grid, "slides", path="slides/{region_id}.tif", masks="masks/{region_id}.tif")
    k = int(np.argmin(abs(tiles.labels[:].mean((1, 2, 3)) - 0.5)))
    draw = lt.augment.Augment(rotation=30, shift=0.1, zoom=0.2, flip=(True, True), warp=(0.04, 4), fill="reflect")
    batch = (np.repeat(tiles[k : k + 1], 4, axis=0), np.repeat(tiles.labels[k : k + 1], 4, axis=0))
    moved = draw(batch, np.random.default_rng(1))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    rows = [np.concatenate([batch[n][:1], moved[n]]) for n in (0, 1)]
    for axes, image in zip(figure.subplots(2, 5).flat, [*rows[0], *rows[1]], strict=True):
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="viridis", vmin=0, vmax=1)
        axes.set_axis_off()
    for axes, title in zip(figure.axes, ["as it is", *(f"draw {n}" for n in range(1, 5))], strict=False):
        axes.set_title(title)
    figure.savefig(path, dpi=80)


def patches_png(path: Path) -> None:
    """A slide from near with some of the pixels under a mask, and the patches around them."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    grid = lt.make_grid("slides/slides", 160, edge="drop")
    shares = lt.open_tiles(grid, "slides/masks")[:].mean((1, 2, 3))
    row = grid.iloc[int(np.argmin(abs(shares - 0.3)))]
    image, mask = (
        lt.open_region(f"slides/{kind}/{row.region_id}.tif")[row.ymin : row.ymax, row.xmin : row.xmax]
        for kind in ("slides", "masks")
    )
    patches = lt.PatchGenerator(image, 33, mask == 1, random=True, seed=3, max_num=8)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2)
    axes = left.subplots()
    axes.imshow(image)
    axes.contour(mask, [0.5], colors="black", linewidths=1)
    for y, x in patches.centers(range(8)):
        axes.add_patch(Rectangle((x - 16, y - 16), 33, 33, fill=False, edgecolor="#0b5fa5", linewidth=2))
        axes.plot(x, y, ".", color="#0b5fa5")
    axes.set(xlim=(-17, 177), ylim=(177, -17), title="some of the pixels under a mask")
    axes.set_axis_off()
    for cell, patch in zip(right.subplots(2, 4).flat, patches[:], strict=True):
        cell.imshow(patch)
        cell.set_axis_off()
    right.suptitle("the patches around them, mirrored at the edges")
    figure.savefig(path, dpi=80)


def sentinel_png(path: Path) -> None:
    """Two dates of a scene, its labels and its map, each where it lies: the page's own files and map."""
    from matplotlib.figure import Figure

    run_page("do/sentinel")
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, bottom, right, top = lt.open_region("S2/labels/T33UVP.tif").bounds
    for shown, (title, name) in zip(
        figure.subplots(1, 4, sharex=True, sharey=True),
        {
            "April, 10 m": "S2/2021-04-20/T33UVP_B08.tif",
            "July, 10 m": "S2/2021-07-09/T33UVP_B08.tif",
            "labels, 25 m": "S2/labels/T33UVP.tif",
            "the map": "maps/T33UVP.tif",
        }.items(),
        strict=True,
    ):
        region = lt.open_region(name)
        west, south, east, north = region.bounds
        colours = {"cmap": "gray"} if region.dtype == np.uint16 else {"cmap": "viridis", "vmin": 0, "vmax": 2}
        pixels = np.ma.masked_array(region[:], ~region.valid[:])
        shown.imshow(pixels, extent=(west, east, south, north), interpolation="nearest", **colours)
        shown.set(title=title, xlim=(left, right), ylim=(bottom, top), facecolor="#f3d9d2", xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


PICTURES: dict[str, Callable[[Path], None]] = {
    "check.png": check_png,
    "preview.png": preview_png,
    "region.png": region_png,
    "tiles.png": tiles_png,
    "card-years.png": years_card,
    "card-photos.png": photos_card,
    "card-arrays.png": arrays_card,
    "card-slides.png": slides_card,
    "card-scans.png": scans_card,
    "overview.png": overview_png,
    "map.png": map_png,
    "tissue.png": tissue_png,
    "boxes.png": boxes_png,
    "sentinel.png": sentinel_png,
    "augment.png": augment_png,
    "heatmap.png": heatmap_png,
    "patches.png": patches_png,
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
