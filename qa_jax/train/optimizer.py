"""AdamW with warmup, cosine decay, clipping, and parameters that are left alone."""

from __future__ import annotations

import re
from typing import Any

import optax

from qa_jax.config import OptimizerConfig, nearest
from qa_jax.errors import InputError
from qa_jax.model import Params, flatten, nest


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 to the peak, then a cosine to its final share."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.peak_lr,
        warmup_steps=config.warmup_steps,
        decay_steps=max(steps, config.warmup_steps + 1),
        end_value=config.peak_lr * config.final_lr,
    )


def trainable(params: Params, freeze: tuple[str, ...]) -> Params:
    """A tree of bools: False where a pattern of `freeze` matches the path from its start."""
    names = {path: "/".join(path) for path in flatten(params)}
    for pattern in freeze:
        try:
            hits = any(re.match(pattern, name) for name in names.values())
        except re.error as error:
            raise InputError(
                "optimizer.freeze", f"{pattern!r} is no regular expression ({error})"
            ) from None
        if not hits:
            raise InputError(
                "optimizer.freeze",
                f"{pattern!r} matches no parameter",
                nearest(pattern, names.values()),
            )
    return nest({path: not any(re.match(p, name) for p in freeze) for path, name in names.items()})


def make_optimizer(
    config: OptimizerConfig, steps: int, params: Any
) -> optax.GradientTransformation:
    """The optimizer of these parameters (or of their shapes).

    Frozen parameters get no state and no update, and their gradients do not count in the norm.
    """
    decayed = nest({path: path[-1] not in ("bias", "scale") for path in flatten(params)})
    moves = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.adamw(
            schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda tree: _like(decayed, tree),
        ),
    )
    labels = nest(
        {
            path: "train" if moved else "freeze"
            for path, moved in flatten(trainable(params, config.freeze)).items()
        }
    )
    return optax.partition({"train": moves, "freeze": optax.set_to_zero()}, labels)


def _like(mask: Params, tree: Any) -> Any:
    """The mask with the holes that optax.partition leaves for frozen parameters."""
    holes = flatten(tree)
    return nest(
        {
            path: holes[path] if isinstance(holes[path], optax.MaskedNode) else value
            for path, value in flatten(mask).items()
        }
    )
