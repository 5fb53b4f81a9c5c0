"""The linear layer that replaces `model.layers.Linear` where LoRA changes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from qa_jax.model.gradients import matmul
from qa_jax.model.layers import Linear
from qa_jax.typing import Array, Float


class LoraLinear(Linear):
    """A linear layer with an adapter.

    Args:
        linear: the layer that it replaces; its kernel and bias keep their paths.
        lora_a, lora_b: the adapter's matrices.
        scale: factor of the adapter's product.
        dropout: dropout probability of the adapter's input.
        lora_key: parameter that holds the dropout key, or None for no dropout.
    """

    def __init__(
        self,
        linear: Linear,
        *,
        lora_a: nnx.Param,
        lora_b: nnx.Param,
        scale: float,
        dropout: float = 0.0,
        lora_key: nnx.Param | None = None,
    ) -> None:
        self.in_dims = linear.in_dims
        self.kernel, self.bias = linear.kernel, linear.bias
        self.kernel_scale = linear.kernel_scale
        self.lora_a, self.lora_b, self.lora_key = lora_a, lora_b, lora_key
        self.scale, self.dropout = scale, dropout

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x W + scale * x A B, with dropout on the adapter's input if a key is given."""
        y = super().project(x)
        low = matmul(self._lora_dropout(x), self.lora_a[...], self.in_dims)
        return y + self.scale * matmul(low, self.lora_b[...], 1)

    def _lora_dropout(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.lora_key is None:
            return x
        keep_prob = 1 - self.dropout
        key = jax.random.wrap_key_data(self.lora_key[...])
        keep = jax.random.bernoulli(key, keep_prob, x.shape)
        return jnp.where(keep, x / keep_prob, 0).astype(x.dtype)
