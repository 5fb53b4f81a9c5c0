"""Cross-entropy over a large vocabulary, from hidden states and the output layer's kernel.

The float32 logits of a whole batch (2,048 tokens x 156,032 entries are 1.3 GB) are never stored:
they are computed for a block of the vocabulary at a time, once for the loss and again for its
gradient, and only at target tokens. Each device works on its own rows and its own shard of the
vocabulary, and gathers no more of the kernel than the next block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jax.sharding import PartitionSpec

from qa_jax.model.gradients import at_least_float32, matmul_precision
from qa_jax.parallel import BATCH_AXES, current_platform, mesh_shape, partition_spec
from qa_jax.typing import Array, Bool, DType, Float, Int, PyTree

_MAX_LOGITS = 2**26
"""Logits computed at a time on a device: 256 MiB in float32."""
_TOKENS_PER_BLOCK = {"cpu": 128, "gpu": 2048, "tpu": 2048}
"""A device's tokens per block: smaller blocks skip more masked tokens; with larger ones, an
accelerator gathers the kernel less often."""
_SMALL = 2**22
"""Logits below which a batch is computed as one block."""

Carry = tuple[jax.Array, ...]


@jax.custom_vjp
def cross_entropy(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    loss_mask: Bool[Array, "B T"],
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """-log p(target) of every token, and whether the target is the argmax.

    Args:
        hidden: normalized hidden states.
        kernel: of the output layer, cast to their dtype block by block; logits are float32 or
            wider. Its gradient is summed over devices in its own dtype.
        targets: ids.
        loss_mask: masked tokens are skipped, and give 0 and False.

    Returns:
        float32 (float64 for float64), and bool.
    """
    values = (hidden, kernel, targets, loss_mask)
    loss, is_argmax, _ = _BlockSpec.of(hidden, kernel).shard_mapped(_loss, values, ("rows",) * 3)
    return loss, is_argmax


def _forward(*inputs: CustomVJPPrimal) -> tuple[tuple[jax.Array, jax.Array], PyTree]:
    values = tuple(x.value for x in inputs)
    spec = _BlockSpec.of(*values[:2])
    loss, is_argmax, log_sum_exp = spec.shard_mapped(_loss, values, ("rows",) * 3)
    # No gradient is computed for a frozen kernel; the residuals' structure says which.
    needs_kernel_grad = (jnp.zeros(()),) if inputs[1].perturbed else ()
    return (loss, is_argmax), (*values, log_sum_exp, needs_kernel_grad)


def _backward(residuals: PyTree, d_out: tuple[jax.Array, object]) -> tuple[jax.Array | None, ...]:
    *values, needs_kernel_grad = residuals
    gradient = functools.partial(_gradient, needs_kernel_grad=bool(needs_kernel_grad))
    outputs = ("rows", "kernel") if needs_kernel_grad else ("rows",)
    inputs = (*values, d_out[0])
    spec = _BlockSpec.of(*values[:2])
    d_hidden, *d_kernel = spec.shard_mapped(gradient, inputs, outputs)
    return d_hidden, d_kernel[0] if needs_kernel_grad else None, None, None


cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


class _BlockSpec(NamedTuple):
    """Per-device block sizes and mesh axes.

    Attributes:
        token_block: tokens of a row per block.
        vocab_block: vocabulary entries per block.
        rows: mesh axes that shard the batch.
        embed: those of them that shard the kernel's D, too.
        vocab: mesh axes that shard the kernel's V.
    """

    token_block: int
    vocab_block: int
    rows: tuple[str, ...]
    embed: tuple[str, ...]
    vocab: tuple[str, ...]

    @classmethod
    def of(cls, hidden: jax.Array, kernel: jax.Array) -> _BlockSpec:
        mesh = mesh_shape()
        spec = partition_spec(("embed", "vocab"), kernel.shape, mesh, "lm_head")
        embed, vocab = (() if a is None else (a,) if isinstance(a, str) else a for a in spec)
        rows = tuple(a for a in BATCH_AXES if mesh.get(a, 1) > 1)
        b = hidden.shape[0] // math.prod(mesh[a] for a in rows)
        v = kernel.shape[1] // math.prod(mesh[a] for a in vocab)
        block = t = hidden.shape[1]
        if b * t * v > _SMALL:
            block = min(t, -(-_TOKENS_PER_BLOCK[current_platform()] // b))
        return cls(block, min(v, max(1, _MAX_LOGITS // (b * block))), rows, embed, vocab)

    def shard_mapped(
        self,
        function: Callable[..., tuple[jax.Array, ...]],
        inputs: Sequence[jax.Array],
        outputs: Sequence[str],
    ) -> tuple[jax.Array, ...]:
        """function(spec, hidden, kernel, ...) on each device's shards."""
        if not (self.rows or self.embed or self.vocab):
            return function(self, *inputs)
        specs = {
            "rows": PartitionSpec(self.rows or None),
            "kernel": PartitionSpec(self.embed or None, self.vocab or None),
        }
        in_specs = ("rows", "kernel", *["rows"] * (len(inputs) - 2))
        return jax.shard_map(
            functools.partial(function, self),
            in_specs=tuple(specs[s] for s in in_specs),
            out_specs=tuple(specs[s] for s in outputs),
            check_vma=False,
        )(*inputs)

    def sort_order(self, loss_mask: jax.Array) -> tuple[jax.Array | None, jax.Array | int]:
        """(B, T) indices of each row's tokens, the masked ones last, and the number of blocks with
        unmasked tokens; None and 1 if one block holds all tokens."""
        if self.token_block == loss_mask.shape[1]:
            return None, 1
        longest = jnp.max(jnp.sum(loss_mask, axis=1))
        # All devices run the same number of blocks, because they gather the kernel together.
        longest = jax.lax.pmax(longest, self.rows) if self.rows else longest
        return jnp.argsort(~loss_mask, axis=1, stable=True), -(-longest // self.token_block)

    def sort_masked_last(self, x: jax.Array, order: jax.Array | None) -> jax.Array:
        """(B, T, ...) in that order, zero-padded to whole blocks."""
        if order is None:
            return x
        index = order.reshape(*order.shape, *[1] * (x.ndim - 2))
        padding = [(0, 0), (0, -x.shape[1] % self.token_block)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(jnp.take_along_axis(x, index, axis=1), padding)

    def unsort(self, x: jax.Array, order: jax.Array | None) -> jax.Array:
        """The inverse of `sort_masked_last`."""
        if order is None:
            return x
        index = jnp.argsort(order, axis=1)
        return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)

    def get_block(self, x: jax.Array, i: jax.Array | int) -> jax.Array:
        """(B * token_block, ...): the i-th block of a sorted array."""
        block = jax.lax.dynamic_slice_in_dim(x, i * self.token_block, self.token_block, axis=1)
        return block.reshape(-1, *x.shape[2:])

    def update_block(self, x: jax.Array, i: jax.Array | int, block: jax.Array) -> jax.Array:
        """x with its i-th block replaced."""
        block = block.reshape(x.shape[0], self.token_block, *x.shape[2:]).astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(x, block, i * self.token_block, axis=1)

    def scan_vocab(self, kernel: jax.Array, body: Callable[..., Carry], carry: Carry) -> Carry:
        """body(carry, first, size) over the blocks of this device's vocabulary."""
        num_blocks, rest = divmod(kernel.shape[1], self.vocab_block)
        if num_blocks == 1:
            carry = body(carry, 0, self.vocab_block)
        else:
            step = lambda i, carry: body(carry, i * self.vocab_block, self.vocab_block)  # noqa: E731
            carry = jax.lax.fori_loop(0, num_blocks, step, carry)
        return body(carry, num_blocks * self.vocab_block, rest) if rest else carry

    def logits(
        self, hidden: jax.Array, kernel: jax.Array, first: jax.Array | int, size: int
    ) -> tuple[jax.Array, jax.Array]:
        """(N, size) logits, and the (D, size) block of the kernel."""
        block = jax.lax.dynamic_slice_in_dim(kernel, first, size, axis=1).astype(hidden.dtype)
        if self.embed:
            block = jax.lax.all_gather(block, self.embed, axis=0, tiled=True)
        return _matmul(hidden, block, (1, 0), at_least_float32(hidden.dtype)), block

    def local_targets(
        self, targets: jax.Array, kernel: jax.Array, first: jax.Array | int
    ) -> jax.Array:
        """Targets relative to a block's first entry; out of range if outside the block."""
        offset = jax.lax.axis_index(self.vocab) * kernel.shape[1] if self.vocab else 0
        return targets - offset - first


def _loss(
    spec: _BlockSpec,
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    loss_mask: jax.Array,
) -> tuple[jax.Array, ...]:
    """The two results, and each token's log-sum-exp in sorted order."""
    order, num_blocks = spec.sort_order(loss_mask)
    inputs = [spec.sort_masked_last(x, order) for x in (hidden, targets)]
    dtype = at_least_float32(hidden.dtype)

    def token_block(i: jax.Array | int, found: Carry) -> Carry:
        h, y = (spec.get_block(x, i) for x in inputs)

        def vocab_block(carry: Carry, first: jax.Array | int, size: int) -> Carry:
            highest, total, picked = carry
            z, _ = spec.logits(h, kernel, first, size)
            at = spec.local_targets(y, kernel, first)
            here = jnp.take_along_axis(z, jnp.clip(at, 0, size - 1)[:, None], axis=1)[:, 0]
            picked = jnp.where((at >= 0) & (at < size), here, picked)
            top = jnp.maximum(highest, jnp.max(z, axis=1))
            total = total * jnp.exp(highest - top) + jnp.sum(jnp.exp(z - top[:, None]), axis=1)
            return top, total, picked

        low = jnp.full(y.shape, jnp.finfo(dtype).min, dtype)
        carry = (low, jnp.zeros_like(low), low)
        highest, total, picked = spec.scan_vocab(kernel, vocab_block, carry)
        if spec.vocab:
            top = jax.lax.pmax(highest, spec.vocab)
            total = jax.lax.psum(total * jnp.exp(highest - top), spec.vocab)
            highest, picked = top, jax.lax.pmax(picked, spec.vocab)
        log_sum_exp = highest + jnp.log(total)
        new = log_sum_exp - picked, picked >= highest, log_sum_exp
        return tuple(spec.update_block(x, i, y) for x, y in zip(found, new, strict=True))

    zeros = jnp.zeros(inputs[1].shape, dtype)
    found = _scan_tokens(num_blocks, token_block, (zeros, jnp.zeros(zeros.shape, bool), zeros))
    loss, is_argmax = (spec.unsort(x, order) for x in found[:2])
    return jnp.where(loss_mask, loss, 0), is_argmax & loss_mask, found[2]


def _gradient(
    spec: _BlockSpec,
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    loss_mask: jax.Array,
    log_sum_exp: jax.Array,
    d_loss: jax.Array,
    *,
    needs_kernel_grad: bool,
) -> tuple[jax.Array, ...]:
    """Cotangents of hidden, and of this device's shard of the kernel if it needs one."""
    order, num_blocks = spec.sort_order(loss_mask)
    d_loss = jnp.where(loss_mask, d_loss, 0)
    inputs = [spec.sort_masked_last(x, order) for x in (hidden, targets, d_loss)]
    inputs.append(log_sum_exp)

    def token_block(i: jax.Array | int, found: Carry) -> Carry:
        h, y, w, lse = (spec.get_block(x, i) for x in inputs)

        def vocab_block(carry: Carry, first: jax.Array | int, size: int) -> Carry:
            d_h, *d_kernel = carry
            z, columns = spec.logits(h, kernel, first, size)
            one_hot = spec.local_targets(y, kernel, first)[:, None] == jnp.arange(size)
            d_z = (jnp.exp(z - lse[:, None]) - one_hot) * w[:, None].astype(z.dtype)
            d_z = d_z.astype(hidden.dtype)
            d_h = d_h + _matmul(d_z, columns, (1, 1), d_h.dtype)
            if needs_kernel_grad:
                d_columns = _sum_over_rows(spec, _matmul(h, d_z, (0, 0), kernel.dtype))
                before = jax.lax.dynamic_slice_in_dim(d_kernel[0], first, size, axis=1)
                d_kernel = [
                    jax.lax.dynamic_update_slice_in_dim(
                        d_kernel[0], before + d_columns, first, axis=1
                    )
                ]
            return d_h, *d_kernel

        d_h = jnp.zeros(h.shape, at_least_float32(hidden.dtype))
        d_h, *d_kernel = spec.scan_vocab(kernel, vocab_block, (d_h, *found[1:]))
        d_h = jax.lax.psum(d_h, spec.vocab) if spec.vocab else d_h
        return spec.update_block(found[0], i, d_h), *d_kernel

    # Several blocks are accumulated in float32, whatever the kernel's dtype.
    dtype = kernel.dtype if order is None else at_least_float32(kernel.dtype)
    d_kernel_sum = [jnp.zeros(kernel.shape, dtype)] if needs_kernel_grad else []
    found = (jnp.zeros_like(inputs[0]), *d_kernel_sum)
    d_hidden, *d_kernel = _scan_tokens(num_blocks, token_block, found)
    d_hidden = spec.unsort(d_hidden, order)
    return d_hidden, *(d.astype(kernel.dtype) for d in d_kernel)


def _scan_tokens(num_blocks: jax.Array | int, body: Callable[..., Carry], carry: Carry) -> Carry:
    if isinstance(num_blocks, int):
        return body(0, carry)
    return jax.lax.fori_loop(0, num_blocks, body, carry)


def _sum_over_rows(spec: _BlockSpec, d_columns: jax.Array) -> jax.Array:
    """The sum over all rows' devices of (D, size) gradients, sharded like the kernel."""
    if spec.embed:
        d_columns = jax.lax.psum_scatter(d_columns, spec.embed, scatter_dimension=0, tiled=True)
    others = tuple(a for a in spec.rows if a not in spec.embed)
    return jax.lax.psum(d_columns, others) if others else d_columns


def _matmul(a: jax.Array, b: jax.Array, contracted: tuple[int, int], dtype: DType) -> jax.Array:
    dims = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dims, precision=matmul_precision(a.dtype), preferred_element_type=dtype
    )
