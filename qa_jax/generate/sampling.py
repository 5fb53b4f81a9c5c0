"""Sampling, with the same semantics as transformers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qa_jax.config import SamplingConfig
from qa_jax.typing import Array, Bool, Float, Int, Key


def sample_token(
    logits: Float[Array, "B V"],
    seen: Bool[Array, "B V"] | None,
    num_tokens: Int[Array, ""] | int,
    keys: Key[Array, " B"],
    sampling: SamplingConfig,
) -> Int[Array, " B"]:
    """The next token of every row, int32.

    Args:
        logits: of the next token.
        seen: tokens already in the row; None without a repetition penalty.
        num_tokens: tokens generated so far.
        keys: one random key per row.
        sampling: the settings.
    """
    if seen is not None and sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        penalized = jnp.where(logits < 0, logits * penalty, logits / penalty)
        logits = jnp.where(seen, penalized, logits)
    if sampling.min_new_tokens and sampling.stop_ids:
        stops = jnp.zeros(logits.shape[-1], bool).at[jnp.array(sampling.stop_ids)].set(True)
        logits = jnp.where(stops & (num_tokens < sampling.min_new_tokens), -jnp.inf, logits)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = apply_temperature_top_k_top_p(logits, sampling)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def apply_temperature_top_k_top_p(
    logits: Float[Array, "B V"], sampling: SamplingConfig
) -> Float[Array, "B V"]:
    """Logits divided by the temperature, with those excluded by top_k and top_p at -inf."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        order = jnp.argsort(logits, axis=-1)
        cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1), -1)
        remove = cumulative <= 1 - sampling.top_p
        remove = remove.at[:, -1].set(False)  # the most probable token is never removed
        rows = jnp.arange(remove.shape[0])[:, None]
        excluded = jnp.zeros_like(remove).at[rows, order].set(remove)
        logits = jnp.where(excluded, -jnp.inf, logits)
    return logits
