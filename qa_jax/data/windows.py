"""Audio longer than the model reads at once: windows that tile it, and their texts as one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from qa_jax.config import SAMPLE_RATE
from qa_jax.data.audio import MAX_SAMPLES
from qa_jax.data.chat import PLACEHOLDER
from qa_jax.data.tokenizer import AUDIO
from qa_jax.typing import Float

_PLACEHOLDERS = re.compile(
    rf"Audio \d+: {re.escape(PLACEHOLDER)}\n|{re.escape(PLACEHOLDER)}|{re.escape(AUDIO)}"
)
WINDOW_SECONDS = MAX_SAMPLES / SAMPLE_RATE
_HOP = SAMPLE_RATE // 100
_SMOOTH = 30
"""Steps of 10 ms over which loudness is averaged: shorter gaps are inside words."""
_EARLIEST = 1 / 3
"""Of the longest window, after which a cut is looked for."""
_SILENCE = 0.1
"""Of a window's loudness: quieter places are all as good."""


def split_windows(
    waveform: Float[np.ndarray, " S"], max_seconds: float = WINDOW_SECONDS
) -> list[tuple[int, int]]:
    """First and last sample of windows that tile a waveform, cut where it is quiet.

    Each sample is in one window. A window ends in the last silence that it has room for, or, where
    people speak without a pause, in the quietest place.

    Args:
        waveform: at 16 kHz.
        max_seconds: of a window.
    """
    most = int(max_seconds * SAMPLE_RATE)
    if waveform.size <= most:
        return [(0, waveform.size)]
    loudness = _loudness(waveform)
    windows, start = [], 0
    while waveform.size - start > most:
        # What is left for the last window is not shorter than a word.
        last = min(start + most, waveform.size - most // 20)
        silence = _SILENCE * np.quantile(loudness[start // _HOP : (start + most) // _HOP], 0.9)
        end = _quiet_place(loudness, start + int(most * _EARLIEST), last, float(silence))
        windows.append((start, end))
        start = end
    return [*windows, (start, waveform.size)]


def _loudness(waveform: Float[np.ndarray, " S"]) -> Float[np.ndarray, " steps"]:
    """RMS around the end of every 10 ms."""
    steps = waveform.size // _HOP
    blocks = waveform[: steps * _HOP].reshape(steps, _HOP)
    power = np.einsum("ij,ij->i", blocks, blocks, dtype=np.float64) / _HOP
    total = np.concatenate([[0.0], np.cumsum(power)])
    middle = np.arange(1, steps + 1)
    low = np.maximum(middle - _SMOOTH // 2, 0)
    high = np.minimum(middle + _SMOOTH // 2, steps)
    return np.sqrt(np.maximum(total[high] - total[low], 0) / (high - low))


def _quiet_place(
    loudness: Float[np.ndarray, " steps"], first: int, last: int, silence: float
) -> int:
    """A sample between two, in the middle of the last silence or in the quietest place."""
    low, high = first // _HOP, max(last // _HOP, first // _HOP + 1)
    part = loudness[low:high]
    quiet = np.flatnonzero(part <= silence)
    if not quiet.size:
        return (low + int(part.argmin()) + 1) * _HOP
    # The run of silence that ends last.
    ends = np.flatnonzero(np.diff(quiet) > 1)
    begin = quiet[ends[-1] + 1] if ends.size else quiet[0]
    run = part[begin : quiet[-1] + 1]
    quietest = np.flatnonzero(run <= run.min() * 1.05)
    return (low + int(begin) + int(quietest[quietest.size // 2]) + 1) * _HOP


def split_clips(
    text: str, waveforms: Sequence[Float[np.ndarray, " _"]]
) -> tuple[str, list[Float[np.ndarray, " _"]]]:
    """A prompt and its clips, with several clips, one after the other, in the place of each that is
    longer than the model reads. Numbers of the chat template's "Audio N: " are those of the new
    clips."""
    clips, remaining = list[Float[np.ndarray, " _"]](), iter(waveforms)

    def replace(match: re.Match[str]) -> str:
        waveform = next(remaining, None)
        if waveform is None:  # there are too few clips, as will be told
            return match[0]
        placeholders = []
        for first, last in split_windows(waveform):
            clips.append(waveform[first:last])
            placeholders.append(re.sub(r"^Audio \d+", f"Audio {len(clips)}", match[0]))
        return "".join(placeholders)

    text = _PLACEHOLDERS.sub(replace, text)
    return text, [*clips, *remaining]


def join_texts(texts: Sequence[str]) -> str:
    """The texts of consecutive windows as one: with a space between, except between characters of
    scripts that are written without."""
    joined = ""
    for text in map(str.strip, texts):
        is_spaced = joined and text and not (_is_unspaced(joined[-1]) and _is_unspaced(text[0]))
        joined += f" {text}" if is_spaced else text
    return joined


def _is_unspaced(character: str) -> bool:
    """Whether it belongs to a script without spaces, or is that script's punctuation."""
    name = unicodedata.name(character, "")
    return name.startswith(
        ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH", "THAI", "LAO", "KHMER")
    )
