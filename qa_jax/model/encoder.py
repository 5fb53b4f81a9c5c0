"""The audio encoder: log-mel in, one embedding per 40 ms out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from qa_jax.config import AudioConfig, conv_length
from qa_jax.model.attention import Visible, attend
from qa_jax.model.layers import Conv, LayerNorm, Linear, sinusoids
from qa_jax.model.module import Module, declare, scan, stack
from qa_jax.parallel import constrain

gelu = functools.partial(jax.nn.gelu, approximate=False)
"""Whisper's GELU is the exact one; JAX's default is the tanh approximation."""


def _position_table(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return sinusoids(*shape).astype(dtype)


class EncoderAttention(Module):
    """Self-attention without positions; the key projection has no bias."""

    def __init__(self, config: AudioConfig, attention: str = "auto") -> None:
        self.attention = attention
        d, heads = {"embed": config.d_model}, config.encoder_attention_heads
        split = {"audio_heads": heads, "head_dim": config.head_dim}
        self.q_proj = Linear(d, split, bias=True)
        self.k_proj = Linear(d, split)
        self.v_proj = Linear(d, split, bias=True)
        self.out_proj = Linear(split, d, bias=True)

    def __call__(self, x: jax.Array, visible: Visible) -> jax.Array:
        q = self.q_proj(x)
        q = q * q.shape[-1] ** -0.5
        k, v = self.k_proj(x), self.v_proj(x)
        return self.out_proj(attend(q, k, v, visible, "act_audio_heads", self.attention))


class EncoderLayer(Module):
    """Pre-norm transformer layer with an exact GELU."""

    def __init__(self, config: AudioConfig, attention: str = "auto") -> None:
        d, mlp = {"embed": config.d_model}, {"mlp": config.encoder_ffn_dim}
        self.self_attn_layer_norm = LayerNorm(config.d_model)
        self.self_attn = EncoderAttention(config, attention)
        self.final_layer_norm = LayerNorm(config.d_model)
        self.fc1 = Linear(d, mlp, bias=True)
        self.fc2 = Linear(mlp, d, bias=True)

    def __call__(self, x: jax.Array, visible: Visible) -> jax.Array:
        with jax.named_scope("self_attn"):
            x = x + self.self_attn(self.self_attn_layer_norm(x), visible)
        with jax.named_scope("mlp"):
            return x + self.fc2(gelu(self.fc1(self.final_layer_norm(x))))


class AudioEncoder(Module):
    """Two convolutions, a position table, pre-norm layers, pooling by 2, a final norm."""

    def __init__(self, config: AudioConfig, attention: str = "auto", **loop: Any) -> None:
        d = config.d_model
        self.loop = loop  # remat and unroll, for `scan`
        self.conv1 = Conv(config.num_mel_bins, d, stride=1)
        self.conv2 = Conv(d, d, stride=2)
        self.embed_positions = declare(
            (config.max_source_positions, d), ("time", "embed"), _position_table
        )
        self.layers = stack(EncoderLayer(config, attention), config.encoder_layers)
        self.layer_norm = LayerNorm(d)

    def __call__(self, log_mel: jax.Array, frames: jax.Array) -> jax.Array:
        """Encodes clips in a bucket as the reference encodes them in 30 s.

        Exact where the log-mel goes on for at least two genuine frames past the clip's end (four
        are kept, see `config.FRAME_MARGIN`) or fills the whole window. Embeddings past a clip's
        token count are finite and meaningless.

        Args:
            log_mel: (A, F, M); F a multiple of 4.
            frames: (A,) valid frames of each clip.

        Returns:
            (A, F / 4, D) embeddings, of which `token_count(frames)` are valid in each row.
        """
        if log_mel.shape[1] % 4 or log_mel.shape[1] > 2 * self.embed_positions.shape[0]:
            raise ValueError(
                f"log-mel of {log_mel.shape[1]} frames: need a multiple of 4, at most "
                f"{2 * self.embed_positions.shape[0]}"
            )
        with jax.named_scope("audio_encoder"):
            x = constrain(gelu(self.conv1(log_mel)), "batch", "time", "act_embed")
            x = gelu(self.conv2(x))
            x = x + self.embed_positions[: x.shape[1]].astype(x.dtype)
            # The reference's attention mask is real: every layer's queries see valid keys only.
            keys = (jnp.arange(x.shape[1]) < conv_length(frames)[:, None]).astype(jnp.int32)
            visible = Visible(jnp.ones_like(keys), keys)

            def layer(module: EncoderLayer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
                return constrain(module(x, visible), "batch", "time", "act_embed"), None

            x, _ = scan(self.layers, layer, x, **self.loop)
            with jax.named_scope("pool_by_2"):
                x = x.reshape(x.shape[0], -1, 2, x.shape[2]).mean(axis=2)
            return self.layer_norm(x)
