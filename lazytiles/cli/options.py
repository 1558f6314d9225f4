"""What the commands share: options, progress bars, and errors that are one message."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import click
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lazytiles.errors import LazyTilesError, visible
from lazytiles.images import METHODS
from lazytiles.manifests import COORDINATES, open_tiles

_EXPECTED = (LazyTilesError, ValueError, OSError, ImportError)
# What errors of the library advise, and how the same is said to the command line.
_ADVICE: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\bframes=\[([^\]]*)\]"), lambda found: "--frames " + re.sub(r"['\" ]", "", found[1])),
    (re.compile(r", mode='a' to append"), ""),
    (re.compile(r"mode='a' to append"), "--overwrite to replace it"),
    (re.compile(r"\b(overwrite|resume)=True"), r"--\1"),
    (re.compile(r"\b(frames|missing|pad|resample|bands|path)=([\"'])([^\"']*)\2"), r"--\1 \3"),
    (re.compile(r"\b(source|mask)_(mpp|scale)="), r"--\1-\2 "),
    (re.compile(r"\b(frames|size|classes|target|masks|where|mpp)=(?![^\s,;.)])"), r"--\1"),
)


def say(text: object, *, err: bool = False) -> None:
    """Print words; names in them cannot command the terminal."""
    click.echo(visible(text, lines=True), err=err)


def as_options(message: str) -> str:
    """An error's advice in the words of the command line.

    >>> as_options("tiles.zarr exists; pass overwrite=True to replace it, mode='a' to append")
    'tiles.zarr exists; pass --overwrite to replace it'
    >>> as_options('pass pad="reflect" or correct the box')
    'pass --pad reflect or correct the box'
    """
    for pattern, said in _ADVICE:
        message = pattern.sub(said, message)
    return message


def refuse_existing(path: str | None, overwrite: bool) -> None:
    """An output that is there already is a wrong use, unless ``--overwrite`` is given; None is no output."""
    if path is not None and not overwrite and os.path.lexists(path):
        raise click.UsageError(f"{visible(path)} is there already; pass --overwrite to replace it")


def has_ending(path: str, endings: tuple[str, ...], said: str) -> None:
    """Refuse an output whose name ends otherwise."""
    if not path.lower().endswith(endings):
        raise click.BadParameter(f"{visible(path)}: {said}", param_hint="--output")


class _Command(click.Command):
    """A command whose examples stand in its help as they are typed."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Wrap what the command does; leave its examples alone."""
        said, _, examples = (self.help or "").partition("Examples:\n")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(said.strip())
        if examples:
            formatter.write_paragraph()
            shown = textwrap.indent(textwrap.dedent(examples).rstrip(), "  ")
            formatter.write(f"Examples:\n{shown}\n")


class Desk(click.Group):
    """Commands whose errors are one message and an exit code; ``--debug`` shows the traceback."""

    command_class = _Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take ``--debug`` wherever it stands, before the command or behind it."""
        rest = [word for word in args if word != "--debug"]
        return super().parse_args(ctx, ["--debug"] * (len(rest) < len(args)) + rest)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises becomes its message and exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            expected = isinstance(error, _EXPECTED)
            said = str(error) if expected else f"{type(error).__name__}: {error}"
            say(f"Error: {as_options(said)}", err=True)
            if not expected:
                say("This was not foreseen; lazytiles --debug shows where it happened.", err=True)
            ctx.exit(1 if expected else 3)


@contextmanager
def bar(stage: str) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, gone when it is done; nothing where that is no terminal.

    What it gives is told how much is done and of how much, and before these of what, where that is not `stage`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda *said: None
        return
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def tell(*said: Any) -> None:
            name, done, total = said if len(said) == 3 else (stage, *said)
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total or None)
            progress.update(tasks[name], completed=done, total=total or None)

        tell(0, 0)
        yield tell


def parse_size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """``"224"`` or ``"224x256"`` (height first) as (height, width)."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is not HEIGHTxWIDTH or one number, in pixels")
    return int(parts[0]), int(parts[-1])


