"""The needs of generation: prefill of one prompt, and decoding of one more token in all slots."""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qa_jax.checkpoint import abstract_params
from qa_jax.config import HOP_LENGTH, ModelConfig, RunConfig, SamplingConfig
from qa_jax.errors import InputError
from qa_jax.generate.buckets import Buckets
from qa_jax.generate.sampling import RowSettings, Sampled
from qa_jax.generate.slots import Programs, Prompts, Slots
from qa_jax.model import AudioInput, Qwen2Audio, count_parameters, parameter_bytes
from qa_jax.model.flops import forward_flops
from qa_jax.parallel import AXES, make_mesh, mesh_sizes, num_batch_shards
from qa_jax.plan.collectives import bytes_by_collective
from qa_jax.plan.compiled import compile_or_problem, read_program
from qa_jax.plan.cycles import KERNEL_EFFICIENCY
from qa_jax.plan.estimate import Plan, Shapes, batch_shapes, temporary_bytes
from qa_jax.plan.plan import USABLE_MEMORY_FRACTION
from qa_jax.plan.target import Target
from qa_jax.typing import DType, Params

NEW_TOKENS = 256
"""The cache's room for new tokens."""
_ITEMSIZE = 2
"""Bytes of an activation: generation in bfloat16."""


def make_generation_plan(
    config: RunConfig,
    target: Target,
    job: str,
    bucket: int | None = None,
    quick: bool = False,
    kernel_efficiency: float = KERNEL_EFFICIENCY,
) -> Plan:
    """The needs of a prefill, or of a decode step, on a target.

    Args:
        config: its model, mesh and `data.buckets`: a bucket has as many slots as rows, each for a
            prompt of `data.max_tokens` and its answer.
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
    # Slots are not sharded, their heads are.
    cache = 2 * text.num_hidden_layers * shapes.num_rows * cache_length * heads * _ITEMSIZE
    one = _one_call(shapes, job, num_shards)
    used = {
        "parameters": round(
            parameter_bytes(Qwen2Audio(model), jnp.bfloat16) / (sizes["fsdp"] * sizes["tensor"])
        ),
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
    gathered = parameter_bytes(Qwen2Audio(model), jnp.bfloat16) / sizes["tensor"] * fraction
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


def _one_call(shapes: Shapes, job: str, unit: int) -> Shapes:
    """Of a prefill: `unit` prompts with their clips; of a decode step: a token in each slot."""
    if job == "prefill":
        clips = -(-shapes.num_clips // shapes.num_rows) * unit
        return shapes._replace(num_rows=unit, num_clips=clips)
    return shapes._replace(num_tokens=1, num_clips=0, num_frames=0)


def _abstract_slots(programs: Programs, num_slots: int, length: int, mesh: Mesh) -> Slots:
    empty = functools.partial(programs.empty, num_slots, length, jnp.bfloat16)
    shapes = jax.eval_shape(empty)
    shardings = jax.jit(empty).lower().compile().output_shardings
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _compile(
    model: ModelConfig, slots: Shapes, mesh: Mesh, job: str, quick: bool
) -> tuple[jax.stages.Compiled | None, str]:
    """The compiled prefill or decode step; or None, and why it does not fit."""
    unit = num_batch_shards(mesh)
    one, programs = _one_call(slots, job, unit), Programs(model)
    params = abstract_params(Qwen2Audio(model), mesh, jnp.bfloat16)
    replicated = NamedSharding(mesh, PartitionSpec())

    def array(dtype: DType, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)

    with jax.set_mesh(mesh):
        buckets = Buckets(slots.num_tokens + NEW_TOKENS, "tpu")
        state = _abstract_slots(programs, slots.num_rows, buckets.length, mesh)
        if job == "decode":
            active = array(jnp.bool_, slots.num_rows)
            scalars = array(jnp.int32), array(jnp.bool_)
            lowered = programs.decode.jitted.lower(
                params, state, None, active, *scalars, window=buckets.length
            )
            return compile_or_problem(lowered, quick)
        settings = jax.tree.map(
            lambda x: array(x.dtype, unit, *x.shape[1:]), RowSettings.of([SamplingConfig()])
        )
        prompts = Prompts(
            tokens=array(jnp.int32, unit, one.num_tokens),
            num_tokens=array(jnp.int32, unit),
            slots=array(jnp.int32, unit),
            start=array(jnp.int32, unit),
            audio=array(jnp.bfloat16, unit, one.num_tokens, model.text.hidden_size),
            is_last=array(jnp.bool_, unit),
            in_prompt=array(jnp.bool_, unit, model.text.vocab_size),
            settings=settings,
        )
        audio = AudioInput(
            array(jnp.float32, one.num_clips, one.num_frames * HOP_LENGTH),
            array(jnp.int32, one.num_clips),
        )

        def first_token(
            params: Params, state: Slots, prompts: Prompts, audio: AudioInput
        ) -> tuple[Slots, Sampled, jax.Array]:
            embeds = programs.encode.function(params, audio) if one.num_clips else jnp.zeros(())
            state, sampled = programs.prefill.function(params, state, prompts, 0)
            return state, sampled, embeds

        lowered = jax.jit(first_token, donate_argnums=1).lower(params, state, prompts, audio)
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
    # stay in memory, and the cache, an argument of both that is written in place, is longer here
    # by what pads it.
    if job == "prefill":
        rest = program.argument_bytes - used["parameters"] - used["cache"]
        used["batch"] = max(0, rest)
    used["temporaries"], used["outputs"] = program.temporary_bytes, program.new_bytes
    # The loop over tokens has no constant trip count and is counted once.
    plan.network_bytes_per_chip = {**bytes_by_collective(program.text)}
    return program.text


def _set_times(plan: Plan, model: ModelConfig, target: Target) -> None:
    weights = parameter_bytes(Qwen2Audio(model), jnp.bfloat16) / plan.mesh["tensor"]
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
