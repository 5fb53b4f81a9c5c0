"""Synthetic audio: speech by eSpeak NG, and simple sounds other than speech.

eSpeak NG is GPL and is installed by the optional `[demo]` extra; only these functions call it, and
no part of it is included in the project.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qa_jax.config import SAMPLE_RATE
from qa_jax.errors import InputError
from qa_jax.typing import Float

_SYNCHRONOUS, _UTF8 = 2, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Voice(NamedTuple):
    """How a sentence is spoken.

    Attributes:
        name: one of eSpeak's variants, for example "f2".
        settings: lines of a variant file that replace the variant `name`: a synthetic voice.
        rate: words per minute.
        pitch: 0 to 100, 50 is the variant's own.
        tract: length of the vocal tract relative to the variant's own: pitch, resonances and speed
            fall with it, which gives another speaker of the same variant.
    """

    name: str
    rate: int = 175
    pitch: int = 50
    tract: float = 1.0
    settings: str = ""


class _Espeak:
    """The library, loaded once per process; it has global state, so one call at a time."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise InputError(
                "espeakng-loader", "not installed", 'run: pip install "qa_jax[demo]"'
            ) from None
        self.library = ctypes.cdll.LoadLibrary(espeakng_loader.get_library_path())
        self.variants = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
        # Symbolic links to its data, and a directory in which voices can be added.
        self._data = tempfile.TemporaryDirectory(prefix="qa_jax-espeak-")
        data = Path(self._data.name)
        (data / "voices" / "!v").mkdir(parents=True)
        for path in (*self.variants.parents[1].iterdir(), *self.variants.parent.iterdir()):
            link = data / path.relative_to(self.variants.parents[1])
            if not link.exists():
                link.symlink_to(path)
        for path in self.variants.iterdir():
            (data / "voices" / "!v" / path.name).symlink_to(path)
        self._synthetic = data / "voices" / "!v" / "synthetic"
        self._callback = _CALLBACK(self._collect)  # a reference, or ctypes frees it
        self._chunks: list[np.ndarray] = []
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, self._data.name.encode(), 0)
        if self.rate <= 0:
            raise InputError("espeakng-loader", "cannot be initialised", "install it again")
        self.library.espeak_SetSynthCallback(self._callback)
        self.library.espeak_ng_SetRandSeed(0)  # breath is random, by default seeded by the clock

    def _collect(self, samples: Any, count: int, _events: object) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        if voice.settings:
            self._synthetic.write_text(voice.settings)
        name = "synthetic" if voice.settings else voice.name
        # eSpeak silently uses the default voice for an unknown variant.
        known = voice.settings or (self.variants / name).is_file()
        if not known or self.library.espeak_SetVoiceByName(f"en-us+{name}".encode()):
            raise InputError(voice.name, "no such eSpeak voice", "see espeak-ng --voices=variant")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, 50)):
            self.library.espeak_SetParameter(parameter, value, 0)
        self._chunks = []
        raw = text.encode() + b"\0"
        self.library.espeak_Synth(raw, len(raw), 0, 0, 0, _UTF8, None, None)
        return np.concatenate(self._chunks or [np.zeros(0, np.int16)])


@functools.cache
def _espeak() -> _Espeak:
    return _Espeak()


def settings_of(variant: str) -> dict[str, str]:
    """The lines of a variant's file by setting: "formant 1" and "pitch", for example."""
    found = {}
    for line in (_espeak().variants / variant).read_text(errors="replace").splitlines():
        words = line.split()
        if words and words[0].isalpha() and words[0] not in ("language", "name"):
            key = " ".join(words[: 2 if words[0] == "formant" else 1])
            found[key] = " ".join(words)
    return found


def speak(text: str, voice: Voice) -> Float[np.ndarray, " S"]:
    """Speaks a text: float32 at 16 kHz, without silence at its ends."""
    import soxr

    engine = _espeak()
    samples = engine.speak(text, voice).astype(np.float32) / 2**15
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    if not loud.size:
        raise InputError(f"text {text!r}", "eSpeak returned silence", "give words")
    return soxr.resample(samples[loud[0] : loud[-1] + 1], engine.rate / voice.tract, SAMPLE_RATE)


def _time(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _note(hz: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A plucked tone: decaying harmonics."""
    t = _time(seconds)
    tone = sum(np.sin(2 * np.pi * hz * k * t) / k ** rng.uniform(1.0, 2.0) for k in range(1, 6))
    return tone * np.exp(-t * rng.uniform(1.5, 5.0)) * np.minimum(1.0, t * 100)


def _music(rng: np.random.Generator, seconds: float) -> np.ndarray:
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12])
    root, beat = 110 * 2 ** rng.uniform(0, 2), rng.uniform(0.18, 0.4)
    out = np.zeros(int((seconds + 2) * SAMPLE_RATE))
    for i in range(int(seconds / beat)):
        for step in rng.choice(scale, size=rng.integers(1, 4), replace=False):
            note = _note(root * 2 ** (step / 12), 2 * beat, rng)
            at = int(i * beat * SAMPLE_RATE)
            out[at : at + note.size] += note
    return out[: int(seconds * SAMPLE_RATE)]


def _beep(rng: np.random.Generator, seconds: float) -> np.ndarray:
    t, period = _time(seconds), rng.uniform(0.25, 0.6)
    on = (t % period) < period * rng.uniform(0.3, 0.7)
    return np.sin(2 * np.pi * rng.uniform(500, 2500) * t) * on


def _siren(rng: np.random.Generator, seconds: float) -> np.ndarray:
    t = _time(seconds)
    middle, depth = rng.uniform(600, 1200), rng.uniform(0.25, 0.5)
    hz = middle * (1 + depth * np.sin(2 * np.pi * rng.uniform(0.4, 1.5) * t + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(hz) / SAMPLE_RATE
    return np.sin(phase) + 0.3 * np.sin(2 * phase)


def _noise(rng: np.random.Generator, seconds: float) -> np.ndarray:
    white = rng.standard_normal(int(seconds * SAMPLE_RATE))
    spectrum = np.fft.rfft(white)
    hz = np.fft.rfftfreq(white.size, 1 / SAMPLE_RATE) + 50
    return np.fft.irfft(spectrum * hz ** -rng.uniform(0, 1), white.size)


def _knock(rng: np.random.Generator, seconds: float) -> np.ndarray:
    out, t = np.zeros(int(seconds * SAMPLE_RATE)), _time(0.12)
    at = rng.uniform(0, 0.2)
    while at < seconds - 0.12:
        thump = np.sin(2 * np.pi * rng.uniform(90, 220) * t) + 0.4 * rng.standard_normal(t.size)
        start = int(at * SAMPLE_RATE)
        out[start : start + t.size] += thump * np.exp(-t * rng.uniform(40, 80))
        at += rng.uniform(0.15, 0.45)
    return out


SOUNDS = {"music": _music, "beeps": _beep, "siren": _siren, "noise": _noise, "knocking": _knock}
"""Kinds of sound of `make_sound`."""


def make_sound(kind: str, rng: np.random.Generator, seconds: float) -> Float[np.ndarray, " S"]:
    """A random sound of a kind: float32 at 16 kHz, its peak below 0.5."""
    samples = SOUNDS[kind](rng, seconds)
    samples = samples + 1e-3 * rng.standard_normal(samples.size)
    return (samples * rng.uniform(0.1, 0.5) / np.abs(samples).max()).astype(np.float32)
