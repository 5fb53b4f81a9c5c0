"""int8 weights of linear layers, with a scale for each output.

Products are computed in the activations' dtype and accumulated in float32; their results are
multiplied by the scales, so that no wide copy of the weights is needed. Embeddings, the output
layer, convolutions and norms keep their dtypes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from qa_jax.model.layers import Linear, ones
from qa_jax.model.module import Module, param
from qa_jax.model.params import param_specs
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import Array, Float, Int, ParamPath, Params, Shaped


def linear_layers(model: Module) -> dict[ParamPath, Linear]:
    """A model's linear layers by path, in a stable order."""
    found = {tuple(map(str, p)): m for p, m in nnx.iter_graph(model) if isinstance(m, Linear)}
    return dict(sorted(found.items()))


def declare_int8(model: Module) -> None:
    """Declares the kernels of all linear layers as int8, each with a `kernel_scale`."""
    specs = param_specs(model)
    for path, layer in linear_layers(model).items():
        spec = specs[(*path, "kernel")]
        lead = int(spec.stacked)
        outs = slice(lead + layer.in_dims, None)
        num_layers = spec.shape[0] if lead else None
        layer.kernel.set_metadata("param_dtype", jnp.int8)
        layer.kernel_scale = param(spec.shape[outs], spec.axes[outs], ones, jnp.float32, num_layers)


def quantize(
    kernel: Float[Array, "*dims"], in_axes: tuple[int, ...]
) -> tuple[Int[Array, "*dims"], Float[Array, "*out_dims"]]:
    """A kernel in int8, and the scale of each output."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=in_axes, keepdims=True), 1e-30) / 127
    return jnp.round(kernel / scale).astype(jnp.int8), jnp.squeeze(scale, in_axes)


def cast_to_param_dtypes(model: Module, params: Params) -> Params:
    """Parameters in the dtypes that a model declares, and with the scales of int8 kernels.

    Converts one parameter at a time, to bound peak memory; the caller must hold no other reference.
    """
    flat = flatten_dict(params)
    del params
    cast: dict[ParamPath, jax.Array] = {}
    for path in list(flat):
        cast |= cast_to_param_dtype(model, path, flat.pop(path))
    return unflatten_dict(cast)


def cast_to_param_dtype(
    model: Module, path: ParamPath, x: Shaped[Array, "..."]
) -> dict[ParamPath, Shaped[Array, "..."]]:
    """One parameter of `cast_to_param_dtypes`, with its scale if it has one."""
    spec = param_specs(model)[path]
    if spec.dtype != jnp.int8:
        return {path: x if spec.dtype is None else x.astype(spec.dtype)}
    lead = int(spec.stacked)
    in_axes = tuple(range(lead, lead + linear_layers(model)[path[:-1]].in_dims))
    values, scale = jax.jit(quantize, static_argnums=1)(x, in_axes)
    return {path: values, (*path[:-1], "kernel_scale"): scale}
