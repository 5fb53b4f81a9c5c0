"""The weights of an adapter, and merging them into a model's parameters."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.model import set_layer
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import AnyArray, Array, Float, Int, ParamPath, Params


class LoraWeights(NamedTuple):
    """An adapter of some of a model's linear layers.

    Attributes:
        params: by the layer's path, `lora_a` (L, *in, rank) and `lora_b` (L, rank, *out), without L
            for a layer that is not stacked; `in` and `out` are those of its kernel.
        scales: by the layer's path, the factor of the product: alpha / rank, or alpha / sqrt(rank)
            for rank-stabilized LoRA.
    """

    params: Params
    scales: dict[ParamPath, float]


def merge_lora(
    params: Params, adapter: LoraWeights, sign: float = 1.0, donate: bool = True
) -> Params:
    """Parameters with the adapter added (with sign -1: subtracted).

    Each kernel is replaced on its own, and its buffer is reused: `params` is donated, unless that
    is switched off; then what the adapter leaves alone is shared with it. The product
    is computed in float32, a layer at a time, and rounded once, to the kernel's dtype. Raises
    KeyError for a layer that the model does not have.
    """
    flat = flatten_dict(params)
    lora_params = flatten_dict(adapter.params)
    for path, scale in adapter.scales.items():
        kernel = flat.pop((*path, "kernel"))
        if not donate:
            kernel = jnp.copy(kernel)
        a, b = lora_params[(*path, "lora_a")], lora_params[(*path, "lora_b")]
        if a.ndim + b.ndim - 2 == kernel.ndim:
            merge = jax.jit(add_delta, donate_argnums=0, out_shardings=kernel.sharding)
            kernel = merge(kernel, a, b, sign * scale)
        else:
            for i in range(kernel.shape[0]):
                kernel = set_layer(kernel, add_layer_delta(kernel, a, b, sign * scale, i), i)
        flat[(*path, "kernel")] = kernel
    return unflatten_dict(flat)


def add_delta(
    kernel: Float[Array, "*dims"],
    a: Float[AnyArray, "*in_dims rank"],
    b: Float[AnyArray, "*out_dims"],
    scale: float | Float[Array, ""],
) -> Float[Array, "*dims"]:
    """kernel + scale * A B."""
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    return (kernel.astype(dtype) + scale * lora_delta(a, b, kernel.shape)).astype(kernel.dtype)


@jax.jit
def add_layer_delta(
    kernels: Float[Array, "*stack_dims"],
    a: Float[AnyArray, "*in_dims rank"],
    b: Float[AnyArray, "*out_dims"],
    scale: float | Float[Array, ""],
    layer: int | Int[Array, ""],
) -> Float[Array, "*dims"]:
    """`add_delta` of one layer of stacked kernels."""
    return add_delta(kernels[layer], a[layer], b[layer], scale)


def lora_delta(
    a: Float[AnyArray, "*in_dims rank"], b: Float[AnyArray, "*out_dims"], shape: tuple[int, ...]
) -> Float[Array, "*kernel_dims"]:
    """A B of one layer, as a kernel of `shape`, in float32 or wider."""
    dtype, rank = jnp.promote_types(a.dtype, jnp.float32), a.shape[-1]
    a, b = a.reshape(-1, rank).astype(dtype), b.reshape(rank, -1).astype(dtype)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST).reshape(shape)


def is_lora_path(path: ParamPath) -> bool:
    """Whether a parameter belongs to an adapter rather than to the model."""
    return path[-1] in ("lora_a", "lora_b")
