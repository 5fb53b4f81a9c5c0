"""A user's batch to bucketed arrays: few shapes, so few compilations, and never a cut clip."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qa_jax.config import (
    FRAME_MARGIN,
    HOP_LENGTH,
    MAX_FRAMES,
    ModelConfig,
    token_count,
    valid_frames,
)
from qa_jax.errors import InputError

TOKEN_MULTIPLE = 64
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


class ModelInputs(NamedTuple):
    """What the model takes: tokens and valid (B, T), signal as in `Audio`, frames (A,)."""

    tokens: Any
    valid: Any
    signal: Any
    frames: Any


def prepare(
    batch: dict[str, Any],
    config: ModelConfig,
    token_multiple: int = TOKEN_MULTIPLE,
    shards: int = 1,
) -> ModelInputs:
    """Checks a batch and pads it to its bucket, tokens on the left.

    Args:
        batch: the processor's arrays, or transformers' `input_ids`, `attention_mask`,
            `input_features` (A, M, 3000) and `feature_attention_mask` (A, 3000). Torch tensors on
            the CPU will do.
        token_multiple: rows are padded to a multiple of this.
        shards: devices that rows are cut over; empty rows and clips fill the batch up to a
            multiple of it.

    Raises:
        InputError: unknown keys, or clips and placeholders that do not fit each other.
    """
    unknown = set(batch) - KEYS
    if unknown or "input_ids" not in batch:
        raise InputError(
            "batch",
            f"unknown keys {sorted(unknown)}" if unknown else "has no input_ids",
            f"give {', '.join(sorted(KEYS))}",
        )
    tokens = np.asarray(batch["input_ids"]).astype(np.int32)
    valid = np.asarray(batch.get("attention_mask", np.ones_like(tokens))).astype(bool)
    if tokens.ndim != 2 or valid.shape != tokens.shape:
        raise InputError(
            "batch", f"input_ids {tokens.shape}, attention_mask {valid.shape}", "both (B, T)"
        )
    signal, frames = _sound(batch, config)
    expected = int((tokens == config.audio_token_id).sum())
    given = 0 if frames is None else int(token_count(frames).sum())
    if expected != given:
        raise InputError(
            "batch",
            f"audio features and audio tokens do not match: tokens: {expected}, features: {given}",
            "let the processor expand each placeholder",
        )
    widths = ((0, -tokens.shape[0] % shards), (-tokens.shape[1] % token_multiple, 0))
    if signal is not None and frames is not None:
        more = (0, -len(frames) % shards)
        signal = np.pad(signal, (more, *[(0, 0)] * (signal.ndim - 1)))
        frames = np.pad(frames, (more,))
    return ModelInputs(np.pad(tokens, widths), np.pad(valid, widths), signal, frames)


def _sound(
    batch: dict[str, Any], config: ModelConfig
) -> tuple[np.ndarray | None, np.ndarray | None]:
    limit = min(MAX_FRAMES, config.audio.max_frames)
    if batch.get("audio") is not None:
        frames = valid_frames(np.asarray(batch["audio_lengths"]).astype(np.int32))
        bucket = _bucket(frames, limit)
        return _fit(np.asarray(batch["audio"], np.float32), bucket * HOP_LENGTH), frames
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
        bucket = min(_bucket(frames, limit), features.shape[2] // 4 * 4)
        return np.ascontiguousarray(features[:, :, :bucket].transpose(0, 2, 1)), frames
    return None, None


def _bucket(frames: np.ndarray, limit: int) -> int:
    longest = int(frames.max()) + FRAME_MARGIN
    bucket = min(-(-longest // FRAME_MULTIPLE) * FRAME_MULTIPLE, limit)
    if frames.max() > bucket:
        raise InputError(
            "audio", f"{frames.max()} frames, the model takes {limit}", "give a shorter clip"
        )
    return bucket


def _fit(audio: np.ndarray, samples: int) -> np.ndarray:
    """(A, S) cut or zero-filled to (A, samples); only padding is ever cut."""
    if audio.shape[1] >= samples:
        return audio[:, :samples]
    return np.pad(audio, ((0, 0), (0, samples - audio.shape[1])))
