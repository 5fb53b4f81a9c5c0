"""A user's batch -> arrays padded to length buckets, so that few shapes are compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from qa_jax.config import (
    FRAME_MARGIN,
    HOP_LENGTH,
    MAX_FRAMES,
    ModelConfig,
    num_audio_tokens,
    num_frames,
)
from qa_jax.errors import InputError
from qa_jax.typing import AnyArray, Bool, Float, Int

FRAME_MULTIPLE = 200
"""2 s: at most a fifteenth of the longest clip is padding."""
KEYS = {
    "input_ids",
    "attention_mask",
    "audio",
    "audio_lengths",
    "input_features",
    "feature_attention_mask",
}

UserBatch = Mapping[str, Any]
"""The processor's batch, or transformers' inputs as NumPy arrays or torch tensors on the CPU."""


class ModelInputs(NamedTuple):
    """The model's inputs; `waveform` and `num_frames` are those of `AudioInput`."""

    tokens: Int[AnyArray, "B T"]
    attention_mask: Bool[AnyArray, "B T"]
    waveform: Float[AnyArray, "A samples"] | Float[AnyArray, "A F M"] | None
    num_frames: Int[AnyArray, " A"] | None


def prepare_inputs(
    batch: UserBatch,
    config: ModelConfig,
    num_batch_shards: int = 1,
) -> ModelInputs:
    """Checks a batch, and pads its clips to their bucket.

    Args:
        batch: the processor's arrays, or transformers' `input_ids`, `attention_mask`,
            `input_features` (A, M, 3000) and `feature_attention_mask` (A, 3000).
        config: the model's.
        num_batch_shards: empty rows and clips pad the batch to a multiple of this.

    Raises:
        InputError: for unknown keys, or different numbers of audio tokens and audio features.
    """
    tokens, mask = token_arrays(batch)
    waveform, frames = audio_arrays(batch, config) or (None, None)
    expected = int((tokens == config.audio_token_id).sum())
    given = 0 if frames is None else int(num_audio_tokens(frames).sum())
    check_audio_tokens(expected, given)
    padding = ((0, -tokens.shape[0] % num_batch_shards), (0, 0))
    if waveform is not None and frames is not None:
        pad_clips = (0, -len(frames) % num_batch_shards)
        waveform = np.pad(waveform, (pad_clips, *[(0, 0)] * (waveform.ndim - 1)))
        frames = np.pad(frames, (pad_clips,))
    return ModelInputs(np.pad(tokens, padding), np.pad(mask, padding), waveform, frames)


def check_audio_tokens(placeholders: int, features: int) -> None:
    """Raises InputError unless there is a placeholder for each audio embedding."""
    if placeholders != features:
        raise InputError(
            "batch",
            "audio features and audio tokens do not match: "
            f"tokens: {placeholders}, features: {features}",
            "let the processor expand each placeholder",
        )


def token_arrays(
    batch: UserBatch,
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Ids and attention mask; raises InputError for unknown keys or shapes that differ."""
    unknown = set(batch) - KEYS
    if unknown or "input_ids" not in batch:
        raise InputError(
            "batch",
            f"unknown keys {sorted(unknown)}" if unknown else "has no input_ids",
            f"give {', '.join(sorted(KEYS))}",
        )
    tokens = np.asarray(batch["input_ids"]).astype(np.int32)
    mask = np.asarray(batch.get("attention_mask", np.ones_like(tokens))).astype(bool)
    if tokens.ndim != 2 or mask.shape != tokens.shape:
        raise InputError(
            "batch", f"input_ids {tokens.shape}, attention_mask {mask.shape}", "both (B, T)"
        )
    return tokens, mask


def audio_arrays(
    batch: UserBatch, config: ModelConfig
) -> tuple[Float[np.ndarray, "A S"] | Float[np.ndarray, "A F M"], Int[np.ndarray, " A"]] | None:
    """Waveforms (A, samples) or log-mels (A, F, M), padded to a bucket, and each clip's frames.

    Raises InputError for a clip that is too long.
    """
    limit = min(MAX_FRAMES, config.audio.max_frames)
    if batch.get("audio") is not None:
        frames = num_frames(np.asarray(batch["audio_lengths"]).astype(np.int32))
        size = frame_bucket(int(frames.max()), limit) * HOP_LENGTH
        return _fit(np.asarray(batch["audio"], np.float32), size), frames
    if batch.get("input_features") is not None:
        features = np.asarray(batch["input_features"])
        mask = batch.get("feature_attention_mask")
        if features.ndim != 3 or features.shape[1] != config.audio.num_mel_bins or mask is None:
            raise InputError(
                "batch",
                f"input_features {features.shape} with feature_attention_mask "
                f"{None if mask is None else np.asarray(mask).shape}",
                f"give (A, {config.audio.num_mel_bins}, F) and (A, F)",
            )
        frames = np.asarray(mask).astype(np.int32).sum(axis=1)
        bucket = min(frame_bucket(int(frames.max()), limit), features.shape[2] // 4 * 4)
        return np.ascontiguousarray(features[:, :, :bucket].transpose(0, 2, 1)), frames
    return None


def frame_bucket(num_frames: int, limit: int) -> int:
    """Frames that a clip of so many is padded to; raises InputError if it is over the limit."""
    bucket = min(-(-(num_frames + FRAME_MARGIN) // FRAME_MULTIPLE) * FRAME_MULTIPLE, limit)
    if num_frames > bucket:
        raise InputError(
            "audio", f"{num_frames} frames, the model's maximum is {limit}", "give a shorter clip"
        )
    return bucket


def _fit(audio: np.ndarray, num_samples: int) -> np.ndarray:
    """(A, S) truncated or zero-padded to (A, num_samples); only padding is ever truncated."""
    if audio.shape[1] >= num_samples:
        return audio[:, :num_samples]
    return np.pad(audio, ((0, 0), (0, num_samples - audio.shape[1])))
