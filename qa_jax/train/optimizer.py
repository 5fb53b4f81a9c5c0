"""AdamW or Muon with warmup, cosine decay, clipping, and parameters that are left alone."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from qa_jax.config import OptimizerConfig
from qa_jax.errors import InputError
from qa_jax.model import (
    Declaration,
    Params,
    Qwen2Audio,
    check_patterns,
    declarations,
    flatten,
    is_adapter_path,
    nest,
)

_UPDATE_RMS = 0.2
"""Root mean square of Muon's updates at a learning rate of 1: about AdamW's, so that both take the
same rates (Liu et al. 2025, "Muon is scalable for LLM training")."""


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 to the peak, then a cosine to its final share."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.peak_lr,
        warmup_steps=config.warmup_steps,
        decay_steps=max(steps, config.warmup_steps + 1),
        end_value=config.peak_lr * config.final_lr,
    )


def trainable(model: Qwen2Audio, freeze: tuple[str, ...]) -> Params:
    """A tree of bools: False where a pattern of `freeze` matches the path from its start, and for
    all but the adapters where a model has some."""
    names = {path: "/".join(path) for path in declarations(model)}
    check_patterns("optimizer.freeze", freeze, names.values())
    adapted = any(map(is_adapter_path, names))
    wanted = {
        path: (not adapted or is_adapter_path(path)) and not any(re.match(p, name) for p in freeze)
        for path, name in names.items()
    }
    if not any(wanted.values()):
        raise InputError("optimizer.freeze", "nothing is left to be trained", "freeze less")
    return nest(wanted)


def rate_factors(params: Params, rates: dict[str, float]) -> Params:
    """How many times the learning rate each parameter takes."""
    names = {path: "/".join(path) for path in flatten(params)}
    check_patterns("optimizer.rates", rates, names.values())
    return nest(
        {
            path: next((x for p, x in rates.items() if re.match(p, name)), 1.0)
            for path, name in names.items()
        }
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, model: Qwen2Audio
) -> optax.GradientTransformation:
    """The optimizer of a model's trained parameters."""
    moved = flatten(trainable(model, config.freeze))
    declared = {path: d for path, d in declarations(model).items() if moved[path]}
    sides = {path: _sides(path, d) for path, d in declared.items()}

    def group(path: tuple[str, ...]) -> str:
        return "muon" if config.name == "muon" and sides[path] else "adamw"

    decayed = nest({path: path[-1] not in ("bias", "scale") for path in declared})
    rate = schedule(config, steps)
    groups = {
        "adamw": optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            # Optax keeps it in the parameters' own type unless told: float64 stays float64.
            mu_dtype=jnp.bfloat16 if config.first_moment == "bfloat16" else None,
            weight_decay=config.weight_decay,
            mask=lambda tree: _like(decayed, tree),
        ),
        "muon": muon(
            rate,
            weight_decay=config.weight_decay,
            consistent_rms=_UPDATE_RMS,
            muon_weight_dimension_numbers=lambda tree: _like(nest(sides), tree),
        ),
    }
    steps_of = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.partition(groups, nest({path: group(path) for path in declared})),
    ]
    if config.rates:
        factors = rate_factors(nest(declared), config.rates)
        steps_of.append(
            optax.stateless(lambda updates, _: jax.tree.map(lambda u, x: u * x, updates, factors))
        )
    return optax.chain(*steps_of)


def _sides(path: tuple[str, ...], d: Declaration) -> MuonDimensionNumbers | None:
    """The two sides of a weight matrix, the model's width and all else; None for what is no matrix
    between activations: biases, norms, and the tables of tokens and positions."""
    if path[-1] != "kernel":
        return None
    embed = d.axes.index("embed")
    rest = tuple(i for i, axis in enumerate(d.axes) if axis != "layers" and i != embed)
    return MuonDimensionNumbers(embed, rest)


def _like(mask: Params, tree: Any) -> Any:
    """The mask with the holes that optax.partition leaves for other groups' parameters."""
    holes = flatten(tree)
    return nest(
        {
            path: holes[path] if isinstance(holes[path], optax.MaskedNode) else value
            for path, value in flatten(mask).items()
        }
    )
