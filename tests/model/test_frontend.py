"""The log-mel against its formula in float64."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from qa_jax.config import MAX_FRAMES
from qa_jax.data import load_audio
from qa_jax.errors import InputError
from qa_jax.model import LogMel
from qa_jax.model.frontend import (
    log_mel_from_power,
    mel_filters,
    power_spectrum_fft,
    power_spectrum_matmul,
)
from tests.conftest import make_waveform

FULL = 480_000
POWERS = {"transform": power_spectrum_fft, "products": power_spectrum_matmul}


def exact(waveform: np.ndarray, bins: int) -> np.ndarray:
    """Whisper's formula in float64, over 30 s."""
    x = np.zeros(FULL)
    x[: waveform.size] = waveform
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, 200, mode="reflect"), 400)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(windows[::160][:-1] * window)) ** 2
    log_mel = np.log10(np.maximum(power @ mel_filters(bins).astype(np.float64), 1e-10))
    return (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4


def log_mel(waveform: np.ndarray, bins: int, samples: int = FULL, power: str = "") -> np.ndarray:
    """By one of the two ways, or by that of this platform."""
    x = np.zeros((1, samples), np.float32)
    x[0, : waveform.size] = waveform
    front = (lambda x: log_mel_from_power(POWERS[power](x), bins)) if power else LogMel(bins)
    return np.asarray(jax.jit(front)(x))[0]


def signals() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    t = np.arange(FULL)
    return {
        "tones in noise": make_waveform(7.3),
        "white noise, 30 s": 0.1 * rng.standard_normal(FULL).astype(np.float32),
        "pure tone, 30 s": np.sin(0.3 * t).astype(np.float32),
        "loud low tone": np.sin(0.02 * t[:90_000]).astype(np.float32) * 0.99,
        "silence": np.zeros(48_000, np.float32),
        "one click": np.eye(1, 16_000, 8_000, dtype=np.float32)[0],
        "very short": rng.standard_normal(321).astype(np.float32),
        "very quiet": 1e-6 * rng.standard_normal(20_000).astype(np.float32),
        "constant": np.full(30_000, 0.5, np.float32),
    }


@pytest.mark.parametrize("bins", [80, 128])
def test_filterbank_is_librosas(bins: int) -> None:
    reference = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=bins).T
    np.testing.assert_allclose(mel_filters(bins), reference, rtol=0, atol=5e-9)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("name", signals())
def test_log_mel_is_its_formula(name: str, power: str) -> None:
    waveform = signals()[name]
    for bins in (80, 128):
        assert np.abs(log_mel(waveform, bins, power=power) - exact(waveform, bins)).max() < 1e-5


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("name", [n for n in signals() if "30 s" not in n])
def test_bucket_and_full_window_agree(name: str, power: str) -> None:
    waveform = signals()[name]
    frames = -(-waveform.size // 160)
    whole = log_mel(waveform, 128, power=power)
    for bucket in (frames, frames + 1, frames + 4):
        if bucket >= 2:
            short = log_mel(waveform, 128, bucket * 160, power=power)
            assert np.abs(short - whole[:bucket]).max() < 1e-6


def test_each_platform_has_its_way() -> None:
    traced = jax.jit(LogMel(80)).trace(np.zeros((2, 3200), np.float32))
    here, tpu = (traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu"))
    assert "f64" in here and "fft" in here
    assert "f64" not in tpu and "fft" not in tpu and "dot_general" in tpu


def test_rows_do_not_touch() -> None:
    waveforms = [make_waveform(1.0, i) * (i + 1) for i in range(3)]
    together = np.asarray(jax.jit(LogMel(80))(np.stack(waveforms)))
    for waveform, row in zip(waveforms, together, strict=True):
        np.testing.assert_allclose(row, log_mel(waveform, 80, waveform.size), atol=1e-6)


def test_silence_is_minus_one_and_a_half() -> None:
    assert (log_mel(np.zeros(1600, np.float32), 80) == -1.5).all()


@pytest.mark.parametrize("samples", [100, 161, 160, (MAX_FRAMES + 1) * 160])
def test_impossible_lengths_are_refused(samples: int) -> None:
    with pytest.raises(ValueError, match="multiple of 160"):
        LogMel(80)(jnp.zeros((1, samples)))


def test_real_recordings(assets) -> None:  # type: ignore[no-untyped-def]
    rows = [json.loads(x) for x in (assets / "audio/manifest.jsonl").read_text().splitlines()]
    worst = (0.0, "")
    for row in rows[::5]:
        try:
            waveform = load_audio(assets / "audio" / row["audio"], long_audio="truncate")
        except InputError:
            continue  # a clip too short for a single audio token
        worst = max(
            worst,
            (float(np.abs(log_mel(waveform, 128) - exact(waveform, 128)).max()), row["audio"]),
        )
    assert worst[0] < 1e-5, worst
