"""Schedules, optimizers, frozen parameters, learning-rate multipliers."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.config import ModelConfig, OptimizerConfig, preset
from qa_jax.errors import InputError
from qa_jax.model import Qwen2Audio, param_specs
from qa_jax.train import train
from qa_jax.train.optimizer import make_lr_multipliers, make_optimizer, make_schedule
from qa_jax.train.run import make_run_step, prepare
from qa_jax.train.state import initial_params, initial_state
from qa_jax.trees import flatten_dict, unflatten_dict
from tests.runs import at, config, losses, one_device_mesh

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


def test_schedules() -> None:
    settings = dict(peak_lr=2.0, warmup_steps=0.1, final_lr_fraction=0.25, decay_fraction=0.3)
    steps = np.array([0, 5, 10, 40, 55, 70, 85, 99, 100])
    after = (steps[2:] - 10) / 90
    expected = {
        "cosine": 0.5 + 1.5 * (1 + np.cos(np.pi * after)) / 2,
        "linear": 2 - 1.5 * after,
        "wsd": [2, 2, 2, 2, 1.25, 2 - 1.5 * 29 / 30, 0.5],
        "inverse_sqrt": 2 * np.sqrt(10 / steps[2:]),
        "constant": [2] * 7,
    }
    for name, values in expected.items():
        schedule = make_schedule(OptimizerConfig(schedule=name, **settings), 100)  # type: ignore[arg-type]
        found = [float(schedule(step)) for step in steps]
        np.testing.assert_allclose(found, [0, 1, *values], rtol=1e-5, err_msg=name)
        same = OptimizerConfig(schedule=name, **{**settings, "warmup_steps": 10})  # type: ignore[arg-type]
        assert [float(make_schedule(same, 100)(step)) for step in steps] == found
    with pytest.raises(InputError, match=r"optimizer\.warmup_steps"):
        make_schedule(OptimizerConfig(warmup_steps=-1), 100)


@pytest.mark.parametrize(("name", "rate"), [("lion", 1e-3), ("adafactor", 1e-2)])
def test_every_optimizer_learns_and_resumes_exactly(name: str, rate: float, settings: dict) -> None:
    changes = (f"--optimizer.name={name}", f"--optimizer.peak_lr={rate}", "--train.save_every=4")
    train(config(settings, *changes))
    output = settings["train"]["output_dir"]
    straight = checkpoint.load_params(output, checkpoint.read_config(output))
    found = losses(output)
    assert min(found[4:]) < 0.99 * found[0]
    train(config(settings, *changes, "--train.resume=4"))
    again = checkpoint.load_params(output, checkpoint.read_config(output))
    jax.tree.map(np.testing.assert_array_equal, again, straight)


def test_layer_decay(tiny: ModelConfig) -> None:
    specs = param_specs(Qwen2Audio(tiny))
    optimizer = OptimizerConfig(layer_decay=0.5, lr_multipliers={"encoder/": 0.1})
    factors = make_lr_multipliers(specs, optimizer)
    num_layers = tiny.text.num_hidden_layers
    stacked = factors["decoder", "layers", "mlp", "up_proj", "kernel"]
    expected = [0.5 ** (num_layers - 1 - i) for i in range(num_layers)]
    np.testing.assert_allclose(np.ravel(stacked), expected)
    assert factors["decoder", "embed_tokens"] == 0.5**num_layers
    assert factors["decoder", "norm", "scale"] == 1
    assert factors["encoder", "conv1", "kernel"] == 0.1 * 0.5**tiny.audio.encoder_layers


def test_factored_moments_take_no_memory() -> None:
    """Of the released size, without ever making it: bytes per parameter."""
    model = Qwen2Audio(preset("qwen2_audio_7b"))
    shapes = {
        path: jax.ShapeDtypeStruct(spec.shape, np.float32)
        for path, spec in param_specs(model).items()
        if path != ("encoder", "embed_positions")
    }
    num_parameters = sum(x.size for x in shapes.values())
    for settings, moment in (({"b1": 0.0}, 0), ({"mu_dtype": "bfloat16"}, 2), ({}, 4)):
        optimizer = make_optimizer(OptimizerConfig(name="adafactor", **settings), 10, model)
        state = jax.eval_shape(optimizer.init, unflatten_dict(shapes))
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / num_parameters
        assert moment <= size < moment + 0.03 * 4, settings


def test_adafactor_averages_its_updates(tiny: ModelConfig) -> None:
    """Its updates are means, weighted by b1, of those it makes without a first moment."""
    model = Qwen2Audio(tiny)
    params = unflatten_dict(
        {path: np.zeros(spec.shape, np.float32) for path, spec in param_specs(model).items()}
    )
    rng = np.random.default_rng(0)
    grads = [
        jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
        for _ in range(3)
    ]
    settings = {"name": "adafactor", "warmup_steps": 0, "schedule": "constant", "freeze": ()}
    updates = {}
    for b1 in (0.0, 0.75):
        optimizer = make_optimizer(OptimizerConfig(b1=b1, **settings), 10, model)  # type: ignore[arg-type]
        state, updates[b1] = optimizer.init(params), []
        for grad in grads:
            update, state = jax.jit(optimizer.update)(grad, state, params)
            updates[b1].append(flatten_dict(update)["decoder", "embed_tokens"])
    mean = np.zeros_like(updates[0.0][0])
    for plain, averaged in zip(updates[0.0], updates[0.75], strict=True):
        mean = 0.75 * mean + 0.25 * plain
        np.testing.assert_allclose(averaged, mean, rtol=1e-5, atol=1e-9)
