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


class WindowSplitter:
    """Splits audio into windows while it comes.

    Each sample is in one window. A window ends in the last silence that it has room for, or, where
    people speak without a pause, in the quietest place.

    Args:
        max_seconds: of a window.
    """

    def __init__(self, max_seconds: float = WINDOW_SECONDS) -> None:
        self._most = int(max_seconds * SAMPLE_RATE)
        # What is left for the last window is not shorter than a word.
        self._least = min(self._most // 2, max(self._most // 20, SAMPLE_RATE * 3 // 10))
        self._power = np.zeros(0)
        self._rest = np.zeros(0, np.float32)
        self._start = self._size = 0

    def push(self, samples: Float[np.ndarray, " S"]) -> list[tuple[int, int]]:
        """First and last sample of the windows that are certain after these samples at 16 kHz."""
        self._size += samples.size
        rest = np.concatenate([self._rest, samples])
        steps = rest.size // _HOP
        blocks = rest[: steps * _HOP].reshape(steps, _HOP)
        power = np.einsum("ij,ij->i", blocks, blocks, dtype=np.float64) / _HOP
        self._power, self._rest = np.concatenate([self._power, power]), rest[steps * _HOP :]
        windows = []
        while self._size - self._start >= self._most + self._least:
            windows.append(self._cut(self._start + self._most))
        return windows

    def finish(self) -> list[tuple[int, int]]:
        """The windows of what is left."""
        windows = []
        if self._size - self._start > self._most:
            windows.append(self._cut(self._size - self._least))
        if self._size > self._start or not self._size:
            windows.append((self._start, self._size))
        return windows

    def _cut(self, last: int) -> tuple[int, int]:
        """A window that ends before a sample."""
        start, stop = self._start // _HOP, last // _HOP
        loudness = self._loudness(start, stop)
        silence = _SILENCE * float(np.quantile(loudness, 0.9))
        skipped = int(self._most * _EARLIEST) // _HOP
        begin, self._start = (
            self._start,
            (start + skipped + _quiet_place(loudness[skipped:], silence)) * _HOP,
        )
        return begin, self._start

    def _loudness(self, start: int, stop: int) -> Float[np.ndarray, " steps"]:
        """RMS around the ends of steps of 10 ms."""
        first = max(start - _SMOOTH, 0)
        total = np.concatenate([[0.0], np.cumsum(self._power[first : stop + _SMOOTH])])
        middle = np.arange(start, stop) + 1 - first
        low = np.maximum(middle - _SMOOTH // 2, 0)
        high = np.minimum(middle + _SMOOTH // 2, total.size - 1)
        return np.sqrt(np.maximum(total[high] - total[low], 0) / (high - low))


def split_windows(
    waveform: Float[np.ndarray, " S"], max_seconds: float = WINDOW_SECONDS
) -> list[tuple[int, int]]:
    """First and last sample of the windows of a whole waveform; see `WindowSplitter`."""
    splitter = WindowSplitter(max_seconds)
    return [*splitter.push(waveform), *splitter.finish()]


def _quiet_place(loudness: Float[np.ndarray, " steps"], silence: float) -> int:
    """Steps to the middle of the last silence, or to the quietest place."""
    quiet = np.flatnonzero(loudness <= silence)
    if not quiet.size:
        return int(loudness.argmin()) + 1
    # The run of silence that ends last, of which the quietest part.
    ends = np.flatnonzero(np.diff(quiet) > 1)
    begin = int(quiet[ends[-1] + 1]) if ends.size else int(quiet[0])
    run = loudness[begin : quiet[-1] + 1]
    quietest = np.flatnonzero(run <= run.min() * 1.05)
    return begin + int(quietest[quietest.size // 2]) + 1


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
