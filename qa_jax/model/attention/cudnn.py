"""cuDNN's fused attention, for NVIDIA GPUs."""

from __future__ import annotations

import jax

from qa_jax.model.attention.mask import AttentionMask, dense_mask
from qa_jax.typing import Array, Float


def cudnn_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: AttentionMask,
) -> Float[Array, "B T N H"]:
    """`dot_product_attention` on one device, for bfloat16 and float16, with a dense mask."""
    dense = dense_mask(mask)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=dense, scale=1.0, implementation="cudnn")
