"""Draws ``docs/images/cluster.svg``, where bytes and tasks flow: ``python docs/make_cluster_picture.py``."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 890, 460
INK, SOFT = "#22313f", "#5d6d7e"
FILLS = {"host": "#eef3f7", "process": "#ffffff", "store": "#fdf3dc"}


def box(x: int, y: int, width: int, height: int, title: str, lines: list[str], fill: str) -> str:
    """A rectangle with a title and lines of text."""
    text = [f'<text x="{x + 12}" y="{y + 22}" class="title">{escape(title)}</text>']
    text += [f'<text x="{x + 12}" y="{y + 42 + 17 * k}">{escape(line)}</text>' for k, line in enumerate(lines)]
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{FILLS[fill]}" stroke="{INK}"/>'
    return "\n".join([shape, *text])


def arrow(path: str, label: str, at: tuple[int, int], *, bytes_flow: bool) -> str:
    """An arrow with a label: thick where pixels flow, thin where tasks and numbers do."""
    style = 'stroke="#c0762b" stroke-width="4"' if bytes_flow else f'stroke="{SOFT}" stroke-width="1.5"'
    head = "fat" if bytes_flow else "thin"
    line = f'<path d="{path}" {style} fill="none" marker-end="url(#{head})"/>'
    return f'{line}\n<text x="{at[0]}" y="{at[1]}" class="label">{escape(label)}</text>'


def picture() -> str:
    """The whole drawing as SVG."""
    reads = ["opens each region once", "own segment cache", "own descriptors", "own model"]
    yours = ["manifest, order, labels", "builds the graph: no image", "opened, no pixel read"]
    schedules = ["tasks under 2 kB:", "paths, sizes, times, windows", "runs a lost task again"]
    images = ["shared folder, or s3://, https://", "a batch's ranges joined,", "fetched at once"]
    stores = ["a chunk is written by one task", "its checksum goes to you", "completed by you, last"]
    parts = [
        box(20, 30, 220, 120, "your process", yours, "host"),
        box(320, 30, 220, 120, "scheduler", schedules, "host"),
        box(620, 30, 220, 120, "worker 1", reads, "process"),
        box(620, 180, 220, 120, "worker 2", reads, "process"),
        box(620, 340, 220, 100, "images", images, "store"),
        box(20, 220, 220, 100, "Zarr store, maps", stores, "store"),
        arrow("M240 75 L318 75", "tasks", (262, 68), bytes_flow=False),
        arrow("M320 115 L242 115", "sums, CRCs", (247, 134), bytes_flow=False),
        arrow("M540 75 L618 75", "tasks", (562, 68), bytes_flow=False),
        arrow("M540 110 L618 205", "tasks", (545, 175), bytes_flow=False),
        arrow("M730 340 L730 304", "pixels", (742, 326), bytes_flow=True),
        arrow("M840 390 C885 360 885 140 844 100", "", (796, 326), bytes_flow=True),
        arrow("M618 265 L244 265", "chunks and maps, from every worker", (330, 255), bytes_flow=True),
    ]
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="{size}" markerHeight="{size}" '
        f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
        for name, size, colour in (("fat", 4, "#c0762b"), ("thin", 8, SOFT))
    )
    style = (
        f"text{{font:13px sans-serif;fill:{INK}}} .title{{font-weight:bold;font-size:15px}} "
        f".label{{fill:{SOFT};font-size:12px}}"
    )
    top = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = "<title>Tasks go from your process to workers; pixels go from images to workers to stores</title>"
    back = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([top, title, f"<style>{style}</style><defs>{heads}</defs>", back, *parts, "</svg>", ""])


if __name__ == "__main__":
    (Path(__file__).parent / "images" / "cluster.svg").write_text(picture(), encoding="utf-8")
