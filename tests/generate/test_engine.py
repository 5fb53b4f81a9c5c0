"""Generation: independent rows, greedy decoding, streaming, stopping."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import qa_jax
from qa_jax.config import SamplingConfig
from qa_jax.errors import InputError
from qa_jax.generate import Engine, Request, requests_of_batch
from tests.conftest import CLIP, make_waveform
from tests.generate.batches import batch_of
from tests.generate.requests import random_requests, random_settings

_compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **kwargs: _compiled.append(f"{event} {kwargs}")
)


def compile_events() -> list[str]:
    """Programs built so far, by XLA or from the persistent cache."""
    return [event for event in _compiled if "backend_compile" in event]


def test_outputs_do_not_depend_on_other_rows(model: qa_jax.LoadedModel) -> None:
    settings = dict(max_new_tokens=40, temperature=0.0, repetition_penalty=1.3, stop_ids=())
    together = model.generate(batch_of(model, [0, 1, 2]), **settings)
    assert [len(ids) for ids in together] == [40] * 3
    for i in range(3):
        assert model.generate(batch_of(model, [i]), **settings) == [together[i]]


def test_greedy_decoding_is_the_argmax_of_the_logits(model: qa_jax.LoadedModel) -> None:
    """Each token is the argmax after all before it, recomputed without a cache."""
    batch = batch_of(model, [0])
    ids = model.generate(batch, max_new_tokens=6, temperature=0.0, stop_ids=())[0]
    for i, token in enumerate(ids):
        longer = dict(batch)
        longer["input_ids"] = np.concatenate([batch["input_ids"], [ids[:i]]], 1).astype(np.int32)
        longer["attention_mask"] = np.ones_like(longer["input_ids"])
        assert int(model.logits(longer)[0, -1].argmax()) == token


def test_streaming_equals_generate(model: qa_jax.LoadedModel) -> None:
    batch, settings = batch_of(model, [1]), dict(max_new_tokens=30, repetition_penalty=1.2)
    output = model.answer(batch, **settings)
    pieces = list(model.answer(batch, stream=True, **settings))
    assert "".join(pieces) == output and len(pieces) > 1


def test_stopping(model: qa_jax.LoadedModel) -> None:
    batch = batch_of(model, [0, 1])
    free = model.generate(batch, max_new_tokens=10, repetition_penalty=1.5, stop_ids=())
    stop = free[0][4]
    stopped = model.generate(batch, max_new_tokens=10, repetition_penalty=1.5, stop_ids=(stop,))
    assert stopped[0] == free[0][: free[0].index(stop) + 1]
    longer = model.generate(
        batch, max_new_tokens=10, repetition_penalty=1.5, stop_ids=(stop,), min_new_tokens=8
    )
    assert len(longer[0]) >= 8 and stop not in longer[0][:7]


def test_sampling_is_reproducible_with_a_seed(model: qa_jax.LoadedModel) -> None:
    batch = batch_of(model, [0, 1])
    settings = dict(max_new_tokens=12, temperature=1.5, stop_ids=())
    first = model.generate(batch, **settings, seed=1)
    assert first == model.generate(batch, **settings, seed=1)
    assert first != model.generate(batch, **settings, seed=2)


def conversation(model: qa_jax.LoadedModel, turns: int) -> list[Request]:
    """The requests of a conversation about a clip of 3 s, each a turn longer."""
    content = [{"type": "audio", "audio": (make_waveform(3), 16_000)}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    requests = []
    for i in range(turns):
        batch = model.require_processor().apply_chat_template(messages)
        sampling = SamplingConfig(max_new_tokens=5 + i % 3, top_logprobs=3)
        requests += requests_of_batch(batch, model.config, sampling)
        messages += [
            {"role": "assistant", "content": f"three plus {i}"},
            {"role": "user", "content": f"what is four plus {i}"},
        ]
    return requests


@pytest.mark.parametrize("num_slots", [1, 3])
def test_a_turn_prefills_only_what_is_new(model: qa_jax.LoadedModel, num_slots: int) -> None:
    """With the same tokens and log-probabilities as from nothing; with two slots and more, other
    prompts come in between, and their slots are used."""
    engine = Engine(model.config, model.params, num_slots=num_slots)
    fresh = Engine(model.config, model.params, num_slots=1, max_audio_bytes=0)
    others = iter(random_requests(model, 8, seed=3))
    for i, request in enumerate(conversation(model, 4)):
        fresh.forget()
        both = [engine.submit(request)], [fresh.submit(request)]
        engine.finish(both[0]), fresh.finish(both[1])
        ours, expected = both[0][0], both[1][0]
        assert expected.num_cached_tokens == 0
        assert ours.num_cached_tokens >= (100 if i else 0)
        for a, b in zip(ours.generated, expected.generated, strict=True):
            assert a.token == b.token and [t for t, _ in a.top] == [t for t, _ in b.top]
            np.testing.assert_allclose(a.logprob, b.logprob, atol=2e-5)
            np.testing.assert_allclose([p for _, p in a.top], [p for _, p in b.top], atol=2e-5)
        if num_slots > 1:
            engine.finish([engine.submit(next(others))])
    assert engine.audio_cache.misses < 20


def test_the_same_clip_with_many_questions_is_encoded_once(model: qa_jax.LoadedModel) -> None:
    engine = Engine(model.config, model.params, num_slots=4)
    clip = (make_waveform(3), 16_000)
    answers = []
    for question in ("what is three", "turn on", "a man or a woman?"):
        batch = model.require_processor()(f"{CLIP}{question}", clip)
        sampling = SamplingConfig(max_new_tokens=4)
        answers += [engine.submit(r) for r in requests_of_batch(batch, model.config, sampling)]
    engine.finish(answers)
    assert engine.audio_cache.misses == 1
    assert [a.num_cached_tokens > 70 for a in answers] == [False, True, True]


def test_nothing_compiles_after_the_warm_up(tiny_checkpoint: Path) -> None:
    """A conversation of 50 turns, with other sampling in each, and clips of other lengths."""
    model = qa_jax.load(tiny_checkpoint, num_slots=2, capacity=448)
    model.engine.warm_up()
    rng = np.random.default_rng(0)
    messages: list[dict[str, Any]] = []
    sizes: list[float] = [0.3, 4, 2]
    built = len(compile_events())
    for turn in range(50):
        if turn % 4 == 0:  # the context is full
            messages = []
        content: list[dict[str, Any]] = [{"type": "text", "text": f"what is {turn}"}]
        if sizes and turn % 3 == 0:
            content.append({"type": "audio", "audio": (make_waveform(sizes.pop()), 16_000)})
        messages.append({"role": "user", "content": content})
        settings = dataclasses.asdict(random_settings(rng))
        text = model.chat(messages, **settings)
        messages.append({"role": "assistant", "content": text})
    assert compile_events()[built:] == []


def test_an_int8_cache_is_close(model: qa_jax.LoadedModel) -> None:
    requests = conversation(model, 2)
    exact, rounded = (
        Engine(model.config, model.params, num_slots=1, cache_dtype=dtype)
        for dtype in (None, "int8")
    )
    for engine in (exact, rounded):
        engine.finish(answers := [engine.submit(request) for request in requests])
        engine.found = [info.logprob for a in answers for info in a.generated[:1]]  # type: ignore[attr-defined]
    difference = np.abs(np.subtract(exact.found, rounded.found))  # type: ignore[attr-defined]
    assert 0 < difference.max() < 0.02


@pytest.mark.parametrize(("pause", "pauses"), [(0.0, False), (1e9, True)])
def test_streams_pause_for_prompts_only_so_long(
    model: qa_jax.LoadedModel, pause: float, pauses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qa_jax.generate.engine._PAUSE_SECONDS", pause)
    engine = Engine(model.config, model.params, num_slots=3)
    sampling = SamplingConfig(max_new_tokens=100)
    batch = batch_of(model, [2, 0, 1])
    first, *others = requests_of_batch(batch, model.config, sampling)
    stream = engine.submit(first)
    while not stream.tokens:
        engine.step()
    waiting, before = [engine.submit(request) for request in others], len(stream.tokens)
    engine.step()
    assert not waiting[1].tokens  # the second prompt of the two is not prefilled yet
    assert (len(stream.tokens) == before) == pauses
    engine.finish([stream, *waiting])


def test_requests_that_no_slot_can_hold(model: qa_jax.LoadedModel) -> None:
    engine = Engine(model.config, model.params, num_slots=1, capacity=128)
    request = requests_of_batch(
        batch_of(model, [2]), model.config, SamplingConfig(max_new_tokens=128)
    )[0]
    with pytest.raises(InputError, match="a slot of this engine has 128"):
        engine.submit(request)
    assert engine.num_waiting() == 0


def test_decoding_does_not_copy_the_cache(tiny_checkpoint: Path) -> None:
    """What `load` compiles: temporaries are a fraction of the cache, in one slot and in all."""
    model = qa_jax.load(tiny_checkpoint, num_slots=4, capacity=8192)
    state = model.engine._abstract_state()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.cache))
    for rows in (np.zeros(1, np.int32), None):
        active, steps, early = np.zeros(4, bool), np.int32(0), np.bool_(False)
        program = model.engine.programs.decode.compiled(
            model.params, state, rows, active, steps, early, window=256
        )
        assert program.memory_analysis().temp_size_in_bytes < size / 4


@pytest.mark.parametrize("rows", [1, 8])
def test_prefill_does_not_copy_the_cache(model: qa_jax.LoadedModel, rows: int) -> None:
    """A copy for each row and layer made grouped prompts a hundred times slower."""
    engine = Engine(model.config, model.params, num_slots=64, capacity=4096)
    state, prompts = engine._abstract_state(), engine._prompts([], rows, 64)
    program = engine.programs.prefill.compiled(model.params, state, prompts, window=0)
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.cache))
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < cache / 4
