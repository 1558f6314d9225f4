"""What every test shares: no leaks, the reference folders, modest Hypothesis runs."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# What a shell starts in the background ignores Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

hypothesis.settings.register_profile("default", deadline=None, max_examples=60, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, print_blob=True, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=3000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test comes first, so that of two processes none runs it alone in the end."""
    items.sort(key=lambda item: item.path.name != "test_backends.py")


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here ({variable} names another place)")
    return folder


@pytest.fixture(scope="session")
def corpus_dir() -> Path:
    """The folder of real TIFFs: ``INDEX.csv`` and ``files/``."""
    return _folder("LAZYTILES_CORPUS", SHARED / "corpus")


@pytest.fixture(scope="session")
def hostile_dir() -> Path:
    """The folder of damaged TIFFs and manifests: ``hostile.csv``, ``manifests.csv`` and what they name."""
    return _folder("LAZYTILES_HOSTILE", SHARED / "hostile")


# Owned by the system, the interpreter or a test tool for the whole run: no test can leak these.
# Matplotlib keeps the fonts open that it has drawn with, its own or the system's.
_STANDING_FILES = ("/dev/", "/proc/", "/sys/", "/usr/share/fonts/", sys.prefix, sys.base_prefix, np.__path__[0][:-6])
_STANDING_CHILDREN = (b"resource_tracker", b"forkserver", b"lazytiles.images.workers")
_STANDING_THREADS = ("lazytiles-shared", "pytest_timeout", "Profile", "IO loop", "TCP-Executor")


def _descriptors() -> Counter[str]:
    """What each open descriptor leads to, without the bounded pool of image files and the reader processes."""
    found: Counter[str] = Counter()
    workers = sys.modules.get("lazytiles.images.readers")
    standing = set() if workers is None else workers.readers.descriptors()
    for name in os.listdir("/proc/self/fd"):
        if int(name) in standing:
            continue
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if not target.startswith(_STANDING_FILES):
            found[target] += 1
    return found


def _threads() -> Counter[str]:
    return Counter(
        t.name for t in threading.enumerate() if not t.name.startswith(_STANDING_THREADS) and t not in _dask_threads()
    )


def _dask_threads() -> set[threading.Thread]:
    pool = getattr(sys.modules.get("dask.threaded"), "default_pool", None)
    return set(getattr(pool, "_threads", ()))


def _children() -> Counter[str]:
    found: Counter[str] = Counter()
    for task in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{task}/children").read_text().split()
        except OSError:
            continue
        for pid in pids:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if not any(word in command for word in _STANDING_CHILDREN):
                found[f"{pid} {command!r}"] += 1
    return found


def _close_shared_files() -> None:
    """Empty the library's pools of descriptors and memory, which are bounded and outlive a read on purpose."""
    buffers = sys.modules.get("lazytiles.buffers")
    if buffers is not None:
        buffers.shared_shelf.clear()
    files = sys.modules.get("lazytiles.images.files")
    if files is not None:
        files.pool.clear()


def _state() -> dict[str, Counter[str]]:
    return {"descriptor": _descriptors(), "thread": _threads(), "child process": _children()}


def _left(before: dict[str, Counter[str]]) -> list[str]:
    after = _state()
    return [f"{kind} {what}" for kind in after for what in after[kind] - before[kind]]


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Descriptors, threads and child processes are after a test what they were before it."""
    before = _state()
    yield
    if request.node.get_closest_marker("leaks"):
        return
    _close_shared_files()
    end = time.monotonic() + 3
    while (left := _left(before)) and time.monotonic() < end:
        gc.collect()
        _close_shared_files()  # what was collected may have come back to them
        time.sleep(0.02)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="session")
def zarr_threads(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Zarr keeps a few threads for the whole process; start them before leaks are counted."""
    with contextlib.suppress(ImportError):
        import zarr

        store = str(tmp_path_factory.mktemp("zarr") / "a.zarr")
        array = zarr.create_array(store, shape=(256, 1), chunks=(1, 1), dtype="u1")
        for _ in range(3):
            array[:] = np.ones((256, 1), "u1")
