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
from qa_jax.model.layers import Linear, ones, zeros
from qa_jax.model.module import Initializer, Module, param
from qa_jax.model.params import ParamSpec, param_specs
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import Array, DType, Float, Int, Key, ParamPath, Params


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
    layers = _linear_layers(model)
    names = {path: "/".join(path) for path in layers}
    check_patterns("lora.target_modules", config.target_modules, names.values())
    _set_param_dtype(model, jnp.float32 if config.base_dtype == "float32" else jnp.bfloat16)
    kernels = {path[:-1]: spec for path, spec in param_specs(model).items() if path[-1] == "kernel"}
    adapted = []
    for path, layer in layers.items():
        has_adapter = adapters and any(re.match(p, names[path]) for p in config.target_modules)
        if not has_adapter and config.base_dtype != "int8":
            continue
        parent = functools.reduce(getattr, path[:-1], model)
        new = _lora_linear(layer, kernels[path], config, has_adapter, with_dropout)
        setattr(parent, path[-1], new)
        if has_adapter:
            adapted.append(path)
    return tuple(adapted)


def _lora_linear(
    layer: Linear, kernel: ParamSpec, config: LoraConfig, has_adapter: bool, with_dropout: bool
) -> LoraLinear:
    """The replacement of one layer, whose kernel has this specification."""
    lead = int(kernel.stacked)
    ins = slice(lead, lead + layer.in_dims)
    outs = slice(lead + layer.in_dims, None)
    shape, axes = kernel.shape, kernel.axes
    num_layers = shape[0] if lead else None

    def declare(
        shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer, dtype: DType = jnp.float32
    ) -> object:
        return param(shape, axes, init, dtype, num_layers)

    added: dict[str, object] = {}
    if config.base_dtype == "int8":
        layer.kernel.set_metadata("param_dtype", jnp.int8)
        added["kernel_scale"] = declare(shape[outs], axes[outs], ones)
    if has_adapter:
        rank = config.rank
        uniform = _uniform(math.prod(shape[ins]))
        added["lora_a"] = declare((*shape[ins], rank), (*axes[ins], "rank"), uniform)
        added["lora_b"] = declare((rank, *shape[outs]), ("rank", *axes[outs]), zeros)
        added |= {"scale": config.scale, "dropout": config.dropout}
        if with_dropout and config.dropout:
            added["lora_key"] = declare((2,), ("rank",), zeros, jnp.uint32)
    return LoraLinear(layer, **added)  # type: ignore[arg-type]


def _set_param_dtype(module: Module, dtype: DType) -> None:
    """Declares the storage dtype of all of a module's parameters."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            node.set_metadata("param_dtype", dtype)


def _linear_layers(model: Module) -> dict[ParamPath, Linear]:
    """The linear layers by path, in a stable order."""
    found = {tuple(map(str, p)): m for p, m in nnx.iter_graph(model) if isinstance(m, Linear)}
    return dict(sorted(found.items()))


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


def quantize(
    kernel: Float[Array, "*dims"], in_axes: tuple[int, ...]
) -> tuple[Int[Array, "*dims"], Float[Array, "*out_dims"]]:
    """A kernel in int8, and the scale of each output."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=in_axes, keepdims=True), 1e-30) / 127
    return jnp.round(kernel / scale).astype(jnp.int8), jnp.squeeze(scale, in_axes)


def cast_to_param_dtypes(model: Module, params: Params) -> Params:
    """Base parameters in the dtypes declared by `add_lora` without adapters.

    Converts one parameter at a time, to bound peak memory; the caller must hold no other reference.
    """
    specs = param_specs(model)
    layers = _linear_layers(model)
    flat = flatten_dict(params)
    del params
    cast = {}
    for path in list(flat):
        x, spec = flat.pop(path), specs[path]
        if spec.dtype == jnp.int8:
            lead = int(spec.stacked)
            in_axes = tuple(range(lead, lead + layers[path[:-1]].in_dims))
            scale_path = (*path[:-1], "kernel_scale")
            cast[path], cast[scale_path] = jax.jit(quantize, static_argnums=1)(x, in_axes)
        else:
            cast[path] = x.astype(spec.dtype)
    return unflatten_dict(cast)
