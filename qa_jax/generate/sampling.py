"""Choosing the next token, as transformers defines each knob."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from qa_jax.config import as_ids
from qa_jax.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens; static, so that a compiled program holds no knob it does not use.

    Attributes:
        max_new_tokens: an answer's longest length.
        min_new_tokens: no stop id is chosen before so many.
        temperature: divides the logits; 0 is greedy.
        top_k: only the k likeliest; 0 for all.
        top_p: only the likeliest whose probabilities sum to p; 1 for all.
        repetition_penalty: logits of tokens already in the row, prompt included, are divided by it
            where positive and multiplied where negative. Padding does not count as seen (it does
            in transformers, which makes a batch answer differently from its rows).
        stop_ids: end an answer, and are its last token.
        seed: of the draws.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fine, remedy in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", self.min_new_tokens >= 0, "at least 0"),
            ("temperature", self.temperature >= 0, "0 for greedy, or more"),
            ("top_k", self.top_k >= 0, "0 for all, or more"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "over 0; 1 for none"),
        ):
            if not fine:
                raise InputError(name, f"{getattr(self, name)} is out of range", remedy)


def from_generation_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The settings that a generation_config.json gives, by our names.

    Its sampling knobs count only where `do_sample` is true, as in transformers.
    """
    given: dict[str, Any] = {}
    for name in ("max_new_tokens", "min_new_tokens", "repetition_penalty"):
        if raw.get(name) is not None:
            given[name] = raw[name]
    if raw.get("do_sample"):
        # Absent knobs take transformers' own defaults: temperature 1, the 50 likeliest, no top_p.
        given["temperature"] = raw.get("temperature", 1.0)
        given["top_k"] = raw.get("top_k", 50) or 0
        given["top_p"] = raw.get("top_p", 1.0) or 1.0
    if raw.get("eos_token_id") is not None:
        given["stop_ids"] = as_ids(raw["eos_token_id"])
    return given


def choose(
    logits: jax.Array, seen: jax.Array | None, count: jax.Array, keys: jax.Array, how: Sampling
) -> jax.Array:
    """The next token of every row.

    Args:
        logits: (B, V).
        seen: bool (B, V), tokens already in the row; None where nothing is penalized.
        count: tokens chosen so far.
        keys: (B,) random keys, one per row.
        how: the knobs.

    Returns:
        (B,) int32.
    """
    if seen is not None and how.repetition_penalty != 1.0:
        penalty = how.repetition_penalty
        penalized = jnp.where(logits < 0, logits * penalty, logits / penalty)
        logits = jnp.where(seen, penalized, logits)
    if how.min_new_tokens and how.stop_ids:
        stops = jnp.zeros(logits.shape[-1], bool).at[jnp.array(how.stop_ids)].set(True)
        logits = jnp.where(stops & (count < how.min_new_tokens), -jnp.inf, logits)
    if how.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, warp(logits, how)).astype(jnp.int32)


def warp(logits: jax.Array, how: Sampling) -> jax.Array:
    """Logits (B, V) divided by the temperature, with what top_k and top_p exclude at -inf."""
    logits = logits / how.temperature
    if 0 < how.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, how.top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if how.top_p < 1:
        order = jnp.argsort(logits, axis=-1)
        rising = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1), -1)
        out = rising <= 1 - how.top_p
        out = out.at[:, -1].set(False)  # the likeliest stays, whatever p
        excluded = jnp.zeros_like(out).at[jnp.arange(out.shape[0])[:, None], order].set(out)
        logits = jnp.where(excluded, -jnp.inf, logits)
    return logits
