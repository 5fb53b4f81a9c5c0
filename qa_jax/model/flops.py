"""Floating-point operations of the model, counted from its shapes.

The compiler's own count sees a scanned layer once, so it is counted here; 2 for every multiply-add.
Norms, activations, adapters and the log-mel's transform are left out: under 2 % of the rest.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from qa_jax.config import AudioConfig, ModelConfig, TextConfig, conv_length


class Part(NamedTuple):
    """Forward operations of a part of the model.

    Attributes:
        linear: products with parameters.
        attention: products of activations with one another.
    """

    linear: int
    attention: int = 0

    @property
    def total(self) -> int:
        return self.linear + self.attention


class Moves(NamedTuple):
    """How much of a part is trained.

    Attributes:
        share: of the numbers in its products' parameters, those that are trained themselves.
        passes: whether gradients pass through it: it, or what comes before it, is trained.
    """

    share: float
    passes: bool


_PARTS = ("encoder", "projector", "decoder", "head")


def encoder_part(config: AudioConfig, frames: int) -> Part:
    """One clip of so many frames through convolutions and layers."""
    d, positions = config.d_model, conv_length(frames)
    convolutions = 2 * 3 * d * (config.num_mel_bins * frames + d * positions)
    linear = 2 * positions * (4 * d * d + 2 * d * config.encoder_ffn_dim)
    attention = 2 * 2 * positions**2 * d
    n = config.encoder_layers
    return Part(convolutions + n * linear, n * attention)


def decoder_part(config: TextConfig, tokens: int) -> Part:
    """Layers over a row of so many tokens.

    The causal mask is not taken off: the plain products compute what it hides.
    """
    d, h = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    linear = 2 * tokens * d * (2 * heads * h + 2 * kv * h + 3 * config.intermediate_size)
    n = config.num_hidden_layers
    return Part(n * linear, n * 2 * 2 * tokens**2 * heads * h)


def forward_parts(
    config: ModelConfig, rows: int, tokens: int, clips: int, frames: int
) -> dict[str, Part]:
    """By encoder, projector, decoder and head: `rows` rows of `tokens` tokens, and `clips` clips of
    `frames` frames."""
    text, audio = config.text, config.audio
    encoder, decoder = encoder_part(audio, frames), decoder_part(text, tokens)
    projector = 2 * (conv_length(frames) // 2) * audio.d_model * text.hidden_size
    return {
        "encoder": Part(clips * encoder.linear, clips * encoder.attention),
        "projector": Part(clips * projector),
        "decoder": Part(rows * decoder.linear, rows * decoder.attention),
        "head": Part(rows * 2 * tokens * text.hidden_size * text.vocab_size),
    }


def what_moves(trained: dict[tuple[str, ...], bool], shapes: dict[Any, Any]) -> dict[str, Moves]:
    """Which parts are trained, from {path: whether} and {path: declaration} of a model."""
    moves: dict[str, Moves] = {}
    before = False
    tied = ("decoder", "lm_head") not in trained
    for part in _PARTS:
        kernels = moving = 0
        for path, learnt in trained.items():
            if _part_of(path) != part:
                continue
            before = before or learnt
            if path[-1] in ("kernel", "lm_head"):
                kernels += math.prod(shapes[path].shape)
                moving += learnt * math.prod(shapes[path].shape)
        share = moving / kernels if kernels else 0.0
        if part == "head" and tied:
            share = float(trained["decoder", "embed_tokens"])
        moves[part] = Moves(share, before)
    return moves


def _part_of(path: tuple[str, ...]) -> str:
    return "head" if path[:2] in (("decoder", "lm_head"), ("decoder", "norm")) else path[0]


def training_flops(parts: dict[str, Part], moves: dict[str, Moves]) -> float:
    """A step's forward and backward pass. Recomputation is not counted, as is usual for MFU.

    Backward, a product with parameters takes as much again for its input where gradients pass, and
    as much again for the parameters that move; attention takes twice as much.
    """
    total = 0.0
    for name, part in parts.items():
        share, passes = moves[name]
        total += part.total + passes * (part.linear + 2 * part.attention) + share * part.linear
    return total
