"""Parameters as data: their specifications, initial values and layouts."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding

from qa_jax.model.module import Initializer, Module
from qa_jax.trees import unflatten_dict
from qa_jax.typing import Array, DType, Key, ParamPath, Params, Shaped


class ParamSpec(NamedTuple):
    """A parameter before it has a value.

    Attributes:
        shape: its shape, the dimension of stacked layers included.
        axes: one logical axis name per dimension.
        init: initializer of one layer's part.
        stacked: whether the first dimension is the layer.
        dtype: its storage dtype; None for the dtype of the whole model.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Initializer
    stacked: bool
    dtype: DType = None


def param_specs(module: Module) -> dict[ParamPath, ParamSpec]:
    """Every parameter's specification by its path, in a stable order."""
    specs = {}
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            meta = node.get_metadata()
            specs[tuple(map(str, path))] = ParamSpec(
                node.get_value().shape,
                meta["axes"],
                meta["init"],
                meta["stacked"],
                meta["param_dtype"],
            )
    return dict(sorted(specs.items()))


def initialize(
    module: Module,
    key: Key[Array, ""],
    dtype: DType = jnp.float32,
    include: Callable[[ParamPath], bool] = lambda _: True,
) -> Params:
    """Initial values of the parameters whose paths `include` accepts.

    Each draws from a key of its own path, so that adding or reordering parameters does not change
    the values of the others.
    """
    flat = {}
    for path, spec in param_specs(module).items():
        if not include(path):
            continue
        k = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        param_dtype = spec.dtype or dtype
        if spec.stacked:
            keys = jax.random.split(k, spec.shape[0])
            one = lambda k, s=spec, t=param_dtype: s.init(k, s.shape[1:], t)  # noqa: E731
            flat[path] = jax.vmap(one)(keys)
        else:
            flat[path] = spec.init(k, spec.shape, param_dtype)
    return unflatten_dict(flat)


def count_parameters(module: Module) -> int:
    """The number of a module's parameters."""
    return sum(
        jax.ShapeDtypeStruct(s.shape, jnp.float32).size for s in param_specs(module).values()
    )


def parameter_bytes(module: Module, dtype: DType) -> int:
    """Bytes of a module's parameters, in `dtype` where it declares no other."""
    return sum(
        math.prod(s.shape) * jnp.dtype(s.dtype or dtype).itemsize
        for s in param_specs(module).values()
    )


def set_layer(
    stack: Shaped[Array, "*stack_dims"], layer: Shaped[Array, "*dims"], index: int
) -> Shaped[Array, "*stack_dims"]:
    """A stack with another layer, in place: the stack is donated. Its sharding is kept."""
    return _layer_setter(stack.sharding)(stack, layer, index)


@functools.cache
def _layer_setter(sharding: Sharding) -> Callable[..., jax.Array]:
    def set_bits(stack: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
        # As integers: a CPU would convert bfloat16 to float32 and back.
        bits = jnp.dtype(f"uint{8 * stack.dtype.itemsize}")
        stack_bits, layer_bits = (jax.lax.bitcast_convert_type(x, bits) for x in (stack, layer))
        stack_bits = jax.lax.dynamic_update_index_in_dim(stack_bits, layer_bits, index, 0)
        return jax.lax.bitcast_convert_type(stack_bits, stack.dtype)

    return jax.jit(set_bits, donate_argnums=0, out_shardings=sharding)
