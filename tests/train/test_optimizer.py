"""Frozen parameters, Muon, learning-rate multipliers."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.errors import InputError
from qa_jax.train import train
from qa_jax.train.run import make_run_step, prepare
from qa_jax.train.state import initial_params, initial_state
from qa_jax.trees import flatten_dict
from tests.runs import at, config, one_device_mesh

pytestmark = pytest.mark.usefixtures("one_device")


def test_frozen_parameters_do_not_change(settings: dict) -> None:
    frozen = config(settings, '--optimizer.freeze=["encoder", "decoder/embed"]', "--train.steps=3")
    before = flatten_dict(initial_state(prepare(frozen)).params)
    train(frozen)
    after = flatten_dict(
        checkpoint.load_params(
            frozen.train.output_dir, checkpoint.read_config(frozen.train.output_dir)
        )
    )
    for path, old in before.items():
        same = np.array_equal(old, after[path])
        assert same == (path[0] == "encoder" or path[1] == "embed_tokens"), path
    with pytest.raises(InputError, match="'encoders' matches nothing; did you mean encoder"):
        prepare(config(settings, '--optimizer.freeze=["encoders"]'))


def test_muon_orthogonalizes_every_matrix(settings: dict) -> None:
    """All singular values of a matrix's update are near one, scaled to AdamW's size; tables, norms
    and biases are left to AdamW."""
    updates = {}
    for name in ("adamw", "muon"):
        run = prepare(config(settings, f"--optimizer.name={name}", "--optimizer.weight_decay=0"))
        before = initial_state(run)
        step = make_run_step(run.config, run.models, run.objective, run.optimizer)
        # The first step's rate is 0, the second's half the peak.
        after = jax.jit(step)(jax.jit(step)(before, run.data.batch(0))[0], run.data.batch(1))[0]
        moved = jax.tree.map(lambda a, b: np.asarray(a - b), after.params, before.params)
        updates[name] = flatten_dict(moved)
    rate = run.config.optimizer.peak_lr / 2
    for path, axes in (
        (("decoder", "layers", "self_attn", "q_proj", "kernel"), "embed first"),
        (("decoder", "layers", "self_attn", "o_proj", "kernel"), "embed last"),
        (("encoder", "layers", "fc1", "kernel"), "embed first"),
    ):
        for update in updates["muon"][path]:  # one for each layer
            width = update.shape[0] if axes == "embed first" else update.shape[-1]
            matrix = update.reshape((width, -1) if axes == "embed first" else (-1, width))
            even = 0.2 * rate * np.sqrt(max(matrix.shape))
            singular = np.linalg.svd(matrix, compute_uv=False)
            # Five Newton-Schulz steps bring a singular value to between 0.7 and 1.2, the smallest
            # excepted; AdamW's largest is many times its median.
            assert 0.7 * even < singular.max() < 1.3 * even, path
            assert np.median(singular) > 0.5 * even, path
    for path in (("decoder", "embed_tokens"), ("encoder", "layer_norm", "bias")):
        np.testing.assert_allclose(
            updates["muon"][path], updates["adamw"][path], rtol=1e-4, atol=1e-7
        )


def test_lr_multipliers(
    job_settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_device_mesh(monkeypatch)
    moved = []
    for factor in (1.0, 0.1):
        run = at(
            job_settings, tmp_path / f"{factor}", optimizer={"lr_multipliers": {"encoder/": factor}}
        )
        before = initial_params(prepare(config(run)))
        train(config(run, "--train.steps=1", "--optimizer.warmup_steps=0"))
        after = checkpoint.load_params(
            run["train"]["output_dir"], prepare(config(run)).model_config
        )
        change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
        moved.append((change["encoder"]["conv1"]["kernel"], change["decoder"]["embed_tokens"]))
    assert moved[1][0] == pytest.approx(0.1 * moved[0][0], rel=1e-2)
    assert moved[1][1] == moved[0][1]
    with pytest.raises(InputError, match=r"optimizer\.lr_multipliers: 'encode_' matches nothing"):
        prepare(
            config(at(job_settings, tmp_path / "x", optimizer={"lr_multipliers": {"encode_": 0.1}}))
        )
