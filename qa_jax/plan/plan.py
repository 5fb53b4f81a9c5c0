"""Compiling the step that `qa-jax train` would run, and reading off what it needs."""

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
from qa_jax.parallel import AXES, BATCH_AXES, batch_shards, make_mesh, mesh_sizes
from qa_jax.plan.collectives import sent_by_kind
from qa_jax.plan.estimate import (
    Plan,
    Shapes,
    batch_shapes,
    counted_network_bytes,
    executed_flops,
    kept_bytes,
    memory_seconds,
    model_flops,
    state_bytes,
    working_bytes,
)
from qa_jax.plan.target import Target
from qa_jax.train.optimizer import make_optimizer
from qa_jax.train.setup import abstract_state, make_models, make_run_step
from qa_jax.train.sharding import refuse_replicated
from qa_jax.train.step import jit_step

QUICK = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
"""Compiler options for a look (libtpu 0.0.42: 7 s instead of 47 s for a layer of the decoder)."""
MARGIN = 0.94
"""Share of a GPU's memory that a program gets; the rest is CUDA's and fragments."""


def lower_step(config: RunConfig, mesh: Mesh, shapes: Shapes) -> Any:
    """The training step, traced for a mesh whose devices need not be here."""
    models = make_models(config.model, config.lora)
    optimizer = make_optimizer(config.optimizer, config.train.steps, models.model)
    state = abstract_state(config, models, optimizer, mesh)
    step = make_run_step(config, models, optimizer, batch_shards(mesh))
    stay = None
    preferred = config.train.objective == "preferences"
    if preferred and not models.adapted and config.preference.reference == "keep":
        stay = abstract_params(models.base, mesh, jnp.dtype(config.model.dtype))
    with jax.set_mesh(mesh):
        jitted: Any = jit_step(step, state, config.train.xla)
        return jitted.lower(state, _abstract_batch(config, shapes, mesh), stay)


def _abstract_batch(config: RunConfig, shapes: Shapes, mesh: Mesh) -> TrainBatch:
    place = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((shapes.accumulate, *shape), dtype, sharding=place)

    row = (shapes.rows, shapes.tokens)
    clips = shapes.clips, shapes.frames * HOP_LENGTH
    stored = config.train.objective == "preferences" and config.preference.reference == "store"
    return TrainBatch(
        tokens=array(jnp.int32, *row),
        segments=array(jnp.int32, *row),
        weights=array(jnp.float32, *row),
        signal=array(jnp.float32, *clips) if shapes.clips else None,
        frames=array(jnp.int32, shapes.clips) if shapes.clips else None,
        reference=array(jnp.float32, shapes.rows) if stored else None,
    )


def make_plan(
    config: RunConfig, target: Target, bucket: int | None = None, quick: bool = False
) -> Plan:
    """What a step of these settings needs on a target; compiled where the target is a TPU.

    Args:
        config: the run's; its model must say its own vocabulary, for no tokenizer is read.
        target: see `find_target`.
        bucket: of `data.buckets`; the longest clips' unless named.
        quick: let the compiler optimize little: several times faster, memory a little off.

    Raises:
        InputError: for a bucket that is not there, or rows and mesh that do not fit.
    """
    plan, mesh = _counted(config, target, bucket)
    if mesh is None:
        return plan
    started = time.perf_counter()
    compiled, problem = compiled_or_problem(lower_step(config, mesh, plan.shapes), quick)
    plan.compiled, plan.compile_seconds = True, time.perf_counter() - started
    if compiled is None:
        plan.fits, plan.problem = False, problem
    else:
        _read_off(plan, compiled, config, target)
    return plan


def compiled_or_problem(lowered: Any, quick: bool) -> tuple[Any, str]:
    """The compiled program; or None, and how much memory it would have needed."""
    try:
        return lowered.compile(QUICK if quick else None), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, _out_of_memory(str(error))


