"""The choice of the attention implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.config import MeshConfig
from qa_jax.model import AttentionMask
from qa_jax.model.attention import dot_product_attention
from qa_jax.parallel import make_mesh


def test_splash_is_used_where_supported() -> None:
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
