"""One optimizer step, as one pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from qa_jax.data.loader import TrainBatch
from qa_jax.model import Params, Qwen2Audio, bind
from qa_jax.train.objectives import Sums, next_token_loss


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Any
    params: Params
    optimizer: Any


Metrics = dict[str, jax.Array]


def jit_step(step: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
    """The compiled step: the state is donated and comes back where it was.

    Left to itself the compiler may name the same places otherwise, and the second step would be
    compiled once more.
    """
    places = jax.tree.map(lambda x: x.sharding, state)
    # Metrics lie whole in every process, which then need not ask one another for them.
    everywhere = NamedSharding(state.step.sharding.mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(places, everywhere))


def make_step(
    model: Qwen2Audio,
    optimizer: optax.GradientTransformation,
    trained: Params,
    learning_rate: optax.Schedule,
    groups: int = 1,
) -> Callable[[TrainState, TrainBatch], tuple[TrainState, Metrics]]:
    """The step of a model and an optimizer, to be jitted with its state donated.

    Args:
        trained: a tree of bools; gradients are computed for no other parameter.
        learning_rate: only reported; the optimizer holds its own.
        groups: see `qa_jax.model.qwen2_audio.place_audio`.
    """
    bound = bind(model)

    def loss(params: Params, batch: TrainBatch) -> tuple[jax.Array, Sums]:
        params = jax.tree.map(
            lambda p, moves: p if moves else jax.lax.stop_gradient(p), params, trained
        )
        sums = next_token_loss(bound(params), batch, groups)
        return sums.loss, sums

    gradients = jax.grad(loss, has_aux=True)

    def step(state: TrainState, batch: TrainBatch) -> tuple[TrainState, Metrics]:
        def add(total: Any, micro_batch: TrainBatch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(state.params, micro_batch)), None

        first = jax.tree.map(lambda x: x[0], batch)
        if batch.tokens.shape[0] == 1:
            grads, sums = gradients(state.params, first)
        else:
            shapes = jax.eval_shape(gradients, state.params, first)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (grads, sums), _ = jax.lax.scan(add, zeros, batch)
        # A batch in which nothing is to be learnt moves nothing, rather than dividing by zero.
        weight = jnp.maximum(sums.weight, jnp.finfo(sums.weight.dtype).tiny)
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": sums.loss / weight,
            "accuracy": sums.correct / jnp.maximum(sums.tokens, 1),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(state.step),
            "tokens": sums.tokens,
            "audio_seconds": sums.audio_seconds,
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step
