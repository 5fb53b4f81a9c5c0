"""An objective of docs/research.md: one file and one line, and the loop trains with it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qa_jax.errors import InputError
from qa_jax.train import train
from qa_jax.train.metrics import read_metrics
from qa_jax.train.objectives import OBJECTIVES
from tests.runs import config

PAGE = Path(__file__).parents[3] / "docs" / "research.md"


@pytest.mark.usefixtures("one_device")
def test_the_documented_objective_trains(
    settings: dict, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, registration = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    namespace: dict = {}
    exec(code, namespace)
    assert registration.strip() == 'OBJECTIVES = {"sft": SFT, "dpo": DPO, "orpo": ORPO}'
    monkeypatch.setitem(OBJECTIVES, "orpo", namespace["ORPO"])
    settings["data"]["train"] = str(pairs)
    settings["data"]["buckets"] = {204: 6}
    settings["train"] |= {"objective": "orpo", "steps": 12}
    train(config(settings))
    rows = list(read_metrics(Path(settings["train"]["output_dir"]) / "metrics.jsonl"))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.9 * losses[0] and np.isfinite(losses).all()
    assert all(0 <= row["odds_accuracy"] <= 1 for row in rows if "loss" in row)


def test_unknown_objectives_are_refused_with_the_nearest_name(settings: dict) -> None:
    settings["train"]["objective"] = "dpoo"
    with pytest.raises(InputError, match="did you mean dpo"):
        train(config(settings))
