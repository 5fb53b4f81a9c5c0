"""Augmentation inside the compiled step."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import SAMPLE_RATE, AugmentConfig
from qa_jax.errors import InputError
from qa_jax.train import augment, train
from qa_jax.train.augment import augment_waveform, fir_filter, mask_log_mel
from qa_jax.train.metrics import read_metrics
from qa_jax.train.run import make_run_step, prepare
from qa_jax.train.sharding import shard_batch
from qa_jax.train.state import initial_state
from qa_jax.train.step import jit_train_step
from tests.runs import check_resume, config, dpo_config

FRAMES = np.array([150, 90, 0], np.int32)
SETTINGS = {
    "speed": [0.9, 1.1],
    "background_prob": 0.3,
    "time_shift": 0.05,
    "noise_prob": 0.5,
    "telephone_prob": 0.3,
    "gain_db": [-6, 6],
    "time_masks": 1,
    "freq_masks": 1,
}


def clips() -> np.ndarray:
    t = np.arange(160 * 160) / SAMPLE_RATE
    tones = np.stack([np.sin(2 * np.pi * hz * t) for hz in (1_000.0, 6_000.0, 0.0)])
    return np.where(t < FRAMES[:, None] / 100, 0.1 * tones, 0).astype(np.float32)


def seeds(first: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(first).integers(0, 2**32, (3, 2), np.uint32))


def changed(first: int = 0, **settings: object) -> np.ndarray:
    found = augment_waveform(
        AugmentConfig(**settings), jnp.asarray(clips()), jnp.asarray(FRAMES), seeds(first)
    )  # type: ignore[arg-type]
    return np.asarray(found)


def test_filter_equals_convolution() -> None:
    rng = np.random.default_rng(0)
    x, taps = rng.standard_normal((2, 800)).astype(np.float32), rng.standard_normal(161)
    expected = [np.convolve(row, taps, "same") for row in x]
    np.testing.assert_allclose(fir_filter(jnp.asarray(x), taps), expected, atol=1e-3)


def test_noise_has_the_drawn_ratio() -> None:
    for first in range(3):
        y = changed(first, noise_prob=1.0, noise_snr_db=(12.0, 12.0))
        noise = y - clips()
        for i in (0, 1):
            n = FRAMES[i] * 160
            ratio = np.sum(clips()[i] ** 2) / np.sum(noise[i] ** 2)
            np.testing.assert_allclose(10 * np.log10(ratio), 12, atol=0.01)
            assert not y[i, n:].any(), "padding stays silent"
        assert not y[2].any()
    assert not np.array_equal(changed(0, noise_prob=1.0), changed(1, noise_prob=1.0))


def test_a_telephone_leaves_its_band() -> None:
    y = changed(telephone_prob=1.0)
    middle = slice(1_000, 12_000)
    np.testing.assert_allclose(y[0, middle], clips()[0, middle], atol=2e-4)
    assert np.abs(y[1, middle]).max() < 1e-3 * np.abs(clips()[1]).max()


def test_shift_and_gain() -> None:
    found = [changed(first, time_shift=0.1)[0] for first in range(8)]
    assert len({y.tobytes() for y in found}) > 4
    assert not any(y[FRAMES[0] * 160 :].any() for y in found), "padding stays silent"
    y, x, n = changed(time_shift=0.1)[0], clips()[0], FRAMES[0] * 160
    matches = [
        d
        for d in range(-1_600, 1_601)
        if np.array_equal(y[max(d, 0) : n + min(d, 0)], x[max(-d, 0) : n + min(-d, 0)])
    ]
    assert matches and not y[: max(matches[-1], 0)].any() and not y[n:].any()
    np.testing.assert_allclose(changed(gain_db=(6.0, 6.0)), 10**0.3 * clips(), rtol=1e-5)


def test_masks_are_the_mean() -> None:
    log_mel = jax.random.normal(jax.random.key(0), (3, 160, 80))
    off = mask_log_mel(AugmentConfig(), log_mel, jnp.asarray(FRAMES), seeds())
    np.testing.assert_array_equal(off, log_mel)
    settings = AugmentConfig(time_masks=2, time_mask_frames=100, freq_masks=1, freq_mask_bins=8)
    sizes = []
    for first in range(8):
        y = np.asarray(mask_log_mel(settings, log_mel, jnp.asarray(FRAMES), seeds(first)))
        is_masked = y[0] != np.asarray(log_mel[0])
        assert not is_masked[150:].any() and np.array_equal(y[2], log_mel[2])
        np.testing.assert_allclose(y[0][is_masked], log_mel[0, :150].mean(), atol=1e-5)
        times, bins = is_masked[:150].all(axis=1), is_masked[:150].all(axis=0)
        assert times.sum() <= 60, "a mask is at most a fifth of the clip"
        assert bins.sum() <= 8 and is_masked.sum() == (times[:150, None] | bins).sum()
        sizes.append((int(times.sum()), int(bins.sum())))
    assert len(set(sizes)) > 4


def test_a_clip_is_alone() -> None:
    """Its row and its neighbours change nothing."""
    settings = AugmentConfig(noise_prob=0.5, telephone_prob=0.5, time_shift=0.1, gain_db=(-9, 9))
    batch = jnp.asarray(clips()), jnp.asarray(FRAMES), seeds()
    together = augment_waveform(settings, *batch)
    for i in range(3):
        alone = augment_waveform(settings, *(x[i : i + 1] for x in batch))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)


@pytest.mark.usefixtures("one_device")
def test_resume_is_bit_exact(settings: dict, tmp_path: Path) -> None:
    settings["augment"] = SETTINGS
    check_resume(settings, tmp_path, 4)
    settings["augment"] = {**SETTINGS, "speed": [0.8, 1.1]}
    with pytest.raises(InputError, match=r"augment\.speed: is \[0\.8, 1\.1\]"):
        train(config(settings, "--train.steps=9"))


@pytest.mark.usefixtures("one_device")
def test_it_is_for_training_alone(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out records are as they are, and the step sees what the functions above return."""
    settings["data"]["eval"] = settings["data"]["train"]
    settings["augment"] = SETTINGS
    run = prepare(config(settings))
    assert run.eval_data is not None
    held_out = run.eval_data["eval"].augmentation.config
    assert not held_out.reads_differently and not held_out.changes_step
    settings["train"]["steps"] = 1
    settings["optimizer"]["warmup_steps"] = 0
    found = {}
    for name in ("heard", "silent"):
        if name == "silent":
            monkeypatch.setattr(augment, "augment_waveform", lambda _, x, *__: 0 * x)
        settings["train"]["output_dir"] = str(tmp_path / name)
        train(config(settings))
        found[name] = read_metrics(tmp_path / name / "metrics.jsonl")[0]["loss"]
    assert found["heard"] != found["silent"]


@pytest.mark.eight_devices
def test_meshes_agree_with_one_device(settings: dict) -> None:
    settings["augment"] = SETTINGS
    settings["data"]["buckets"] = {204: 8}
    settings["optimizer"]["eps"] = 1e-4
    found = []
    for size in (1, 8):
        settings["mesh"] = {"data": 1, "fsdp": size, "tensor": 1}
        run = prepare(config(settings), jax.devices()[:size])
        with jax.set_mesh(run.mesh):
            state = initial_state(run)
            step = make_run_step(run.config, run.models, run.objective, run.optimizer)
            step = jit_train_step(step, state)
            _, metrics = step(state, shard_batch(run.data.batch(0), run.mesh))
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_precomputed_references_need_clips_as_they_are(
    settings: dict, pairs: Path, tiny_checkpoint: Path
) -> None:
    settings["augment"] = {"noise_prob": 0.5}
    refused = dpo_config(settings, pairs, tiny_checkpoint, "--dpo.reference=precomputed")
    with pytest.raises(InputError, match="precomputed knows no augmentation"):
        prepare(refused)
