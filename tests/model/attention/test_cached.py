"""Attention over a cache by its formula, in NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.model.attention import cached, cached_attention
from qa_jax.model.cache import quantize_entries


@pytest.mark.parametrize(("tokens", "heads"), [(1, 4), (1, 8), (5, 4)])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("is_int8", [False, True])
def test_formula(
    monkeypatch: pytest.MonkeyPatch, tokens: int, heads: int, platform: str, is_int8: bool
) -> None:
    """Also as TPUs compute it, with as many queries as a tile has rows."""
    monkeypatch.setattr(cached, "current_platform", lambda: platform)
    rng = np.random.default_rng(0)
    rows, groups, entries, dim = 3, 4, 11, 8
    q = rng.standard_normal((rows, tokens, heads, dim))
    k, v = rng.standard_normal((2, rows, groups, entries, dim))
    positions = np.array([[4], [0], [5]]) + np.arange(tokens)
    arrays = [jnp.asarray(x, jnp.float32) for x in (k, v)]
    if is_int8:
        (k8, k_scale), (v8, v_scale) = map(quantize_entries, arrays)
        arrays = [k8, v8, k_scale, v_scale]
        k, v = k8 * np.asarray(k_scale)[..., None], v8 * np.asarray(v_scale)[..., None]
    expected = np.zeros_like(q)
    for r, t, n in np.ndindex(rows, tokens, heads):
        seen = slice(0, positions[r, t] + 1)
        group = n // (heads // groups)
        scores = k[r, group, seen] @ q[r, t, n]
        weights = np.exp(scores - scores.max())
        expected[r, t, n] = weights / weights.sum() @ v[r, group, seen]
    found = cached_attention(jnp.asarray(q, jnp.float32), *arrays, positions=jnp.asarray(positions))
    np.testing.assert_allclose(found, expected, atol=2e-5)
