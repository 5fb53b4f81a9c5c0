"""The needs of generation: prefill of a batch of prompts, and decoding of one more token."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qa_jax.checkpoint import abstract_params
from qa_jax.config import HOP_LENGTH, ModelConfig, RunConfig, SamplingConfig
from qa_jax.errors import InputError
from qa_jax.generate import Engine, ModelInputs
from qa_jax.model import Qwen2Audio, count_parameters
from qa_jax.model.flops import forward_flops
from qa_jax.parallel import AXES, BATCH_AXES, make_mesh, mesh_sizes, num_batch_shards
from qa_jax.plan.collectives import bytes_by_collective
from qa_jax.plan.compiled import compile_or_problem, read_program
from qa_jax.plan.cycles import KERNEL_EFFICIENCY
from qa_jax.plan.estimate import Plan, Shapes, batch_shapes, temporary_bytes
from qa_jax.plan.plan import USABLE_MEMORY_FRACTION
from qa_jax.plan.target import Target
from qa_jax.typing import DType

NEW_TOKENS = 256
"""The cache's room for new tokens."""
_ITEMSIZE = 2
"""Bytes of a weight and of an activation: generation in bfloat16."""


def make_generation_plan(
    config: RunConfig,
    target: Target,
    job: str,
    bucket: int | None = None,
    quick: bool = False,
    kernel_efficiency: float = KERNEL_EFFICIENCY,
) -> Plan:
    """The needs of a prefill, or of a decode step, of a bucket's rows on a target.

    Args:
        config: its model, mesh and `data.buckets`; a row is `data.max_tokens` long.
        target: compiled for a TPU, otherwise analytic.
        job: "prefill" or "decode".
        bucket: of `data.buckets`; the longest clips' by default.
        quick, kernel_efficiency: as for `make_plan`.
    """
    model = dataclasses.replace(config.model, dtype="bfloat16", remat="none", unroll_layers=False)
    data = dataclasses.replace(config.data, packed_length=0)
    shapes = batch_shapes(dataclasses.replace(config, data=data), bucket)
    shapes = shapes._replace(grad_accum_steps=1, num_rows=config.data.buckets[shapes.num_frames])
    sizes = dict(zip(AXES, mesh_sizes(config.mesh, target.num_devices), strict=True))
    num_shards = sizes["data"] * sizes["fsdp"]
    if shapes.num_rows % num_shards:
        raise InputError(
            "data.buckets",
            f"{shapes.num_rows} rows cannot be sharded over {num_shards} devices (mesh {sizes})",
        )
    plan = _analytic_plan(model, shapes, job, sizes, target)
    text = ""
    if target.devices:
        mesh = make_mesh(config.mesh, target.devices)
        text = _fill_from_compiled(plan, model, shapes, mesh, job, quick)
    _set_times(plan, model, target)
    if text and not quick:
        # A decode step is one run of the loop over tokens, which counts once; what is before and
        # after the loop belongs to the whole answer.
        plan.set_prediction(text, target.chip, kernel_efficiency, loops_only=job == "decode")
    return plan


def _analytic_plan(
    model: ModelConfig, shapes: Shapes, job: str, sizes: dict[str, int], target: Target
) -> Plan:
    parameters = count_parameters(Qwen2Audio(model))
    text, num_shards = model.text, sizes["data"] * sizes["fsdp"]
    cache_length = shapes.num_tokens + NEW_TOKENS
    heads = text.num_key_value_heads * text.head_dim // sizes["tensor"]
    local_rows = shapes.num_rows // num_shards
    cache = 2 * text.num_hidden_layers * local_rows * cache_length * heads * _ITEMSIZE
    one = shapes
    if job != "prefill":
        one = shapes._replace(num_tokens=1, num_clips=0, num_frames=0)
    used = {
        "parameters": round(_ITEMSIZE * parameters / (sizes["fsdp"] * sizes["tensor"])),
        "cache": cache,
        "temporaries": temporary_bytes(model, one, num_shards),
    }
    parts = forward_flops(model, one.num_rows, one.num_tokens, one.num_clips, one.num_frames)
    flops = sum(part.total for name, part in parts.items() if name != "head")
    # Logits of a prompt are computed at its last token only.
    flops += 2 * shapes.num_rows * text.hidden_size * text.vocab_size
    if job == "decode":
        flops += 4 * shapes.num_rows * cache_length * text.num_hidden_layers * text.hidden_size
    fraction = (sizes["fsdp"] - 1) / sizes["fsdp"]
    gathered = _ITEMSIZE * parameters / sizes["tensor"] * fraction
    return Plan(
        topology=f"{target.name}, {job}",
        devices=target.num_devices,
        mesh=sizes,
        shapes=one,
        remat="none",
        parameters=parameters,
        fits=sum(used.values()) <= USABLE_MEMORY_FRACTION * target.chip.memory,
        compiled=False,
        bytes_per_chip=used,
        hbm_bytes_per_chip=target.chip.memory,
        flops_per_chip=flops / target.num_devices,
        network_bytes_per_chip={"all-gather": gathered} if gathered else {},
    )


