"""Operations whose gradients are written out: autodiff's would be too narrow, or computed twice.

Autodiff gives the gradient of a float32 kernel that is used in bfloat16 in bfloat16, and devices
would sum it so. Here a gradient is computed and summed in the parameter's own dtype.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from qa_jax.parallel import constrain, current_platform
from qa_jax.typing import Array, DType, Float, Int

TPU_TILE_ROWS = 8
"""Rows of a TPU's tiles."""


def matmul_precision(dtype: DType) -> jax.lax.Precision | None:
    """HIGHEST for float32 and wider, which a TPU would otherwise round to bfloat16."""
    return None if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST


def at_least_float32(dtype: DType) -> DType:
    """The dtype of norms, softmax and rotary angles: float32, or float64 for a float64 model."""
    return jnp.promote_types(dtype, jnp.float32)


def matmul(
    x: Float[Array, "..."], kernel: Float[Array, "..."] | Int[Array, "..."], in_dims: int
) -> Float[Array, "..."]:
    """x W in the activations' dtype, contracting the last `in_dims` dimensions of x.

    The gradient of the kernel is computed, and summed over devices, in the kernel's own dtype.
    """
    if kernel.dtype in (jnp.float32, jnp.float64) and x.dtype != kernel.dtype:
        return materialize_cotangent(_mixed_matmul(x, kernel, in_dims))
    return materialize_cotangent(contract(x, kernel.astype(x.dtype), in_dims))


def contract(
    x: Float[Array, "..."], kernel: Float[Array, "..."], in_dims: int, accumulator: DType = None
) -> Float[Array, "..."]:
    """x W, contracting the last `in_dims` dimensions of x; its dtype is x's or the accumulator's.

    On TPUs fewer rows than a tile has are padded to one: the compiler would compute them on the
    vector unit, which takes a decoding step of one row from 5 to 9 ms.
    """
    lead, inputs = x.shape[: x.ndim - in_dims], x.shape[x.ndim - in_dims :]
    rows = math.prod(lead)
    is_padded = rows < TPU_TILE_ROWS and current_platform() == "tpu"
    if is_padded:
        x = jnp.pad(x.reshape(rows, *inputs), [(0, TPU_TILE_ROWS - rows), *[(0, 0)] * in_dims])
    dims = tuple(range(x.ndim - in_dims, x.ndim)), tuple(range(in_dims))
    y = jax.lax.dot_general(
        x, kernel, (dims, ((), ())), matmul_precision(x.dtype), preferred_element_type=accumulator
    )
    return y[:rows].reshape(*lead, *kernel.shape[in_dims:]) if is_padded else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mixed_matmul(x: jax.Array, kernel: jax.Array, in_dims: int) -> jax.Array:
    """A product of activations with a wider kernel, which autodiff would give a narrow gradient."""
    return contract(x, kernel.astype(x.dtype), in_dims)


