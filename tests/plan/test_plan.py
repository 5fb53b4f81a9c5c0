"""The step compiled for real topologies, and the counts that need no compiler."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from qa_jax import cli
from qa_jax.config import MeshConfig, RunConfig, load_run_config, preset
from qa_jax.errors import InputError
from qa_jax.model import count_parameters, param_specs
from qa_jax.parallel import make_mesh
from qa_jax.parallel.xla_flags import xla_flags
from qa_jax.plan import find_target, make_generation_plan, make_plan, search
from qa_jax.plan.collectives import collectives
from qa_jax.plan.estimate import Shapes, batch_shapes, executed_flops, state_bytes
from qa_jax.plan.plan import LOW_EFFORT_OPTIONS, lower_step
from qa_jax.train.run import make_models

JOBS = ("prefill", "decode")
CONFIGS = Path(__file__).parents[2] / "configs"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (Linux only)"
)
T, FRAMES = 640, 1004
"""Lengths that are no parameter's dimension, so that a shape tells what it is of."""


def shallow(frames: int = FRAMES, **mesh: int) -> RunConfig:
    """The full-size widths and vocabulary, two layers each."""
    full = preset("qwen2_audio_7b")
    model = dataclasses.replace(
        full,
        audio=dataclasses.replace(full.audio, encoder_layers=2),
        text=dataclasses.replace(full.text, num_hidden_layers=2),
    )
    config = RunConfig(model=model, mesh=MeshConfig(**mesh))
    data = dataclasses.replace(config.data, buckets={frames: 8}, packed_length=T)
    return dataclasses.replace(config, data=data)


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "frames", "mesh"),
    # The second without sound: compiling is what this takes, and it has half as much.
    [("v5e:2x4", FRAMES, {"fsdp": 8}), ("v6e:2x4", 0, {"fsdp": 4, "tensor": 2})],
)
def test_compiled_program(
    topology: str, frames: int, mesh: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    config, target = shallow(frames, **mesh), find_target(topology)
    shapes = batch_shapes(config)
    clips = 16 if frames else 0
    assert shapes == Shapes(
        num_rows=8, num_tokens=T, num_clips=clips, num_frames=frames, grad_accum_steps=1
    )
    compiled = lower_step(config, make_mesh(config.mesh, target.devices), shapes).compile(
        LOW_EFFORT_OPTIONS
    )
    text = compiled.as_text()
    assert "nvoluntary full remat" not in capfd.readouterr().err
    # The state is donated: of all that comes out, only the metrics are new memory.
    stats = compiled.memory_analysis()
    assert stats.output_size_in_bytes - stats.alias_size_in_bytes < 2**16
    # Never the logits of a whole batch, in any order of their dimensions.
    vocab = config.model.text.vocab_size // mesh.get("tensor", 1)
    rows = shapes.num_rows // mesh["fsdp"]
    assert f"f32[{rows},{T},{vocab}]" not in text and f"f32[{rows * T},{vocab}]" not in text
    for collective in collectives(text):
        of_activations = {T, T - 1} & set(collective.shape)
        # A sum over an axis of one device sends nothing.
        gathered = collective.kind in ("all-gather", "all-reduce") and collective.sent > 0
        if "tensor" not in mesh and gathered:
            # Token ids are gathered, for the gradient of the table; they are a few KiB.
            assert not of_activations or collective.largest < 2**16, collective


@needs_libtpu
def test_the_compilers_take_their_options() -> None:
    """Every option of `train.xla: tuned` is one that the platform's compiler knows."""
    devices = {"tpu": find_target("v6e:2x4").devices[0], "gpu": jax.devices()[0]}
    for platform, device in devices.items():
        place = jax.sharding.SingleDeviceSharding(device)
        x = jax.ShapeDtypeStruct((128, 128), jax.numpy.bfloat16, sharding=place)
        lowered = jax.jit(lambda x: x @ x).lower(x)
        for name, value in xla_flags(platform, "tuned").items():
            lowered.compile({name: value})
        with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
            lowered.compile({f"xla_{platform}_no_such_option": True})
        assert not xla_flags(platform, "plain")


@needs_libtpu
def test_what_does_not_fit_is_told() -> None:
    config = shallow()
    wide = dataclasses.replace(config.data, buckets={FRAMES: 256})
    plan = make_plan(dataclasses.replace(config, data=wide), find_target("v5e:1x1"), quick=True)
    assert plan.compiled and not plan.fits
    assert "needs" in plan.problem and "of 15.75G" in plan.problem


@needs_libtpu
def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: demo\ndata: {buckets: {504: 8}, packed_length: 256}\n")
    arguments = ["plan", "--config", str(recipe), "--model.dtype", "bfloat16"]
    assert cli.main([*arguments, "--topology", "v5p:2x2x1", "--quick", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["compiled"] and plan["devices"] == 4
    assert plan["bytes_per_chip"]["parameters"] > 0 and plan["hbm_bytes_per_chip"] == 95 * 2**30
    assert 0 < plan["mfu_bound"] < 1 and plan["bound"] in plan["seconds"]
    assert plan["parameters"] > 0 and plan["flops_per_chip"] > 0 and plan["compile_seconds"] > 0
    assert cli.main([*arguments, "--topology", "h100:8"]) == 0
    assert "fits (analytic)" in capsys.readouterr().out
    decode = [*arguments, "--topology", "v5p:2x2x1", "--job", "decode", "--data.max_tokens", "256"]
    assert cli.main([*decode, "--quick", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["compiled"] and plan["shapes"]["num_tokens"] == 1
    # Keys and values of two rows a chip, of 256 tokens and as many to come, in all layers.
    assert plan["bytes_per_chip"]["cache"] == 2 * 2 * 2 * 512 * 4 * 32 * 2
    assert plan["network_bytes_per_chip"]["all-gather"] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7:2x2", "unknown topology; did you mean"),
        ("v5e", "has no shape; write for example v5e:4x4"),
        ("h100:many", "no number of GPUs; write h100:8"),
    ],
)
def test_unknown_targets_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_target(name)


def test_rows_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"8 rows cannot be sharded over 3 devices .*; choose a multiple of 3"
    ):
        make_plan(shallow(), find_target("h100:3"))


def test_full_fine_tuning_fits_one_h200_and_the_bytes_add_up() -> None:
    overrides = [
        "--data.buckets={3000: 4}",
        "--optimizer.mu_dtype=bfloat16",
        "--optimizer.freeze=[encoder/embed_positions]",
    ]
    config = load_run_config(CONFIGS / "sft_7b.yaml", overrides)
    plan = make_plan(config, find_target("h200:1"))
    assert plan.fits and not plan.compiled and plan.parameters == 8_397_094_912
    held = plan.bytes_per_chip
    learnt = plan.parameters - 1500 * 1280
    assert held["parameters"] == 4 * plan.parameters
    assert held["gradients"] == 4 * learnt and held["optimizer"] == 6 * learnt
    assert held["activations"] == 2 * 4 * 32 * (2048 * 4096 + 1500 * 1280)
    assert sum(held.values()) < plan.hbm_bytes_per_chip
    more = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, freeze=()))
    assert not make_plan(more, find_target("h100:1")).fits


