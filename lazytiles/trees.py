"""Nested tuples, lists and dicts with arrays or sources at their ends: one walk for all who need one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

# A source, or tuples, lists and dicts of sources; a batch has the same form with arrays as leaves.
Structure: TypeAlias = Any
Path: TypeAlias = tuple[Any, ...]  # the keys and positions that lead to a leaf


def walk(data: Structure, path: Path = ()) -> list[tuple[Path, Any]]:
    """What stands at the ends, in order, each with its path.

    >>> walk(({"a": 1}, [2]))
    [((0, 'a'), 1), ((1, 0), 2)]
    """
    if not isinstance(data, Mapping | tuple | list):
        return [(path, data)]
    parts = data.items() if isinstance(data, Mapping) else enumerate(data)
    return [pair for key, part in parts for pair in walk(part, (*path, key))]


def leaves(data: Structure) -> list[Any]:
    """What stands at the ends, in order.

    >>> leaves(({"a": 1, "b": 2}, [3]))
    [1, 2, 3]
    """
    return [leaf for _, leaf in walk(data)]


def mapped(
    data: Structure,
    change: Callable[[Path, Any], Any],
    *,
    as_tuples: bool = False,
    is_end: Callable[[Any], bool] = lambda data: False,
    path: Path = (),
) -> Structure:
    """The same form with what `change` makes of each path and what stands there.

    With `as_tuples` lists, and tuples with names, become plain tuples; `is_end` says what nested is itself an end.

    >>> mapped(({"a": 1}, [2]), lambda path, value: 10 * value)
    ({'a': 10}, [20])
    """
    if is_end(data) or not isinstance(data, Mapping | tuple | list):
        return change(path, data)
    items = data.items() if isinstance(data, Mapping) else enumerate(data)
    parts = {key: mapped(part, change, as_tuples=as_tuples, is_end=is_end, path=(*path, key)) for key, part in items}
    if isinstance(data, Mapping):
        return parts
    if as_tuples:
        return tuple(parts.values())
    return type(data)(*parts.values()) if hasattr(data, "_fields") else type(data)(parts.values())


def rebuilt(form: Structure, values: Iterator[Any]) -> Structure:
    """The form with the next values at its ends.

    >>> rebuilt(({"a": 1, "b": 2}, [3]), iter("xyz"))
    ({'a': 'x', 'b': 'y'}, ['z'])
    """
    return mapped(form, lambda path, _: next(values))


def words(path: Path, name: str) -> str:
    """How a message calls what stands at a path.

    >>> words((0, "a"), "x")
    "x[0]['a']"
    """
    return name + "".join(f"[{key!r}]" for key in path)
