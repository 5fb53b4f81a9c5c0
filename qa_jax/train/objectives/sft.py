"""Supervised fine-tuning and pre-training: cross-entropy on target tokens."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from qa_jax.data import TrainBatch
from qa_jax.model import Qwen2Audio
from qa_jax.train.objectives.base import LossOutput, Objective, batch_totals
from qa_jax.train.objectives.log_probs import completion_log_probs
from qa_jax.typing import Array, Key, Params


class SFT(Objective):
    """Cross-entropy on the assistant's tokens."""

    def loss(
        self,
        params: Params,
        batch: TrainBatch,
        ref_params: Params | None,
        rng: Key[Array, ""] | None,
    ) -> LossOutput:
        names = self.config.data.source_names()
        return next_token_loss(self.policy(params, rng), batch, self.num_batch_shards, names)


def next_token_loss(
    model: Qwen2Audio,
    batch: TrainBatch,
    num_batch_shards: int = 1,
    source_names: Sequence[str] = (),
) -> LossOutput:
    """Weighted cross-entropy of every target token, given all tokens before it.

    Args:
        model: with its parameters bound.
        batch: without its leading dimension.
        num_batch_shards: see `qa_jax.model.qwen2_audio.merge_audio_embeddings`.
        source_names: of the batch's `source_ids`; each gets its loss, and its share of the targets.
    """
    log_probs, is_argmax, loss_mask = completion_log_probs(model, batch, num_batch_shards)
    weights = jnp.where(loss_mask, batch.loss_weights[:, 1:], 0)
    losses = -log_probs.astype(weights.dtype) * weights
    means = {"accuracy": (jnp.sum(is_argmax), jnp.sum(loss_mask))}
    if batch.source_ids is not None:
        for i, name in enumerate(source_names):
            is_from = batch.source_ids[:, 1:] == i
            means[f"loss/{name}"] = (jnp.sum(losses * is_from), jnp.sum(weights * is_from))
            means[f"share/{name}"] = (jnp.sum(loss_mask & is_from), jnp.sum(loss_mask))
    return LossOutput(jnp.sum(losses), jnp.sum(weights), means, batch_totals(batch, loss_mask))
