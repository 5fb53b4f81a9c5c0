"""What fits into a device's memory: the dtypes of parameters, and how many slots."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from qa_jax.config import Dtype, MeshConfig, ModelConfig, TextConfig
from qa_jax.errors import InputError
from qa_jax.model import KVCache, Qwen2Audio, parameter_bytes
from qa_jax.parallel import make_mesh
from qa_jax.typing import DType

_PARAM_SHARE = 0.75
"""Of the free memory that parameters in the wider dtype may take."""
_CACHE_SHARE = 0.5
"""Of the free memory; the rest is for activations."""
_MAX_SLOTS = 8
_USUAL_LENGTH = 2048
"""Tokens that a slot should have before there are more slots: two clips and their answers."""


def free_memory(device: jax.Device) -> int | None:
    """Bytes of a device's memory that can be allocated; None if that is not known."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform != "cpu":
        return None
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError):  # not POSIX
        return None


class Placement(NamedTuple):
    """How a model is loaded.

    Attributes:
        device: the first of its devices.
        param_dtype: of its parameters, but for int8 kernels.
        compute_dtype: of activations.
        num_bytes: of its parameters on each device.
        free_bytes: of a device before; None if that is not known.
    """

    device: jax.Device
    param_dtype: Dtype
    compute_dtype: Dtype
    num_bytes: int
    free_bytes: int | None

    def __str__(self) -> str:
        kind = f"{self.param_dtype} parameters"
        if self.compute_dtype != self.param_dtype:
            kind += f", computing in {self.compute_dtype}"
        free = "" if self.free_bytes is None else f" of {self.free_bytes / 1e9:.1f} GB free"
        name = self.device.device_kind
        return f"{kind}: {self.num_bytes / 1e9:.1f} GB{free} on each device ({name})"


def choose_dtypes(
    config: ModelConfig, dtype: Dtype | None = None, mesh: Mesh | None = None
) -> Placement:
    """How to load a model: in the dtype that is given, else in the fastest that there is room for.

    CPUs compute in float32, bfloat16 is several times slower there. Raises InputError, before
    anything is read, if the parameters cannot fit.
    """
    device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
    free = free_memory(device)
    num_shards = 1 if mesh is None else math.prod(mesh.shape[a] for a in ("fsdp", "tensor"))

    def needed(dtype: Dtype) -> int:
        return parameter_bytes(Qwen2Audio(config), dtype) // num_shards

    is_cpu = device.platform == "cpu"
    compute: Dtype = dtype or ("float32" if is_cpu else "bfloat16")
    is_tight = dtype is None and free is not None and needed(compute) > _PARAM_SHARE * free
    param_dtype: Dtype = "bfloat16" if is_tight else compute
    placement = Placement(device, param_dtype, compute, needed(param_dtype), free)
    if free is not None and placement.num_bytes > free:
        raise InputError(
            "memory", f"the model needs {placement}", "use int8 weights, or a larger machine"
        )
    return placement


def default_mesh(config: ModelConfig) -> Mesh | None:
    """All accelerators of this machine, over which heads are sharded: a token costs one reading of
    the weights, which they share. None for one device, and for CPUs."""
    devices = jax.local_devices()
    heads, groups = config.text.num_attention_heads, config.text.num_key_value_heads
    count = math.gcd(len(devices), heads, groups)
    if count == 1 or devices[0].platform == "cpu":
        return None
    return make_mesh(MeshConfig(1, 1, count), devices[:count])


def entry_bytes(config: TextConfig, dtype: DType, mesh: Mesh | None = None) -> float:
    """Bytes of a token's keys and values on each device."""
    entry = jax.eval_shape(lambda: KVCache.zeros(config, 1, 1, dtype))
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(entry))
    return total / (1 if mesh is None else mesh.shape.get("tensor", 1))


def choose_slots(
    config: TextConfig,
    dtype: DType,
    device: jax.Device,
    mesh: Mesh | None = None,
    num_slots: int | None = None,
    capacity: int | None = None,
) -> tuple[int, int]:
    """The number of slots and their capacity in tokens: what is given, and what half of the free
    memory has room for."""
    limit = min(capacity or config.max_position_embeddings, config.max_position_embeddings)
    free = free_memory(device)
    if free is None:
        return num_slots or _MAX_SLOTS, limit
    tokens = int(_CACHE_SHARE * free / entry_bytes(config, dtype, mesh))
    if num_slots is None:
        wanted = limit if capacity else min(limit, _USUAL_LENGTH)
        num_slots = max(1, min(_MAX_SLOTS, tokens // wanted))
    if capacity is None:
        limit = max(1, min(limit, tokens // num_slots))
    return num_slots, limit
