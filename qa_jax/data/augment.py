"""Augmentation of clips as they are read: what a compiled step cannot do.

Speed, pitch, rooms, backgrounds and codecs, by libraries that reading audio needs in any case
(audiomentations, which has all of these, draws from process-wide generators and can therefore not
be repeated from several threads). `qa_jax.train.augment` has the rest.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

from qa_jax.config import HOP_LENGTH, SAMPLE_RATE, AugmentConfig
from qa_jax.data.audio import MAX_SAMPLES, AudioSource, load_audio
from qa_jax.data.questions import find_clips
from qa_jax.errors import InputError, suggest
from qa_jax.typing import Float, Int, UInt32

_SHORTEST = 3 * HOP_LENGTH
_NUM_VOICES = 3
_CODECS = {
    "mulaw": ("WAV", "ULAW", 8_000),
    "gsm": ("WAV", "GSM610", 8_000),
    "mp3": ("MP3", "MPEG_LAYER_III", SAMPLE_RATE),
    "opus": ("OGG", "OPUS", SAMPLE_RATE),
}

Voice = Callable[[np.random.Generator], Float[np.ndarray, " _"]]
"""Draws a clip of another record."""


class Augmentation:
    """Random changes of clips, each a function of (seed, epoch, record).

    Args:
        config: what is drawn.
        seed: `data.seed`.

    Raises:
        InputError: naming a setting that cannot be used, or a path without recordings.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        check_augment(config)
        self.config, self._seed = config, seed
        self._rooms = find_clips(config.impulse_responses) if config.impulse_responses else []
        self._backgrounds = find_clips(config.background) if config.background else []

    def planned_samples(self, num_samples: Int[np.ndarray, " clips"]) -> Int[np.ndarray, " clips"]:
        """Samples of clips at the slowest speed that may be drawn for them, at most."""
        if self.config.speed[0] >= 1:
            return num_samples
        speed = _feasible_speed(self.config.speed[0], num_samples)
        slowed = np.minimum((num_samples / speed).astype(np.int32) + 1, MAX_SAMPLES)
        return np.where(speed >= 1, num_samples, slowed)

    def rng(self, epoch: int, index: int) -> np.random.Generator:
        """The generator of a record in an epoch."""
        return np.random.default_rng([self._seed, epoch, index])

    def seeds(self, rng: np.random.Generator, num_clips: int) -> UInt32[np.ndarray, "clips 2"]:
        """Keys of clips for the compiled step, drawn before anything else of the record's."""
        return rng.integers(0, 2**32, (num_clips, 2), np.uint32)

    def __call__(
        self, waveform: Float[np.ndarray, " _"], rng: np.random.Generator, voice: Voice
    ) -> Float[np.ndarray, " _"]:
        """A changed clip: float32, of another length if the speed changes.

        Raises InputError naming a recording of a room or a background that cannot be read.
        """
        import librosa

        config, x = self.config, waveform
        speed = float(_feasible_speed(rng.uniform(*config.speed), np.array([x.size]))[0])
        if speed != 1:
            x = librosa.resample(x, orig_sr=SAMPLE_RATE * speed, target_sr=SAMPLE_RATE)
            x = x[:MAX_SAMPLES]
        semitones = rng.uniform(*config.pitch)
        if semitones:
            x = librosa.effects.pitch_shift(x, sr=SAMPLE_RATE, n_steps=semitones, n_fft=512)
        if rng.random() < config.reverb_prob:
            x = _convolve(x, self._room(rng))
        if rng.random() < config.background_prob:
            x = _mix(x, self._background(rng, voice), rng.uniform(*config.background_snr_db), rng)
        if rng.random() < config.codec_prob:
            x = _through_codec(x, config.codecs[rng.integers(len(config.codecs))])
        return x.astype(np.float32, copy=False)

    def _room(self, rng: np.random.Generator) -> np.ndarray:
        if self._rooms:
            response = _read(self._rooms[rng.integers(len(self._rooms))])
            return response[np.abs(response).argmax() :]
        seconds = rng.uniform(0.1, 0.6)
        t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        tail = rng.standard_normal(t.size) * 10 ** (-3 * t / seconds)  # 60 dB at the end
        direct_to_reverberant = 10 ** (rng.uniform(0, 12) / 10)
        tail *= np.sqrt(1 / (direct_to_reverberant * np.sum(tail**2)))
        tail[0] = 1
        return tail

    def _background(self, rng: np.random.Generator, voice: Voice) -> np.ndarray:
        if self._backgrounds:
            return _read(self._backgrounds[rng.integers(len(self._backgrounds))])
        voices = [voice(rng) for _ in range(_NUM_VOICES)]
        return np.sum([np.resize(v / _rms(v), max(v.size for v in voices)) for v in voices], axis=0)


