"""One mesh of three axes and one table that says which axis cuts which dimension.

Axes of size 1 are always there, so a laptop and a pod run the same program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qa_jax.config import MeshConfig
from qa_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": BATCH_AXES,  # rows, and the audio clips that belong to them
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
    # The encoder has 20 heads, which few tensor axes divide: its attention is only cut by fsdp.
    "audio_heads": None,
    "conv_in": None,
    "norm": None,
    "rank": None,  # of adapters
}


def mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) for so many devices; raises InputError where they do not fit."""
    sizes = [config.data, config.fsdp, config.tensor]
    fixed = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise InputError("mesh", f"sizes {sizes} are not usable", "at most one -1, the rest >= 1")
    if -1 in sizes and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
    if math.prod(sizes) != devices:
        raise InputError(
            "mesh",
            f"data x fsdp x tensor = {sizes} does not make {devices} devices",
            "choose sizes whose product is the device count, or -1 for one of them",
        )
    data, fsdp, tensor = sizes
    return data, fsdp, tensor


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh over the devices; raises InputError where they do not fit."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(config, len(devices))
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices > 1:
        return _mesh_of_slices(sizes, slices, devices)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def _mesh_of_slices(
    sizes: tuple[int, int, int], slices: int, devices: Sequence[jax.Device]
) -> Mesh:
    """Only `data` crosses the slow network between slices: one gradient reduction a step."""
    from jax.experimental import mesh_utils

    data, fsdp, tensor = sizes
    if data % slices:
        raise InputError(
            "mesh", f"data = {data} is no multiple of {slices} slices", f"set data to {slices}"
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices
    )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh_shape: dict[str, int], name: str
) -> PartitionSpec:
    """The spec of an array with these logical axes; raises InputError for what cannot be cut so.

    Mesh axes of size 1 are left out: they cut nothing and would only hide a collision.
    """
    spec: list[tuple[str, ...] | str | None] = []
    used: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        rule = RULES[axis] if axis is not None else None
        rule = (rule,) if isinstance(rule, str) else rule or ()
        cut = tuple(m for m in rule if mesh_shape.get(m, 1) > 1)
        if used & set(cut):
            raise InputError(name, f"axes {tuple(axes)} use mesh axis {cut} twice", "fix RULES")
        ways = math.prod(mesh_shape[m] for m in cut)
        if size % ways:
            raise InputError(
                name,
                f"axis {axis!r} of {size} cannot be cut {ways} ways (mesh {dict(mesh_shape)})",
                f"choose a mesh whose {' x '.join(cut)} divides {size}",
            )
        used |= set(cut)
        spec.append(cut if len(cut) > 1 else (cut[0] if cut else None))
    return PartitionSpec(*spec)


def sharding(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], name: str = "array"
) -> NamedSharding:
    """Where an array with these logical axes lies on the mesh."""
    return NamedSharding(mesh, partition_spec(axes, shape, dict(mesh.shape), name))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the mesh that `jax.set_mesh` made current; without one, x itself."""
    shape = mesh_shape()
    if math.prod(shape.values()) == 1:
        return x
    spec = partition_spec(axes, x.shape, shape, "activation")
    return jax.lax.with_sharding_constraint(x, spec)


def mesh_shape() -> dict[str, int]:
    """Sizes of the axes of the mesh that `jax.set_mesh` made current; empty without one."""
    return dict(jax.sharding.get_abstract_mesh().shape)


def per_device(
    function: Callable[..., jax.Array],
    inputs: Sequence[Sequence[str | None]],
    output: Sequence[str | None],
    checked: bool = True,
) -> Callable[..., jax.Array]:
    """The function run by every device of the current mesh on its own part of the inputs.

    Args:
        function: of arrays, one to each entry of `inputs`; what it returns has the first one's
            shape.
        inputs: logical axes of each argument.
        output: logical axes of what it returns.
        checked: let JAX follow what is the same on several devices, which spares a sum over them in
            the backward pass; kernels of Pallas do not tell it.
    """
    shape = mesh_shape()
    if math.prod(shape.values()) == 1:
        return function

    def run(*arrays: jax.Array) -> jax.Array:
        specs = tuple(
            partition_spec(axes, x.shape, shape, "activation")
            for axes, x in zip(inputs, arrays, strict=True)
        )
        out = partition_spec(output, arrays[0].shape, shape, "activation")
        run = jax.shard_map(function, in_specs=specs, out_specs=out, check_vma=checked)
        return run(*arrays)

    return run


def current_platform() -> str:
    """Platform of the current mesh's devices, which may be those of another machine; without a
    mesh, JAX's own: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def local_groups(mesh: Mesh) -> list[int]:
    """Which of the `batch_shards` this process's devices hold, in order."""
    here = np.vectorize(lambda d: d.process_index == jax.process_index())(mesh.devices)
    return [int(i) for i in np.flatnonzero(here.any(axis=2).reshape(-1))]


def batch_shards(mesh: Mesh | None) -> int:
    """How many ways the batch is cut, which is also how many groups its clips come in."""
    return 1 if mesh is None else math.prod(mesh.shape[a] for a in BATCH_AXES)
