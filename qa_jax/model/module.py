"""Modules with declared parameters: shape, logical axes and initializer beside the code.

A module holds `nnx.Param`s whose values are shapes, and `bind` puts arrays into it inside a traced
function. `qa_jax.model.params` makes the arrays. Flax NNX is imported in these two files and in
`qa_jax.lora`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from qa_jax.typing import DType, Params, PyTree

Module = nnx.Module
Initializer = Callable[[jax.Array, tuple[int, ...], DType], jax.Array]
M = TypeVar("M", bound=nnx.Module)


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


def stack(layer: M, n: int) -> M:
    """The same layer n times: every parameter gains a leading `layers` dimension for `scan`."""
    for _, node in nnx.iter_graph(layer):
        if isinstance(node, nnx.Param):
            meta, one = node.get_metadata(), node.get_value()
            node.set_value(jax.ShapeDtypeStruct((n, *one.shape), one.dtype))
            node.set_metadata("axes", ("layers", *meta["axes"]))
            node.set_metadata("stacked", True)
    return layer


ATTENTION_RESIDUALS = "attention"
"""Name of the results of attention that its backward pass needs: output and log-sum-exp."""
MLP_PRODUCTS = "mlp"
"""Name of the results of the decoder's gate and up projections."""
_save_attention = jax.checkpoint_policies.save_only_these_names(ATTENTION_RESIDUALS)
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": _save_attention,
    "mlp": jax.checkpoint_policies.save_only_these_names(ATTENTION_RESIDUALS, MLP_PRODUCTS),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _save_attention
    ),
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

    `remat` and `unroll` are `ModelConfig`'s.
    """
    graphdef, params = nnx.split(layers)

    def step(carry: PyTree, inputs: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, x = inputs
        return body(nnx.merge(graphdef, params), carry, x)

    if remat != "none":
        # XLA cannot merge the recomputation with the original inside a loop: no barrier is needed.
        # Unrolled, it would recompute all layers at once, and save no memory.
        step, unroll = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False), False
    return jax.lax.scan(step, carry, (params, xs), unroll=unroll or 1)


def bind(module: M) -> Callable[[Params], M]:
    """A function from parameters to the module with these, cheap enough to call while tracing."""
    graphdef, _ = nnx.split(module)
    return lambda params: nnx.merge(graphdef, params)
