"""Joining the processes of one job, one on each host of a pod or on each node of a cluster."""

from __future__ import annotations

import os

import jax

from qa_jax.errors import InputError

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join_processes() -> None:
    """Starts `jax.distributed` where the environment tells of more than one process.

    On TPU pods and slices and under SLURM everything is found out. Elsewhere, name the first
    process's address, how many there are and which this is: JAX_COORDINATOR_ADDRESS=host:port,
    JAX_NUM_PROCESSES, JAX_PROCESS_ID. To be called before JAX touches a device. Raises InputError
    where only some of the three are there, or where the others cannot be reached.
    """
    environment = os.environ
    named = [name for name in _EXPLICIT if environment.get(name)]
    try:
        if len(named) == len(_EXPLICIT):
            jax.distributed.initialize(
                environment[_EXPLICIT[0]],
                int(environment[_EXPLICIT[1]]),
                int(environment[_EXPLICIT[2]]),
            )
        elif named:
            missing = ", ".join(sorted(set(_EXPLICIT) - set(named)))
            raise InputError(", ".join(named), f"without {missing}", "give all three or none")
        elif (
            int(environment.get("SLURM_NTASKS", "1")) > 1
            or "MEGASCALE_COORDINATOR_ADDRESS" in environment
            or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        ):
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        text = " ".join(str(error).split())
        raise InputError("jax.distributed", text, "check that every process is started") from error


def first_process() -> bool:
    """Whether this is the process that reports and writes small files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask at the same step."""
    if jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
