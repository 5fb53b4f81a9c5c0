"""The processes of one job: one on each host of a pod, or on each node of a cluster."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence

import jax

from qa_jax.errors import InputError

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize_distributed() -> str:
    """Starts `jax.distributed`, if this process is one of several, and returns a line that says
    how the job was found, which process this is, and what it sees.

    JAX detects TPU pods and slices (Cloud TPU, GKE), Slurm, Open MPI and indexed Kubernetes jobs.
    Elsewhere, or to overrule the detection, set the address of process 0, the number of processes
    and the index of this one: JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    Without any of these there is one process. Call this before any other use of JAX. Raises
    InputError if only some of the three are set, or if the other processes cannot be reached.
    """
    try:
        found_by = _initialize()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        text = " ".join(str(error).split())
        raise InputError("jax.distributed", text, "check that every process is started") from error
    # JAX's CPU backend connects the processes in their first collective operation, for which it
    # waits 30 s: here, where they have just met.
    barrier("started")
    local, device = jax.local_device_count(), jax.local_devices()[0]
    return (
        f"process {jax.process_index()} of {jax.process_count()} ({found_by}) on "
        f"{socket.gethostname()}: {local} of {jax.device_count()} devices ({device.device_kind})"
    )


def _initialize() -> str:
    environment = os.environ
    given = [name for name in _EXPLICIT if environment.get(name)]
    if len(given) == len(_EXPLICIT):
        # Before JAX's detection: who sets all three inside a cluster means them.
        address, count, index = (environment[name] for name in _EXPLICIT)
        jax.distributed.initialize(address, int(count), int(index))
        return "JAX_COORDINATOR_ADDRESS"
    if given:
        missing = ", ".join(sorted(set(_EXPLICIT) - set(given)))
        raise InputError(", ".join(given), f"without {missing}", "set all three or none")
    found_by = _cluster()
    if found_by is None:
        return "no cluster found"
    jax.distributed.initialize(local_device_ids=_local_device_ids())
    return found_by


def _cluster() -> str | None:
    """The name of the cluster that the environment describes; None for a single process.

    JAX's own detection follows. It is not asked where it would fail: in a Slurm allocation of one
    task, or in a Kubernetes pod that belongs to no indexed job.
    """
    environment = os.environ
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return "Open MPI"
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        return "Slurm"
    if "TPU_ML_PLATFORM" in environment:  # set by JAX where it finds TPU chips
        if {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & set(environment):
            return "TPU environment"
        if "TPU_SKIP_MDS_QUERY" not in environment:
            return "TPU metadata"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    return None


def _local_device_ids() -> Sequence[int] | None:
    """All devices for the only process of a node; otherwise None, JAX's choice, which is one device
    for each of a node's processes."""
    environment = os.environ
    alone = (
        environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
        or re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
        # The cluster shows each process its own GPU alone, as device 0.
        or re.fullmatch(r"[^,]+", environment.get("CUDA_VISIBLE_DEVICES", ""))
    )
    return [] if alone else None


def is_main_process() -> bool:
    """Whether this process reports and writes small files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def reached_preemption(step: int, signalled: bool) -> bool:
    """Whether the job stops after this step; all processes get the same answer.

    Args:
        step: all processes must ask for each step, in order.
        signalled: whether this process received a signal. With several processes, JAX's preemption
            service, which catches SIGTERM, agrees on the step instead.
    """
    if jax.process_count() == 1:
        return signalled
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
