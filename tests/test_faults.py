"""A sample of the faults of `faults.py`, which tries them all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("faults.py")


@pytest.mark.timeout(300)
def test_faults_leave_the_old_state_the_new_one_or_a_clear_error():
    """In a process of its own, as it forks: some faults of some pieces of work, drawn by a fixed seed."""
    sample = ["--sample", "6", "--every", "200", "--kills", "2", "--seconds", "25"]
    command = [sys.executable, "-W", "ignore", str(FAULTS), *sample]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert json.loads(run.stdout.splitlines()[0])["tries"] > 20
