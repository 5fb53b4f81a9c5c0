"""Keys, sizes, times, clients that leave."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import openai
import pytest

import qa_jax
from qa_jax.serve import gate
from tests.serve.raw import post, request
from tests.serve.server import Running, input_audio, running, user, wait_until
from tests.serve.test_endpoints import CLIP

BODY = {"model": "tiny", "messages": [user("hello")], "max_tokens": 3}


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/tokenize", "/v1/nothing"])
def test_a_key_is_needed(server: Running, path: str) -> None:
    client = server.client(api_key="wrong").with_options(base_url=server.url)
    with pytest.raises(openai.AuthenticationError, match="no valid key"):
        client.get(path, cast_to=object)
    for probe in ("/health", "/ready"):
        assert client.get(probe, cast_to=str) == ""


def test_a_body_that_is_too_large(server: Running) -> None:
    told = request(server, post(b"", length=2**40))
    assert told.startswith(b"HTTP/1.1 413")
    assert b"over 33554432 bytes" in told


def test_a_body_that_is_larger_than_it_says(served_model: qa_jax.LoadedModel) -> None:
    with running(served_model, max_body_mib=1) as small:
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        head = post(b"").split(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
        told = request(small, head + chunk * 17, is_complete=False)
        assert told.startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come(served_model: qa_jax.LoadedModel) -> None:
    with running(served_model, receive_seconds=1) as hurried:
        told = request(hurried, post(b"{", length=100), is_complete=False)
        assert told.startswith(b"HTTP/1.1 408")


def test_headers_that_do_not_come(served_model: qa_jax.LoadedModel) -> None:
    with running(served_model, receive_seconds=1) as hurried:
        started = time.monotonic()
        assert request(hurried, b"POST /v1/chat", is_complete=False) == b""
        assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}", b"200"),
        ("localhost:{port}", "http://localhost:{port}", b"200"),
        ("127.0.0.1:{port}", "https://evil.example", b"403"),
        ("evil.example:{port}", "http://evil.example:{port}", b"403"),  # which stands for loopback
        ("evil.example", "", b"403"),
        ("127.0.0.1:{port}", "null", b"403"),
        ("[::1", "http://[::1", b"4"),
    ],
)
def test_pages_of_others_need_a_key(
    open_server: Running, host: str, origin: str, status: bytes
) -> None:
    headers = {"Host": host.format(port=open_server.port)}
    if origin:
        headers["Origin"] = origin.format(port=open_server.port)
    told = request(open_server, post(json.dumps(BODY).encode(), **headers), is_complete=False)
    assert told.startswith(b"HTTP/1.1 " + status)


@pytest.fixture(scope="module")
def open_server(served_model: qa_jax.LoadedModel) -> Iterator[Running]:
    with running(served_model, keys=()) as found:
        yield found


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "qa_jax.access"):
        yield caplog


def test_a_line_in_the_log(server: Running, log: pytest.LogCaptureFixture) -> None:
    client = server.client()
    raw = client.chat.completions.with_raw_response.create(
        **{**BODY, "messages": [user(input_audio(CLIP), "secret words")]},  # type: ignore[arg-type]
        extra_headers={"X-Request-Id": "mine-1"},
    )
    assert raw.headers["x-request-id"] == "mine-1"
    wait_until(lambda: log.records)
    line = json.loads(log.records[-1].message)
    assert line["id"] == "mine-1"
    assert (line["path"], line["status"]) == ("/v1/chat/completions", 200)
    assert line["completion_tokens"] == raw.parse().usage.completion_tokens  # type: ignore[union-attr]
    assert line["first_token_seconds"] > 0
    assert "secret" not in log.records[-1].message


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(
    server: Running, stream: bool, log: pytest.LogCaptureFixture
) -> None:
    body = {**BODY, "max_tokens": 300, "stream": stream, "ignore_eos": True, "n": 4}
    runner = server.app.service.models["tiny"].runner
    with closing(socket.create_connection(("127.0.0.1", server.port))) as connection:
        connection.sendall(post(json.dumps(body).encode()))
        wait_until(lambda: runner.num_running == 4)
        (group,) = runner._live
    wait_until(lambda: runner.num_running == 0)
    assert runner.num_waiting == 0
    assert {answer.finish_reason for answer in group.items} == {"cancelled"}
    wait_until(lambda: log.records)
    line = json.loads(log.records[0].message)
    assert line["disconnected"]
    assert line["finish_reasons"] == ["abort"]


def test_a_client_that_does_not_read_is_left(
    server: Running, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gate, "_SEND_SECONDS", 0.3)
    settings = {"max_tokens": 300, "stream": True, "ignore_eos": True, "n": 16}
    body = {**BODY, **settings, "logprobs": True, "top_logprobs": 20}
    runner = server.app.service.models["tiny"].runner
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(post(json.dumps(body).encode()))
        wait_until(lambda: runner.num_running == 4)
        wait_until(lambda: log.records)
    assert json.loads(log.records[0].message)["status"] == 200
