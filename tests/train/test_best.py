"""The best step, and stopping early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from qa_jax import checkpoint
from qa_jax.cli import main
from qa_jax.errors import InputError
from qa_jax.train import loop, train
from qa_jax.train.best import BestStep
from qa_jax.train.metrics import read_metrics
from qa_jax.train.run import prepare
from tests.runs import config, stopping_after

pytestmark = pytest.mark.usefixtures("one_device")


def test_less_loss_and_more_accuracy_are_better() -> None:
    best = BestStep("eval_loss", patience=2)
    assert [best.update(i, {"eval_loss": x}) for i, x in enumerate([3.0, 2.0, 2.0, 1.5, 1.6])] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert (best.step, best.value, best.is_exhausted) == (3, 1.5, False)
    best.update(5, {"eval_loss": 9.0})
    assert best.is_exhausted and str(best) == "best eval_loss 1.5 at step 3"
    accuracy = BestStep("eval_accuracy")
    assert [accuracy.update(i, {"eval_accuracy": x}) for i, x in enumerate([0.1, 0.3, 0.2])] == [
        True,
        True,
        False,
    ]
    assert not BestStep("").update(1, {})
    with pytest.raises(InputError, match="eval_los: is not a metric .*did you mean eval_loss"):
        BestStep("eval_los").update(1, {"eval_loss": 1.0})


def falling_then_rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations whose loss is least at step 4."""
    monkeypatch.setattr(
        loop,
        "evaluate",
        lambda run, program, state, *_: {"eval_loss": float(abs(int(state.step) - 4))},
    )


def test_the_best_step_is_kept_and_the_run_ends_early(
    settings: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Stopped and resumed in between: the count of worse evaluations goes on."""
    falling_then_rising(monkeypatch)
    settings["data"]["eval"] = settings["data"]["train"]
    settings["train"] |= {"steps": 50, "eval_every": 1, "save_every": 0, "max_to_keep": 1}
    settings["train"] |= {"best_metric": "eval_loss", "patience": 3}
    run = config(settings)
    with stopping_after(5), pytest.raises(Exception, match="stopped at step"):
        train(run)
    assert checkpoint.all_steps(run.train.output_dir) == [4, 5]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    for _ in range(2):  # the second time nothing is left to do
        assert main(["train", "--config", str(recipe)]) == 0
        printed = capsys.readouterr().out
        assert "step 7: loss " in printed
        assert f"best eval_loss 0 at step 4: {run.train.output_dir}/checkpoints/4" in printed
        assert checkpoint.all_steps(run.train.output_dir) == [4, 7]
    rows = read_metrics(Path(run.train.output_dir) / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval_loss" in row] == list(range(1, 8))


def test_settings_that_need_each_other(settings: dict) -> None:
    with pytest.raises(InputError, match=r"train\.best_metric: nothing is evaluated"):
        prepare(config(settings, "--train.best_metric=eval_loss"))
    with pytest.raises(InputError, match=r"train\.patience: needs a metric"):
        prepare(config(settings, "--train.patience=2"))


def test_several_sets(settings: dict, tmp_path: Path) -> None:
    """Each has its loss; together they are one set's."""
    lines = Path(settings["data"]["train"]).read_text().splitlines(keepends=True)
    (tmp_path / "talk.jsonl").write_text("".join(lines[:4]))
    (tmp_path / "text.jsonl").write_text("".join(lines[4:6]))
    settings["data"]["eval"] = {
        name: str(tmp_path / f"{name}.jsonl") for name in ("talk", "text")
    } | {"all": settings["data"]["train"]}
    settings["train"] |= {"steps": 1}
    train(config(settings))
    rows = read_metrics(Path(settings["train"]["output_dir"]) / "metrics.jsonl")
    (row,) = [row for row in rows if "eval_all_loss" in row]
    assert {"eval_talk_loss", "eval_text_loss", "eval_talk_accuracy"} <= set(row)
    assert json.dumps(row)  # no NaN
    low, high = sorted([row["eval_talk_loss"], row["eval_text_loss"]])
    assert low < row["eval_all_loss"] < high
