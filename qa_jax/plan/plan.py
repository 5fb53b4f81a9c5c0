"""Compiling the step of `qa-jax train`, and reporting memory, FLOPs and collectives."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qa_jax.checkpoint import abstract_params
from qa_jax.config import HOP_LENGTH, RunConfig
from qa_jax.data import TrainBatch
from qa_jax.errors import InputError
from qa_jax.model import Qwen2Audio, count_parameters
from qa_jax.parallel import AXES, BATCH_AXES, make_mesh, mesh_sizes, num_batch_shards
from qa_jax.parallel.xla_flags import xla_flags
from qa_jax.plan.collectives import bytes_by_collective
from qa_jax.plan.compiled import CompiledProgram, compile_cached
from qa_jax.plan.cycles import KERNEL_EFFICIENCY
from qa_jax.plan.estimate import (
    Plan,
    Shapes,
    analytic_network_bytes,
    batch_shapes,
    executed_flops,
    memory_seconds,
    model_flops,
    saved_activation_bytes,
    state_bytes,
    temporary_bytes,
)
from qa_jax.plan.target import Target
from qa_jax.train.models import make_models
from qa_jax.train.objectives import make_objective
from qa_jax.train.run import make_run_optimizer, make_run_step
from qa_jax.train.sharding import check_sufficiently_sharded
from qa_jax.train.state import abstract_state
from qa_jax.train.step import jit_train_step
from qa_jax.typing import DType

USABLE_MEMORY_FRACTION = 0.94
"""Fraction of a GPU's memory that a program can use; the rest is CUDA's and fragmentation."""


def lower_step(config: RunConfig, mesh: Mesh, shapes: Shapes) -> jax.stages.Lowered:
    """The training step, traced for a mesh whose devices need not exist on this machine."""
    models = make_models(config.model, config.lora)
    optimizer = make_run_optimizer(config, models)
    state = abstract_state(config, models, optimizer, mesh)
    objective = make_objective(config, models, num_batch_shards(mesh))
    step = make_run_step(config, models, objective, optimizer)
    ref_params = None
    if objective.reference == "in_memory":
        ref_params = abstract_params(models.base, mesh, jnp.dtype(config.model.dtype))
    has_log_probs = objective.reference == "precomputed"
    with jax.set_mesh(mesh):
        jitted = jit_train_step(step, state, config.train.xla_flags)
        has_sources = bool(config.data.source_names()) and objective.num_completions == 1
        batch = _abstract_batch(
            shapes, mesh, has_log_probs, config.augment.changes_step, has_sources
        )
        return jitted.lower(state, batch, ref_params)


def _abstract_batch(
    shapes: Shapes, mesh: Mesh, has_log_probs: bool, has_seeds: bool, has_sources: bool
) -> TrainBatch:
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def array(dtype: DType, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shapes.grad_accum_steps, *shape), dtype, sharding=sharding)

    row = (shapes.num_rows, shapes.num_tokens)
    clips = shapes.num_clips, shapes.num_frames * HOP_LENGTH
    return TrainBatch(
        tokens=array(jnp.int32, *row),
        segment_ids=array(jnp.int32, *row),
        loss_weights=array(jnp.float32, *row),
        waveform=array(jnp.float32, *clips) if shapes.num_clips else None,
        num_frames=array(jnp.int32, shapes.num_clips) if shapes.num_clips else None,
        reference_log_probs=array(jnp.float32, shapes.num_rows) if has_log_probs else None,
        source_ids=array(jnp.int8, *row) if has_sources else None,
        augment_seeds=array(jnp.uint32, shapes.num_clips, 2)
        if has_seeds and shapes.num_clips
        else None,
    )


def make_plan(
    config: RunConfig,
    target: Target,
    bucket: int | None = None,
    quick: bool = False,
    kernel_efficiency: float = KERNEL_EFFICIENCY,
    cache_dir: Path | None = None,
) -> Plan:
    """The needs of a step on a target; compiled if the target is a TPU.

    Args:
        config: the run's; its model must state its vocabulary, since no tokenizer is read.
        target: see `find_target`.
        bucket: of `data.buckets`; the longest clips' by default.
        quick: compile with low effort: several times faster, memory slightly off, no prediction.
        kernel_efficiency: see `qa_jax.plan.cycles.KERNEL_EFFICIENCY`.
        cache_dir: of what earlier plans read from compiled programs; None compiles in any case.

    Raises:
        InputError: for a bucket that is not in data.buckets, or rows that the mesh does not divide.
    """
    plan, mesh = analytic_plan(config, target, bucket)
    if mesh is None:
        return plan
    device = mesh.devices.flat[0]
    key = {
        "compiler": device.client.platform_version,
        "devices": [target.name, *mesh.device_ids.reshape(-1).tolist()],
        "xla_flags": dict(xla_flags(device.platform, config.train.xla_flags)),
    }
    program = compile_cached(lower_step(config, mesh, plan.shapes), quick, cache_dir, key)
    plan.compiled, plan.compile_seconds = True, program.seconds
    plan.fits, plan.problem = not program.problem, program.problem
    if plan.fits:
        _fill_from_compiled(plan, program, config, target)
        if not quick:  # with low effort the compiler makes much slower programs
            plan.set_prediction(program.text, target.chip, kernel_efficiency)
    return plan


def analytic_plan(
    config: RunConfig, target: Target, bucket: int | None = None
) -> tuple[Plan, Mesh | None]:
    """A plan without compiling, and the mesh to compile for."""
    shapes, models = batch_shapes(config, bucket), make_models(config.model, config.lora)
    mesh = make_mesh(config.mesh, target.devices) if target.devices else None
    sizes = dict(zip(AXES, mesh_sizes(config.mesh, target.num_devices), strict=True))
    if mesh is not None:
        check_sufficiently_sharded(models.policy, mesh)
    num_shards = sizes["data"] * sizes["fsdp"]
    if shapes.num_rows % num_shards:
        raise InputError(
            "data.buckets",
            f"{shapes.num_rows} rows cannot be sharded over {num_shards} devices (mesh {sizes})",
            f"choose a multiple of {num_shards}",
        )
    used = state_bytes(config, models, sizes["fsdp"] * sizes["tensor"])
    used["activations"] = saved_activation_bytes(config, models, shapes, num_shards)
    used["temporaries"] = temporary_bytes(config.model, shapes, num_shards)
    plan = Plan(
        topology=target.name,
        devices=target.num_devices,
        mesh=sizes,
        shapes=shapes,
        remat=config.model.remat,
        parameters=count_parameters(Qwen2Audio(config.model)),
        fits=sum(used.values()) <= USABLE_MEMORY_FRACTION * target.chip.memory,
        compiled=False,
        bytes_per_chip=used,
        hbm_bytes_per_chip=target.chip.memory,
        flops_per_chip=model_flops(config, models, shapes) / target.num_devices,
    )
    plan.network_bytes_per_chip = analytic_network_bytes(plan, config.model)
    _set_times(plan, config, target)
    if not plan.fits:
        plan.problem = f"{sum(used.values()) / 2**30:.1f} GiB (analytic)"
    return plan, mesh


def _fill_from_compiled(
    plan: Plan, program: CompiledProgram, config: RunConfig, target: Target
) -> None:
    """Replaces analytic values by the compiler's."""
    used, analytic = {}, plan.bytes_per_chip
    rest = program.argument_bytes
    for name in ("parameters", "optimizer", "ema", "reference"):
        used[name] = min(analytic.get(name, 0), rest)
        rest -= used[name]
    used["batch"] = rest
    # Gradients and activations are part of the compiler's temporaries.
    rest = program.temporary_bytes
    for name in ("gradients", "activations"):
        used[name] = min(analytic[name], rest)
        rest -= used[name]
    used["temporaries"], used["outputs"] = rest, program.new_bytes
    plan.bytes_per_chip = used
    plan.network_bytes_per_chip = {**bytes_by_collective(program.text)}
    _set_times(plan, config, target)


def _set_times(plan: Plan, config: RunConfig, target: Target) -> None:
    models = make_models(config.model, config.lora)
    executed = executed_flops(config, models, plan.shapes) / target.num_devices
    plan.set_times(
        {
            "compute": executed / target.chip.flops,
            "memory": memory_seconds(plan, config.model, target.chip),
            "network": sum(plan.network_bytes_per_chip.values()) / target.chip.ici_bandwidth,
        },
        target.chip,
    )
