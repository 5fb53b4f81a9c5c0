"""Transcripts of clips of any length, window by window, and as subtitles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qa_jax.config import SAMPLE_RATE, ModelConfig, SamplingConfig
from qa_jax.data import Processor
from qa_jax.data.questions import instruction_prompt
from qa_jax.data.windows import WINDOW_SECONDS, join_texts, split_windows
from qa_jax.generate.requests import Answer, Clip, Request
from qa_jax.typing import Float


class Window(NamedTuple):
    """A window of a clip, and the request for its text.

    Attributes:
        first, last: its samples at 16 kHz, without the last.
        request: what the engine answers.
    """

    first: int
    last: int
    request: Request


def window_requests(
    waveform: Float[np.ndarray, " S"],
    instruction: str,
    processor: Processor,
    config: ModelConfig,
    sampling: SamplingConfig,
    *,
    raw: bool = False,
    max_seconds: float = WINDOW_SECONDS,
) -> list[Window]:
    """A request for each window of a clip; see `split_windows`.

    Args:
        waveform: at 16 kHz.
        instruction: the text beside each window.
        processor: tokenizes.
        config: the model's.
        sampling: settings; a window's seed is theirs plus its index.
        raw: without a chat template, as for the base model.
        max_seconds: of a window.
    """
    text = instruction_prompt([""], instruction, raw).text
    windows = list[Window]()
    for first, last in split_windows(waveform, max_seconds):
        tokens = np.array(processor.tokenize(text, [last - first]))
        clip, own = Clip.of(waveform[first:last], config), sampling.of_row(len(windows))
        request = Request(tokens, [clip], own, config, processor.tokenizer.decode)
        windows.append(Window(first, last, request))
    return windows


class Segment(NamedTuple):
    """A window's text. Times are those of the window's samples, so that they cannot drift, and tell
    no more than in which window a word is.

    Attributes:
        start, end: in seconds.
        text: the answer's, without surrounding spaces.
        answer: with its tokens and their log-probabilities.
    """

    start: float
    end: float
    text: str
    answer: Answer


class Transcript(NamedTuple):
    """The windows' texts, in order."""

    segments: list[Segment]

    @classmethod
    def of(cls, windows: Sequence[Window], answers: Sequence[Answer]) -> Transcript:
        """A transcript of finished answers."""
        return cls([segment_of(w, a) for w, a in zip(windows, answers, strict=True)])

    @property
    def text(self) -> str:
        """All texts as one."""
        return join_texts([segment.text for segment in self.segments])


def segment_of(window: Window, answer: Answer) -> Segment:
    """A window with its finished answer."""
    start, end = window.first / SAMPLE_RATE, window.last / SAMPLE_RATE
    return Segment(start, end, answer.text.strip(), answer)


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip subtitles."""
    texts = (s for s in segments if s.text)
    return "".join(
        f"{i}\n{_time(s.start, ',')} --> {_time(s.end, ',')}\n{_one_cue(s.text)}\n\n"
        for i, s in enumerate(texts, start=1)
    )


def to_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT subtitles."""
    cues = (
        f"{_time(s.start, '.')} --> {_time(s.end, '.')}\n"
        + _one_cue(s.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        for s in segments
        if s.text
    )
    return "\n\n".join(["WEBVTT", *cues]) + "\n"


def _one_cue(text: str) -> str:
    """Without empty lines, which end a cue."""
    return "\n".join(line for line in text.splitlines() if line.strip())


def _time(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"
