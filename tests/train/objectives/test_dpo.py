"""DPO: losses, references, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import DPOConfig
from qa_jax.train import train
from qa_jax.train.metrics import read_metrics
from qa_jax.train.objectives.dpo import dpo_loss
from qa_jax.train.run import make_objective, prepare
from qa_jax.train.state import initial_state
from tests.runs import dpo_config

pytestmark = pytest.mark.usefixtures("one_device")


def test_dpo_learns_with_every_kind_of_reference(
    settings: dict, pairs: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """And the same losses, whether the reference is kept, stored, or the base of adapters."""
    runs = {
        "in_memory": [],
        "precomputed": ["--dpo.reference=precomputed"],
        "accumulated": ["--optimizer.grad_accum_steps=2", "--data.buckets={204: 4}"],
    }
    curves = {}
    for name, more in runs.items():
        more = ["--data.buckets={204: 8}", *more, f"--train.output_dir={tmp_path / name}"]
        more += [f"--data.eval={pairs}"] if name == "precomputed" else []
        train(dpo_config(settings, pairs, tiny_checkpoint, *more))
        rows = [r for r in read_metrics(tmp_path / name / "metrics.jsonl")]
        curves[name] = [r["loss"] for r in rows if "loss" in r]
        assert curves[name][0] == pytest.approx(np.log(2), rel=1e-5)
        for held_out in (r for r in rows if "eval_loss" in r):
            assert held_out["eval_reward_accuracy"] == 1 and held_out["eval_reward_margin"] > 0
        assert any("eval_loss" in r for r in rows) == (name == "precomputed")
        last = [r for r in rows if "loss" in r][-1]
        assert last["reward_accuracy"] == 1 and last["loss"] < 0.5
        assert last["reward_margin"] == pytest.approx(
            last["reward_chosen"] - last["reward_rejected"], rel=1e-4
        )
    np.testing.assert_allclose(curves["precomputed"], curves["in_memory"], rtol=1e-4)
    np.testing.assert_allclose(curves["accumulated"], curves["in_memory"], rtol=1e-4)


def test_losses_equal_their_formulas() -> None:
    """Options beyond the TRL comparison: label smoothing, the SFT term, padding."""
    rng = np.random.default_rng(0)
    log_probs = -rng.random((8, 5))
    target_positions = rng.random((8, 5)) < 0.6
    target_positions[:, 0] = True
    target_positions[[3, 7]] = False  # the last pair only fills the batch
    log_probs[~target_positions] = 0
    reference = -3 * rng.random(8)
    ratio = log_probs.sum(1) - reference
    count = np.maximum(target_positions.sum(1), 1)
    margin = (ratio[:4] - ratio[4:])[:3]

    def log_sigmoid(x: np.ndarray) -> np.ndarray:
        return -np.log1p(np.exp(-x))

    def found(**how: Any) -> float:
        values = (jnp.asarray(x) for x in (log_probs, reference, target_positions))
        out = dpo_loss(DPOConfig(**how), *values)
        return float(out.loss / out.weight)

    smoothed = -0.8 * log_sigmoid(0.3 * margin) - 0.2 * log_sigmoid(-0.3 * margin)
    assert found(beta=0.3, label_smoothing=0.2) == pytest.approx(smoothed.mean(), rel=1e-5)
    mean = (ratio / count)[:4] - (ratio / count)[4:]
    each = -log_sigmoid(0.3 * mean[:3])
    assert found(beta=0.3, length_normalized=True) == pytest.approx(each.mean(), rel=1e-5)
    likelihood = -(log_probs.sum(1) / count)[:3]
    both = -log_sigmoid(0.1 * margin) + 0.5 * likelihood
    assert found(sft_weight=0.5) == pytest.approx(both.mean(), rel=1e-5)
    # Each batch shard has its chosen responses first, then its rejected ones.
    order = [0, 1, 4, 5, 2, 3, 6, 7]
    values = (jnp.asarray(x[order]) for x in (log_probs, reference, target_positions))
    out = dpo_loss(DPOConfig(), *values, num_batch_shards=2)
    assert float(out.loss / out.weight) == pytest.approx(found(), rel=1e-6)


def test_the_reference_gets_no_gradient(settings: dict, pairs: Path, tiny_checkpoint: Path) -> None:
    run = prepare(dpo_config(settings, pairs, tiny_checkpoint, "--data.buckets={204: 8}"))
    objective = make_objective(run.config, run.models, 1)
    params = initial_state(run).params
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), run.data.batch(0))

    def loss(policy: Any, reference: Any) -> jax.Array:
        return objective.loss(policy, batch, reference, None).loss

    gradients = jax.jit(jax.grad(loss, (0, 1)))(params, params)
    largest = [max(float(jnp.abs(g).max()) for g in jax.tree.leaves(x)) for x in gradients]
    assert largest[0] > 0 and largest[1] == 0
