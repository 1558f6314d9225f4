"""Docstrings as this house writes them, made what Napoleon reads: a pure function of their lines."""

from __future__ import annotations

import re

SECTIONS = {
    "Attributes", "Examples", "Methods", "Notes", "Other Parameters", "Parameters", "Raises", "References", "Returns",
    "See Also", "Warns", "Yields",
}  # fmt: skip
ENTRY = re.compile(r"((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*) : (.+)")


def sections(lines: list[str]) -> list[tuple[str, list[str]]]:
    """The sections of a docstring: ("", summary and text), then each by its title."""
    found: list[tuple[str, list[str]]] = [("", [])]
    k = 0
    while k < len(lines):
        underlined = k + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[k + 1].strip()) is not None
        if underlined and lines[k].strip() in SECTIONS:
            found.append((lines[k].strip(), []))
            k += 2
            continue
        title = found[-1][0]
        # An example without a title of its own ends what stands above it.
        if title not in ("", "Examples", "Notes") and lines[k].startswith(">>>"):
            found.append(("Examples", []))
        found[-1][1].append(lines[k])
        k += 1
    return found


def plain(text: str, known: frozenset[str] = frozenset()) -> str:
    """A star in front of a word is a star, what stands in backticks is code, and a known name a link to its page."""

    def told(found: re.Match[str]) -> str:
        name = found[0].strip("`")
        if found[0] == "*":
            return r"\*"
        if found[0].startswith("``"):
            return found[0]
        name = name.removeprefix("lazytiles.")
        return f":py:obj:`~lazytiles.{name}`" if name in known else f"``{name}``"

    return re.sub(r"``[^`]+``|(?<!`)`[^`]+`(?!`)|\*(?=\w)", told, text)


def retold(lines: list[str], known: frozenset[str] = frozenset()) -> list[str]:
    """The same docstring with descriptions where Napoleon expects them, and examples under their own title."""
    told: list[str] = []
    for title, body in sections(lines):
        if title:
            told += [title, "-" * len(title)]
        if title == "Examples":
            told += body
            continue
        text: list[str] = []
        for line in body:
            entry = ENTRY.fullmatch(line) if title else None
            # Napoleon takes several names for parameters alone.
            names = [] if entry is None else entry[1].split(", ") if title == "Attributes" else [entry[1]]
            text += [part for name in names for part in (name, f"    {entry[2]}")] if entry else [line]
        # What stands in backticks may go on in the next line.
        told += plain("\n".join(text), known).split("\n") if text else []
        if title and told[-1]:
            told.append("")
    return told
