"""Without what only Linux has, everything works by plainer means; on Windows the import says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lazytiles.config import usable_cpus

ROOT = Path(__file__).resolve().parents[1]

# Before lazytiles is imported: no advice to the system, no nameless memory, no affinity, no groups of processes.
WITHOUT = """
import builtins, io, os, sys
for name in ("posix_fadvise", "memfd_create", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
taken = []
def absent(call):
    def instead(path, *args, **kwargs):
        if str(path).startswith(("/proc/self", "/sys/fs/cgroup")):
            taken.append(path)
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return call(path, *args, **kwargs)
    return instead
builtins.open = io.open = absent(io.open)
os.open, os.listdir, os.readlink = absent(os.open), absent(os.listdir), absent(os.readlink)
"""
READ = """
import numpy as np
import lazytiles as lt
from lazytiles.cli import demo

demo.make_data(".", regions=4, size=128, tile=32)
assert lt.settings().threads >= 1
tiles = lt.open_tiles("tiles.csv", "Images", frames=[2016, 2017, 2018])
whole = tiles[...]
for readers in (0, 1):
    flow = lt.BatchFlow((tiles, tiles.labels), 16, shuffle=True, seed=1, readers=readers)
    for k, (images, labels) in enumerate(flow):
        assert np.array_equal(images, whole[flow.rows(0, k)])
lt.export(tiles, "tiles.npy")
assert np.array_equal(lt.open_store("tiles.npy")[:], whole)
for scan in lt.predict(lambda x: x[:, -1].astype("float32"), tiles, out="maps"):
    assert lt.open_region(f"maps/{scan['id']}.tif").shape == (128, 128, 3)
print("read", len(taken))
"""


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment)


def test_what_only_linux_has_is_not_needed(tmp_path: Path) -> None:
    done = python(WITHOUT + READ, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("read ")
    assert int(done.stdout.split()[1]) > 0  # it was asked for, and taken away


def test_without_proc_the_processors_are_counted_by_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus(f"{tmp_path}/") == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(f"{tmp_path}/") == 1


def test_on_windows_the_import_says_what_to_do(tmp_path: Path) -> None:
    done = python("import sys; sys.platform = 'win32'; import lazytiles", tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: lazytiles does not run on Windows")
    assert "WSL" in last
