"""Optimizers of optax with schedules, clipping, multipliers, and frozen parameters."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from qa_jax.config import OptimizerConfig
from qa_jax.errors import InputError
from qa_jax.lora import check_patterns, is_lora_path
from qa_jax.model import ParamSpec, Qwen2Audio, param_specs
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import Float, ParamPath, Params, PyTree

_UPDATE_RMS = 0.2
"""Root mean square of Muon's updates at a learning rate of 1: about AdamW's, so that the same
learning rates suit both (Liu et al. 2025, "Muon is scalable for LLM training")."""


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warmup from 0 to the peak, then as `optimizer.schedule` says.

    Raises InputError for a warmup or a fraction out of range.
    """
    peak, last, warmup = config.peak_lr, config.final_lr_fraction, config.warmup_steps
    if not warmup >= 0 or not 0 < config.decay_fraction <= 1:
        raise InputError(
            "optimizer.warmup_steps, optimizer.decay_fraction",
            f"{warmup}, {config.decay_fraction}",
            "give steps or a fraction of them, and a fraction over 0",
        )
    warmup = round(num_steps * warmup) if warmup < 1 else round(warmup)
    rest = max(num_steps - warmup, 1)
    decay = min(max(round(num_steps * config.decay_fraction), 1), rest)
    constant = optax.constant_schedule(peak)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=last),
        "linear": optax.linear_schedule(peak, peak * last, rest),
        "wsd": optax.join_schedules(
            [constant, optax.linear_schedule(peak, peak * last, decay)], [rest - decay]
        ),
        "inverse_sqrt": lambda step: peak * (1 + jnp.maximum(step, 0) / max(warmup, 1)) ** -0.5,
        "constant": constant,
    }[config.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_trainable_mask(model: Qwen2Audio, freeze: tuple[str, ...]) -> Params:
    """A tree of bools: False for paths that a pattern of `freeze` matches from their start, and, in
    a model with LoRA, for all parameters but the adapters'."""
    names = {path: "/".join(path) for path in param_specs(model)}
    check_patterns("optimizer.freeze", freeze, names.values())
    has_lora = any(map(is_lora_path, names))
    mask = {
        path: (not has_lora or is_lora_path(path)) and not any(re.match(p, name) for p in freeze)
        for path, name in names.items()
    }
    if not any(mask.values()):
        raise InputError("optimizer.freeze", "freezes all parameters", "freeze fewer")
    return unflatten_dict(mask)


def make_lr_multipliers(
    specs: dict[ParamPath, ParamSpec], config: OptimizerConfig
) -> dict[ParamPath, float | Float[np.ndarray, "*dims"]]:
    """Each parameter's learning-rate multiplier; of stacked layers one for each."""
    check_patterns(
        "optimizer.lr_multipliers", config.lr_multipliers, ["/".join(path) for path in specs]
    )
    depth = {path[0]: spec.shape[0] for path, spec in specs.items() if spec.stacked}

    def multiplier(path: ParamPath, spec: ParamSpec) -> float | Float[np.ndarray, "*dims"]:
        patterns = config.lr_multipliers.items()
        factor = next((x for p, x in patterns if re.match(p, "/".join(path))), 1.0)
        if spec.stacked:
            below = np.arange(depth[path[0]])[::-1]
            below = below.reshape(-1, *(1,) * (len(spec.shape) - 1))
            return (factor * config.layer_decay**below).astype(np.float32)
        is_before = path[1].startswith(("embed", "conv"))
        return factor * config.layer_decay ** (is_before * depth.get(path[0], 0))

    return {path: multiplier(path, spec) for path, spec in specs.items()}


def make_optimizer(
    config: OptimizerConfig, num_steps: int, model: Qwen2Audio, max_skipped_steps: int = 0
) -> optax.GradientTransformation:
    """The optimizer of a model's trainable parameters; with `max_skipped_steps` it leaves out
    updates that are not finite, and counts them in its state."""
    mask = flatten_dict(make_trainable_mask(model, config.freeze))
    specs = {path: spec for path, spec in param_specs(model).items() if mask[path]}
    muon_dims = {path: _muon_dims(path, spec) for path, spec in specs.items()}

    def group(path: ParamPath) -> str:
        return "adamw" if config.name == "muon" and not muon_dims[path] else config.name

    decay_mask = unflatten_dict({path: path[-1] not in ("bias", "scale") for path in specs})
    schedule = make_schedule(config, num_steps)
    decay = config.weight_decay
    # None is the parameters' own dtype, also float64.
    mu_dtype = jnp.bfloat16 if config.mu_dtype == "bfloat16" else None

    def is_decayed(tree: PyTree) -> PyTree:
        return _with_masked_nodes(decay_mask, tree)

    groups = {
        "adamw": optax.adamw(
            schedule, config.b1, config.b2, config.eps, 0.0, mu_dtype, decay, is_decayed
        ),
        "lion": optax.lion(schedule, config.b1, config.b2, mu_dtype, decay, is_decayed),
        "adafactor": optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.ema(config.b1, debias=False, accumulator_dtype=mu_dtype)
            if config.b1
            else optax.identity(),
            optax.add_decayed_weights(decay, is_decayed),
            optax.scale_by_learning_rate(schedule),
        ),
        "muon": muon(
            schedule,
            weight_decay=decay,
            consistent_rms=_UPDATE_RMS,
            muon_weight_dimension_numbers=lambda tree: _with_masked_nodes(
                unflatten_dict(muon_dims), tree
            ),
        ),
    }
    clip = config.clip_global_norm
    transforms = [
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.partition(groups, unflatten_dict({path: group(path) for path in specs})),
    ]
    if config.lr_multipliers or config.layer_decay != 1:
        factors = unflatten_dict(make_lr_multipliers(specs, config))
        transforms.append(
            optax.stateless(lambda updates, _: jax.tree.map(lambda u, x: u * x, updates, factors))
        )
    optimizer = optax.chain(*transforms)
    return optax.apply_if_finite(optimizer, max_skipped_steps) if max_skipped_steps else optimizer


def _muon_dims(path: ParamPath, spec: ParamSpec) -> MuonDimensionNumbers | None:
    """The two dimensions of a weight matrix, the model's width and all others; None for parameters
    that are not matrices between activations: biases, norms, embedding and position tables."""
    if path[-1] != "kernel":
        return None
    embed = spec.axes.index("embed")
    rest = tuple(i for i, axis in enumerate(spec.axes) if axis != "layers" and i != embed)
    return MuonDimensionNumbers(embed, rest)


def _with_masked_nodes(mask: Params, tree: PyTree) -> PyTree:
    """The mask with the MaskedNode placeholders of a tree made by optax.partition."""
    flat = flatten_dict(tree)
    return unflatten_dict(
        {
            path: flat[path] if isinstance(flat[path], optax.MaskedNode) else value
            for path, value in flatten_dict(mask).items()
        }
    )
