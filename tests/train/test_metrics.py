"""Metrics files and trackers."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from qa_jax.errors import InputError
from qa_jax.train.metrics import FILE, MetricsWriter, read_metrics


class FakeRun:
    """Takes what wandb 0.22 takes, in the calls that are made."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.logged, self.finished = settings, list[dict](), False

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, data: dict) -> None:
        self.logged.append(data)

    def finish(self) -> None:
        self.finished = True


def fake_init(runs: list[FakeRun]) -> Any:
    def init(*, project: str, id: str, name: str, resume: str, dir: str, config: dict) -> FakeRun:
        runs.append(FakeRun(project=project, id=id, name=name, resume=resume, config=config))
        return runs[-1]

    return init


def test_a_resumed_run_goes_on_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FakeRun] = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=fake_init(runs)))  # type: ignore[arg-type]
    for resume_at in (0, 1):
        writer = MetricsWriter(tmp_path, resume_at, True, "speech", {"seed": 3})
        for step in (1, 2):
            if step > resume_at:
                writer.write(step, {"loss": 1 / step})
        writer.close()
    first, second = runs
    assert first.settings == second.settings
    assert first.settings["project"] == "speech" and first.settings["config"] == {"seed": 3}
    assert first.logged == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert second.logged == [{"step": 2, "loss": 0.5}] and second.finished
    assert [row["step"] for row in read_metrics(tmp_path / FILE)] == [1, 2]


def test_wandb_is_imported_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    MetricsWriter(tmp_path / "a", 0).close()
    MetricsWriter(tmp_path / "b", 0, False, "speech").close()
    with pytest.raises(InputError, match="wandb is missing; pip install wandb"):
        MetricsWriter(tmp_path / "c", 0, True, "speech")
