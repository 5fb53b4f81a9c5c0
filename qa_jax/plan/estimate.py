"""What can be counted without a compiler: operations, bytes, and the times they take at least."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qa_jax.config import ModelConfig, RunConfig, conv_length, token_count
from qa_jax.errors import InputError
from qa_jax.model import Declaration, count_parameters, declarations, flatten
from qa_jax.model.flops import Moves, Part, forward_parts, training_flops, what_moves
from qa_jax.parallel.hardware import Chip
from qa_jax.train.optimizer import trainable
from qa_jax.train.setup import Models

_TEXT_TOKENS = 64
"""Text beside a clip, where the settings do not say how many clips a row holds."""


class Shapes(NamedTuple):
    """A micro-batch over all devices.

    Attributes:
        rows: rows of tokens.
        tokens: in each row.
        clips: in all rows.
        frames: log-mel frames of each clip's bucket.
        accumulate: micro-batches in a step.
    """

    rows: int
    tokens: int
    clips: int
    frames: int
    accumulate: int


def batch_shapes(config: RunConfig, bucket: int | None = None) -> Shapes:
    """Shapes of a step's data: those of the bucket of the longest clips, unless one is named.

    Rows that are not packed hold a clip each; packed ones as many as fit with some text beside. Of
    pairs, two rows share their clips. Raises InputError for a bucket that is not there.
    """
    if bucket is not None and bucket not in config.data.buckets:
        raise InputError("--bucket", f"{bucket} is not in data.buckets", "choose one that is")
    frames = max(config.data.buckets) if bucket is None else bucket
    rows = config.data.buckets[frames]
    tokens = config.data.pack_tokens or config.data.max_tokens
    each = 1
    if config.data.pack_tokens and frames:
        each = max(1, tokens // (token_count(frames) + _TEXT_TOKENS))
    clips = rows * each if frames else 0
    if config.train.objective == "preferences":
        rows *= 2
    return Shapes(rows, tokens, clips, frames, config.optimizer.accumulate)


@dataclass
class Plan:
    """What a training step needs on a target.

    Attributes:
        topology, devices, mesh, shapes, remat: what was planned.
        parameters: numbers in the model.
        fits: whether it fits in memory; where `compiled`, the compiler says so.
        compiled: whether it was compiled; the rest is counted.
        bytes_per_chip: by what they are for, of one device.
        hbm_bytes_per_chip: what a device has.
        flops_per_chip: operations of the model in a step, forward and backward, without
            recomputation, by which MFU is counted.
        network_bytes_per_chip: by kind of collective, sent by one device.
        seconds: what a step takes at least for `compute`, with recomputation, for `memory` and for
            `network`.
        bound: the largest of the three.
        mfu_bound: the highest possible share of the peak, at that time.
        tokens_per_chip_day, audio_hours_per_chip_day: at that time, of full batches.
        compile_seconds: how long the compiler took.
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
    tokens_per_chip_day: float = 0.0
    audio_hours_per_chip_day: float = 0.0
    compile_seconds: float = 0.0
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"shapes": self.shapes._asdict()}

    def set_times(self, seconds: dict[str, float], chip: Chip) -> None:
        """Takes the times of the three resources, and what follows from the slowest."""
        self.seconds = seconds
        self.bound, step = max(seconds.items(), key=lambda item: item[1])
        self.mfu_bound = self.flops_per_chip / (chip.flops * step)
        a_day = 86_400 / step * self.shapes.accumulate / self.devices
        self.tokens_per_chip_day = a_day * self.shapes.rows * self.shapes.tokens
        self.audio_hours_per_chip_day = a_day * self.shapes.clips * self.shapes.frames * 0.01 / 3600


def _moves(config: RunConfig, models: Models) -> dict[str, Moves]:
    trained = trainable(models.model, config.optimizer.freeze)
    return what_moves(flatten(trained), declarations(models.model))


def _forward(config: RunConfig, shapes: Shapes) -> dict[str, Part]:
    s = shapes
    return forward_parts(config.model, s.rows, s.tokens, s.clips, s.frames)


def _reference_flops(config: RunConfig, parts: dict[str, Part]) -> float:
    """Of a second model that answers are compared with in the same step."""
    compared = config.train.objective == "preferences" and config.preference.reference == "keep"
    return compared * sum(part.total for part in parts.values())


def model_flops(config: RunConfig, models: Models, shapes: Shapes) -> float:
    """Of a step over all devices, without recomputation and without what freezing spares."""
    parts = _forward(config, shapes)
    step = training_flops(parts, _moves(config, models)) + _reference_flops(config, parts)
    return step * shapes.accumulate


