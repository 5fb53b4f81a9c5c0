"""Low-rank adapters: what a fine-tune adds to linear layers, apart from the model or merged in.

Hu et al. 2021, "LoRA": a layer's kernel W becomes W + scale * A B; A is (in, rank), B (rank, out).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.config import LoraConfig, nearest
from qa_jax.errors import InputError
from qa_jax.model.layers import Linear, ones, zeros
from qa_jax.model.module import (
    Initializer,
    Module,
    Params,
    add,
    declarations,
    declare,
    flatten,
    hold,
    nest,
    submodules,
)

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


def adapt(
    model: Module, config: LoraConfig, *, adapters: bool = True, dropping: bool = False
) -> tuple[Path, ...]:
    """Declares adapters in a model's linear layers, and how the model itself is held meanwhile.

    Args:
        model: as its class made it; it is changed.
        config: which layers, and how.
        adapters: False for the model alone, held in the same way.
        dropping: also declare a key for each adapter's dropout, which `dropout_keys` draws.

    Returns:
        The paths of the layers that have an adapter.

    Raises:
        InputError: for a pattern that matches no linear layer.
    """
    layers = submodules(model, Linear)
    names = {path: "/".join(path) for path in layers}
    check_patterns("lora.layers", config.layers, names.values())
    hold(model, jnp.float32 if config.base == "float32" else jnp.bfloat16)
    kernels = {path[:-1]: d for path, d in declarations(model).items() if path[-1] == "kernel"}
    adapted = []
    for path, layer in layers.items():
        kernel, lead = kernels[path], int(kernels[path].stacked)
        ins = slice(lead, lead + layer.in_dims)
        outs = slice(lead + layer.in_dims, None)
        shape, axes = kernel.shape, kernel.axes

        n = shape[0] if lead else None
        if config.base == "int8":
            layer.kernel.set_metadata("held", jnp.int8)
            scale = declare(shape[outs], axes[outs], ones, jnp.float32, n)
            add(layer, "kernel_scale", scale)
        if not adapters or not any(re.match(p, names[path]) for p in config.layers):
            continue
        adapted.append(path)
        rank, inputs = config.rank, math.prod(shape[ins])
        a, b = (*shape[ins], rank), (rank, *shape[outs])
        low = declare(a, (*axes[ins], "rank"), _uniform(inputs), jnp.float32, n)
        add(layer, "lora_a", low)
        add(layer, "lora_b", declare(b, ("rank", *axes[outs]), zeros, jnp.float32, n))
        layer.lora_scale, layer.lora_dropout = config.scale, config.dropout
        if dropping and config.dropout:
            add(layer, "lora_key", declare((2,), ("rank",), zeros, jnp.uint32, n))
    return tuple(adapted)


def check_patterns(setting: str, patterns: Collection[str], names: Collection[str]) -> None:
    """Raises InputError for what is no regular expression, or matches none of the names."""
    for pattern in patterns:
        try:
            hits = any(re.match(pattern, name) for name in names)
        except re.error as error:
            raise InputError(setting, f"{pattern!r} is no regular expression ({error})") from None
        if not hits:
            raise InputError(setting, f"{pattern!r} matches nothing", nearest(pattern, names))


def _uniform(inputs: int) -> Initializer:
    """PEFT's initial A: between -1 and 1 over the root of its inputs."""
    limit = inputs**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def is_adapter_path(path: Path) -> bool:
    """Whether a parameter is an adapter's and not the model's."""
    return path[-1] in ("lora_a", "lora_b")


def dropout_keys(model: Module, key: jax.Array) -> Params:
    """The keys that a model adapted with `dropping` declares, each of its own path."""
    keys = {}
    for path, d in declarations(model).items():
        if path[-1] == "lora_key":
            k = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
            drawn = jax.random.split(k, d.shape[0]) if d.stacked else k
            keys[path] = jax.random.key_data(drawn)
    return nest(keys)


def quantize(kernel: jax.Array, in_axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """A kernel in 8 bits, and what each output's column is to be multiplied by: (..., *out)."""
    wide = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=in_axes, keepdims=True), 1e-30) / 127
    return jnp.round(wide / scale).astype(jnp.int8), jnp.squeeze(scale, in_axes)


def held_as_declared(model: Module, params: Params) -> Params:
    """Parameters in the types that a model adapted without adapters declares.

    One after the other and the given one let go, for the whole may only just fit.
    """
    declared = declarations(model)
    layers = submodules(model, Linear)
    flat = flatten(params)
    del params
    held = {}
    for path in list(flat):
        x, d = flat.pop(path), declared[path]
        if d.dtype == jnp.int8:
            lead = int(d.stacked)
            in_axes = tuple(range(lead, lead + layers[path[:-1]].in_dims))
            scale_path = (*path[:-1], "kernel_scale")
            held[path], held[scale_path] = jax.jit(quantize, static_argnums=1)(x, in_axes)
        else:
            held[path] = x.astype(d.dtype)
    return nest(held)
