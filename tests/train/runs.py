"""What tests of training share."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import jax
import pytest
from jax.sharding import Mesh

from qa_jax.config import RunConfig, parse
from qa_jax.data import TrainBatch
from qa_jax.train import loop
from qa_jax.train.metrics import read_metrics


def config(settings: dict, *overrides: str) -> RunConfig:
    raw = json.loads(json.dumps(settings))
    raw["data"]["buckets"] = {int(k): v for k, v in raw["data"]["buckets"].items()}
    return parse(RunConfig, raw, "test", overrides)


def one_device_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make_mesh` takes all devices; the tests' machine has eight."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)


def losses(output: str | Path) -> list[float]:
    return [row["loss"] for row in read_metrics(Path(output) / "metrics.jsonl")]


class stopping_after:
    """Sends SIGINT to this process at the given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __enter__(self) -> None:
        self.original = loop.shard_batch
        calls = 0

        def shard_batch(batch: TrainBatch, mesh: Mesh) -> TrainBatch:
            nonlocal calls
            calls += 1
            if calls == self.step:
                signal.raise_signal(signal.SIGINT)
            return self.original(batch, mesh)

        loop.shard_batch = shard_batch

    def __exit__(self, *_: object) -> None:
        loop.shard_batch = self.original
