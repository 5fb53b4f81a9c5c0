"""Speech endpoints, through OpenAI's client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import openai
import pytest

import qa_jax
from qa_jax.generate.transcripts import to_srt, to_vtt
from tests.conftest import make_waveform
from tests.serve.raw import post, request
from tests.serve.server import Running, pcm, running, wav_bytes

LONG = pcm(np.concatenate([make_waveform(0.7, i) * (0.2 + i % 3) for i in range(6)]) * 0.2)


def file_of(waveform: np.ndarray, kind: str = "FLAC") -> tuple[str, bytes]:
    return f"clip.{kind.lower()}", wav_bytes(waveform, kind)


@pytest.fixture(scope="module")
def transcript(served_model: qa_jax.LoadedModel, server: Running) -> Any:
    """Of the Python interface."""
    engine = qa_jax.generate.Engine(served_model.config, served_model.params, num_slots=1)
    own = qa_jax.LoadedModel(
        served_model.config,
        served_model.params,
        served_model.processor,
        served_model.default_sampling,
        engine,
    )
    return own.transcribe((LONG, 16_000), window_seconds=1.0, max_new_tokens=8)


def transcribe(client: openai.OpenAI, waveform: np.ndarray = LONG, **settings: Any) -> Any:
    settings = {"model": "tiny", "extra_body": {"max_tokens": 8}, **settings}
    return client.audio.transcriptions.create(file=file_of(waveform), **settings)


def test_windows_are_answered_as_alone(client: openai.OpenAI, transcript: Any) -> None:
    assert len(transcript.segments) > 4
    found = transcribe(client)
    assert found.text == transcript.text
    assert found.usage.seconds == 5
    verbose = transcribe(client, response_format="verbose_json", language="en")
    assert (verbose.text, verbose.language, verbose.duration) == (transcript.text, "en", 4.2)
    assert verbose.segments[0].start == 0
    assert verbose.segments[-1].end == LONG.size / 16_000
    for a, b, own in zip(verbose.segments, verbose.segments[1:], transcript.segments, strict=False):
        assert a.end == b.start
        assert (a.start, a.end, a.text) == (own.start, own.end, own.text)
        assert a.tokens == own.answer.tokens
        assert a.avg_logprob < 0


def test_windows_of_a_clip_leave_room_for_others(
    server: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more of them are in the queue than there are slots."""
    runner = server.app.service.models["tiny"].runner
    answer, asked, most = runner.answer, 0, 0

    @asynccontextmanager
    async def counted(*args: Any) -> AsyncIterator[Any]:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        async with answer(*args) as group:
            yield group
        asked -= 1

    monkeypatch.setattr(runner, "answer", counted)
    transcribe(client)
    assert most == runner.engine.num_slots == 4


def test_subtitles_and_text(client: openai.OpenAI, transcript: Any) -> None:
    assert transcribe(client, response_format="text") == transcript.text + "\n"
    assert transcribe(client, response_format="srt") == to_srt(transcript.segments)
    assert transcribe(client, response_format="vtt") == to_vtt(transcript.segments)


def test_a_stream_of_windows(client: openai.OpenAI, transcript: Any) -> None:
    plain = list(transcribe(client, stream=True))
    assert {event.type for event in plain[:-1]} == {"transcript.text.delta"}
    assert "".join(event.delta for event in plain[:-1]) == plain[-1].text == transcript.text
    timed = list(transcribe(client, stream=True, timestamp_granularities=["segment"]))
    segments = [event for event in timed if event.type == "transcript.text.segment"]
    assert [(s.start, s.end) for s in segments] == [(s.start, s.end) for s in transcript.segments]


def test_translations_have_their_own_instruction(
    client: openai.OpenAI, served_model: qa_jax.LoadedModel
) -> None:
    found = client.audio.translations.create(
        model="tiny", file=file_of(LONG[:12_000]), extra_body={"max_tokens": 8}
    )
    expected = served_model.transcribe(
        (LONG[:12_000], 16_000), "Translate the speech into English.", max_new_tokens=8
    )
    assert found.text == expected.text


def test_the_base_model_needs_a_language(served_model: qa_jax.LoadedModel) -> None:
    with running(served_model, is_raw=True) as base:
        client = base.client()
        with pytest.raises(openai.BadRequestError, match="language: this model's prompt needs it"):
            transcribe(client, LONG[:12_000])
        found = transcribe(client, LONG[:12_000], language="zh")
        expected = served_model.transcribe(
            (LONG[:12_000], 16_000),
            "Detect the language and recognize the speech: <|zh|>",
            raw=True,
            max_new_tokens=8,
        )
        assert found.text == expected.text


@pytest.mark.parametrize(
    ("settings", "param", "told"),
    [
        ({"file": ("a.wav", b"nonsense")}, "a.wav", "not readable as audio"),
        ({"file": ("a.wav", wav_bytes(np.zeros(100)))}, "a.wav", "give no audio token"),
        ({"file": ("a.flac", wav_bytes(np.zeros(16_000 * 21), "FLAC"))}, "a.flac", "limit of 20 s"),
        ({"response_format": "xml"}, "response_format", "should be 'json'"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[0]", "'segment'"),
        ({"extra_body": {"hotwords": "x"}}, "hotwords", "unknown field"),
        ({"stream": True, "response_format": "srt"}, "stream", "only with"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ],
)
def test_what_is_wrong_is_named(
    client: openai.OpenAI, settings: dict[str, Any], param: str, told: str
) -> None:
    given = {"model": "tiny", "file": file_of(LONG), **settings}
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(**given)
    assert told in caught.value.message
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x"),
        (b"{}", "application/json"),
        (b"--x--", "multipart/form-data"),
        (
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--x--',
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_forms_that_are_none(server: Running, body: bytes, kind: str) -> None:
    sent = post(body, "/v1/audio/transcriptions", Content_Type=kind)
    assert request(server, sent, is_complete=False).startswith(b"HTTP/1.1 400")
