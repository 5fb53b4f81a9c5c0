"""Floating-point operations of the model, counted from its shapes.

The compiler's own count sees a scanned layer once, so it is counted here; 2 for every multiply-add.
Norms, activations and the log-mel's transform are left out: under 1 % of the rest.
"""

from __future__ import annotations

from qa_jax.config import AudioConfig, ModelConfig, TextConfig, conv_length


def encoder_flops(config: AudioConfig, frames: int, width: int) -> int:
    """One clip of so many frames through convolutions, layers and the projector to `width`."""
    d, positions = config.d_model, conv_length(frames)
    convolutions = 2 * 3 * d * (config.num_mel_bins * frames + d * positions)
    linear = 2 * positions * (4 * d * d + 2 * d * config.encoder_ffn_dim)
    attention = 2 * 2 * positions**2 * d
    projector = 2 * (positions // 2) * d * width
    return convolutions + config.encoder_layers * (linear + attention) + projector


def decoder_flops(config: TextConfig, tokens: int) -> int:
    """Layers over a row of so many tokens.

    The causal mask is not taken off: the plain products compute what it hides.
    """
    d, h = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    linear = 2 * tokens * d * (2 * heads * h + 2 * kv * h + 3 * config.intermediate_size)
    attention = 2 * 2 * tokens**2 * heads * h
    return config.num_hidden_layers * (linear + attention)


def head_flops(config: TextConfig, tokens: int) -> int:
    """Logits of so many tokens."""
    return 2 * tokens * config.hidden_size * config.vocab_size


def training_flops(config: ModelConfig, rows: int, tokens: int, clips: int, frames: int) -> int:
    """A step's forward and backward pass, twice a forward: `rows` rows of `tokens` tokens and
    `clips` clips of `frames` frames. Recomputation is not counted, as is usual for MFU."""
    forward = rows * (decoder_flops(config.text, tokens) + head_flops(config.text, tokens))
    forward += clips * encoder_flops(config.audio, frames, config.text.hidden_size)
    return 3 * forward
