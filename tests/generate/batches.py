"""Batches of prompts with and without audio."""

from __future__ import annotations

import qa_jax
from qa_jax.data import Batch
from tests.conftest import CLIP, make_waveform

PROMPTS = [
    (f"{CLIP}what is three", [0.5]),
    (f"{CLIP}{CLIP}turn on the light in the kitchen", [1.7, 0.3]),
    ("no sound at all", []),
]


def batch_of(model: qa_jax.LoadedModel, rows: list[int]) -> Batch:
    clips = [(make_waveform(s, 7 * i), 16_000) for i in rows for s in PROMPTS[i][1]]
    return model.require_processor()([PROMPTS[i][0] for i in rows], clips)
