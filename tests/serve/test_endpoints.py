"""Text endpoints, through OpenAI's client."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jax
import openai
import pytest

import qa_jax
from qa_jax.data.chat import PLACEHOLDER
from tests.conftest import make_waveform
from tests.lora.adapters import save_random_adapter
from tests.serve.server import Running, input_audio, pcm, running, user

CLIP, OTHER = pcm(make_waveform(0.5, 1)), pcm(make_waveform(0.8, 2))


def expected(model: qa_jax.LoadedModel, *parts: Any, **settings: Any) -> str:
    """The answer of the Python interface to one user message."""
    content = [
        {"type": "text", "text": p}
        if isinstance(p, str)
        else {"type": "audio", "audio": (p, 16_000)}
        for p in parts
    ]
    return model.chat([{"role": "user", "content": content}], **settings)


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> qa_jax.LoadedModel:
    """The same model with an engine of its own."""
    return qa_jax.load(tiny_checkpoint, num_slots=1, capacity=448)


@pytest.mark.parametrize(
    "parts",
    [("hello",), (CLIP,), (CLIP, "what is this?"), ("what is this?", CLIP), (CLIP, OTHER, "two")],
    ids=["text", "voice chat", "audio first", "text first", "two clips"],
)
def test_answers_are_those_of_the_python_interface(
    client: openai.OpenAI, reference: qa_jax.LoadedModel, parts: tuple[Any, ...]
) -> None:
    sent = [p if isinstance(p, str) else input_audio(p) for p in parts]
    found = client.chat.completions.create(
        model="tiny", messages=[user(*sent)], max_tokens=12, temperature=0
    )
    choice = found.choices[0]
    assert choice.message.content == expected(reference, *parts, max_new_tokens=12)
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert found.object == "chat.completion"
    assert found.id.startswith("chatcmpl-")
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.completion_tokens <= 12


def test_a_stream_is_the_whole_in_parts(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = dict(
        model="tiny",
        messages=[user(input_audio(CLIP), "again")],
        max_tokens=20,
        seed=3,
        temperature=1.0,
        n=2,
        logprobs=True,
        top_logprobs=2,
    )
    whole = client.chat.completions.create(**settings)
    chunks = list(
        client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
    )
    assert [c.delta.role for c in chunks[0].choices] == ["assistant", "assistant"]
    assert not chunks[-1].choices
    assert whole.usage is not None and chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    for choice in whole.choices:
        own = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert own[-1].finish_reason == choice.finish_reason
        assert [c.finish_reason for c in own[:-1]] == [None] * (len(own) - 1)
        tokens = [t for c in own if c.logprobs for t in c.logprobs.content or []]
        assert choice.logprobs is not None
        assert tokens == choice.logprobs.content
        raw = b"".join(bytes(t.bytes or []) for t in tokens if not t.token.startswith("<|"))
        assert raw.decode("utf-8", "replace") == choice.message.content
        assert all(len(t.top_logprobs) == 2 and t.logprob <= 0 for t in tokens)
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_a_seed_repeats_an_answer_and_none_does_not(client: openai.OpenAI) -> None:
    ask = functools.partial(
        client.chat.completions.create,
        model="tiny",
        messages=[user("tell me")],
        max_tokens=24,
        temperature=1.0,
    )
    texts = [ask(seed=7).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]
    assert ask().choices[0].message.content != ask().choices[0].message.content


def test_stops(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = dict(model="tiny", messages=[user("go on")], max_tokens=30)
    whole = client.chat.completions.create(**settings, logprobs=True)
    text, logprobs = whole.choices[0].message.content or "", whole.choices[0].logprobs
    assert logprobs is not None
    assert len(text) > 4
    cut = client.chat.completions.create(**settings, stop=[text[3]]).choices[0]
    assert cut.message.content == text[: text.index(text[3])]
    assert (cut.finish_reason, cut.model_extra) == ("stop", {"stop_reason": text[3]})
    limited = client.chat.completions.create(**{**settings, "max_tokens": 2})
    assert limited.choices[0].finish_reason == "length"
    assert limited.usage is not None
    assert limited.usage.completion_tokens == 2


def test_only_ids_of_the_request_are_told_as_stops(client: openai.OpenAI) -> None:
    (end,), (word, *_) = (reference_ids(client, text) for text in ("<|im_end|>", "hello"))
    for token, extra, told in ((end, {}, None), (word, {"stop_token_ids": [word]}, word)):
        found = client.chat.completions.create(
            model="tiny",
            messages=[user("go on")],
            max_tokens=5,
            temperature=0,
            logit_bias={str(token): 100},
            extra_body=extra,
        ).choices[0]
        assert (found.finish_reason, found.model_extra) == ("stop", {"stop_reason": told})


def test_ignoring_the_end(client: openai.OpenAI) -> None:
    """As load generators ask for answers of a given length."""
    found = client.chat.completions.create(
        model="tiny",
        messages=[user("hello")],
        max_tokens=40,
        temperature=1.5,
        extra_body={"ignore_eos": True, "top_k": -1},
    )
    assert found.usage is not None
    assert found.usage.completion_tokens == 40


def test_a_conversation_is_computed_once(server: Running, client: openai.OpenAI) -> None:
    messages: list[Any] = [user(input_audio(OTHER), "what is it?")]
    first = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    answer = first.choices[0].message
    messages += [answer.model_dump(), user("and now?")]
    second = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    assert first.usage is not None and second.usage is not None
    details = second.usage.prompt_tokens_details
    assert details is not None
    assert (details.cached_tokens or 0) >= first.usage.prompt_tokens - 1
    assert details.audio_tokens == 20
    text = client.with_options(base_url=server.url).get("/metrics", cast_to=str)
    hits = re.search(r"prefix_cache_hits_total\{\S+ (\S+)", text)
    assert hits is not None and float(hits[1]) >= (details.cached_tokens or 0)


def test_raw_completions(client: openai.OpenAI, reference: qa_jax.LoadedModel) -> None:
    prompt = f"{PLACEHOLDER}recognize the speech:"
    found = client.completions.create(
        model="tiny",
        prompt=prompt,
        temperature=0,
        logprobs=3,
        extra_body={"audio": [input_audio(CLIP)]},
    )
    batch = reference.require_processor()(prompt, (CLIP, 16_000))
    assert found.choices[0].text == reference.answer(batch, max_new_tokens=16)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs or []) == 16
    assert logprobs.text_offset == [
        len("".join(logprobs.tokens[:i])) for i in range(len(logprobs.tokens))
    ]


def test_completions_of_ids_and_of_several_prompts(client: openai.OpenAI) -> None:
    tokens = reference_ids(client, "good morning")
    texts = [
        client.completions.create(model="tiny", prompt=p, temperature=0).choices[0].text
        for p in ("good morning", tokens)
    ]
    assert texts[0] == texts[1]
    both = client.completions.create(model="tiny", prompt=["good morning", "hello"], temperature=0)
    assert [c.index for c in both.choices] == [0, 1]
    assert both.choices[0].text == texts[0]


def reference_ids(client: openai.OpenAI, text: str) -> list[int]:
    base = str(client.base_url).removesuffix("v1/")
    root = client.with_options(base_url=base)
    found: Any = root.post("tokenize", cast_to=object, body={"prompt": text})
    back: Any = root.post("detokenize", cast_to=object, body={"tokens": found["tokens"]})
    assert back == {"prompt": text}
    assert found["count"] == len(found["tokens"])
    return found["tokens"]


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "qa_jax"
    with pytest.raises(openai.NotFoundError, match="did you mean tiny"):
        client.models.retrieve("tini")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"temprature": 1}, "temprature", "unknown field; did you mean temperature"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"temperature": "hot"}, "temperature", "valid number"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 10**6}, "max_tokens", "over the limit of 2048"),
    ({"n": 99}, "n", "the limit is 16"),
    ({"top_k": 2**31}, "top_k", "less than 2147483648"),
    ({"logit_bias": {"9": 1e30}}, "logit_bias", "less than or equal to 100"),
    ({"stop_token_ids": [2**70]}, "stop_token_ids[0]", "less than"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs: true"),
    ({"stream_options": {}}, "stream_options", "needs stream: true"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "not token ids"),
    ({"logit_bias": {"100000": 1}}, "logit_bias", "beyond the vocabulary"),
    ({"tools": [{"type": "function"}]}, "tools", "is not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "should be 'text'"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "unknown role 'robot'"),
    ({"messages": [{"role": "user", "content": "<|AUDIO|>"}]}, "messages", "contains <|AUDIO|>"),
    (
        {"messages": [user({"type": "image_url", "image_url": {"url": "data:,x"}})]},
        "messages[0].content[0]",
        "part of type 'image_url'",
    ),
    (
        {"messages": [user({"type": "audio", "audio": "/etc/passwd"})]},
        "messages[0].content[0]",
        "part of type 'audio'",
    ),
    (
        {"messages": [user({"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}})]},
        "messages[0].content[0].audio_url",
        "not a data: or https: URL",
    ),
    (
        {"messages": [user({"type": "audio_url", "audio_url": {"url": "/etc/passwd"}})]},
        "messages[0].content[0].audio_url",
        "not a data: or https: URL",
    ),
    (
        {"messages": [user({"type": "audio_url", "audio_url": {"url": "https://example.org/a"}})]},
        "messages[0].content[0].audio_url",
        "its host is none of",
    ),
    (
        {
            "messages": [
                user({"type": "input_audio", "input_audio": {"data": "%%", "format": "wav"}})
            ]
        },
        "messages[0].content[0].input_audio",
        "not base64",
    ),
    (
        {"messages": [user({"type": "input_audio", "input_audio": {"data": "AAAA"}})]},
        "messages[0].content[0].input_audio",
        "not readable as audio",
    ),
    (
        {"messages": [user({"type": "input_audio", "input_audio": {"data": "AAAA", "rate": 1}})]},
        "messages[0].content[0].input_audio.rate",
        "unknown field",
    ),
    (
        {"messages": [user(*[input_audio(CLIP)] * 17)]},
        "messages[0].content[16]",
        "more than 16 clips",
    ),
]


@pytest.mark.parametrize(
    ("change", "param", "told"), WRONG, ids=[f"{w[1]}-{i}" for i, w in enumerate(WRONG)]
)
def test_what_is_wrong_is_named(
    client: openai.OpenAI, change: dict[str, Any], param: str, told: str
) -> None:
    body = {"model": "tiny", "messages": [user("hello")], "max_tokens": 4, **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", cast_to=object, body=body)
    assert told in caught.value.message
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_too_long_a_prompt(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="positions, a slot of this engine has 448"):
        client.chat.completions.create(model="tiny", messages=[user("word " * 500)], max_tokens=4)


def test_harmless_fields_are_told(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny",
        messages=[user("hello")],
        max_tokens=2,
        user="somebody",
        modalities=["text"],
        extra_body={"tools": None, "tool_choice": None, "ignore_eos": None},
    )
    assert raw.headers["x-ignored-fields"] == "modalities, tool_choice, tools, user"
    assert raw.parse().choices[0].message.content is not None


def test_base_models_take_raw_messages(served_model: qa_jax.LoadedModel) -> None:
    with running(served_model, is_raw=True) as base:
        client = base.client()
        asked = user(input_audio(CLIP), "recognize:")
        chat = client.chat.completions.create(model="tiny", messages=[asked], max_tokens=8)
        raw = client.completions.create(
            model="tiny",
            prompt=f"{PLACEHOLDER}recognize:",
            max_tokens=8,
            extra_body={"audio": [input_audio(CLIP)]},
        )
        assert chat.choices[0].message.content == raw.choices[0].text
        with pytest.raises(openai.BadRequestError, match="send one user message"):
            client.chat.completions.create(model="tiny", messages=[asked, asked])


def test_adapters_are_models(served_model: qa_jax.LoadedModel, tmp_path: Path) -> None:
    adapter = save_random_adapter(served_model, tmp_path / "adapter")
    own = served_model.with_adapter(adapter)
    leaves = zip(*map(jax.tree.leaves, (own.params, served_model.params)), strict=True)
    assert {a is b for a, b in leaves} == {True, False}
    with running(served_model, models={"tiny": served_model, "tuned": own}) as both:
        client = both.client()
        assert [m.id for m in client.models.list()] == ["tiny", "tuned"]
        texts = {
            name: client.chat.completions.create(
                model=name, messages=[user("hello")], max_tokens=12, temperature=0
            )
            .choices[0]
            .message.content
            for name in ("tiny", "tuned")
        }
        assert texts["tiny"] == expected(served_model, "hello", max_new_tokens=12)
        assert texts["tiny"] != texts["tuned"]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=[user("hello")])


def test_probes_and_metrics(server: Running, client: openai.OpenAI) -> None:
    root = client.with_options(base_url=server.url)
    client.chat.completions.create(model="tiny", messages=[user("hello")], max_tokens=3)
    text = root.get("/metrics", cast_to=str)
    for name in (
        'vllm:prompt_tokens_total{engine="0",model_name="tiny"}',
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"}',
        "vllm:kv_cache_usage_perc",
        "vllm:e2e_request_latency_seconds_sum",
    ):
        assert name in text, name
