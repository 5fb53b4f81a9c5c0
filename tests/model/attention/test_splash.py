"""Splash attention, interpreted, against chunked attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.model import AttentionMask
from qa_jax.model.attention.chunked import chunked_attention
from qa_jax.model.attention.splash import splash_attention
from tests.model.attention.oracle import gradients

B, T, N, K, H = 4, 13, 4, 2, 8


@pytest.mark.parametrize(("causal", "t"), [(False, 300), (True, 200)])
def test_splash_equals_chunked(causal: bool, t: int) -> None:
    """Interpreted: what it computes, with grouped heads, segments, padding and rows that are no
    whole blocks. Without a causal mask one kernel computes all gradients, here over three blocks of
    keys."""
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.standard_normal((2, t, n, H)), jnp.float32) for n in (N, K, K))
    segments = np.ones((2, t), np.int32)
    segments[0, 70:] = 2
    segments[1, 150:] = 0
    mask = AttentionMask(jnp.asarray(segments), jnp.asarray(segments), causal)

    def by_kernel(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
        return splash_attention(q, k, v, mask, interpret=True)

    def whole(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
        return chunked_attention(q, k, v, mask, 2**24)

    got = jax.jit(lambda *x: gradients(by_kernel, *x, mask))(q, k, v)
    expected = jax.jit(lambda *x: gradients(whole, *x, mask))(q, k, v)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
