"""Plans of generation."""

from __future__ import annotations

from qa_jax.config import load_run_config
from qa_jax.plan import find_target, make_generation_plan
from tests.plan.configs import CONFIGS, needs_libtpu

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


@needs_libtpu
def test_a_compiled_prefill_counts_its_cache_once() -> None:
    """It is an argument that is written in place."""
    config = load_run_config(
        CONFIGS / "research_100m.yaml",
        ["--data.buckets={1004: 64}", "--model.audio.encoder_layers=2", "--mesh.fsdp=1"],
    )
    plan = make_generation_plan(config, find_target("v5e:1x1"), "prefill", quick=True)
    used = plan.bytes_per_chip
    assert plan.compiled and used["cache"] == 2 * 10 * 64 * (1024 + 256) * 768 * 2
    assert used["batch"] < used["cache"] / 4 and used["outputs"] < used["cache"] / 4
    assert plan.fits and sum(used.values()) < plan.hbm_bytes_per_chip
