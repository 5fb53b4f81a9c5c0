"""Where a run's parameters will lie, before any of them exists: `qa-jax train --show-sharding`."""

from __future__ import annotations

import math

from jax.sharding import Mesh

from qa_jax import checkpoint
from qa_jax.errors import InputError
from qa_jax.model import Qwen2Audio, flatten

_LARGE = 2**24
"""Numbers above which a parameter may not lie whole on every device of a mesh that could cut it."""


def refuse_replicated(model: Qwen2Audio, mesh: Mesh) -> None:
    """Raises InputError naming large parameters that no axis of the mesh cuts."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    whole = [
        "/".join(path)
        for path, x in flatten(checkpoint.abstract_params(model, mesh)).items()
        if math.prod(x.shape) > _LARGE and x.sharding.is_fully_replicated
    ]
    if whole:
        raise InputError(
            "mesh", f"{', '.join(whole)} would lie whole on every device", "fix parallel.RULES"
        )


def sharding_report(model: Qwen2Audio, mesh: Mesh) -> list[str]:
    """A line for every parameter: shape, how it is cut, and bytes on each device."""
    lines = [f"mesh {dict(mesh.shape)}, {mesh.size} device(s)"]
    total = held = 0
    for path, x in flatten(checkpoint.abstract_params(model, mesh)).items():
        share = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        total, held = total + math.prod(x.shape) * x.dtype.itemsize, held + share
        spec = ", ".join("-" if s is None else str(s) for s in x.sharding.spec)
        shape = " x ".join(map(str, x.shape))
        lines.append(f"{'/'.join(path):52} {shape:24} ({spec})  {share:,} B")
    lines.append(f"{held:,} B of parameters on each device, {held / total:.1%} of all")
    return lines
