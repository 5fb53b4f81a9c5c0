"""The processes of one job: one on each host of a pod, or on each node of a cluster."""

from __future__ import annotations

import os

import jax

from qa_jax.errors import InputError

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize_distributed() -> None:
    """Starts `jax.distributed` if the environment describes more than one process.

    On TPU pods and slices and under SLURM JAX detects the processes. Elsewhere, set the address of
    process 0, the number of processes and the index of this one: JAX_COORDINATOR_ADDRESS=host:port,
    JAX_NUM_PROCESSES, JAX_PROCESS_ID. Call this before any other use of JAX. Raises InputError if
    only some of the three are set, or if the other processes cannot be reached.
    """
    environment = os.environ
    given = [name for name in _EXPLICIT if environment.get(name)]
    try:
        if len(given) == len(_EXPLICIT):
            jax.distributed.initialize(
                environment[_EXPLICIT[0]],
                int(environment[_EXPLICIT[1]]),
                int(environment[_EXPLICIT[2]]),
            )
        elif given:
            missing = ", ".join(sorted(set(_EXPLICIT) - set(given)))
            raise InputError(", ".join(given), f"without {missing}", "set all three or none")
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


def is_main_process() -> bool:
    """Whether this process reports and writes small files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def any_across_processes(flag: bool) -> bool:
    """Whether the flag is set in any process; all must call it at the same step."""
    if jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
