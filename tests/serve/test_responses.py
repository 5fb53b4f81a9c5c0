"""Bodies of responses against OpenAI's specification, of which its client's types are made."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
from openai.types import Completion, Model
from openai.types.audio import Transcription, TranscriptionVerbose, TranslationVerbose
from openai.types.audio.transcription_stream_event import TranscriptionStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject

from tests.conftest import make_waveform
from tests.serve.server import input_audio, user
from tests.serve.test_transcriptions import LONG, file_of

VLLM = {"stop_reason", "root", "parent", "max_model_len", "permission", "input_modalities", "task"}
"""Fields that vLLM adds."""

CHAT = {
    "model": "tiny",
    "messages": [user(input_audio(make_waveform(0.5)), "what?")],
    "max_tokens": 6,
    "logprobs": True,
    "top_logprobs": 2,
}
RAW = {"model": "tiny", "prompt": "hello", "logprobs": 2}


def extras(value: Any) -> set[str]:
    """Names of fields that a type does not have, anywhere in it."""
    if isinstance(value, pydantic.BaseModel):
        inner = [extras(getattr(value, name)) for name in type(value).model_fields]
        return set(value.model_extra or {}).union(*inner)
    if isinstance(value, list):
        return set().union(*map(extras, value))
    return set()


def check(kind: Any, raw: Any) -> Any:
    """A body as its type, strictly."""
    found = pydantic.TypeAdapter(kind).validate_json(json.dumps(raw), strict=True)
    assert extras(found) <= VLLM
    return found


def post(client: openai.OpenAI, path: str, body: dict[str, Any]) -> Any:
    return client.post(path, cast_to=object, body=body)


def events(client: openai.OpenAI, path: str, body: dict[str, Any]) -> list[Any]:
    """A stream's events, which end in [DONE]."""
    raw = client.post(path, cast_to=str, body={**body, "stream": True})
    found = raw.split("\n\n")
    assert found[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in found[:-1])
    return [json.loads(line.removeprefix("data: ")) for line in found[:-2]]


def test_chat(client: openai.OpenAI) -> None:
    check(ChatCompletion, post(client, "/chat/completions", CHAT))
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(client, "/chat/completions", {**CHAT, "stream_options": options})
    found = [check(ChatCompletionChunk, chunk) for chunk in chunks]
    assert len({(c.id, c.created, c.model) for c in found}) == 1
    assert found[-1].usage is not None and found[-1].choices == []


def test_completions(client: openai.OpenAI) -> None:
    check(Completion, post(client, "/completions", RAW))
    for chunk in events(client, "/completions", RAW)[:-1]:
        # In a stream the specification has an empty reason, the client's type has none.
        (choice,) = chunk["choices"]
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        check(Completion, chunk)


def test_models(client: openai.OpenAI) -> None:
    raw: Any = client.get("/models", cast_to=object)
    assert raw["object"] == "list"
    for card in raw["data"]:
        check(Model, card)


@pytest.mark.parametrize(
    ("path", "form", "kind"),
    [
        ("transcriptions", "json", Transcription),
        ("transcriptions", "verbose_json", TranscriptionVerbose),
        ("translations", "verbose_json", TranslationVerbose),
    ],
)
def test_speech(client: openai.OpenAI, path: str, form: str, kind: Any) -> None:
    raw: Any = client.post(
        f"/audio/{path}",
        cast_to=object,
        body={"model": "tiny", "response_format": form, "max_tokens": 6},
        files={"file": file_of(LONG)},
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    if kind is TranslationVerbose:
        raw.pop("usage")  # which only transcriptions have
    check(kind, raw)


def test_speech_in_parts(client: openai.OpenAI) -> None:
    raw = client.post(
        "/audio/transcriptions",
        cast_to=str,
        body={"stream": "true", "max_tokens": 6, "timestamp_granularities[]": "segment"},
        files={"file": file_of(LONG)},
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    found = [json.loads(line.removeprefix("data: ")) for line in raw.split("\n\n")[:-1]]
    kinds = {check(TranscriptionStreamEvent, event).type for event in found}
    assert len(kinds) == 3


def test_errors(client: openai.OpenAI) -> None:
    for change in ({"n": 0}, {"model": "other"}, {"tools": [1]}):
        with pytest.raises(openai.APIStatusError) as caught:
            post(client, "/chat/completions", {**CHAT, **change})
        raw = caught.value.response.json()
        assert set(raw) == {"error"}
        check(ErrorObject, {"code": None, **raw["error"]})