def check_augment(config: AugmentConfig) -> None:
    """Raises InputError naming a setting that cannot be used."""
    for name in ("speed", "pitch", "background_snr_db", "noise_snr_db", "gain_db"):
        low, high = getattr(config, name)
        if not low <= high:
            raise InputError(f"augment.{name}", f"{low} is above {high}", "give [lowest, highest]")
    low, high = config.speed
    if not 0.5 <= low <= high <= 2:
        raise InputError("augment.speed", f"[{low}, {high}] is not within 0.5 and 2")
    for name in ("reverb_prob", "background_prob", "codec_prob", "noise_prob", "telephone_prob"):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise InputError(f"augment.{name}", f"{value} is no probability", "give 0 to 1")
    for name in ("time_shift", "time_masks", "time_mask_frames", "freq_masks", "freq_mask_bins"):
        if getattr(config, name) < 0:
            raise InputError(f"augment.{name}", "is negative", "give 0 for none")
    for codec in config.codecs:
        if codec not in _CODECS:
            raise InputError(f"augment.codecs {codec}", "no such codec", suggest(codec, _CODECS))
    if config.codec_prob and not config.codecs:
        raise InputError("augment.codecs", "is empty", "name one, or set augment.codec_prob to 0")


def _feasible_speed(
    speed: float, num_samples: Int[np.ndarray, " clips"]
) -> Float[np.ndarray, " clips"]:
    """The speed nearest to this at which clips stay within the model's 30 s and have a token."""
    return np.clip(speed, num_samples / MAX_SAMPLES, np.maximum(1.0, num_samples / _SHORTEST))


def _read(clip: tuple[AudioSource, str]) -> np.ndarray:
    path, base = clip
    return load_audio(path, base=base, long_audio="truncate")


def _rms(x: np.ndarray) -> float:
    return max(float(np.sqrt(np.mean(np.square(x)))), 1e-8)


def _convolve(x: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The clip in a room, of its own length and level."""
    from scipy.signal import fftconvolve

    heard = fftconvolve(x, response)[: x.size]
    return heard * (_rms(x) / _rms(heard))


def _mix(
    x: np.ndarray, background: np.ndarray, snr_db: float, rng: np.random.Generator
) -> np.ndarray:
    """The clip and a background from a drawn place on, repeated if it is shorter."""
    start = rng.integers(max(1, background.size - x.size + 1))
    part = np.resize(background[start : start + x.size], x.size)
    return x + part * (_rms(x) / _rms(part) * 10 ** (-snr_db / 20))


def _through_codec(x: np.ndarray, codec: str) -> np.ndarray:
    import librosa
    import soundfile

    container, subtype, rate = _CODECS[codec]
    file = io.BytesIO()
    sent = np.clip(librosa.resample(x, orig_sr=SAMPLE_RATE, target_sr=rate), -1, 1)
    soundfile.write(file, sent, rate, format=container, subtype=subtype)
    file.seek(0)
    received, rate = soundfile.read(file, dtype="float32")
    decoded = librosa.resample(received, orig_sr=rate, target_sr=SAMPLE_RATE)
    return np.pad(decoded, (0, max(0, x.size - decoded.size)))[: x.size]
