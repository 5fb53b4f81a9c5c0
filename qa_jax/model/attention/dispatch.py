"""The choice of the attention implementation."""

from __future__ import annotations

import jax

from qa_jax.model.attention.chunked import chunked_attention
from qa_jax.model.attention.cudnn import cudnn_attention
from qa_jax.model.attention.mask import AttentionMask
from qa_jax.model.attention.splash import splash_attention, splash_supported
from qa_jax.parallel import current_platform, shard_map_logical
from qa_jax.typing import Array, Float


def dot_product_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: AttentionMask,
    heads_axis: str = "act_heads",
    implementation: str = "auto",
) -> Float[Array, "B T N H"]:
    """Softmax(q k^T) v, the softmax in float32. Each device computes its own rows and heads.

    Args:
        q: queries, already scaled.
        k: keys; K divides N, and each key head serves N / K consecutive query heads.
        v: values.
        mask: fully masked queries return a finite, meaningless value.
        heads_axis: logical axis of the heads.
        implementation: `ModelConfig.attention_impl`.
    """
    platform = current_platform()
    if implementation == "auto":
        implementation = "splash" if platform == "tpu" else "chunked"
    if implementation == "splash" and not splash_supported(q, k):
        implementation = "chunked"

    def local(*arrays: jax.Array) -> jax.Array:
        q, k, v, q_ids, kv_ids = arrays
        local_mask = AttentionMask(q_ids, kv_ids, mask.is_causal)
        if implementation == "splash":
            return splash_attention(q, k, v, local_mask, interpret=platform != "tpu")
        if implementation == "cudnn":
            return cudnn_attention(q, k, v, local_mask)
        return chunked_attention(q, k, v, local_mask)

    head_axes, row_axes = ("batch", "time", heads_axis, None), ("batch", "time")
    in_axes = [head_axes] * 3 + [row_axes] * 2
    # Pallas kernels do not declare which mesh axes their outputs vary over.
    sharded = shard_map_logical(local, in_axes, head_axes, check_vma=implementation != "splash")
    return sharded(q, k, v, mask.q_segment_ids, mask.kv_segment_ids)
