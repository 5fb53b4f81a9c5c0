"""Compiled plans: programs, memory."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from qa_jax.errors import InputError
from qa_jax.parallel import make_mesh
from qa_jax.plan import find_target, make_plan
from qa_jax.plan.collectives import collectives
from qa_jax.plan.compiled import LOW_EFFORT_OPTIONS
from qa_jax.plan.estimate import Shapes, batch_shapes
from qa_jax.plan.plan import lower_step
from tests.plan.configs import needs_libtpu, shallow

T, FRAMES = 640, 1004
"""Lengths that no parameter has as a dimension, so that shapes identify arrays."""


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "frames", "grad_dtype", "mesh"),
    # The second without audio, which halves the compile time.
    [
        ("v5e:2x4", FRAMES, "float32", {"fsdp": 8}),
        ("v6e:2x4", 0, "bfloat16", {"fsdp": 4, "tensor": 2}),
    ],
)
def test_compiled_program(
    topology: str,
    frames: int,
    grad_dtype: Literal["float32", "bfloat16"],
    mesh: dict[str, int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    config, target = shallow(frames, **mesh), find_target(topology)
    optimizer = dataclasses.replace(config.optimizer, grad_dtype=grad_dtype)
    config = dataclasses.replace(config, optimizer=optimizer)
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
    summed = set()
    for collective in collectives(text):
        of_activations = {T, T - 1} & set(collective.shape)
        # A sum over an axis of one device sends nothing.
        gathered = collective.kind in ("all-gather", "all-reduce") and collective.sent > 0
        if "tensor" not in mesh and gathered:
            # Token ids are gathered, for the gradient of the table; they are a few KiB.
            assert not of_activations or collective.largest < 2**16, collective
        is_sum = collective.kind in ("all-reduce", "reduce-scatter")
        if is_sum and collective.largest > 2**20 and not of_activations:
            summed.add(collective.dtype)
    # Gradients of matrices travel in the dtype of the setting.
    assert summed == {{"float32": "f32", "bfloat16": "bf16"}[grad_dtype]}


@needs_libtpu
def test_plan_that_does_not_fit() -> None:
    config = shallow()
    wide = dataclasses.replace(config.data, buckets={FRAMES: 256})
    plan = make_plan(dataclasses.replace(config, data=wide), find_target("v5e:1x1"), quick=True)
    assert plan.compiled and not plan.fits
    assert "needs" in plan.problem and "of 15.75G" in plan.problem


def test_indivisible_rows_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"8 rows cannot be sharded over 3 devices .*; choose a multiple of 3"
    ):
        make_plan(shallow(), find_target("h100:3"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_planned_memory_equals_a_real_run() -> None:
    """The planned memory of a step on a CPU against the process's peak, within 10 %."""
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
