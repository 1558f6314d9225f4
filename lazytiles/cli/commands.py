"""The command line: what a person does before and around training."""

from __future__ import annotations

import json
import math
import os
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lazytiles import __version__
from lazytiles.arrays import codec_name, connected, mebibytes
from lazytiles.cli import demo, kinds
from lazytiles.cli.options import (
    Desk,
    bar,
    has_ending,
    open_named,
    opening,
    parse_channels,
    parse_size,
    refuse_existing,
    say,
)
from lazytiles.display import plural
from lazytiles.errors import ManifestError, RegionError, StoreError, require, visible
from lazytiles.images import open_region
from lazytiles.indexing import EDGES, cover
from lazytiles.manifests import (
    COORDINATES,
    Asked,
    Division,
    Frames,
    Grid,
    Images,
    Problems,
    default_template,
    verify_digests,
    write_digests,
)
from lazytiles.manifests import check as check_manifest
from lazytiles.reports import check_page, plot_tiles, preview_page
from lazytiles.stores import export as export_tiles
from lazytiles.stores import open_store, verify_store

_FORMULAS = ("=", "+", "-", "@")  # as spreadsheets read a cell
_STORES = (".zarr", ".h5", ".hdf5", ".b2nd", ".tfrecord")


@click.group(cls=Desk, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lazytiles")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Windows of big TIFFs as one lazy array: manifests, pictures, costs and stores.

    Exit codes: 0 all is well; 1 the data have problems, or a file is refused; 2 wrong use, such as an unknown
    option, a bad value, or an output that is there already; 3 not foreseen; 130 stopped by Ctrl-C.
    """


@main.command("demo")
@click.option("--data", "kind", type=click.Choice(list(kinds.KINDS)), help="Only make data of this kind.")
@click.option("--dir", "directory", type=click.Path(file_okay=False), help="Where made data and demo.png go.")
@click.option("--overwrite", is_flag=True, help="Replace what is there: demo.png, made data.")
@click.option("--images", type=click.Path(exists=True, file_okay=False), help="Your own folder of images.")
@click.option("--manifest", type=click.Path(exists=True, dir_okay=False), help="Your own table of tiles.")
@click.option("--seed", default=0, show_default=True, help="Of the data, the split and the model.")
@click.option("--epochs", default=8, show_default=True, type=click.IntRange(min=1), help="Passes over the tiles.")
def run_demo(kind: str | None, directory: str | None, overwrite: bool, seed: int, **options: Any) -> None:
    """Make a small data set, train a model on it, and draw what it predicts.

    Examples:
      lazytiles demo
      lazytiles demo --data photos
      lazytiles demo --dir demo-data --seed 7
      lazytiles demo --images Images --manifest tiles.csv
    """
    is_own = options["images"] is not None
    if is_own != (options["manifest"] is not None):
        raise click.UsageError("the demo on files of your own needs both --images FOLDER and --manifest CSV")
    if kind is None:
        refuse_existing(os.path.join(directory or "", "demo.png"), overwrite)
        refuse_existing(os.path.join(directory, "tiles.csv") if directory and not is_own else None, overwrite)
        demo.run(directory=directory, seed=seed, say=say, **options)
        return
    if is_own:
        raise click.UsageError("--data makes files; leave it out with --images and --manifest")
    folder = directory or kind
    refuse_existing(folder if os.path.isdir(folder) and os.listdir(folder) else None, overwrite)
    say(f"made in {folder}: {kinds.make(kind, folder, seed=seed)}")
    say("open them in Python:\n")
    say(textwrap.indent(kinds.OPENED[kind].format(folder), "    "))
    say(f"\nmore: python -m pydoc lazytiles.{kinds.VERBS[kind]}, and the page start/{kind} of the documentation")


@main.command("info")
@opening
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(min=1), help="Tiles of a batch.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(manifest: str, batch_size: int, as_json: bool, **options: Any) -> None:
    """Say what an image or a store is, or what reading the tiles of a manifest will cost, from tags alone.

    Examples:
      lazytiles info Images/2018/1225.tif
      lazytiles info tiles.csv --images Images --frames 2016,2017,2018
      lazytiles info tiles.csv --images Images --batch-size 64 --json
    """
    if not manifest.lower().endswith((".csv", ".parquet", ".pq", ".txt")):
        names = ("page", "series", "axes", "channels", "level")
        facts = _facts_of(manifest, {name: options[name] for name in names if options.get(name) is not None})
        say(json.dumps(facts)) if as_json else _print_facts(manifest, facts)
        return
    tiles = open_named(manifest, **options)
    try:
        with bar("planning batches"):
            cost = tiles.plan(batch_size=batch_size)
    except TypeError as error:
        raise ManifestError(f"{manifest}: {tiles!r}: {error}") from error
    if as_json:
        say(json.dumps({"shape": list(tiles.shape), "dtype": str(tiles.dtype), **cost.to_dict()}))
        return
    say(f"{tiles!r}\n{cost.tiles:,} tiles of {cost.regions:,} regions")
    say(f"a batch of {cost.batch_size}: {mebibytes(cost.batch_bytes)}; memory: about {mebibytes(cost.memory_bytes)}")
    for name, count in cost.stored.items():
        say(f"{count:,} images looked at are {name}")
    table = Table("order", *("segments", "read", "decoded", "delivered", "times"), title="per batch")
    for order in cost.orders:
        amounts = [mebibytes(n) for n in (order.bytes_read, order.bytes_decoded, order.bytes_delivered)]
        table.add_row(Text(visible(order.order)), f"{order.segments:.1f}", *amounts, f"{order.amplification:.2f}")
    Console().print(table)
    for said in cost.advice:
        say(f"- {said}")


def _facts_of(path: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """What a store, or an image, says of itself; `chosen` are options of `open_region`."""
    if not (os.path.isdir(path) or path.lower().endswith(_STORES)):
        return _facts_of_image(path, chosen)
    try:
        tiles = open_store(path)
    except StoreError:
        with suppress(RegionError):  # the folder is no multiscale image either
            return _facts_of_image(path, chosen)
        raise
    table = [] if tiles.table is None else list(tiles.table.columns)
    facts: dict[str, Any] = {"shape": list(tiles.shape), "dtype": str(tiles.dtype), "bytes in memory": tiles.nbytes}
    return facts | {"labels": tiles.labels is not None, "table": ", ".join(map(str, table))}


def _facts_of_image(path: str, chosen: dict[str, Any]) -> dict[str, Any]:
    region = open_region(path, **chosen)
    facts = {
        "shape": list(region.shape),
        "axes": region.axes,
        "dtype": str(region.dtype),
        "stored as": codec_name(region),
        "segments": int(np.prod(region.pages[0].grid)) * region.pages[0].planes,
        "levels": [list(level.shape) for level in region.levels],
        "other images": region.associated,
        "channels": ", ".join(region.channels),
        "micrometres a pixel": region.mpp,
        "bytes in memory": region.nbytes,
        "bytes on disk": os.path.getsize(path),
    }
    return {name: said for name, said in facts.items() if said not in ({}, "", None)}


def _print_facts(title: str, facts: dict[str, Any]) -> None:
    table = Table(title=Text(visible(title)), show_header=False)
    for name, value in facts.items():
        value = ", ".join(f"{k}: {n:,}" for k, n in value.items()) if isinstance(value, dict) else value
        said = f"{value:,}" if isinstance(value, int) else visible(value)
        table.add_row(Text(visible(name.replace("_", " "))), Text(said))
    Console().print(table)


@main.command("check")
@opening
@click.option("--min-size", callback=parse_size, help="Fewest pixels of a window, HEIGHTxWIDTH.")
@click.option("--split", help="Column whose different values must not share pixels, such as fold.")
@click.option("--read", is_flag=True, help="Decode every segment of every image.")
@click.option("--digest", is_flag=True, help="Write MANIFEST.sha256 with the SHA-256 of every image.")
@click.option("--overwrite", is_flag=True, help="Replace what --digest and --html write if it is there.")
@click.option("--verify", type=click.Path(exists=True, dir_okay=False), help="Compare images with this .sha256 file.")
@click.option("--html", "html", type=click.Path(dir_okay=False), help="Write the findings as one page.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--scheduler", help="Address of a dask scheduler whose workers look at the images.")
def check(
    manifest: str, images: str | None, digest: bool, overwrite: bool, html: str | None, as_json: bool, **options: Any
) -> None:
    """Find everything that is wrong with a manifest and its images; exits with 1 if anything is.

    Examples:
      lazytiles check tiles.csv --images Images --frames 2016,2017,2018
      lazytiles check tiles.csv --images Images --masks 'masks/{region_id}.tif' --read --html report.html
      lazytiles check tiles.csv --images Images --digest && lazytiles verify tiles.csv.sha256 --images Images
    """
    folder = images or os.path.dirname(manifest) or "."
    refuse_existing(html, overwrite)
    refuse_existing(f"{manifest}.sha256" if digest else None, overwrite)
    with connected(options.pop("scheduler")) as client, bar("reading rows") as tell:
        report = check_manifest(manifest, folder, digest=digest, progress=tell, client=client, **options)
    if html:
        Path(html).write_text(check_page(report), encoding="utf-8")
    if digest and report.digests:
        write_digests(report.digests, f"{manifest}.sha256", folder)
    if as_json:
        say(json.dumps(report.to_dict()))
    else:
        _print_facts(report.name, {name: value for name, value in report.facts.items() if name != "targets"})
        for title, found in (("problem", report.problems), ("warning", report.warnings)):
            if len(found):
                table = Table(title, "count")
                for kind in found.texts:
                    table.add_row(Text(visible(kind)), f"{found.counts[kind]:,}")
                Console().print(table)
                say("\n".join(found.lines()))
        verdict = "nothing stops training" if report.is_sound else plural(len(report.problems), "problem")
        say(f"{verdict}, {plural(len(report.warnings), 'warning')}")
        for name in [html] * bool(html) + [f"{manifest}.sha256"] * bool(digest and report.digests):
            say(f"wrote {name}")
    if not report.is_sound:
        raise click.exceptions.Exit(1)


@main.command("grid")
@click.argument("images")
@click.option("--size", required=True, callback=parse_size, help="HEIGHTxWIDTH of a tile, or one number, pixels.")
@click.option("--stride", callback=parse_size, help="From one tile to the next [default: the size].")
@click.option("--edge", type=click.Choice(EDGES), default="shift", show_default=True, help="Tiles that end outside.")
@click.option("--keep", help="Which tiles stay, such as 'nodata<0.5 and std>2'.")
@click.option("--level", type=click.IntRange(min=0), default=0, help="Resolution of each pyramid; 0 is full.")
@click.option("--mpp", type=float, help="Micrometres a pixel that the size is in; boxes are pixels of level 0.")
@click.option("--source-mpp", type=float, help="Micrometres a pixel of the images, instead of what they say.")
@click.option(
    "--coordinates", type=click.Choice(COORDINATES), help="What boxes are in: pixels of the level, base, map."
)
@click.option("--page", type=click.IntRange(min=0), help="Which image of each file.")
@click.option("--series", type=click.IntRange(min=0), help="Which series of each file.")
@click.option("--axes", help="A letter an axis of each array, such as ZYX.")
@click.option("--channels", callback=parse_channels, help="Channels to judge, by number or name: 0,2 or DAPI.")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="CSV or Parquet file.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
def grid(images: str, output: str, overwrite: bool, **options: Any) -> None:
    """Write a manifest of regular tiles over a folder of images, one image, or a folder behind an address.

    Images of one name in several folders, such as yearly ones, become frames.

    Examples:
      lazytiles grid Images --size 224 -o tiles.csv
      lazytiles grid Images --size 224 --stride 112 --edge pad -o tiles.parquet
      lazytiles grid Images --size 256 --keep "nodata<0.5" -o tiles.csv
      lazytiles grid slides --size 256 --mpp 0.5 --keep "tissue>0.1" -o tiles.csv
    """
    has_ending(output, (".csv", ".txt", ".parquet", ".pq"), "a manifest is a .csv or a .parquet file")
    refuse_existing(output, overwrite)
    with bar("dividing images") as tell:
        found = Grid.over(images, Division(**options), tell)
    table = found.table()
    if output.lower().endswith((".parquet", ".pq")):
        table.to_parquet(output, index=False)
    else:
        table.to_csv(output, index=False)
    say(f"{table['tile_id'].nunique():,} tiles of {table['region_id'].nunique():,} regions, {len(table):,} rows")
    covers = [cover(windows, found.sites[region][-1].shape) for region, windows in found.windows.items()]
    sizes = [math.prod(several[-1].shape) for several in found.sites.values()]
    fraction = sum(one.fraction * size for one, size in zip(covers, sizes, strict=True)) / sum(sizes)
    fewest, most = min(one.fewest for one in covers), max(one.most for one in covers)
    say(f"each pixel lies in {fewest} to {most} tiles; {fraction:.1%} of the pixels are covered")
    say(f"wrote {output}")
    odd = int(table["tile_id"].drop_duplicates().str.startswith(_FORMULAS).sum())
    if odd and output.lower().endswith((".csv", ".txt")):
        say(
            f"{plural(odd, 'tile id')} that begin with =, +, - or @ are formulas to a spreadsheet: import them as "
            "text, or write a .parquet file",
            err=True,
        )


@main.command("preview")
@opening
@click.option("-n", "count", default=24, show_default=True, type=click.IntRange(min=1), help="Tiles of a picture.")
@click.option("--seed", type=int, help="Shuffle the tiles of a picture first.")
@click.option("-o", "--output", default="preview.html", show_default=True, help="An .html page or a .png picture.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
def preview(manifest: str, count: int, seed: int | None, output: str, overwrite: bool, **options: Any) -> None:
    """Look at the tiles: a page of all regions with their tiles over them, or a picture of some tiles.

    Examples:
      lazytiles preview tiles.csv --images Images
      lazytiles preview tiles.csv --images Images --frames 2016,2017 -n 16 -o tiles.png
    """
    has_ending(output, (".html", ".htm", ".png"), "the preview is an .html page or a .png picture")
    refuse_existing(output, overwrite)
    if output.lower().endswith(".png"):
        tiles = open_named(manifest, **options)
        if seed is not None:
            tiles.shuffle(seed)
        require("matplotlib", extra="plot").use("Agg")
        with bar("reading tiles"):
            plot_tiles(tiles, count).figure.savefig(output, dpi=110)
        say(f"wrote {output}")
        return
    path, frames, target = (options[name] for name in ("path", "frames", "target"))
    with bar("drawing regions") as tell:
        where = {name: options[name] for name in ("coordinates", "boxes_crs", "level", "mpp")}
        asked = Asked(path=path, pad=options["pad"], target=None, **where)
        table, wanted = asked.read(manifest), Frames.of("each" if frames is None else frames)
        rows = wanted.samples(table, options["where"])
        template, problems = path or default_template(table), Problems(manifest)  # noted, so that each row has its own
        folder = options["images"] or os.path.dirname(manifest) or "."
        how = {name: options[name] for name in ("missing", "follow_symlinks")}
        found = Images.of(table, rows, template, folder, wanted, None, problems=problems, **how)
        problems.raise_any()
        codes, names = found.by_row(len(table))
        shown = np.flatnonzero(codes >= 0)
        html = preview_page(
            table.iloc[shown].reset_index(drop=True),
            codes[shown],
            names,
            title=os.path.basename(manifest),
            target=target if isinstance(target, str) else target[0],
            bands=None if isinstance(options["bands"], str) else options["bands"],
            boxes_crs=options["boxes_crs"],
            level=asked.drawn_level,
            progress=tell,
        )
    Path(output).write_text(html, encoding="utf-8")
    say(f"wrote {output}")


@main.command("stats")
@opening
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write JSON for KerasAdapter(normalize=...).")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@click.option("--scheduler", help="Address of a dask scheduler, such as tcp://host:8786.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(output: str | None, overwrite: bool, scheduler: str | None, as_json: bool, **options: Any) -> None:
    """Mean, deviation, extremes and histogram of every band and frame, exactly, in one pass.

    Examples:
      lazytiles stats tiles.csv --images Images -o stats.json
      lazytiles stats tiles.csv --images Images --frames 2016,2017 --json
    """
    refuse_existing(output, overwrite)
    tiles = open_named(**options)
    with connected(scheduler) as client, bar("reading tiles") as tell:
        found = tiles.statistics(client=client, progress=tell)
    if output:
        found.save(output)
    say(json.dumps(found.to_dict()) if as_json else str(found))
    if output and not as_json:
        say(f"wrote {output}")


@main.command("export")
@opening
@click.option("-o", "--out", "store", required=True, type=click.Path(), help="The store; its ending says the format.")
@click.option("--chunk", type=click.IntRange(min=1), help="Tiles of a chunk.")
@click.option("--overwrite", is_flag=True, help="Replace the store if it is there.")
@click.option("--resume", is_flag=True, help="Go on where an export of the same tiles stopped.")
@click.option("--scheduler", help="Address of a dask scheduler whose workers write the chunks of a .zarr store.")
def export(store: str, chunk: int | None, overwrite: bool, resume: bool, scheduler: str | None, **options: Any) -> None:
    """Write the tiles with their labels and table to a store: .zarr, .h5, .b2nd, .npy or .tfrecord; or a GeoTIFF each.

    Examples:
      lazytiles export tiles.csv --images Images -o tiles.zarr
      lazytiles export tiles.csv --images Images --frames 2016,2017 --size 128 -o tiles.h5
      lazytiles export tiles.csv --images Images -o "chips/{tile_id}.tif"
    """
    endings = (*_STORES, ".npy", ".tif", ".tiff")
    has_ending(
        store.partition("::")[0], endings, "a store ends in .zarr, .h5, .b2nd, .npy or .tfrecord; a tile in .tif"
    )
    refuse_existing(None if "::" in store or resume else store, overwrite)
    tiles = open_named(**options)
    try:
        with connected(scheduler) as client, bar("writing tiles") as tell:
            export_tiles(tiles, store, chunk=chunk, overwrite=overwrite, resume=resume, progress=tell, client=client)
    except KeyboardInterrupt:
        say(f"\nstopped; the part of {store} that is written stays: the same command with --resume goes on", err=True)
        raise click.exceptions.Exit(130) from None
    say(f"wrote {store}: {tiles.shape} {tiles.dtype}")


@main.command("verify")
@click.argument("path", type=click.Path())
@click.option(
    "--images", type=click.Path(exists=True, file_okay=False), help="Folder of the images [default: the file's]."
)
def verify(path: str, images: str | None) -> None:
    """Compare images with the digests that check --digest wrote, or a store with its checksums.

    Examples:
      lazytiles verify tiles.csv.sha256 --images Images
      lazytiles verify tiles.zarr
    """
    if path.endswith(".sha256"):
        with bar("verifying") as tell:
            problems = verify_digests(path, images or os.path.dirname(path) or ".", progress=tell)
        problems.raise_any()
        say(f"{path}: every image is as it was")
    else:
        with bar("verifying"):
            said = verify_store(path)
        say(f"{path}: {said}")
