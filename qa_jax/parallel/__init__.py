"""Processes, the device mesh, the logical-axis rules and the sharding constraint."""

from qa_jax.parallel.agreement import (
    agree,
    check_same,
    check_shared_directory,
    gather_texts,
    raise_together,
)
from qa_jax.parallel.distributed import (
    barrier,
    initialize_distributed,
    is_main_process,
    reached_preemption,
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
    "agree",
    "barrier",
    "check_same",
    "check_shared_directory",
    "constrain",
    "current_platform",
    "gather_texts",
    "initialize_distributed",
    "is_main_process",
    "local_batch_shards",
    "make_mesh",
    "mesh_shape",
    "mesh_sizes",
    "num_batch_shards",
    "partition_spec",
    "raise_together",
    "reached_preemption",
    "shard_map_logical",
    "sharding",
]
