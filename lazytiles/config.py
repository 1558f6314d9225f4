"""What a user may set (`configure`) and what the library counts (`counters`)."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from lazytiles.errors import LimitError

MIB = 2**20
_MANY_CORES = 8  # from which on processes read instead of threads


def usable_cpus(root: str = "/") -> int:
    """How many processors this process may keep busy: those that it may run on, and its container's quota of time.

    Quotas are those of Linux control groups, versions 1 and 2, as ``proc`` and ``sys`` under `root` say them.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for line in _text(f"{root}proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (f"cgroup/{controllers}", "cgroup/cpu") if controllers else ("cgroup", "cgroup/unified"):
            # A quota of any group above holds, too. In a container its own group is often the root that it sees.
            parts = [part for part in group.split("/") if part not in ("", "..")]
            for depth in range(len(parts) + 1):
                quota = _quota("/".join([f"{root}sys/fs", mount, *parts[:depth]]), is_first=bool(controllers))
                cpus = min(cpus, math.ceil(quota)) if quota > 0 else cpus
    return max(1, cpus)


def _quota(folder: str, *, is_first: bool) -> float:
    """Processors of a control group of version 1 or 2; 0 where it is not limited."""
    if is_first:
        words = [_text(f"{folder}/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    else:
        words = _text(f"{folder}/cpu.max").split()
    with suppress(ValueError, ZeroDivisionError):
        quota, period = map(int, words)
        return max(0.0, quota / period)
    return 0.0


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(65536)
    except (OSError, ValueError):
        return ""


_WORDS: dict[str, dict[str, Any]] = {
    "mmap": {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False},
    "readers": {"auto": "auto"},
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The limits in force; see `configure` for their meaning and units."""

    cache_bytes: int = 256 * MIB
    threads: int = field(default_factory=usable_cpus)
    max_segment_bytes: int = 256 * MIB
    max_window_bytes: int = 4096 * MIB
    open_files: int = 64
    mmap: bool = True
    readers: int = "auto"  # type: ignore[assignment]  # the number that it stands for is set below

    def __post_init__(self) -> None:
        if str(self.readers) == "auto":
            n = usable_cpus()
            object.__setattr__(self, "readers", n // 4 if n >= _MANY_CORES else 0)
        for name in ("cache_bytes", "threads", "max_segment_bytes", "max_window_bytes", "open_files", "readers"):
            value, least = getattr(self, name), int(name not in ("cache_bytes", "readers"))
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise LimitError(f"{name} must be an integer of at least {least}, not {value!r}")
            object.__setattr__(self, name, int(value))
        if not isinstance(self.mmap, bool):
            raise LimitError(f"mmap must be True or False, not {self.mmap!r}")


def _from_environment() -> Settings:
    given: dict[str, Any] = {}
    for name in (each.name for each in fields(Settings)):
        text = os.environ.get(f"LAZYTILES_{name.upper()}")
        if text is None:
            continue
        words = _WORDS.get(name, {})
        try:
            given[name] = words[word] if (word := text.strip().lower()) in words or name == "mmap" else int(text)
        except (KeyError, ValueError):
            wanted = "1 or 0, true or false" if name == "mmap" else "an integer"
            raise LimitError(f"environment variable LAZYTILES_{name.upper()}={text!r} is not {wanted}") from None
    return Settings(**given)


_settings = _from_environment()
when_configured: list[Callable[[], None]] = []
"""What holds more than new settings may allow, to be called when they are set."""
_counts = {"segments_decoded": 0, "bytes_read": 0, "cache_hits": 0, "files_opened": 0, "batches_alive": 0}
_lock = threading.RLock()  # re-entered when a collection inside it frees a batch
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.RLock()))


def configure(
    *,
    cache_bytes: int | None = None,
    threads: int | None = None,
    max_segment_bytes: int | None = None,
    max_window_bytes: int | None = None,
    open_files: int | None = None,
    mmap: bool | None = None,
    readers: int | Literal["auto"] | None = None,
) -> Settings:
    """Set limits for this process and return all that are in force; what is not given stays.

    Each can also be set before start by an environment variable, such as ``LAZYTILES_CACHE_BYTES``.

    Parameters
    ----------
    cache_bytes : bytes of decoded segments kept for later reads; 0 keeps none
    threads : threads that decode together, the calling one included; by default as many as there are processors
        that the process may run on, or that its container has a quota for
    max_segment_bytes : bytes of one decoded segment; a page with larger ones is refused
    max_window_bytes : bytes of one read (the array that it returns) or batch of a flow; a larger one is refused
    open_files : descriptors kept open; a quarter of the process's limit is never exceeded
    mmap : whether uncompressed pages are read through a memory map
    readers : processes that decode for reads of many segments; ``"auto"`` is 0 below 8 cores, else a quarter of them

    Raises
    ------
    LimitError : a value of the wrong kind or out of range

    >>> before = configure()
    >>> configure(threads=2).threads
    2
    >>> configure(threads=before.threads) == before
    True
    """
    global _settings
    given: dict[str, Any] = {
        "cache_bytes": cache_bytes,
        "threads": threads,
        "max_segment_bytes": max_segment_bytes,
        "max_window_bytes": max_window_bytes,
        "open_files": open_files,
        "mmap": mmap,
        "readers": readers,
    }
    with _lock:
        _settings = replace(_settings, **{k: v for k, v in given.items() if v is not None})
        in_force = _settings
    for adapt in when_configured:
        adapt()
    return in_force


def settings() -> Settings:
    """The settings in force."""
    return _settings


def count(name: str, amount: int = 1) -> None:
    """Add to a counter."""
    with _lock:
        _counts[name] += amount


def counters() -> Mapping[str, int]:
    """Counts of what this process has read and decoded so far, as a read-only mapping.

    Returns
    -------
    mapping with ``segments_decoded`` (segments), ``bytes_read`` (bytes taken from image files),
    ``cache_hits`` (segments), ``files_opened`` (descriptors) and ``batches_alive`` (batches of
    flows that are being finished, wait, or are held by their consumer; what flows have read ahead of
    that is bounded by their ``readahead_bytes`` instead)

    >>> sorted(counters())
    ['batches_alive', 'bytes_read', 'cache_hits', 'files_opened', 'segments_decoded']
    """
    with _lock:
        return MappingProxyType(dict(_counts))


def check_limit(nbytes: int, what: str, *named: object) -> None:
    """Refuse a read whose array would exceed `max_window_bytes`; `what` is its name, with a ``{}`` for each `named`."""
    limit = settings().max_window_bytes
    if nbytes > limit:
        raise LimitError(
            f"{what.format(*named)} is {nbytes:,} bytes, max_window_bytes is {limit:,}; read less at once, or raise "
            "it with lazytiles.configure(max_window_bytes=...)"
        )


def check_chunk(where: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse chunks, to be written or read, of more bytes than `max_segment_bytes`."""
    nbytes, limit = math.prod(shape) * dtype.itemsize, settings().max_segment_bytes
    if nbytes > limit:
        raise LimitError(
            f"{where}: one chunk of shape {shape} is {nbytes} bytes decoded, max_segment_bytes is {limit}; write "
            "smaller chunks, or raise it with lazytiles.configure(max_segment_bytes=...)"
        )
