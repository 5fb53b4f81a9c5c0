"""The device mesh and the logical-to-mesh axis rules.

Mesh axes of size 1 are allowed everywhere, so a laptop and a pod run the same program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qa_jax.config import MeshConfig
from qa_jax.errors import InputError
from qa_jax.typing import Array, Shaped

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

LOGICAL_AXIS_RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": BATCH_AXES,  # rows, and their audio clips
    "time": None,  # tokens, frames, samples
    "act_embed": None,
    "act_heads": "tensor",
    "act_audio_heads": None,
    "act_mlp": "tensor",
    "act_vocab": "tensor",
    # parameters
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
    # The encoder has 20 heads, which few tensor axes divide: its attention is sharded by fsdp only.
    "audio_heads": None,
    "conv_in": None,
    "norm": None,
    "rank": None,  # of LoRA adapters
}
"""Mesh axes of each logical axis name."""


def mesh_sizes(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor); raises InputError if they do not multiply to the number of devices."""
    sizes = [config.data, config.fsdp, config.tensor]
    fixed = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise InputError("mesh", f"sizes {sizes} are invalid", "at most one -1, the rest >= 1")
    if -1 in sizes and num_devices % fixed == 0:
        sizes[sizes.index(-1)] = num_devices // fixed
    if math.prod(sizes) != num_devices:
        raise InputError(
            "mesh",
            f"data x fsdp x tensor = {sizes} does not make {num_devices} devices",
            "choose sizes whose product is the device count, or -1 for one of them",
        )
    data, fsdp, tensor = sizes
    return data, fsdp, tensor


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh over the devices, all of them by default.

    Raises InputError if the sizes do not fit the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    grid = arrange_devices(mesh_sizes(config, len(devices)), devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def arrange_devices(
    sizes: tuple[int, int, int], devices: Sequence[jax.Device]
) -> Shaped[np.ndarray, "data fsdp tensor"]:
    """The devices as a grid (data, fsdp, tensor) in which neighbours are near in the network.

    On TPUs the grid follows the torus, and only `data` spans DCN, the network between slices: one
    gradient reduction a step. GPUs and CPUs are in the order of their processes, so that `tensor`
    stays within a host. Raises InputError for slices that `data` does not divide.
    """
    if devices[0].platform != "tpu":
        # Their slice_index is the host's and says nothing of the network.
        ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
        return np.array(ordered, dtype=object).reshape(sizes)
    from jax.experimental import mesh_utils

    num_slices = len({getattr(d, "slice_index", 0) for d in devices})
    data, fsdp, tensor = sizes
    if data % num_slices:
        raise InputError(
            "mesh",
            f"data = {data} is not a multiple of {num_slices} slices",
            f"set data to {num_slices}",
        )

    def arrange(split: bool) -> np.ndarray:
        if num_slices == 1:
            return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=split)
        return mesh_utils.create_hybrid_device_mesh(
            (data // num_slices, fsdp, tensor),
            (num_slices, 1, 1),
            devices,
            allow_split_physical_axes=split,
        )

    try:
        return arrange(split=False)
    except NotImplementedError:  # an axis of the mesh takes part of an axis of the torus
        return arrange(split=True)


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh_shape: dict[str, int], name: str
) -> PartitionSpec:
    """The partition spec of an array with these logical axes.

    Mesh axes of size 1 are left out: they shard nothing and would only hide a collision. Raises
    InputError for a mesh axis used twice, or one that does not divide the dimension.
    """
    spec: list[tuple[str, ...] | str | None] = []
    used: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        rule = LOGICAL_AXIS_RULES[axis] if axis is not None else None
        rule = (rule,) if isinstance(rule, str) else rule or ()
        mesh_axes = tuple(m for m in rule if mesh_shape.get(m, 1) > 1)
        if used & set(mesh_axes):
            raise InputError(
                name,
                f"axes {tuple(axes)} use mesh axis {mesh_axes} twice",
                "change LOGICAL_AXIS_RULES",
            )
        num_shards = math.prod(mesh_shape[m] for m in mesh_axes)
        if size % num_shards:
            raise InputError(
                name,
                f"axis {axis!r} of {size} cannot be sharded over {num_shards} devices "
                f"(mesh {dict(mesh_shape)})",
                f"choose a mesh whose {' x '.join(mesh_axes)} divides {size}",
            )
        used |= set(mesh_axes)
        spec.append(mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
    return PartitionSpec(*spec)


def sharding(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], name: str = "array"
) -> NamedSharding:
    """The sharding of an array with these logical axes."""
    return NamedSharding(mesh, partition_spec(axes, shape, dict(mesh.shape), name))


def constrain(x: Shaped[Array, "..."], *axes: str | None) -> Shaped[Array, "..."]:
    """Applies a sharding constraint on the mesh set by `jax.set_mesh`; without one, returns x."""
    shape = mesh_shape()
    if math.prod(shape.values()) == 1:
        return x
    spec = partition_spec(axes, x.shape, shape, "activation")
    return jax.lax.with_sharding_constraint(x, spec)


def mesh_shape() -> dict[str, int]:
    """Sizes of the axes of the mesh set by `jax.set_mesh`; empty without one."""
    return dict(jax.sharding.get_abstract_mesh().shape)


def shard_map_logical(
    function: Callable[..., jax.Array],
    in_axes: Sequence[Sequence[str | None]],
    out_axes: Sequence[str | None],
    check_vma: bool = True,
) -> Callable[..., jax.Array]:
    """`jax.shard_map` over the current mesh, with logical axes.

    Args:
        function: of one array for each entry of `in_axes`; its result has the first one's shape.
        in_axes: logical axes of each argument.
        out_axes: logical axes of the result.
        check_vma: shard_map's; it spares a sum in the backward pass. Pallas kernels do not
            support it.
    """
    shape = mesh_shape()
    if math.prod(shape.values()) == 1:
        return function

    def sharded(*arrays: jax.Array) -> jax.Array:
        in_specs = tuple(
            partition_spec(axes, x.shape, shape, "activation")
            for axes, x in zip(in_axes, arrays, strict=True)
        )
        out_specs = partition_spec(out_axes, arrays[0].shape, shape, "activation")
        mapped = jax.shard_map(
            function, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma
        )
        return mapped(*arrays)

    return sharded


def current_platform() -> str:
    """Platform of the current mesh's devices, which may be those of another machine; without a
    mesh, of JAX's default backend: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def local_batch_shards(mesh: Mesh) -> list[int]:
    """Indices of the batch shards on this process's devices, in order."""
    is_local = np.vectorize(lambda d: d.process_index == jax.process_index())(mesh.devices)
    return [int(i) for i in np.flatnonzero(is_local.any(axis=2).reshape(-1))]


def num_batch_shards(mesh: Mesh | None) -> int:
    """The number of shards of the batch, in which the rows' clips are grouped as well."""
    return 1 if mesh is None else math.prod(mesh.shape[a] for a in BATCH_AXES)
