"""Malformed requests to the server: QA_JAX_FUZZ=10000 for as many, 300 by default."""

from __future__ import annotations

import base64
import copy
import functools
import json
import os
import random
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qa_jax
from tests.conftest import make_waveform
from tests.serve.raw import post
from tests.serve.server import Running, input_audio, running, user, wait_until, wav_bytes

COUNT = int(os.environ.get("QA_JAX_FUZZ", "300"))
CHAT, SPEECH = "/v1/chat/completions", "/v1/audio/transcriptions"
VALUES = [None, True, -1, 0, 2**70, 1e308, "", "x" * 3000, "\ud800", [], {}, [[]], {"a": {}}]
GOOD: dict[str, Any] = {
    "model": "tiny",
    "messages": [user(input_audio(make_waveform(0.3)), "what?")],
    "max_tokens": 4,
    "temperature": 0,
    "stop": ["a"],
    "stream": False,
}


@functools.cache
def bombs() -> list[bytes]:
    """Small files that are much when they are decoded."""
    zeros = np.zeros(16_000 * 600)
    wav = bytearray(wav_bytes(np.zeros(100)))
    wav[40:44] = (2**31).to_bytes(4, "little")  # its header promises 2 GiB
    wav[22:24] = (255).to_bytes(2, "little")
    return [wav_bytes(zeros, "FLAC"), bytes(wav), wav_bytes(zeros, "FLAC")[:5000]]


def changed(body: Any, rng: random.Random) -> Any:
    """A body with something at a random place replaced, removed or added."""
    body = copy.deepcopy(body)
    place: Any = body
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        if isinstance(place, dict) and rng.random() < 0.2:
            place[rng.choice(["n", "extra", "top_k", "uuid", "logprobs"])] = rng.choice(VALUES)
        elif rng.random() < 0.2:
            del place[key]
        else:
            place[key] = rng.choice(VALUES)
        return body


def mutated_json(rng: random.Random) -> bytes:
    return post(json.dumps(changed(GOOD, rng)).encode(), rng.choice([CHAT, CHAT, "/tokenize"]))


def mutated_bytes(rng: random.Random) -> bytes:
    raw = bytearray(json.dumps(GOOD).encode())
    for _ in range(rng.randrange(1, 20)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return post(bytes(raw), CHAT)


def nested(rng: random.Random) -> bytes:
    depth = rng.choice([10, 1000, 100_000])
    return post(b'{"messages": ' + b"[" * depth + b"]" * depth + b"}", CHAT)


def broken_audio(rng: random.Random) -> bytes:
    raw = rng.choice([rng.randbytes(500), wav_bytes(make_waveform(0.3))[:60], *bombs()])
    data = base64.b64encode(raw).decode()
    data = data if rng.random() < 0.5 else data[:-3] + "%"
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}
    return post(json.dumps({**GOOD, "messages": [user(part)]}).encode(), CHAT)


def broken_form(rng: random.Random) -> bytes:
    file = rng.choice([rng.randbytes(300), b"", *bombs()])
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = bytearray(head + file + b"\r\n--x--\r\n")
    for _ in range(rng.randrange(4)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return post(bytes(body), SPEECH, Content_Type="multipart/form-data; boundary=x")


def wrong_http(rng: random.Random) -> bytes:
    good = post(json.dumps(GOOD).encode(), CHAT)
    return rng.choice(
        [
            rng.randbytes(rng.randrange(1, 2000)),
            good[: rng.randrange(1, len(good))],
            good.replace(b"Content-Length: ", b"Content-Length: 9"),
            good.replace(b"Content-Length: ", b"Content-Length: -"),
            good.replace(b"HTTP/1.1", b"HTTP/9.9"),
            b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        ]
    )


def disconnect(rng: random.Random) -> bytes:
    body = {**GOOD, "stream": rng.random() < 0.5, "max_tokens": 200, "ignore_eos": True}
    return post(json.dumps(body).encode(), CHAT)


KINDS: list[Callable[[random.Random], bytes]] = [
    mutated_json, mutated_json, mutated_bytes, nested, broken_audio, broken_form, wrong_http,
    disconnect,
]  # fmt: skip


def send(port: int, seed: int) -> bytes:
    """The answer to a malformed request, or nothing if it was left alone."""
    rng = random.Random(seed)
    make = rng.choice(KINDS)
    raw, parts = make(rng), list[bytes]()
    connection = socket.create_connection(("127.0.0.1", port), 60)
    with closing(connection), suppress(ConnectionError, TimeoutError):
        connection.sendall(raw)
        if make is disconnect:
            connection.settimeout(rng.uniform(0.01, 0.3))
        elif make is wrong_http:
            connection.shutdown(socket.SHUT_WR)  # half-closed
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture(scope="module")
def fuzzed(tiny_checkpoint: Path) -> Any:
    model = qa_jax.load(tiny_checkpoint, num_slots=2, capacity=448)
    with running(model, receive_seconds=5, max_audio_seconds=60, request_seconds=60) as found:
        yield found


def test_the_server_survives(fuzzed: Running) -> None:
    client, runner = fuzzed.client(), fuzzed.app.service.models["tiny"].runner

    def right() -> Any:
        return client.chat.completions.create(**GOOD).choices[0].message.content

    expected = right()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: send(fuzzed.port, seed), range(COUNT)))
    statuses = Counter(answer[9:12].decode() for answer in answers)
    assert not [a for a in answers if b"Traceback" in a or b'.py"' in a]
    assert statuses["400"] > COUNT // 4, statuses
    assert not {s for s in statuses if s.startswith("5")}, statuses
    wait_until(lambda: runner.num_running == 0 and runner.num_waiting == 0)
    assert right() == expected
    # Released after the answer is sent, which may be later than it is read here.
    wait_until(lambda: fuzzed.app._num_bytes == 0)
