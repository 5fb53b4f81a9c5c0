"""Any supported audio input -> mono float32 at 16 kHz, or an error that names the cause."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qa_jax.config import HOP_LENGTH, MAX_FRAMES, SAMPLE_RATE, num_audio_tokens, num_frames
from qa_jax.data.audio_shards import is_in_shard, read_shard_clip, shard_num_samples
from qa_jax.data.stored import WHOLE, Segment, StoredClip, split_segment
from qa_jax.data.urls import fetch, is_url
from qa_jax.errors import InputError
from qa_jax.paths import PathLike, is_remote, join, read_bytes
from qa_jax.typing import Float

AudioSource: TypeAlias = Any
"""What `load_audio` accepts. Typed as open because it is user input, checked at run time."""

MAX_SAMPLES = MAX_FRAMES * HOP_LENGTH
_MAX_CHANNELS = 8
_ROUNDING_SECONDS = 0.02
_MAX_AMPLITUDE = 100.0
"""Float samples are within -1 and 1, or a little over; larger ones have another scale."""


def load_audio(
    audio: AudioSource,
    *,
    sampling_rate: int | None = None,
    long_audio: str = "error",
    base: PathLike = "",
    name: str = "",
    hosts: Sequence[str] = (),
    max_seconds: float | None = None,
) -> Float[np.ndarray, " S"]:
    """Reads, mixes down, resamples and checks one clip.

    Args:
        audio: a path, of which "#t=START,END" is a part in seconds; a name in a shard (see
            `qa_jax.data.audio_shards`); a clip of a dataset (`StoredClip`); a URL (see
            `qa_jax.data.urls`); the bytes of an audio file; samples as an array; or samples with
            their rate, as (array, rate) or {"array": ..., "sampling_rate": ...}. Stereo is
            averaged. Integer samples are scaled by their type's full range.
        sampling_rate: the rate in Hz of samples given without one.
        long_audio: what to do over 30 s: "error", "truncate" with a warning, or "window", which
            returns the whole clip, for `qa_jax.data.windows`.
        base: directory of relative paths.
        name: name in errors of a clip that has no path.
        hosts: those that URLs may name.
        max_seconds: of a clip that "truncate" or "window" takes; no limit by default. A file is
            refused before more of it is decoded, whatever its header says.

    Returns:
        float32 at 16 kHz, long enough for one audio token and, but for "window", at most 30 s.

    Raises:
        InputError: the clip is unreadable, too short, too long, contains NaN, or has no rate.
    """
    if isinstance(audio, Mapping) and "array" in audio:
        audio, sampling_rate = audio["array"], audio.get("sampling_rate", sampling_rate)
    elif isinstance(audio, tuple) and len(audio) == 2:
        audio, sampling_rate = audio
    name = name or "audio"
    samples: np.ndarray
    rate: object
    limit = MAX_SAMPLES if long_audio == "error" else math.inf
    if max_seconds is not None:
        limit = min(limit, int(max_seconds * SAMPLE_RATE))
    if is_in_shard(audio):
        name = join(base, audio)
        samples, rate = _decode(io.BytesIO(read_shard_clip(audio, base)), name, limit=limit)
    elif is_url(audio):
        samples, rate = _decode(io.BytesIO(fetch(audio, hosts)), name, limit=limit)
    elif isinstance(audio, str | Path) and str(audio).endswith(".npy"):
        name = join(base, str(audio))
        samples, rate = _read_array(name), sampling_rate
    elif isinstance(audio, str | Path | StoredClip):
        name, file, segment = _find(audio, base)
        samples, rate = _decode(file, name, segment, limit)
    elif isinstance(audio, bytes | bytearray):
        samples, rate = _decode(io.BytesIO(audio), name, limit=limit)
    else:
        samples, rate = np.asarray(audio), sampling_rate
    return _check(_resample(_mono(samples, name), rate, name), name, long_audio, limit)


def clip_num_samples(clip: AudioSource, base: PathLike = "", long_audio: str = "error") -> int:
    """Samples at 16 kHz that `load_audio` returns for a file, from its header alone.

    Raises InputError for a file whose header shows that it cannot be used.
    """
    import soundfile

    if is_in_shard(clip):
        samples = shard_num_samples(clip)
        _check_length(samples, str(clip), long_audio)
        return samples if long_audio == "window" else min(samples, MAX_SAMPLES)
    if not isinstance(clip, str | Path | StoredClip) or is_url(clip):
        raise InputError("audio", f"{clip!r:.60} is not a file", "give the path of a file")
    name, file, segment = _find(clip, base)
    try:
        info = soundfile.info(file)
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError) as error:
        raise _unreadable(name, error, file) from None
    start, stop = _frames(segment, info.frames, info.samplerate, name)
    samples = _resampled_size(stop - start, info.samplerate)
    _check_length(samples, name, long_audio)
    return samples if long_audio == "window" else min(samples, MAX_SAMPLES)


def clip_file(clip: AudioSource, base: PathLike = "") -> bytes:
    """The bytes of a clip's audio file; of a part of a file, a FLAC file of it.

    Raises InputError if it cannot be read.
    """
    import soundfile

    name, file, segment = _find(clip, base)
    if segment == WHOLE:
        return file.getvalue() if isinstance(file, io.BytesIO) else read_bytes(file)
    samples, rate = _decode(file, name, segment)
    flac = io.BytesIO()
    soundfile.write(flac, samples.T, rate, format="FLAC", subtype="PCM_24")
    return flac.getvalue()


def _find(clip: str | Path | StoredClip, base: PathLike) -> tuple[str, str | io.BytesIO, Segment]:
    """A clip's name, its file, and the part of it that is meant."""
    if isinstance(clip, StoredClip):
        return str(clip), io.BytesIO(clip.read()), WHOLE
    path, segment = split_segment(str(clip))
    return join(base, str(clip)), _open(join(base, path)), segment


