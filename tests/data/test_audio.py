"""Whatever is called audio, read right or refused with its name."""

from __future__ import annotations

import numpy as np
import pytest

from qa_jax.data import clip_num_samples, load_audio
from qa_jax.errors import InputError
from tests.conftest import make_waveform


def test_forms_of_one_clip_agree(audio_files) -> None:  # type: ignore[no-untyped-def]
    path = audio_files / "3.wav"
    waveform = load_audio(path)
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    for same in (
        load_audio(str(path)),
        load_audio(path.read_bytes()),
        load_audio(waveform, sampling_rate=16_000),
        load_audio((waveform, 16_000)),
        load_audio({"array": waveform, "sampling_rate": 16_000}),
        load_audio("3.wav", base=audio_files),
    ):
        np.testing.assert_array_equal(same, waveform)


def test_stereo_is_averaged(audio_files) -> None:  # type: ignore[no-untyped-def]
    mixed = load_audio(audio_files / "stereo.wav")
    np.testing.assert_allclose(mixed, (make_waveform(1, 1) + make_waveform(1, 2)) / 2, atol=1e-4)
    both = np.stack([make_waveform(1, 1), make_waveform(1, 2)])
    np.testing.assert_allclose(load_audio((both, 16_000)), load_audio((both.T, 16_000)))


def test_integers_are_scaled() -> None:
    waveform = make_waveform(0.5)
    as_int16 = (waveform * 2**15).astype(np.int16)
    np.testing.assert_allclose(load_audio((as_int16, 16_000)), waveform, atol=1e-4)
    as_uint8 = np.round(waveform * 2**7 + 128).astype(np.uint8)
    np.testing.assert_allclose(load_audio((as_uint8, 16_000)), waveform, atol=5e-3)


def test_other_rates_are_resampled(audio_files) -> None:  # type: ignore[no-untyped-def]
    waveform = load_audio(audio_files / "44k.flac")
    assert waveform.size == 16_000 == clip_num_samples(audio_files / "44k.flac")
    peak = np.argmax(np.abs(np.fft.rfft(waveform)))
    original = np.argmax(np.abs(np.fft.rfft(make_waveform(1, rate=44_100)))[:8000])
    assert peak == original


@pytest.mark.parametrize("name", ["0.wav", "stereo.wav", "44k.flac"])
def test_headers_tell_the_length(audio_files, name: str) -> None:  # type: ignore[no-untyped-def]
    assert clip_num_samples(audio_files / name) == load_audio(audio_files / name).size


def test_truncating_is_asked_for_and_warned_about(audio_files) -> None:  # type: ignore[no-untyped-def]
    with pytest.warns(UserWarning, match=r"truncated from 31\.0 s to 30 s"):
        assert load_audio(audio_files / "long.wav", long_audio="truncate").size == 480_000
    assert clip_num_samples(audio_files / "long.wav", long_audio="truncate") == 480_000


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
def test_faults_name_file_cause_and_remedy(audio_files, clip: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        load_audio(audio_files / clip)


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
        waveform = load_audio(path, long_audio="truncate")
        assert abs(waveform.size / 16_000 - min(row["seconds"], 30)) < 0.01, row["audio"]
        # MP3 headers count whole frames of the codec; all other headers are exact.
        slack = 2400 if path.suffix == ".mp3" else 0
        told = clip_num_samples(path, long_audio="truncate")
        assert abs(waveform.size - told) <= slack, row["audio"]
