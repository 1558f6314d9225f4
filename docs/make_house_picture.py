"""Draw ``images/house.svg``: the wings, what each is for, and which imports from which; from the code itself."""

from __future__ import annotations

import ast
import textwrap
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "lazytiles"
WIDTH, BOX, GAP, MARGIN = 1100, 330, 46, 24
LINE = {"purpose": 17, "rooms": 15}
STYLE = """
text{font-family:system-ui,sans-serif;fill:#1b2a33}
.name{font-size:17px;font-weight:600}.purpose{font-size:13px}.rooms{font-size:11.5px;fill:#56707d}
.box{fill:#f4f8fa;stroke:#31688e;stroke-width:1.4}.hall{fill:#fdf7e6;stroke:#b58a1b}
.arrow{fill:none;stroke:#31688e;stroke-width:1.5;marker-end:url(#tip)}
"""


def order_of_wings() -> list[str]:
    """The one list of wings, which the tests hold the imports to."""
    tree = ast.parse((DOCS.parent / "tests" / "test_floors.py").read_text())
    named = (node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WINGS")
    found: list[str] = ast.literal_eval(next(named).value)
    return found


def rooms_of(wing: str) -> list[Path]:
    """The modules of a wing; the hall has those that lie beside the wings."""
    folder = PACKAGE if wing == "hall" else PACKAGE / wing
    found = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return sorted(path for path in found if "__" not in path.name and (wing != "hall" or path.suffix))


def purpose_of(wing: str) -> str:
    """The first line of a wing's door."""
    if wing == "hall":
        return "What everybody uses: errors, configuration, threads, memory, pictures of pixels."
    said = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text()))
    return (said or "").splitlines()[0].replace("`", "")


def imports_of(wing: str, wings: list[str]) -> set[str]:
    """The wings that the modules of one import."""
    found: set[str] = set()
    for room in rooms_of(wing):
        for path in [room] if room.suffix else room.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                dotted = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                package, _, inner = dotted.partition(".")
                if package == "lazytiles":
                    first = inner.partition(".")[0]
                    found.add(first if first in wings else "hall")
    return found - {wing}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Each wing's imports without those that another of its imports imports too."""

    def below(wing: str) -> set[str]:
        return set().union(*({other} | below(other) for other in graph[wing]))

    return {
        wing: {one for one in near if not any(one in below(other) for other in near)} for wing, near in graph.items()
    }


def storeys(graph: dict[str, set[str]], wings: list[str]) -> list[list[str]]:
    """The wings by how many lie below them, the hall first."""
    level: dict[str, int] = {}
    for wing in wings:
        level[wing] = 1 + max((level[other] for other in graph[wing]), default=-1)
    return [[wing for wing in wings if level[wing] == k] for k in range(max(level.values()) + 1)]


def lines_of(wing: str) -> list[tuple[str, str]]:
    """What stands in a wing's box, each line with its style."""
    rooms = "\u00a0· ".join(path.stem for path in rooms_of(wing))
    return [("purpose", line) for line in textwrap.wrap(purpose_of(wing), 42)] + [
        ("rooms", line) for line in textwrap.wrap(rooms, 50)
    ]


def box(wing: str, left: float, top: float, high: float) -> str:
    """One wing."""
    kind = "box hall" if wing == "hall" else "box"
    parts = [f'<rect class="{kind}" x="{left}" y="{top}" width="{BOX}" height="{high}" rx="7"/>']
    parts.append(f'<text class="name" x="{left + 14}" y="{top + 25}">{wing}{"" if wing == "hall" else "/"}</text>')
    y = top + 27.0
    for style, line in lines_of(wing):
        y += LINE[style]
        parts.append(f'<text class="{style}" x="{left + 14}" y="{y}">{escape(line)}</text>')
    return "".join(parts)


def picture() -> str:
    """The whole drawing, the command line on top and the hall at the bottom."""
    wings = order_of_wings()
    graph = {wing: imports_of(wing, wings) for wing in wings}
    place: dict[str, tuple[float, float, float]] = {}
    top, boxes = float(MARGIN), []
    for row in reversed(storeys(graph, wings)):
        high = max(38 + sum(LINE[style] for style, _ in lines_of(wing)) for wing in row)
        space = (WIDTH - len(row) * BOX) / (len(row) + 1)
        for k, wing in enumerate(row):
            left = space + k * (BOX + space)
            place[wing] = left, top, high
            boxes.append(box(wing, left, top, high))
        top += high + GAP
    arrows = []
    for wing, below in reduced(graph).items():
        near = sorted(below, key=lambda other: place[other][0])
        for k, other in enumerate(near):
            left, y0, high = place[wing]
            above = sorted((one for one in wings if other in reduced(graph)[one]), key=lambda one: place[one][0])
            x0 = left + BOX * (k + 1) / (len(near) + 1)
            x1 = place[other][0] + BOX * (above.index(wing) + 1) / (len(above) + 1)
            y0, y1 = y0 + high, place[other][1] - 3
            middle = (y0 + y1) / 2
            curve = f"M{x0:.0f},{y0:.0f} C{x0:.0f},{middle:.0f} {x1:.0f},{middle:.0f} {x1:.0f},{y1:.0f}"
            arrows.append(f'<path class="arrow" d="{curve}"/>')
    height = top - GAP + MARGIN
    said = "The wings of lazytiles from the command line down to the hall; arrows go from a wing to those it imports."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{said}">'
        f'<style>{STYLE}</style><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#31688e"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>{"".join(arrows)}{"".join(boxes)}</svg>\n'
    )


if __name__ == "__main__":
    (DOCS / "images" / "house.svg").write_text(picture(), encoding="utf-8")
