"""A server for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import qa_jax
from tests.serve.server import Running, running


@pytest.fixture(scope="session")
def served_model(tiny_checkpoint: Path) -> qa_jax.LoadedModel:
    return qa_jax.load(tiny_checkpoint, num_slots=4, capacity=448, audio_hosts=["127.0.0.1"])


@pytest.fixture(scope="session")
def server(served_model: qa_jax.LoadedModel) -> Iterator[Running]:
    with running(
        served_model, audio_hosts=("127.0.0.1",), window_seconds=1.0, max_audio_seconds=20.0
    ) as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return server.client()
