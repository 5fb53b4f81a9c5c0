"""Layers that encoder and decoder share."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from qa_jax.model.gradients import (
    at_least_float32,
    convolve,
    expand,
    materialize_on_tpu,
    matmul,
    matmul_precision,
)
from qa_jax.model.module import Initializer, Module, param
from qa_jax.parallel import current_platform
from qa_jax.typing import Array, Float, Int

# The reference's initial scale. Larger ones, such as 1 / sqrt(inputs), slow audio-text alignment.
normal: Initializer = jax.nn.initializers.normal(0.02)
zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones


def fan_in_normal(num_inputs: int) -> Initializer:
    """Normal with standard deviation 1 / sqrt(inputs), which keeps the variance of the inputs."""
    return jax.nn.initializers.normal(num_inputs**-0.5)


def scaled(init: Initializer, scale: float) -> Initializer:
    """An initializer times a factor."""
    if scale == 1.0:
        return init
    return lambda key, shape, dtype: init(key, shape, dtype) * scale


class Linear(Module):
    """y = x W + b over any number of trailing input and output dimensions.

    Args:
        inputs: input dimensions as {logical axis: size}, for example {"embed": D}.
        outputs: output dimensions in the same form, for example {"heads": N, "head_dim": H}.
        bias: whether there is one.
        init: initializer of the kernel.
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
        self.kernel = param(shape, axes, init)
        self.bias = param(shape[len(inputs) :], axes[len(inputs) :], zeros) if bias else None
        self.kernel_scale: nnx.Param | None = nnx.data(
            None
        )  # of an int8 kernel; see `quantization`

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = self.project(x)
        return y if self.bias is None else y + expand(self.bias[...], y.shape, y.dtype)

    def project(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x W without the bias."""
        y = matmul(x, self.kernel[...], self.in_dims)
        if self.kernel_scale is None:
            return y
        return (y.astype(at_least_float32(x.dtype)) * self.kernel_scale[...]).astype(x.dtype)


class LayerNorm(Module):
    """Layer normalization with scale and bias (PyTorch's epsilon, 1e-5)."""

    def __init__(self, num_features: int) -> None:
        self.scale = param((num_features,), ("norm",), ones)
        self.bias = param((num_features,), ("norm",), zeros)

    def __call__(self, x: Float[Array, "*rest D"]) -> Float[Array, "*rest D"]:
        y = x.astype(at_least_float32(x.dtype))
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-5)
        return materialize_on_tpu((y * self.scale[...] + self.bias[...]).astype(x.dtype))


class RMSNorm(Module):
    """Root-mean-square normalization, rounded to the activations' dtype before it is scaled."""

    def __init__(self, num_features: int, epsilon: float) -> None:
        self.epsilon = epsilon
        self.scale = param((num_features,), ("norm",), ones)

    def __call__(self, x: Float[Array, "*rest D"]) -> Float[Array, "*rest D"]:
        y = x.astype(at_least_float32(x.dtype))
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return materialize_on_tpu(expand(self.scale[...], y.shape, x.dtype) * y.astype(x.dtype))


class Conv(Module):
    """One-dimensional convolution over time, width 3, padded by 1."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, init_scale: float = 1.0) -> None:
        self.stride = stride
        init = scaled(fan_in_normal(3 * inputs), init_scale)
        self.kernel = param((3, inputs, outputs), ("conv_in", "conv_in", "embed"), init)
        self.bias = param((outputs,), ("norm",), zeros)

    def __call__(self, x: Float[Array, "A F I"]) -> Float[Array, "A G O"]:
        """(A, F, in) -> (A, ceil(F / stride), out)."""
        y = convolve(x, self.kernel[...], self.stride)
        return y + expand(self.bias[...], y.shape, y.dtype)


def sinusoids(length: int, channels: int) -> Float[Array, "{length} {channels}"]:
    """Whisper's position table: sines, then cosines, with wavelengths in a geometric sequence from
    2 pi to 10,000 x 2 pi positions."""
    step = math.log(10_000) / (channels // 2 - 1)
    angle = jnp.arange(length)[:, None] * jnp.exp(-step * jnp.arange(channels // 2))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def apply_rope(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], theta: float
) -> Float[Array, "B T N H"]:
    """Rotary position embedding (Su et al. 2021), pairing x[h] with x[h + H/2].

    Args:
        x: queries or keys.
        positions: token positions.
        theta: the longest wavelength is 2 pi theta tokens.
    """
    half, high = x.shape[-1] // 2, at_least_float32(x.dtype)
    frequency = theta ** -(jnp.arange(half, dtype=high) / half)
    angle = positions[:, :, None, None].astype(high) * frequency
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    return x * cos + _swap_halves(x) * sin


def _swap_halves(x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    half = x.shape[-1] // 2
    if current_platform() != "tpu":
        return jnp.concatenate([x[..., half:], x[..., :half]], axis=-1)
    # Exact, since each sum has one term. TPUs move data across lanes slowly, and the compiler
    # fuses this product with the multiplications around it. It has a batch dimension, so that
    # `remat: dots` does not save its result.
    swap = jnp.roll(jnp.eye(2 * half, dtype=x.dtype), half, axis=1)
    swap = jnp.broadcast_to(swap, (x.shape[0], *swap.shape))
    return jnp.einsum("BTNH,BHG->BTNG", x, swap, precision=matmul_precision(x.dtype))
