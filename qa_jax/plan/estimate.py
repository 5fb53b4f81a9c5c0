"""The analytic part of a plan: operations, bytes, and the least times that they take."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.config import JsonDict, ModelConfig, RunConfig, conv_length, num_audio_tokens
from qa_jax.errors import InputError
from qa_jax.model import ParamSpec, count_parameters, param_specs
from qa_jax.model.flops import (
    PartFlops,
    TrainedFraction,
    forward_flops,
    trained_fractions,
    training_flops,
)
from qa_jax.parallel.hardware import Chip
from qa_jax.plan.cycles import Operation, predict, seconds_by_kind
from qa_jax.train.models import PolicyModels
from qa_jax.train.objectives import make_objective, objective_class
from qa_jax.train.optimizer import make_optimizer, make_trainable_mask
from qa_jax.trees import flatten_dict, unflatten_dict

_RECOMPUTES = ("full", "attention", "mlp")
"""The settings of `ModelConfig.remat` with which the backward pass repeats products."""
_TEXT_TOKENS = 64
"""Text per clip, for settings that do not say how many clips a row has."""


class Shapes(NamedTuple):
    """A micro-batch over all devices.

    Attributes:
        num_rows: rows of tokens.
        num_tokens: tokens per row.
        num_clips: clips of all rows.
        num_frames: log-mel frames of the clips' bucket.
        grad_accum_steps: micro-batches per step.
    """

    num_rows: int
    num_tokens: int
    num_clips: int
    num_frames: int
    grad_accum_steps: int


def batch_shapes(config: RunConfig, bucket: int | None = None) -> Shapes:
    """Shapes of a step's batch: those of the bucket of the longest clips by default.

    Unpacked rows have one clip each; packed rows as many as fit with some text. Completions of a
    record share its clips. Raises InputError for a bucket that is not in data.buckets.
    """
    if bucket is not None and bucket not in config.data.buckets:
        raise InputError("--bucket", f"{bucket} is not in data.buckets", "choose one that is")
    frames = max(config.data.buckets) if bucket is None else bucket
    rows = config.data.buckets[frames]
    tokens = config.data.packed_length or config.data.max_tokens
    clips_per_row = 1
    if config.data.packed_length and frames:
        clips_per_row = max(1, tokens // (num_audio_tokens(frames) + _TEXT_TOKENS))
    clips = rows * clips_per_row if frames else 0
    rows *= objective_class(config.train.objective).num_completions
    return Shapes(rows, tokens, clips, frames, config.optimizer.grad_accum_steps)


@dataclass
class Plan:
    """The needs of a training step on a target.

    Attributes:
        topology, devices, mesh, shapes, remat: what was planned.
        parameters: number of the model's parameters.
        fits: whether it fits in memory; according to the compiler if `compiled`.
        compiled: whether it was compiled; otherwise everything is analytic.
        bytes_per_chip: memory of one device by use.
        hbm_bytes_per_chip: memory that a device has.
        flops_per_chip: the model's operations of a step, forward and backward, without
            recomputation: the numerator of MFU.
        network_bytes_per_chip: bytes sent by one device, by kind of collective.
        seconds: least time of a step for `compute` (with recomputation), `memory` and `network`.
        bound: the largest of the three.
        mfu_bound: the highest possible MFU, at that time.
        predicted: seconds of a step by kind of operation, from the cycles that the TPU compiler
            estimates: see qa_jax.plan.cycles. Empty if not compiled.
        mfu_predicted: MFU at their sum.
        costliest: the ten operations that take most of it.
        tokens_per_chip_day, audio_hours_per_chip_day: at the predicted time, or else at the bound,
            with full batches.
        compile_seconds: compilation time.
        problem: why it does not fit.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    shapes: Shapes
    remat: str
    parameters: int
    fits: bool
    compiled: bool
    bytes_per_chip: dict[str, int]
    hbm_bytes_per_chip: int
    flops_per_chip: float
    network_bytes_per_chip: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bound: str = ""
    mfu_bound: float = 0.0
    predicted: dict[str, float] = field(default_factory=dict)
    mfu_predicted: float = 0.0
    costliest: list[Operation] = field(default_factory=list)
    tokens_per_chip_day: float = 0.0
    audio_hours_per_chip_day: float = 0.0
    compile_seconds: float = 0.0
    problem: str = ""

    def to_dict(self) -> JsonDict:
        """For JSON."""
        costliest = [operation._asdict() for operation in self.costliest]
        return dataclasses.asdict(self) | {"shapes": self.shapes._asdict(), "costliest": costliest}

    def set_times(self, seconds: dict[str, float], chip: Chip) -> None:
        """Sets the times of the three resources, and what follows from the slowest."""
        self.seconds = seconds
        self.bound, step = max(seconds.items(), key=lambda item: item[1])
        self.mfu_bound = self.flops_per_chip / (chip.flops * step)
        self._set_rates(step)

    def set_prediction(
        self, text: str, chip: Chip, kernel_efficiency: float, loops_only: bool = False
    ) -> None:
        """Sets the time predicted from a compiled program, and what follows from it; nothing for a
        chip whose clock is not known. See `predict`."""
        if not chip.clock:
            return
        operations = predict(text, chip, kernel_efficiency, loops_only)
        self.predicted, self.costliest = seconds_by_kind(operations), operations[:10]
        step = self.predicted_seconds
        self.mfu_predicted = self.flops_per_chip / (chip.flops * step)
        self._set_rates(step)

    @property
    def predicted_seconds(self) -> float:
        """Of a step; 0 if not compiled."""
        return sum(self.predicted.values())

    def _set_rates(self, step: float) -> None:
        s = self.shapes
        batches_per_day = 86_400 / step * s.grad_accum_steps / self.devices
        self.tokens_per_chip_day = batches_per_day * s.num_rows * s.num_tokens
        hours = s.num_clips * s.num_frames * 0.01 / 3600
        self.audio_hours_per_chip_day = batches_per_day * hours


