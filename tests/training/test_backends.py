"""Keras and torch each in a process of its own: a backend is chosen once, and settles in for life."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "backends"


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("backend", "name"),
    [("tensorflow", "test_keras.py"), ("jax", "test_keras.py"), ("torch", "test_keras.py"), ("torch", "test_torch.py")],
)
def test_a_backend_in_its_own_process(backend: str, name: str) -> None:
    for package in ("keras", backend):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if not (FOLDER / name).exists():
        pytest.skip(f"{name} is not here")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / name)]
    done = subprocess.run(
        command,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTEST_ADDOPTS": ""},  # in one process
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=FOLDER.parents[2],
    )
    assert done.returncode == 0, f"{done.stdout[-20000:]}\n{done.stderr[-3000:]}"
