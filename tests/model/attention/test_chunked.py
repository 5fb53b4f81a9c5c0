"""Chunked attention against the formula in float64: outputs, gradients, masks, meshes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from qa_jax.config import MeshConfig
from qa_jax.model.attention import chunked, dot_product_attention
from qa_jax.parallel import make_mesh
from tests.model.attention.oracle import gradients, inputs, oracle

B, T, N, K, H = 4, 13, 4, 2, 8


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("limit", [2**20, T * T * 4, T * T * 2, T * T, T * 4, 1])
def test_any_chunk_size_equals_the_formula(
    monkeypatch: pytest.MonkeyPatch, causal: bool, limit: int
) -> None:
    monkeypatch.setattr(chunked, "_MAX_SCORES_PER_CHUNK", {"cpu": limit})
    with jax.enable_x64(True):
        q, k, v, mask = inputs()
        mask = mask._replace(is_causal=causal)
        got = gradients(dot_product_attention, q, k, v, mask)
        for a, b in zip(got, gradients(oracle, q, k, v, mask), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("limit", [2**20, T * T])
def test_devices_need_no_communication(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(chunked, "_MAX_SCORES_PER_CHUNK", {"cpu": limit})
    q, k, v, mask = inputs("float32")
    expected = gradients(oracle, q, k, v, mask)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        step = jax.jit(lambda q, k, v: gradients(dot_product_attention, q, k, v, mask))
        for a, b in zip(step(q, k, v), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())
        text = jax.jit(lambda: dot_product_attention(q, k, v, mask)).lower().compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text
