"""The chain of a TIFF's directories: pages of one form are parsed once, the others differ in where their data lies.

A stack of 100,000 planes has as many directories, alike but for a few numbers. Of each, the entries are compared as
bytes (TIFF 6.0 section 2; BigTIFF); what decides how a page is decoded is parsed once for all pages that agree in it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, Literal

import tifffile

from lazytiles.errors import LimitError, RegionError
from lazytiles.images.files import FileKey, pool
from lazytiles.images.page import Page, facts, page_at, twin_page

MOST_PAGES = 2**18
MOST_FORMS = 4096
_BLOCK = 8192  # bytes read at once: directories of small pages lie close together
_LONGEST = 2**16  # bytes of a value that is compared; a longer one is told by where it lies
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WORDS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_OFFSETS, _COUNTS, _SUBIFDS, _TEXT = (324, 273), (325, 279), 330, 270
# What may differ between pages that are decoded alike: where data lies, what people wrote about it, and private tags
# but those of layout, place, nodata and codecs.
_FREE = frozenset({269, 270, 273, 279, 285, 297, 305, 306, 315, 316, 324, 325, 330, 700})
_KEPT = frozenset({*_OFFSETS, *_COUNTS, _SUBIFDS, _TEXT})
_PRIVATE = 32768
_TELLING = frozenset({*range(32995, 32999), 33550, 33922, 34264, *range(34735, 34738), 42112, 42113, 50674})

Entry = tuple[int, int, bytes]  # type, count, field


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """One directory of a file."""

    number: str  # its place, for messages and for `page=`
    model: tifffile.TiffPage  # a parsed page of the same form, itself where it is the first of it
    entries: dict[int, Entry] | None = None  # its own by their tags, as far as they may differ; None of the model

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self.model.imagelength, self.model.imagewidth

    @property
    def kind(self) -> tuple[Any, ...]:
        """In what pages of one image agree: dtype, samples, and whether they are colours or a table's indices."""
        page = self.model
        return page.dtype, page.bitspersample, page.samplesperpixel, page.photometric in (2, 6), page.photometric == 3

    @property
    def is_reduced(self) -> bool:
        """Whether it is a smaller version of another image."""
        return bool(self.model.subfiletype & 1)

    @property
    def is_mask(self) -> bool:
        """Whether it says which pixels of another image count."""
        return bool(self.model.subfiletype & 4)


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """What of a directory's bytes the next must agree in to be one of the same form."""

    raw: bytes  # its entries
    kept: tuple[tuple[int, int], ...]  # spans of bytes that are equal
    far: tuple[tuple[int, bytes], ...]  # where the offset of a value stands, and the value
    free: tuple[tuple[int, int, int, int], ...]  # the entries that differ: tag, type, count, where the field stands
    model: Any = None  # the page


