"""Attention: queries over keys, a piece at a time, so that all scores at once are never kept.

Written here for all platforms; `qa_jax.model.kernels` has others' kernels for some. The backward
pass computes a piece's scores again from each query's log-sum-exp (Dao et al. 2022,
"FlashAttention"); its blocks of keys are not needed, for a row of scores fits where it is used.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.model.kernels import cudnn, splash, suits_splash
from qa_jax.model.layers import precision, wide
from qa_jax.parallel import current_platform, per_device

_PIECE = {"cpu": 2**20, "gpu": 2**26, "tpu": 2**26}
"""Scores computed at a time on a device: on a processor 4 MiB in float32, which stay in its cache
(a layer over two 30 s clips: 70 ms instead of 160); on an accelerator 256 MiB, to save memory."""
_MOST_BLOCKS = 16


class Visible(NamedTuple):
    """Who sees whom: a query sees the keys of its own segment, with `causal` only up to its index.

    Attributes:
        queries: (B, T) int segments.
        keys: (B, S) int segments; 0 is seen by none.
        causal: whether query t sees no key after the t-th.
    """

    queries: jax.Array
    keys: jax.Array
    causal: bool = False


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: Visible,
    heads: str = "act_heads",
    by: str = "auto",
) -> jax.Array:
    """Softmax(q k^T) v, the softmax in float32; queries come already scaled.

    Args:
        q: (B, T, N, H) queries.
        k: (B, S, K, H) keys; K divides N, and each key head serves N / K query heads in turn.
        v: (B, S, K, H) values.
        visible: a query that may see nothing gets a finite average, which nothing may use.
        heads: logical axis of the heads; every device attends with its own rows and heads.
        by: `ModelConfig.attention`.

    Returns:
        (B, T, N, H).
    """
    platform = current_platform()
    if by == "auto":
        by = "splash" if platform == "tpu" else "pieces"
    if by == "splash" and not suits_splash(q, k):
        by = "pieces"

    def local(*arrays: jax.Array) -> jax.Array:
        q, k, v, queries, keys = arrays
        seen = Visible(queries, keys, visible.causal)
        if by == "splash":
            return splash(q, k, v, seen, interpret=platform != "tpu")
        if by == "cudnn":
            return cudnn(q, k, v, seen)
        return _in_pieces(q, k, v, seen, _PIECE[platform])

    wide_axes, row_axes = ("batch", "time", heads, None), ("batch", "time")
    inputs = [wide_axes] * 3 + [row_axes] * 2
    run = per_device(local, inputs, wide_axes, checked=by != "splash")
    return run(q, k, v, visible.queries, visible.keys)


def _in_pieces(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible, limit: int) -> jax.Array:
    """`attend` on one device, about `limit` scores at a time: some heads, and where one head's
    scores are too many, some of its queries."""
    (b, t, n, h), (_, s, heads, _) = q.shape, k.shape
    rows, g = b * heads, n // heads
    # Heads before time, here once, is what the products and the softmax read fastest.
    q = jnp.transpose(q.reshape(b, t, heads, g, h), (0, 2, 3, 1, 4)).reshape(rows, g, t, h)
    k, v = (jnp.swapaxes(x, 1, 2).reshape(rows, s, h) for x in (k, v))
    segments = (
        jnp.broadcast_to(x[:, None], (b, heads, x.shape[1])).reshape(rows, -1)
        for x in (visible.queries, visible.keys)
    )
    block = -(-t // min(_MOST_BLOCKS, t, -(-g * t * s // limit)))
    together = _largest_divisor(rows, limit // (g * block * s))

    def some_rows(inputs: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, queries, keys = inputs
        out = []
        for first in range(0, t, block):
            end = min(first + block, t)
            # Later keys are seen by no query of this block.
            seen = min(end, s) if visible.causal else s
            piece = q[:, :, first:end].reshape(-1, g * (end - first), h)
            ids = queries[:, first:end], keys[:, :seen]
            piece = _piece(visible.causal, first, piece, k[:, :seen], v[:, :seen], *ids)
            out.append(piece.reshape(-1, g, end - first, h))
        return out[0] if len(out) == 1 else jnp.concatenate(out, axis=2)

    inputs = (q, k, v, *segments)
    if together == rows:
        out = some_rows(inputs)
    else:
        inputs = tuple(x.reshape(-1, together, *x.shape[1:]) for x in inputs)
        out = jax.lax.map(some_rows, inputs)
    return jnp.transpose(out.reshape(b, heads, g, t, h), (0, 3, 1, 2, 4)).reshape(b, t, n, h)


def _largest_divisor(n: int, most: int) -> int:
    return next(d for d in range(max(1, min(n, most)), 0, -1) if n % d == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _piece(
    causal: bool,
    first: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """Attention of (R, G * T, H) queries, G heads of T of them from the `first` on, over (R, S, H)
    keys and values; `queries` (R, T) and `keys` (R, S) are segments."""
    return _forward(causal, first, q, k, v, queries, keys)[0]


def _forward(causal: bool, first: int, *inputs: jax.Array) -> tuple[jax.Array, Any]:
    q, k, v, queries, keys = inputs
    scores = _scores(causal, first, q, k, queries, keys)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _product("RTS,RSH->RTH", weights.astype(q.dtype), v)
    out = (out / total).astype(q.dtype)
    return out, (*inputs, out, highest + jnp.log(total))


def _backward(causal: bool, first: int, kept: Any, d_out: jax.Array) -> tuple[Any, ...]:
    q, k, v, queries, keys, out, log_sum_exp = kept
    weights = jnp.exp(_scores(causal, first, q, k, queries, keys) - log_sum_exp)
    share = jnp.sum((d_out * out).astype(weights.dtype), axis=-1, keepdims=True)
    d_scores = weights * (_product("RTH,RSH->RTS", d_out, v) - share)
    weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
    d_q = _product("RTS,RSH->RTH", d_scores, k)
    d_k = _product("RTS,RTH->RSH", d_scores, q)
    d_v = _product("RTS,RTH->RSH", weights, d_out)
    return d_q, d_k, d_v, None, None


_piece.defvjp(_forward, _backward)


def _scores(
    causal: bool, first: int, q: jax.Array, k: jax.Array, queries: jax.Array, keys: jax.Array
) -> jax.Array:
    scores = _product("RTH,RSH->RTS", q, k).astype(wide(q.dtype))
    t, s = queries.shape[1], keys.shape[1]
    mask = (queries[:, :, None] == keys[:, None]) & (keys[:, None] > 0)
    if causal:
        mask &= first + jnp.arange(t)[:, None] >= jnp.arange(s)
    mask = jnp.tile(mask, (1, q.shape[1] // t, 1))
    return jnp.where(mask, scores, jnp.finfo(scores.dtype).min)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, precision=precision(a.dtype))
