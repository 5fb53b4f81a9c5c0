"""Resuming with other settings, from a chosen step, from a step of another run."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.errors import InputError
from qa_jax.train import train
from tests.runs import config

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("--model.text.hidden_size=64", "model.text.hidden_size"),
        ("--data.seed=1", "data.seed"),
        ("--optimizer.grad_accum_steps=2", "optimizer.grad_accum_steps"),
        ("--optimizer.name=muon", "optimizer.name"),
        ("--train.ema_decay=0.5", "train.ema_decay"),
        ("--train.length_exponent=-1", "train.length_exponent"),
    ],
)
def test_settings_that_a_state_depends_on_are_refused(
    settings: dict, override: str, name: str
) -> None:
    train(config(settings, "--train.steps=1"))
    with pytest.raises(InputError, match=rf"{name}: is .* began with|contains a run of another"):
        train(config(settings, override))


def test_harmless_changes_are_told(settings: dict, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(settings, "--train.steps=1"))
    capsys.readouterr()
    train(config(settings, "--train.steps=2", "--model.remat=full", "--train.log_every=2"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "resuming with model.remat 'full' (was 'none')" in printed
    assert "resuming with train.log_every 2 (was 1)" in printed
    assert "resuming with train.steps 2 (was 1)" in printed
    assert "step 1 of 2" in printed


def test_resuming_from_a_chosen_step(settings: dict) -> None:
    train(config(settings, "--train.save_every=2"))
    output = settings["train"]["output_dir"]
    assert checkpoint.all_steps(output) == [4, 6, 8]
    expected = checkpoint.load_params(output, checkpoint.read_config(output))
    with pytest.raises(InputError, match=r"contains steps \[4, 6, 8\]"):
        train(config(settings, "--train.resume=none"))
    with pytest.raises(InputError, match=r"has no step 5; choose from \[4, 6, 8\]"):
        train(config(settings, "--train.resume=5"))
    train(config(settings, "--train.resume=4"))
    again = checkpoint.load_params(output, checkpoint.read_config(output))
    jax.tree.map(np.testing.assert_array_equal, again, expected)
    assert sorted(p.name for p in (Path(output) / "superseded").iterdir()) == ["6", "8"]


def test_starting_from_a_step_of_another_run(settings: dict, tmp_path: Path) -> None:
    train(config(settings, "--train.save_every=2"))
    first = Path(settings["train"]["output_dir"])
    other = (f"--train.output_dir={tmp_path / 'other'}", "--train.steps=1", "--optimizer.peak_lr=0")
    train(config(settings, f"--train.init_from={first}/checkpoints/4", *other))
    expected, found = (
        checkpoint.load_params(d, checkpoint.read_config(d), step=step)
        for d, step in ((first, 4), (tmp_path / "other", None))
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_model_settings_that_a_checkpoint_cannot_have_are_refused(
    settings: dict, tiny_checkpoint: Path
) -> None:
    """They would otherwise be ignored: the checkpoint decides the model's shape."""
    with pytest.raises(
        InputError, match=r"model\.text\.num_hidden_layers: is 3, and train\.init_from is a model"
    ):
        train(
            config(
                settings, f"--train.init_from={tiny_checkpoint}", "--model.text.num_hidden_layers=3"
            )
        )
