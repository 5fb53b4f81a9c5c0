"""Attention in pieces against the formula in float64, its gradients and its masks included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import MeshConfig
from qa_jax.model import AttentionMask
from qa_jax.model.attention import chunked, dot_product_attention
from qa_jax.model.attention.chunked import chunked_attention
from qa_jax.model.attention.splash import splash_attention
from qa_jax.parallel import make_mesh

B, T, N, K, H = 4, 13, 4, 2, 8


def inputs(dtype: str = "float64") -> tuple[jax.Array, jax.Array, jax.Array, AttentionMask]:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((B, T, n, H)), dtype) for n in (N, K, K))
    segments = np.ones((B, T), np.int32)
    segments[1, 5:] = 2  # two texts in a row
    segments[2, 9:] = 0  # padding at the end
    segments[3, :4] = 0  # and at the start
    return q, k, v, AttentionMask(jnp.asarray(segments), jnp.asarray(segments))


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    dense = mask.q_segment_ids[:, :, None] == mask.kv_segment_ids[:, None]
    dense &= mask.kv_segment_ids[:, None] > 0
    if mask.is_causal:
        dense &= jnp.tril(jnp.ones((T, T), bool))
    scores = jnp.where(dense[:, None], jnp.einsum("btnh,bsnh->bnts", q, k), -1e30)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, -1), v)


def gradients(attend, q, k, v, mask: AttentionMask):  # type: ignore[no-untyped-def]
    """The output where it may be used, and what comes back of it."""
    used = (mask.q_segment_ids > 0)[:, :, None, None]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = jnp.where(used, attend(q, k, v, mask), 0)
        return jnp.sum(jnp.sin(out)), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("limit", [2**20, T * T * 4, T * T * 2, T * T, T * 4, 1])
def test_pieces_of_any_size_are_the_formula(
    monkeypatch: pytest.MonkeyPatch, causal: bool, limit: int
) -> None:
    monkeypatch.setattr(chunked, "_MAX_SCORES_PER_CHUNK", {"cpu": limit})
    with jax.enable_x64(True):
        q, k, v, mask = inputs()
        mask = mask._replace(is_causal=causal)
        got = gradients(dot_product_attention, q, k, v, mask)
        for a, b in zip(got, gradients(plain, q, k, v, mask), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("limit", [2**20, T * T])
def test_every_device_attends_for_itself(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(chunked, "_MAX_SCORES_PER_CHUNK", {"cpu": limit})
    q, k, v, mask = inputs("float32")
    expected = gradients(plain, q, k, v, mask)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
        step = jax.jit(lambda q, k, v: gradients(dot_product_attention, q, k, v, mask))
        for a, b in zip(step(q, k, v), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())
        text = jax.jit(lambda: dot_product_attention(q, k, v, mask)).lower().compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text


@pytest.mark.parametrize("causal", [False, True])
def test_the_tpus_kernel_is_the_formula(causal: bool) -> None:
    """Interpreted: what it computes, with grouped heads, segments, padding and rows that are no
    whole blocks."""
    rng = np.random.default_rng(1)
    t = 200
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


def test_where_the_tpus_kernel_is_taken() -> None:
    """Every device on its own rows and heads, in bfloat16; short rows and float32 are left to the
    pieces."""
    rng = np.random.default_rng(2)
    x = [jnp.asarray(rng.standard_normal((2, 128, 2, 8)), jnp.bfloat16) for _ in range(3)]
    mask = AttentionMask(*[jnp.ones((2, 128), jnp.int32)] * 2, is_causal=True)

    def program(*arrays: jax.Array, implementation: str = "splash") -> str:
        run = jax.jit(lambda *a: dot_product_attention(*a, mask, implementation=implementation))
        return run.lower(*arrays).as_text()

    assert "splash" in program(*x) and "splash" not in program(*x, implementation="chunked")
    assert "splash" not in program(*(a.astype(jnp.float32) for a in x))
    with jax.set_mesh(make_mesh(MeshConfig(2, 1, 2), jax.devices()[:4])):
        many = jax.jit(lambda *a: dot_product_attention(*a, mask, implementation="splash"))(*x)
    one = dot_product_attention(*x, mask, implementation="chunked")
    np.testing.assert_allclose(many.astype(np.float32), one.astype(np.float32), atol=0.03)
