"""Analytic plans: bytes and operations."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import pytest

from qa_jax.config import MeshConfig, OptimizerConfig, RunConfig, load_run_config, preset
from qa_jax.model import count_parameters, param_specs
from qa_jax.parallel import make_mesh
from qa_jax.plan import find_target, make_plan
from qa_jax.plan.estimate import Shapes, executed_flops, state_bytes
from qa_jax.plan.plan import lower_step
from qa_jax.train.run import make_models
from tests.plan.configs import CONFIGS


def test_full_finetuning_fits_one_h200() -> None:
    overrides = [
        "--data.buckets={3000: 4}",
        "--optimizer.mu_dtype=bfloat16",
        "--optimizer.freeze=[encoder/embed_positions]",
    ]
    config = load_run_config(CONFIGS / "sft_7b.yaml", overrides)
    plan = make_plan(config, find_target("h200:1"))
    assert plan.fits and not plan.compiled and plan.parameters == 8_397_094_912
    size = plan.bytes_per_chip
    trainable = plan.parameters - 1500 * 1280
    assert size["parameters"] == 4 * plan.parameters
    assert size["gradients"] == 4 * trainable and size["optimizer"] == pytest.approx(6 * trainable)
    assert size["activations"] == 2 * 4 * 32 * (2048 * 4096 + 1500 * 1280)
    assert sum(size.values()) < plan.hbm_bytes_per_chip
    more = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, freeze=()))
    assert not make_plan(more, find_target("h100:1")).fits


@pytest.mark.parametrize(
    ("target", "overrides", "width"),
    [("h100:1", [], 2), ("l4:1", ["--lora.base_dtype=int8", "--data.buckets={3000: 1}"], 1)],
)
def test_lora_fits_one_gpu(target: str, overrides: list[str], width: int) -> None:
    config = load_run_config(CONFIGS / "lora_7b.yaml", overrides)
    plan = make_plan(config, find_target(target))
    assert plan.fits and plan.parameters == 8_397_094_912
    models = make_models(config.model, config.lora)
    low = count_parameters(models.policy) - count_parameters(models.base)
    size, sizes = plan.bytes_per_chip, {p: d.shape for p, d in param_specs(models.base).items()}
    adapted = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11_008)) + 16 * (1280 + 4096)
    assert low == adapted and 2 * size["gradients"] == 8 * low
    assert size["optimizer"] == pytest.approx(8 * low)
    if width == 2:
        assert size["parameters"] == 2 * plan.parameters + 4 * low
    else:
        kernels = sum(math.prod(s) for p, s in sizes.items() if (*p[:-1], "kernel_scale") in sizes)
        assert size["parameters"] < 1.12 * kernels + 2 * (plan.parameters - kernels)
    assert sum(size.values()) < plan.hbm_bytes_per_chip


def test_dpo_reference_memory() -> None:
    config = load_run_config(CONFIGS / "dpo_7b.yaml")
    stored = make_plan(config, find_target("h100:8"))
    assert stored.fits and "reference" not in stored.bytes_per_chip and stored.shapes.num_rows == 32
    preference = dataclasses.replace(config.dpo, reference="in_memory")
    kept = make_plan(dataclasses.replace(config, dpo=preference), find_target("h100:8"))
    assert kept.bytes_per_chip["reference"] == round(2 * kept.parameters / 8)
    assert kept.flops_per_chip > 1.2 * stored.flops_per_chip


def test_flops_equal_the_compilers() -> None:
    """Of an unrolled model, whose every layer XLA counts: within 10 %."""
    config = dataclasses.replace(preset("bench"), unroll_layers=True)
    text = dataclasses.replace(config.text, num_hidden_layers=2, vocab_size=4096)
    audio = dataclasses.replace(config.audio, encoder_layers=2)
    config = dataclasses.replace(config, text=text, audio=audio, audio_token_id=4000)
    shapes = Shapes(num_rows=2, num_tokens=256, num_clips=2, num_frames=504, grad_accum_steps=1)
    mesh, run = make_mesh(MeshConfig(), jax.devices()[:1]), RunConfig(model=config)
    compiled = lower_step(run, mesh, shapes).compile()
    counted: Any = compiled.cost_analysis()
    assert counted["flops"] == pytest.approx(
        executed_flops(run, make_models(config, run.lora), shapes), rel=0.1
    )


def test_recomputation_equals_the_compilers() -> None:
    """What a policy adds to the operations of one layer; the compiler counts activations, too."""
    config = preset("bench")
    text = dataclasses.replace(config.text, num_hidden_layers=1, vocab_size=4096)
    config = dataclasses.replace(config, text=text, audio_token_id=4000)
    shapes = Shapes(num_rows=2, num_tokens=256, num_clips=2, num_frames=504, grad_accum_steps=1)
    mesh, freeze = make_mesh(MeshConfig(), jax.devices()[:1]), OptimizerConfig(freeze=("encoder",))
    found, expected = {}, {}
    for remat in ("none", "full", "attention", "mlp"):
        run = RunConfig(model=dataclasses.replace(config, remat=remat), optimizer=freeze)  # type: ignore[arg-type]
        cost: Any = lower_step(run, mesh, shapes).compile().cost_analysis()
        found[remat] = cost["flops"]
        expected[remat] = executed_flops(run, make_models(run.model, run.lora), shapes)
    for remat in ("full", "attention", "mlp"):
        more = found[remat] - found["none"], expected[remat] - expected["none"]
        assert more[0] == pytest.approx(more[1], rel=0.15), remat


def test_state_bytes_equal_the_compilers() -> None:
    """Parameters and optimizer of a step on eight devices, against what the compiler allots."""
    config = dataclasses.replace(preset("bench"), remat="full")
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    run = RunConfig(model=config)
    shapes = Shapes(num_rows=8, num_tokens=64, num_clips=8, num_frames=104, grad_accum_steps=1)
    stats = lower_step(run, mesh, shapes).compile().memory_analysis()
    size = state_bytes(run, make_models(config, run.lora), 8)
    counted = size["parameters"] + size["optimizer"]
    assert stats.argument_size_in_bytes == pytest.approx(counted, rel=0.1)
