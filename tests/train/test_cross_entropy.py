"""The loss in pieces is the plain loss, and so are its gradients, on one device and on meshes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import MeshConfig
from qa_jax.parallel import make_mesh
from qa_jax.train import cross_entropy as module
from qa_jax.train.cross_entropy import cross_entropy

B, T, D, V = 8, 11, 16, 96


def inputs() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((B, T, D)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((D, V)), jnp.float32)
    right = rng.random((B, T)) > 0.5
    targets = jnp.where(right, jnp.argmax(hidden @ kernel, -1), rng.integers(0, V, (B, T)))
    weights = rng.random((B, T)) * (rng.random((B, T)) > 0.6)
    weights[3] = 0  # a row without a loss
    return hidden, kernel, targets, jnp.asarray(weights, jnp.float32)


def plain(hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple:
    logits = hidden @ kernel
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    right = (jnp.argmax(logits, -1) == targets) & (weights > 0)
    return -jnp.sum(picked * weights), jnp.sum(right)


def summed(hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple:
    loss, is_argmax = cross_entropy(hidden, kernel, targets, weights > 0)
    return jnp.sum(loss * weights), jnp.sum(is_argmax)


def compare(got: tuple, expected: tuple) -> None:
    (loss, correct), gradients = got
    (plain_loss, plain_correct), plain_gradients = expected
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    assert int(correct) == int(plain_correct) > 0
    for a, b in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("small", "tokens", "logits"),
    [(2**22, 99, 2**26), (0, B * 3, 2**26), (0, B * 3, B * 3 * 40), (0, B, B), (0, B * T, B * T)],
)
def test_pieces_of_any_size_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, small: int, tokens: int, logits: int
) -> None:
    monkeypatch.setattr(module, "_SMALL", small)
    monkeypatch.setattr(module, "_TOKENS_PER_BLOCK", {"cpu": tokens})
    monkeypatch.setattr(module, "_MAX_LOGITS", logits)
    x = inputs()
    both = (jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True)) for f in (summed, plain))
    compare(*(f(*x) for f in both))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
@pytest.mark.parametrize("pieces", [False, True])
def test_devices_share_it(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int], pieces: bool
) -> None:
    if pieces:
        monkeypatch.setattr(module, "_SMALL", 0)
        monkeypatch.setattr(module, "_TOKENS_PER_BLOCK", {"cpu": 4})
        monkeypatch.setattr(module, "_MAX_LOGITS", 4 * 7)
    x = inputs()
    expected = jax.value_and_grad(plain, (0, 1), has_aux=True)(*x)
    with jax.set_mesh(make_mesh(MeshConfig(*sizes))):
        compare(jax.jit(jax.value_and_grad(summed, (0, 1), has_aux=True))(*x), expected)


def test_tokens_without_loss_cost_nothing_and_a_frozen_kernel_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SMALL", 0)
    monkeypatch.setattr(module, "_TOKENS_PER_BLOCK", {"cpu": B})
    hidden, kernel, targets, weights = inputs()
    order = jnp.argsort(weights == 0, axis=1, stable=True)
    most = int(jnp.max(jnp.sum(weights > 0, axis=1)))
    assert most < T
    # What is not looked at may be anything.
    broken = hidden.at[jnp.arange(B)[:, None], order[:, most:]].set(jnp.nan)
    loss, _ = summed(broken, kernel, targets, weights)
    np.testing.assert_allclose(loss, plain(hidden, kernel, targets, weights)[0], rtol=1e-6)

    def products(trainable: tuple[int, ...]) -> int:
        grad = jax.jit(jax.grad(lambda *x: summed(*x)[0], trainable))
        text = grad.lower(hidden, kernel, targets, weights).as_text()
        return text.count("stablehlo.dot_general")

    assert products((0,)) == 3
    assert products((0, 1)) == 4


def test_bfloat16_is_summed_in_float32() -> None:
    hidden, kernel, targets, weights = inputs()
    low, _ = summed(hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), targets, weights)
    rounded = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (hidden, kernel))
    np.testing.assert_allclose(low, plain(*rounded, targets, weights)[0], rtol=1e-6)
