"""Shardings of a run: batches onto devices, and checks and a report of the parameters'."""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qa_jax import checkpoint
from qa_jax.data import TrainBatch
from qa_jax.errors import InputError
from qa_jax.model import Qwen2Audio
from qa_jax.parallel import BATCH_AXES, local_batch_shards, num_batch_shards
from qa_jax.trees import flatten_dict

_LARGE = 2**24
"""Elements above which a parameter may not be fully replicated on a mesh that could shard it."""


def shard_batch(batch: TrainBatch, mesh: Mesh) -> TrainBatch:
    """This process's rows and clips as its shards of the global batch."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    local, num_shards = local_batch_shards(mesh), num_batch_shards(mesh)

    def put(x: np.ndarray) -> jax.Array:
        if len(local) == num_shards:
            return jax.device_put(x, sharding)
        shard_size = x.shape[1] // len(local)

        def read(index: tuple[slice, ...]) -> np.ndarray:
            start = local.index((index[1].start or 0) // shard_size) * shard_size
            return x[:, start : start + shard_size]

        shape = (x.shape[0], shard_size * num_shards, *x.shape[2:])
        return jax.make_array_from_callback(shape, sharding, read)  # type: ignore[arg-type]

    return jax.tree.map(put, batch)


def check_sufficiently_sharded(model: Qwen2Audio, mesh: Mesh) -> None:
    """Raises InputError naming large parameters that the mesh does not shard."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    replicated = [
        "/".join(path)
        for path, x in flatten_dict(checkpoint.abstract_params(model, mesh)).items()
        if math.prod(x.shape) > _LARGE and x.sharding.is_fully_replicated
    ]
    if replicated:
        raise InputError(
            "mesh",
            f"{', '.join(replicated)} would be replicated on every device",
            "change LOGICAL_AXIS_RULES",
        )


def sharding_report(model: Qwen2Audio, mesh: Mesh) -> list[str]:
    """A line for every parameter: shape, sharding, and bytes per device."""
    lines = [f"mesh {dict(mesh.shape)}, {mesh.size} device(s)"]
    total = per_device = 0
    for path, x in flatten_dict(checkpoint.abstract_params(model, mesh)).items():
        size = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        total += math.prod(x.shape) * x.dtype.itemsize
        per_device += size
        spec = ", ".join("-" if s is None else str(s) for s in x.sharding.spec)
        shape = " x ".join(map(str, x.shape))
        lines.append(f"{'/'.join(path):52} {shape:24} ({spec})  {size:,} B")
    lines.append(f"{per_device:,} B of parameters per device, {per_device / total:.1%} of all")
    return lines
