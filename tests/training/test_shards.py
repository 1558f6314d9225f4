"""What a process may take of its machine: its part of the samples, and its processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lazytiles as lt
from lazytiles.config import usable_cpus
from lazytiles.training.shards import own_shard

CLUSTER = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"]}


def tf_config(kind, index, cluster=CLUSTER):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1)),  # sbatch -n 1
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}, (3, 8)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, (3, 8)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "WORLD_SIZE": "8"}, (3, 8)),  # exported by the script
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (1, 2)),  # torchrun in sbatch
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "SLURM_NTASKS": "8"}, (1, 2)),
        ({"RANK": "7"}, (0, 1)),
        (tf_config("chief", 0), (0, 3)),
        (tf_config("worker", 1), (2, 3)),
        (tf_config("worker", 1) | {"SLURM_NTASKS": "8"}, (2, 3)),
    ],
)
def test_a_launcher_is_believed(environment, expected):
    assert own_shard(environment) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
            "SLURM_NTASKS=8 and no SLURM_STEP_NUM_TASKS means .* start it with srun",
        ),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_ID": "4294967291"}, "SLURM_NTASKS=8"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, "SLURM_STEP_NUM_TASKS=1"),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}, "SLURM_PROCID=None"),
        ({"SLURM_PROCID": "8", "SLURM_STEP_NUM_TASKS": "8"}, "is no rank below"),
        ({"RANK": "two", "WORLD_SIZE": "8"}, "RANK=two, WORLD_SIZE=8"),
        ({"RANK": "8", "WORLD_SIZE": "8"}, "RANK=8, WORLD_SIZE=8"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and no RANK does not say"),
        ({"TF_CONFIG": "{"}, "TF_CONFIG"),
        ({"TF_CONFIG": "{}"}, "TF_CONFIG"),
        (tf_config("evaluator", 0), "is no chief and no worker"),
        (tf_config("ps", 0), "is no chief and no worker"),
        (tf_config("worker", 2), "is no chief and no worker"),
    ],
)
def test_what_no_launcher_says_is_an_error(environment, words):
    with pytest.raises(ValueError, match=rf'shard="auto": .*{words}.*pass shard=\(rank, count\)'):
        own_shard(environment)


def group(root, line, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "900000 100000\n", "a/b/cpu.max": "500000 100000\n"}, 5),
        ("0::/../../x\n", {"cpu.max": "400000 100000\n"}, 4),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("4:cpu:/j\n1:name=x:/\n", {"cpu/j/cpu.cfs_quota_us": "600000\n", "cpu/j/cpu.cfs_period_us": "100000\n"}, 6),
        ("4:cpu:/j\n", {"cpu/j/cpu.cfs_quota_us": "-1\n", "cpu/j/cpu.cfs_period_us": "100000\n"}, 16),
        ("3:cpuset:/j\n0::/\n", {"cpuset/cpu.cfs_quota_us": "1000", "cpuset/cpu.cfs_period_us": "1000"}, 16),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 16),
        ("0::/\n", {"cpu.max": "1 0\n"}, 16),
        ("", {}, 16),
    ],
)
def test_processors_are_those_of_the_container(line, files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    group(tmp_path, line, files)
    assert usable_cpus(f"{tmp_path}/") == expected


def test_there_may_be_no_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert usable_cpus(f"{tmp_path}/") == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound here")
def test_a_bound_process_takes_no_more_threads():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import lazytiles; print(lazytiles.configure().threads)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(lt.__file__).parents[1])}
    environment.pop("LAZYTILES_THREADS", None)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.split() == ["1"]
