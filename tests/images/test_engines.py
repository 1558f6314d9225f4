"""Every way to carry out a plan gives what one job after the other gives: the same pixels, the same failures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

import lazytiles as lt
from lazytiles.buffers import Placed, shared_shelf
from lazytiles.images.jobs import Jobs
from lazytiles.images.mapped import slice_windows
from lazytiles.images.plan import Plan, Windows, planned
from lazytiles.images.reader import carry_out
from lazytiles.images.readers import readers
from tests.limits import within_limits
from tests.made import LAYOUTS, pixels, write

ENGINES: dict[str, dict[str, Any]] = {
    "one thread": {"threads": 1},
    "threads": {"threads": 4},
    "aside": {"threads": 3, "aside": True},
    "readers": {"threads": 2, "readers": 2},
    "readers aside": {"threads": 2, "readers": 2, "aside": True},
}


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[lt.Region]]:
    """Files of all layouts, two of which have a damaged segment."""
    folder, opened = tmp_path_factory.mktemp("engines"), []
    for k, layout in enumerate((*LAYOUTS, LAYOUTS[1], LAYOUTS[0])):
        path = write(folder / f"{k}.tif", pixels((70, 55, 3), seed=k), **layout)
        region = lt.open_region(path)
        if k >= len(LAYOUTS):
            page = region.pages[0]
            data = bytearray(path.read_bytes())
            for segment in (0, len(page.offsets) // 2):
                start, stop = int(page.offsets[segment]), int(page.offsets[segment] + page.counts[segment])
                data[start:stop] = b"\xff" * (stop - start)
            path.write_bytes(data)
            region = lt.open_region(path)
        opened.append(region)
    yield opened
    readers.close()


def one_by_one(plan: Plan, targets: Any) -> dict[int, list[str]]:
    """The definition: what is sliced, then each job in its turn; of the windows that fail, all that is wrong."""
    found = [slice_windows(plan.windows, plan.raw.tolist(), targets)[1]]
    jobs = Jobs.of(plan, targets)
    found += [jobs.do([number]).failed for number in range(len(plan.jobs))]
    failed: dict[int, list[str]] = {}
    for each in found:
        for window, error in each.items():
            failed.setdefault(window, []).append(f"{type(error).__name__}: {error}")
    return failed


def memory(windows: Windows) -> tuple[list[np.ndarray], Placed]:
    """Arrays for the windows, one behind the other in shared memory."""
    shapes = [(int(y1 - y0), int(x1 - x0), 3) for y0, x0, y1, x1 in windows.boxes]
    sizes = [int(np.prod(shape)) for shape in shapes]
    flat = shared_shelf.empty((sum(sizes) + 1,), np.dtype(np.uint8))
    flat[:] = 7
    place, begins = shared_shelf.place(flat), np.cumsum([0, *sizes])[:-1]
    targets = [np.ndarray(shape, np.uint8, flat, int(begin)) for shape, begin in zip(shapes, begins, strict=True)]
    where = [[0, place.offset + int(begin), *shape] for shape, begin in zip(shapes, begins, strict=True)]
    return targets, Placed((place.memory,), np.array(where, np.int64).reshape(-1, 5))


@pytest.mark.parametrize("engine", list(ENGINES))
@examples(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 69), st.integers(0, 54), st.integers(1, 40), st.integers(1, 40)),
        min_size=12,
        max_size=40,
    ),
    n=st.integers(1, 5),
)
def test_an_engine_is_as_one_job_after_the_other(
    engine: str, boxes: list[tuple[int, ...]], n: int, regions: list[lt.Region]
) -> None:
    pages = [region.pages[0] for region in regions]
    where = np.array([[y, x, min(y + h, 70), min(x + w, 55)] for _, y, x, h, w in boxes], np.int64)
    windows = Windows(pages, np.array([box[0] for box in boxes]), where)
    batch = np.arange(len(boxes)) * n // len(boxes)
    with within_limits(cache_bytes=0):
        plan = planned(windows, batch)
        expected, _ = memory(windows)
        failed = one_by_one(plan, expected)
        targets, placed = memory(windows)
        end = time.monotonic() + 60
        while "readers" in engine and not (readers.workers and all(one.is_ready for one in readers.workers)):
            readers.give_back(readers.lease(2))
            assert time.monotonic() < end, "the workers do not start"
        seen: dict[int, Any] = {}
        for number, wrong in carry_out(plan, targets, placed=placed, **ENGINES[engine]):
            assert number not in seen
            seen[number] = wrong
    assert sorted(seen) == sorted(set(batch.tolist()))
    for number, wrong in seen.items():
        members = np.flatnonzero(batch == number).tolist()
        assert bool(wrong) == any(window in failed for window in members)
        for window, error in wrong.items():
            assert f"{type(error).__name__}: {error}" in failed[window]
        for window in members if not wrong else ():
            np.testing.assert_array_equal(targets[window], expected[window])
