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
    """In a process of its own, as it forks: some 30 s of faults drawn by a fixed seed."""
    command = [sys.executable, "-W", "ignore", str(FAULTS), "--every", "150", "--kills", "2", "--seconds", "30"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert json.loads(run.stdout.splitlines()[0])["right"] > 20
