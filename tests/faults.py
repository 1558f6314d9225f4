"""Faults of the machine, one by one: ``python tests/faults.py [--every N] [--kills N] [--only WORD]``.

Each try runs one piece of work in a process of its own, with one fault in it: the k-th call of the system fails, an
exception comes at the k-th line of the library, the disk or the table of descriptors is full, or the process is
killed. Then the same process or a new one looks: it must find the old state, the new one, or a clear error; the work
must end rightly with `resume`; and no lock, thread, descriptor or leftover file may stay.

The process that forks the others only imports: it never starts a thread.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import gc
import io
import json
import linecache
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import lazytiles as lt
from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.errors import LazyTilesError, StoreError
from lazytiles.predictions.regions import predict
from lazytiles.stores import saving as store
from lazytiles.stores import sink
from lazytiles.stores.journal import StoreLock
from lazytiles.stores.patch_sets import create_dataset
from lazytiles.stores.store_array import StoreArray
from lazytiles.stores.writers import StoreWriter
from lazytiles.training.flow import BatchFlow

PACKAGE = str(Path(lt.__file__).parent)
LIBRARIES = {"h5": "h5py", "zarr": "zarr", "b2nd": "blosc2", "npy": "numpy", "tfrecord": "google_crc32c"}
CALLS = (
    "open", "write", "writelines", "truncate", "fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir",
    "pread", "pwrite", "read", "readinto", "flock", "fstat", "stat", "listdir", "scandir", "link", "seek",
)  # fmt: skip
HUNG_S = 40
SHAPE = (6, 5, 3)


def rows(seed: int, count: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 90, (count, *SHAPE), dtype="u1")


@dataclass(frozen=True)
class Work:
    """One piece of work: how the old state is made, how it is done, what is found, and what may lie there then."""

    name: str
    old: Callable[[Path], object]
    do: Callable[[Path, bool], object]
    find: Callable[[Path], str]
    names: tuple[str, ...] | None = None


def state_of(path: Path, old: np.ndarray | None, new: np.ndarray) -> str:
    """What a store holds: ``old``, ``new``, the error that it is refused with, or ``wrong``."""
    try:
        with contextlib.closing(StoreArray(path)) as found:
            held = found[:]
    except StoreError as error:
        return f"refused {error}"
    if old is not None and np.array_equal(held, old):
        return "old"
    return "new" if np.array_equal(held, new) else "wrong"


def exports(suffix: str, masks: bool, replace: bool) -> Work:
    def tiles(seed: int) -> MultiSourceArray:
        labels = MultiSourceArray([rows(seed + 10)[..., 0]]) if masks else np.arange(30) * seed
        return MultiSourceArray([rows(seed)], labels=labels)

    def find(folder: Path) -> str:
        state = state_of(folder / f"a.{suffix}", rows(1) if replace else None, rows(2))
        if state in ("old", "new"):
            try:
                labels = np.asarray(lt.open_store(folder / f"a.{suffix}").labels[:])
            except StoreError as error:
                return f"refused {error}"
            right = np.asarray(tiles(1 if state == "old" else 2).labels[:])
            return state if np.array_equal(labels, right) else "wrong"
        return state

    def old(folder: Path) -> None:
        if replace:
            store.export(tiles(1), folder / f"a.{suffix}", chunk=4)

    def do(folder: Path, resume: bool) -> None:
        store.export(tiles(2), folder / f"a.{suffix}", chunk=4, overwrite=replace, resume=resume, sync=True)

    return Work(f"export {suffix}{' masks' * masks}{' replace' * replace}", old, do, find)


def writers(suffix: str, append: bool) -> Work:
    def old(folder: Path) -> None:
        if append:
            with StoreWriter(folder / f"a.{suffix}", chunk=4) as writer:
                writer.write(rows(1, 10))

    def do(folder: Path, resume: bool) -> None:
        with StoreWriter(folder / f"a.{suffix}", mode="a" if append else "w", chunk=4, resume=resume) as writer:
            start = len(writer) - 10 * append
            for first in range(start, 30, 7):
                writer.write(rows(2)[first : first + 7])
                writer.flush()

    def find(folder: Path) -> str:
        new = np.concatenate([rows(1, 10), rows(2)]) if append else rows(2)
        return state_of(folder / f"a.{suffix}", rows(1, 10) if append else None, new)

    return Work(f"{'append' if append else 'writer'} {suffix}", old, do, find, (f"a.{suffix}",))


def second_dataset() -> Work:
    def old(folder: Path) -> None:
        with StoreWriter(folder / "a.h5", chunk=4) as writer:
            writer.write(rows(1))

    def do(folder: Path, resume: bool) -> None:
        with StoreWriter(f"{folder}/a.h5::more", mode="a", chunk=4, resume=resume) as writer:
            writer.write(rows(2)[len(writer) :])

    def find(folder: Path) -> str:
        first = state_of(folder / "a.h5", rows(1), rows(2))
        second = state_of(Path(f"{folder}/a.h5::more"), None, rows(2))
        return "wrong" if first != "old" else "old" if "has no dataset" in second else second

    return Work("dataset h5", old, do, find, ("a.h5",))


def patches() -> Work:
    mask = (np.arange(900).reshape(30, 30) % 7 == 0).astype("u1")
    volume = np.random.default_rng(4).random((30, 30))
    whole = np.load

    def do(folder: Path, resume: bool) -> None:
        create_dataset(folder, 3, volume, mask, [1], format="npy", batch_size=16, progress=False, resume=resume)

    def find(folder: Path) -> str:
        padded = np.pad(volume, 1, "symmetric")
        every = {padded[y : y + 3, x : x + 3].tobytes() for y, x in np.argwhere(mask)}
        try:
            StoreArray(folder / "class_1.npy").close()
        except StoreError as error:
            return f"refused {error}"
        return "new" if {row.tobytes() for row in whole(folder / "class_1.npy")} == every else "wrong"

    return Work("create_dataset npy", lambda _: None, do, find, ("class_1.npy",))


def maps(ending: str) -> Work:
    def boxes(folder: Path) -> MultiSourceArray:
        import pandas as pd

        np.save(folder / "r.npy", rows(3, 16)[:, :, 0].repeat(4, 1)) if not (folder / "r.npy").exists() else None
        table = pd.DataFrame({"tile_id": list("abcd"), "region_id": "r", "xmin": [0, 8] * 2, "ymin": [0, 0, 8, 8]})
        table["xmax"], table["ymax"] = table.xmin + 8, table.ymin + 8
        return lt.open_tiles(table, folder, path="{region_id}.npy", target=None)

    def old(folder: Path) -> None:
        np.save(folder / "r.npy", np.random.default_rng(1).integers(0, 99, (16, 16, 1), dtype="u1"))

    def do(folder: Path, resume: bool) -> None:
        if resume and (folder / f"map{ending}").exists():
            return
        list(predict(lambda x: x, boxes(folder), out=folder / f"map{ending}", blend="crop", batch_size=1))

    def find(folder: Path) -> str:
        path = folder / f"map{ending}"
        if not path.exists():
            return "refused not there"
        found = np.asarray(lt.open_region(path)[:]).reshape(16, 16)
        return "new" if np.array_equal(found, np.load(folder / "r.npy")[..., 0]) else "wrong"

    return Work(f"predict {ending}", old, do, find, (f"map{ending}", "r.npy"))


def flows() -> Work:
    def do(folder: Path, resume: bool) -> None:
        with BatchFlow(MultiSourceArray([rows(2)]), 4, shuffle=True, seed=1) as flow:
            got = np.concatenate(list(flow))
        assert sorted(row.tobytes() for row in got) == sorted(row.tobytes() for row in rows(2))

    def find(folder: Path) -> str:
        do(folder, True)
        return "new"

    return Work("flow", lambda _: None, do, find)


def persisting() -> Work:
    def do(folder: Path, resume: bool) -> None:
        tiles = MultiSourceArray([rows(2)]).shuffle(3)
        store.persist(tiles, folder / "a.npy", chunk=4, resume=resume)

    def find(folder: Path) -> str:
        return state_of(folder / "a.npy", None, rows(2))

    return Work("persist npy", lambda _: None, do, find, ("a.npy",))


def works() -> list[Work]:
    """Every piece of work whose library is here."""
    import importlib.util

    suffixes = [suffix for suffix, module in LIBRARIES.items() if importlib.util.find_spec(module)]
    found = [exports(suffix, masks, replace) for suffix in suffixes for masks in (0, 1) for replace in (0, 1)]
    found += [writers(suffix, append) for suffix in suffixes if suffix != "tfrecord" for append in (False, True)]
    found += [second_dataset()] if "h5" in suffixes else []
    found += [maps(ending) for ending in (".npy", ".tif", *([".zarr"] if "zarr" in suffixes else []))]
    return [*found, patches(), persisting(), flows()]


# -- faults --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def at_line(number: int, error: type[BaseException]) -> Iterator[list[int]]:
    """An exception at the k-th line of the library, in whichever thread it is; Ctrl-C comes to the first one only."""
    seen = [0]

    def trace(frame: Any, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        # The line of a `with` is met once more before it releases what it holds, where Python itself never raises.
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "with "
        ):
            seen[0] += 1
            if seen[0] == number:
                raise error(f"line {number}")
        return trace

    if error is not KeyboardInterrupt:
        threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]


@contextlib.contextmanager
def at_call(number: int, code: int) -> Iterator[list[int]]:
    """The k-th call of the system fails, as far as it is made from Python."""
    seen = [0]

    def profile(frame: Any, event: str, arg: Any) -> None:
        in_memory = isinstance(getattr(arg, "__self__", None), io.BytesIO | io.StringIO | list | set)
        if event == "c_call" and arg.__name__ in CALLS and not in_memory and is_ours(frame):
            seen[0] += 1
            if seen[0] == number:
                raise OSError(code, os.strerror(code))

    def is_ours(frame: Any) -> bool:
        """Called for the library, and not to import a module."""
        ours = False
        while frame is not None:
            name = frame.f_code.co_filename
            ours = ours or name.startswith(PACKAGE)
            if name.startswith("<frozen importlib"):
                return False
            frame = frame.f_back
        return ours

    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@contextlib.contextmanager
def limited(kind: int, limit: int) -> Iterator[list[int]]:
    """Files of so many bytes at most, or so many descriptors."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, hard))
    try:
        yield [0]
    finally:
        resource.setrlimit(kind, (soft, hard))


def descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if "/faults-" in target and not {"r.npy", "map.npy", "map.tif", "map.zarr"} & {
                *target.split("/")
            }:  # the pool of regions is bounded
                found[target] += 1
    return found


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("lazytiles") and "shared" not in t.name}


def leaks(folder: Path) -> list[str]:
    """What a try has left in its process."""
    end = time.monotonic() + 3
    while True:
        gc.collect()
        left = [*descriptors(), *threads()]
        if not left or time.monotonic() > end:
            break
        time.sleep(0.02)
    for name in ("a.npy", "a.h5", "a.zarr", "a.b2nd", "a.tfrecord", "class_1.npy"):
        try:
            StoreLock(folder / name).release()
        except StoreError as error:
            left.append(str(error))
    return left


def finish(work: Work, folder: Path) -> str:
    """End the work with `resume`; what is wrong then, or nothing."""
    work.do(folder, True)
    state = work.find(folder)
    if state != "new":
        return f"wrong after resume: {state}"
    names = sorted(path.name for path in folder.iterdir())
    loose = [name for name in names if any(mark in name for mark in (".partial-", ".old-", ".lock", ".new"))]
    if loose or (work.names is not None and names != sorted(work.names)):
        return f"wrong leftovers: {loose or names}"
    return ""


def after(work: Work, folder: Path, had_old: bool) -> str:
    state = work.find(folder)
    if state == "wrong" or (had_old and state.startswith("refused")):
        return f"wrong state: {state}"
    return ""


def attempt(work: Work, folder: Path, fault: Callable[[], Any], same: bool) -> dict[str, Any]:
    """The work with a fault in it, in this process; what came of it."""
    said: dict[str, Any] = {"seen": 0, "outcome": "right", "why": ""}
    had_old = work.find(folder) == "old"
    try:
        with fault() as seen:
            work.do(folder, False)
    except LazyTilesError as error:
        said |= {"outcome": "refused", "why": str(error)}
    except (KeyboardInterrupt, MemoryError):
        said["outcome"] = "refused"
    except BaseException as error:
        said |= {"outcome": "foreign", "why": "".join(traceback.format_exception(error))[-1200:]}
    said["seen"] = seen[0]
    wrong = after(work, folder, had_old)
    left = leaks(folder)
    if not wrong and same:
        wrong = finish(work, folder)
    if wrong:
        said |= {"outcome": "wrong", "why": wrong + " | " + said["why"]}
    elif left:
        said |= {"outcome": "leaked", "why": str(left) + " | " + said["why"]}
    return said


def forked(function: Callable[[], Any], kill_after: float | None = None) -> dict[str, Any]:
    """Run a function in a fork of this process; what it gives, or what became of the process."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        result: dict[str, Any]
        faulthandler.dump_traceback_later(HUNG_S - 5)
        try:
            result = function()
        except BaseException as error:
            result = {"outcome": "wrong", "why": "".join(traceback.format_exception(error))[-1500:], "seen": 0}
        with contextlib.suppress(BaseException):
            os.write(send, json.dumps(result).encode()[:60000])
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        end = time.monotonic() + (HUNG_S if kill_after is None else kill_after)
        os.set_blocking(receive, False)
        content = b""
        while time.monotonic() < end:
            part = pipe.read()
            if part:
                content += part
            elif part == b"":
                break
            else:
                time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if content:
        return json.loads(content)
    return {"outcome": "killed" if kill_after is not None else "hung", "why": "", "seen": 0}


OLD: dict[str, Path] = {}


def fresh(work: Work) -> Path:
    """A folder with the old state, which is made once."""
    if work.name not in OLD:
        folder = OLD[work.name] = Path(tempfile.mkdtemp(prefix="faults-"))
        made = forked(lambda: work.old(folder) or {"outcome": "right"})
        assert made["outcome"] == "right", made
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    shutil.copytree(OLD[work.name], folder, dirs_exist_ok=True)
    return folder


def tried(work: Work, fault: Callable[[], Any], same: bool) -> dict[str, Any]:
    """One try in a process of its own; a new process ends the work unless the same one has."""
    folder = fresh(work)
    try:
        said = forked(lambda: attempt(work, folder, fault, same))
        if not same and said["outcome"] in ("right", "refused", "foreign"):
            ended = forked(lambda: {"outcome": "right", "why": after(work, folder, False) or finish(work, folder)})
            if ended["outcome"] != "right" or ended["why"]:
                said |= {"outcome": ended["outcome"] if ended["outcome"] != "right" else "wrong", "why": ended["why"]}
        return said
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def killed(work: Work, chance: random.Random, length: float) -> dict[str, Any]:
    folder = fresh(work)
    try:
        had_old = forked(lambda: {"outcome": "right", "why": work.find(folder)})["why"] == "old"

        def do() -> dict[str, Any]:
            work.do(folder, False)
            return {"outcome": "right", "why": "", "seen": 0}

        said = forked(do, kill_after=chance.random() * length)
        ended = forked(lambda: {"outcome": "right", "why": after(work, folder, had_old) or finish(work, folder)})
        if ended["outcome"] != "right" or ended["why"]:
            return {"outcome": ended["outcome"] if ended["outcome"] == "hung" else "wrong", "why": ended["why"]}
        return {"outcome": "right", "why": said["outcome"]}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


KINDS: dict[str, Callable[[int], Any]] = {
    "interrupt": lambda k: at_line(k, KeyboardInterrupt),
    "memory": lambda k: at_line(k, MemoryError),
    "disk full": lambda k: at_call(k, errno.ENOSPC),
    "input error": lambda k: at_call(k, errno.EIO),
    "no descriptor": lambda k: at_call(k, errno.EMFILE),
    "not allowed": lambda k: at_call(k, errno.EACCES),
}


def jobs_of(
    work: Work, given: argparse.Namespace, chance: random.Random, count: Callable[..., None]
) -> Iterator[tuple[Work, str, object, Callable[[], dict[str, Any]]]]:
    """The tries of one piece of work; where faults can be is counted without one first."""

    def is_wanted(kind: str) -> bool:
        return not given.only or given.only in f"{work.name}, {kind}"

    def one(fault: Callable[[], Any], same: bool) -> Callable[[], dict[str, Any]]:
        return lambda: tried(work, fault, same)

    seen: dict[str, int] = {}
    others = {} if given.only else dict.fromkeys(("input error", "no descriptor", "not allowed"), "disk full")
    for kind, fault in KINDS.items():
        if not is_wanted(kind):
            continue
        if kind not in seen and not (kind in others and others[kind] in seen):
            said = tried(work, partial(fault, -1), True)
            count(work, kind, "never", said)
            seen[kind] = said["seen"]
        for k in range(chance.randrange(1, given.every + 1), seen[others.get(kind, kind)] + 1, given.every):
            yield work, kind, k, one(partial(fault, k), k % 2 == 0)
    for kind, number, start, step in (
        ("file limit", resource.RLIMIT_FSIZE, 0, 700),
        ("open limit", resource.RLIMIT_NOFILE, 4, 1),
    ):
        for k in range(0, 16 if is_wanted(kind) else 0, max(1, min(16, given.every // 4))):
            yield work, kind, start + step * k, one(partial(limited, number, start + step * k), k % 2 == 0)
    if is_wanted("kill"):
        started = time.monotonic()
        tried(work, partial(at_call, -1, 0), False)
        length = min(0.5, time.monotonic() - started)
        for k in range(given.kills):
            yield work, "kill", k, lambda: killed(work, chance, length)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each N-th line and call")
    parser.add_argument("--kills", type=int, default=20, help="of each piece of work")
    parser.add_argument("--only", default="", help="pieces of work and faults whose name has this word")
    parser.add_argument("--sample", type=int, default=1000, help="so many pieces of work, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after so long")
    given = parser.parse_args()
    sink._COMMIT_S, store._READ_BYTES = 0, 400
    for module in (*LIBRARIES.values(), "pyarrow.parquet", "tifffile", "pandas"):
        with contextlib.suppress(ImportError):
            __import__(module)
    chance, figures, bad, begun = random.Random(given.seed), Counter[tuple[str, str]](), [], time.monotonic()

    def count(work: Work, kind: str, place: object, said: dict[str, Any]) -> None:
        figures[kind, said["outcome"]] += 1
        if said["outcome"] not in ("right", "refused"):
            bad.append(f"{work.name}, {kind} {place}: {said['outcome']}: {said['why']}")
            print(bad[-1][:1500], file=sys.stderr, flush=True)

    jobs: list[tuple[Work, str, object, Callable[[], dict[str, Any]]]] = []
    for work in chance.sample(works(), min(given.sample, len(works()))):
        jobs += jobs_of(work, given, chance, count)
    chance.shuffle(jobs)
    for work, kind, place, job in jobs:
        if time.monotonic() - begun > given.seconds:
            break
        count(work, kind, place, job())
    for folder in OLD.values():
        shutil.rmtree(folder, ignore_errors=True)
    total = Counter(outcome for (_, outcome), n in figures.items() for _ in range(n))
    print(json.dumps({"tries": total.total(), **total, "seconds": round(time.monotonic() - begun)}))
    for kind in sorted({kind for kind, _ in figures}):
        print(f"{kind:14}", {outcome: n for (name, outcome), n in sorted(figures.items()) if name == kind})
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
