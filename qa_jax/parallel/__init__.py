"""Where it runs: processes, the device mesh, one table of sharding rules, the constraint helper."""

from qa_jax.parallel.mesh import (
    AXES,
    BATCH_AXES,
    RULES,
    batch_shards,
    constrain,
    current_platform,
    local_groups,
    make_mesh,
    mesh_shape,
    mesh_sizes,
    partition_spec,
    per_device,
    sharding,
)
from qa_jax.parallel.start import any_process, barrier, first_process, join_processes

__all__ = [
    "AXES",
    "BATCH_AXES",
    "RULES",
    "any_process",
    "barrier",
    "batch_shards",
    "constrain",
    "current_platform",
    "first_process",
    "join_processes",
    "local_groups",
    "make_mesh",
    "mesh_shape",
    "mesh_sizes",
    "partition_spec",
    "per_device",
    "sharding",
]
