"""Sampling with the semantics of transformers, every setting an array over rows.

A row's draw is a function of its own logits, settings, seed and step, never of its place in a
batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.config import SamplingConfig
from qa_jax.config.generation import MAX_LOGIT_BIASES, MAX_STOP_IDS, MAX_TOP_LOGPROBS
from qa_jax.typing import AnyArray, Array, Bool, Float, Int, UInt

NUM_CANDIDATES = 128
"""The most probable tokens, in which top_k and top_p are applied before all tokens are sorted."""
_BLOCK = 128


class RowSettings(NamedTuple):
    """`SamplingConfig` as arrays over rows. Absent stop ids are -1, absent biases past the
    vocabulary."""

    max_new_tokens: Int[AnyArray, " R"]
    min_new_tokens: Int[AnyArray, " R"]
    temperature: Float[AnyArray, " R"]
    top_k: Int[AnyArray, " R"]
    top_p: Float[AnyArray, " R"]
    min_p: Float[AnyArray, " R"]
    repetition_penalty: Float[AnyArray, " R"]
    presence_penalty: Float[AnyArray, " R"]
    frequency_penalty: Float[AnyArray, " R"]
    seed: UInt[AnyArray, " R"]
    top_logprobs: Int[AnyArray, " R"]
    stop_ids: Int[AnyArray, "R stops"]
    bias_ids: Int[AnyArray, "R biases"]
    bias: Float[AnyArray, "R biases"]

    @classmethod
    def of(cls, settings: list[SamplingConfig]) -> RowSettings:
        """A row for each; a seed of None is 0."""
        none = np.iinfo(np.int32).max

        def padded(values: tuple[float, ...], size: int, fill: int) -> list[float]:
            return [*values, *[fill] * (size - len(values))]

        plain = {
            name: np.array([getattr(s, name) or 0 for s in settings], dtype)
            for name, dtype in (
                *((n, np.int32) for n in ("max_new_tokens", "min_new_tokens", "top_k")),
                *((n, np.float32) for n in ("temperature", "top_p", "min_p")),
                *((f"{n}_penalty", np.float32) for n in ("repetition", "presence", "frequency")),
                ("seed", np.uint32),
                ("top_logprobs", np.int32),
            )
        }
        ids = [tuple(i for i, _ in s.logit_bias) for s in settings]
        biases = [tuple(b for _, b in s.logit_bias) for s in settings]
        return cls(
            **plain,
            stop_ids=np.array([padded(s.stop_ids, MAX_STOP_IDS, -1) for s in settings], np.int32),
            bias_ids=np.array([padded(i, MAX_LOGIT_BIASES, none) for i in ids], np.int32),
            bias=np.array([padded(b, MAX_LOGIT_BIASES, 0) for b in biases], np.float32),
        )


class Sampled(NamedTuple):
    """Each row's next token, with log-probabilities before any setting is applied.

    Attributes:
        token: -1 where there is none.
        logprob: of the token.
        top_ids: the most probable tokens, if any row asks for them.
        top_logprobs: theirs.
    """

    token: Int[AnyArray, "*steps R"]
    logprob: Float[AnyArray, "*steps R"]
    top_ids: Int[AnyArray, "*steps R k"]
    top_logprobs: Float[AnyArray, "*steps R k"]


def sample_tokens(
    logits: Float[Array, "R V"],
    in_prompt: Bool[Array, "R V"],
    counts: Int[Array, "R V"],
    step: Int[Array, " R"],
    settings: RowSettings,
) -> Sampled:
    """The next token of every row.

    Args:
        logits: of the next token.
        in_prompt: tokens that the prompt contains.
        counts: how often the answer contains each token.
        step: tokens in the answer so far.
        settings: the rows'.
    """
    adjusted = adjust_logits(logits, in_prompt, counts, step, settings)
    greedy = jnp.argmax(adjusted, axis=-1)
    is_drawn = settings.temperature > 0

    def draw(_: None) -> jax.Array:
        scaled = adjusted / jnp.where(is_drawn, settings.temperature, 1)[:, None]
        kept = exclude(scaled, settings)
        probs = jax.nn.softmax(kept, axis=-1)
        keys = jax.vmap(lambda seed, i: jax.random.fold_in(jax.random.key(seed), i))(
            settings.seed, step
        )
        drawn = _inverse_cdf(probs, jax.vmap(jax.random.uniform)(keys))
        return jnp.where(is_drawn, drawn, greedy)

    token = jax.lax.cond(jnp.any(is_drawn), draw, lambda _: greedy, None).astype(jnp.int32)
    logprobs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    k = min(MAX_TOP_LOGPROBS, logits.shape[-1])

    def top(_: None) -> tuple[jax.Array, jax.Array]:
        values, ids = jax.lax.top_k(logprobs, k)
        return ids.astype(jnp.int32), values

    def no_top(_: None) -> tuple[jax.Array, jax.Array]:
        shape = (logits.shape[0], k)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, logprobs.dtype)

    top_ids, top_logprobs = jax.lax.cond(jnp.any(settings.top_logprobs > 0), top, no_top, None)
    logprob = jnp.take_along_axis(logprobs, token[:, None], axis=1)[:, 0]
    return Sampled(token, logprob, top_ids, top_logprobs)


def adjust_logits(
    logits: Float[Array, "R V"],
    in_prompt: Bool[Array, "R V"],
    counts: Int[Array, "R V"],
    step: Int[Array, " R"],
    settings: RowSettings,
) -> Float[Array, "R V"]:
    """Logits after penalties, biases and the exclusion of stop ids."""
    s, rows = settings, jnp.arange(logits.shape[0])[:, None]

    def penalize(logits: jax.Array) -> jax.Array:
        factor = s.repetition_penalty[:, None]
        penalized = jnp.where(logits < 0, logits * factor, logits / factor)
        logits = jnp.where(in_prompt | (counts > 0), penalized, logits)
        logits -= s.presence_penalty[:, None] * (counts > 0)
        logits -= s.frequency_penalty[:, None] * counts
        # Ids past the vocabulary, which stand for none, are dropped.
        return logits.at[rows, s.bias_ids].add(s.bias, mode="drop")

    is_needed = jnp.any(
        (s.repetition_penalty != 1) | (s.presence_penalty != 0) | (s.frequency_penalty != 0)
    ) | jnp.any(s.bias != 0)
    logits = jax.lax.cond(is_needed, penalize, lambda x: x, logits)
    excluded = (step < s.min_new_tokens)[:, None] & (s.stop_ids >= 0)
    ids = jnp.where(excluded, s.stop_ids, logits.shape[-1])
    return logits.at[rows, ids].set(-jnp.inf, mode="drop")


def exclude(logits: Float[Array, "R V"], settings: RowSettings) -> Float[Array, "R V"]:
    """Logits, already divided by the temperature, with those that top_k, top_p and min_p exclude
    at -inf.

    Equal logits at the boundary are all kept.
    """
    vocab = logits.shape[-1]
    top_k = jnp.where(settings.top_k > 0, jnp.minimum(settings.top_k, vocab), vocab)[:, None]
    top_p = settings.top_p[:, None]
    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    def boundary(top: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The least logit kept, and whether it is known from these, the largest in order."""
        n = top.shape[-1]
        in_k = jnp.arange(n) < top_k
        # top_p counts what top_k leaves.
        within_k = jax.nn.logsumexp(jnp.where(in_k, top, -jnp.inf), axis=-1, keepdims=True)
        probs = jnp.where(in_k, jnp.exp(top - jnp.where(top_k <= n, within_k, log_total)), 0)
        before = jnp.cumsum(probs, axis=-1) - probs
        kept = jnp.maximum(jnp.sum(in_k & (before < top_p), axis=-1, keepdims=True), 1)
        is_known = (top_k <= n) | ((top_k == vocab) & (kept < n))
        return jnp.take_along_axis(top, kept - 1, axis=-1), is_known

    least, is_known = boundary(jax.lax.top_k(logits, min(NUM_CANDIDATES, vocab))[0])
    is_unbounded = (top_k == vocab) & (top_p >= 1)

    def sort_all(_: None) -> jax.Array:
        return jnp.where(is_known, least, boundary(-jnp.sort(-logits, axis=-1))[0])

    needs_all = jnp.any(~is_known & ~is_unbounded)
    least = jax.lax.cond(needs_all, sort_all, lambda _: least, None)
    least = jnp.where(is_unbounded, -jnp.inf, least)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    min_p = settings.min_p[:, None]
    least = jnp.maximum(least, jnp.where(min_p > 0, highest + jnp.log(min_p), -jnp.inf))
    return jnp.where(logits < least, -jnp.inf, logits)


def _inverse_cdf(probs: Float[Array, "R V"], u: Float[Array, " R"]) -> Int[Array, " R"]:
    """The token at which the cumulative probability passes u: first the block, then in it."""
    rows, vocab = probs.shape
    blocks = jnp.pad(probs, ((0, 0), (0, -vocab % _BLOCK))).reshape(rows, -1, _BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    cumulative = jnp.cumsum(sums, axis=-1)
    target = u[:, None] * cumulative[:, -1:]
    block = _first_above(cumulative, sums, target)
    rest = target - jnp.take_along_axis(cumulative - sums, block, axis=1)
    within = jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
    token = _first_above(jnp.cumsum(within, axis=-1), within, rest)
    return (block * _BLOCK + token)[:, 0]


def _first_above(
    cumulative: Float[Array, "R n"], parts: Float[Array, "R n"], target: Float[Array, "R 1"]
) -> Int[Array, "R 1"]:
    """The first index whose cumulative sum is over the target; never one whose part is 0."""
    index = jnp.sum(cumulative <= target, axis=-1, keepdims=True)
    last = parts.shape[-1] - 1 - jnp.argmax((parts > 0)[:, ::-1], axis=-1, keepdims=True)
    return jnp.minimum(index, last)
