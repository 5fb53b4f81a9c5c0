"""What is asked of the engine, and its answers."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import time
from typing import Literal, NamedTuple

import numpy as np

from qa_jax.config import (
    FRAME_MARGIN,
    HOP_LENGTH,
    MAX_FRAMES,
    ModelConfig,
    SamplingConfig,
    num_audio_tokens,
    num_frames,
)
from qa_jax.errors import InputError
from qa_jax.generate.inputs import (
    UserBatch,
    audio_arrays,
    check_audio_tokens,
    frame_bucket,
    token_arrays,
)
from qa_jax.generate.text import Decode, TextStream
from qa_jax.typing import Float, Int

_INDEX_FACTOR = 0x9E3779B97F4A7C15
"""Odd: distinct multiples modulo 2**64 for distinct indices."""


class Clip(NamedTuple):
    """A clip: its samples at 16 kHz, to a whole frame, or its log-mel frames and a few more."""

    samples: Float[np.ndarray, " clip_samples"] | Float[np.ndarray, "clip_frames M"]
    num_frames: int

    @classmethod
    def of(cls, waveform: Float[np.ndarray, " S"], config: ModelConfig) -> Clip:
        """A clip of a waveform at 16 kHz; raises InputError if it is longer than the model's
        maximum."""
        frames = num_frames(waveform.size)
        frame_bucket(frames, min(MAX_FRAMES, config.audio.max_frames))
        samples = np.zeros(frames * HOP_LENGTH, np.float32)
        samples[: waveform.size] = waveform[: samples.size]
        return cls(samples, frames)

    @property
    def num_tokens(self) -> int:
        """Audio tokens: placeholders of the clip in a prompt."""
        return int(num_audio_tokens(self.num_frames))

    def digest(self) -> int:
        """64 bits of a SHA-256 of the clip."""
        state = hashlib.sha256(f"{self.samples.shape}{self.samples.dtype}".encode())
        state.update(np.ascontiguousarray(self.samples).data)
        return int.from_bytes(state.digest()[:8], "little")


class Request:
    """A prompt, and how it is to be answered.

    Attributes:
        tokens: the prompt's ids, placeholders expanded.
        clips: in the order of their placeholders.
        sampling: a seed is drawn where it gives none.
        decode: ids to text, for answers as text and for stop texts; None for ids alone.
        digests: the clips'.
        content: the tokens, each placeholder replaced by a number for its part of its clip: equal
            prefixes of it have equal keys and values.
        clip_starts: the index of each clip's first placeholder.

    Raises:
        InputError: for no tokens, ids beyond the vocabulary, or clips that do not match their
            placeholders.
    """

    def __init__(
        self,
        tokens: Int[np.ndarray, " T"],
        clips: list[Clip],
        sampling: SamplingConfig,
        config: ModelConfig,
        decode: Decode | None = None,
    ) -> None:
        if sampling.stop and decode is None:
            raise InputError("stop", "needs a tokenizer", "give stop_ids")
        tokens = np.asarray(tokens, np.int32)
        if tokens.size == 0:
            raise InputError("prompt", "has no tokens", "give text or audio")
        vocab = config.text.vocab_size
        for name, ids in (
            ("prompt", tokens),
            ("stop_ids", np.array(sampling.stop_ids, np.int64)),
            ("logit_bias", np.array([i for i, _ in sampling.logit_bias], np.int64)),
        ):
            if ids.size and (ids.min() < 0 or ids.max() >= vocab):
                wrong = next(int(i) for i in ids if not 0 <= i < vocab)
                raise InputError(
                    name, f"token id {wrong} is beyond the vocabulary of {vocab}", "use its ids"
                )
        if sampling.seed is None:
            sampling = dataclasses.replace(sampling, seed=secrets.randbits(32))
        self.tokens, self.clips, self.sampling, self.decode = tokens, clips, sampling, decode
        placeholders = np.flatnonzero(tokens == config.audio_token_id)
        counts = [clip.num_tokens for clip in clips]
        check_audio_tokens(placeholders.size, sum(counts))
        self.digests = [clip.digest() for clip in clips]
        ends = np.cumsum([0, *counts])
        self.clip_starts = [int(placeholders[i]) for i in ends[:-1]]
        self.content = tokens.astype(np.uint64)
        for digest, start, end in zip(self.digests, ends, ends[1:], strict=False):
            index = np.arange(end - start, dtype=np.uint64) * np.uint64(_INDEX_FACTOR)
            # The highest bit tells them from tokens.
            mixed = (np.uint64(digest) ^ index) | np.uint64(1 << 63)
            self.content[placeholders[start:end]] = mixed

    @property
    def num_entries(self) -> int:
        """Cache entries that the longest answer fills."""
        return self.tokens.size + self.sampling.max_new_tokens


FinishReason = Literal["stop", "length", "cancelled"]


class TokenInfo(NamedTuple):
    """A generated token.

    Attributes:
        token: its id.
        logprob: its log-probability, before any setting is applied.
        top: the most probable tokens with theirs, as many as were asked for.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Answer:
    """An answer as it grows.

    Attributes:
        request: what it answers.
        generated: its tokens so far, with log-probabilities.
        text: of those, if the request has `decode`; see `TextStream`.
        finish_reason: "stop" for a stop id, which is the last token, or a stop text; "length";
            "cancelled"; or None while it is not finished.
        num_cached_tokens: prompt tokens whose keys and values were there already.
        submitted, started, first_token, finished: times in seconds, of `time.perf_counter`; it
            starts when it gets a slot.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.generated: list[TokenInfo] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.num_cached_tokens = 0
        self.submitted = time.perf_counter()
        self.started = self.first_token = self.finished = 0.0
        self._stream: TextStream | None = None
        if request.decode is not None:
            self._stream = TextStream(request.decode, request.sampling.stop)

    @property
    def tokens(self) -> list[int]:
        """Ids of the tokens so far."""
        return [info.token for info in self.generated]

    @property
    def seed(self) -> int:
        """The seed of its draws: its own, where the request gave none."""
        assert self.request.sampling.seed is not None
        return self.request.sampling.seed

    @property
    def stopped_by(self) -> str | None:
        """The stop text that ended it."""
        return None if self._stream is None else self._stream.stopped_by

    def add(self, info: TokenInfo) -> None:
        """Adds a token, which may be the last."""
        settings = self.request.sampling
        self.first_token = self.first_token or time.perf_counter()
        self.generated.append(info)
        if self._stream is not None:
            self.text += self._stream.push(info.token)
        if info.token in settings.stop_ids or self.stopped_by is not None:
            self.finish("stop")
        elif len(self.generated) >= settings.max_new_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """Ends it."""
        if self._stream is not None:
            self.text += self._stream.finish()
        self.finish_reason, self.finished = reason, time.perf_counter()


def requests_of_batch(
    batch: UserBatch,
    config: ModelConfig,
    sampling: SamplingConfig,
    decode: Decode | None = None,
) -> list[Request]:
    """A request for each row of a batch; see `prepare_inputs`.

    Rows draw from seeds of their own: the setting's plus their index.
    """
    tokens, mask = token_arrays(batch)
    audio = audio_arrays(batch, config)
    clips = []
    if audio is not None:
        for values, frames in zip(*audio, strict=True):
            # The convolutions see frames past the clip, which are not zero in a log-mel.
            length = frames * HOP_LENGTH if values.ndim == 1 else frames + FRAME_MARGIN
            clips.append(Clip(values[: int(length)], int(frames)))
    counts = [clip.num_tokens for clip in clips]
    requests, first = [], 0
    for i, (row, real) in enumerate(zip(tokens, mask, strict=True)):
        ids = row[real]
        expected, last = int((ids == config.audio_token_id).sum()), first
        while last < len(clips) and sum(counts[first:last]) < expected:
            last += 1
        if i + 1 == len(tokens):  # clips that no row has a placeholder for are told of
            last = len(clips)
        requests.append(Request(ids, clips[first:last], sampling.of_row(i), config, decode))
        first = last
    return requests
