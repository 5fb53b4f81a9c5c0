"""Training runs of the tests: configurations, losses, interruptions."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.config import RunConfig, parse
from qa_jax.train import loop, train
from qa_jax.train.metrics import read_metrics


def config(settings: dict, *overrides: str) -> RunConfig:
    return parse(RunConfig, _copy(settings), "test", overrides)


def _copy(settings: dict) -> dict:
    raw = json.loads(json.dumps(settings))
    raw["data"]["buckets"] = {int(k): v for k, v in raw["data"]["buckets"].items()}
    return raw


def at(settings: dict, output_dir: Path, **changes: Any) -> dict:
    """The settings with another output directory and other values, by section."""
    raw = _copy(settings)
    raw["train"]["output_dir"] = str(output_dir)
    for section, values in changes.items():
        raw[section] |= values
    return raw


def dpo_config(settings: dict, pairs: Path, init_from: Path, *more: str) -> RunConfig:
    overrides = ["--train.objective=dpo", f"--data.train={pairs}", f"--train.init_from={init_from}"]
    return config(settings, *overrides, "--optimizer.warmup_steps=0", *more)


def one_device_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make_mesh` uses all devices; the tests have eight."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)


def losses(output_dir: str | Path) -> list[float]:
    return [row["loss"] for row in read_metrics(Path(output_dir) / "metrics.jsonl")]


class stopping_after:
    """Sends SIGINT to this process at the given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __enter__(self) -> None:
        self.original = loop.next_batch

        def next_batch(run: Any, batches: Any, step: int, local_shards: list[int]) -> Any:
            if step == self.step:
                signal.raise_signal(signal.SIGINT)
            return self.original(run, batches, step, local_shards)

        loop.next_batch = next_batch

    def __exit__(self, *_: object) -> None:
        loop.next_batch = self.original


def check_resume(settings: dict, tmp_path: Path, stop: int) -> None:
    """A run stopped after a step and resumed has the losses and parameters, bit for bit, of an
    uninterrupted one; its directory is the settings'."""
    straight = config(at(settings, tmp_path / "straight"))
    train(straight)
    full = config(settings)
    # The schedule looks at train.steps, so the first part is stopped rather than made shorter.
    with stopping_after(stop), pytest.raises(Exception, match="stopped at step"):
        train(full)
    assert checkpoint.find_step(full.train.output_dir) == stop
    train(full)
    assert losses(full.train.output_dir) == losses(tmp_path / "straight")
    again, expected = (
        checkpoint.load_params(d, checkpoint.read_config(d))
        for d in (full.train.output_dir, tmp_path / "straight")
    )
    jax.tree.map(np.testing.assert_array_equal, again, expected)
