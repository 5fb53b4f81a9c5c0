"""Training on eight devices: equal to one device, sharded, restored on other meshes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.model import Qwen2Audio, bind
from qa_jax.train import train
from qa_jax.train.objectives import next_token_loss
from qa_jax.train.run import make_run_step, prepare
from qa_jax.train.state import initial_state
from qa_jax.train.step import jit_train_step
from qa_jax.trees import flatten_dict
from tests.runs import at, config, dpo_config

pytestmark = pytest.mark.usefixtures("one_device")


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]


@pytest.mark.eight_devices
@pytest.mark.parametrize(("name", "meshes"), [("adamw", MESHES), ("muon", [(1, 4, 2)])])
def test_meshes_agree_with_one_device(
    settings: dict, name: str, meshes: list[tuple[int, int, int]]
) -> None:
    """Five steps' losses, and the parameters after them, on eight devices are those of one."""
    # Epsilon above rounding: where a gradient is zero but for it, Adam would take its sign.
    settings["optimizer"] |= {"name": name, "eps": 1e-4}
    settings["data"]["buckets"] = {204: 8}

    def five_steps(
        sizes: tuple[int, int, int], devices: list[jax.Device]
    ) -> tuple[list[float], Any]:
        target_positions = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        run = prepare(config({**settings, "mesh": target_positions}), devices)
        with jax.set_mesh(run.mesh):
            state, curve = initial_state(run), []
            step = make_run_step(run.config, run.models, run.objective, run.optimizer)
            step = jit_train_step(step, state)
            batch = run.data.batch(0)  # one, so that each mesh compiles once
            for _ in range(5):
                state, metrics = step(state, batch)
                curve.append(float(metrics["loss"]))
        return curve, flatten_dict(jax.tree.map(np.asarray, state.params))

    curve, params = five_steps((1, 1, 1), jax.devices()[:1])
    for sizes in meshes:
        other_curve, other_params = five_steps(sizes, jax.devices())
        np.testing.assert_allclose(other_curve, curve, rtol=1e-5)
        for path, expected in params.items():
            error = np.abs(other_params[path] - expected).max() / np.abs(expected).max()
            assert error <= 1e-5, (sizes, path, error)


@pytest.mark.eight_devices
def test_parameters_are_sharded(settings: dict) -> None:
    settings["data"]["buckets"] = {0: 8, 104: 8, 204: 8}
    run = prepare(config({**settings, "mesh": {"data": 1, "fsdp": 4, "tensor": 2}}))
    state = initial_state(run)
    for tree in (state.params, state.opt_state):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.size >= 2048 and "embed_positions" not in str(path):
                share = leaf.addressable_shards[0].data.size / leaf.size
                assert share <= 1 / 2, (path, share)


@pytest.mark.eight_devices
def test_saved_on_eight_restored_on_fewer(
    job_settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same parameters, bit for bit, and the same next loss, on 8, 2, 4 and 1 devices."""
    whole = at(job_settings, tmp_path / "run", mesh={"data": 2, "fsdp": 2, "tensor": 2})
    train(config(whole, "--train.steps=2"))
    devices = jax.devices()
    found = []
    for sizes in ((2, 2, 2), (1, 2, 1), (1, 2, 2), (1, 1, 1)):
        mesh = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        run = prepare(config(at(whole, tmp_path / "run", mesh=mesh)), devices[: np.prod(sizes)])
        found.append(checkpoint.load_params(tmp_path / "run", run.model_config, run.mesh))
        with jax.set_mesh(run.mesh):
            model = bind(Qwen2Audio(run.model_config))
            first = jax.tree.map(lambda x: x[0], run.data.batch(2))
            groups = run.data.num_batch_shards
            out = jax.jit(lambda p, b, m=model, g=groups: next_token_loss(m(p), b, g))(
                found[-1], first
            )
        if len(found) == 1:
            loss = float(out.loss)
        assert float(out.loss) == pytest.approx(loss, rel=1e-5)
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])


@pytest.mark.eight_devices
@pytest.mark.parametrize("adapted", [False, True])
def test_dpo_on_a_mesh_equals_one_device(
    settings: dict, pairs: Path, tiny_checkpoint: Path, adapted: bool
) -> None:
    """Groups of rows with their own clips, each with both answers."""
    more = ["--data.buckets={204: 8}", "--optimizer.eps=1e-4"]
    if adapted:
        more += [
            '--lora.target_modules=["decoder/"]',
            "--lora.base_dtype=float32",
            "--optimizer.peak_lr=3e-2",
        ]
    found = []
    for sizes, devices in (((1, 1, 1), 1), ((1, 4, 2), 8)):
        settings["mesh"] = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        run = prepare(dpo_config(settings, pairs, tiny_checkpoint, *more), jax.devices()[:devices])
        with jax.set_mesh(run.mesh):
            state = initial_state(run)
            ref_params = None if adapted else jax.tree.map(jnp.copy, state.params)
            step = jax.jit(make_run_step(run.config, run.models, run.objective, run.optimizer))
            rows = []
            for _ in range(3):
                state, metrics = step(state, run.data.batch(0), ref_params)
                rows.append({k: float(v) for k, v in metrics.items()})
        found.append(rows)
    for one, many in zip(*found, strict=True):
        for name in ("loss", "reward_margin", "logp_accuracy", "kl", "grad_norm"):
            assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
