"""Batches that a model cannot take."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import qa_jax
from qa_jax.config import num_frames
from qa_jax.errors import InputError
from qa_jax.model import LogMel
from tests.generate.batches import batch_of


def test_bad_batches_are_refused(model: qa_jax.LoadedModel) -> None:
    batch = batch_of(model, [0])
    with pytest.raises(InputError, match="do not match: tokens: 12, features: 25"):
        model.logits({**batch, "audio": np.zeros((1, 16_000)), "audio_lengths": np.array([16_000])})
    with pytest.raises(InputError, match="unknown keys"):
        model.logits({**batch, "audios": 1})
    with pytest.raises(InputError, match="has no input_ids"):
        model.logits({})


def test_log_mels_instead_of_waveforms(model: qa_jax.LoadedModel) -> None:
    """transformers' inputs: (A, M, F), with a mask of the valid frames."""
    batch = batch_of(model, [0, 1])
    expected = model.logits(batch)
    frames = num_frames(np.asarray(batch["audio_lengths"]))
    waveforms = np.zeros((len(frames), 480_000), np.float32)
    waveforms[:, : batch["audio"].shape[1]] = batch["audio"]
    log_mel = jax.jit(LogMel(model.config.audio.num_mel_bins))(waveforms)
    features = {k: v for k, v in batch.items() if k not in ("audio", "audio_lengths")}
    features["input_features"] = np.asarray(log_mel).transpose(0, 2, 1)
    features["feature_attention_mask"] = np.arange(3000) < np.asarray(frames)[:, None]
    np.testing.assert_allclose(model.logits(features), expected, atol=1e-4)
