"""One optimizer step as a pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from qa_jax.data import TrainBatch
from qa_jax.parallel.xla_flags import xla_flags as flags_for
from qa_jax.train.objectives import LossOutput, Objective
from qa_jax.trees import flatten_dict, merge_trees, partition, unflatten_dict
from qa_jax.typing import Array, Float, Int, Params, PyTree


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
        step: number of steps done.
        params: all parameters, trainable and frozen.
        opt_state: the optimizer's state, of the trainable parameters.
        ema_params: EMA of the trainable parameters, or None.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree
    ema_params: Params | None = None


Metrics = dict[str, Float[Array, ""] | Int[Array, ""]]
TrainStep = Callable[..., tuple[TrainState, Metrics]]
"""(state, batch, reference parameters or None) -> (state, metrics)."""


def jit_train_step(
    train_step: TrainStep, state: TrainState, xla_flags: str = "tuned"
) -> jax.stages.Wrapped:
    """The jitted step. The state is donated and returned with the same shardings.

    `xla_flags` is `TrainConfig.xla_flags`. Without explicit out_shardings XLA may return an
    equivalent sharding, which recompiles step 2.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)
    # Metrics are replicated, so that each process can read them without communication.
    replicated = NamedSharding(shardings.step.mesh, PartitionSpec())
    platform = replicated.mesh.devices.flat[0].platform
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(shardings, replicated),
        compiler_options=dict(flags_for(platform, xla_flags)) or None,
    )


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    trainable_mask: Params,
    learning_rate: optax.Schedule,
    *,
    ema_decay: float = 0.0,
    augment: Callable[[TrainBatch], TrainBatch] = lambda batch: batch,
    dropout_seed: int | None = None,
    grads_in_bf16: bool = False,
) -> TrainStep:
    """The step of an objective and an optimizer, to be jitted by `jit_train_step`.

    Args:
        objective: what is minimised.
        optimizer: of the trainable parameters.
        trainable_mask: a tree of bools; frozen parameters have no gradient, optimizer state or
            update.
        learning_rate: for the metrics; the optimizer has its own.
        ema_decay: decay of the EMA, if the state has one.
        augment: changes the clips of a micro-batch.
        dropout_seed: None for no dropout.
        grads_in_bf16: sum and communicate gradients of matrices in bfloat16.
    """

    def train_step(
        state: TrainState, batch: TrainBatch, ref_params: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        trainable, frozen = partition(state.params, trainable_mask)
        params_for_grad = cast_grads_bf16(trainable) if grads_in_bf16 else trainable

        def loss_fn(
            trainable: Params, micro_batch: TrainBatch, index: jax.Array | int
        ) -> tuple[jax.Array, LossOutput]:
            rng = None
            if dropout_seed is not None:
                rng = jax.random.fold_in(jax.random.key(dropout_seed), state.step)
                rng = jax.random.fold_in(rng, index)
            params = merge_trees(frozen, trainable)
            out = objective.loss(params, augment(micro_batch), ref_params, rng)
            return out.loss, out

        grads, out = accumulate(jax.grad(loss_fn, has_aux=True), params_for_grad, batch)
        # A batch without targets yields a zero update instead of a division by zero.
        weight = jnp.maximum(out.weight, jnp.finfo(out.weight.dtype).tiny)
        grads = jax.tree.map(
            lambda g, p: g.astype(p.dtype) / weight.astype(p.dtype), grads, trainable
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        ema = state.ema_params
        if ema is not None:
            ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, trainable)
        metrics = step_metrics(out, grads, opt_state, batch)
        metrics["learning_rate"] = learning_rate(state.step)
        params = merge_trees(frozen, trainable)
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return train_step


def step_metrics(out: LossOutput, grads: Params, opt_state: PyTree, batch: TrainBatch) -> Metrics:
    """The metrics of a step; its loss is NaN if a process could not read its part of the batch."""
    weight = jnp.maximum(out.weight, jnp.finfo(out.weight.dtype).tiny)
    metrics = {
        # 0, or NaN: see TrainDataset.poisoned_batch.
        "loss": out.loss / weight + 0 * jnp.sum(batch.loss_weights),
        "grad_norm": optax.tree.norm(grads),
    } | out.metrics()
    skipped = optax.tree.get(opt_state, "total_notfinite")
    return metrics if skipped is None else {**metrics, "skipped_steps": skipped}


def accumulate(
    grad_fn: Callable[..., tuple[Params, LossOutput]], params: Params, batch: TrainBatch
) -> tuple[Params, LossOutput]:
    """Gradients and losses, summed over a batch's micro-batches."""
    first = jax.tree.map(lambda x: x[0], batch)
    num_micro_batches = batch.tokens.shape[0]
    if num_micro_batches == 1:
        return grad_fn(params, first, 0)

    def add(total: PyTree, micro: tuple[TrainBatch, jax.Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, grad_fn(params, *micro)), None

    shapes = jax.eval_shape(grad_fn, params, first, 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (batch, jnp.arange(num_micro_batches)))
    return total


def cast_grads_bf16(params: Params) -> Params:
    """Parameters with matrices in bfloat16, whose gradients therefore are bfloat16.

    Layers cast their matrices to the activations' dtype in any case; norms and biases are used in
    float32.
    """
    matrices = ("kernel", "embed_tokens", "lm_head")
    return unflatten_dict(
        {
            path: x.astype(jnp.bfloat16) if path[-1] in matrices else x
            for path, x in flatten_dict(params).items()
        }
    )
