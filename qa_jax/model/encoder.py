"""The audio encoder: log-mel in, one embedding per 40 ms out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from qa_jax.config import AudioConfig, conv_length
from qa_jax.model.attention import AttentionMask, dot_product_attention
from qa_jax.model.gradients import at_least_float32
from qa_jax.model.layers import Conv, LayerNorm, Linear, scaled, sinusoids
from qa_jax.model.module import Module, param, scan, stack
from qa_jax.parallel import constrain, current_platform
from qa_jax.typing import Array, DType, Float, Int

_SQRT_HALF = 0.5**0.5
_TPU_TILE = 128


def gelu(x: Float[Array, "A P D"]) -> Float[Array, "A P D"]:
    """Whisper's exact GELU in at least float32, as PyTorch computes it.

    `jax.nn.gelu` takes erfc, which is much longer on TPUs, and rounds it to x's dtype.
    """
    wide = x.astype(at_least_float32(x.dtype))
    return (0.5 * wide * (1 + jax.lax.erf(wide * _SQRT_HALF))).astype(x.dtype)


def _position_table(key: jax.Array, shape: tuple[int, ...], dtype: DType) -> jax.Array:
    return sinusoids(*shape).astype(dtype)


class EncoderAttention(Module):
    """Self-attention without positions; the key projection has no bias."""

    def __init__(self, config: AudioConfig, attention_impl: str = "auto") -> None:
        self.attention_impl = attention_impl
        d, num_heads = {"embed": config.d_model}, config.encoder_attention_heads
        heads = {"audio_heads": num_heads, "head_dim": config.head_dim}
        self.q_proj = Linear(d, heads, bias=True)
        self.k_proj = Linear(d, heads)
        self.v_proj = Linear(d, heads, bias=True)
        self.out_proj = Linear(heads, d, bias=True)

    def __call__(self, x: Float[Array, "A P D"], mask: AttentionMask) -> Float[Array, "A P D"]:
        q = self.q_proj(x)
        q = q * q.shape[-1] ** -0.5
        k, v = self.k_proj(x), self.v_proj(x)
        out = dot_product_attention(q, k, v, mask, "act_audio_heads", self.attention_impl)
        return self.out_proj(out)


class EncoderLayer(Module):
    """Pre-norm transformer layer with an exact GELU."""

    def __init__(self, config: AudioConfig, attention_impl: str = "auto") -> None:
        d, mlp = {"embed": config.d_model}, {"mlp": config.encoder_ffn_dim}
        self.self_attn_layer_norm = LayerNorm(config.d_model)
        self.self_attn = EncoderAttention(config, attention_impl)
        self.final_layer_norm = LayerNorm(config.d_model)
        self.fc1 = Linear(d, mlp, bias=True)
        self.fc2 = Linear(mlp, d, bias=True)

    def __call__(self, x: Float[Array, "A P D"], mask: AttentionMask) -> Float[Array, "A P D"]:
        with jax.named_scope("self_attn"):
            x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        with jax.named_scope("mlp"):
            return x + self.fc2(gelu(self.fc1(self.final_layer_norm(x))))


class AudioEncoder(Module):
    """Two convolutions, a position table, pre-norm layers, pooling by 2, a final norm.

    Args:
        config: the encoder's.
        attention_impl: of `ModelConfig`.
        conv_init_scale: of `ModelConfig`.
        position_init_scale: of `ModelConfig`.
        scan_kwargs: `remat` and `unroll` of `scan`.
    """

    def __init__(
        self,
        config: AudioConfig,
        attention_impl: str = "auto",
        conv_init_scale: float = 1.0,
        position_init_scale: float = 1.0,
        **scan_kwargs: Any,
    ) -> None:
        d = config.d_model
        self.scan_kwargs = scan_kwargs
        self.conv1 = Conv(config.num_mel_bins, d, stride=1, init_scale=conv_init_scale)
        self.conv2 = Conv(d, d, stride=2, init_scale=conv_init_scale)
        self.embed_positions = param(
            (config.max_source_positions, d),
            ("time", "embed"),
            scaled(_position_table, position_init_scale),
        )
        self.layers = stack(EncoderLayer(config, attention_impl), config.encoder_layers)
        self.layer_norm = LayerNorm(d)

    def __call__(
        self, log_mel: Float[Array, "A F M"], num_frames: Int[Array, " A"]
    ) -> Float[Array, "A F/4 D"]:
        """Encodes the clips of a bucket with the values of the reference's 30 s encoding.

        Exact if the log-mel extends at least two frames past the clip's end (four are kept, see
        `config.FRAME_MARGIN`) or fills the whole window. Embeddings past a clip's number of audio
        tokens are finite and meaningless.

        Args:
            log_mel: F a multiple of 4.
            num_frames: valid frames of each clip.

        Returns:
            Embeddings, of which `num_audio_tokens(num_frames)` are valid in each row.

        Raises:
            ValueError: for another F, or one longer than the position table.
        """
        max_frames = 2 * self.embed_positions.shape[0]
        if log_mel.shape[1] % 4 or log_mel.shape[1] > max_frames:
            raise ValueError(
                f"log-mel of {log_mel.shape[1]} frames: need a multiple of 4, at most {max_frames}"
            )
        with jax.named_scope("audio_encoder"):
            x = constrain(gelu(self.conv1(log_mel)), "batch", "time", "act_embed")
            x = gelu(self.conv2(x))
            x = x + self.embed_positions[: x.shape[1]].astype(x.dtype)
            # Whole tiles in every layer; TPUs would otherwise pad and copy within each.
            length = x.shape[1]
            padding = -length % _TPU_TILE if current_platform() == "tpu" else 0
            x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
            # Padding frames are masked in every layer, as in the reference.
            kv_ids = (jnp.arange(x.shape[1]) < conv_length(num_frames)[:, None]).astype(jnp.int32)
            mask = AttentionMask(jnp.ones_like(kv_ids), kv_ids)

            def layer(module: EncoderLayer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
                return constrain(module(x, mask), "batch", "time", "act_embed"), None

            x, _ = scan(self.layers, layer, x, **self.scan_kwargs)
            with jax.named_scope("pool_by_2"):
                x = x[:, :length].reshape(x.shape[0], -1, 2, x.shape[2]).mean(axis=2)
            return self.layer_norm(x)
