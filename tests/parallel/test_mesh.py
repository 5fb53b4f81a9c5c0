"""Meshes and rules: what fits, and a clear word on what does not."""

from __future__ import annotations

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from qa_jax.config import MeshConfig, preset
from qa_jax.errors import InputError
from qa_jax.model import Qwen2Audio, param_specs
from qa_jax.parallel import constrain, make_mesh, num_batch_shards, partition_spec
from qa_jax.parallel.mesh import arrange_devices
from qa_jax.plan import find_target
from tests.plan.configs import needs_libtpu


def test_sizes() -> None:
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert num_batch_shards(mesh) == 4 and num_batch_shards(None) == 1
    for sizes in ((3, 1, 1), (-1, -1, 1), (3, -1, 1), (0, 1, 1)):
        with pytest.raises(InputError, match="mesh: "):
            make_mesh(MeshConfig(*sizes))


def test_specs() -> None:
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    assert partition_spec(("embed", "mlp"), (8, 6), mesh, "x") == P("fsdp", "tensor")
    assert partition_spec(("batch", "time"), (8, 6), mesh, "x") == P(("data", "fsdp"), None)
    assert partition_spec(("embed", "mlp"), (8, 6), {"fsdp": 1}, "x") == P(None, None)
    with pytest.raises(InputError, match="x: axis 'mlp' of 5 cannot be sharded over 2 devices"):
        partition_spec(("embed", "mlp"), (8, 5), mesh, "x")
    with pytest.raises(InputError, match="twice"):
        partition_spec(("embed", "batch"), (8, 8), mesh, "x")


@pytest.mark.parametrize("tensor", [1, 2, 4, 8, 16, 32])
def test_the_released_model_fits_usual_meshes(tensor: int) -> None:
    """Its 20 encoder heads hinder no tensor axis: they are not cut."""
    mesh = {"data": 2, "fsdp": 16, "tensor": tensor}
    for path, d in param_specs(Qwen2Audio(preset("qwen2_audio_7b"))).items():
        partition_spec(d.axes, d.shape, mesh, "/".join(path))


def test_constraints_need_a_mesh_to_act() -> None:
    x = jnp.zeros((8, 4, 2))
    assert constrain(x, "batch", "time", "act_embed") is x
    with jax.set_mesh(make_mesh(MeshConfig(2, 4, 1))):
        y = jax.jit(lambda x: constrain(x, "batch", "time", "act_embed"))(x)
        assert y.addressable_shards[0].data.shape == (1, 4, 2)
        with pytest.raises(InputError, match="cannot be sharded over 8 devices"):
            jax.jit(lambda x: constrain(x, "batch", "time", "act_embed"))(x[:5])


def test_hosts_of_gpus_make_one_mesh() -> None:
    """`slice_index` of GPUs and CPUs is the host's: it must not be taken for a TPU slice."""
    devices = [
        Mock(jax.Device, platform="gpu", id=i, process_index=i // 8, slice_index=i // 8)
        for i in range(16)
    ]
    grid = arrange_devices((1, 2, 8), devices[::-1])
    assert [[d.process_index for d in row] for row in grid[0]] == [[0] * 8, [1] * 8]
    assert arrange_devices((1, 16, 1), devices).shape == (1, 16, 1)


@needs_libtpu
@pytest.mark.parametrize(
    "topology",
    [
        "v5e:4x4",
        "v5e:16x16",
        "v6e:2x2",
        "v6e:2x4",
        "v6e:4x4",
        "v6e:16x16",
        "v5p:2x2x1",
        "v5p:4x4x4",
    ],
)
@pytest.mark.parametrize("slices", [1, 2, 4, 8])
def test_tpu_topologies_make_meshes(topology: str, slices: int) -> None:
    """Tensor axes from 1 to 8 fit every topology of the recipes; only `data` spans slices."""
    target = find_target(topology, slices)
    for tensor in (1, 2, 4, 8):
        if target.num_devices // slices % tensor:
            continue
        mesh = make_mesh(MeshConfig(data=slices, fsdp=-1, tensor=tensor), target.devices)
        assert mesh.shape["tensor"] == tensor and mesh.size == target.num_devices
        assert len(set(mesh.devices.flat)) == mesh.size
        for replica in mesh.devices:
            assert len({getattr(d, "slice_index", 0) for d in replica.flat}) == 1
    if slices > 1:
        with pytest.raises(InputError, match=f"set data to {slices}"):
            make_mesh(MeshConfig(), target.devices)