def _counted(
    config: RunConfig, target: Target, bucket: int | None = None
) -> tuple[Plan, Mesh | None]:
    """The part of a plan that needs no compiler, and the mesh to compile for."""
    shapes, models = batch_shapes(config, bucket), make_models(config.model, config.lora)
    mesh = make_mesh(config.mesh, target.devices) if target.devices else None
    sizes = dict(zip(AXES, mesh_sizes(config.mesh, target.size), strict=True))
    if mesh is not None:
        refuse_replicated(models.model, mesh)
    rows_cut = sizes["data"] * sizes["fsdp"]
    if shapes.rows % rows_cut:
        raise InputError(
            "data.buckets",
            f"{shapes.rows} rows cannot be cut {rows_cut} ways (mesh {sizes})",
            f"choose a multiple of {rows_cut}",
        )
    held = state_bytes(config, models, sizes["fsdp"] * sizes["tensor"])
    held["activations"] = kept_bytes(config, models, shapes, rows_cut)
    held["temporaries"] = working_bytes(config.model, shapes, rows_cut)
    plan = Plan(
        topology=target.name,
        devices=target.size,
        mesh=sizes,
        shapes=shapes,
        remat=config.model.remat,
        parameters=count_parameters(Qwen2Audio(config.model)),
        fits=sum(held.values()) <= MARGIN * target.chip.memory,
        compiled=False,
        bytes_per_chip=held,
        hbm_bytes_per_chip=target.chip.memory,
        flops_per_chip=model_flops(config, models, shapes) / target.size,
    )
    plan.network_bytes_per_chip = counted_network_bytes(plan, config.model)
    _set_times(plan, config, target)
    if not plan.fits:
        plan.problem = f"{sum(held.values()) / 2**30:.1f} GiB by count"
    return plan, mesh


def _read_off(plan: Plan, compiled: Any, config: RunConfig, target: Target) -> None:
    """Replaces what was counted by what the compiler says."""
    stats = compiled.memory_analysis()
    held, counted = {}, plan.bytes_per_chip
    rest = stats.argument_size_in_bytes
    for name in ("parameters", "optimizer", "average", "reference"):
        held[name] = min(counted.get(name, 0), rest)
        rest -= held[name]
    held["batch"] = rest
    # Gradients and activations lie in what the compiler calls temporary.
    rest = stats.temp_size_in_bytes
    for name in ("gradients", "activations"):
        held[name] = min(counted[name], rest)
        rest -= held[name]
    held["temporaries"] = rest
    held["outputs"] = stats.output_size_in_bytes - stats.alias_size_in_bytes
    plan.bytes_per_chip, plan.fits, plan.problem = held, True, ""
    plan.network_bytes_per_chip = {**sent_by_kind(compiled.as_text())}
    _set_times(plan, config, target)


def _set_times(plan: Plan, config: RunConfig, target: Target) -> None:
    models = make_models(config.model, config.lora)
    executed = executed_flops(config, models, plan.shapes) / target.size
    plan.set_times(
        {
            "compute": executed / target.chip.flops,
            "memory": memory_seconds(plan, config.model, target.chip),
            "network": sum(plan.network_bytes_per_chip.values()) / target.chip.link,
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
    """The fastest step that fits, of several batches, remat policies and meshes.

    All are counted first; those that may fit are compiled from the fastest on, until one does.
    `report` is told of each that was compiled.
    """
    counted = []
    for candidate in _candidates(config, target):
        try:
            plan, _ = _counted(candidate, target)
        except InputError:
            continue
        counted.append((plan.tokens_per_chip_day, plan.fits, candidate))
    ranked = sorted(counted, key=lambda x: -x[0])
    for _, may_fit, candidate in ranked:
        if not may_fit:
            continue
        plan = make_plan(candidate, target, quick=quick)
        report(plan)
        if plan.fits:
            return plan
    return None


def _candidates(config: RunConfig, target: Target) -> Iterator[RunConfig]:
    frames = max(config.data.buckets)
    for tensor in (1, 2, 4):
        if target.size % tensor:
            continue
        cut = target.size // tensor
        for each in (1, 2, 4, 8, 16):
            for remat in ("full", "dots"):
                yield dataclasses.replace(
                    config,
                    mesh=dataclasses.replace(config.mesh, data=1, fsdp=-1, tensor=tensor),
                    data=dataclasses.replace(config.data, buckets={frames: each * cut}),
                    model=dataclasses.replace(config.model, remat=remat),
                )
