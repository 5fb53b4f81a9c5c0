"""The training step: accumulation, gradient dtype, remat, recompilation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.errors import InputError
from qa_jax.model import bind
from qa_jax.train import train
from qa_jax.train.objectives import next_token_loss
from qa_jax.train.run import make_models, make_objective, make_run_step, prepare
from qa_jax.train.state import initial_params, initial_state
from qa_jax.train.step import jit_train_step
from qa_jax.trees import flatten_dict
from tests.runs import at, config, losses

pytestmark = pytest.mark.usefixtures("one_device")


VARIANTS: dict[str, dict[str, Any]] = {
    "full remat, small attention chunks": {"remat": "full", "max_scores": 100},
    "dots remat, small loss blocks": {"remat": "dots", "max_logits": 500},
    "unrolled, splash attention": {"unroll_layers": True, "attention_impl": "splash"},
}


def test_gradient_accumulation_equals_the_full_batch(settings: dict) -> None:
    full = dict(settings, data={**settings["data"], "buckets": {204: 8}})
    full["train"] = {**settings["train"], "output_dir": settings["train"]["output_dir"] + "-full"}
    train(config(settings, "--optimizer.grad_accum_steps=2", "--train.steps=4"))
    train(config(full, "--train.steps=4"))
    np.testing.assert_allclose(
        losses(settings["train"]["output_dir"]), losses(full["train"]["output_dir"]), rtol=1e-5
    )


def test_bfloat16_gradients(settings: dict) -> None:
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


def test_memory_settings_do_not_change_gradients(
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
                first = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
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


@pytest.mark.eight_devices
@pytest.mark.parametrize("change", ["packed", "unrolled", "accumulated"])
def test_packing_unrolling_and_accumulation_give_equal_gradients(
    job_settings: dict, tmp_path: Path, change: str
) -> None:
    """Packed against unpacked, scanned against unrolled, accumulated against full batches: the
    gradient of a whole epoch's records, which each of them out in its own way."""
    devices = jax.devices()[:1]
    changed = {
        "packed": {"data": {"packed_length": 800, "buckets": {204: 4}}},
        "unrolled": {"model": {"unroll_layers": True}},
        "accumulated": {"data": {"buckets": {204: 4}}, "optimizer": {"grad_accum_steps": 3}},
    }[change]
    results = []
    for changes in ({"data": {"buckets": {204: 12}}}, changed):
        run = prepare(config(at(job_settings, tmp_path / "none", **changes)), devices)
        params = initial_params(run)
        model = bind(run.models.policy)

        def total(params: Any, batch: Any, model: Any = model) -> Any:
            out = next_token_loss(model(params), batch)
            return out.loss, out

        gradient = jax.jit(jax.grad(total, has_aux=True))
        summed: Any = None
        for step in range(run.data.steps_per_epoch):
            batch = run.data.batch(step)
            for i in range(batch.tokens.shape[0]):
                one = gradient(params, jax.tree.map(lambda x, i=i: x[i], batch))
                summed = one if summed is None else jax.tree.map(np.add, summed, one)
        results.append(summed)
    (expected, out), (found, other) = results
    assert float(other.loss) == pytest.approx(float(out.loss), rel=1e-5)
    told, target_positions = other.metrics(), out.metrics()
    assert int(told["tokens"]) == int(target_positions["tokens"])
    assert float(told["audio_seconds"]) == pytest.approx(float(target_positions["audio_seconds"]))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max() + 1e-6
