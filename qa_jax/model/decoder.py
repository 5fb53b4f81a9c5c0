"""The text decoder."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qa_jax.config import TextConfig
from qa_jax.model.attention import AttentionMask, dot_product_attention
from qa_jax.model.cache import CacheRows, KVCache
from qa_jax.model.gradients import at_least_float32, contract, embed, materialize_on_tpu
from qa_jax.model.layers import Linear, RMSNorm, apply_rope, fan_in_normal, normal
from qa_jax.model.module import MLP_PRODUCTS, Module, param, scan, stack
from qa_jax.parallel import constrain
from qa_jax.typing import Array, DType, Float, Int


class DecoderAttention(Module):
    """Grouped-query attention with rotary positions; only q, k and v have biases."""

    def __init__(self, config: TextConfig) -> None:
        d, h = {"embed": config.hidden_size}, {"head_dim": config.head_dim}
        self.rope_theta = config.rope_theta
        self.q_proj = Linear(d, {"heads": config.num_attention_heads, **h}, bias=True)
        self.k_proj = Linear(d, {"heads": config.num_key_value_heads, **h}, bias=True)
        self.v_proj = Linear(d, {"heads": config.num_key_value_heads, **h}, bias=True)
        self.o_proj = Linear({"heads": config.num_attention_heads, **h}, d)

    def qkv(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Scaled queries, keys and values."""
        q = apply_rope(self.q_proj(x), positions, self.rope_theta)
        k = apply_rope(self.k_proj(x), positions, self.rope_theta)
        q = constrain(q * q.shape[-1] ** -0.5, "batch", "time", "act_heads", None)
        return q, constrain(k, "batch", "time", "act_heads", None), self.v_proj(x)


class MLP(Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig) -> None:
        d, mlp = {"embed": config.hidden_size}, {"mlp": config.intermediate_size}
        self.gate_proj = Linear(d, mlp)
        self.up_proj = Linear(d, mlp)
        self.down_proj = Linear(mlp, d)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = checkpoint_name(self.gate_proj(x), MLP_PRODUCTS)
        hidden = jax.nn.silu(gate) * checkpoint_name(self.up_proj(x), MLP_PRODUCTS)
        hidden = constrain(hidden, "batch", "time", "act_mlp")
        return self.down_proj(materialize_on_tpu(hidden))


class DecoderLayer(Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: TextConfig, attention_impl: str = "auto") -> None:
        self.attention_impl = attention_impl
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DecoderAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: AttentionMask,
        cache: KVCache | None = None,
        at: CacheRows | None = None,
        layer: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """One layer, the `layer`-th of `cache`, which is that of all layers."""
        with jax.named_scope("self_attn"):
            q, k, v = self.self_attn.qkv(self.input_layernorm(x), positions)
            if cache is not None and at is not None:
                cache = cache.write(k, v, layer, at)
            if cache is not None and at is not None and at.window:
                out = cache.attend(q, positions, layer, at)
            else:
                out = dot_product_attention(q, k, v, mask, implementation=self.attention_impl)
            x = x + self.self_attn.o_proj(out)
        with jax.named_scope("mlp"):
            x = x + self.mlp(self.post_attention_layernorm(x))
        return constrain(x, "batch", "time", "act_embed"), cache


class TextDecoder(Module):
    """Token embedding, layers, final norm and output layer.

    Args:
        config: the decoder's.
        attention_impl: `ModelConfig.attention_impl`.
        scan_kwargs: `remat` and `unroll` of `scan`.
    """

    def __init__(
        self, config: TextConfig, attention_impl: str = "auto", **scan_kwargs: Any
    ) -> None:
        vocab, d = config.vocab_size, config.hidden_size
        self.scan_kwargs = scan_kwargs
        self.embed_tokens = param((vocab, d), ("vocab", "embed"), fan_in_normal(d))
        self.layers = stack(DecoderLayer(config, attention_impl), config.num_hidden_layers)
        self.norm = RMSNorm(d, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else param((d, vocab), ("embed", "vocab"), normal)

    def embed(self, tokens: Int[Array, "B T"], dtype: DType) -> Float[Array, "B T D"]:
        """Token embeddings."""
        return embed(self.embed_tokens[...], tokens, dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: AttentionMask,
        cache: KVCache | None = None,
        at: CacheRows | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Runs the layers over embeddings.

        Args:
            x: token embeddings.
            positions: rotary positions.
            mask: of the T tokens; unused where `at` has a window.
            cache: past keys and values, to which those of the tokens are added.
            at: where in the cache.

        Returns:
            Normalized hidden states, and the updated cache, if one was given.
        """
        with jax.named_scope("text_decoder"):
            x = constrain(x, "batch", "time", "act_embed")
            if cache is None:

                def layer(module: DecoderLayer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
                    return module(x, positions, mask)[0], None

                x, _ = scan(self.layers, layer, x, **self.scan_kwargs)
            else:

                def cached_layer(
                    module: DecoderLayer, carry: tuple[jax.Array, KVCache], index: jax.Array
                ) -> tuple[tuple[jax.Array, KVCache | None], None]:
                    x, cache = carry
                    return module(x, positions, mask, cache, at, index), None

                layers = jnp.arange(cache.k.shape[0])
                carry, _ = scan(self.layers, cached_layer, (x, cache), layers, **self.scan_kwargs)
                x, cache = carry
            return self.norm(x), cache

    def head(self) -> Float[Array, "D V"]:
        """The output layer's kernel; a tied one is the transposed embedding table."""
        return self.embed_tokens[...].T if self.lm_head is None else self.lm_head[...]

    def logits(self, hidden: Float[Array, "*rest D"]) -> Float[Array, "*rest V"]:
        """Logits, accumulated and returned in float32 (float64 for float64)."""
        head = self.head().astype(hidden.dtype)
        return contract(hidden, head, 1, at_least_float32(hidden.dtype))
