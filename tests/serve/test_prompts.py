"""Clips of requests: by uuid, by URL, and from nowhere else."""

from __future__ import annotations

import base64
import functools
import http.client
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import qa_jax
from tests.serve.server import input_audio, running, user, wav_bytes
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
