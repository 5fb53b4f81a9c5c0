"""Attention by kernels that others maintain: JAX's splash attention on TPUs, cuDNN on NVIDIA GPUs.

Both are given one device's arrays and agree with `qa_jax.model.attention`'s own pieces wherever a
query sees anything; elsewhere all give some finite average.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from qa_jax.model.attention import Visible

_LANES = 128
_BLOCKS = (512, 256, 128)
"""Queries and keys that splash attention takes at a time; the largest that divides their number."""


def suits_splash(q: jax.Array, k: jax.Array) -> bool:
    """Whether splash attention is worth its blocks and has the masks: whole rows, in bfloat16. Its
    products round to bfloat16 whatever they are given."""
    return q.dtype == jnp.bfloat16 and q.shape[1] == k.shape[1] >= _LANES


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible, interpret: bool = False
) -> jax.Array:
    """`attention.attend` by JAX's kernel for TPUs, which skips what a causal mask hides.

    Rows are filled up to whole blocks with what belongs to no segment.

    Args:
        q: (B, T, N, H) scaled queries; k, v: (B, T, K, H).
        visible: as for `attend`.
        interpret: run it without a TPU, slowly.
    """
    t = q.shape[1]
    fill = -t % _LANES
    queries, keys = (jnp.pad(x, ((0, 0), (0, fill))) for x in (visible.queries, visible.keys))
    q, k, v = (
        jnp.swapaxes(jnp.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0))), 1, 2) for x in (q, k, v)
    )
    run = _splash_kernel(q.shape[1], t + fill, visible.causal, interpret)
    out = jax.vmap(run)(q, k, v, _segments(queries, keys))
    return jnp.swapaxes(out, 1, 2)[:, :t].astype(v.dtype)


def _segments(queries: jax.Array, keys: jax.Array) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    # Keys that nobody sees must differ from queries that see nothing.
    return SegmentIds(queries, jnp.where(keys > 0, keys, -1))


def _splash_kernel(heads: int, tokens: int, causal: bool, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as module

    size = next(b for b in _BLOCKS if tokens % b == 0)
    shape = (tokens, tokens)
    one = module.CausalMask(shape) if causal else module.FullMask(shape)
    blocks = module.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    return module.make_splash_mha(
        module.MultiHeadMask([one] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible) -> jax.Array:
    """`attention.attend` by cuDNN's fused kernel, which takes bfloat16 and float16.

    Segments are given to it as a mask of (B, 1, T, S).
    """
    mask = (visible.queries[:, :, None] == visible.keys[:, None]) & (visible.keys[:, None] > 0)
    if visible.causal:
        mask &= jnp.arange(mask.shape[1])[:, None] >= jnp.arange(mask.shape[2])
    attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation="cudnn")
    return attend(q, k, v, mask=mask[:, None])
