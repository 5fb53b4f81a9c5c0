"""Compiling the step of `qa-jax train`, and reporting memory, FLOPs and collectives."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qa_jax.checkpoint import abstract_params
from qa_jax.config import HOP_LENGTH, RunConfig
from qa_jax.data import TrainBatch
from qa_jax.errors import InputError
from qa_jax.model import Qwen2Audio, count_parameters
from qa_jax.parallel import AXES, BATCH_AXES, make_mesh, mesh_sizes, num_batch_shards
from qa_jax.plan.collectives import bytes_by_collective
from qa_jax.plan.cycles import predict
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

LOW_EFFORT_OPTIONS: Any = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
"""Compiler options for `--quick` (libtpu 0.0.42: 7 s instead of 47 s for a decoder layer)."""
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
        return jitted.lower(state, _abstract_batch(shapes, mesh, has_log_probs), ref_params)


def _abstract_batch(shapes: Shapes, mesh: Mesh, has_log_probs: bool) -> TrainBatch:
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
    )


def make_plan(
    config: RunConfig, target: Target, bucket: int | None = None, quick: bool = False
) -> Plan:
    """The needs of a step on a target; compiled if the target is a TPU.

    Args:
        config: the run's; its model must state its vocabulary, since no tokenizer is read.
        target: see `find_target`.
        bucket: of `data.buckets`; the longest clips' by default.
        quick: compile with low effort: several times faster, memory slightly off.

    Raises:
        InputError: for a bucket that is not in data.buckets, or rows that the mesh does not divide.
    """
    plan, mesh = _analytic_plan(config, target, bucket)
    if mesh is None:
        return plan
    started = time.perf_counter()
    compiled, problem = compile_or_problem(lower_step(config, mesh, plan.shapes), quick)
    plan.compiled, plan.compile_seconds = True, time.perf_counter() - started
    if compiled is None:
        plan.fits, plan.problem = False, problem
    else:
        _fill_from_compiled(plan, compiled, config, target, quick)
    return plan


def compile_or_problem(
    lowered: jax.stages.Lowered, quick: bool
) -> tuple[jax.stages.Compiled | None, str]:
    """The compiled program; or None, and how much memory it would have needed."""
    try:
        return lowered.compile(LOW_EFFORT_OPTIONS if quick else None), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, _out_of_memory(str(error))


def _analytic_plan(
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
    plan: Plan, compiled: jax.stages.Compiled, config: RunConfig, target: Target, quick: bool
) -> None:
    """Replaces analytic values by the compiler's."""
    stats: Any = compiled.memory_analysis()
    used, analytic = {}, plan.bytes_per_chip
    rest = stats.argument_size_in_bytes
    for name in ("parameters", "optimizer", "ema", "reference"):
        used[name] = min(analytic.get(name, 0), rest)
        rest -= used[name]
    used["batch"] = rest
    # Gradients and activations are part of the compiler's temporaries.
    rest = stats.temp_size_in_bytes
    for name in ("gradients", "activations"):
        used[name] = min(analytic[name], rest)
        rest -= used[name]
    used["temporaries"] = rest
    used["outputs"] = stats.output_size_in_bytes - stats.alias_size_in_bytes
    plan.bytes_per_chip, plan.fits, plan.problem = used, True, ""
    text = compiled.as_text() or ""
    plan.network_bytes_per_chip = {**bytes_by_collective(text)}
    _set_times(plan, config, target)
    if target.chip.clock and not quick:  # with low effort the compiler makes much slower programs
        plan.set_prediction(predict(text, target.chip), target.chip)


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


def _out_of_memory(text: str) -> str:
    used = re.search(r"Used ([\d.]+\w+) of ([\d.]+\w+) hbm", text) or re.search(
        r"required[^(]*\(([\d.]+\w+)\) exceeds available[^(]*\(([\d.]+\w+)\)", text
    )
    return f"needs {used.group(1)} of {used.group(2)}" if used else " ".join(text.split())[:300]


def search(
    config: RunConfig,
    target: Target,
    report: Callable[[Plan], None] = lambda _: None,
    quick: bool = False,
) -> Plan | None:
    """The step that fits and computes most tokens a day, over batch sizes, remat policies and
    meshes.

    All candidates get an analytic plan; those that may fit are compiled from the fastest bound on,
    until no bound is above the best prediction. `report` is called with each compiled plan.
    """
    candidates = []
    for candidate in _candidates(config, target):
        try:
            plan, _ = _analytic_plan(candidate, target)
        except InputError:
            continue
        candidates.append((plan.tokens_per_chip_day, plan.fits, candidate))
    best: Plan | None = None
    for at_most, may_fit, candidate in sorted(candidates, key=lambda x: -x[0]):
        if best is not None and at_most <= best.tokens_per_chip_day:
            break
        if not may_fit:
            continue
        plan = make_plan(candidate, target, quick=quick)
        report(plan)
        if plan.fits and (best is None or plan.tokens_per_chip_day > best.tokens_per_chip_day):
            best = plan
    return best


def _candidates(config: RunConfig, target: Target) -> Iterator[RunConfig]:
    frames = max(config.data.buckets)
    for tensor in (1, 2, 4):
        if target.num_devices % tensor:
            continue
        num_shards = target.num_devices // tensor
        for rows_per_device in (1, 2, 4, 8, 16):
            buckets = {frames: rows_per_device * num_shards}
            for remat in ("full", "dots"):
                yield dataclasses.replace(
                    config,
                    mesh=dataclasses.replace(config.mesh, data=1, fsdp=-1, tensor=tensor),
                    data=dataclasses.replace(config.data, buckets=buckets),
                    model=dataclasses.replace(config.model, remat=remat),
                )
