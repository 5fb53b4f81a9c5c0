"""Scanned and unrolled layers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from qa_jax.config import ModelConfig
from qa_jax.model import Qwen2Audio, bind, initialize


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
