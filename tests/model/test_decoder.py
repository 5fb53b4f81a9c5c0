"""Answering token by token is the same computation as reading the whole row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import ModelConfig
from qa_jax.model import AttentionMask, CacheRows, KVCache, TextDecoder, bind, initialize
from qa_jax.model.layers import apply_rope


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_cache_equals_whole_rows(tiny: ModelConfig, kv_heads: int, tied: bool) -> None:
    config = dataclasses.replace(tiny.text, num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    model = TextDecoder(config)
    params = initialize(model, jax.random.key(1))
    decoder = bind(model)(params)
    b, t, prompt = 2, 9, 5
    x = jax.random.normal(jax.random.key(2), (b, t, config.hidden_size))
    positions = jnp.broadcast_to(jnp.arange(t), (b, t))
    ones = jnp.ones((b, t), jnp.int32)
    causal = AttentionMask(ones, ones, is_causal=True)
    whole = decoder.logits(decoder(x, positions, causal)[0])

    # Rows go to slots of their own choice, or are all slots in order.
    slots = jnp.array([2, 0])
    for at, num_slots in ((slots, 3), (None, b)):
        cache = KVCache.zeros(config, num_slots, t + 3, "float32")
        start = jnp.zeros(b, jnp.int32)
        mask = AttentionMask(ones[:, :prompt], ones[:, :prompt], is_causal=True)
        hidden, cache = decoder(
            x[:, :prompt], positions[:, :prompt], mask, cache, CacheRows(at, start, 0)
        )
        parts, i = [hidden], prompt
        for size, window in ((1, prompt + 1), (t - prompt - 2, t), (1, t + 3)):
            rows, part = CacheRows(at, start + i, window), slice(i, i + size)
            mask = AttentionMask(ones[:, part], ones[:, part])
            hidden, cache = decoder(x[:, part], positions[:, part], mask, cache, rows)
            parts.append(hidden)
            i += size
        cached = decoder.logits(jnp.concatenate(parts, axis=1))
        np.testing.assert_allclose(cached, whole, atol=2e-5)


def test_rotation_keeps_only_relative_positions() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 6, 1, 8))
    positions = jnp.arange(6)[None]

    def scores(shift: int) -> jax.Array:
        rotated_q, rotated_k = (apply_rope(x, positions + shift, 10_000.0) for x in (q, k))
        return jnp.einsum("BTNH,BSNH->BTS", rotated_q, rotated_k)

    np.testing.assert_allclose(scores(0), scores(11), atol=1e-4)
    np.testing.assert_allclose(apply_rope(q, positions, 1e4)[:, 0], q[:, 0], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rope_on_a_tpu_is_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: jnp.dtype
) -> None:
    """TPUs swap the halves of a head by a product with a permutation."""
    x = jax.random.normal(jax.random.key(7), (2, 5, 3, 8)).astype(dtype)
    positions = jnp.arange(10).reshape(2, 5)
    here = apply_rope(x, positions, 1e4)
    monkeypatch.setattr("qa_jax.model.layers.current_platform", lambda: "tpu")
    program = str(jax.make_jaxpr(lambda x: apply_rope(x, positions, 1e4))(x))
    assert "dot_general" in program
    np.testing.assert_array_equal(apply_rope(x, positions, 1e4), here)


def test_scan_and_unrolled_layers_agree(tiny: ModelConfig) -> None:
    """The stacked parameters, taken apart by hand, give the same as the scan."""
    from qa_jax.model.decoder import DecoderLayer

    model = TextDecoder(tiny.text)
    params = initialize(model, jax.random.key(3))
    x = jax.random.normal(jax.random.key(4), (1, 7, tiny.text.hidden_size))
    positions, ones = jnp.arange(7)[None], jnp.ones((1, 7), jnp.int32)
    mask = AttentionMask(ones, ones, is_causal=True)
    scanned, _ = bind(model)(params)(x, positions, mask)
    layer = bind(DecoderLayer(tiny.text))
    for i in range(tiny.text.num_hidden_layers):
        x, _ = layer(jax.tree.map(lambda p, i=i: p[i], params["layers"]))(x, positions, mask)
    np.testing.assert_allclose(bind(model)(params).norm(x), scanned, atol=1e-5)


@pytest.mark.parametrize("remat", ["full", "attention", "mlp", "dots"])
def test_remat_changes_no_gradient(tiny: ModelConfig, remat: str) -> None:
    x = jax.random.normal(jax.random.key(5), (1, 7, tiny.text.hidden_size))
    positions, ones = jnp.arange(7)[None], jnp.ones((1, 7), jnp.int32)
    mask = AttentionMask(ones, ones, is_causal=True)
    params = initialize(TextDecoder(tiny.text), jax.random.key(6))

    def gradient(remat: str) -> dict:
        model = bind(TextDecoder(tiny.text, remat=remat))
        return jax.grad(lambda p: jnp.sum(model(p)(x, positions, mask)[0] ** 2))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        gradient("none"),
        gradient(remat),
    )
