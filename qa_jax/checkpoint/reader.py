"""Reading the steps of a checkpoint directory, also while a training run writes to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from qa_jax.checkpoint.directory import STEPS
from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from qa_jax.model import Qwen2Audio, param_specs
from qa_jax.parallel import sharding
from qa_jax.paths import AnyPath, PathLike, as_path, is_remote
from qa_jax.trees import unflatten_dict
from qa_jax.typing import DType, Params, PyTree

_COMMITTED = "commit_success.txt"
"""The last object that Orbax writes of a step in object storage, which cannot rename."""


def step_path(directory: PathLike, step: int) -> AnyPath:
    """The directory of a step, absolute, as Orbax demands."""
    root = as_path(directory)
    return (root if is_remote(root) else root.absolute()) / STEPS / str(step)


def all_steps(directory: PathLike) -> list[int]:
    """The complete steps, in ascending order. Nothing is written: a directory that is still being
    saved has another name, or lacks Orbax's marker, and stays as it is."""
    root = as_path(directory) / STEPS
    if not root.is_dir():
        return []
    steps = [path for path in root.iterdir() if path.name.isdigit()]
    if is_remote(root):
        steps = [path for path in steps if (path / _COMMITTED).exists()]
    return sorted(int(path.name) for path in steps)


def find_step(directory: PathLike, step: int | None = None) -> int:
    """The latest complete step, or `step`; raises InputError if there is no such step."""
    steps = all_steps(directory)
    if not steps:
        raise InputError(directory, "has no complete checkpoint", "let training save a step first")
    if step is not None and step not in steps:
        raise InputError(directory, f"has no step {step}", f"choose from {steps}")
    return steps[-1] if step is None else step


def step_metadata(directory: PathLike, step: int) -> dict[str, PyTree]:
    """A step's trees of shapes and dtypes, without reading arrays."""
    return ocp.checkpointables_metadata(step_path(directory, step)).metadata


def restore(directory: PathLike, step: int, **abstract: PyTree) -> dict[str, PyTree]:
    """The named trees of a step, with the shapes, dtypes and shardings of `abstract`."""
    path = step_path(directory, step)
    try:
        return ocp.load_checkpointables(path, abstract)
    except Exception as error:  # a damaged file raises many types in the libraries below
        text = " ".join(str(error).split())
        raise InputError(path, f"cannot be restored ({text})", "use another step") from error


def abstract_params(
    model: Qwen2Audio, mesh: Mesh | None = None, dtype: DType = jnp.float32
) -> Params:
    """The parameters' shapes, dtypes and shardings: on the mesh, or on one device without one.

    `dtype` is that of parameters for which the model declares none.
    """
    one_device = SingleDeviceSharding(jax.local_devices()[0])
    flat = {}
    for path, spec in param_specs(model).items():
        placed: jax.sharding.Sharding = one_device
        if mesh is not None:
            placed = sharding(mesh, spec.axes, spec.shape, "/".join(path))
        flat[path] = jax.ShapeDtypeStruct(spec.shape, spec.dtype or dtype, sharding=placed)
    return unflatten_dict(flat)


def load_params(
    directory: PathLike,
    config: ModelConfig,
    mesh: Mesh | None = None,
    dtype: DType = None,
    step: int | None = None,
) -> Params:
    """Parameters of the latest step (or of `step`), each device reading its own shards.

    `dtype` None keeps the stored dtypes.
    """
    found = find_step(directory, step)
    abstract = abstract_params(Qwen2Audio(config), mesh, jnp.float32 if dtype is None else dtype)
    if dtype is None:
        stored = step_metadata(directory, found)["params"]
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, s.dtype, sharding=x.sharding),
            abstract,
            stored,
        )
    return restore(directory, found, params=abstract)["params"]
