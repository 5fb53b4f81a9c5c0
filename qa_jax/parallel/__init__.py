"""Processes, the device mesh, the logical-axis rules and the sharding constraint."""

from qa_jax.parallel.distributed import (
    any_across_processes,
    barrier,
    initialize_distributed,
    is_main_process,
)
from qa_jax.parallel.mesh import (
    AXES,
    BATCH_AXES,
    LOGICAL_AXIS_RULES,
    constrain,
    current_platform,
    local_batch_shards,
    make_mesh,
    mesh_shape,
    mesh_sizes,
    num_batch_shards,
    partition_spec,
    shard_map_logical,
    sharding,
)

__all__ = [
    "AXES",
    "BATCH_AXES",
    "LOGICAL_AXIS_RULES",
    "any_across_processes",
    "barrier",
    "constrain",
    "current_platform",
    "initialize_distributed",
    "is_main_process",
    "local_batch_shards",
    "make_mesh",
    "mesh_shape",
    "mesh_sizes",
    "num_batch_shards",
    "partition_spec",
    "shard_map_logical",
    "sharding",
]
