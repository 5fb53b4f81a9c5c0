"""Cross-entropy over a large vocabulary, from hidden states and the output layer's kernel.

The float32 logits of a whole batch (2,048 tokens x 156,032 entries are 1.3 GB) are never stored:
they are computed for a part of the vocabulary at a time, once for the loss and again for its
gradient, and only at tokens that have a loss. Each device works on its own rows and its own share
of the vocabulary, and gathers no more of the kernel than it uses next.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from qa_jax.model.layers import precision, wide
from qa_jax.parallel import BATCH_AXES, current_platform, mesh_shape, partition_spec

_LOGITS = 2**26
"""Logits computed at a time on a device: 256 MiB in float32."""
_TOKENS = {"cpu": 128, "gpu": 2048, "tpu": 2048}
"""Tokens of a device that are looked at together: fewer leave out more of those without a loss;
with more, an accelerator gathers the kernel less often."""
_SMALL = 2**22
"""Logits that are not worth looking at piece by piece."""


@jax.custom_vjp
def cross_entropy(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """-log p(target) of every token, and whether no other entry is likelier than its target.

    Args:
        hidden: (B, T, D) normalized hidden states.
        kernel: (D, V) of the output layer, in their type; logits are at least float32.
        targets: (B, T) ids.
        wanted: (B, T) bool; a token that is not wanted is not looked at, and gives 0 and False.

    Returns:
        (B, T) float32 (float64 for float64), and (B, T) bool.
    """
    values = (hidden, kernel, targets, wanted)
    loss, likeliest, _ = _Cut.of(hidden, kernel).on_devices(_loss, values, ("rows",) * 3)
    return loss, likeliest


def _forward(*inputs: Any) -> tuple[tuple[jax.Array, jax.Array], Any]:
    values = tuple(x.value for x in inputs)
    cut = _Cut.of(*values[:2])
    loss, likeliest, log_sum_exp = cut.on_devices(_loss, values, ("rows",) * 3)
    # A frozen kernel's gradient is not computed; the residuals tell so by their structure.
    moves = (jnp.zeros(()),) if inputs[1].perturbed else ()
    return (loss, likeliest), (*values, log_sum_exp, moves)


def _backward(kept: Any, d_out: tuple[jax.Array, Any]) -> tuple[Any, ...]:
    *values, moves = kept
    gradient = functools.partial(_gradient, moves=bool(moves))
    outputs = ("rows", "kernel") if moves else ("rows",)
    inputs = (*values, d_out[0])
    d_hidden, *d_kernel = _Cut.of(*values[:2]).on_devices(gradient, inputs, outputs)
    return d_hidden, d_kernel[0] if moves else None, None, None


cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


class _Cut(NamedTuple):
    """How a device cuts its work, and the mesh axes over which devices share it.

    Attributes:
        block: tokens of a row that are looked at together.
        part: vocabulary entries that are looked at together.
        rows: mesh axes that cut the batch.
        embed: of those, the ones that cut the kernel's D, too.
        vocab: mesh axes that cut the kernel's V.
    """

    block: int
    part: int
    rows: tuple[str, ...]
    embed: tuple[str, ...]
    vocab: tuple[str, ...]

    @classmethod
    def of(cls, hidden: jax.Array, kernel: jax.Array) -> _Cut:
        mesh = mesh_shape()
        spec = partition_spec(("embed", "vocab"), kernel.shape, mesh, "lm_head")
        embed, vocab = (() if a is None else (a,) if isinstance(a, str) else a for a in spec)
        rows = tuple(a for a in BATCH_AXES if mesh.get(a, 1) > 1)
        b = hidden.shape[0] // math.prod(mesh[a] for a in rows)
        v = kernel.shape[1] // math.prod(mesh[a] for a in vocab)
        block = t = hidden.shape[1]
        if b * t * v > _SMALL:
            block = min(t, -(-_TOKENS[current_platform()] // b))
        return cls(block, min(v, max(1, _LOGITS // (b * block))), rows, embed, vocab)

    def on_devices(
        self, function: Callable[..., Any], inputs: Sequence[jax.Array], outputs: Sequence[str]
    ) -> tuple[jax.Array, ...]:
        """function(cut, hidden, kernel, ...) run by each device on its own share."""
        if not (self.rows or self.embed or self.vocab):
            return function(self, *inputs)
        specs = {
            "one": PartitionSpec(),
            "rows": PartitionSpec(self.rows or None),
            "kernel": PartitionSpec(self.embed or None, self.vocab or None),
        }
        places = ("rows", "kernel", *["rows"] * (len(inputs) - 2))
        return jax.shard_map(
            functools.partial(function, self),
            in_specs=tuple(specs[p] for p in places),
            out_specs=tuple(specs[p] for p in outputs),
            check_vma=False,
        )(*inputs)

    def order(self, wanted: jax.Array) -> tuple[jax.Array | None, Any]:
        """(B, T) indices of the tokens of each row, the wanted ones first, and how many blocks
        hold any; None and 1 where one block holds all."""
        if self.block == wanted.shape[1]:
            return None, 1
        busiest = jnp.max(jnp.sum(wanted, axis=1))
        # All devices take as many blocks, for they gather the kernel together.
        busiest = jax.lax.pmax(busiest, self.rows) if self.rows else busiest
        return jnp.argsort(~wanted, axis=1, stable=True), -(-busiest // self.block)

    def arrange(self, x: jax.Array, order: jax.Array | None) -> jax.Array:
        """(B, T, ...) in that order, filled up with zeros to whole blocks."""
        if order is None:
            return x
        index = order.reshape(*order.shape, *[1] * (x.ndim - 2))
        fill = [(0, 0), (0, -x.shape[1] % self.block)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(jnp.take_along_axis(x, index, axis=1), fill)

    def arrange_back(self, x: jax.Array, order: jax.Array | None) -> jax.Array:
        """What `arrange` has put in order as it was before."""
        if order is None:
            return x
        index = jnp.argsort(order, axis=1)
        return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)

    def tokens(self, x: jax.Array, i: Any) -> jax.Array:
        """(B x block, ...): the i-th block of what `arrange` has put in order."""
        block = jax.lax.dynamic_slice_in_dim(x, i * self.block, self.block, axis=1)
        return block.reshape(-1, *x.shape[2:])

    def put(self, x: jax.Array, i: Any, block: jax.Array) -> jax.Array:
        """x with its i-th block replaced."""
        block = block.reshape(x.shape[0], self.block, *x.shape[2:]).astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(x, block, i * self.block, axis=1)

    def each_part(self, kernel: jax.Array, body: Callable[..., Any], carry: Any) -> Any:
        """body(carry, first, size) over the parts of this device's vocabulary."""
        whole, rest = divmod(kernel.shape[1], self.part)
        if whole == 1:
            carry = body(carry, 0, self.part)
        else:
            step = lambda i, carry: body(carry, i * self.part, self.part)  # noqa: E731
            carry = jax.lax.fori_loop(0, whole, step, carry)
        return body(carry, whole * self.part, rest) if rest else carry

    def logits(
        self, hidden: jax.Array, kernel: jax.Array, first: Any, size: int
    ) -> tuple[jax.Array, jax.Array]:
        """(N, size) logits, and the (D, size) part of the kernel that they are of."""
        part = jax.lax.dynamic_slice_in_dim(kernel, first, size, axis=1)
        if self.embed:
            part = jax.lax.all_gather(part, self.embed, axis=0, tiled=True)
        return _dot(hidden, part, (1, 0), wide(hidden.dtype)), part

    def place(self, targets: jax.Array, kernel: jax.Array, first: Any) -> jax.Array:
        """Targets counted from a part's first entry; outside the part they are of no use there."""
        share = jax.lax.axis_index(self.vocab) * kernel.shape[1] if self.vocab else 0
        return targets - share - first