def _open(path: str) -> str | io.BytesIO:
    """A local file by name; one in object storage as bytes, for soundfile would make a request for
    every few of them."""
    if not is_remote(path):
        return path
    try:
        return io.BytesIO(read_bytes(path))
    except OSError as error:
        raise _unreadable(path, error, path) from None


def _decode(
    file: str | io.BytesIO,
    name: str,
    segment: Segment = WHOLE,
    limit: float = math.inf,
) -> tuple[np.ndarray, int]:
    """Samples of a file's part, (channels, n), and their rate; raises InputError if they are more
    than `limit` at 16 kHz, for which no more than those are decoded."""
    import soundfile

    try:
        with soundfile.SoundFile(file) as opened:
            rate, first, stop = opened.samplerate, 0, opened.frames
            if segment != WHOLE:
                first, stop = _frames(segment, opened.frames, rate, name)
                opened.seek(first)
            if opened.channels > _MAX_CHANNELS:
                raise InputError(
                    name, f"has {opened.channels} channels", f"mix down to at most {_MAX_CHANNELS}"
                )
            _check_limit(_resampled_size(stop - first, rate), name, limit)
            samples = opened.read(stop - first, dtype="float32", always_2d=True)
    except InputError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError) as error:
        raise _unreadable(name, error, file) from None
    return samples.T, rate


def _resampled_size(size: int, rate: int) -> int:
    """Samples at 16 kHz: an integer ceiling, a float would round 3 x 16000 / 48000 up by one."""
    return -(-size * SAMPLE_RATE // rate)


def _check_limit(samples: int, name: str, limit: float) -> None:
    if samples <= limit:
        return
    seconds = f"{samples / SAMPLE_RATE:.1f} s is over "
    if limit == MAX_SAMPLES:
        raise InputError(
            name,
            f"{seconds}the model's 30 s",
            'split the clip, or set long_audio="window" or "truncate" (--long-audio)',
        )
    raise InputError(name, f"{seconds}the limit of {limit / SAMPLE_RATE:g} s", "split the clip")


def _frames(segment: Segment, frames: int, rate: int, name: str) -> tuple[int, int]:
    """First and last sample of a part; raises InputError if the file does not contain it."""
    first = round(segment.start * rate)
    stop = frames if segment.end is None else round(segment.end * rate)
    if segment.end is not None and first >= stop:
        raise InputError(name, "ends before it starts", "give a longer duration")
    # Manifests round times to hundredths.
    if stop > frames + rate * _ROUNDING_SECONDS or first >= max(frames, 1):
        raise InputError(
            name, f"the file ends at {frames / rate:.3f} s", "correct offset and duration"
        )
    return first, min(stop, frames)


def _unreadable(name: str, error: Exception, file: str | io.BytesIO) -> InputError:
    if isinstance(file, str) and not is_remote(file):
        try:
            if not Path(file).is_file():
                return InputError(name, "no such file", "check the path")
        except (OSError, ValueError) as unusable:  # too long, or with a null character
            return InputError(name, f"no file's name ({unusable})", "check the path")
    if isinstance(error, FileNotFoundError):
        return InputError(name, "no such file", "check the path")
    cause = str(error).split(": ")[-1].rstrip(".")
    return InputError(
        name,
        f"not readable as audio ({cause})",
        "give wav, flac, mp3 or ogg, or convert it first: ffmpeg -i FILE out.wav",
    )


def _read_array(path: str) -> np.ndarray:
    try:
        return np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
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
        return np.zeros(0, np.float32)  # rejected below as too short
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


def _resample(samples: np.ndarray, rate: object, name: str) -> np.ndarray:
    if rate is None:
        raise InputError(
            name, "samples without their sampling rate", "pass sampling_rate (--sampling-rate)"
        )
    if not isinstance(rate, int | float | np.number) or not 1_000 <= rate <= 768_000:
        raise InputError(
            name, f"sampling rate {rate!r} is not a rate in Hz", "give for example 16000"
        )
    if rate == SAMPLE_RATE or not np.isfinite(samples).all():
        return samples
    import librosa

    return librosa.resample(samples, orig_sr=float(rate), target_sr=SAMPLE_RATE)


def _check(samples: np.ndarray, name: str, long_audio: str, limit: float) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(samples))
    if bad.size:
        raise InputError(
            name,
            f"{bad.size} samples are NaN or infinite, the first at {bad[0]}",
            "repair or remove the clip",
        )
    largest = float(np.abs(samples).max(initial=0))
    if largest > _MAX_AMPLITUDE:
        raise InputError(
            name, f"samples reach {largest:.3g}", "scale floats to -1 ... 1, or give integers"
        )
    _check_limit(samples.size, name, limit)
    _check_length(samples.size, name, long_audio)
    if samples.size <= MAX_SAMPLES or long_audio == "window":
        return samples
    seconds = samples.size / SAMPLE_RATE
    warnings.warn(f"{name}: truncated from {seconds:.1f} s to 30 s", stacklevel=4)
    return samples[:MAX_SAMPLES]


def _check_length(samples: int, name: str, long_audio: str) -> None:
    _check_limit(samples, name, MAX_SAMPLES if long_audio == "error" else math.inf)
    if num_audio_tokens(num_frames(samples)) < 1:
        raise InputError(
            name,
            f"{samples} samples ({samples / 16:.1f} ms) give no audio token",
            "give more than 320 samples (20 ms) at 16 kHz",
        )
