"""Draws the diagrams of the documentation as SVG: ``python docs/make_diagrams.py``."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).parent / "images"
INK, SOFT, PAPER, SAND, BLUE = "#22313f", "#5d6d7e", "#eef3f7", "#fdf3dc", "#2f7fb8"
COLOURS = ["#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860"]


def text(x: float, y: float, words: str, *, title: bool = False, middle: bool = False) -> str:
    """Words at a place."""
    style = ' class="title"' if title else ""
    anchor = ' text-anchor="middle"' if middle else ""
    return f'<text x="{x}" y="{y}"{style}{anchor}>{escape(words)}</text>'


def rect(x: float, y: float, width: float, height: float, fill: str, *, round_: int = 6, stroke: str = INK) -> str:
    """A rectangle."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{round_}" fill="{fill}" stroke="{stroke}"/>'


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """An arrow from one place to another."""
    return f'<path d="M {x0} {y0} L {x1} {y1}" stroke="{BLUE}" stroke-width="2.5" fill="none" marker-end="url(#head)"/>'


def drawing(width: int, height: int, parts: list[str]) -> str:
    """A whole SVG."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<style>text {{ font: 13px sans-serif; fill: {SOFT}; }} .title {{ font-weight: bold; fill: {INK}; }}</style>"
        '<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M 0 0 L 10 5 L 0 10 z" fill="{BLUE}"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def box(x: float, y: float, width: float, lines: list[str], fill: str = PAPER) -> str:
    """A box with a title and lines."""
    rows = [text(x + 10, y + 22 + 19 * k, line, title=k == 0) for k, line in enumerate(lines)]
    return "\n".join([rect(x, y, width, 16 + 20 * len(lines), fill), *rows])


def concepts() -> str:
    """From a table and images to a model and back."""
    parts = [
        box(10, 20, 205, ["manifest", "one row a tile and frame", "ids, box, target"], SAND),
        box(10, 130, 205, ["regions", "image files as lazy", "arrays"], SAND),
        box(255, 75, 225, ["tiles", "one lazy array (N, H, W, C)", "order, labels, table"]),
        box(520, 75, 195, ["batches", "planned and read ahead", "transformed"]),
        box(755, 20, 165, ["model", "fit, evaluate", "Keras, torch, JAX"]),
        box(755, 130, 165, ["maps", "predictions in whole", "regions"], SAND),
        arrow(215, 60, 251, 95), arrow(215, 160, 251, 125), arrow(480, 112, 516, 112),
        arrow(715, 100, 751, 65), arrow(837, 96, 837, 126),
        text(257, 175, "open_tiles"), text(522, 175, "BatchFlow, KerasAdapter"), text(757, 230, "predict"),
    ]  # fmt: skip
    return drawing(930, 245, parts)


def grid(x: float, y: float, rows: int, columns: int, side: float, fills: dict[int, str]) -> list[str]:
    """Cells, some of them filled."""
    return [
        rect(
            x + k % columns * side,
            y + k // columns * side,
            side,
            side,
            fills.get(k, "#ffffff"),
            round_=0,
            stroke="#aab7c4",
        )
        for k in range(rows * columns)
    ]


def reading() -> str:
    """Segments under the windows of two batches, decoded once."""
    shared, one, two = "#8172b3", "#9cc3e6", "#f3c89b"
    fills = {5: one, 6: shared, 7: two, 13: one, 14: shared, 15: two, 18: one, 26: one}
    parts = [text(10, 24, "segments of an image", title=True), *grid(10, 40, 5, 8, 40, fills)]
    for x, y, colour in ((225, 55, "#1f5f96"), (265, 65, "#b8651b"), (95, 130, "#1f5f96")):
        parts.append(f'<rect x="{x}" y="{y}" width="64" height="64" fill="none" stroke="{colour}" stroke-width="3"/>')
    parts += [
        box(390, 25, 265, ["1. the order is known", "windows of many batches ahead"]),
        box(390, 105, 265, ["2. a plan", "which segments, for which tiles"]),
        box(390, 185, 265, ["3. each segment once", "read, decoded, cut into all tiles"]),
        box(705, 105, 215, ["batches", "handed out in their order"], SAND),
        arrow(340, 140, 386, 140), arrow(522, 83, 522, 102), arrow(522, 163, 522, 182), arrow(655, 215, 725, 165),
        text(10, 262, "blue: first batch; orange: second batch; violet: both, decoded once"),
    ]  # fmt: skip
    return drawing(930, 275, parts)


def orders() -> str:
    """Samples of six regions in their own order, within windows of two, and shuffled."""
    rows = [
        ("as in the table", [k // 6 for k in range(36)]),
        ("shuffle(seed, window=2)", [int(c) for c in "303303033030515511511515244242242424".replace(" ", "")]),
        ("shuffle(seed)", [int(c) for c in "250314405231051324103542514023341205"]),
    ]  # fmt: skip
    parts = []
    for r, (title, regions) in enumerate(rows):
        y = 30 + 60 * r
        parts.append(text(10, y, title, title=True))
        parts += [rect(10 + 25 * k, y + 8, 23, 23, COLOURS[c], round_=3, stroke="none") for k, c in enumerate(regions)]
    parts.append(text(10, 215, "one square a sample, one colour a region: a batch is some squares side by side"))
    return drawing(930, 230, parts)


def shards() -> str:
    """The order of an epoch, cut into global batches, each of them into the batches of three ranks."""
    parts = [text(10, 24, "the order of the epoch, one square a sample", title=True)]
    for k in range(28):
        x = 10 + 31 * k + 14 * (k // 12)
        colour = COLOURS[k // 4 % 3] if k < 24 else "#d5dbe1"
        parts += [rect(x, 36, 28, 28, colour, round_=3, stroke="none"), text(x + 14, 55, str(k), middle=True)]
    for g, x in enumerate((10, 396)):
        parts.append(text(x, 88, f"global batch {g}"))
    parts.append(text(782, 88, "left out"))
    for rank in range(3):
        y = 112 + 42 * rank
        parts.append(text(10, y + 20, f"rank {rank}: shard=({rank}, 3)", title=True))
        for batch in range(2):
            x = 180 + 190 * batch
            for i in range(4):
                k = 12 * batch + 4 * rank + i
                parts += [
                    rect(x + 31 * i, y, 28, 28, COLOURS[rank], round_=3, stroke="none"),
                    text(x + 31 * i + 14, y + 19, str(k), middle=True),
                ]
        parts.append(text(570, y + 20, "two batches of four"))
    return drawing(930, 240, parts).replace("</style>", ' text[text-anchor="middle"] { fill: #ffffff; }</style>')


DIAGRAMS = {"concepts.svg": concepts, "reading.svg": reading, "orders.svg": orders, "shards.svg": shards}


def write() -> None:
    """Draw every diagram anew."""
    for name, draw in DIAGRAMS.items():
        (IMAGES / name).write_text(draw())


if __name__ == "__main__":
    write()
