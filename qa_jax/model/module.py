"""Parameters declared once: shape, logical axes and initializer beside the code that uses them.

A module built here holds declarations and no arrays. `initialize` makes the arrays, `bind` puts
them back for a computation, `declarations` gives shapes and axes to sharding and conversion. Flax
is imported in this file alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

Module = nnx.Module
Params = dict[str, Any]
"""A nested dict of arrays, keyed by attribute names."""
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


class Declaration(NamedTuple):
    """What a parameter is, before it has a value.

    Attributes:
        shape: its shape, the stacked layers' dimension included.
        axes: one logical axis name per dimension.
        init: initializer of one layer's share.
        stacked: whether the first dimension counts layers.
        dtype: the type that it is held in; None for what the rest is held in.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Initializer
    stacked: bool
    dtype: Any = None


def declare(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    init: Initializer,
    dtype: Any = None,
    layers: int | None = None,
) -> nnx.Param:
    """Declares a parameter of a module; its value is a shape until `bind` puts an array there.

    `layers` is for one that comes later to a module that was stacked so many times.
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in rank")
    if layers is not None:
        shape, axes = (layers, *shape), ("layers", *axes)
    value = jax.ShapeDtypeStruct(shape, jnp.float32)
    return nnx.Param(value, axes=axes, init=init, stacked=layers is not None, held=dtype)


def add(module: Module, name: str, parameter: nnx.Param) -> None:
    """Gives a module a parameter that it was made without."""
    setattr(module, name, nnx.data(parameter))


def hold(module: Module, dtype: Any) -> None:
    """Declares the type that all of a module's parameters are held in."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            node.set_metadata("held", dtype)


def submodules(module: Module, kind: type) -> dict[tuple[str, ...], Any]:
    """Its parts of a kind by their paths, in a stable order."""
    found = {tuple(map(str, p)): m for p, m in nnx.iter_graph(module) if isinstance(m, kind)}
    return dict(sorted(found.items()))


def stack(layer: Module, n: int) -> Module:
    """The same layer n times: every parameter gains a leading `layers` dimension for `scan`."""
    for _, node in nnx.iter_graph(layer):
        if isinstance(node, nnx.Param):
            meta, one = node.get_metadata(), node.get_value()
            node.set_value(jax.ShapeDtypeStruct((n, *one.shape), one.dtype))
            node.set_metadata("axes", ("layers", *meta["axes"]))
            node.set_metadata("stacked", True)
    return layer


REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def scan(
    layers: Module,
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: str = "none",
    unroll: bool = False,
) -> tuple[Any, Any]:
    """`jax.lax.scan` of body(layer, carry, x) over stacked layers: compiled once for all of them.

    `remat` and `unroll` are `ModelConfig`'s. Layers that `unstack` has taken apart run one by one.
    """
    graphdef, params = nnx.split(layers)
    first = jax.tree.leaves(params, is_leaf=_is_tuple)[0]
    if _is_tuple(first):
        outputs = []
        for i in range(len(first)):
            layer = jax.tree.map(lambda p, i=i: p[i], params, is_leaf=_is_tuple)
            x = jax.tree.map(lambda x, i=i: x[i], xs)
            carry, y = body(nnx.merge(graphdef, layer), carry, x)
            outputs.append(y)
        return carry, jax.tree.map(lambda *y: jnp.stack(y), *outputs)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        params, x = inputs
        return body(nnx.merge(graphdef, params), carry, x)

    if remat != "none":
        # Inside a scan XLA cannot merge the recomputation with the original, so no barrier is due.
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(step, carry, (params, xs), unroll=unroll or 1)


def _is_tuple(x: Any) -> bool:
    return isinstance(x, tuple)


def unstack(module: Module, params: Params) -> Params:
    """Parameters with every stacked one as a tuple of its layers' own.

    A copy, for small models on a processor: there a stack's layer is copied out of it each time it
    is used, which costs more than the use where one token is decoded.
    """
    stacked = declarations(module)
    return nest(
        {path: tuple(x) if stacked[path].stacked else x for path, x in flatten(params).items()}
    )


def bind(module: Module) -> Callable[[Params], Any]:
    """A function from parameters to the module holding them, cheap enough to call while tracing."""
    graphdef, _ = nnx.split(module)
    return lambda params: nnx.merge(graphdef, params)


def declarations(module: Module) -> dict[tuple[str, ...], Declaration]:
    """Every parameter's declaration by its path, in a stable order."""
    found = {}
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            meta = node.get_metadata()
            found[tuple(map(str, path))] = Declaration(
                node.get_value().shape, meta["axes"], meta["init"], meta["stacked"], meta["held"]
            )
    return dict(sorted(found.items()))


def nest(flat: dict[tuple[str, ...], Any]) -> Params:
    """{("a", "b"): x} -> {"a": {"b": x}}."""
    tree: Params = {}
    for path, leaf in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def join(*trees: Params) -> Params:
    """Trees with different leaves as one; where two have the same, the later one's counts."""
    return nest({path: x for tree in trees for path, x in flatten(tree).items()})


def split(tree: Params, wanted: Params) -> tuple[Params, Params]:
    """The leaves for which `wanted`, a tree of bools, is true, and the others."""
    chosen = flatten(wanted)
    flat = flatten(tree)
    return (
        nest({path: x for path, x in flat.items() if chosen[path]}),
        nest({path: x for path, x in flat.items() if not chosen[path]}),
    )


def flatten(tree: Params, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """{"a": {"b": x}} -> {("a", "b"): x}, the inverse of `nest`."""
    flat = {}
    for name, node in tree.items():
        if isinstance(node, dict):
            flat.update(flatten(node, (*prefix, name)))
        else:
            flat[(*prefix, name)] = node
    return flat


def initialize(
    module: Module,
    key: jax.Array,
    dtype: Any = jnp.float32,
    wanted: Callable[[tuple[str, ...]], bool] = lambda _: True,
) -> Params:
    """Fresh parameters, those whose paths are `wanted`.

    Each draws from a key of its own path, so neither the order of declarations nor a new neighbour
    changes any other's values.
    """
    flat = {}
    for path, d in declarations(module).items():
        if not wanted(path):
            continue
        k = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        held = d.dtype or dtype
        if d.stacked:
            keys = jax.random.split(k, d.shape[0])
            flat[path] = jax.vmap(lambda k, d=d, t=held: d.init(k, d.shape[1:], t))(keys)
        else:
            flat[path] = d.init(k, d.shape, held)
    return nest(flat)


def count_parameters(module: Module) -> int:
    """How many numbers the module's parameters hold."""
    return sum(
        jax.ShapeDtypeStruct(d.shape, jnp.float32).size for d in declarations(module).values()
    )
