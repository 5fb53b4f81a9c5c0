"""Attention over a KV cache, in pure JAX: each device computes its own heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qa_jax.model.gradients import TPU_TILE_ROWS, at_least_float32, matmul_precision
from qa_jax.parallel import current_platform
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
        count = q.shape[1] * q.shape[3]  # a head's queries: those of its group at all positions
        q = jnp.transpose(q, (0, 2, 1, 3, 4)).reshape(r, heads, count, h)
        positions = jnp.repeat(positions, count // positions.shape[1], axis=1)
        rows = count
        if current_platform() == "tpu" and count < TPU_TILE_ROWS:
            # With fewer, XLA does not use the matrix unit, and takes three times as long.
            rows = TPU_TILE_ROWS
            fill = [(0, 0), (0, rows - count)]
            q = jax.lax.optimization_barrier(jnp.pad(q, [(0, 0), *fill, (0, 0)]))
            positions = jnp.pad(positions, fill)
        scores = _einsum("RKMH,RKSH->RKMS", q, k.astype(q.dtype))
        scores = scores.astype(at_least_float32(q.dtype))
        if k_scale is not None:
            scores *= k_scale[:, :, None].astype(scores.dtype)
        visible = jnp.arange(s) <= positions[:, None, :, None]
        scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1)
        if v_scale is not None:
            weights *= v_scale[:, :, None].astype(weights.dtype)
        out = _einsum("RKMS,RKSH->RKMH", weights.astype(q.dtype), v.astype(q.dtype))
        if rows > count:
            out = jax.lax.optimization_barrier(out)[:, :, :count]
        return jnp.transpose(out.reshape(r, heads, -1, n // heads, h), (0, 2, 1, 3, 4))

    parts = [attend(q[:, i : i + block], positions[:, i : i + block]) for i in range(0, t, block)]
    return jnp.concatenate(parts, axis=1).reshape(r, t, n, h)


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, precision=matmul_precision(a.dtype))
