"""What answering needs: prefill of a batch of prompts, and decoding of one more token."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qa_jax.checkpoint import abstract_params
from qa_jax.config import HOP_LENGTH, ModelConfig, RunConfig
from qa_jax.errors import InputError
from qa_jax.generate import Sampling
from qa_jax.generate.engine import Engine
from qa_jax.generate.inputs import ModelInputs
from qa_jax.model import Qwen2Audio, count_parameters
from qa_jax.model.flops import forward_parts
from qa_jax.parallel import AXES, BATCH_AXES, batch_shards, make_mesh, mesh_sizes
from qa_jax.plan.collectives import sent_by_kind
from qa_jax.plan.estimate import Plan, Shapes, batch_shapes, working_bytes
from qa_jax.plan.plan import MARGIN, compiled_or_problem
from qa_jax.plan.target import Target

NEW_TOKENS = 256
"""For which the cache has room."""
_WIDTH = 2
"""Bytes of a weight and of an activation: answers are given in bfloat16."""


def make_generation_plan(
    config: RunConfig, target: Target, job: str, bucket: int | None = None, quick: bool = False
) -> Plan:
    """What a prefill, or a decoded token, of a bucket's rows needs on a target.

    Args:
        config: of whose model, mesh and `data.buckets` it is; a row is `data.max_tokens` long.
        target: compiled for where it is a TPU, else counted.
        job: "prefill" or "decode".
        bucket: of `data.buckets`; the longest clips' unless named.
        quick: as for `make_plan`.
    """
    model = dataclasses.replace(config.model, dtype="bfloat16", remat="none", unroll=False)
    data = dataclasses.replace(config.data, pack_tokens=0)
    shapes = batch_shapes(dataclasses.replace(config, data=data), bucket)
    shapes = shapes._replace(accumulate=1, rows=config.data.buckets[shapes.frames])
    sizes = dict(zip(AXES, mesh_sizes(config.mesh, target.size), strict=True))
    cut = sizes["data"] * sizes["fsdp"]
    if shapes.rows % cut:
        raise InputError(
            "data.buckets", f"{shapes.rows} rows cannot be cut {cut} ways (mesh {sizes})"
        )
    plan = _counted(model, shapes, job, sizes, target)
    if target.devices:
        mesh = make_mesh(config.mesh, target.devices)
        _compile(plan, model, shapes, mesh, job, quick)
    _set_times(plan, model, target)
    return plan


def _counted(
    model: ModelConfig, shapes: Shapes, job: str, sizes: dict[str, int], target: Target
) -> Plan:
    parameters = count_parameters(Qwen2Audio(model))
    text, cut = model.text, sizes["data"] * sizes["fsdp"]
    slots = shapes.tokens + NEW_TOKENS
    heads = text.num_key_value_heads * text.head_dim // sizes["tensor"]
    cache = 2 * text.num_hidden_layers * (shapes.rows // cut) * slots * heads * _WIDTH
    one = shapes if job == "prefill" else shapes._replace(tokens=1, clips=0, frames=0)
    held = {
        "parameters": round(_WIDTH * parameters / (sizes["fsdp"] * sizes["tensor"])),
        "cache": cache,
        "temporaries": working_bytes(model, one, cut),
    }
    flops = sum(
        part.total
        for name, part in forward_parts(model, one.rows, one.tokens, one.clips, one.frames).items()
        if name != "head"
    )
    # A prompt's logits are computed of its last token alone.
    flops += 2 * shapes.rows * text.hidden_size * text.vocab_size
    if job == "decode":
        flops += 4 * shapes.rows * slots * text.num_hidden_layers * text.hidden_size
    gathered = _WIDTH * parameters / sizes["tensor"] * (sizes["fsdp"] - 1) / sizes["fsdp"]
    return Plan(
        topology=f"{target.name}, {job}",
        devices=target.size,
        mesh=sizes,
        shapes=one,
        remat="none",
        parameters=parameters,
        fits=sum(held.values()) <= MARGIN * target.chip.memory,
        compiled=False,
        bytes_per_chip=held,
        hbm_bytes_per_chip=target.chip.memory,
        flops_per_chip=flops / target.size,
        network_bytes_per_chip={"all-gather": gathered} if gathered else {},
    )


def _compile(
    plan: Plan, model: ModelConfig, prompts: Shapes, mesh: Mesh, job: str, quick: bool
) -> None:
    """Replaces what was counted by what the compiler says."""
    rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    b, t, frames = prompts.rows, prompts.tokens, prompts.frames

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    inputs = ModelInputs(
        tokens=array(jnp.int32, b, t),
        valid=array(jnp.bool_, b, t),
        signal=array(jnp.float32, b, frames * HOP_LENGTH) if frames else None,
        frames=array(jnp.int32, b) if frames else None,
    )
    params = abstract_params(Qwen2Audio(model), mesh, jnp.bfloat16)
    engine = Engine(model, params, batch_shards(mesh))
    how = Sampling(max_new_tokens=NEW_TOKENS, stop_ids=model.eos_token_ids)
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = engine._prefill.lower(params, inputs, slots=NEW_TOKENS, how=how)
        compiled, plan.problem = compiled_or_problem(lowered, quick)
        if job == "decode" and compiled is not None:
            shapes = jax.eval_shape(
                lambda p, i: engine._prefill_of(p, i, NEW_TOKENS, how), params, inputs
            )
            state = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                shapes,
                compiled.output_shardings,
            )
            until = jax.ShapeDtypeStruct((), jnp.int32)
            lowered = engine._decode.lower(params, state, until, prompt=t, how=how)
            compiled, plan.problem = compiled_or_problem(lowered, quick)
    plan.compiled, plan.compile_seconds = True, time.perf_counter() - started
    plan.fits = compiled is not None
    if compiled is None:
        return
    stats = compiled.memory_analysis()
    held = plan.bytes_per_chip
    # Parameters and cache are as counted: decoding is not even given the encoder's, which stay all
    # the same, and the cache is a result of the prefill and an argument of decoding.
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    if job == "prefill":
        held["batch"] = max(0, stats.argument_size_in_bytes - held["parameters"])
        new = max(0, new - held["cache"])
    held["temporaries"], held["outputs"] = stats.temp_size_in_bytes, new
    # The loop over tokens has no fixed number of rounds and is counted as one.
    plan.network_bytes_per_chip = {**sent_by_kind(compiled.as_text())}


def _set_times(plan: Plan, model: ModelConfig, target: Target) -> None:
    weights = _WIDTH * plan.parameters / plan.mesh["tensor"]
    gathered = 2 * weights if plan.mesh["fsdp"] > 1 else 0
    moved = weights + gathered + plan.bytes_per_chip["cache"]
    plan.set_times(
        {
            "compute": plan.flops_per_chip / target.chip.flops,
            "memory": moved / target.chip.bandwidth,
            "network": sum(plan.network_bytes_per_chip.values()) / target.chip.link,
        },
        target.chip,
    )
