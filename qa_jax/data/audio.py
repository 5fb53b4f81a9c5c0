"""Whatever a user calls audio -> mono float32 at 16 kHz, or an error that says what is wrong."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qa_jax.config import HOP_LENGTH, MAX_FRAMES, SAMPLE_RATE, token_count, valid_frames
from qa_jax.data.archive import archived_samples, in_archive, read_clip
from qa_jax.errors import InputError

MAX_SAMPLES = MAX_FRAMES * HOP_LENGTH
_MAX_CHANNELS = 8


def load_audio(
    audio: Any,
    *,
    sampling_rate: int | None = None,
    long_audio: str = "error",
    base: str | Path = "",
    name: str = "",
) -> np.ndarray:
    """Reads, mixes down, resamples and checks one clip.

    Args:
        audio: a path, also into a shard (see `qa_jax.data.archive`); the bytes of an audio file;
            samples as an array; or samples with their rate, as (array, rate) or {"array": ...,
            "sampling_rate": ...}. Stereo is averaged. Integer samples are scaled by their type's
            full range.
        sampling_rate: the rate in Hz of samples that come without one.
        long_audio: what to do over 30 s: "error", or "truncate" with a warning.
        base: directory that relative paths start from.
        name: how errors call clips that have no path.

    Returns:
        (samples,) float32 at 16 kHz, long enough for one audio token and at most 30 s.

    Raises:
        InputError: the clip is unreadable, too short, too long, holds NaN, or lacks its rate.
    """
    if isinstance(audio, Mapping) and "array" in audio:
        audio, sampling_rate = audio["array"], audio.get("sampling_rate", sampling_rate)
    elif isinstance(audio, tuple) and len(audio) == 2:
        audio, sampling_rate = audio
    name = name or "audio"
    samples: np.ndarray
    rate: Any
    if in_archive(audio):
        name = f"{Path(base) / audio}"
        samples, rate = _decode(io.BytesIO(read_clip(audio, base)), name)
    elif isinstance(audio, str | Path):
        path = Path(base) / str(audio).removeprefix("file://")
        name = str(path)
        if path.suffix == ".npy":
            samples, rate = _read_array(path), sampling_rate
        else:
            samples, rate = _decode(path, name)
    elif isinstance(audio, bytes | bytearray):
        samples, rate = _decode(io.BytesIO(audio), name)
    else:
        samples, rate = np.asarray(audio), sampling_rate
    return _check(_resample(_mono(samples, name), rate, name), name, long_audio)


def clip_samples(clip: Any, base: str | Path = "", long_audio: str = "error") -> int:
    """Samples at 16 kHz that `load_audio` will give for a file, by its header alone.

    Raises InputError for what the header already rules out.
    """
    import soundfile

    if in_archive(clip):
        samples = archived_samples(clip)
        _check_length(samples, str(clip), long_audio)
        return min(samples, MAX_SAMPLES)
    if not isinstance(clip, str | Path):
        raise InputError("audio", f"{clip!r} is not a file", "give the path of a file")
    path = Path(base) / clip
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    # An exact whole-number ceiling: a float would round 3 x 16000 / 48000 up by a sample.
    samples = -(-info.frames * SAMPLE_RATE // info.samplerate)
    _check_length(samples, str(path), long_audio)
    return min(samples, MAX_SAMPLES)


def _decode(file: Path | io.BytesIO, name: str) -> tuple[np.ndarray, int]:
    import soundfile

    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise _unreadable(file if isinstance(file, Path) else name, error) from None
    return samples.T, rate


def _unreadable(source: str | Path, error: Exception) -> InputError:
    if isinstance(source, Path) and not source.is_file():
        return InputError(source, "no such file", "check the path")
    cause = str(error).split(": ")[-1].rstrip(".")
    return InputError(
        source,
        f"not readable as audio ({cause})",
        "give wav, flac, mp3 or ogg, or convert it first: ffmpeg -i FILE out.wav",
    )


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            path, f"not readable as an array ({error})", "save it by numpy.save"
        ) from None


def _mono(samples: np.ndarray, name: str) -> np.ndarray:
    """(n,), (channels, n) or (n, channels) -> (n,) float32."""
    if samples.dtype.kind in "iu":
        info = np.iinfo(samples.dtype)
        middle = (int(info.max) + int(info.min) + 1) // 2
        samples = (samples.astype(np.float64) - middle) / (int(info.max) + 1 - middle)
    if samples.dtype.kind != "f":
        raise InputError(name, f"samples are {samples.dtype}", "give floats or integers")
    if samples.ndim == 2 and not samples.size:
        return np.zeros(0, np.float32)  # which is too short, whatever its channels
    if samples.ndim == 2:
        channels_first = samples.shape[0] <= _MAX_CHANNELS
        channels_last = samples.shape[1] <= _MAX_CHANNELS
        if channels_first == channels_last:
            raise InputError(
                name, f"cannot tell the channels of shape {samples.shape}", "mix to one dimension"
            )
        samples = samples.mean(axis=0 if channels_first else 1)
    if samples.ndim != 1:
        raise InputError(name, f"samples have shape {samples.shape}", "give (n,) or (channels, n)")
    return samples.astype(np.float32)


def _resample(samples: np.ndarray, rate: Any, name: str) -> np.ndarray:
    if rate is None:
        raise InputError(
            name, "samples without their sampling rate", "pass sampling_rate (--sampling-rate)"
        )
    if not isinstance(rate, int | float | np.number) or not 1_000 <= rate <= 768_000:
        raise InputError(name, f"sampling rate {rate!r} is not one in Hz", "give for example 16000")
    if rate == SAMPLE_RATE or not np.isfinite(samples).all():
        return samples
    import librosa

    return librosa.resample(samples, orig_sr=float(rate), target_sr=SAMPLE_RATE)


def _check(samples: np.ndarray, name: str, long_audio: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(samples))
    if bad.size:
        raise InputError(
            name,
            f"{bad.size} samples are NaN or infinite, the first at {bad[0]}",
            "repair or leave out the clip",
        )
    _check_length(samples.size, name, long_audio)
    if samples.size > MAX_SAMPLES:
        seconds = samples.size / SAMPLE_RATE
        warnings.warn(f"{name}: only the first 30 s of {seconds:.1f} s are heard", stacklevel=4)
    return samples[:MAX_SAMPLES]


def _check_length(samples: int, name: str, long_audio: str) -> None:
    if samples > MAX_SAMPLES and long_audio != "truncate":
        raise InputError(
            name,
            f"{samples / SAMPLE_RATE:.1f} s is over the model's 30 s",
            'split the clip, or ask for long_audio="truncate" (--long-audio truncate)',
        )
    if token_count(valid_frames(samples)) < 1:
        raise InputError(
            name,
            f"{samples} samples ({samples / 16:.1f} ms) give no audio token",
            "give more than 320 samples (20 ms) at 16 kHz",
        )
