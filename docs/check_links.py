"""Find links of the built pages that lead nowhere: ``python docs/check_links.py BUILT``."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote


@cache
def anchors(page: Path) -> frozenset[str]:
    """The places in a page that a link may name."""
    return frozenset(re.findall(r'\bid="([^"]+)"', page.read_text(errors="replace")))


def dead(folder: Path) -> list[str]:
    """Each link to a page, picture or place that is not there, with the page that it stands on."""
    found = []
    for page in sorted(folder.rglob("*.html")):
        for link in set(re.findall(r'(?:href|src)="([^"]+)"', page.read_text(errors="replace"))):
            path, _, place = link.partition("#")
            if re.match(r"[a-z]+:", link) or link == "#":
                continue
            target = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            is_there = target.exists()
            if is_there and place and target.suffix == ".html":
                is_there = unquote(place) in anchors(target)
            if not is_there:
                found.append(f"{page.relative_to(folder)}: {link}")
    return found


if __name__ == "__main__":
    links = dead(Path(sys.argv[1]).resolve())
    sys.exit("\n".join(links) if links else 0)
