"""The search for the fastest step that fits."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from qa_jax.config import RunConfig, load_run_config
from qa_jax.plan import Plan, Target, find_target, make_plan, search
from qa_jax.plan.plan import analytic_plan
from tests.plan.configs import CONFIGS


@pytest.fixture
def config() -> RunConfig:
    freeze = "--optimizer.freeze=[encoder/embed_positions]"
    return load_run_config(CONFIGS / "sft_7b.yaml", [freeze])


def test_the_best_fits_and_its_recipe_plans_the_same(config: RunConfig) -> None:
    found = search(config, find_target("h100:8"))
    assert found is not None
    plan, recipe = found
    assert plan.fits and (plan.remat == "dots" or plan.mfu_bound > 0.7)
    again = dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, **recipe["mesh"]),
        data=dataclasses.replace(config.data, **recipe["data"]),
        model=dataclasses.replace(config.model, **recipe["model"]),
    )
    assert make_plan(again, find_target("h100:8")) == plan
    assert search(config, find_target("a100:1")) is None


def test_no_candidate_whose_bound_is_below_the_best_is_compiled(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions are 0.2 of the first bound and 0.9 of the others: those below are left out."""
    bounds: list[float] = []
    predictions: list[float] = []

    def predict(candidate: RunConfig, target: Target, **_: object) -> Plan:
        plan, _mesh = analytic_plan(candidate, target)
        bounds.append(plan.tokens_per_chip_day)
        plan.tokens_per_chip_day *= 0.9 if len(bounds) > 1 else 0.2
        predictions.append(plan.tokens_per_chip_day)
        return plan

    monkeypatch.setattr(sys.modules["qa_jax.plan.search"], "make_plan", predict)
    progress: list[str] = []
    found = search(config, find_target("h100:8"), lambda _, text: progress.append(text))
    assert found is not None and found[0].tokens_per_chip_day == max(predictions)
    assert bounds == sorted(bounds, reverse=True) and len(bounds) > 2
    assert all(bound > max(predictions[:i]) for i, bound in enumerate(bounds) if i)
    total = int(progress[0].split()[-1])
    assert len(bounds) < total and progress[0] == f"1 of at most {total}"
