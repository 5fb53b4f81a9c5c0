"""The text decoder, and the memory of keys and values that makes answering token by token cheap."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.config import TextConfig
from qa_jax.model.attention import Visible, attend
from qa_jax.model.layers import Linear, RMSNorm, fan_in_normal, normal, precision, rotate, wide
from qa_jax.model.module import Module, declare, scan, stack
from qa_jax.parallel import constrain


class KVCache(NamedTuple):
    """Keys and values of all layers, (L, B, S, K, H) each; slots are filled from the left."""

    k: jax.Array
    v: jax.Array

    @classmethod
    def zeros(cls, config: TextConfig, batch: int, slots: int, dtype: str) -> KVCache:
        """An empty cache of `slots` tokens per row."""
        heads, dim = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, batch, slots, heads, dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class DecoderAttention(Module):
    """Grouped-query attention with rotary positions; only q, k and v have biases."""

    def __init__(self, config: TextConfig) -> None:
        d, h = {"embed": config.hidden_size}, {"head_dim": config.head_dim}
        self.rope_theta = config.rope_theta
        self.q_proj = Linear(d, {"heads": config.num_attention_heads, **h}, bias=True)
        self.k_proj = Linear(d, {"heads": config.num_key_value_heads, **h}, bias=True)
        self.v_proj = Linear(d, {"heads": config.num_key_value_heads, **h}, bias=True)
        self.o_proj = Linear({"heads": config.num_attention_heads, **h}, d)

    def qkv(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(B, T, D) -> scaled queries (B, T, N, H), keys and values (B, T, K, H)."""
        q = rotate(self.q_proj(x), positions, self.rope_theta)
        k = rotate(self.k_proj(x), positions, self.rope_theta)
        q = constrain(q * q.shape[-1] ** -0.5, "batch", "time", "act_heads", None)
        return q, constrain(k, "batch", "time", "act_heads", None), self.v_proj(x)


class MLP(Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig) -> None:
        d, mlp = {"embed": config.hidden_size}, {"mlp": config.intermediate_size}
        self.gate_proj = Linear(d, mlp)
        self.up_proj = Linear(d, mlp)
        self.down_proj = Linear(mlp, d)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(constrain(hidden, "batch", "time", "act_mlp"))


class DecoderLayer(Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: TextConfig, attention: str = "auto") -> None:
        self.attention = attention
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DecoderAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        visible: Visible,
        memory: tuple[KVCache, Any, jax.Array] | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """One layer; `memory` is the whole cache, the first slot to fill and this layer's index."""
        with jax.named_scope("self_attn"):
            q, k, v = self.self_attn.qkv(self.input_layernorm(x), positions)
            cache = None
            if memory is not None:
                cache, slot, index = memory
                # Updated in place as the scan's carry: per-layer outputs would copy the cache.
                at = (index, 0, slot, 0, 0)
                cache = KVCache(
                    jax.lax.dynamic_update_slice(cache.k, k[None], at),
                    jax.lax.dynamic_update_slice(cache.v, v[None], at),
                )
                k, v = cache.k[index], cache.v[index]
            x = x + self.self_attn.o_proj(attend(q, k, v, visible, by=self.attention))
        with jax.named_scope("mlp"):
            x = x + self.mlp(self.post_attention_layernorm(x))
        return constrain(x, "batch", "time", "act_embed"), cache


class TextDecoder(Module):
    """Embedding, layers, final norm, and the head that turns hidden states into logits."""

    def __init__(self, config: TextConfig, attention: str = "auto", **loop: Any) -> None:
        vocab, d = config.vocab_size, config.hidden_size
        self.loop = loop  # remat and unroll, for `scan`
        self.embed_tokens = declare((vocab, d), ("vocab", "embed"), fan_in_normal(d))
        self.layers = stack(DecoderLayer(config, attention), config.num_hidden_layers)
        self.norm = RMSNorm(d, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else declare((d, vocab), ("embed", "vocab"), normal)

    def embed(self, tokens: jax.Array, dtype: Any) -> jax.Array:
        """(B, T) ids -> (B, T, D)."""
        return self.embed_tokens[...].astype(dtype)[tokens]

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        visible: Visible,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the layers over embeddings.

        Args:
            x: (B, T, D) token embeddings.
            positions: (B, T) rotary positions.
            visible: which keys each token sees: T of them, or the cache's slots.
            cache: keys and values so far; the new ones are written at slots [slot, slot + T).

        Returns:
            Normalized hidden states (B, T, D), and the cache where one was given.
        """
        with jax.named_scope("text_decoder"):
            x = constrain(x, "batch", "time", "act_embed")
            if cache is None:

                def layer(module: DecoderLayer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
                    return module(x, positions, visible)[0], None

                x, _ = scan(self.layers, layer, x, **self.loop)
            else:

                def cached(
                    module: DecoderLayer, carry: tuple[jax.Array, KVCache], index: jax.Array
                ) -> tuple[tuple[jax.Array, KVCache | None], None]:
                    x, cache = carry
                    return module(x, positions, visible, (cache, slot, index)), None

                indices = jnp.arange(cache.k.shape[0])
                (x, cache), _ = scan(self.layers, cached, (x, cache), indices, **self.loop)
            return self.norm(x), cache

    def head(self, dtype: Any) -> jax.Array:
        """The output layer's kernel, (D, V); a tied one is the table of embeddings turned."""
        if self.lm_head is None:
            return self.embed_tokens[...].astype(dtype).T
        return self.lm_head[...].astype(dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """(..., D) -> (..., V), accumulated and returned in float32 (float64 for float64)."""
        return jax.lax.dot_general(
            hidden,
            self.head(hidden.dtype),
            (((hidden.ndim - 1,), (0,)), ((), ())),
            precision=precision(hidden.dtype),
            preferred_element_type=wide(hidden.dtype),
        )
