"""A sample of the faults of `faults.py`, which tries them all; and what accidents leave of maps."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lazytiles.errors import StoreError
from lazytiles.predictions.sinks import check_out, open_sink

ZARR = pytest.param(".zarr", marks=pytest.mark.leaks(reason="zarr keeps its event loop"))

FAULTS = Path(__file__).parents[1] / "faults.py"


@pytest.mark.timeout(300)
def test_faults_leave_the_old_state_the_new_one_or_a_clear_error():
    """In a process of its own, as it forks: some faults of some pieces of work, drawn by a fixed seed."""
    sample = ["--sample", "6", "--every", "200", "--kills", "2", "--seconds", "60"]
    command = [sys.executable, "-W", "ignore", str(FAULTS), *sample]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert json.loads(run.stdout.splitlines()[0])["tries"] >= 10  # on a busy machine; a calm one makes some forty


@pytest.mark.parametrize("ending", [".npy", ".tif", ZARR])
@pytest.mark.parametrize("what", ["write", "rename"])
def test_a_failed_map_names_file_and_rows_and_leaves_nothing(tmp_path, monkeypatch, ending, what):
    if ending == ".zarr":
        pytest.importorskip("zarr")
    out = tmp_path / f"map{ending}"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink = open_sink(out, (8, 8), np.dtype("u1"))
    sink.append(np.ones((4, 8), "u1"))
    monkeypatch.setattr(*((type(sink), "write") if what == "write" else ("lazytiles.predictions.sinks.publish",)), full)
    doing = "writing rows 4 to 8" if what == "write" else "completing the file"
    with pytest.raises(StoreError, match=rf"map{ending}: {doing} failed: No space left on device; nothing") as caught:
        (sink.append(np.ones((4, 8), "u1")), sink.close())
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".npy", ".tif", ".zarr"])
def test_a_folder_that_cannot_be_looked_at_is_a_store_error_with_its_number(tmp_path, monkeypatch, ending):
    def full(_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("lazytiles.stores.journal.os.listdir", full)
        with pytest.raises(StoreError, match=rf"map{ending}: opening failed: Too many open files") as caught:
            check_out(tmp_path / f"map{ending}")
    assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize("ending", [".npy", ".tif", ZARR])
def test_what_a_killed_run_left_goes_with_the_next(tmp_path, ending):
    if ending == ".zarr":
        pytest.importorskip("zarr")
    out = tmp_path / f"map{ending}"
    code = (
        "import sys, os, numpy as np; from lazytiles.predictions.sinks import check_out, open_sink\n"
        "sink = open_sink(sys.argv[1], (8, 8), np.dtype('u1')); sink.append(np.ones((4, 8), 'u1'))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code, out], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    alive = open_sink(tmp_path / f"map{ending}", (8, 8), np.dtype("u1"))
    sink = open_sink(out, (8, 8), np.dtype("u1"))
    sink.append(np.full((8, 8), 3, "u1"))
    assert (np.asarray(sink.close()[:]) == 3).all()
    assert len(list(tmp_path.iterdir())) == 2  # the one that is still written
    alive.abort()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
