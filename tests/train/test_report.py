"""Speeds: of records, not of padding."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rich.console import Console

from qa_jax.model.flops import forward_flops, training_flops, useful_flops
from qa_jax.parallel import local_batch_shards
from qa_jax.train import report
from qa_jax.train.report import Report
from qa_jax.train.run import prepare
from tests.runs import config

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("packed", [0, 300])
def test_padding_is_not_counted(
    settings: dict, packed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch's tokens, seconds and operations are those of its records, however they are packed,
    and though the last step of an epoch is short."""
    run = prepare(config(settings, f"--data.packed_length={packed}"))
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(report, "peak_flops", lambda _: 1e12)
    counted = Report(Console(quiet=True), run, 0)
    for step in range(run.data.steps_per_epoch):
        counted.count_batch(run.data.batch(step), len(local_batch_shards(run.mesh)))
        counted.step(step + 1, 0.0)
    now[0] = 10.0
    values = counted.log(1, {"loss": 1.0})
    counted.close()
    examples = run.data.examples
    tokens = sum(e.num_tokens for e in examples)
    assert values["tokens_per_second"] == pytest.approx(tokens / 10)
    frames = [n // 160 for e in examples for n in e.num_samples]
    assert values["audio_seconds_per_second"] == pytest.approx(0.01 * sum(frames) / 10, rel=0.02)
    parts = useful_flops(run.model_config, [e.num_tokens for e in examples], frames, 0)
    least = training_flops(parts, counted._fractions)
    assert 1 <= values["mfu"] * 1e13 / least < 1.2  # and the output layer
    assert Path(run.config.train.output_dir, "metrics.jsonl").is_file()


def test_a_full_batch_needs_all_of_it(settings: dict) -> None:
    model = prepare(config(settings)).model_config
    parts = useful_flops(model, [64] * 4, [200] * 2, 256)
    assert parts == forward_flops(model, 4, 64, 2, 200)
