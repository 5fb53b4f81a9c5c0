"""Transcription while audio comes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import qa_jax
from tests.serve.server import KEY, Running, running
from tests.serve.test_transcriptions import LONG, transcribe


@contextmanager
def session(server: Running, key: str = KEY) -> Iterator[ClientConnection]:
    url = f"ws://127.0.0.1:{server.port}/v1/realtime"
    with connect(url, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
        yield socket


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def append(socket: ClientConnection, samples: np.ndarray) -> None:
    raw = (samples * 2**15).round().astype("<i2").tobytes()
    send(socket, "input_audio_buffer.append", audio=base64.b64encode(raw).decode())


def receive(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(socket.recv(60))


def test_the_text_is_that_of_the_file(server: Running, client: openai.OpenAI) -> None:
    expected = transcribe(client, extra_body={}).text
    with session(server) as socket:
        assert receive(socket)["type"] == "session.created"
        send(socket, "session.update", model="tiny")
        half = LONG.size // 2
        for start in range(0, half, 1600):
            append(socket, LONG[start : min(start + 1600, half)])
        first = receive(socket)  # before the end of the audio
        assert first["type"] == "transcription.delta"
        append(socket, LONG[half:])
        send(socket, "input_audio_buffer.commit", final=True)
        events = [first]
        while events[-1]["type"] == "transcription.delta":
            events.append(receive(socket))
    assert events[-1] == {
        "type": "transcription.done",
        "text": expected,
        "usage": {"type": "duration", "seconds": 5},
    }
    assert "".join(event["delta"] for event in events[:-1]) == expected


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"type": "session.update", "voice": "x"}, "voice: unknown field"),
        ({"type": "dance"}, "type: 'dance' is unknown"),
        ({"type": "input_audio_buffer.append", "audio": "%"}, "not base64"),
        ({"type": "input_audio_buffer.append", "audio": "AA=="}, "16-bit samples"),
        ({"type": "input_audio_buffer.append"}, "not base64"),
        ({"type": "input_audio_buffer.commit"}, "no audio token"),
        ("nonsense", "not JSON"),
    ],
)
def test_what_is_wrong_is_told(server: Running, event: Any, told: str) -> None:
    with session(server) as socket:
        receive(socket)
        socket.send(event if isinstance(event, str) else json.dumps(event))
        if isinstance(event, dict) and event["type"] == "session.update":
            send(socket, "input_audio_buffer.commit")
        found = receive(socket)
        assert found["type"] == "error"
        assert told in found["error"]["message"]
        with pytest.raises(ConnectionClosed):
            receive(socket)


def test_too_much_audio(server: Running) -> None:
    with session(server) as socket:
        receive(socket)
        for _ in range(21):
            append(socket, np.zeros(16_000))
        found = receive(socket)
        while found["type"] == "transcription.delta":
            found = receive(socket)
        assert "longer than 20 s" in found["error"]["message"]


def test_a_key_is_needed(server: Running) -> None:
    with pytest.raises(Exception, match="403"), session(server, "wrong"):
        pass


def test_silence_of_the_client_ends_a_session(served_model: qa_jax.LoadedModel) -> None:
    with running(served_model, receive_seconds=0.3) as short, session(short) as socket:
        receive(socket)
        assert "nothing came in 0.3 s" in receive(socket)["error"]["message"]
