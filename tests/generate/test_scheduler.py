"""A request's answer does not depend on what else the engine does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qa_jax
from qa_jax.config import MeshConfig
from qa_jax.generate import Answer, Engine, Request
from qa_jax.parallel import make_mesh
from tests.generate.requests import random_requests


def answer_in_any_order(engine: Engine, requests: list[Request], seed: int) -> Iterator[Answer]:
    """Requests arrive while others run, and every fifth is cancelled at some time."""
    rng = np.random.default_rng(seed)
    left, doomed, answers = list(requests), [], []
    while left or engine.num_running() or engine.num_waiting():
        for _ in range(min(len(left), int(rng.integers(0, 6)))):
            answers.append(engine.submit(left.pop(0)))
            if rng.random() < 0.2:
                doomed.append(answers[-1])
        if doomed and rng.random() < 0.3:
            engine.cancel(doomed.pop(0))
        engine.step()
    return iter(answers)


@pytest.fixture(scope="module")
def alone(model: qa_jax.LoadedModel) -> tuple[list[Request], list[Answer]]:
    """200 requests, each answered by an engine in which there is nothing else."""
    requests = random_requests(model, 200, seed=0)
    engine = Engine(model.config, model.params, num_slots=1, max_audio_bytes=0)
    answers = []
    for request in requests:
        engine.forget()
        answers.append(engine.submit(request))
        engine.finish(answers[-1:])
        assert answers[-1].num_cached_tokens == 0
    return requests, answers


@pytest.mark.parametrize("on_mesh", [False, True])
@pytest.mark.eight_devices
def test_200_requests_through_8_slots(
    model: qa_jax.LoadedModel,
    tiny_checkpoint: Path,
    alone: tuple[list[Request], list[Answer]],
    on_mesh: bool,
) -> None:
    mesh = make_mesh(MeshConfig(2, 2, 2)) if on_mesh else None
    params = qa_jax.load(tiny_checkpoint, mesh=mesh).params if on_mesh else model.params
    engine = Engine(model.config, params, mesh, num_slots=8)
    answers = list(answer_in_any_order(engine, alone[0], seed=1))
    reasons = [answer.finish_reason for answer in answers]
    assert len(answers) == 200 and 10 < reasons.count("cancelled") < 60
    assert reasons.count("stop") > 20 and reasons.count("length") > 20
    for answer, expected in zip(answers, alone[1], strict=True):
        if answer.finish_reason == "cancelled":
            assert answer.tokens == expected.tokens[: len(answer.tokens)]
        else:
            assert answer.tokens == expected.tokens
            np.testing.assert_allclose(
                [info.logprob for info in answer.generated],
                [info.logprob for info in expected.generated],
                atol=1e-4,
            )
    # Beginnings that requests share were computed once.
    assert sum(answer.num_cached_tokens > 50 for answer in answers) > 20


def test_cancelled_before_its_turn(model: qa_jax.LoadedModel) -> None:
    engine = Engine(model.config, model.params, num_slots=1)
    first, second, third = (engine.submit(r) for r in random_requests(model, 3, seed=2))
    engine.cancel(second)
    engine.finish([first, third])
    assert second.finish_reason == "cancelled" and not second.tokens
    assert first.tokens and third.tokens and engine.num_waiting() == 0
