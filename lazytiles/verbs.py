"""Verbs that arrays have and higher wings carry out, found by name, so that no low room names a high one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

_PLACES: dict[str, str] = {}


def offer(places: Mapping[str, str]) -> None:
    """Say where functions are, such as ``{"persist": "lazytiles.stores.saving"}``; none is imported yet."""
    _PLACES.update(places)


def verb(name: str) -> Callable[..., Any]:
    """The function of that name, its room imported now."""
    function: Callable[..., Any] = getattr(importlib.import_module(_PLACES[name]), name)
    return function
