"""What training minimizes. Sums and counts come back apart and are divided once, over everything,
so that neither accumulation nor sharding nor padding can change a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.data.loader import TrainBatch
from qa_jax.model import Audio, Qwen2Audio

_CHUNK_LOGITS = 2**25
"""Logits computed at a time: 128 MiB in float32."""


class Sums(NamedTuple):
    """Totals of a batch.

    Attributes:
        loss: weighted negative log-likelihoods, in nats.
        weight: of all predicted tokens.
        correct: tokens with a weight whose likeliest prediction is right.
        tokens: tokens with a weight.
        audio_seconds: of the clips heard.
    """

    loss: jax.Array
    weight: jax.Array
    correct: jax.Array
    tokens: jax.Array
    audio_seconds: jax.Array


def next_token_loss(model: Qwen2Audio, batch: TrainBatch, groups: int = 1) -> Sums:
    """Cross-entropy of every token that carries weight, given all before it.

    Args:
        model: with its parameters bound.
        batch: one micro-batch (no leading accumulate dimension).
        groups: see `qa_jax.model.qwen2_audio.place_audio`.
    """
    audio = None if batch.signal is None else Audio(batch.signal, batch.frames)
    hidden, _ = model(batch.tokens, batch.segments, audio, groups)
    seconds = jnp.zeros(()) if audio is None else jnp.sum(audio.frames) * 0.01
    # Position t predicts token t + 1, so the last position predicts nothing; nor does a record's
    # last token predict the next record's first.
    same = batch.segments[:, 1:] == batch.segments[:, :-1]
    weights = jnp.where(same, batch.weights[:, 1:], 0)
    loss, correct = _cross_entropy(model.logits, hidden[:, :-1], batch.tokens[:, 1:], weights)
    return Sums(loss, jnp.sum(weights), correct, jnp.sum(weights > 0), seconds)


def _cross_entropy(
    logits: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of -log p(target) and the number of right guesses, a few positions at a time:
    the float32 logits of a whole batch (2048 tokens x 156,032 entries) are never stored."""

    def chunk(
        hidden: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        z = logits(hidden)
        scale = jax.nn.logsumexp(z, axis=-1)
        picked = jnp.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
        right = (jnp.argmax(z, axis=-1) == targets) & (weights > 0)
        return jnp.sum((scale - picked) * weights), jnp.sum(right)

    b, t, _ = hidden.shape
    vocab = jax.eval_shape(logits, hidden[:, :1]).shape[-1]
    size = max(1, _CHUNK_LOGITS // (b * vocab))
    if size >= t:
        return chunk(hidden, targets, weights)
    pad = -t % size

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, -1, size, *x.shape[2:]), 1, 0)

    def step(
        sums: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        loss, correct = chunk(*xs)
        return (sums[0] + loss, sums[1] + correct), None

    zero = (jnp.zeros((), weights.dtype), jnp.zeros((), jnp.int32))
    xs = (split(hidden), split(targets), split(weights))
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), zero, xs)[0]