def _mixed_matmul_fwd(
    x: jax.Array, kernel: jax.Array, in_dims: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return contract(x, kernel.astype(x.dtype), in_dims), (x, kernel)


def _mixed_matmul_bwd(
    in_dims: int, residuals: tuple[jax.Array, jax.Array], d_y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    lead, out_dims = tuple(range(x.ndim - in_dims)), kernel.ndim - in_dims
    outs = tuple(range(d_y.ndim - out_dims, d_y.ndim)), tuple(range(in_dims, kernel.ndim))
    precision = matmul_precision(x.dtype)
    d_x = jax.lax.dot_general(d_y, kernel.astype(x.dtype), (outs, ((), ())), precision=precision)
    d_kernel = jax.lax.dot_general(
        x, d_y, ((lead, lead), ((), ())), precision, preferred_element_type=kernel.dtype
    )
    return d_x, d_kernel


_mixed_matmul.defvjp(_mixed_matmul_fwd, _mixed_matmul_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def expand(
    vector: Float[Array, "..."], shape: tuple[int, ...], dtype: DType
) -> Float[Array, "..."]:
    """A bias or scale in the activations' shape and dtype; its gradient is summed in its own."""
    return jnp.broadcast_to(vector.astype(dtype), shape)


def _expand_fwd(
    vector: jax.Array, shape: tuple[int, ...], dtype: DType
) -> tuple[jax.Array, jax.Array]:
    return expand(vector, shape, dtype), vector


def _expand_bwd(
    shape: tuple[int, ...], dtype: DType, vector: jax.Array, d_y: jax.Array
) -> tuple[jax.Array]:
    lead = tuple(range(len(shape) - vector.ndim))
    return (jnp.sum(d_y.astype(vector.dtype), axis=lead),)


expand.defvjp(_expand_fwd, _expand_bwd)


@jax.custom_vjp
def materialize_cotangent(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """The identity, whose cotangent is materialised, except on GPUs.

    XLA would otherwise fuse its computation into both products that use it, and compute it twice on
    a CPU, once in a slow memory order (a sixth of a training step), and once for every tile of
    either product on a TPU (a fifteenth, by the compiler's estimate). GPUs fuse it well.
    """
    return y


def _materialize_cotangent_bwd(_: None, d_y: Float[Array, "..."]) -> tuple[Float[Array, "..."]]:
    return (d_y if current_platform() == "gpu" else jax.lax.optimization_barrier(d_y),)


materialize_cotangent.defvjp(lambda y: (y, None), _materialize_cotangent_bwd)


def materialize_on_tpu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The identity, whose value and cotangent are materialised on TPUs.

    A norm, or the product of an MLP's gate and up projections, would otherwise be computed again
    for every tile of each product that uses it, and its gradient within the product before it.
    """
    return jax.lax.optimization_barrier(x) if current_platform() == "tpu" else x


def convolve(
    x: Float[Array, "A F I"], kernel: Float[Array, "3 I O"], stride: int
) -> Float[Array, "A G O"]:
    """A convolution over time, padded by 1, with the kernel's gradient in the kernel's dtype."""
    return (_convolve if kernel.dtype == x.dtype else _mixed_convolve)(x, kernel, stride)


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    precision: jax.lax.Precision | None = jax.lax.Precision.HIGHEST,
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride,),
        padding=((1, 1),),
        dimension_numbers=("NTC", "TIO", "NTC"),
        precision=precision if x.dtype != jnp.bfloat16 else None,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mixed_convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """See `_mixed_matmul`."""
    return _convolve(x, kernel, stride)


def _mixed_convolve_fwd(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _mixed_convolve_bwd(
    stride: int, residuals: tuple[jax.Array, jax.Array], d_y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    _, vjp_x = jax.vjp(lambda x: _convolve(x, kernel, stride), x)
    # bfloat16 values lose nothing at the default precision, which is one pass on a TPU.
    wide, wide_d_y = x.astype(kernel.dtype), d_y.astype(kernel.dtype)
    _, vjp_kernel = jax.vjp(lambda k: _convolve(wide, k, stride, None), kernel)
    return *vjp_x(d_y), *vjp_kernel(wide_d_y)


_mixed_convolve.defvjp(_mixed_convolve_fwd, _mixed_convolve_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: DType
) -> Float[Array, "B T D"]:
    """Rows of an embedding table, in `dtype`.

    The gradient of a row that occurs often is a long sum: it is summed in float32 (in bfloat16 it
    would be 88 % off for a token that occurs 4,096 times) and rounded once, to the table's dtype.
    """
    return table.astype(dtype)[tokens]


def _embed_fwd(
    table: jax.Array, tokens: jax.Array, dtype: DType
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return embed(table, tokens, dtype), (table, tokens)


def _embed_bwd(
    dtype: DType, residuals: tuple[jax.Array, jax.Array], d_y: jax.Array
) -> tuple[jax.Array, None]:
    table, tokens = residuals
    # Each device sums its own columns over all tokens: an all-to-all of activations instead of
    # a reduction of the whole table, still in their narrow dtype.
    d_y = constrain(d_y.reshape(-1, d_y.shape[-1]), None, "embed")
    wide = at_least_float32(dtype)
    total = jnp.zeros(table.shape, wide).at[tokens.reshape(-1)].add(d_y.astype(wide))
    return constrain(total, "vocab", "embed").astype(table.dtype), None


embed.defvjp(_embed_fwd, _embed_bwd)
