"""A server in a thread, and what requests to it are made of."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import openai
import soundfile
import uvicorn

import qa_jax
from qa_jax.config.serve import ServeConfig
from qa_jax.serve.app import make_app, make_server

KEY = "secret-key"


class Running(NamedTuple):
    """A running server."""

    url: str
    port: int
    app: Any
    model: qa_jax.LoadedModel

    def client(self, **settings: Any) -> openai.OpenAI:
        settings = {"api_key": KEY, "max_retries": 0, "timeout": 120, **settings}
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)


@contextmanager
def running(
    model: qa_jax.LoadedModel,
    *,
    keys: tuple[str, ...] = (KEY,),
    warm_up: bool = False,
    models: dict[str, qa_jax.LoadedModel] | None = None,
    audio_hosts: tuple[str, ...] = (),
    is_raw: bool = False,
    **settings: Any,
) -> Iterator[Running]:
    config = ServeConfig(port=0, **settings)
    app = make_app(
        models or {"tiny": model},
        config,
        keys=keys,
        audio_hosts=audio_hosts,
        is_raw=is_raw,
        warm_up=warm_up,
    )
    server, listener = make_server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    try:
        wait_until(lambda: server.started)
        yield Running(f"http://127.0.0.1:{port}", port, app, model)
    finally:
        stop(server, thread)


def stop(server: uvicorn.Server, thread: threading.Thread) -> None:
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def pcm(waveform: np.ndarray) -> np.ndarray:
    """A waveform of samples that 16 bits hold exactly."""
    return ((waveform * 2**15).round().clip(-(2**15), 2**15 - 1) / 2**15).astype(np.float32)


def wav_bytes(waveform: np.ndarray, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    samples = (waveform * 2**15).round().astype(np.int16)
    soundfile.write(file, samples, 16_000, format=kind, subtype="PCM_16")
    return file.getvalue()


def input_audio(waveform: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(wav_bytes(waveform)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def user(*parts: dict[str, Any] | str) -> dict[str, Any]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": "user", "content": content}
