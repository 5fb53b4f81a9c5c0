"""Tokenisation and audio loading -> padded batches.

Only this module expands an `<|AUDIO|>` into one id for each of the encoder's embeddings.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qa_jax.config import SAMPLE_RATE, num_audio_tokens, num_frames
from qa_jax.data.audio import AudioSource, load_audio
from qa_jax.data.chat import Message, Prompt, apply_chat_template
from qa_jax.data.tokenizer import AUDIO, END_OF_TEXT, Tokenizer
from qa_jax.data.windows import split_clips
from qa_jax.errors import InputError
from qa_jax.typing import Float

Batch = dict[str, np.ndarray]
"""Arrays of a padded batch:

    input_ids       (B, T) int32, placeholders expanded
    attention_mask  (B, T) int32, 0 at padding
    audio           (A, S) float32 waveforms at 16 kHz, zero-padded; only if there are clips
    audio_lengths   (A,) int32, samples of each clip
"""


_SAMPLE = "The quick brown fox, 1984; naïve Straße? Привет 你好，世界。こんにちは 안녕 <|im_end|>"


class Processor:
    """Makes batches for a model with this tokenizer.

    Args:
        tokenizer: the model's.
        long_audio: what to do with clips over 30 s: "error", "truncate", or "window": several
            clips in the prompt, cut where it is quiet; see `qa_jax.data.windows`.
        audio_hosts: hosts that clips' URLs may name; see `qa_jax.data.urls`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        long_audio: str = "error",
        audio_hosts: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.long_audio, self.audio_hosts = long_audio, audio_hosts
        self.audio_token_id = tokenizer.id_of(AUDIO)

    @cached_property
    def pad_id(self) -> int:
        return self.tokenizer.id_of(END_OF_TEXT)

    @cached_property
    def fingerprint(self) -> str:
        """Differs for tokenizers that give other ids, as far as a sample of scripts shows."""
        ids = self.tokenizer.encode(_SAMPLE)
        found = [self.tokenizer.vocab_size, self.audio_token_id, self.pad_id, *ids]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

    def __call__(
        self,
        text: str | Sequence[str],
        audio: AudioSource = None,
        *,
        audios: AudioSource = None,
        sampling_rate: int | None = None,
        padding_side: str = "left",
        long_audio: str | None = None,
    ) -> Batch:
        """A batch of raw prompts, with the arguments of transformers' processor.

        Args:
            text: one prompt or several, with one `<|AUDIO|>` for each clip.
            audio: one clip or a list of them, in the order of the placeholders through all
                prompts, each in any form that `load_audio` accepts.
            audios: an older name of `audio`.
            sampling_rate: the rate of clips given as bare arrays; as in transformers, it must be
                16,000. A clip of another rate is given as (array, rate) and is resampled.
            padding_side: side on which shorter rows are padded: "left" for generation.
            long_audio: overrides the processor's setting in this call.

        Raises:
            InputError: clips and placeholders differ in number, or a clip cannot be used.
        """
        if audio is not None and audios is not None:
            raise InputError("audio", "given twice, as audio and as audios", "give one of them")
        if sampling_rate is not None and sampling_rate != SAMPLE_RATE:
            raise InputError(
                "sampling_rate",
                f"{sampling_rate} Hz, the model's rate is {SAMPLE_RATE} Hz",
                "give each clip as (array, rate) to have it resampled",
            )
        texts = [text] if isinstance(text, str) else list(text)
        clips = _as_list(audio if audios is None else audios)
        if sum(t.count(AUDIO) for t in texts) != len(clips):
            raise _count_error("text", sum(t.count(AUDIO) for t in texts), len(clips))
        loaded = iter(self.load(clips, sampling_rate=sampling_rate, long_audio=long_audio))
        rows, waveforms = [], []
        for t in texts:
            own = list(itertools.islice(loaded, t.count(AUDIO)))
            row, own = self.tokenize_clips(t, own, long_audio)
            rows.append(row)
            waveforms += own
        return self.collate(rows, waveforms, padding_side)

    def apply_chat_template(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        add_generation_prompt: bool = True,
        padding_side: str = "left",
        long_audio: str | None = None,
    ) -> Batch:
        """A batch of one conversation or several; see `qa_jax.data.apply_chat_template`."""
        single = bool(messages) and not isinstance(messages[0], list | tuple)
        conversations: Any = [messages] if single else messages
        rows, waveforms = [], []
        for conversation in conversations:
            prompt = apply_chat_template(conversation, add_generation_prompt)
            loaded = self.load(prompt.audio, long_audio=long_audio)
            row, loaded = self.tokenize_clips(prompt.text, loaded, long_audio)
            rows.append(row)
            waveforms += loaded
        return self.collate(rows, waveforms, padding_side)

    def load(
        self,
        clips: Sequence[AudioSource],
        *,
        sampling_rate: int | None = None,
        long_audio: str | None = None,
        base: str | Path = "",
    ) -> list[Float[np.ndarray, " _"]]:
        """Reads clips; see `load_audio`."""
        return [
            load_audio(
                clip,
                sampling_rate=sampling_rate,
                long_audio=long_audio or self.long_audio,
                base=base,
                name=f"audio {i + 1}",
                hosts=self.audio_hosts,
            )
            for i, clip in enumerate(clips)
        ]

    def tokenize_clips(
        self,
        text: str,
        waveforms: Sequence[Float[np.ndarray, " _"]],
        long_audio: str | None = None,
    ) -> tuple[list[int], list[Float[np.ndarray, " _"]]]:
        """Ids of a prompt, and its clips: more of them, if long ones are split."""
        waveforms = list(waveforms)
        if (long_audio or self.long_audio) == "window":
            text, waveforms = split_clips(text, waveforms)
        return self.tokenize(text, [w.size for w in waveforms]), waveforms

    def tokenize(self, text: str, num_samples: Sequence[int]) -> list[int]:
        """Ids of a prompt whose clips have `num_samples` samples each."""
        ids = self.tokenizer.encode(text)
        if ids.count(self.audio_token_id) != len(num_samples):
            raise _count_error("prompt", ids.count(self.audio_token_id), len(num_samples))
        counts = iter(num_audio_tokens(num_frames(n)) for n in num_samples)
        expanded: list[int] = []
        for i in ids:
            expanded += [i] * next(counts) if i == self.audio_token_id else [i]
        return expanded

    def tokenize_with_weights(
        self, prompt: Prompt, num_samples: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """Ids of a conversation and, for each, its weight in the loss: 0 if it is no target.

        Spans are tokenized separately: each begins or ends with a special token or a newline, where
        the pre-tokenizer splits in any case.
        """
        ids: list[int] = []
        weights: list[float] = []
        remaining = list(num_samples)
        for span in prompt.spans:
            num_clips = span.text.count(AUDIO)
            new = self.tokenize(span.text, remaining[:num_clips])
            remaining = remaining[num_clips:]
            ids += new
            weights += [span.weight * span.is_target] * len(new)
        return ids, weights

    def count_text_tokens(self, completions: Sequence[Prompt], num_samples: Sequence[int]) -> int:
        """Tokens of the longest of a record's completions, without those of its clips."""
        longest = max(len(self.tokenize_with_weights(c, num_samples)[0]) for c in completions)
        return longest - sum(num_audio_tokens(num_frames(n)) for n in num_samples)

    def collate(
        self,
        rows: Sequence[Sequence[int]],
        waveforms: Sequence[Float[np.ndarray, " _"]],
        padding_side: str,
    ) -> Batch:
        """Pads rows of ids, and clips, to the longest of each."""
        if padding_side not in ("left", "right"):
            raise InputError("padding_side", f"{padding_side!r}", 'use "left" or "right"')
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_id, np.int32)
        mask = np.zeros((len(rows), width), np.int32)
        for i, row in enumerate(rows):
            columns = slice(width - len(row), None) if padding_side == "left" else slice(len(row))
            ids[i, columns], mask[i, columns] = row, 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if waveforms:
            lengths = np.array([w.size for w in waveforms], np.int32)
            audio = np.zeros((len(waveforms), lengths.max()), np.float32)
            for row, waveform in zip(audio, waveforms, strict=True):
                row[: waveform.size] = waveform
            batch |= {"audio": audio, "audio_lengths": lengths}
        return batch


def _as_list(audio: AudioSource) -> list[AudioSource]:
    """Clips as a list; a single path, file, array or (array, rate) becomes a list of one."""
    if audio is None:
        return []
    if isinstance(audio, tuple) and not (len(audio) == 2 and isinstance(audio[1], int | float)):
        return list(audio)
    samples = isinstance(audio, list) and audio and isinstance(audio[0], int | float)
    return audio if isinstance(audio, list) and not samples else [audio]


def _count_error(where: str, placeholders: int, clips: int) -> InputError:
    return InputError(
        where,
        f"{placeholders} {AUDIO} placeholder(s) for {clips} clip(s)",
        f"write one {AUDIO} for each clip, in their order",
    )
