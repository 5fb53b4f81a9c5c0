"""Low-rank adapters: what a fine-tune adds to linear layers, apart from the model or merged in.

Hu et al. 2021, "LoRA": a layer's kernel W becomes W + scale * A B; A is (in, rank), B (rank, out).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.model.module import Params, flatten, nest

Path = tuple[str, ...]


class Adapter(NamedTuple):
    """An adapter of some of a model's linear layers.

    Attributes:
        params: by the layer's path, `lora_a` (L, *in, rank) and `lora_b` (L, rank, *out), without
            L where the layer is not stacked; `in` and `out` are those of its kernel.
        scales: by the layer's path, what the product is multiplied by: alpha / rank, or
            alpha / sqrt(rank) for rank-stabilized LoRA.
    """

    params: Params
    scales: dict[Path, float]


def merge(params: Params, adapter: Adapter, sign: float = 1.0) -> Params:
    """Parameters with the adapter's change added (with sign -1: taken away again).

    The product is computed in float32 and rounded once, to the parameters' type. Raises KeyError
    for a layer that the model has not got.
    """
    flat = flatten(params)
    low = flatten(adapter.params)
    for path, scale in adapter.scales.items():
        kernel = flat[(*path, "kernel")]
        change = delta(low[(*path, "lora_a")], low[(*path, "lora_b")], kernel.shape)
        merged = kernel.astype(jnp.float32) + sign * scale * change
        flat[(*path, "kernel")] = merged.astype(kernel.dtype)
    return nest(flat)


def delta(a: jax.Array, b: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A B as one kernel of `shape`, in float32 at least."""
    stacked = b.ndim + a.ndim - 2 > len(shape)
    lead = shape[:1] if stacked else ()
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    a2 = a.reshape(*lead, -1, a.shape[-1]).astype(dtype)
    rank = a.shape[-1]
    b2 = b.reshape(*lead, rank, math.prod(b.shape) // (math.prod(lead) * rank)).astype(dtype)
    return jnp.matmul(a2, b2, precision=jax.lax.Precision.HIGHEST).reshape(shape)
