"""Which part of the samples this process trains on, as its launcher says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Literal, TypeAlias

Shard: TypeAlias = tuple[int, int] | Literal["auto"]
"""(rank, count), or "auto" to ask the launcher."""

# (rank, count) as Keras, torchrun and Open MPI name them for each process that they start.
_VARIABLES = (
    ("KERAS_DISTRIBUTION_PROCESS_ID", "KERAS_DISTRIBUTION_NUM_PROCESSES"),
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)


def own_shard(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """The (rank, count) of this process among those that train together; (0, 1) if it is alone.

    A running `jax.distributed` or `torch.distributed` is asked first, then the environment: Keras' own
    variables, those of torchrun, Open MPI and Slurm, and ``TF_CONFIG``. Slurm is believed where ``srun`` has
    started the process as one task of a step: the script of ``sbatch`` is one process, however many tasks it
    asked for.

    Raises
    ------
    ValueError : a variable that is no number, a rank that is not below the count, tasks of Slurm that are not there

    >>> own_shard({"RANK": "2", "WORLD_SIZE": "8"})
    (2, 8)
    """
    jax, torch = (sys.modules.get(name) for name in ("jax", "torch.distributed"))
    if environment is os.environ and jax is not None and jax.distributed.is_initialized():
        return jax.process_index(), jax.process_count()
    if environment is os.environ and torch is not None and torch.is_available() and torch.is_initialized():
        return torch.get_rank(), torch.get_world_size()
    for names in _VARIABLES:
        if all(name in environment for name in names):
            return _checked(environment, *names)
    step, tasks = (environment.get(name) for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"))
    if step is not None and step == (tasks or step):
        return _checked(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    if "TF_CONFIG" in environment:
        return _of_tf_config(environment["TF_CONFIG"])
    if tasks not in (None, "1"):
        found = f"SLURM_NTASKS={tasks} and " + (f"SLURM_STEP_NUM_TASKS={step}" if step else "no SLURM_STEP_NUM_TASKS")
        raise _refused(found, f"means that srun has not started this process as one of {tasks}: start it with srun")
    for rank, count in _VARIABLES:
        if environment.get(count, "1") != "1":
            raise _refused(f"{count}={environment[count]} and no {rank}", "does not say which of them this process is")
    return 0, 1


def _refused(found: str, why: str) -> ValueError:
    return ValueError(f'shard="auto": {found} {why}, or pass shard=(rank, count), (0, 1) for a process that is alone')


def _checked(environment: Mapping[str, str], *names: str) -> tuple[int, int]:
    """The rank and count in two variables."""
    found = ", ".join(f"{name}={environment.get(name)}" for name in names)
    try:
        rank, count = (int(environment[name]) for name in names)
    except (KeyError, ValueError):
        raise _refused(found, "is no rank and count of processes") from None
    if not 0 <= rank < count:
        raise _refused(found, "is no rank below a count of processes")
    return rank, count


def _of_tf_config(text: str) -> tuple[int, int]:
    """Chiefs come before workers, and what is neither does not train."""
    try:
        config = json.loads(text)
        kind, index = config["task"]["type"], int(config["task"]["index"])
        counts = {role: len(config["cluster"].get(role, [])) for role in ("chief", "worker")}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _refused(f"TF_CONFIG={text[:200]}", "names no cluster and no task of it") from None
    if not 0 <= index < counts.get(kind, 0):
        raise _refused(f"TF_CONFIG={text[:200]}", "is no chief and no worker of its cluster, so that it does not train")
    return (counts["chief"] if kind == "worker" else 0) + index, sum(counts.values())
