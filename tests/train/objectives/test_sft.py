"""Losses of a mixture's sources."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.model import bind
from qa_jax.train import train
from qa_jax.train.metrics import read_metrics
from qa_jax.train.objectives import next_token_loss
from qa_jax.train.run import prepare
from qa_jax.train.state import initial_state
from tests.runs import config

pytestmark = pytest.mark.usefixtures("one_device")


def with_two_sources(settings: dict, tmp_path: Path) -> dict:
    other = tmp_path / "numbers.jsonl"
    texts = ("three plus four is seven", "what is three", "four", "seven")
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings["data"]["train"] = {settings["data"]["train"]: 1, str(other): 1}
    return settings


def test_losses_of_sources_are_those_of_their_records(settings: dict, tmp_path: Path) -> None:
    """Equal to the loss of a batch in which the other source's tokens have no weight."""
    settings = with_two_sources(settings, tmp_path)
    run = prepare(config(settings, "--data.packed_length=300"))
    names = run.config.data.source_names()
    assert names == ["manifest", "numbers"]
    params = initial_state(run).params
    model = bind(run.models.policy)(params)
    seen = set()
    for step in range(run.data.steps_per_epoch):
        batch = jax.tree.map(lambda x: jnp.asarray(x[0]), run.data.batch(step))
        out = next_token_loss(model, batch, 1, names)
        metrics = out.metrics()
        for i, name in enumerate(names):
            weights = jnp.where(batch.source_ids == i, batch.loss_weights, 0)
            alone = next_token_loss(model, batch._replace(loss_weights=weights))
            if float(alone.weight):
                seen.add(name)
                np.testing.assert_allclose(
                    metrics[f"loss/{name}"], alone.loss / alone.weight, rtol=1e-6
                )
                share = alone.means["accuracy"][1] / out.means["accuracy"][1]
                np.testing.assert_allclose(metrics[f"share/{name}"], share, rtol=1e-6)
            else:
                assert np.isnan(metrics[f"loss/{name}"]) and metrics[f"share/{name}"] == 0
    assert seen == {"manifest", "numbers"}


def test_they_are_logged(settings: dict, tmp_path: Path) -> None:
    settings = with_two_sources(settings, tmp_path)
    train(config(settings, "--train.steps=6"))
    path = Path(settings["train"]["output_dir"]) / "metrics.jsonl"
    assert "NaN" not in path.read_text()
    rows = read_metrics(path)
    for row in rows:
        np.testing.assert_allclose(row["share/manifest"] + row["share/numbers"], 1, rtol=1e-6)
        assert ("loss/numbers" in row) == (row["share/numbers"] > 0)
    assert any("loss/numbers" in row for row in rows)
