"""Log-probabilities of target tokens."""

from __future__ import annotations

from typing import NamedTuple

from qa_jax.data import TrainBatch
from qa_jax.model import AudioInput, Qwen2Audio
from qa_jax.train.cross_entropy import cross_entropy
from qa_jax.typing import Array, Bool, Float, Shaped


class TokenLogProbs(NamedTuple):
    """Of the tokens t + 1 of a micro-batch, given those up to t: targets is T - 1.

    Attributes:
        log_probs: 0 where masked.
        is_argmax: whether the target is the argmax; False where masked.
        loss_mask: whether the token has a loss weight and belongs to the same record as the token
            before it.
    """

    log_probs: Float[Array, "B targets"]
    is_argmax: Bool[Array, "B targets"]
    loss_mask: Bool[Array, "B targets"]


def chosen_and_rejected(
    x: Shaped[Array, " B"], num_batch_shards: int = 1
) -> tuple[Shaped[Array, " pairs"], Shaped[Array, " pairs"]]:
    """Values of the chosen and of the rejected completion of each pair.

    The first half of each shard's rows are chosen completions, the second half the rejected ones
    of the same prompts.
    """
    both = x.reshape(num_batch_shards, 2, -1)
    return both[:, 0].reshape(-1), both[:, 1].reshape(-1)


def completion_log_probs(
    model: Qwen2Audio, batch: TrainBatch, num_batch_shards: int = 1, rows_per_clip: int = 1
) -> TokenLogProbs:
    """Log-probabilities of a micro-batch's target tokens.

    Args:
        model: with its parameters bound.
        batch: without its leading dimension.
        num_batch_shards: see `qa_jax.model.qwen2_audio.merge_audio_embeddings`.
        rows_per_clip: likewise.
    """
    audio = None
    if batch.waveform is not None and batch.num_frames is not None:
        audio = AudioInput(batch.waveform, batch.num_frames)
    hidden = model(
        batch.tokens, batch.segment_ids, audio, num_batch_shards, rows_per_clip=rows_per_clip
    )
    # Position t predicts token t + 1: the last position predicts nothing, and neither does a
    # record's last token predict the next record's first.
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    loss_mask = same & (batch.loss_weights[:, 1:] > 0)
    kernel = model.decoder.head()
    nll, is_argmax = cross_entropy(hidden[:, :-1], kernel, batch.tokens[:, 1:], loss_mask)
    return TokenLogProbs(-nll, is_argmax, loss_mask)
