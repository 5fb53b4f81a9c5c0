"""How much memory a token takes."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from qa_jax.config import MeshConfig, preset
from qa_jax.generate.memory import entry_bytes
from qa_jax.parallel import make_mesh


@pytest.mark.eight_devices
def test_a_tokens_keys_and_values() -> None:
    text = preset("qwen2_audio_7b").text
    assert entry_bytes(text, jnp.bfloat16) == 512 * 1024
    # A scale in float32 for each vector of 128.
    assert entry_bytes(text, jnp.int8) == 256 * 1024 * (1 + 4 / 128)
    mesh = make_mesh(MeshConfig(1, 2, 4))
    assert entry_bytes(text, jnp.bfloat16, mesh) == 128 * 1024  # heads are sharded, slots are not
