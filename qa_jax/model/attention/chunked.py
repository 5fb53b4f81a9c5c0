"""Memory-efficient (chunked) attention in pure JAX, for every platform.

Scores are computed for a chunk of heads and queries at a time and are never all stored. The
backward pass recomputes a chunk's scores from each query's log-sum-exp (Dao et al. 2022,
"FlashAttention"). Keys are not chunked, since a row of scores fits in fast memory.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qa_jax.model.attention.mask import AttentionMask, dense_mask
from qa_jax.model.gradients import at_least_float32, matmul_precision
from qa_jax.model.module import ATTENTION_RESIDUALS
from qa_jax.parallel import current_platform
from qa_jax.typing import Array, Float, Int

_MAX_SCORES_PER_CHUNK = {"cpu": 2**20, "gpu": 2**26, "tpu": 2**26}
"""Scores computed at a time on a device: on a CPU 4 MiB in float32, which fit in its cache (a layer
over two 30 s clips: 70 ms instead of 160); on an accelerator 256 MiB, to save memory."""
_MAX_QUERY_BLOCKS = 16


def chunked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: AttentionMask,
    max_scores: int | None = None,
) -> Float[Array, "B T N H"]:
    """`dot_product_attention` on one device, about `max_scores` scores at a time.

    A chunk holds some heads and, where one head has too many scores, some of its queries.
    """
    limit = max_scores or _MAX_SCORES_PER_CHUNK[current_platform()]
    (b, t, n, h), (_, s, heads, _) = q.shape, k.shape
    rows, g = b * heads, n // heads
    # Heads before time: the layout in which the products and the softmax are fastest.
    q = jnp.transpose(q.reshape(b, t, heads, g, h), (0, 2, 3, 1, 4)).reshape(rows, g, t, h)
    k, v = (jnp.swapaxes(x, 1, 2).reshape(rows, s, h) for x in (k, v))
    q_ids, kv_ids = (
        jnp.broadcast_to(x[:, None], (b, heads, x.shape[1])).reshape(rows, -1)
        for x in (mask.q_segment_ids, mask.kv_segment_ids)
    )
    block = -(-t // min(_MAX_QUERY_BLOCKS, t, -(-g * t * s // limit)))
    rows_per_chunk = _largest_divisor(rows, limit // (g * block * s))

    def attend_rows(inputs: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, q_ids, kv_ids = inputs
        out = []
        for first in range(0, t, block):
            end = min(first + block, t)
            # Causal: no query of this block attends to later keys.
            num_keys = min(end, s) if mask.is_causal else s
            chunk = q[:, :, first:end].reshape(-1, g * (end - first), h)
            ids = q_ids[:, first:end], kv_ids[:, :num_keys]
            keys, values = k[:, :num_keys], v[:, :num_keys]
            chunk = _attention_chunk(mask.is_causal, first, chunk, keys, values, *ids)
            out.append(chunk.reshape(-1, g, end - first, h))
        return out[0] if len(out) == 1 else jnp.concatenate(out, axis=2)

    inputs: tuple[jax.Array, ...] = (q, k, v, q_ids, kv_ids)
    if rows_per_chunk == rows:
        out = attend_rows(inputs)
    else:
        inputs = tuple(x.reshape(-1, rows_per_chunk, *x.shape[1:]) for x in inputs)
        out = jax.lax.map(attend_rows, inputs)
    return jnp.transpose(out.reshape(b, heads, g, t, h), (0, 3, 1, 2, 4)).reshape(b, t, n, h)


def _largest_divisor(n: int, limit: int) -> int:
    return next(d for d in range(max(1, min(n, limit)), 0, -1) if n % d == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention_chunk(
    is_causal: bool,
    first: int,
    q: Float[Array, "R GT H"],
    k: Float[Array, "R S H"],
    v: Float[Array, "R S H"],
    q_ids: Int[Array, "R T"],
    kv_ids: Int[Array, "R S"],
) -> Float[Array, "R GT H"]:
    """Attention of G heads with T queries each, from query `first` of the row on."""
    return _forward(is_causal, first, q, k, v, q_ids, kv_ids)[0]


def _forward(
    is_causal: bool, first: int, *inputs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q, k, v, q_ids, kv_ids = inputs
    scores = _scores(is_causal, first, q, k, q_ids, kv_ids)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _einsum("RTS,RSH->RTH", weights.astype(q.dtype), v)
    out, log_sum_exp = (
        checkpoint_name(x, ATTENTION_RESIDUALS)
        for x in ((out / total).astype(q.dtype), highest + jnp.log(total))
    )
    return out, (*inputs, out, log_sum_exp)


def _backward(
    is_causal: bool, first: int, residuals: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, q_ids, kv_ids, out, log_sum_exp = residuals
    weights = jnp.exp(_scores(is_causal, first, q, k, q_ids, kv_ids) - log_sum_exp)
    out_dot_d_out = jnp.sum((d_out * out).astype(weights.dtype), axis=-1, keepdims=True)
    d_scores = weights * (_einsum("RTH,RSH->RTS", d_out, v) - out_dot_d_out)
    weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
    d_q = _einsum("RTS,RSH->RTH", d_scores, k)
    d_k = _einsum("RTS,RTH->RSH", d_scores, q)
    d_v = _einsum("RTS,RTH->RSH", weights, d_out)
    return d_q, d_k, d_v, None, None


_attention_chunk.defvjp(_forward, _backward)


def _scores(
    is_causal: bool,
    first: int,
    q: jax.Array,
    k: jax.Array,
    q_ids: jax.Array,
    kv_ids: jax.Array,
) -> jax.Array:
    scores = _einsum("RTH,RSH->RTS", q, k).astype(at_least_float32(q.dtype))
    dense = dense_mask(AttentionMask(q_ids, kv_ids, is_causal), first)
    dense = jnp.tile(dense, (1, q.shape[1] // q_ids.shape[1], 1))
    return jnp.where(dense, scores, jnp.finfo(scores.dtype).min)


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, precision=matmul_precision(a.dtype))
