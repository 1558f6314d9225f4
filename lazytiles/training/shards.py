"""Which part of the samples this process trains on, as its launcher says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Literal, TypeAlias

Shard: TypeAlias = tuple[int, int] | Literal["auto"]
"""(rank, count), or "auto" to ask the launcher."""

# (rank, count) as Keras, torchrun, Open MPI and Slurm name them.
_VARIABLES = (
    ("KERAS_DISTRIBUTION_PROCESS_ID", "KERAS_DISTRIBUTION_NUM_PROCESSES"),
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def own_shard(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """The (rank, count) of this process among those that train together; (0, 1) if it is alone.

    A running `jax.distributed` or `torch.distributed` is asked first, then the environment: Keras' own
    variables, those of torchrun, Open MPI and Slurm, and ``TF_CONFIG``.

    Raises
    ------
    ValueError : a variable that is no number

    >>> own_shard({"RANK": "2", "WORLD_SIZE": "8"})
    (2, 8)
    """
    if environment is os.environ and (running := _running()) is not None:
        return running
    for rank, count in _VARIABLES:
        if rank in environment and count in environment:
            return int(environment[rank]), int(environment[count])
    if "TF_CONFIG" in environment:
        return _of_tf_config(json.loads(environment["TF_CONFIG"]))
    return 0, 1


def _running() -> tuple[int, int] | None:
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch.distributed")
    if jax is not None and jax.distributed.is_initialized():
        return jax.process_index(), jax.process_count()
    if torch is not None and torch.is_available() and torch.is_initialized():
        return torch.get_rank(), torch.get_world_size()
    return None


def _of_tf_config(config: Mapping[str, Mapping[str, object]]) -> tuple[int, int]:
    """Chiefs come before workers, and what is neither does not train."""
    roles = {role: config["cluster"].get(role, []) for role in ("chief", "worker")}
    counts = {role: len(hosts) for role, hosts in roles.items() if isinstance(hosts, list)}
    task = config["task"]
    before = counts["chief"] if task["type"] == "worker" else 0
    return before + int(str(task["index"])), sum(counts.values())
