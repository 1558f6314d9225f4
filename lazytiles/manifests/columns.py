"""Arrow columns to NumPy: text ids, whole numbers, and boxes by a strict grammar; nothing is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lazytiles.aliases import Fault, Int64s
from lazytiles.arrays import class_name, is_numeric

_HASHED_ROWS = 2**16
_WHOLE = "-?[0-9]{1,10}"
_DECIMAL = r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?(?:[eE][-+]?[0-9]{1,2})?"
_PLAIN_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$"
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


def names_of(columns: str | Sequence[str] | None) -> list[str]:
    """One column's name, several or none, as a list."""
    return [] if columns is None else [columns] if isinstance(columns, str) else list(columns)


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a kind of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def mask(array: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Arrow booleans as a NumPy mask; null is false."""
    filled = pc.fill_null(array, False)
    plain = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    return np.asarray(plain.to_numpy(zero_copy_only=False), bool)


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text and whole numbers as text; anything else is a `TypeError`."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise TypeError(f"{kind} is not text")
    return column if column.type == pa.string() else _undictionaried(column).cast(pa.string())


def _undictionaried(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def column_hashes(column: pd.Series) -> NDArray[np.uint64]:
    """A 64-bit hash of each cell of text, by pandas: texts of different hashes are different.

    >>> a, b, c = column_hashes(pd.Series(["x1", "x2", "x1"]))
    >>> bool(a == b), bool(a == c)
    (False, True)
    """
    hashes = np.empty(len(column), np.uint64)
    for start in range(0, len(column), _HASHED_ROWS):  # each piece is Python text for a moment
        piece = column.iloc[start : start + _HASHED_ROWS].to_numpy(object)
        hashes[start : start + len(piece)] = pd.util.hash_array(piece, categorize=False)
    return hashes


def count_distinct(values: NDArray[Any]) -> int:
    """How many different values there are; the array is sorted in place."""
    values.sort()
    return int((values[1:] != values[:-1]).sum()) + bool(len(values))


def first_of(codes: Int64s, count: int) -> Int64s:
    """The first row of each of `count` codes; 0 where there is none."""
    first = np.zeros(count, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first


def joint_codes(parts: Iterable[NDArray[Any]]) -> Int64s:
    """One number for each combination of the codes of a row, which are -1 or more, by first appearance."""
    joint: Any = 0
    for codes in parts:
        # Kept small, so that many columns cannot overflow.
        joint = pd.factorize(joint * (int(codes.max(initial=0)) + 2) + codes.astype(np.int64))[0].astype(np.int64)
    return np.asarray(joint)


def first_rows(values: NDArray[Any]) -> NDArray[np.int32]:
    """For each row the first row of the same value.

    >>> first_rows(np.array([7, 5, 7, 7, 5])).tolist()
    [0, 1, 0, 0, 1]
    """
    order = np.argsort(values, kind="stable")
    begins = np.ones(len(order), bool)
    inside = values[order]
    np.not_equal(inside[1:], inside[:-1], out=begins[1:])
    del inside
    # A manifest has fewer than 2^31 rows, or its bytes would not fit either.
    order = order.astype(np.int32)
    heads = np.flatnonzero(begins)
    first = np.empty(len(order), np.int32)
    first[order] = np.repeat(order[heads], np.diff(heads, append=len(order)))
    return first


def parse_boxes(
    text: pa.ChunkedArray | pa.Array, count: int | None = None, kind: Any = np.int64
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Boxes written as text, by a strict grammar over the whole column; nothing is evaluated.

    Four decimal integers (or six: None takes six where no cell has four) of at most ten ASCII digits, between commas,
    in round or square brackets; spaces are allowed, and nothing else. Of floats each number may have a fraction behind
    a point, and an exponent. A cell that is not a box holds 0, and has its place in the mask.

    >>> boxes, bad = parse_boxes(pa.array(["(0, 0, 32, 32)", "[-1,0,8,8]", "(0,0,0x20,1)"]))
    >>> boxes.tolist(), bad.tolist()
    ([[0, 0, 32, 32], [-1, 0, 8, 8], [0, 0, 0, 0]], [False, False, True])
    """
    if count is None:
        boxes, bad = parse_boxes(text, 4, kind)
        if bad.all():
            solid, wrong = parse_boxes(text, 6, kind)
            return (boxes, bad) if wrong.all() else (solid, wrong)
        return boxes, bad
    number = _WHOLE if kind is np.int64 else _DECIMAL
    numbers = ",".join(rf"[ \t]*(?P<n{k}>{number})[ \t]*" for k in range(count))
    found = pc.extract_regex(text, rf"^[ \t]*(?P<open>[\[(]){numbers}(?P<close>[\])])[ \t]*$")
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    round_ = pc.equal(found.field("open"), "(")
    matched = pc.equal(round_, pc.equal(found.field("close"), ")"))
    bad = ~mask(pc.and_(found.is_valid(), pc.fill_null(matched, False)))
    boxes = np.zeros((len(bad), count), kind)
    for k in range(count):
        digits = found.field(f"n{k}")
        # Cells that did not match are null or empty here.
        digits = pc.if_else(pa.array(~bad), digits, "0") if bad.any() else digits
        boxes[:, k] = digits.cast(pa.from_numpy_dtype(kind)).to_numpy(zero_copy_only=False)
    return boxes, bad


def box_numbers(column: pa.ChunkedArray, kind: type) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A column of whole numbers as int64 or finite ones as float64, 0 where a cell is none, and a mask of those."""
    column = _undictionaried(column)
    stored = column.type
    if is_text(stored):
        column = pc.utf8_trim(column, " ")
        good = mask(pc.match_substring_regex(column, f"^{_WHOLE if kind is np.int64 else _DECIMAL}$"))
        column = pc.if_else(pa.array(good), column, None)
    elif not (pa.types.is_floating(stored) or pa.types.is_integer(stored)):
        return np.zeros(len(column), kind), np.ones(len(column), bool)
    values = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy()
    bad = ~np.isfinite(values)
    if kind is np.int64:
        if pa.types.is_floating(stored):
            bad |= (np.floor(values) != values) | (np.abs(values) >= 1e15)
        values = np.clip(values, -(2.0**62), 2.0**62)
    return np.where(bad, 0, values).astype(kind), bad


def plain_numbers(column: pa.ChunkedArray, empty_too: bool) -> pa.ChunkedArray:
    """Text as int64 or float64 where every cell is a plain number, else as it was."""
    column = _undictionaried(column)
    if not is_text(column.type) or not len(column):
        return column
    for pattern, kind in ((_INTEGER, pa.int64()), (_PLAIN_NUMBER, pa.float64())):
        fits = pc.match_substring_regex(column, pattern)
        if empty_too and kind == pa.float64():
            fits = pc.or_(fits, pc.equal(column, ""))
        if pc.all(fits, skip_nulls=False).as_py():
            return pc.if_else(pc.equal(column, ""), None, column).cast(kind)
    return column


def to_numbers(column: pd.Series) -> NDArray[np.generic]:
    """A column as a plain numeric array; NaN where a cell is no number."""
    kind = column.dtype
    if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
        if pd.api.types.is_datetime64_any_dtype(kind) or pd.api.types.is_timedelta64_dtype(kind):
            return np.full(len(column), np.nan)
        column = pd.to_numeric(column.astype(object).where(column.notna(), None), errors="coerce")
    if column.isna().any() or pd.api.types.is_object_dtype(column.dtype):
        return np.asarray(column.to_numpy(np.float64, na_value=np.nan))
    values = np.asarray(column)
    return values.astype(np.int64) if values.dtype == bool else values


def is_blank(column: pd.Series) -> NDArray[np.bool_]:
    """Which cells hold nothing: missing ones, NaN, and text without a letter."""
    missing: NDArray[np.bool_] = column.isna().to_numpy(bool)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return missing
    blank: NDArray[np.bool_] = np.array([isinstance(value, str) and not value.strip() for value in column], bool)
    return missing | blank


def label_column(
    column: pd.Series, used: NDArray[np.bool_], own: list[Any] | None, classes: list[Any] | None, *, alone: bool
) -> tuple[pd.Categorical | Int64s | None, list[Fault]]:
    """A label column that holds names, as categories whose codes are the class numbers; and what `used` rows lack.

    The classes are those that the user names, else the values of a categorical column in their own order, else the
    names sorted. Unless it stands `alone`, a column of True and False becomes the numbers 1 and 0; None says that it is
    to be read as numbers.

    >>> labels, _ = label_column(pd.Series(["dog", "cat"]), np.ones(2, bool), None, None, alone=True)
    >>> labels.codes.tolist(), labels.categories.to_list()
    ([1, 0], ['cat', 'dog'])
    """
    if classes is None and (is_numeric(column) or column.dtype.kind in "mM"):
        return None, []
    codes, distinct = pd.factorize(column)
    names = [class_name(value) for value in distinct]
    blank = np.array([not name.strip() for name in names] + [True])
    empty = blank[codes]
    present = [names[k] for k in np.unique(codes[used & ~empty])]
    truth = bool(present) and {name.lower() for name in present} <= {"true", "false"}
    if truth and {class_name(value) for value in classes or ()} <= {"True", "False"}:
        order: list[Any] = classes or ["False", "True"]
        names = [name.capitalize() for name in names]
    elif classes is None and (any(map(is_like_number, present)) or not present):
        return None, []
    else:
        kept = [value for value in own or () if class_name(value).strip()]
        order = classes or list(dict.fromkeys(map(class_name, kept))) or sorted(present)
    index = {class_name(value): k for k, value in enumerate(order)}
    found = np.array([index.get(name, -1) for name in names] + [-1])[codes]
    is_spaced = [name != name.strip() and (classes is None or name not in index) for name in names]
    spaced = np.array([*is_spaced, False])[codes]
    unknown = used & (found < 0) & ~empty & ~spaced
    shown = ", ".join(repr(value) for value in order[:10]) + (", …" if len(order) > 10 else "")
    faults = [
        ("empty", used & empty & (found < 0), "is empty; write what it is, or leave the row out"),
        ("name with spaces", used & spaced & ~empty, "has spaces around it; take them away"),
        ("unknown class", unknown, f"is none of the classes {shown}"),
    ]
    if truth and classes is None and not alone:
        return found.astype(np.int64), faults
    return pd.Categorical.from_codes(found.astype(np.int64), categories=pd.Index(order)), faults


def labels_of_table(
    table: pd.DataFrame, target: str | Sequence[str] | None
) -> tuple[NDArray[Any] | None, list[Any] | None]:
    """The labels (n,) or (n, k) in a table that `read_manifest` gives, and the classes whose numbers they are.

    None where there is no column, or nothing in it; no classes where no column holds names.
    """
    columns = names_of(target)
    if not columns or (target == "target" and "target" not in table):
        return None, None
    chosen, classes = table[columns], None
    for name in columns:
        if isinstance(chosen[name].dtype, pd.CategoricalDtype):
            classes = chosen[name].cat.categories.to_list()
            chosen = chosen.assign(**{name: chosen[name].cat.codes.to_numpy(np.int64)})
        elif not pd.api.types.is_numeric_dtype(chosen[name].dtype):  # a column that a path names, too
            chosen = chosen.assign(**{name: to_numbers(chosen[name])})
    labels = chosen.to_numpy()
    if labels.dtype.kind == "f" and len(labels) and np.isnan(labels).all():
        return None, None
    return labels[:, 0] if isinstance(target, str) else labels, classes


def is_like_number(text: str) -> bool:
    """Whether a text is a number, or was meant as one: with a comma, in hexadecimal, ``nan``, or without letters."""
    for read in (float, partial(int, base=0), complex):
        try:
            read(text.replace(",", "."))
        except ValueError:
            continue
        return read is not complex or any(character.isdigit() for character in text)
    return not any(character.isalpha() for character in text)


def number_fault(value: object) -> str:
    """What is wrong with a cell that is no finite number, in words."""
    if value is None or value is pd.NA or value != value or (isinstance(value, str) and not value.strip()):
        return "is empty or NaN, not a finite number"
    hint = "; a decimal comma?" if isinstance(value, str) and "," in value else ""
    return f"{shortened(str(value))!r} is not a finite number{hint}"


def shortened(text: str) -> str:
    """A cell as it is shown: its first 60 characters."""
    return text if len(text) <= 60 else f"{text[:60]}… ({len(text)} characters)"
