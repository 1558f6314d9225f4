"""Self-contained HTML pages: what to look at before training, usable without a network."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from lazytiles.aliases import Int64s
from lazytiles.display import colours, plural, png, stretched
from lazytiles.errors import LazyTilesError, visible
from lazytiles.images import open_region, thumbnail
from lazytiles.manifests import Report, region_names
from lazytiles.reports.plots import boxes_on, coloured_by

MOST_DRAWN = 2000
MOST_REGIONS = 200
_MOST_WORST = 12


def escape(text: object) -> str:
    """A text as HTML shows it, control characters and marks of direction as escapes that can be seen."""
    return html.escape(visible(text, lines=True))


def page(title: str, body: str) -> str:
    """A whole page around its body, whose texts are escaped; nothing in it may ask for anything from elsewhere."""
    style, script = ((files(__package__) / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style></head>\n'
        f'<body>{body}<div id="tip" role="status" hidden></div><script>{script}</script></body></html>\n'
    )


def preview_page(
    table: pd.DataFrame,
    codes: Int64s,
    images: Sequence[str],
    *,
    title: str = "tiles",
    target: str = "target",
    bands: Sequence[int] | None = None,
    boxes_crs: str | None = None,
    level: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """One page with an index of regions, each with its tiles drawn over it; hover says which tile.

    Parameters
    ----------
    table : a manifest from `read_manifest`
    codes, images : the image of each row, from `resolve_paths`; -1 is none
    title : of the page
    target : the column that colours the tiles
    bands : which bands are shown, three or one
    boxes_crs : of boxes in map units, where it is not that of the images
    level : of the images, whose pixels boxes count
    progress : called with regions done and regions in all

    Returns
    -------
    HTML; at most 200 regions and 2,000 tiles of each are drawn, and it says so
    """
    groups = list(table.groupby(region_names(table), observed=True, sort=False).indices.items())
    shown = groups[:MOST_REGIONS]
    each, classes, ends = coloured_by(table, target)
    cards, links = [], []
    for k, (region, rows) in enumerate(shown):
        name = escape(region)
        links.append(f'<a href="#region-{k}" data-region="{name}">{name}</a>')
        how: dict[str, Any] = {"target": target, "colour": each.__getitem__, "bands": bands}
        frames = "".join(_frames(table, np.asarray(rows), codes, images, boxes_crs=boxes_crs, level=level, **how))
        count = table["tile_id"].iloc[rows].nunique()
        cards.append(
            f'<section class="card" id="region-{k}" data-region="{name}"><h2>{name}</h2>{frames}'
            f'<div class="small">{count} tiles</div></section>'
        )
        if progress:
            progress(k + 1, len(shown))
    legend = ""
    if classes:
        shown_as = '<b style="color:{};background:#000;padding:0 .3em">{}</b>'
        said = ", ".join(shown_as.format(colour, escape(name)) for name, colour in classes.items())
        legend = f" {escape(target)}: {said}."
    elif ends is not None:
        dark, bright = colours([0, 1])
        legend = (
            f' {escape(target)} from <b style="color:{dark};background:#fff;padding:0 .3em">{ends[0]:.4g}</b> (dark) '
            f'to <b style="color:{bright};background:#000;padding:0 .3em">{ends[1]:.4g}</b> (bright).'
        )
    rest = f" The first {len(shown)} of {len(groups)} regions are shown." if len(groups) > len(shown) else ""
    summary = f"{table['tile_id'].nunique():,} tiles of {len(groups):,} regions.{rest}"
    body = (
        f"<h1>{escape(title)}</h1><p>{summary}{legend}</p>"
        '<input id="find" type="search" placeholder="find a region" aria-label="find a region">'
        f'<nav aria-label="regions">{"".join(links)}</nav><main class="cards">{"".join(cards)}</main>'
    )
    return page(title, body)


def _frames(
    table: pd.DataFrame,
    rows: Int64s,
    codes: Int64s,
    images: Sequence[str],
    target: str,
    colour: Callable[[int], str],
    bands: Sequence[int] | None,
    boxes_crs: str | None,
    level: int,
) -> Iterator[str]:
    """Each image of a region with the tiles of its rows over it."""
    for code in dict.fromkeys(codes[rows][codes[rows] >= 0].tolist()):
        mine = rows[codes[rows] == code]
        drawn = table.iloc[mine[:MOST_DRAWN]]
        label = table["label_id"].iloc[mine[0]] if "label_id" in table else ""
        try:
            region = open_region(images[code], level=level)
            small = thumbnail(region)
            assert small is not None
            picture = png(stretched(small, bands=bands))
            boxes = boxes_on(region, drawn, boxes_crs)
        except (LazyTilesError, ValueError) as error:
            yield f'<pre class="bad">{escape(error)}</pre>'
            continue
        height, width = region.inner_shape[:2]
        values = drawn[target].to_list() if target in table else [None] * len(drawn)
        numbers, marks = mine[:MOST_DRAWN].tolist(), []
        for row, tile, (x0, y0, x1, y1), value in zip(numbers, drawn["tile_id"], boxes, values, strict=True):
            said = f"tile {tile}\nbox ({x0:.10g}, {y0:.10g}, {x1:.10g}, {y1:.10g})"
            if value is not None:
                said += f"\n{target} {value:.6g}" if isinstance(value, int | float) else f"\n{target} {value}"
            marks.append(
                f'<rect class="tile" tabindex="0" x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}" '
                f'stroke="{colour(row)}" fill="{colour(row)}" data-tile="{escape(tile)}" data-say="{escape(said)}"/>'
            )
        left = f", {MOST_DRAWN} of {len(mine)} tiles drawn" if len(mine) > MOST_DRAWN else ""
        size = f"{height} × {width}, {escape(region.dtype)}{left}"
        yield (
            f'<figure class="frame"><div class="map"><img src="{picture}" alt="" width="{width}" height="{height}">'
            f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(marks)}</svg></div>'
            f"<figcaption>{escape(label)} {size}</figcaption></figure>"
        )


def check_page(report: Report) -> str:
    """The findings of `check` as one page: problems, the worst rows, targets and class balance.

    Parameters
    ----------
    report : from `check`
    """
    good = report.is_sound
    verdict = "nothing stops training" if good else plural(len(report.problems), "problem")
    facts = []
    for name, value in report.facts.items():
        if name != "targets":
            said = ", ".join(f"{k}: {v:,}" for k, v in value.items()) if isinstance(value, dict) else f"{value:,}"
            facts.append(f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(said)}</td></tr>")
    worst: list[str] = []
    if report.table is not None and report.paths is not None:
        # The images of the first rows with a problem, the window drawn where there is one.
        rows = list(dict.fromkeys(row for numbers in report.problems.rows.values() for row in numbers))
        for row in [row for row in rows if report.paths[row] >= 0][:_MOST_WORST]:
            how: dict[str, Any] = {"target": "target", "bands": None, "boxes_crs": report.boxes_crs}
            how |= {"colour": lambda _: "#ff3333", "level": report.level}
            drawn = "".join(_frames(report.table, np.array([row]), report.paths, report.images, **how))
            kinds = ", ".join(kind for kind, numbers in report.problems.rows.items() if row in numbers)
            worst.append(
                f'<section class="card"><h2>{escape(report.problems.where(row))}: {escape(kinds)}</h2>{drawn}'
                f'<div class="small">{escape(report.images[report.paths[row]])}</div></section>'
            )
    parts = [
        f"<h1>{escape(report.name)}</h1>",
        f'<p class="{"good" if good else "bad"}">{verdict}; {plural(len(report.warnings), "warning")}</p>',
        f'<div class="scroll"><table>{"".join(facts)}</table></div>' if facts else "",
        _findings("Problems", report.problems),
        _findings("Warnings", report.warnings),
        f'<h2>Worst rows</h2><div class="cards">{"".join(worst)}</div>' if worst else "",
    ]
    parts += [f"<h2>{escape(name)}</h2>{_bars(found)}" for name, found in report.facts.get("targets", {}).items()]
    return page(f"check of {report.name}", "".join(parts))


def _findings(title: str, found: Any) -> str:
    if not len(found):
        return ""
    parts = [f"<h2>{title}</h2>"]
    for kind, texts in found.texts.items():
        more = found.counts[kind] - len(texts)
        tail = f"\n… and {more:,} more" if more else ""
        parts.append(
            f"<details open><summary>{escape(kind)}: {found.counts[kind]:,}</summary>"
            f"<pre>{escape(chr(10).join(map(visible, texts)))}{tail}</pre></details>"
        )
    return "".join(parts)


def _bars(facts: dict[str, Any]) -> str:
    """A histogram, or the balance of classes, as bars."""
    if "classes" in facts:
        names, counts = list(facts["classes"]), list(facts["classes"].values())
    else:
        counts = facts["histogram"]["counts"]
        names = [f"{edge:.4g}" for edge in facts["histogram"]["edges"][:-1]]
    most, width = max(counts), 600 / len(counts)
    marks = []
    for k, (name, count) in enumerate(zip(names, counts, strict=True)):
        high = 110 * count / most
        marks.append(
            f'<rect x="{k * width + 1:.1f}" y="{118 - high:.1f}" width="{max(width - 2, 1):.1f}" height="{high:.1f}">'
            f"<title>{escape(name)}: {count:,}</title></rect>"
        )
        if len(counts) <= 12 or k % (len(counts) // 6) == 0:
            marks.append(f'<text x="{k * width + 2:.1f}" y="132">{escape(name)}</text>')
    span = f"from {facts['min']:.6g} to {facts['max']:.6g}, mean {facts['mean']:.6g}; " if "min" in facts else ""
    said = f"{span}highest bar {most:,} rows"
    kind = "classes" if "classes" in facts else "values"
    return (
        f'<p class="small">{kind} {said}</p><svg class="bars" viewBox="0 0 600 140" role="img" '
        f'aria-label="{kind}">{"".join(marks)}</svg>'
    )
