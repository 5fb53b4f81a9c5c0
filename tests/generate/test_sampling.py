"""Sampling: settings as arrays over rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import SamplingConfig
from qa_jax.errors import InputError
from qa_jax.generate.sampling import NUM_CANDIDATES, RowSettings, Sampled, exclude, sample_tokens


@functools.partial(jax.jit, static_argnums=())
def _sample(logits, in_prompt, counts, step, settings):  # type: ignore[no-untyped-def]
    return sample_tokens(logits, in_prompt, counts, step, settings)


def sample(
    logits: jax.Array,
    settings: list[SamplingConfig],
    in_prompt: object = None,
    counts: object = None,
    step: int = 0,
) -> Sampled:
    prompt = jnp.zeros(logits.shape, bool) if in_prompt is None else jnp.array(in_prompt)
    answer = jnp.zeros(logits.shape, jnp.int32) if counts is None else jnp.array(counts)
    steps = jnp.full(len(logits), step, jnp.int32)
    return _sample(logits, prompt, answer, steps, RowSettings.of(settings))


def test_top_k_top_p_and_min_p() -> None:
    logits = jnp.log(jnp.array([[0.5, 0.2, 0.15, 0.1, 0.05]]))

    def kept(**settings: float) -> list[bool]:
        sampling = SamplingConfig(temperature=1.0, **settings)  # type: ignore[arg-type]
        return np.isfinite(exclude(logits, RowSettings.of([sampling])))[0].tolist()

    assert kept(top_k=2) == [True, True, False, False, False]
    assert kept(top_p=0.69) == [True, True, False, False, False]
    assert kept(top_p=0.71) == [True, True, True, False, False]
    assert kept(top_p=1e-6) == [True, False, False, False, False]
    assert kept(min_p=0.25) == [True, True, True, False, False]
    assert kept(top_k=4, top_p=0.73) == [True, True, False, False, False]
    assert kept() == [True] * 5


def test_rows_keep_their_own_settings() -> None:
    """A row that needs all tokens sorted does not change what its neighbours keep."""
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.standard_normal((4, 4 * NUM_CANDIDATES)), jnp.float32)
    settings = [
        SamplingConfig(temperature=1.0, top_p=0.99),
        SamplingConfig(temperature=1.0, top_k=3),
        SamplingConfig(temperature=1.0, top_k=NUM_CANDIDATES + 50),
        SamplingConfig(temperature=1.0),
    ]
    together = exclude(logits, RowSettings.of(settings))
    for i, one in enumerate(settings):
        alone = exclude(logits[i : i + 1], RowSettings.of([one]))
        np.testing.assert_array_equal(together[i], alone[0])
    counts = np.isfinite(together).sum(axis=1)
    assert counts[0] > NUM_CANDIDATES
    assert counts[1:].tolist() == [3, NUM_CANDIDATES + 50, 4 * NUM_CANDIDATES]


def test_samples_follow_the_probabilities() -> None:
    probs = np.array([0.6, 0.3, 0.1] + [0.0] * 400)
    probs[300], probs[0] = 0.2, 0.4
    logits = jnp.log(jnp.array(probs))[None]
    settings = [SamplingConfig(temperature=1.0, seed=i) for i in range(4000)]
    drawn = np.asarray(sample(jnp.repeat(logits, 4000, 0), settings).token)
    np.testing.assert_allclose(np.bincount(drawn, minlength=403) / 4000, probs, atol=0.03)


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    logits = jnp.array(np.random.default_rng(0).standard_normal((1, 300)), jnp.float32)
    how = [SamplingConfig(temperature=2.0, seed=s) for s in (5, 6, 5, 7)]
    together = sample(jnp.repeat(logits, 4, 0), how).token.tolist()
    assert together[0] == together[2] and len({*together}) == 3
    assert sample(logits, [how[3]]).token.tolist() == [together[3]]
    steps = [sample(logits, [how[0]], step=i).token.item() for i in range(6)]
    assert len({*steps}) > 3


def test_penalties_and_biases() -> None:
    logits = jnp.array([[2.0, -1.0, 1.9]])
    one = [[True, True, False]]
    how = SamplingConfig(repetition_penalty=1.25)
    assert sample(logits, [how], one).token.item() == 2
    assert sample(logits, [how]).token.item() == 0
    assert sample(logits, [how], counts=[[1, 0, 0]]).token.item() == 2  # of the answer, too
    present = SamplingConfig(presence_penalty=0.2)
    assert sample(logits, [present], one).token.item() == 0  # not of the prompt
    assert sample(logits, [present], counts=[[1, 0, 0]]).token.item() == 2
    often = SamplingConfig(frequency_penalty=0.03)
    assert sample(logits, [often], counts=[[3, 0, 0]]).token.item() == 0
    assert sample(logits, [often], counts=[[4, 0, 0]]).token.item() == 2
    bias = SamplingConfig(logit_bias=((1, 4.0),))
    assert sample(logits, [bias]).token.item() == 1


def test_stop_ids_wait_for_the_least_length() -> None:
    logits = jnp.array([[2.0, 1.0, 0.0]])
    how = SamplingConfig(min_new_tokens=3, stop_ids=(0,))
    assert [sample(logits, [how], step=i).token.item() for i in range(4)] == [1, 1, 1, 0]


def test_log_probabilities_are_those_of_the_model() -> None:
    logits = jnp.array([[2.0, 1.0, 0.0] * 10, [0.0, 3.0, 1.0] * 10])
    how = [SamplingConfig(temperature=0.1, top_k=1, top_logprobs=3, logit_bias=((0, -9.0),))]
    found = sample(logits, [*how, SamplingConfig()])
    expected = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    rows = np.arange(2)
    np.testing.assert_allclose(found.logprob, expected[rows, found.token], rtol=1e-6)
    np.testing.assert_allclose(found.top_logprobs[0, :3], expected[0, [0, 3, 6]], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(min_p=1.5), "min_p: 1.5"),
        (dict(presence_penalty=3.0), "presence_penalty: 3.0"),
        (dict(stop_ids=tuple(range(9))), "stop_ids: .*at most 8"),
        (dict(stop=("",)), "stop: .*not empty"),
        (dict(seed=-1), "seed: -1"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingConfig(**settings)