def _trained_fractions(config: RunConfig, models: PolicyModels) -> dict[str, TrainedFraction]:
    mask = make_trainable_mask(models.policy, config.optimizer.freeze)
    return trained_fractions(flatten_dict(mask), param_specs(models.policy))


def _forward_flops(config: RunConfig, shapes: Shapes) -> dict[str, PartFlops]:
    s = shapes
    return forward_flops(config.model, s.num_rows, s.num_tokens, s.num_clips, s.num_frames)


def _reference_flops(config: RunConfig, models: PolicyModels, parts: dict[str, PartFlops]) -> float:
    """Forward operations of a reference policy in the same step."""
    reference = make_objective(config, models, 1).reference
    return (reference in ("base", "in_memory")) * sum(part.total for part in parts.values())


def model_flops(config: RunConfig, models: PolicyModels, shapes: Shapes) -> float:
    """Operations of a step over all devices, without recomputation and frozen gradients."""
    parts = _forward_flops(config, shapes)
    step = training_flops(parts, _trained_fractions(config, models))
    return (step + _reference_flops(config, models, parts)) * shapes.grad_accum_steps


def executed_flops(config: RunConfig, models: PolicyModels, shapes: Shapes) -> float:
    """Operations of a step over all devices, with recomputation."""
    parts, fractions = _forward_flops(config, shapes), _trained_fractions(config, models)
    recomputed = _recomputed_fractions(config.model)
    more = sum(
        (recomputed[n] * parts[n].linear + (config.model.remat == "full") * parts[n].attention)
        * fractions[n].needs_input_grad
        for n in ("encoder", "decoder")
    )
    # The loss recomputes its logits for the gradient.
    more += parts["head"].total
    return model_flops(config, models, shapes) + more * shapes.grad_accum_steps


def _recomputed_fractions(config: ModelConfig) -> dict[str, float]:
    """Fractions of the products with parameters that the backward pass repeats.

    No gradient needs the result of a layer's last product, down_proj or fc2. The encoder's
    convolutions, which are not repeated, are a hundredth of its products.
    """
    if config.remat not in _RECOMPUTES:
        return {"encoder": 0.0, "decoder": 0.0}
    text, audio = config.text, config.audio
    attention = 2 * (text.num_attention_heads + text.num_key_value_heads) * text.head_dim
    repeated = attention + (config.remat != "mlp") * 2 * text.intermediate_size
    encoder = (4 * audio.d_model + audio.encoder_ffn_dim) / (
        4 * audio.d_model + 2 * audio.encoder_ffn_dim
    )
    return {"encoder": encoder, "decoder": repeated / (attention + 3 * text.intermediate_size)}


def state_bytes(config: RunConfig, models: PolicyModels, num_shards: int) -> dict[str, int]:
    """The state of one device, sharded over `num_shards`. Frozen parameters have neither gradient
    nor optimizer state."""
    specs = param_specs(models.policy)
    mask = flatten_dict(make_trainable_mask(models.policy, config.optimizer.freeze))

    def size(spec: ParamSpec) -> int:
        return math.prod(spec.shape) * np.dtype(spec.dtype or np.float32).itemsize

    trainable = sum(math.prod(s.shape) for path, s in specs.items() if mask[path]) / num_shards
    optimizer = make_optimizer(config.optimizer, config.train.steps, models.policy)
    abstract = {p: jax.ShapeDtypeStruct(s.shape, jnp.float32) for p, s in specs.items() if mask[p]}
    moments = jax.tree.leaves(jax.eval_shape(optimizer.init, unflatten_dict(abstract)))
    grad_bytes = 2 if config.optimizer.grad_dtype == "bfloat16" else 4
    state = {
        "parameters": round(sum(map(size, specs.values())) / num_shards),
        "optimizer": round(sum(x.size * x.dtype.itemsize for x in moments) / num_shards),
        "gradients": round(grad_bytes * trainable),
    }
    if config.train.ema_decay:
        state["ema"] = round(4 * trainable)
    if make_objective(config, models, 1).reference == "in_memory":
        itemsize = np.dtype(jnp.dtype(config.model.dtype)).itemsize
        state["reference"] = round(itemsize * count_parameters(models.base) / num_shards)
    return state