def executed_flops(config: RunConfig, models: Models, shapes: Shapes) -> float:
    """Of a step over all devices, with what is computed again for the backward pass."""
    parts, moves = _forward(config, shapes), _moves(config, models)
    share = {"none": 0.0, "full": 1.0, "dots": 0.05}[config.model.remat]
    again = sum(share * parts[n].total * moves[n].passes for n in ("encoder", "decoder"))
    # The loss computes its logits once more for the gradient.
    again += parts["head"].total
    return model_flops(config, models, shapes) + again * shapes.accumulate


def state_bytes(config: RunConfig, models: Models, shards: int) -> dict[str, int]:
    """Of one device, where parameters are cut so many ways. What is frozen has neither gradient nor
    optimizer state."""
    declared = declarations(models.model)
    moved = flatten(trainable(models.model, config.optimizer.freeze))

    def size(d: Declaration) -> int:
        return math.prod(d.shape) * np.dtype(d.dtype or np.float32).itemsize

    learnt = sum(math.prod(d.shape) for path, d in declared.items() if moved[path]) / shards
    first = 2 if config.optimizer.first_moment == "bfloat16" else 4
    held = {
        "parameters": round(sum(map(size, declared.values())) / shards),
        "optimizer": round((first + 4) * learnt),
        "gradients": round((2 if config.optimizer.gradients == "bfloat16" else 4) * learnt),
    }
    if config.train.average:
        held["average"] = round(4 * learnt)
    preferred = config.train.objective == "preferences"
    if preferred and not config.lora.layers and config.preference.reference == "keep":
        width = np.dtype(jnp.dtype(config.model.dtype)).itemsize
        held["reference"] = round(width * count_parameters(models.base) / shards)
    return held


def _widths(config: ModelConfig) -> tuple[int, int]:
    """Numbers a token, and an encoder position, that a layer's matrix products give."""
    text, audio = config.text, config.audio
    heads = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    of_text = heads + 2 * text.hidden_size + 2 * text.intermediate_size
    return of_text, 5 * audio.d_model + audio.encoder_ffn_dim


def _width(config: ModelConfig) -> int:
    """Bytes of an activation."""
    return 2 if config.dtype == "bfloat16" else 4


def kept_bytes(config: RunConfig, models: Models, shapes: Shapes, batch_shards: int) -> int:
    """Activations of one device that wait for the backward pass: with `full`, each layer's input;
    with `dots`, also what its matrix products give. None where no gradient passes."""
    model, moves = config.model, _moves(config, models)
    text, audio = model.text, model.audio
    d_text, d_audio = text.hidden_size, audio.d_model
    if model.remat != "full":
        of_text, of_audio = _widths(model)
        d_text, d_audio = d_text + of_text, d_audio + of_audio
    kept = shapes.rows * shapes.tokens * text.num_hidden_layers * d_text
    kept *= moves["decoder"].passes
    if moves["encoder"].passes:
        kept += shapes.clips * conv_length(shapes.frames) * audio.encoder_layers * d_audio
    return round(kept * _width(model) / batch_shards)


def working_bytes(config: ModelConfig, shapes: Shapes, batch_shards: int) -> int:
    """What one device holds for a moment: a layer's activations and their gradients, its weights
    twice, a piece of the logits and of their gradient."""
    of_text, of_audio = _widths(config)
    layer = max(
        shapes.rows * shapes.tokens * of_text,
        shapes.clips * conv_length(shapes.frames) * of_audio,
    )
    text = config.text
    weights = 2 * text.hidden_size * (2 * text.hidden_size + 3 * text.intermediate_size)
    return round(2 * layer * _width(config) / batch_shards + weights * _width(config) + 2**29)


def memory_seconds(plan: Plan, config: ModelConfig, chip: Chip) -> float:
    """The least time for a device's memory: weights are written where they are gathered and read in
    each of three passes, the optimizer reads and writes its state, activations are written and
    read once."""
    weights = 2 * plan.parameters / plan.mesh["tensor"]
    passes = (3 if config.remat == "full" else 2) * plan.shapes.accumulate
    state = plan.bytes_per_chip["parameters"] + plan.bytes_per_chip["optimizer"]
    kept = plan.bytes_per_chip["activations"] * plan.shapes.accumulate
    moved = 2 * passes * weights + 2 * state + 2 * plan.bytes_per_chip["gradients"] + 2 * kept
    return moved / chip.bandwidth


def counted_network_bytes(plan: Plan, config: ModelConfig) -> dict[str, float]:
    """Of one device, where nothing is compiled: weights gathered for each pass, gradients summed
    and scattered once a micro-batch."""
    shards, copies = plan.mesh["fsdp"], plan.mesh["data"]
    whole = 2 * plan.parameters / plan.mesh["tensor"]
    share = (shards - 1) / shards
    passes = 3 if config.remat == "full" else 2
    n = plan.shapes.accumulate
    sent = {
        "all-gather": n * passes * whole * share,
        "reduce-scatter": n * whole * share,
        "all-reduce": 2 * n * whole / shards * (copies - 1) / copies,
    }
    return {kind: size for kind, size in sent.items() if size}
