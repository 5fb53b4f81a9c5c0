"""One optimizer step, as one pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from qa_jax.data.loader import TrainBatch
from qa_jax.model import Params, flatten, join, nest, split
from qa_jax.parallel.xla_options import xla_options
from qa_jax.train.objectives import Objective, Sums


class TrainState(NamedTuple):
    """Everything that a step changes, and with it the parameters that stay as they are.

    Attributes:
        step: how many are done.
        params: all of the model's.
        optimizer: its state, of the trained parameters.
        average: their running mean, where one is kept.
    """

    step: Any
    params: Params
    optimizer: Any
    average: Params | None = None


Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[TrainState, Metrics]]
"""Of (state, batch) or (state, batch, parameters that stay)."""


def jit_step(step: Step, state: TrainState, xla: str = "plain") -> Callable[..., Any]:
    """The compiled step: the state is donated and comes back where it was.

    `xla` is `TrainConfig.xla`.

    Left to itself the compiler may name the same places otherwise, and the second step would be
    compiled once more.
    """
    places = jax.tree.map(lambda x: x.sharding, state)
    # Metrics lie whole in every process, which then need not ask one another for them.
    everywhere = NamedSharding(state.step.sharding.mesh, PartitionSpec())
    platform = everywhere.mesh.devices.flat[0].platform
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(places, everywhere),
        compiler_options=dict(xla_options(platform, xla)) or None,
    )


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    trained: Params,
    learning_rate: optax.Schedule,
    *,
    average: float = 0.0,
    seed: int | None = None,
    narrow: bool = False,
) -> Step:
    """The step of an objective and an optimizer, to be jitted with its state donated.

    Args:
        objective: of `qa_jax.train.objectives`.
        optimizer: of the trained parameters.
        trained: a tree of bools; the other parameters have no gradient, no optimizer and no update.
        learning_rate: only reported; the optimizer holds its own.
        average: decay of the running mean, where the state has one.
        seed: of dropout; None for none.
        narrow: sum and send gradients of matrices in bfloat16.
    """

    def step(
        state: TrainState, batch: TrainBatch, stay: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        moving, still = split(state.params, trained)
        # A layer casts its matrix to the activations' type anyway. Cast before the gradient is
        # taken, it has the gradient of that type; norms and biases are used in float32.
        used = _narrowed(moving) if narrow else moving

        def loss(moving: Params, batch: TrainBatch, number: Any) -> tuple[jax.Array, Sums]:
            key = None
            if seed is not None:
                key = jax.random.fold_in(jax.random.key(seed), state.step)
                key = jax.random.fold_in(key, number)
            sums = objective(join(still, moving), batch, still if stay is None else stay, key)
            return sums.loss, sums

        gradients = jax.grad(loss, has_aux=True)

        def add(total: Any, micro: tuple[TrainBatch, Any]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(used, *micro)), None

        first = jax.tree.map(lambda x: x[0], batch)
        count = batch.tokens.shape[0]
        if count == 1:
            grads, sums = gradients(used, first, 0)
        else:
            shapes = jax.eval_shape(gradients, used, first, 0)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (grads, sums), _ = jax.lax.scan(add, zeros, (batch, jnp.arange(count)))
        # A batch in which nothing is to be learnt moves nothing, rather than dividing by zero.
        weight = jnp.maximum(sums.weight, jnp.finfo(sums.weight.dtype).tiny)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype) / weight.astype(p.dtype), grads, moving)
        updates, opt_state = optimizer.update(grads, state.optimizer, moving)
        moving = optax.apply_updates(moving, updates)
        mean = state.average
        if mean is not None:
            mean = jax.tree.map(lambda m, p: average * m + (1 - average) * p, mean, moving)
        metrics = {
            "loss": sums.loss / weight,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(state.step),
            **sums.named(),
        }
        return TrainState(state.step + 1, join(still, moving), opt_state, mean), metrics

    return step


def _narrowed(params: Params) -> Params:
    matrices = ("kernel", "embed_tokens", "lm_head")
    return nest(
        {
            path: x.astype(jnp.bfloat16) if path[-1] in matrices else x
            for path, x in flatten(params).items()
        }
    )
