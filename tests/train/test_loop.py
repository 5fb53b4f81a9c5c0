"""The training loop: learning, resuming, evaluating, stopping."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.errors import InputError
from qa_jax.train import train
from qa_jax.train.metrics import read_metrics
from tests.runs import config, losses, stopping_after

pytestmark = pytest.mark.usefixtures("one_device")


def test_training_learns_and_saves_checkpoints(settings: dict) -> None:
    train(config(settings, "--train.steps=30", "--train.max_to_keep=2", "--optimizer.peak_lr=1e-2"))
    curve = losses(settings["train"]["output_dir"])
    assert len(curve) == 30 and np.mean(curve[-4:]) < 0.7 * np.mean(curve[:4])
    output = Path(settings["train"]["output_dir"])
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["27", "30"]
    assert (output / "sentencepiece.model").is_file()
    assert list((output / "tensorboard").iterdir())
    row = read_metrics(output / "metrics.jsonl")[-1]
    assert {"loss", "accuracy", "grad_norm", "learning_rate", "steps_per_second"} <= set(row)


def test_resume_is_bit_exact(settings: dict, tmp_path: Path) -> None:
    """A stopped and resumed run has the losses and parameters of an uninterrupted one."""
    straight = json.loads(json.dumps(settings))
    straight["train"]["output_dir"] = str(tmp_path / "straight")
    train(config(straight))
    full = config(settings)
    # The schedule looks at train.steps, so the first part is stopped rather than made shorter.
    with stopping_after(4), pytest.raises(Exception, match="stopped at step"):
        train(full)
    assert checkpoint.CheckpointManager(full.train.output_dir).latest_step() == 4
    train(full)
    assert losses(full.train.output_dir) == losses(tmp_path / "straight")
    again, expected = (
        checkpoint.load_params(d, checkpoint.read_config(d))
        for d in (full.train.output_dir, tmp_path / "straight")
    )
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_evaluation_during_training(settings: dict) -> None:
    settings["data"]["eval"] = settings["data"]["train"]
    train(config(settings, "--train.eval_every=4"))
    rows = read_metrics(Path(settings["train"]["output_dir"]) / "metrics.jsonl")
    scored = [r for r in rows if "eval_loss" in r]
    assert [r["step"] for r in scored] == [4, 8]
    assert scored[1]["eval_loss"] < scored[0]["eval_loss"]


def test_non_finite_loss_stops_the_run(settings: dict) -> None:
    with pytest.raises(InputError, match=r"the loss is (nan|inf).*lower optimizer\.peak_lr"):
        train(config(settings, "--optimizer.peak_lr=1e30", "--optimizer.clip_global_norm=0"))


def test_init_from(settings: dict, tiny_checkpoint: Path) -> None:
    started = config(settings, f"--train.init_from={tiny_checkpoint}", "--optimizer.peak_lr=0")
    train(started)
    before, after = (
        checkpoint.load_params(d, checkpoint.read_config(d))
        for d in (tiny_checkpoint, started.train.output_dir)
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
