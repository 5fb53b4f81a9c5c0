"""What training minimizes. Sums and counts come back apart and are divided once, over everything,
so that neither accumulation nor sharding nor padding can change a loss."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.data.loader import TrainBatch
from qa_jax.model import Audio, Qwen2Audio
from qa_jax.train.cross_entropy import cross_entropy


class Sums(NamedTuple):
    """Totals of a batch.

    Attributes:
        loss: weighted negative log-likelihoods, in nats.
        weight: of all predicted tokens.
        correct: tokens with a weight than which the model found none likelier.
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
    kernel = model.decoder.head(hidden.dtype)
    loss, correct = cross_entropy(hidden[:, :-1], kernel, batch.tokens[:, 1:], weights)
    return Sums(loss, jnp.sum(weights), correct, jnp.sum(weights > 0), seconds)
