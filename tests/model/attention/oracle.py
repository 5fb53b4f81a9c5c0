"""Attention by its formula, on rows with two segments and with padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.model import AttentionMask

B, T, N, K, H = 4, 13, 4, 2, 8


def inputs(dtype: str = "float64") -> tuple[jax.Array, jax.Array, jax.Array, AttentionMask]:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((B, T, n, H)), dtype) for n in (N, K, K))
    segments = np.ones((B, T), np.int32)
    segments[1, 5:] = 2  # two texts in a row
    segments[2, 9:] = 0  # padding at the end
    segments[3, :4] = 0  # and at the start
    return q, k, v, AttentionMask(jnp.asarray(segments), jnp.asarray(segments))


def oracle(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    dense = mask.q_segment_ids[:, :, None] == mask.kv_segment_ids[:, None]
    dense &= mask.kv_segment_ids[:, None] > 0
    if mask.is_causal:
        dense &= jnp.tril(jnp.ones((T, T), bool))
    scores = jnp.where(dense[:, None], jnp.einsum("btnh,bsnh->bnts", q, k), -1e30)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, -1), v)


def gradients(attend, q, k, v, mask: AttentionMask):  # type: ignore[no-untyped-def]
    """The output where it may be used, and what comes back of it."""
    used = (mask.q_segment_ids > 0)[:, :, None, None]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = jnp.where(used, attend(q, k, v, mask), 0)
        return jnp.sum(jnp.sin(out)), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads
