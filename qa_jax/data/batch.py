"""The batch of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qa_jax.config import HOP_LENGTH, num_frames
from qa_jax.typing import AnyArray, Float, Int, UInt32


class TrainBatch(NamedTuple):
    """One optimizer step's data: `accum` micro-batches of B rows and A clips.

    NumPy arrays as they are read, JAX arrays once they are on devices; a micro-batch has the same
    fields without the leading dimension.

    Attributes:
        tokens: ids.
        segment_ids: 1, 2, ... for the records of a row, 0 at padding (on the right).
        loss_weights: weight of predicting this token; 0 for tokens that are not targets.
        waveform: audio at 16 kHz, or log-mels computed elsewhere; None in the bucket without audio.
        num_frames: valid log-mel frames, or None.
        reference_log_probs: precomputed log-probability of each row's completion, or None.
        source_ids: which of a mixture's manifests each token is from, -1 at padding; or None.
        augment_seeds: keys of the clips' augmentation in the step, or None for none.

    With several completions per record, B is that many times the bucket's rows: each batch shard
    holds the first completions of its records, then the second ones, of the same prompts and clips.
    """

    tokens: Int[AnyArray, "*accum B T"]
    segment_ids: Int[AnyArray, "*accum B T"]
    loss_weights: Float[AnyArray, "*accum B T"]
    waveform: Float[AnyArray, "*accum A samples"] | Float[AnyArray, "*accum A F M"] | None
    num_frames: Int[AnyArray, "*accum A"] | None
    reference_log_probs: Float[AnyArray, "*accum B"] | None = None
    source_ids: Int[AnyArray, "*accum B T"] | None = None
    augment_seeds: UInt32[AnyArray, "*accum A 2"] | None = None


def with_audio(
    batch: TrainBatch,
    waveforms: list[list[Float[np.ndarray, " _"]]],
    num_clips: int,
    bucket: int,
    seeds: list[list[UInt32[np.ndarray, "2"]]] | None = None,
) -> TrainBatch:
    """The batch with each shard's clips, zero-padded to `num_clips` of the bucket's length, and
    their seeds."""
    audio = np.zeros((len(waveforms), num_clips, bucket * HOP_LENGTH), np.float32)
    frames = np.zeros((len(waveforms), num_clips), np.int32)
    for shard, clips in enumerate(waveforms):
        for i, waveform in enumerate(clips):
            audio[shard, i, : waveform.size] = waveform
            frames[shard, i] = num_frames(waveform.size)
    batch = batch._replace(
        waveform=audio.reshape(-1, audio.shape[-1]), num_frames=frames.reshape(-1)
    )
    if seeds is None:
        return batch
    keys = np.zeros((len(waveforms), num_clips, 2), np.uint32)
    for shard, found in enumerate(seeds):
        keys[shard, : len(found)] = found or 0
    return batch._replace(augment_seeds=keys.reshape(-1, 2))


def stack_micro_batches(micro: Sequence[TrainBatch]) -> TrainBatch:
    """Micro-batches of one shape, stacked."""
    fields = zip(*micro, strict=True)
    return TrainBatch(*(None if x[0] is None else np.stack(x) for x in fields))
