"""Sampling settings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.config import SamplingConfig
from qa_jax.generate.sampling import apply_temperature_top_k_top_p, sample_token


def test_top_k_and_top_p() -> None:
    logits = jnp.log(jnp.array([[0.5, 0.2, 0.15, 0.1, 0.05]]))

    def kept(**settings: float) -> list[bool]:
        sampling = SamplingConfig(temperature=1.0, **settings)  # type: ignore[arg-type]
        return np.isfinite(apply_temperature_top_k_top_p(logits, sampling))[0].tolist()

    assert kept(top_k=2) == [True, True, False, False, False]
    assert kept(top_p=0.69) == [True, True, False, False, False]
    assert kept(top_p=0.71) == [True, True, True, False, False]
    assert kept(top_p=1e-6) == [True, False, False, False, False]
    np.testing.assert_allclose(
        apply_temperature_top_k_top_p(logits, SamplingConfig(temperature=2.0)), logits / 2
    )


def test_samples_follow_the_probabilities() -> None:
    logits = jnp.log(jnp.array([[0.6, 0.3, 0.1]]))
    keys = jax.random.split(jax.random.key(0), 4000)
    how = SamplingConfig(temperature=1.0)
    drawn = sample_token(jnp.repeat(logits, 4000, 0), None, jnp.int32(0), keys, how)
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.6, 0.3, 0.1], atol=0.03)


def test_repetition_penalty() -> None:
    logits = jnp.array([[2.0, -1.0, 1.9]])
    seen = jnp.array([[True, True, False]])
    how = SamplingConfig(repetition_penalty=1.25)
    keys = jax.random.split(jax.random.key(0), 1)
    assert int(sample_token(logits, seen, jnp.int32(0), keys, how)[0]) == 2
    assert int(sample_token(logits, seen & False, jnp.int32(0), keys, how)[0]) == 0
