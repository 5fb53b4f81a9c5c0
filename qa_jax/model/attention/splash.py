"""JAX's splash attention, a Pallas kernel for TPUs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qa_jax.model.attention.mask import AttentionMask
from qa_jax.model.module import ATTENTION_RESIDUALS
from qa_jax.typing import Array, Float

_LANES = 128
_BLOCK_SIZES = (512, 256, 128)
"""Queries and keys per block; the largest that divides their number is used."""
_MAX_FUSED_KEYS = 2048


def splash_supported(q: Float[Array, "B T N H"], k: Float[Array, "B S K H"]) -> bool:
    """Whether splash attention is supported for these shapes and dtype: self-attention over whole
    rows in bfloat16, to which its products round every input."""
    return q.dtype == jnp.bfloat16 and q.shape[1] == k.shape[1] >= _LANES


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: AttentionMask,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`dot_product_attention` on one device, skipping the blocks that a causal mask hides.

    Rows are padded to whole blocks with tokens of no segment. `interpret` runs the kernel without
    a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    t = q.shape[1]
    pad = -t % _LANES
    q_ids, kv_ids = (
        jnp.pad(x, ((0, 0), (0, pad))) for x in (mask.q_segment_ids, mask.kv_segment_ids)
    )
    q, k, v = (
        jnp.swapaxes(jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))), 1, 2) for x in (q, k, v)
    )
    # Masked keys must differ from the queries of segment 0, which would otherwise match them.
    segment_ids = SegmentIds(q_ids, jnp.where(kv_ids > 0, kv_ids, -1))
    kernel = _splash_kernel(q.shape[1], t + pad, mask.is_causal, interpret)
    out = jax.vmap(kernel)(q, k, v, segment_ids)
    return jnp.swapaxes(out, 1, 2)[:, :t].astype(v.dtype)


def _splash_kernel(
    num_heads: int, num_tokens: int, is_causal: bool, interpret: bool
) -> Callable[..., jax.Array]:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    size = next(b for b in _BLOCK_SIZES if num_tokens % b == 0)
    shape = (num_tokens, num_tokens)
    # One kernel for all gradients computes the scores once instead of twice, but writes a partial
    # gradient of the queries for every block of keys: it is used where one block has all keys. A
    # causal mask needs small blocks, to skip those that it hides.
    fused = not is_causal and num_tokens <= _MAX_FUSED_KEYS
    block_sizes = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=num_tokens if fused else size,
        block_kv_dkv_compute=size,
        block_q_dq=None if fused else size,
        block_kv_dq=None if fused else size,
        use_fused_bwd_kernel=fused,
    )
    head_mask = splash.CausalMask(shape) if is_causal else splash.FullMask(shape)
    return splash.make_splash_mha(
        splash.MultiHeadMask([head_mask] * num_heads),
        block_sizes=block_sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_RESIDUALS,
        interpret=interpret,
    )