def _layer_widths(config: ModelConfig) -> tuple[int, int]:
    """Outputs of a layer's matrix products, per token and per encoder position."""
    text, audio = config.text, config.audio
    heads = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    text_width = heads + 2 * text.hidden_size + 2 * text.intermediate_size
    return text_width, 5 * audio.d_model + audio.encoder_ffn_dim


def _activation_itemsize(config: ModelConfig) -> int:
    return 2 if config.dtype == "bfloat16" else 4


def saved_activation_bytes(
    config: RunConfig, models: PolicyModels, shapes: Shapes, num_batch_shards: int
) -> int:
    """Activations of one device saved for the backward pass: with `full`, each layer's input; with
    `attention`, also the output of attention; with `mlp` and `dots`, also the results of some or
    all matrix products. None if no gradient passes."""
    model, fractions = config.model, _trained_fractions(config, models)
    text, audio = model.text, model.audio
    d_text, d_audio = text.hidden_size, audio.d_model
    if model.remat != "full":
        d_text += text.num_attention_heads * text.head_dim
        d_audio += audio.d_model
    if model.remat == "mlp":
        d_text += 2 * text.intermediate_size
    elif model.remat not in _RECOMPUTES:
        text_width, audio_width = _layer_widths(model)
        d_text, d_audio = d_text + text_width, d_audio + audio_width
    saved = shapes.num_rows * shapes.num_tokens * text.num_hidden_layers * d_text
    saved *= fractions["decoder"].needs_input_grad
    if fractions["encoder"].needs_input_grad:
        positions = conv_length(shapes.num_frames)
        saved += shapes.num_clips * positions * audio.encoder_layers * d_audio
    return round(saved * _activation_itemsize(model) / num_batch_shards)


def temporary_bytes(config: ModelConfig, shapes: Shapes, num_batch_shards: int) -> int:
    """Peak temporary memory of one device: a layer's activations and their gradients, its weights
    twice, a block of the logits and of their gradient."""
    text_width, audio_width = _layer_widths(config)
    layer = max(
        shapes.num_rows * shapes.num_tokens * text_width,
        shapes.num_clips * conv_length(shapes.num_frames) * audio_width,
    )
    text, itemsize = config.text, _activation_itemsize(config)
    weights = 2 * text.hidden_size * (2 * text.hidden_size + 3 * text.intermediate_size)
    return round(2 * layer * itemsize / num_batch_shards + weights * itemsize + 2**29)


def _num_passes(config: ModelConfig) -> int:
    """How often a step uses the weights of the layers: forward, backward and recomputation."""
    return 3 if config.remat in _RECOMPUTES else 2


def memory_seconds(plan: Plan, config: ModelConfig, chip: Chip) -> float:
    """The least time of a device's memory traffic: gathered weights are written once and read in
    each of three passes, the optimizer reads and writes its state, activations are written and read
    once."""
    weights = 2 * plan.parameters / plan.mesh["tensor"]
    accum = plan.shapes.grad_accum_steps
    passes = _num_passes(config) * accum
    state = plan.bytes_per_chip["parameters"] + plan.bytes_per_chip["optimizer"]
    activations = plan.bytes_per_chip["activations"] * accum
    gradients = plan.bytes_per_chip["gradients"]
    traffic = 2 * passes * weights + 2 * state + 2 * gradients + 2 * activations
    return traffic / chip.bandwidth


def analytic_network_bytes(plan: Plan, config: ModelConfig) -> dict[str, float]:
    """Bytes sent by one device if nothing is compiled: weights gathered for each pass, gradients
    reduced and scattered once per micro-batch."""
    num_shards, num_replicas = plan.mesh["fsdp"], plan.mesh["data"]
    weights = 2 * plan.parameters / plan.mesh["tensor"]
    fraction = (num_shards - 1) / num_shards
    passes = _num_passes(config)
    n = plan.shapes.grad_accum_steps
    sent = {
        "all-gather": n * passes * weights * fraction,
        "reduce-scatter": n * weights * fraction,
        "all-reduce": 2 * n * weights / num_shards * (num_replicas - 1) / num_replicas,
    }
    return {kind: size for kind, size in sent.items() if size}
