"""The engine's thread: readiness, the queue, time, failures."""

from __future__ import annotations

import threading
from typing import Any

import openai
import pytest

import qa_jax
from qa_jax.generate import Engine
from tests.serve.server import running, user, wait_until

BODY: dict[str, Any] = {"model": "tiny", "messages": [user("hello")], "max_tokens": 3}


def own_engine(model: qa_jax.LoadedModel, **settings: Any) -> qa_jax.LoadedModel:
    engine = Engine(model.config, model.params, capacity=448, **settings)
    return qa_jax.LoadedModel(
        model.config, model.params, model.processor, model.default_sampling, engine
    )


def test_ready_after_everything_is_compiled(
    served_model: qa_jax.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = own_engine(served_model, num_slots=1)
    compiled, may_go_on = list[int](), threading.Event()

    def compile_one(*_: Any, **__: Any) -> None:
        compiled.append(1)
        may_go_on.wait(60)

    monkeypatch.setattr(model.engine, "_compile", compile_one)
    with running(model, warm_up=True) as loading:
        client = loading.client()
        probe = client.with_options(base_url=loading.url)
        wait_until(lambda: compiled)
        with pytest.raises(openai.InternalServerError):
            probe.get("/ready", cast_to=str)
        with pytest.raises(openai.InternalServerError, match="the model is loading"):
            client.chat.completions.create(**BODY)
        may_go_on.set()
        runner = loading.app.service.models["tiny"].runner
        wait_until(lambda: runner.is_ready)
        assert probe.get("/ready", cast_to=str) == ""
        assert len(compiled) == len(list(model.engine.compilations()))


def test_a_full_queue_is_429(served_model: qa_jax.LoadedModel) -> None:
    model = own_engine(served_model, num_slots=1)
    with running(model, max_queue=2) as small:
        client, runner = small.client(), small.app.service.models["tiny"].runner
        long = {
            **BODY,
            "max_tokens": 300,
            "n": 3,
            "stream": True,
            "extra_body": {"ignore_eos": True},
        }
        with client.chat.completions.create(**long) as stream:
            next(iter(stream))
            # The first piece names the role: it comes before the first answer has its slot.
            wait_until(lambda: (runner.num_running, runner.num_waiting) == (1, 2))
            with pytest.raises(openai.RateLimitError, match="2 answers are waiting") as caught:
                client.chat.completions.create(**BODY)
            assert caught.value.response.headers["retry-after"] == "1"
        wait_until(lambda: runner.num_running + runner.num_waiting == 0)
        assert client.chat.completions.create(**BODY).choices


def test_an_answer_that_takes_too_long(served_model: qa_jax.LoadedModel) -> None:
    model = own_engine(served_model, num_slots=1)
    with running(model, request_seconds=0.05) as hurried:
        client, runner = hurried.client(), hurried.app.service.models["tiny"].runner
        long = {**BODY, "max_tokens": 300, "extra_body": {"ignore_eos": True}}
        with pytest.raises(openai.InternalServerError, match="no answer in 0.05 s"):
            client.chat.completions.create(**long)
        with pytest.raises(openai.APIError, match="no answer in 0.05 s"):
            list(client.chat.completions.create(**long, stream=True))
        wait_until(lambda: runner.num_running == 0)


def test_an_engine_that_fails_goes_on(
    served_model: qa_jax.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = own_engine(served_model, num_slots=1)
    with running(model) as failing:
        client = failing.client()
        expected = client.chat.completions.create(**BODY, temperature=0).choices[0].message
        decode, failures = model.engine.programs.decode, [1]

        def fail_once(*args: Any, **static: Any) -> Any:
            if failures:
                failures.pop()
                decode(*args, **static)  # the slots are donated
                raise RuntimeError("out of memory")
            return decode(*args, **static)

        monkeypatch.setattr(model.engine.programs, "decode", fail_once)
        with pytest.raises(openai.InternalServerError, match="the engine failed; try again"):
            client.chat.completions.create(**BODY, temperature=0)
        again = client.chat.completions.create(**BODY, temperature=0).choices[0].message
        assert again == expected
