"""Whatever is called audio, read right or refused with its name."""

from __future__ import annotations

import numpy as np
import pytest

from qa_jax.data import clip_num_samples, load_audio
from qa_jax.errors import InputError
from tests.conftest import sound


def test_forms_of_one_clip_agree(sounds) -> None:  # type: ignore[no-untyped-def]
    path = sounds / "3.wav"
    wave = load_audio(path)
    assert wave.dtype == np.float32 and wave.ndim == 1
    for same in (
        load_audio(str(path)),
        load_audio(path.read_bytes()),
        load_audio(wave, sampling_rate=16_000),
        load_audio((wave, 16_000)),
        load_audio({"array": wave, "sampling_rate": 16_000}),
        load_audio("3.wav", base=sounds),
    ):
        np.testing.assert_array_equal(same, wave)


def test_stereo_is_averaged(sounds) -> None:  # type: ignore[no-untyped-def]
    mixed = load_audio(sounds / "stereo.wav")
    np.testing.assert_allclose(mixed, (sound(1, 1) + sound(1, 2)) / 2, atol=1e-4)
    both = np.stack([sound(1, 1), sound(1, 2)])
    np.testing.assert_allclose(load_audio((both, 16_000)), load_audio((both.T, 16_000)))


def test_integers_are_scaled() -> None:
    wave = sound(0.5)
    as_int16 = (wave * 2**15).astype(np.int16)
    np.testing.assert_allclose(load_audio((as_int16, 16_000)), wave, atol=1e-4)
    as_uint8 = np.round(wave * 2**7 + 128).astype(np.uint8)
    np.testing.assert_allclose(load_audio((as_uint8, 16_000)), wave, atol=5e-3)


def test_other_rates_are_resampled(sounds) -> None:  # type: ignore[no-untyped-def]
    wave = load_audio(sounds / "44k.flac")
    assert wave.size == 16_000 == clip_num_samples(sounds / "44k.flac")
    peak = np.argmax(np.abs(np.fft.rfft(wave)))
    original = np.argmax(np.abs(np.fft.rfft(sound(1, rate=44_100)))[:8000])
    assert peak == original


@pytest.mark.parametrize("name", ["0.wav", "stereo.wav", "44k.flac"])
def test_headers_tell_the_length(sounds, name: str) -> None:  # type: ignore[no-untyped-def]
    assert clip_num_samples(sounds / name) == load_audio(sounds / name).size


def test_truncating_is_asked_for_and_warned_about(sounds) -> None:  # type: ignore[no-untyped-def]
    with pytest.warns(UserWarning, match=r"truncated from 31\.0 s to 30 s"):
        assert load_audio(sounds / "long.wav", long_audio="truncate").size == 480_000
    assert clip_num_samples(sounds / "long.wav", long_audio="truncate") == 480_000


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ("long.wav", r"long\.wav: 31\.0 s is over the model's 30 s; split"),
        ("short.wav", r"short\.wav: 320 samples \(20\.0 ms\) give no audio token"),
        ("nan.wav", r"nan\.wav: 1 samples are NaN or infinite, the first at 100"),
        ("text.wav", r"text\.wav: not readable as audio .* ffmpeg"),
        ("absent.wav", r"absent\.wav: no such file"),
        ("samples.npy", r"samples\.npy: samples without their sampling rate"),
    ],
)
def test_faults_name_file_cause_and_remedy(sounds, clip: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        load_audio(sounds / clip)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros(16_000, np.float32), "without their sampling rate"),
        ((np.zeros(16_000, np.float32), "fast"), "is not a rate in Hz"),
        ((np.zeros(16_000, np.float32), 0), "is not a rate in Hz"),
        ((np.zeros((3, 4), np.float32), 16_000), "cannot tell the channels"),
        ((np.array(["a"]), 16_000), "samples are <U1"),
        (b"RIFF", "not readable as audio"),
    ],
)
def test_faults_of_samples(clip: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_audio(clip)


def test_real_recordings_of_every_format(assets) -> None:  # type: ignore[no-untyped-def]
    import json

    rows = [json.loads(x) for x in (assets / "audio/manifest.jsonl").read_text().splitlines()]
    by_kind: dict[tuple, dict] = {}
    for row in rows:
        by_kind.setdefault((row["audio"][-4:], row["sample_rate"], row["channels"]), row)
    assert len(by_kind) > 5
    for row in by_kind.values():
        path = assets / "audio" / row["audio"]
        wave = load_audio(path, long_audio="truncate")
        assert abs(wave.size / 16_000 - min(row["seconds"], 30)) < 0.01, row["audio"]
        # MP3 headers count whole frames of the codec; all other headers are exact.
        slack = 2400 if path.suffix == ".mp3" else 0
        told = clip_num_samples(path, long_audio="truncate")
        assert abs(wave.size - told) <= slack, row["audio"]
