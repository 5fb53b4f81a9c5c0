"""Plans of generation."""

from __future__ import annotations

from qa_jax.config import load_run_config
from qa_jax.plan import find_target, make_generation_plan
from tests.plan.configs import CONFIGS

JOBS = ("prefill", "decode")


def test_generation_fits_one_gpu() -> None:
    config = load_run_config(CONFIGS / "sft_7b.yaml", ["--data.buckets={3000: 8}"])
    plans = {job: make_generation_plan(config, find_target("h100:1"), job) for job in JOBS}
    for plan in plans.values():
        assert plan.fits and plan.bytes_per_chip["parameters"] == 2 * plan.parameters
        assert plan.bytes_per_chip["cache"] == 2 * 32 * 8 * (2048 + 256) * 4096 * 2
    # A token is bound by reading the weights and the cache, a prompt by computing.
    assert plans["decode"].bound == "memory" and plans["prefill"].bound == "compute"
    assert plans["decode"].seconds["memory"] > 2 * 8.4e9 / 3.35e12
