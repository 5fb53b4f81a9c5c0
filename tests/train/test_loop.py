"""The training loop: learning, resuming, evaluating, stopping."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.errors import InputError
from qa_jax.train import loop, train
from qa_jax.train.metrics import read_metrics
from qa_jax.train.programs import Program
from qa_jax.train.run import prepare
from tests.runs import check_resume, config, losses

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
    check_resume(settings, tmp_path, 4)


def test_evaluation_during_training(settings: dict) -> None:
    settings["data"]["eval"] = settings["data"]["train"]
    train(config(settings, "--train.eval_every=4"))
    rows = read_metrics(Path(settings["train"]["output_dir"]) / "metrics.jsonl")
    scored = [r for r in rows if "eval_loss" in r]
    assert [r["step"] for r in scored] == [4, 8]
    assert scored[1]["eval_loss"] < scored[0]["eval_loss"]


def test_non_finite_loss_stops_the_run(settings: dict) -> None:
    """The last good step stays the latest: nothing is saved after a loss that is not finite."""
    broken = ("--optimizer.peak_lr=1e30", "--optimizer.clip_global_norm=0", "--train.save_every=1")
    with pytest.raises(InputError, match=r"the loss is (nan|inf).*lower optimizer\.peak_lr"):
        train(config(settings, *broken))
    output = settings["train"]["output_dir"]
    saved = checkpoint.all_steps(output)
    assert saved == [row["step"] for row in read_metrics(Path(output) / "metrics.jsonl")][-3:]
    for step in saved:
        params = checkpoint.load_params(output, checkpoint.read_config(output), step=step)
        # The step before the loss was seen to be broken may be as far off, but is finite.
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params)), step


def nan_at(*steps: int) -> Callable[..., Any]:
    """`loop.next_batch` with batches of NaN waveforms at these steps."""
    original = loop.next_batch

    def next_batch(run: Any, batches: Any, step: int, local_shards: list[int]) -> Any:
        batch, *rest = original(run, batches, step, local_shards)
        if step in steps:
            batch = batch._replace(waveform=np.full_like(batch.waveform, np.nan))
        return batch, *rest

    return next_batch


def test_skipped_steps_change_nothing_and_are_counted(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "next_batch", nan_at(2, 5))
    more = ("--train.steps=6", "--train.max_skipped_steps=2", "--train.save_every=1")
    with pytest.warns(UserWarning, match=r"step 5: the loss is nan.*skipped \(2 of at most 2\)"):
        train(config(settings, *more, "--train.max_to_keep=6"))
    output = Path(settings["train"]["output_dir"])
    before, after = (
        checkpoint.load_params(output, checkpoint.read_config(output), step=step) for step in (4, 5)
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
    rows = {row["step"]: row for row in read_metrics(output / "metrics.jsonl")}
    assert sorted(rows) == [1, 3, 4, 6] and rows[6]["skipped_steps"] == 2
    monkeypatch.setattr(loop, "next_batch", nan_at(2, 4, 5))
    with pytest.raises(InputError, match="step 5: the loss is nan"):
        train(config(settings, *more, f"--train.output_dir={tmp_path / 'three'}"))
    assert checkpoint.find_step(tmp_path / "three") == 4


def test_an_exception_waits_for_the_save_in_progress(
    settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the run: the step whose save had begun is there."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    original, shards = loop.next_batch, []

    def next_batch(*arguments: Any) -> Any:
        shards.append(0)
        return fail() if len(shards) == 4 else original(*arguments)

    monkeypatch.setattr(loop, "next_batch", next_batch)
    with pytest.raises(ZeroDivisionError):
        train(config(settings))
    assert checkpoint.all_steps(settings["train"]["output_dir"]) == [3]
    checksums = Path(settings["train"]["output_dir"]) / "checksums" / "3.json"
    assert checksums.is_file()


def test_a_resumed_run_may_start_inside_or_past_the_profile(settings: dict, tmp_path: Path) -> None:
    profiled = "--train.profile=[2, 3]"
    train(config(settings, profiled, "--train.steps=2"))
    train(config(settings, profiled, "--train.steps=3"))
    train(config(settings, profiled, "--train.steps=5"))
    traces = list((Path(settings["train"]["output_dir"]) / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 2


def test_programs_are_compiled_before_the_first_step(
    settings: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    """One program a bucket, for training and evaluation, and none afterwards: not for the last rows
    of an epoch, nor for a batch with more clips."""
    settings["data"] |= {"buckets": {64: 4, 204: 4}, "eval": settings["data"]["train"]}
    compiled = []
    original = Program.compile

    def compile(self: Program, lowered: Any, key: str) -> None:
        compiled.append(key)
        original(self, lowered, key)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*compiled again")
        patch.setattr(Program, "compile", compile)
        train(config(settings, "--train.steps=12", "--train.eval_every=6"))
    assert len(compiled) == 4 and len(set(compiled)) == 2
    printed = capsys.readouterr().out
    assert "compiled 4 of 4" in printed
    assert printed.index("compiled 4 of 4") < printed.index("step      1")


def test_another_shape_is_compiled_with_a_warning(settings: dict) -> None:
    run = prepare(config(settings))
    batch = run.data.batch(0)
    program = Program("sum", jax.jit(lambda state, batch, _: state + batch.tokens.sum()))
    program(jnp.zeros(()), batch, None)
    program(jnp.zeros(()), batch, None)
    assert program.num_compiled == 1
    rows = ("tokens", "segment_ids", "loss_weights")
    wider = batch._replace(
        **{name: np.pad(getattr(batch, name), ((0, 0), (0, 0), (0, 8))) for name in rows}
    )
    with pytest.warns(UserWarning, match=r"the sum is compiled again, for 1 x 4 rows of 112 tok"):
        program(jnp.zeros(()), wider, None)


def test_init_from(settings: dict, tiny_checkpoint: Path) -> None:
    started = config(settings, f"--train.init_from={tiny_checkpoint}", "--optimizer.peak_lr=0")
    train(started)
    before, after = (
        checkpoint.load_params(d, checkpoint.read_config(d))
        for d in (tiny_checkpoint, started.train.output_dir)
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
