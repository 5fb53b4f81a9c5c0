"""The small layers that both towers are made of."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from qa_jax.model.module import Initializer, Module, declare
from qa_jax.parallel import current_platform

# The reference's initial scale. Larger ones, such as 1 / sqrt(inputs), learn to listen later.
normal: Initializer = jax.nn.initializers.normal(0.02)
zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones


def fan_in_normal(inputs: int) -> Initializer:
    """Standard deviation 1 / sqrt(inputs): sums of unit-sized inputs stay unit-sized."""
    return jax.nn.initializers.normal(inputs**-0.5)


def precision(dtype: Any) -> jax.lax.Precision | None:
    """Float32 asked for means float32 multiplied: a TPU's default would round to bfloat16."""
    return None if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST


def wide(dtype: Any) -> Any:
    """The type for norms, softmax and rotary angles: float32, or float64 where that is asked."""
    return jnp.promote_types(dtype, jnp.float32)


class Linear(Module):
    """y = x W + b over any number of trailing input and output dimensions.

    `model.lora.adapt` may add an adapter, `lora_a` and `lora_b`, and hold W in 8 bits with a scale
    for each output.

    Args:
        inputs: input dimensions as {logical axis: size}, for example {"embed": D}.
        outputs: output dimensions likewise, for example {"heads": N, "head_dim": H}.
        bias: whether there is one.
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        *,
        bias: bool = False,
        init: Initializer = normal,
    ) -> None:
        self.in_dims = len(inputs)
        axes, shape = (*inputs, *outputs), (*inputs.values(), *outputs.values())
        self.kernel = declare(shape, axes, init)
        self.bias = declare(shape[len(inputs) :], axes[len(inputs) :], zeros) if bias else None
        self.kernel_scale = self.lora_a = self.lora_b = self.lora_key = None
        self.lora_scale, self.lora_dropout = 0.0, 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _product(x, self.kernel, self.in_dims)
        if self.kernel_scale is not None:
            y = (y.astype(wide(x.dtype)) * self.kernel_scale[...]).astype(x.dtype)
        if self.lora_a is not None:
            low = _product(self._dropped(x), self.lora_a, self.in_dims)
            y = y + self.lora_scale * _product(low, self.lora_b, 1)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def _dropped(self, x: jax.Array) -> jax.Array:
        """What the adapter sees of its input: some of it where a training step gives a key."""
        if self.lora_key is None:
            return x
        kept = 1 - self.lora_dropout
        seen = jax.random.bernoulli(jax.random.wrap_key_data(self.lora_key[...]), kept, x.shape)
        return jnp.where(seen, x / kept, 0).astype(x.dtype)


def _product(x: jax.Array, kernel: Any, in_dims: int) -> jax.Array:
    """x W, W in the activations' type."""
    dims = tuple(range(x.ndim - in_dims, x.ndim)), tuple(range(in_dims))
    y = jax.lax.dot_general(
        x, kernel[...].astype(x.dtype), (dims, ((), ())), precision=precision(x.dtype)
    )
    return _plain_gradient(y)


@jax.custom_vjp
def _plain_gradient(y: jax.Array) -> jax.Array:
    """y, whose gradient a processor writes down before it is used.

    XLA would otherwise compute it anew for each of the two products that need it, once in an order
    that takes long to write (a sixth of a training step); accelerators fuse it well.
    """
    return y


def _write_down(_: None, d_y: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.optimization_barrier(d_y) if current_platform() == "cpu" else d_y,)


_plain_gradient.defvjp(lambda y: (y, None), _write_down)


class LayerNorm(Module):
    """Mean and variance normalization with scale and bias (PyTorch's epsilon, 1e-5)."""

    def __init__(self, features: int) -> None:
        self.scale = declare((features,), ("norm",), ones)
        self.bias = declare((features,), ("norm",), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(wide(x.dtype))
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-5)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(Module):
    """Root-mean-square normalization, rounded to the activations' type before it is scaled."""

    def __init__(self, features: int, epsilon: float) -> None:
        self.epsilon = epsilon
        self.scale = declare((features,), ("norm",), ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(wide(x.dtype))
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return self.scale[...].astype(x.dtype) * y.astype(x.dtype)


class Conv(Module):
    """One-dimensional convolution over time, width 3, padded by 1."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        self.stride = stride
        init = fan_in_normal(3 * inputs)
        self.kernel = declare((3, inputs, outputs), ("conv_in", "conv_in", "embed"), init)
        self.bias = declare((outputs,), ("norm",), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(A, F, in) -> (A, ceil(F / stride), out)."""
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            window_strides=(self.stride,),
            padding=((1, 1),),
            dimension_numbers=("NTC", "TIO", "NTC"),
            precision=precision(x.dtype),
        )
        return y + self.bias[...].astype(x.dtype)


def sinusoids(length: int, channels: int) -> jax.Array:
    """Whisper's position table (length, channels): sines, then cosines, of wavelengths that run
    geometrically from 2 pi to 10,000 x 2 pi frames."""
    step = math.log(10_000) / (channels // 2 - 1)
    angle = jnp.arange(length)[:, None] * jnp.exp(-step * jnp.arange(channels // 2))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (Su et al. 2021) on (B, T, N, H), pairing x[h] with x[h + H/2].

    Args:
        positions: (B, T) token positions.
        theta: the longest wavelength is 2 pi theta tokens.
    """
    half, high = x.shape[-1] // 2, wide(x.dtype)
    frequency = theta ** -(jnp.arange(half, dtype=high) / half)
    angle = positions[:, :, None, None].astype(high) * frequency
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
