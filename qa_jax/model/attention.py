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
    # Heads before time, here once, is what both products and the softmax read fastest.
    q = jnp.transpose(q.reshape(b, t, kv_heads, n // kv_heads, h), (0, 2, 3, 1, 4))
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    scores = jnp.einsum("BKGTH,BKSH->BKGTS", q, k, precision=precision(q.dtype))
    scores = scores.astype(wide(q.dtype))
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("BKGTS,BKSH->BKGTH", weights, v, precision=precision(q.dtype))
    return jnp.transpose(out, (0, 3, 1, 2, 4)).reshape(b, t, n, h)
