"""Damage real TIFFs at random and read them: right or wrong pixels or our own errors, and soon; nothing else.

    python tests/fuzz_tiff.py --count 10000

Case k is a function of (seed, k) alone: ``--first k --count 1 --keep FOLDER`` makes it again. The reads happen in a
child process, so that a crash, a hang or a runaway allocation is a finding and not the end.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

ROOT = Path(__file__).resolve().parents[1]
CORPUS = Path(os.environ.get("LAZYTILES_CORPUS", ROOT.parent / "shared" / "corpus"))
LARGEST = 300_000  # bytes of a file that is worth damaging: what matters is in its directory
SLOW_S = 3.0  # of the processor, which another's load does not change; a hang is seen by the clock
HANG_S = 20.0
ADDRESSES = 6 * 2**30  # bytes of address space of the child
KINDS = ("header", "directory", "tables", "data", "truncation", "splice", "whole")


def originals() -> list[bytes]:
    """The files to damage: those of the corpus, or one of each layout where it is absent."""
    found = sorted(path for path in (CORPUS / "files").rglob("*") if path.is_file())
    small = [path.read_bytes() for path in found if path.stat().st_size <= LARGEST]
    return small or list(made())


def made() -> Iterator[bytes]:
    """A small TIFF of each layout."""
    image = np.arange(90 * 70 * 3, dtype=np.uint16).reshape(90, 70, 3)
    for compression in (None, "lzw", "deflate", "zstd", "jpeg", "packbits", "lzma"):
        for tile in (None, (32, 48)):
            for byteorder in "<>":
                file = io.BytesIO()
                pixels = image.astype(np.uint8) if compression == "jpeg" else image
                with tifffile.TiffWriter(file, byteorder=byteorder, bigtiff=tile is None) as tiff:
                    options = {"compression": compression, "photometric": "rgb"}
                    rows = {"rowsperstrip": 16} if tile is None else {"tile": tile}
                    tiff.write(pixels, **options, **rows)
                yield file.getvalue()


def directory_of(data: bytes) -> tuple[int, int]:
    """First and last byte of the first directory, as far as it can be found."""
    order = "<" if data[:2] == b"II" else ">"
    endian = "little" if order == "<" else "big"
    if data[2:4] in (b"\x2b\0", b"\0\x2b"):
        start = int.from_bytes(data[8:16], endian)
        size = 8 + 20 * int.from_bytes(data[start : start + 8], endian)
    else:
        start = int.from_bytes(data[4:8], endian)
        size = 2 + 12 * int.from_bytes(data[start : start + 2], endian)
    return min(start, len(data) - 1), min(start + size, len(data))


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One random damage of a random kind."""
    kind = KINDS[rng.integers(len(KINDS))]
    if kind == "truncation":
        return data[: int(rng.integers(0, len(data)))]
    if kind == "splice":
        a, b, size = (int(rng.integers(0, len(data))) for _ in range(3))
        return data[:a] + data[b : b + size % 512] + data[a:]
    start, stop = directory_of(data)
    span = {
        "header": (0, min(16, len(data))),
        "directory": (start, max(stop, start + 1)),
        "tables": (stop, min(stop + 2048, len(data))) if stop < len(data) else (0, start + 1),
        "data": (8, len(data)),
        "whole": (0, len(data)),
    }[kind]
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(span[0], max(span[1], span[0] + 1)))
        if at < len(changed):
            changed[at] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256)), changed[at] ^ 1]))
    if kind == "directory" and rng.integers(2):  # a whole value at once, as only then sizes become absurd
        at = start + 2 + 12 * int(rng.integers(0, max(1, (stop - start) // 12))) + 8
        changed[at : at + 4] = int(rng.choice([0, 1, 2**15, 2**16, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
    return bytes(changed)


def case(number: int, seed: int, files: list[bytes]) -> bytes:
    """The bytes of a case."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    return damaged(files[int(rng.integers(len(files)))], rng)


def read(path: Path) -> str:
    """Read a file in every way; the name of what came of it."""
    import lazytiles as lt

    try:
        every_way(lt, path)
    except lt.LazyTilesError as error:
        named = path.name in str(error) or isinstance(error, lt.LimitError)
        return type(error).__name__ if named else f"FOREIGN: names no file: {error}"
    return "read"


def every_way(lt: Any, path: Path) -> None:
    """All that a user may ask of a file."""
    region = lt.open_region(path)
    height, width = region.shape[:2]
    assert height > 0
    assert width > 0
    repr(region)
    repr(region.plan((slice(0, 1), slice(0, 1))))
    for box in ((slice(0, 5), slice(0, 5)), (slice(height - 1, None), slice(width - 1, None))):
        assert region[box].dtype == region.dtype
    if region.nbytes <= 2**26:
        assert np.asarray(region).shape == region.shape
    if len(region.levels) > 1:
        lt.open_region(path, level=1)[:1]
    lt.open_region(path, page="all")[0, :1]


def work(first: int, count: int, seed: int) -> None:
    """The child: a line before each case and one after it."""
    sys.path.insert(0, str(ROOT))
    faulthandler.enable()
    warnings.simplefilter("error")
    logging.disable(logging.CRITICAL)
    import lazytiles as lt

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    lt.configure(max_window_bytes=2**28, cache_bytes=2**24, max_segment_bytes=2**28)
    files = originals()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            path = Path(folder, f"case{number}.tif")
            path.write_bytes(case(number, seed, files))
            print("begin", number, flush=True)
            start = time.process_time()
            try:
                result = read(path)
            except BaseException as error:
                result = f"FOREIGN {type(error).__name__}: {error}".replace("\n", " ")
            print("end", number, f"{time.process_time() - start:.3f}", result, flush=True)
            path.unlink()


def run(first: int, count: int, seed: int) -> tuple[Counter[str], list[str], float]:
    """All cases: how many of each result, the findings, and the longest in seconds."""
    results: Counter[str] = Counter()
    findings: list[str] = []
    longest, stop = 0.0, first + count
    while first < stop:
        command = [sys.executable, __file__, "--work", "--first", str(first), "--count", str(stop - first)]
        child = subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        ended, began = first - 1, first - 1
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        buffer, last = b"", time.monotonic()
        while True:
            part = child.stdout.read()
            if part:
                buffer, last = buffer + part, time.monotonic()
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                word, number, *rest = line.decode().split(" ", 3)
                if word == "begin":
                    began = int(number)
                    continue
                ended = int(number)
                taken, result = float(rest[0]), rest[1]
                longest = max(longest, taken)
                results[result.split(" ", 2)[0]] += 1
                if result.startswith("FOREIGN") or taken > SLOW_S:
                    findings.append(f"case {number}: {taken:.1f} s, {result}")
            if child.poll() is not None and not part:
                break
            if time.monotonic() - last > HANG_S:
                child.kill()
            time.sleep(0.01)
        errors = child.stderr.read().decode(errors="replace") if child.stderr else ""
        child.wait()
        child.stdout.close()
        if child.stderr:
            child.stderr.close()
        if child.returncode:
            findings.append(f"case {began}: ended the process with {child.returncode}: {errors[-2000:]}")
            results["CRASH"] += 1
            ended = began
        elif ended < stop - 1:
            raise RuntimeError(f"the child stopped after case {ended}: {errors}")
        first = ended + 1
    return results, findings, longest


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="write the cases there instead of reading them")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.keep:
        files = originals()
        for number in range(given.first, given.first + given.count):
            (given.keep / f"case{number}.tif").write_bytes(case(number, given.seed, files))
        return 0
    if given.work:
        work(given.first, given.count, given.seed)
        return 0
    start = time.monotonic()
    results, findings, longest = run(given.first, given.count, given.seed)
    print("\n".join(findings[:50]))
    print(f"{given.count} cases in {time.monotonic() - start:.0f} s, longest {longest:.2f} s: {dict(results)}")
    print(f"{len(findings)} findings")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
