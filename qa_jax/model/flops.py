"""Floating-point operations of the model, counted from its shapes.

XLA's own count includes a scanned layer once, so operations are counted here; 2 for every
multiply-add. Norms, activations, adapters and the log-mel's transform are left out: under 2 %.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qa_jax.config import AudioConfig, ModelConfig, TextConfig, conv_length
from qa_jax.model.params import ParamSpec
from qa_jax.typing import ParamPath


class PartFlops(NamedTuple):
    """Forward operations of a part of the model.

    Attributes:
        linear: products of activations with parameters.
        attention: products of activations with activations.
    """

    linear: int
    attention: int = 0

    @property
    def total(self) -> int:
        return self.linear + self.attention


class TrainedFraction(NamedTuple):
    """Which gradients of a part are computed.

    Attributes:
        params: fraction of its products' parameters with gradients.
        needs_input_grad: whether gradients pass through it, because it or an earlier part is
            trained.
    """

    params: float
    needs_input_grad: bool


_PARTS = ("encoder", "projector", "decoder", "head")


def encoder_flops(config: AudioConfig, num_frames: int) -> PartFlops:
    """One clip through convolutions and layers."""
    d, positions = config.d_model, conv_length(num_frames)
    convolutions = 2 * 3 * d * (config.num_mel_bins * num_frames + d * positions)
    linear = 2 * positions * (4 * d * d + 2 * d * config.encoder_ffn_dim)
    attention = 2 * 2 * positions**2 * d
    n = config.encoder_layers
    return PartFlops(convolutions + n * linear, n * attention)


def decoder_flops(config: TextConfig, num_tokens: int) -> PartFlops:
    """Layers over one row.

    The causal mask is not subtracted: unfused products compute what it hides.
    """
    d, h = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    linear = 2 * num_tokens * d * (2 * heads * h + 2 * kv * h + 3 * config.intermediate_size)
    n = config.num_hidden_layers
    return PartFlops(n * linear, n * 2 * 2 * num_tokens**2 * heads * h)


def forward_flops(
    config: ModelConfig, num_rows: int, num_tokens: int, num_clips: int, num_frames: int
) -> dict[str, PartFlops]:
    """By encoder, projector, decoder and head: `num_rows` rows of `num_tokens` tokens, and
    `num_clips` clips of `num_frames` frames."""
    text, audio = config.text, config.audio
    encoder, decoder = encoder_flops(audio, num_frames), decoder_flops(text, num_tokens)
    projector = 2 * (conv_length(num_frames) // 2) * audio.d_model * text.hidden_size
    return {
        "encoder": PartFlops(num_clips * encoder.linear, num_clips * encoder.attention),
        "projector": PartFlops(num_clips * projector),
        "decoder": PartFlops(num_rows * decoder.linear, num_rows * decoder.attention),
        "head": PartFlops(num_rows * 2 * num_tokens * text.hidden_size * text.vocab_size),
    }


def useful_flops(
    config: ModelConfig, record_lengths: Iterable[int], clip_frames: Iterable[int], num_targets: int
) -> dict[str, PartFlops]:
    """What a batch needs without its padding: records of these tokens, which attend within
    themselves; clips of these frames; and the output layer at its target tokens only."""
    text, total = config.text, collections.Counter[str]()
    for length, count in collections.Counter(record_lengths).items():
        part = decoder_flops(text, length)
        total["decoder"] += count * part.linear
        total["decoder attention"] += count * part.attention
    for frames, count in collections.Counter(clip_frames).items():
        parts = forward_flops(config, 0, 0, count, frames)
        total["encoder"] += parts["encoder"].linear
        total["encoder attention"] += parts["encoder"].attention
        total["projector"] += parts["projector"].linear
    head = 2 * num_targets * text.hidden_size * text.vocab_size
    return {
        "encoder": PartFlops(total["encoder"], total["encoder attention"]),
        "projector": PartFlops(total["projector"]),
        "decoder": PartFlops(total["decoder"], total["decoder attention"]),
        "head": PartFlops(head),
    }


def trained_fractions(
    trainable: Mapping[ParamPath, bool], specs: Mapping[ParamPath, ParamSpec]
) -> dict[str, TrainedFraction]:
    """Which gradients of each part are computed, from the trainable mask by path."""
    fractions: dict[str, TrainedFraction] = {}
    needs_input_grad = False
    tied = ("decoder", "lm_head") not in trainable
    for part in _PARTS:
        size = trained_size = 0
        for path, is_trainable in trainable.items():
            if _part_of(path) != part:
                continue
            needs_input_grad = needs_input_grad or is_trainable
            if path[-1] in ("kernel", "lm_head"):
                size += math.prod(specs[path].shape)
                trained_size += is_trainable * math.prod(specs[path].shape)
        fraction = trained_size / size if size else 0.0
        if part == "head" and tied:
            fraction = float(trainable["decoder", "embed_tokens"])
        fractions[part] = TrainedFraction(fraction, needs_input_grad)
    return fractions


def _part_of(path: ParamPath) -> str:
    return "head" if path[:2] in (("decoder", "lm_head"), ("decoder", "norm")) else path[0]


def training_flops(
    parts: Mapping[str, PartFlops], fractions: Mapping[str, TrainedFraction]
) -> float:
    """A step's forward and backward pass, without recomputation, as is usual for MFU.

    The backward pass of a product with parameters costs the forward pass once for its input, if
    gradients pass through it, and once for its trained parameters; attention costs it twice.
    """
    total = 0.0
    for name, part in parts.items():
        fraction, needs_input_grad = fractions[name]
        total += part.total
        total += needs_input_grad * (part.linear + 2 * part.attention) + fraction * part.linear
    return total
