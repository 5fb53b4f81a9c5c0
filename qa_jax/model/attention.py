"""Attention: queries over keys, under a mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qa_jax.model.layers import precision, wide


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax(q k^T) v, the softmax in float32; queries come already scaled.

    Args:
        q: (B, T, N, H) queries.
        k: (B, S, K, H) keys; K divides N, and each key head serves N / K query heads in turn.
        v: (B, S, K, H) values.
        mask: bool, broadcastable to (B, T, S), True where a query may see a key. A query that may
            see nothing gets a finite average, which nothing may use.

    Returns:
        (B, T, N, H).
    """
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(b, t, kv_heads, n // kv_heads, h)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, precision=precision(q.dtype))
    scores = scores.astype(wide(q.dtype))
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v, precision=precision(q.dtype))
    return out.reshape(b, t, n, h)
