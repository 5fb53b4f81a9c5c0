"""Attention over a KV cache, in pure JAX: each device computes its own heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qa_jax.model.gradients import at_least_float32, matmul_precision
from qa_jax.typing import Array, Float, Int

_MAX_SCORES = 2**24
"""Scores computed at a time: 64 MiB in float32."""


def cached_attention(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R K S H"] | Int[Array, "R K S H"],
    v: Float[Array, "R K S H"] | Int[Array, "R K S H"],
    k_scale: Float[Array, "R K S"] | None = None,
    v_scale: Float[Array, "R K S"] | None = None,
    *,
    positions: Int[Array, "R T"],
) -> Float[Array, "R T N H"]:
    """Softmax(q k^T) v, where a query attends to the entries up to its position.

    Args:
        q: queries, already scaled.
        k, v: a cache's entries; entry s is the token at position s. K divides N.
        k_scale, v_scale: of int8 entries. They multiply scores and weights, so that no wider copy
            of the entries is needed.
        positions: of the queries.
    """
    (r, t, n, h), (_, heads, s, _) = q.shape, k.shape
    q = q.reshape(r, t, heads, n // heads, h)
    block = max(1, min(t, _MAX_SCORES // (r * n * s)))

    def attend(q: jax.Array, positions: jax.Array) -> jax.Array:
        # A head's queries are one dimension, which is left out where there is one query: TPUs
        # compute in tiles of the last two dimensions.
        count = q.shape[1] * q.shape[3]
        m = "M" if count > 1 else ""
        q = jnp.transpose(q, (0, 2, 1, 3, 4)).reshape(r, heads, *[count] * len(m), h)
        positions = jnp.repeat(positions, count // positions.shape[1], axis=1)
        positions = positions.reshape(r, 1, *[count] * len(m), 1)
        scores = _einsum(f"RK{m}H,RKSH->RK{m}S", q, k.astype(q.dtype))
        scores = scores.astype(at_least_float32(q.dtype))
        one = (r, heads, *[1] * len(m), s)
        if k_scale is not None:
            scores *= k_scale.reshape(one).astype(scores.dtype)
        scores = jnp.where(jnp.arange(s) <= positions, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1)
        if v_scale is not None:
            weights *= v_scale.reshape(one).astype(weights.dtype)
        out = _einsum(f"RK{m}S,RKSH->RK{m}H", weights.astype(q.dtype), v.astype(q.dtype))
        return jnp.transpose(out.reshape(r, heads, -1, n // heads, h), (0, 2, 1, 3, 4))

    parts = [attend(q[:, i : i + block], positions[:, i : i + block]) for i in range(0, t, block)]
    return jnp.concatenate(parts, axis=1).reshape(r, t, n, h)


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, precision=matmul_precision(a.dtype))
