"""Scanned and unrolled layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from qa_jax.config import ModelConfig
from qa_jax.model import AttentionMask, Qwen2Audio, TextDecoder, bind, initialize


@pytest.mark.parametrize("unroll", [False, True])
def test_remat_saves_memory_however_layers_are_compiled(tiny: ModelConfig, unroll: bool) -> None:
    """An unrolled model recomputes what remat says, too: its temporaries shrink as a scan's do."""
    text = dataclasses.replace(tiny.text, num_hidden_layers=8)
    temporaries = {}
    for remat in ("none", "full"):
        config = dataclasses.replace(tiny, text=text, unroll_layers=unroll, remat=remat)  # type: ignore[arg-type]
        model = Qwen2Audio(config)
        bound = bind(model)
        tokens = jnp.ones((2, 256), jnp.int32)

        def loss(params: dict, bound=bound, tokens=tokens) -> jax.Array:  # type: ignore[no-untyped-def]
            return jnp.sum(bound(params)(tokens, tokens)[0] ** 2)

        params = jax.eval_shape(lambda model=model: initialize(model, jax.random.key(0)))
        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        temporaries[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries["full"] < 0.6 * temporaries["none"], temporaries


def test_remat_repeats_what_is_not_saved(tiny: ModelConfig) -> None:
    """Full recomputation has one more product, and the softmax; `mlp` has two fewer."""
    config = dataclasses.replace(tiny.text, num_hidden_layers=2)
    t, d = 256, config.hidden_size
    flops = {}
    for remat in ("full", "attention", "mlp"):
        model = TextDecoder(config, remat=remat)
        bound = bind(model)
        positions, ones = jnp.arange(t)[None], jnp.ones((1, t), jnp.int32)
        mask = AttentionMask(ones, ones, is_causal=True)

        def loss(params: dict, x: jax.Array, bound=bound, inputs=(positions, mask)) -> jax.Array:  # type: ignore[no-untyped-def]
            return jnp.sum(bound(params)(x, *inputs)[0] ** 2)

        params = jax.eval_shape(lambda model=model: initialize(model, jax.random.key(0)))
        x = jax.ShapeDtypeStruct((1, t, d), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
        costs: Any = compiled.cost_analysis()
        flops[remat] = costs["flops"]
    # The compiler counts the scanned layer once. Attention's forward pass is two products, of which
    # the backward pass needs the first in any case.
    product = 2 * t * t * config.num_attention_heads * config.head_dim
    assert product < flops["full"] - flops["attention"] < 2 * product
    two_products = 2 * 2 * t * d * config.intermediate_size
    assert flops["attention"] - flops["mlp"] == pytest.approx(two_products, rel=0.05)
