"""Recipes and small configurations to plan."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from qa_jax.config import MeshConfig, RunConfig, preset

CONFIGS = Path(__file__).parents[2] / "configs"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (Linux only)"
)
T, FRAMES = 640, 1004
"""Lengths that no parameter has as a dimension, so that shapes identify arrays."""


def shallow(frames: int = FRAMES, **mesh: int) -> RunConfig:
    """The full-size widths and vocabulary, two layers each."""
    full = preset("qwen2_audio_7b")
    model = dataclasses.replace(
        full,
        audio=dataclasses.replace(full.audio, encoder_layers=2),
        text=dataclasses.replace(full.text, num_hidden_layers=2),
    )
    config = RunConfig(model=model, mesh=MeshConfig(**mesh))
    data = dataclasses.replace(config.data, buckets={frames: 8}, packed_length=T)
    return dataclasses.replace(config, data=data)