def parse_list(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    """``"a,b"`` as its parts."""
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def parse_channels(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[int | str] | None:
    """``"0,DAPI"`` as numbers and names."""
    parts = parse_list(ctx, parameter, value)
    return None if parts is None else [int(part) if part.isdecimal() else part for part in parts]


def parse_bands(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | str | None:
    """``"3,2,1"`` as numbers, ``"rgb"`` as it is."""
    if value == "rgb":
        return value
    parts = parse_list(ctx, parameter, value)
    if parts is None:
        return None
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of bands such as 3,2,1") from None


def parse_numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> float | list[float]:
    """``"0"`` as a number, ``"0,255"`` as several."""
    parts = parse_list(ctx, parameter, value) or []
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number, or numbers such as 0,255") from None
    return numbers[0] if len(numbers) == 1 else numbers


def parse_scale(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    """``"0.25"`` as a number; a word as it is."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return value


def parse_page(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    """``"2"`` as a number; a word as it is."""
    return int(value) if value is not None and value.isdecimal() else value


def parse_paths(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> str | list[str] | None:
    """No path, one, or several, whose files are bands."""
    return None if not values else values[0] if len(values) == 1 else list(values)


def parse_where(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, Any] | None:
    """``("fold=1,2", "kind=oak")`` as columns and what keeps their rows."""
    found: dict[str, Any] = {}
    for value in values:
        column, mark, wanted = value.partition("=")
        if not mark or not column.strip():
            raise click.BadParameter(f"{value!r} is not COLUMN=VALUE or COLUMN=VALUE,VALUE")
        found[column.strip()] = partial(_is_one_of, [part.strip() for part in wanted.split(",")])
    return found or None


def _is_one_of(values: Sequence[str], column: pd.Series) -> Any:
    """The mask of the cells that are one of the values, as text or as numbers."""
    if pd.api.types.is_numeric_dtype(column):
        return column.isin(pd.to_numeric(pd.Series(values), errors="coerce").dropna())
    return column.astype(str).isin(values)


def parse_frames(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | list[str] | None:
    """``"2016,2017"`` as its parts; one frame, which makes no time axis, and ``"each"`` as they are."""
    parts = parse_list(ctx, parameter, value)
    return parts[0] if parts and len(parts) == 1 else parts


def parse_target(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | list[str]:
    """One column as it is, several as a list."""
    return parse_frames(ctx, parameter, value) or "target"


def opening(function: Any) -> Any:
    """The options of `open_tiles`."""
    for option in (
        click.option("--where", multiple=True, callback=parse_where, help="Only tiles of these values: fold=1,2."),
        click.option(
            "--no-links", "follow_symlinks", is_flag=True, flag_value=False, default=True, help="Refuse links."
        ),
        click.option("--missing", type=click.Choice(["raise", "fill"]), default="raise", help="Frames without image."),
        click.option("--resample", type=click.Choice(list(METHODS)), default="bilinear", help="How --size resamples."),
        click.option("--channels", callback=parse_channels, help="Channels of each file, as bands: 0,2, or names."),
        click.option("--axes", help="A letter an axis of each file: CYX, TCZYX."),
        click.option("--series", type=click.IntRange(min=0), help="Which series of pages of each file, as axes."),
        click.option("--page", callback=parse_page, help="Which page of each file: a number, all, or macro."),
        click.option("--mask-axes", help="A letter an axis of each mask."),
        click.option("--level", type=click.IntRange(min=0), default=0, help="Resolution of each pyramid; 0 is full."),
        click.option("--mpp", type=float, help="Micrometres a pixel of the tiles; boxes are pixels of level 0."),
        click.option(
            "--source-mpp", callback=parse_scale, help="Micrometres a pixel of the images: 0.25, or a column."
        ),
        click.option("--mask-scale", callback=parse_scale, help="Pixels of an image in one of its mask's: 16, or mpp."),
        click.option("--gray", is_flag=True, help="Colours as one luminance band."),
        click.option("--bands", callback=parse_bands, help="Bands to read, such as 3,2,1, or rgb."),
        click.option("--scaled", is_flag=True, help="What values mean by their file's scale and offset, as floats."),
        click.option("--dtype", help="What values are cast to, such as float32."),
        click.option("--mask-fill", type=float, default=0, help="What masks hold outside their image, such as 255."),
        click.option("--fill", callback=parse_numbers, default="0", help="What padding and missing frames hold."),
        click.option("--pad", help="What windows get that leave their image: reflect, edge, constant, ..."),
        click.option("--size", callback=parse_size, help="Resample every tile to HEIGHTxWIDTH pixels."),
        click.option("--masks", help="Where a tile's mask lies in the folder, such as 'masks/{region_id}.tif'."),
        click.option("--tabular", callback=parse_list, help="Columns of numbers given to the model beside the image."),
        click.option("--target", callback=parse_target, help="Columns of the targets [default: target, if there]."),
        click.option("--classes", callback=parse_list, help="Names in a target column, in the order of their numbers."),
        click.option("--frames", callback=parse_frames, help="Label ids of the time steps, in order: 2016,2017,2018."),
        click.option("--boxes-crs", help="CRS of boxes in map units, if it is not the images': EPSG:4326."),
        click.option("--coordinates", type=click.Choice(COORDINATES), default="pixels", help="What boxes count."),
        click.option(
            "--path",
            multiple=True,
            callback=parse_paths,
            help="Where an image lies in the folder, such as '{label_id}/{region_id}.tif'; of several, bands in order.",
        ),
        click.option("--images", help="Folder or address of the images [default: the manifest's folder]."),
        click.argument("manifest", type=click.Path(exists=True)),
    ):
        function = option(function)
    return function


def open_named(manifest: str, images: str | None, **options: Any) -> Any:
    """`open_tiles` with what was named on the command line."""
    with bar("reading the manifest"):
        return open_tiles(manifest, images, **options)