def _abstract_inputs(prompts: Shapes, mesh: Mesh) -> ModelInputs:
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    b, t, frames = prompts.num_rows, prompts.num_tokens, prompts.num_frames

    def array(dtype: DType, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return ModelInputs(
        tokens=array(jnp.int32, b, t),
        attention_mask=array(jnp.bool_, b, t),
        waveform=array(jnp.float32, b, frames * HOP_LENGTH) if frames else None,
        num_frames=array(jnp.int32, b) if frames else None,
    )


def _compile(
    model: ModelConfig, prompts: Shapes, mesh: Mesh, job: str, quick: bool
) -> tuple[jax.stages.Compiled | None, str]:
    """The compiled prefill or decode step; or None, and why it does not fit."""
    inputs = _abstract_inputs(prompts, mesh)
    params = abstract_params(Qwen2Audio(model), mesh, jnp.bfloat16)
    engine = Engine(model, params, num_batch_shards(mesh))
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, stop_ids=model.eos_token_ids)
    with jax.set_mesh(mesh):
        lowered = engine.prefill_jit.lower(
            params, inputs, new_entries=NEW_TOKENS, sampling=sampling
        )
        compiled, problem = compile_or_problem(lowered, quick)
        if job == "prefill" or compiled is None:
            return compiled, problem
        shapes = jax.eval_shape(
            lambda p, i: engine.prefill(p, i, NEW_TOKENS, sampling), params, inputs
        )
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            compiled.output_shardings,
        )
        num_tokens = jax.ShapeDtypeStruct((), jnp.int32)
        lowered = engine.decode_jit.lower(
            params, state, num_tokens, prompt_length=prompts.num_tokens, sampling=sampling
        )
        return compile_or_problem(lowered, quick)


def _fill_from_compiled(
    plan: Plan, model: ModelConfig, prompts: Shapes, mesh: Mesh, job: str, quick: bool
) -> str:
    """Replaces analytic values by the compiler's. Returns the program, "" if it does not fit."""
    started = time.perf_counter()
    compiled, plan.problem = _compile(model, prompts, mesh, job, quick)
    plan.compiled, plan.compile_seconds = True, time.perf_counter() - started
    plan.fits = compiled is not None
    if compiled is None:
        return ""
    program, used = read_program(compiled, plan.compile_seconds), plan.bytes_per_chip
    # Parameters and cache stay analytic: the encoder's parameters are no argument of decoding but
    # stay in memory, and the cache is a result of the prefill and an argument of decoding.
    new = program.new_bytes
    if job == "prefill":
        used["batch"] = max(0, program.argument_bytes - used["parameters"])
        new = max(0, new - used["cache"])
    used["temporaries"], used["outputs"] = program.temporary_bytes, new
    # The loop over tokens has no constant trip count and is counted once.
    plan.network_bytes_per_chip = {**bytes_by_collective(program.text)}
    return program.text


def _set_times(plan: Plan, model: ModelConfig, target: Target) -> None:
    weights = _ITEMSIZE * plan.parameters / plan.mesh["tensor"]
    gathered = 2 * weights if plan.mesh["fsdp"] > 1 else 0
    traffic = weights + gathered + plan.bytes_per_chip["cache"]
    plan.set_times(
        {
            "compute": plan.flops_per_chip / target.chip.flops,
            "memory": traffic / target.chip.bandwidth,
            "network": sum(plan.network_bytes_per_chip.values()) / target.chip.ici_bandwidth,
        },
        target.chip,
    )
