"""Clips from URLs, and what keeps a conversation from reaching into this machine's network."""

from __future__ import annotations

import base64
import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
import soundfile

from qa_jax.data import apply_chat_template, load_audio, urls
from qa_jax.errors import InputError
from tests.conftest import make_waveform


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_waveform(1), 16_000, format="wav", subtype="FLOAT")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Host"]))
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/a.wav")
            self.end_headers()
            return
        self.send_response(200 if self.path.startswith("/a.wav") else 404)
        self.end_headers()
        self.wfile.write(wav())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """A port of this machine, and what it was asked for."""
    Handler.asked = []
    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http.server_port, Handler.asked
    http.shutdown()
    http.server_close()


def test_hosts_that_were_named_are_asked(server: tuple[int, list[tuple[str, str]]]) -> None:
    port, asked = server
    for host in ("localhost", "127.0.0.1"):
        clip = load_audio(f"http://{host}:{port}/a.wav?x=1", hosts=[host])
        np.testing.assert_array_equal(clip, make_waveform(1))
    assert asked == [("/a.wav?x=1", f"{host}:{port}") for host in ("localhost", "127.0.0.1")]


@pytest.mark.parametrize(
    ("path", "hosts", "cause"),
    [
        ("/a.wav", [], "its host is none of"),
        ("/a.wav", ["example.org", "*.localhost"], "its host is none of"),
        ("/moved", ["localhost"], "answers 302"),
        ("/absent", ["localhost"], "answers 404"),
    ],
)
def test_refused(
    path: str, hosts: list[str], cause: str, server: tuple[int, list[tuple[str, str]]]
) -> None:
    port, asked = server
    with pytest.raises(InputError, match=cause):
        load_audio(f"http://localhost:{port}{path}", hosts=hosts)
    assert [path for path, _ in asked] == [path] * ("answers" in cause)


def test_names_of_private_addresses_are_refused(
    server: tuple[int, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a second look-up would give a public one, or the other way round."""
    port, asked = server
    answers = iter(["127.0.0.1", "93.184.216.34"])

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    connected = []

    def create_connection(address: tuple[str, int], *_: Any) -> socket.socket:
        connected.append(address)
        raise OSError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    with pytest.raises(InputError, match=r"private address 127\.0\.0\.1"):
        urls.fetch(f"http://evil.example:{port}/a.wav", ["evil.example"])
    with pytest.raises(InputError, match="cannot be fetched"):
        urls.fetch(f"http://evil.example:{port}/a.wav", ["evil.example"])
    assert connected == [("93.184.216.34", port)] and not asked


def test_large_files_are_refused(
    server: tuple[int, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="larger than 1000 bytes"):
        load_audio(f"http://localhost:{server[0]}/a.wav", hosts=["localhost"])


def test_data_and_openai_parts() -> None:
    data = base64.b64encode(wav()).decode()
    parts = [
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "audio", "audio_url": f"data:audio/wav;base64,{data}"},
    ]
    prompt = apply_chat_template([{"role": "user", "content": parts}])
    for clip in prompt.audio:
        np.testing.assert_array_equal(load_audio(clip), make_waveform(1))
    for bad, cause in (("data:;base64,%%%", "not base64"), ("data:,text", "not readable as audio")):
        with pytest.raises(InputError, match=cause):
            load_audio(bad)
    part = {"type": "input_audio", "input_audio": {"format": "wav"}}
    with pytest.raises(InputError, match="an audio part without audio"):
        apply_chat_template([{"role": "user", "content": [part]}])
