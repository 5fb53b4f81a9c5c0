"""Training: the same numbers however it is cut, stopped or spread, and none for what is frozen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.config import RunConfig
from qa_jax.errors import InputError
from qa_jax.train import train
from qa_jax.train.metrics import read_metrics
from qa_jax.train.run import make_models, make_objective, make_run_step, prepare
from qa_jax.train.state import initial_state
from qa_jax.train.step import jit_train_step
from qa_jax.trees import flatten_dict
from tests.train.runs import config, losses, stopping_after

pytestmark = pytest.mark.usefixtures("one_device")


def test_it_learns_and_leaves_a_checkpoint(settings: dict) -> None:
    train(config(settings, "--train.steps=30", "--train.max_to_keep=2", "--optimizer.peak_lr=1e-2"))
    curve = losses(settings["train"]["output_dir"])
    assert len(curve) == 30 and np.mean(curve[-4:]) < 0.7 * np.mean(curve[:4])
    output = Path(settings["train"]["output_dir"])
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["27", "30"]
    assert (output / "sentencepiece.model").is_file()
    assert list((output / "tensorboard").iterdir())
    row = read_metrics(output / "metrics.jsonl")[-1]
    assert {"loss", "accuracy", "grad_norm", "learning_rate", "steps_per_second"} <= set(row)


def test_resuming_changes_no_bit(settings: dict, tmp_path: Path) -> None:
    """Stopped at a step and gone on, in an order of data and of parameters that stays the same."""
    straight = json.loads(json.dumps(settings))
    straight["train"]["output_dir"] = str(tmp_path / "straight")
    train(config(straight))
    full = config(settings)
    # The schedule looks at train.steps, so the first part is stopped rather than made shorter.
    with stopping_after(4), pytest.raises(Exception, match="stopped at step"):
        train(full)
    assert checkpoint.CheckpointManager(full.train.output_dir).latest_step() == 4
    train(full)
    assert losses(full.train.output_dir) == losses(tmp_path / "straight")
    again, expected = (
        checkpoint.load_params(d, checkpoint.read_config(d))
        for d in (full.train.output_dir, tmp_path / "straight")
    )
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_accumulating_equals_the_full_batch(settings: dict) -> None:
    full = dict(settings, data={**settings["data"], "buckets": {204: 8}})
    full["train"] = {**settings["train"], "output_dir": settings["train"]["output_dir"] + "-full"}
    train(config(settings, "--optimizer.grad_accum_steps=2", "--train.steps=4"))
    train(config(full, "--train.steps=4"))
    np.testing.assert_allclose(
        losses(settings["train"]["output_dir"]), losses(full["train"]["output_dir"]), rtol=1e-5
    )


def test_frozen_parameters_do_not_move(settings: dict) -> None:
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


def test_muon_turns_every_matrix_evenly(settings: dict) -> None:
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


def test_evaluation_during_training(settings: dict) -> None:
    settings["data"]["eval"] = settings["data"]["train"]
    train(config(settings, "--train.eval_every=4"))
    rows = read_metrics(Path(settings["train"]["output_dir"]) / "metrics.jsonl")
    scored = [r for r in rows if "eval_loss" in r]
    assert [r["step"] for r in scored] == [4, 8]
    assert scored[1]["eval_loss"] < scored[0]["eval_loss"]


def test_a_loss_that_is_no_number_stops_the_run(settings: dict) -> None:
    with pytest.raises(InputError, match=r"the loss is (nan|inf).*lower optimizer\.peak_lr"):
        train(config(settings, "--optimizer.peak_lr=1e30", "--optimizer.clip_global_norm=0"))


def test_starting_from_a_checkpoint(settings: dict, tiny_checkpoint: Path) -> None:
    started = config(settings, f"--train.init_from={tiny_checkpoint}", "--optimizer.peak_lr=0")
    train(started)
    before, after = (
        checkpoint.load_params(d, checkpoint.read_config(d))
        for d in (tiny_checkpoint, started.train.output_dir)
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_another_model_does_not_resume(settings: dict) -> None:
    train(config(settings, "--train.steps=1"))
    with pytest.raises(InputError, match="contains a run of another model"):
        train(config(settings, "--model.audio.encoder_layers=1"))


def test_narrow_gradients_are_nearly_the_same(settings: dict) -> None:
    """In bfloat16 as the layers compute it: the losses of wide ones, nearly, and half the bytes."""
    curves = {}
    for kind in ("float32", "bfloat16"):
        more = ["--model.dtype=bfloat16", f"--optimizer.grad_dtype={kind}", "--train.steps=4"]
        train(
            config(settings, *more, f"--train.output_dir={settings['train']['output_dir']}-{kind}")
        )
        curves[kind] = losses(f"{settings['train']['output_dir']}-{kind}")
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"], rtol=2e-3)
    with pytest.raises(InputError, match="bfloat16 needs a bfloat16 model"):
        prepare(config(settings, "--optimizer.grad_dtype=bfloat16"))


VARIANTS: dict[str, dict[str, Any]] = {
    "full remat, small attention chunks": {"remat": "full", "max_scores": 100},
    "dots remat, small loss blocks": {"remat": "dots", "max_logits": 500},
    "unrolled, splash attention": {"unroll_layers": True, "attention_impl": "splash"},
}


def test_nothing_that_saves_memory_changes_a_gradient(
    settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remat, attention implementations and blocks of the loss: 1e-5 of the largest."""
    from qa_jax.model.attention import chunked, dispatch
    from qa_jax.train import cross_entropy

    monkeypatch.setattr(dispatch, "splash_supported", lambda *_: True)

    def found(**changes: Any) -> tuple[float, dict[tuple[str, ...], np.ndarray]]:
        with pytest.MonkeyPatch.context() as patch:
            if "max_scores" in changes:
                patch.setattr(chunked, "_MAX_SCORES_PER_CHUNK", {"cpu": changes.pop("max_scores")})
            if "max_logits" in changes:
                patch.setattr(cross_entropy, "_MAX_LOGITS", changes.pop("max_logits"))
                patch.setattr(cross_entropy, "_SMALL", 0)
                patch.setattr(cross_entropy, "_TOKENS_PER_BLOCK", {"cpu": 16})
            run = prepare(config(settings))
            model = dataclasses.replace(run.model_config, **changes)
            models = make_models(model, run.config.lora)
            objective = make_objective(run.config, models, 1)
            params, batch = initial_state(run).params, run.data.batch(0)

            def loss(params: Any) -> jax.Array:
                first = jax.tree.map(lambda x: x[0], batch)
                out = objective.loss(params, first, None, None)
                return out.loss / out.weight

            value, gradients = jax.jit(jax.value_and_grad(loss))(params)
            return float(value), flatten_dict(jax.tree.map(np.asarray, gradients))

    value, gradients = found(attention_impl="chunked")
    for name, changes in VARIANTS.items():
        other, others = found(**{"attention_impl": "chunked", **changes})
        assert other == pytest.approx(value, rel=1e-6), name
        for path, expected in gradients.items():
            error = np.abs(others[path] - expected).max()
            assert error <= 1e-5 * max(np.abs(expected).max(), 1e-4), (name, path)


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)]


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
        wanted = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        run = prepare(config({**settings, "mesh": wanted}), devices)
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
def test_parameters_are_really_sharded(settings: dict) -> None:
    settings["data"]["buckets"] = {0: 8, 104: 8, 204: 8}
    run = prepare(config({**settings, "mesh": {"data": 1, "fsdp": 4, "tensor": 2}}))
    state = initial_state(run)
    for tree in (state.params, state.opt_state):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.size >= 2048 and "embed_positions" not in str(path):
                share = leaf.addressable_shards[0].data.size / leaf.size
                assert share <= 1 / 2, (path, share)


def test_no_recompilation_between_steps(settings: dict) -> None:
    run = prepare(config(settings))
    with jax.set_mesh(run.mesh):
        state = initial_state(run)
        step = jit_train_step(
            make_run_step(run.config, run.models, run.objective, run.optimizer), state
        )
        for i in range(3 * run.data.steps_per_epoch):
            state, _ = step(state, run.data.batch(i))
    shapes = {
        tuple(np.shape(x) for x in run.data.batch(i)) for i in range(run.data.steps_per_epoch)
    }
    assert step._cache_size() == len(shapes)


def test_settings_of_a_run_are_few() -> None:
    from qa_jax.config.io import _flat_names

    assert len(_flat_names(dataclasses.asdict(RunConfig()))) < 120