def test_answers_on_one_gpu() -> None:
    config = load_run_config(CONFIGS / "sft_7b.yaml", ["--data.buckets={3000: 8}"])
    plans = {job: make_generation_plan(config, find_target("h100:1"), job) for job in JOBS}
    for plan in plans.values():
        assert plan.fits and plan.bytes_per_chip["parameters"] == 2 * plan.parameters
        assert plan.bytes_per_chip["cache"] == 2 * 32 * 8 * (2048 + 256) * 4096 * 2
    # A token is bound by reading the weights and the cache, a prompt by computing.
    assert plans["decode"].bound == "memory" and plans["prefill"].bound == "compute"
    assert plans["decode"].seconds["memory"] > 2 * 8.4e9 / 3.35e12


@pytest.mark.parametrize(
    ("target", "overrides", "width"),
    [("h100:1", [], 2), ("l4:1", ["--lora.base_dtype=int8", "--data.buckets={3000: 1}"], 1)],
)
def test_adapters_fit_one_gpu(target: str, overrides: list[str], width: int) -> None:
    config = load_run_config(CONFIGS / "lora_7b.yaml", overrides)
    plan = make_plan(config, find_target(target))
    assert plan.fits and plan.parameters == 8_397_094_912
    models = make_models(config.model, config.lora)
    low = count_parameters(models.policy) - count_parameters(models.base)
    held, sizes = plan.bytes_per_chip, {p: d.shape for p, d in param_specs(models.base).items()}
    adapted = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11_008)) + 16 * (1280 + 4096)
    assert low == adapted and held["optimizer"] == 2 * held["gradients"] == 8 * low
    if width == 2:
        assert held["parameters"] == 2 * plan.parameters + 4 * low
    else:
        kernels = sum(math.prod(s) for p, s in sizes.items() if (*p[:-1], "kernel_scale") in sizes)
        assert held["parameters"] < 1.12 * kernels + 2 * (plan.parameters - kernels)
    assert sum(held.values()) < plan.hbm_bytes_per_chip


def test_preferences_hold_a_reference_or_its_log_probabilities() -> None:
    config = load_run_config(CONFIGS / "dpo_7b.yaml")
    stored = make_plan(config, find_target("h100:8"))
    assert stored.fits and "reference" not in stored.bytes_per_chip and stored.shapes.num_rows == 32
    preference = dataclasses.replace(config.dpo, reference="in_memory")
    kept = make_plan(dataclasses.replace(config, dpo=preference), find_target("h100:8"))
    assert kept.bytes_per_chip["reference"] == round(2 * kept.parameters / 8)
    assert kept.flops_per_chip > 1.2 * stored.flops_per_chip


def test_search_finds_the_fastest_that_fits() -> None:
    config = load_run_config(
        CONFIGS / "sft_7b.yaml", ["--optimizer.freeze=[encoder/embed_positions]"]
    )
    best = search(config, find_target("h100:8"))
    assert best is not None and best.fits
    assert best.remat == "dots" or best.mfu_bound > 0.7
    assert search(config, find_target("a100:1")) is None


def test_counted_operations_are_the_compilers() -> None:
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_planned_bytes_are_those_of_a_real_run() -> None:
    """The step as it is planned for a processor, run there: the process's peak, within 10 %."""
    flags = "--xla_backend_optimization_level=1"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("real_run.py"))],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    planned, real = json.loads(done.stdout.splitlines()[-1])
    assert real == pytest.approx(planned, rel=0.1)


def test_counted_bytes_are_the_compilers() -> None:
    """Parameters and optimizer of a step on eight devices, against what the compiler allots."""
    config = dataclasses.replace(preset("bench"), remat="full")
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    run = RunConfig(model=config)
    shapes = Shapes(num_rows=8, num_tokens=64, num_clips=8, num_frames=104, grad_accum_steps=1)
    stats = lower_step(run, mesh, shapes).compile().memory_analysis()
    held = state_bytes(run, make_models(config, run.lora), 8)
    counted = held["parameters"] + held["optimizer"]
    assert stats.argument_size_in_bytes == pytest.approx(counted, rel=0.1)