class Directories:
    """Reads directories of one file, each form once."""

    def __init__(self, key: FileKey, tiff: tifffile.TiffFile) -> None:
        self.key, self.tiff = key, tiff
        self.order = tiff.byteorder
        self._endian: Literal["little", "big"] = "little" if self.order == "<" else "big"
        self._last: _Shape | None = None
        self.is_big = bool(tiff.tiff.is_bigtiff)
        self._block = (0, b"")
        self._models: dict[bytes, tifffile.TiffPage] = {}
        self._parsed = 0
        self._facts: dict[tuple[int, int], Page] = {}
        # Of each page of the chain the masks of its image, by their extents: number and offset.
        self._masks: list[dict[tuple[int, int], tuple[int, int]]] = []
        self.is_lsm = bool(page_at(tiff, 0).is_lsm)

    def chain(self) -> list[Leaf]:
        """All pages of the main chain, in order; a chain that turns back, leaves the file or is too long is refused."""
        if self.tiff.tiff.is_ndpi:  # its 64-bit offsets are tifffile's to find
            pages = [page_at(self.tiff, k) for k in range(len(self.tiff.pages))]
            return [self._linked(Leaf(str(k), page), page.offset) for k, page in enumerate(pages)]
        leaves: list[Leaf] = []
        seen = set[int]()
        offset = page_at(self.tiff, 0).offset
        while offset:
            if offset in seen:
                raise RegionError(f"{self.key.path}: page {len(leaves)} of its chain is one that came before")
            if len(leaves) >= MOST_PAGES:
                raise LimitError(f"{self.key.path}: has more than {MOST_PAGES} pages; at most so many are read")
            seen.add(offset)
            leaf, after = self._leaf(offset, str(len(leaves)), (len(leaves),))
            leaves.append(self._linked(leaf, offset))
            offset = after
        return leaves

    def _linked(self, leaf: Leaf, offset: int) -> Leaf:
        """A leaf of the chain, entered under its image: masks and overviews follow the full image that they are of."""
        if not self._masks or not (leaf.is_reduced or leaf.is_mask):
            self._masks.append({})
        else:
            self._masks.append(self._masks[-1])
            if leaf.is_mask:
                self._masks[-1].setdefault(leaf.shape, (len(self._masks) - 1, offset))
        return leaf

    def below(self, leaf: Leaf) -> list[Leaf]:
        """The pages that a page has below it (SubIFDs), in its order."""
        if leaf.entries is None:
            offsets: Any = leaf.model.subifds or ()
        else:
            offsets = self._values(leaf.entries[_SUBIFDS]) if _SUBIFDS in leaf.entries else ()
        found = enumerate(offset for offset in offsets[:64] if offset)
        index = int(leaf.number) if leaf.number.isdecimal() else 0
        return [self._leaf(offset, f"{leaf.number} below {k}", (index, k))[0] for k, offset in found]

    def text(self, leaf: Leaf) -> str:
        """Its description, empty where it has none."""
        if leaf.entries is None:
            return str(leaf.model.description)
        _, count, field = leaf.entries.get(_TEXT, (2, 0, b""))
        return self._content(1, count, field).rstrip(b"\0").decode("utf-8", "replace")

    def page(self, leaf: Leaf, number: str | None = None, head: Leaf | None = None) -> Page:
        """What reading a page needs, checked; see `lazytiles.images.page.facts`.

        Of a page like another one that was asked for before, nothing is parsed any more: the file may be closed.
        """
        above = None if head is None or head is leaf else head.model
        name = id(leaf.model), id(above)
        number, model = number or leaf.number, self._facts.get(name)
        if model is None:
            model = self._facts[name] = facts(self.key, leaf.model, number, head=above)
        mask_at = self._masks[int(leaf.number)].get(leaf.shape) if leaf.number.isdecimal() else None
        if (model.number, model.mask_at) != (number, mask_at):
            model = replace(model, number=number, mask_at=mask_at)
        if leaf.entries is None:
            return model
        stored = [
            next((self._values(leaf.entries[code]) for code in codes if code in leaf.entries), ())
            for codes in (_OFFSETS, _COUNTS)
        ]
        return twin_page(model, leaf.model, *stored)

    def _leaf(self, offset: int, number: str, index: tuple[int, ...]) -> tuple[Leaf, int]:
        """The page at an offset, and the offset of the next."""
        head, size, width = (8, 20, 8) if self.is_big else (2, 12, 4)
        count = int.from_bytes(self._at(offset, head), self._endian)
        if not 0 < count <= 4096:
            raise RegionError(f"{self.key.path} page {number}: {count} tags in a directory make no sense")
        raw = self._at(offset + head, count * size + width)
        after, shape = int.from_bytes(raw[-width:], self._endian), self._last
        if (
            shape is None
            or len(raw) - width != len(shape.raw)
            or any(raw[a:b] != shape.raw[a:b] for a, b in shape.kept)
            or any(self._at(int.from_bytes(raw[at : at + width], self._endian), len(v)) != v for at, v in shape.far)
        ):
            shape, form = self._shape(raw[:-width], size, width)
            model = self._models.get(form)
            if model is None:
                self._parsed += 1
                if self._parsed > MOST_FORMS:
                    said = f"has pages of more than {MOST_FORMS} forms; at most so many are read"
                    raise LimitError(f"{self.key.path}: {said}")
                self.tiff.filehandle.seek(offset)
                model = tifffile.TiffPage(self.tiff, index)
                if not (model.jpegheader or model.compression in {2, 3, 4, 6}):  # their tables are tifffile's to mend
                    self._models[form] = model
                    self._last = replace(shape, model=model)
                return Leaf(number, model), after
            shape = self._last = replace(shape, model=model)
        own = {code: (kind, n, raw[at : at + width]) for code, kind, n, at in shape.free}
        return Leaf(number, shape.model, own), after

    def _shape(self, raw: bytes, size: int, width: int) -> tuple[_Shape, bytes]:
        """Which bytes of a directory tell how its page is decoded, and all of them that its values are."""
        free, far, kept, form, start = [], [], [], [], 0
        layout = "HHQ" if self.is_big else "HHI"
        for at in range(0, len(raw), size):
            code, kind, n = struct.unpack_from(self.order + layout, raw, at)
            field = at + size - width
            is_free = code in _FREE or (code >= _PRIVATE and code not in _TELLING)
            is_pair = code == 258 and n == 2 and self.is_lsm  # an offset, though two of 16 bits would fit in
            nbytes = _SIZES.get(kind, 1) * n
            form.append(raw[at:field])
            if not is_free:
                content = self._content(kind, n, raw[field : field + width], is_far=is_pair)
                form.append(content)
                if nbytes > _LONGEST or (nbytes <= width and not is_pair):
                    continue
                far.append((field, content))
            kept.append((start, field))
            start = field + width
            if code in _KEPT:
                free.append((code, kind, n, field))
        kept.append((start, len(raw)))
        return _Shape(raw, tuple(kept), tuple(far), tuple(free)), b"".join(form)

    def _content(self, kind: int, count: int, field: bytes, *, is_far: bool = False, longest: int = _LONGEST) -> bytes:
        """The bytes of a value; of one of more than `longest` bytes, where it lies."""
        nbytes = _SIZES.get(kind, 1) * count
        if nbytes <= len(field) and not is_far:
            return field[:nbytes]
        return self._at(int.from_bytes(field, self._endian), nbytes) if nbytes <= longest else field

    def _values(self, entry: Entry) -> tuple[int, ...]:
        kind, count, field = entry
        if kind not in _WORDS or _SIZES[kind] * count > self.key.size:
            raise RegionError(f"{self.key.path}: a table of {count} numbers of type {kind} is damaged")
        data = self._content(kind, count, field, longest=self.key.size)
        return struct.unpack(f"{self.order}{count}{_WORDS[kind]}", data)

    def _at(self, start: int, nbytes: int) -> bytes:
        """Some bytes of the file."""
        begin, data = self._block
        if not begin <= start <= start + nbytes <= begin + len(data):
            if start + nbytes > self.key.size:
                raise RegionError(f"{self.key.path}: a directory leaves the file, or is cut off")
            size = min(max(nbytes, _BLOCK), self.key.size - start)
            begin, data = self._block = start, bytes(pool.read(self.key, start, size))
        return data[start - begin : start - begin + nbytes]
