"""Batches that a model cannot take."""

from __future__ import annotations

import numpy as np
import pytest

import qa_jax
from qa_jax.errors import InputError
from tests.generate.batches import batch_of


def test_bad_batches_are_refused(model: qa_jax.LoadedModel) -> None:
    batch = batch_of(model, [0])
    with pytest.raises(InputError, match="do not match: tokens: 12, features: 25"):
        model.logits({**batch, "audio": np.zeros((1, 16_000)), "audio_lengths": np.array([16_000])})
    with pytest.raises(InputError, match="unknown keys"):
        model.logits({**batch, "audios": 1})
    with pytest.raises(InputError, match="has no input_ids"):
        model.logits({})
