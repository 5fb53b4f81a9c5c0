"""Clips of requests: by uuid, by URL, and from nowhere else."""

from __future__ import annotations

import base64
import functools
import http.client
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import qa_jax
from qa_jax.config import num_audio_tokens, num_frames
from qa_jax.data.tokenizer import AUDIO
from qa_jax.data.windows import split_windows
from tests.conftest import make_waveform
from tests.serve.server import input_audio, pcm, running, user, wav_bytes
from tests.serve.test_endpoints import CLIP, OTHER


def test_a_clip_by_its_uuid(client: openai.OpenAI) -> None:
    part = {**input_audio(OTHER), "uuid": "clip-1"}
    settings: dict[str, Any] = dict(model="tiny", max_tokens=8)
    first = client.chat.completions.create(messages=[user(part)], **settings)
    named = {"type": "input_audio", "input_audio": None, "uuid": "clip-1"}
    again = client.chat.completions.create(messages=[user(named)], **settings)
    assert again.choices[0].message.content == first.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="no such clip is kept; send it again"):
        client.chat.completions.create(messages=[user({**named, "uuid": "clip-2"})], **settings)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server with a clip."""
    directory = tmp_path_factory.mktemp("web")
    (directory / "a.wav").write_bytes(wav_bytes(CLIP))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    web_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=web_server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web_server.server_port}"
    web_server.shutdown()


def test_clips_by_url(client: openai.OpenAI, web: str) -> None:
    data = base64.b64encode(wav_bytes(CLIP)).decode()
    texts = [
        client.chat.completions.create(
            model="tiny",
            messages=[user({"type": "audio_url", "audio_url": {"url": url}})],
            max_tokens=8,
        )
        .choices[0]
        .message.content
        for url in (f"{web}/a.wav", f"data:audio/wav;base64,{data}")
    ]
    assert texts[0] == texts[1]
    with pytest.raises(openai.BadRequestError, match="answers 404"):
        url = {"type": "audio_url", "audio_url": {"url": f"{web}/b.wav"}}
        client.chat.completions.create(model="tiny", messages=[user(url)])


FORBIDDEN = [
    "http://127.0.0.1/a.wav",
    "http://127.1/a.wav",
    "http://2130706433/a.wav",
    "http://0x7f000001/a.wav",
    "http://0.0.0.0/a.wav",
    "http://[::1]/a.wav",
    "http://[::ffff:127.0.0.1]/a.wav",
    "http://localhost/a.wav",
    "HTTP://LOCALHOST/a.wav",
    "http://169.254.169.254/latest/meta-data",
    "http://10.0.0.1/a.wav",
    "http://example.org@127.0.0.1/a.wav",
    "http://127.0.0.1#.example.org",
    "http://127.0.0.1\\.example.org/a.wav",
    "http://127.0.0.1?.example.org",
    "http://sub.example.org.evil.example/a.wav",
    "http://inside.example.org/a.wav",  # whose address is private
    "https://inside.example.org/a.wav",
    "//inside.example.org/a.wav",
    "ftp://sub.example.org/a.wav",
    "gopher://sub.example.org/a.wav",
    "file://sub.example.org/etc/passwd",
    "http:/127.0.0.1/a.wav",
]


def test_addresses_inside_are_not_asked(
    served_model: qa_jax.LoadedModel, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, asked = socket.getaddrinfo, list[object]()

    def private(host: object, *args: Any, **settings: Any) -> Any:
        if host == "inside.example.org":
            host = "127.0.0.1"
        return look_up(host, *args, **settings)  # type: ignore[arg-type]

    def connect(connection: http.client.HTTPConnection) -> None:
        asked.append(connection.host)
        raise OSError("not here")

    monkeypatch.setattr(socket, "getaddrinfo", private)
    monkeypatch.setattr(http.client.HTTPConnection, "connect", connect)
    with running(served_model, audio_hosts=("*.example.org",)) as strict:
        client = strict.client()
        for url in FORBIDDEN:
            part = {"type": "audio_url", "audio_url": {"url": url}}
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model="tiny", messages=[user(part)])
    assert asked == []


def test_a_long_clip_is_several_of_a_prompt(tiny_checkpoint: Path) -> None:
    """With text, in a raw prompt, and in one of ids: as far as the context goes."""
    settings: dict[str, Any] = {"num_slots": 1, "capacity": 1024, "long_audio": "window"}
    model = qa_jax.load(tiny_checkpoint, **settings)
    long = pcm(np.tile(make_waveform(2.0, 5), 18))  # 36 s
    expected = model.chat(
        [{"role": "user", "content": [{"audio": (long, 16_000)}, {"text": "what?"}]}],
        max_new_tokens=4,
        temperature=0.0,
    )
    with running(model) as server:
        client = server.client()
        ask = functools.partial(
            client.chat.completions.create, model="tiny", max_tokens=4, temperature=0
        )
        found = ask(messages=[user(input_audio(long), "what?")])
        assert found.choices[0].message.content == expected
        assert found.usage is not None and found.usage.prompt_tokens_details is not None
        sizes = [num_frames(last - first) for first, last in split_windows(long)]
        assert found.usage.prompt_tokens_details.audio_tokens == sum(map(num_audio_tokens, sizes))
        assert len(sizes) == 2
        tokenizer = model.require_processor().tokenizer
        texts = {
            client.completions.create(
                model="tiny",
                prompt=prompt,
                max_tokens=4,
                temperature=0,
                extra_body={"audio": [input_audio(long)]},
            )
            .choices[0]
            .text
            for prompt in (f"{AUDIO}what?", tokenizer.encode(f"{AUDIO}what?"))
        }
        assert len(texts) == 1
        with pytest.raises(
            openai.BadRequestError, match=r"it takes 1871 positions, the model has 1024"
        ):
            ask(messages=[user(*[input_audio(long)] * 2)])


def test_a_long_clip_is_refused_if_the_server_is_told_so(client: openai.OpenAI) -> None:
    long = pcm(np.tile(make_waveform(1.0, 5), 19))
    with pytest.raises(openai.BadRequestError, match="over the limit of 20 s"):
        client.chat.completions.create(
            model="tiny", messages=[user(input_audio(np.tile(long, 2)))], max_tokens=4
        )
