"""The XML that scanners and microscopes write into a TIFF, read element by element, in bounded time and memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any
from xml.parsers import expat

from lazytiles.errors import RegionError

MOST_XML = 48 * 2**20  # characters
MOST_ELEMENTS = 2**20
_STEP = 2**16

Element = tuple[str, dict[str, str], str]
"""Name without its namespace, attributes, and text where it was asked for."""


def elements(where: object, text: str, names: Collection[str], texts: Collection[str] = ()) -> Iterator[Element]:
    """The elements of some names, in the order in which they begin; those whose text is wanted when they end.

    Raises
    ------
    RegionError : no sound XML, one that declares entities (they may stand for gigabytes), or a huge one

    >>> list(elements("a.tif", "<a><o:b k='1'/><c>hello</c></a>", ["b"], ["c"]))
    [('b', {'k': '1'}, ''), ('c', {}, 'hello')]
    """
    if len(text) > MOST_XML:
        raise RegionError(f"{where}: its XML is {len(text)} characters; at most {MOST_XML} are read")
    found: list[Element] = []
    open_texts: list[tuple[dict[str, str], list[str]]] = []
    count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > MOST_ELEMENTS:
            raise RegionError(f"{where}: its XML has more than {MOST_ELEMENTS} elements")
        name = name.rpartition(":")[2]
        if name in names:
            found.append((name, attributes, ""))
        elif name in texts:
            open_texts.append((attributes, []))

    def end(name: str) -> None:
        name = name.rpartition(":")[2]
        if name in texts and open_texts:
            attributes, parts = open_texts.pop()
            found.append((name, attributes, "".join(parts).strip()))

    def said(data: str) -> None:
        if open_texts:
            open_texts[-1][1].append(data)

    def refuse(*_: Any) -> None:
        raise RegionError(f"{where}: its XML declares entities; refused")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, said
    parser.EntityDeclHandler = refuse
    try:
        for at in range(0, len(text), _STEP):
            parser.Parse(text[at : at + _STEP], False)  # its only spelling
            yield from found
            found.clear()
        parser.Parse("", True)
    except expat.ExpatError as error:
        raise RegionError(f"{where}: its XML is damaged: {error}") from error
    yield from found
