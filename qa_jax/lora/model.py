"""Adding adapters to a model, and the dtypes of its frozen base."""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

from qa_jax.config import LoraConfig
from qa_jax.errors import InputError, suggest
from qa_jax.lora.layers import LoraLinear
from qa_jax.model import declare_int8, linear_layers
from qa_jax.model.layers import Linear, zeros
from qa_jax.model.module import Initializer, Module, param
from qa_jax.model.params import ParamSpec, param_specs
from qa_jax.trees import unflatten_dict
from qa_jax.typing import Array, DType, Key, ParamPath, Params


def add_lora(
    model: Module, config: LoraConfig, *, adapters: bool = True, with_dropout: bool = False
) -> tuple[ParamPath, ...]:
    """Replaces a model's linear layers by `LoraLinear`, and declares the base dtypes.

    Args:
        model: changed in place.
        config: which layers, and how.
        adapters: False for the base model alone, in the same dtypes.
        with_dropout: also declare a dropout key for each adapter, which `lora_dropout_keys` draws.

    Returns:
        The paths of the layers that have an adapter.

    Raises:
        InputError: for a pattern that matches no linear layer.
    """
    layers = linear_layers(model)
    names = {path: "/".join(path) for path in layers}
    check_patterns("lora.target_modules", config.target_modules, names.values())
    _set_param_dtype(model, jnp.float32 if config.base_dtype == "float32" else jnp.bfloat16)
    if config.base_dtype == "int8":
        declare_int8(model)
    kernels = {path[:-1]: spec for path, spec in param_specs(model).items() if path[-1] == "kernel"}
    adapted = []
    for path, layer in layers.items():
        if adapters and any(re.match(p, names[path]) for p in config.target_modules):
            parent = functools.reduce(getattr, path[:-1], model)
            setattr(parent, path[-1], _lora_linear(layer, kernels[path], config, with_dropout))
            adapted.append(path)
    return tuple(adapted)


def _lora_linear(
    layer: Linear, kernel: ParamSpec, config: LoraConfig, with_dropout: bool
) -> LoraLinear:
    """The replacement of one layer, whose kernel has this specification."""
    lead = int(kernel.stacked)
    ins = slice(lead, lead + layer.in_dims)
    outs = slice(lead + layer.in_dims, None)
    shape, axes = kernel.shape, kernel.axes
    num_layers = shape[0] if lead else None

    def declare(
        shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer, dtype: DType = jnp.float32
    ) -> nnx.Param:
        return param(shape, axes, init, dtype, num_layers)

    rank, uniform = config.rank, _uniform(math.prod(shape[ins]))
    key = None
    if with_dropout and config.dropout:
        key = declare((2,), ("rank",), zeros, jnp.uint32)
    return LoraLinear(
        layer,
        lora_a=declare((*shape[ins], rank), (*axes[ins], "rank"), uniform),
        lora_b=declare((rank, *shape[outs]), ("rank", *axes[outs]), zeros),
        scale=config.scale,
        dropout=config.dropout,
        lora_key=key,
    )


def _set_param_dtype(module: Module, dtype: DType) -> None:
    """Declares the storage dtype of all of a module's parameters."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            node.set_metadata("param_dtype", dtype)


def check_patterns(setting: str, patterns: Collection[str], names: Collection[str]) -> None:
    """Raises InputError for an invalid regular expression, or one that matches no name."""
    for pattern in patterns:
        try:
            matches = any(re.match(pattern, name) for name in names)
        except re.error as error:
            raise InputError(setting, f"{pattern!r} is no regular expression ({error})") from None
        if not matches:
            raise InputError(setting, f"{pattern!r} matches nothing", suggest(pattern, names))


def _uniform(num_inputs: int) -> Initializer:
    """PEFT's initial A: uniform within 1 / sqrt(inputs)."""
    limit = num_inputs**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def lora_dropout_keys(model: Module, key: Key[Array, ""]) -> Params:
    """The keys declared by `add_lora` with dropout, each derived from its own path."""
    keys = {}
    for path, spec in param_specs(model).items():
        if path[-1] == "lora_key":
            k = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
            drawn = jax.random.split(k, spec.shape[0]) if spec.stacked else k
            keys[path] = jax.random.key_data(drawn)
    return unflatten_dict(keys)
