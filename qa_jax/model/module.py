"""Parameters, each declared once: shape, logical axes and initializer beside the code that uses it.

A module holds `nnx.Param`s whose values are shapes. `initialize` makes the arrays, `bind` puts them
into the module inside a traced function, `param_specs` gives shapes and axes to sharding and to
conversion. Flax NNX is imported in this file and in `qa_jax.lora`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import Array, DType, Key, ParamPath, Params, PyTree

Module = nnx.Module
Initializer = Callable[[jax.Array, tuple[int, ...], DType], jax.Array]
M = TypeVar("M", bound=nnx.Module)


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


def param(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    init: Initializer,
    dtype: DType = None,
    num_layers: int | None = None,
) -> nnx.Param:
    """Declares a parameter of a module; its value is a shape until `bind` puts an array there.

    `num_layers` is for a parameter added to a module that is already stacked.
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in rank")
    if num_layers is not None:
        shape, axes = (num_layers, *shape), ("layers", *axes)
    value = jax.ShapeDtypeStruct(shape, jnp.float32)
    stacked = num_layers is not None
    return nnx.Param(value, axes=axes, init=init, stacked=stacked, param_dtype=dtype)


def set_param_dtype(module: Module, dtype: DType) -> None:
    """Declares the storage dtype of all of a module's parameters."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param):
            node.set_metadata("param_dtype", dtype)


def submodules(module: Module, kind: type[M]) -> dict[ParamPath, M]:
    """The submodules of a class by path, in a stable order."""
    found = {tuple(map(str, p)): m for p, m in nnx.iter_graph(module) if isinstance(m, kind)}
    return dict(sorted(found.items()))


def stack(layer: M, n: int) -> M:
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
    body: Callable[..., tuple[PyTree, PyTree]],
    carry: PyTree,
    xs: PyTree = None,
    *,
    remat: str = "none",
    unroll: bool = False,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` of body(layer, carry, x) over stacked layers: compiled once for all of them.

    `remat` and `unroll` are `ModelConfig`'s. Layers separated by `unstack` run one by one.
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

    def step(carry: PyTree, inputs: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, x = inputs
        return body(nnx.merge(graphdef, params), carry, x)

    if remat != "none":
        # XLA cannot merge the recomputation with the original inside a scan: no barrier is needed.
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(step, carry, (params, xs), unroll=unroll or 1)


def _is_tuple(x: object) -> bool:
    return isinstance(x, tuple)


def unstack(module: Module, params: Params) -> Params:
    """Parameters with every stacked array as a tuple of its layers' arrays.

    A copy, for small models on a CPU: there XLA copies a layer out of its stack at each use, which
    costs more than the use when one token is decoded.
    """
    specs = param_specs(module)
    flat = flatten_dict(params)
    return unflatten_dict({p: tuple(x) if specs[p].stacked else x for p, x in flat.items()})


def bind(module: M) -> Callable[[Params], M]:
    """A function from parameters to the module with these, cheap enough to call while tracing."""
    graphdef, _ = nnx.split(module)
    return lambda params: nnx.merge(graphdef, params)


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