def _loss(
    cut: _Cut, hidden: jax.Array, kernel: jax.Array, targets: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, ...]:
    """The two results, and each token's log-sum-exp in the order of the blocks."""
    order, blocks = cut.order(wanted)
    inputs = [cut.arrange(x, order) for x in (hidden, targets)]

    def block(i: Any, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        h, y = (cut.tokens(x, i) for x in inputs)

        def part(carry: tuple[jax.Array, ...], first: Any, size: int) -> tuple[jax.Array, ...]:
            highest, total, picked = carry
            z, _ = cut.logits(h, kernel, first, size)
            at = cut.place(y, kernel, first)
            here = jnp.take_along_axis(z, jnp.clip(at, 0, size - 1)[:, None], axis=1)[:, 0]
            picked = jnp.where((at >= 0) & (at < size), here, picked)
            top = jnp.maximum(highest, jnp.max(z, axis=1))
            total = total * jnp.exp(highest - top) + jnp.sum(jnp.exp(z - top[:, None]), axis=1)
            return top, total, picked

        low = jnp.full(y.shape, jnp.finfo(high).min, high)
        highest, total, picked = cut.each_part(kernel, part, (low, jnp.zeros_like(low), low))
        if cut.vocab:
            top = jax.lax.pmax(highest, cut.vocab)
            total = jax.lax.psum(total * jnp.exp(highest - top), cut.vocab)
            highest, picked = top, jax.lax.pmax(picked, cut.vocab)
        log_sum_exp = highest + jnp.log(total)
        new = log_sum_exp - picked, picked >= highest, log_sum_exp
        return tuple(cut.put(x, i, y) for x, y in zip(found, new, strict=True))

    high = wide(hidden.dtype)
    zeros = jnp.zeros(inputs[1].shape, high)
    found = _each_block(blocks, block, (zeros, jnp.zeros(zeros.shape, bool), zeros))
    loss, likeliest = (cut.arrange_back(x, order) for x in found[:2])
    return jnp.where(wanted, loss, 0), likeliest & wanted, found[2]


def _gradient(
    cut: _Cut,
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    wanted: jax.Array,
    log_sum_exp: jax.Array,
    d_loss: jax.Array,
    *,
    moves: bool,
) -> tuple[jax.Array, ...]:
    """For hidden, and where the kernel moves, for this device's share of it, given that of every
    token's loss."""
    order, blocks = cut.order(wanted)
    d_loss = jnp.where(wanted, d_loss, 0)
    inputs = [*(cut.arrange(x, order) for x in (hidden, targets, d_loss)), log_sum_exp]

    def block(i: Any, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        h, y, w, scale = (cut.tokens(x, i) for x in inputs)

        def part(carry: tuple[jax.Array, ...], first: Any, size: int) -> tuple[jax.Array, ...]:
            d_h, *d_kernel = carry
            z, columns = cut.logits(h, kernel, first, size)
            hit = cut.place(y, kernel, first)[:, None] == jnp.arange(size)
            d_z = (jnp.exp(z - scale[:, None]) - hit) * w[:, None].astype(z.dtype)
            d_z = d_z.astype(hidden.dtype)
            d_h = d_h + _dot(d_z, columns, (1, 1), d_h.dtype)
            if moves:
                d_columns = _sum_of_rows(cut, _dot(h, d_z, (0, 0), hidden.dtype))
                before = jax.lax.dynamic_slice_in_dim(d_kernel[0], first, size, axis=1)
                d_kernel = [
                    jax.lax.dynamic_update_slice_in_dim(
                        d_kernel[0], before + d_columns, first, axis=1
                    )
                ]
            return d_h, *d_kernel

        d_h = jnp.zeros(h.shape, wide(hidden.dtype))
        d_h, *d_kernel = cut.each_part(kernel, part, (d_h, *found[1:]))
        d_h = jax.lax.psum(d_h, cut.vocab) if cut.vocab else d_h
        return cut.put(found[0], i, d_h), *d_kernel

    # Several blocks are summed wide, whatever type the sum is handed on in.
    high = kernel.dtype if order is None else wide(kernel.dtype)
    found = (jnp.zeros_like(inputs[0]), *([jnp.zeros(kernel.shape, high)] if moves else []))
    d_hidden, *d_kernel = _each_block(blocks, block, found)
    d_hidden = cut.arrange_back(d_hidden, order)
    return d_hidden, *(d.astype(kernel.dtype) for d in d_kernel)


def _each_block(blocks: Any, block: Callable[..., Any], carry: Any) -> Any:
    return (
        block(0, carry) if isinstance(blocks, int) else jax.lax.fori_loop(0, blocks, block, carry)
    )


def _sum_of_rows(cut: _Cut, d_columns: jax.Array) -> jax.Array:
    """The sum over all rows' devices of (D, size) gradients, cut as the kernel is."""
    if cut.embed:
        d_columns = jax.lax.psum_scatter(d_columns, cut.embed, scatter_dimension=0, tiled=True)
    others = tuple(a for a in cut.rows if a not in cut.embed)
    return jax.lax.psum(d_columns, others) if others else d_columns


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[int, int], dtype: Any) -> jax.Array:
    dims = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dims, precision=precision(a.dtype), preferred_element_type=dtype
    )
