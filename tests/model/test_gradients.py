"""Gradients in the dtype of the parameter, whatever the activations' dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import MeshConfig
from qa_jax.model.gradients import (
    TPU_TILE_ROWS,
    contract,
    convolve,
    embed,
    expand,
    materialize_cotangent,
    materialize_on_tpu,
    matmul,
)
from qa_jax.parallel import make_mesh


@pytest.mark.parametrize("repeats", [1, 1040, 65_536])
def test_embedding_gradient_is_summed_in_float32(repeats: int) -> None:
    """A token's gradient is a sum over its occurrences: in bfloat16 it stops growing."""
    tokens = jnp.zeros((8, max(1, repeats // 8)), jnp.int32)
    table = jnp.zeros((16, 8), jnp.float32)
    d_out = jax.random.uniform(jax.random.key(0), (*tokens.shape, 8)).astype(jnp.bfloat16)

    def gradient(table: jax.Array, dtype: str) -> np.ndarray:
        _, vjp = jax.vjp(lambda t: embed(t, tokens, jnp.bfloat16), table.astype(dtype))
        return np.asarray(vjp(d_out)[0], np.float64)[0]

    expected = np.asarray(d_out, np.float64).sum(axis=(0, 1))
    np.testing.assert_allclose(gradient(table, "float32"), expected, rtol=1e-5)
    # A table in bfloat16 gets the same sum, rounded once.
    np.testing.assert_allclose(gradient(table, "bfloat16"), expected, rtol=2**-8)


@pytest.mark.eight_devices
def test_embedding_gradient_on_a_mesh() -> None:
    tokens = jax.random.randint(jax.random.key(0), (8, 64), 0, 16)
    table = jax.random.normal(jax.random.key(1), (16, 8))

    def loss(table: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(embed(table, tokens, jnp.float32)))

    expected = jax.grad(loss)(table)
    for sizes in ((1, 8, 1), (2, 2, 2)):
        with jax.set_mesh(make_mesh(MeshConfig(*sizes))):
            np.testing.assert_allclose(jax.jit(jax.grad(loss))(table), expected, rtol=1e-5)


def _cases() -> dict[str, tuple[Callable[..., jax.Array], tuple[int, ...], tuple[int, ...]]]:
    return {
        "heads out": (lambda x, w: matmul(x, w, 1), (2, 9, 6), (6, 4, 3)),
        "heads in": (lambda x, w: matmul(x, w, 2), (2, 9, 4, 3), (4, 3, 6)),
        "stride 1": (lambda x, w: convolve(x, w, 1), (2, 9, 6), (3, 6, 5)),
        "stride 2": (lambda x, w: convolve(x, w, 2), (2, 9, 6), (3, 6, 5)),
        "bias": (lambda x, w: x + expand(w, x.shape, x.dtype), (2, 9, 4, 3), (4, 3)),
    }


@pytest.mark.parametrize("name", _cases())
def test_gradients_are_those_of_autodiff(name: str) -> None:
    """Equal to autodiff in float64; of bfloat16 activations, far nearer to it than bfloat16."""
    function, x_shape, w_shape = _cases()[name]
    rng = np.random.default_rng(0)
    x, w, d = (
        jnp.asarray(rng.standard_normal(s), jnp.bfloat16)
        for s in (x_shape, w_shape, jax.eval_shape(function, *_structs(x_shape, w_shape)).shape)
    )

    def gradients(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, vjp = jax.vjp(function, x, w)
        return vjp(d.astype(out.dtype))

    with jax.enable_x64(True):
        exact = gradients(x.astype(jnp.float64), w.astype(jnp.float64))
    d_x, d_w = gradients(x, w.astype(jnp.float32))
    assert (d_x.dtype, d_w.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(d_w, exact[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_x.astype(jnp.float32), exact[0], rtol=2**-6, atol=2**-6)


def _structs(*shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]


@pytest.mark.parametrize(
    ("platform", "cotangents", "norms"), [("cpu", 1, 0), ("gpu", 0, 0), ("tpu", 1, 2)]
)
def test_what_is_materialized(
    monkeypatch: pytest.MonkeyPatch, platform: str, cotangents: int, norms: int
) -> None:
    """Cotangents of products on CPUs and TPUs; values and cotangents of norms on TPUs."""
    monkeypatch.setattr("qa_jax.model.gradients.current_platform", lambda: platform)

    def barriers(function: Callable[[jax.Array], jax.Array]) -> int:
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(function(x))))
        return str(jax.make_jaxpr(gradient)(jnp.ones(3))).count("optimization_barrier")

    assert barriers(lambda x: materialize_cotangent(2 * x)) == cotangents
    assert barriers(lambda x: materialize_on_tpu(2 * x)) == norms


@pytest.mark.parametrize("lead", [(), (1, 1), (3, 1), (2, 4), (3, 5)])
def test_few_rows_fill_a_tile_on_tpus(
    lead: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values, from a product of at least a tile's rows."""
    x, kernel = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(*lead, 2, 3), (2, 3, 4, 5)])
    )
    expected = jnp.tensordot(x, kernel, 2)
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr("qa_jax.model.gradients.current_platform", lambda p=platform: p)
        y = contract(x, kernel, 2)
        assert y.shape == (*lead, 4, 5)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
        products = [
            e
            for e in jax.make_jaxpr(lambda x: contract(x, kernel, 2))(x).eqns
            if e.primitive.name == "dot_general"
        ]
        least = TPU_TILE_ROWS if platform == "tpu" else 0
        assert products[0].outvars[0].aval.size // 20 == max(math.prod(lead), least)
