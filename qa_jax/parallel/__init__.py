"""Where it runs: the device mesh, one table of sharding rules, and the constraint helper."""

from qa_jax.parallel.mesh import (
    BATCH_AXES,
    RULES,
    batch_shards,
    constrain,
    make_mesh,
    partition_spec,
    sharding,
)

__all__ = [
    "BATCH_AXES",
    "RULES",
    "batch_shards",
    "constrain",
    "make_mesh",
    "partition_spec",
    "sharding",
]
