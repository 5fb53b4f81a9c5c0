"""Text and sound to the arrays that the model reads.

This is the one place where an `<|AUDIO|>` becomes as many ids as the encoder gives embeddings.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from qa_jax.config import SAMPLE_RATE, token_count, valid_frames
from qa_jax.data.audio import load_audio
from qa_jax.data.chat import Message, Prompt, render
from qa_jax.data.tokenizer import AUDIO, END_OF_TEXT, Tokenizer
from qa_jax.errors import InputError

Batch = dict[str, np.ndarray]
"""Arrays of a padded batch:

    input_ids       (B, T) int32, placeholders expanded
    attention_mask  (B, T) int32, 0 at padding
    audio           (A, S) float32 waveforms at 16 kHz, zero-filled; only where there are clips
    audio_lengths   (A,) int32, samples of each clip
"""


class Processor:
    """Makes batches for a model with this tokenizer.

    Args:
        tokenizer: the model's.
        long_audio: what to do with clips over 30 s: "error" or "truncate".
    """

    def __init__(self, tokenizer: Tokenizer, long_audio: str = "error") -> None:
        self.tokenizer = tokenizer
        self.long_audio = long_audio
        self.audio_token_id = tokenizer.id_of(AUDIO)

    @cached_property
    def pad_id(self) -> int:
        return self.tokenizer.id_of(END_OF_TEXT)

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Any = None,
        *,
        audios: Any = None,
        sampling_rate: int | None = None,
        padding_side: str = "left",
        long_audio: str | None = None,
    ) -> Batch:
        """Raw prompts, as transformers' processor takes them.

        Args:
            text: one prompt or several, with one `<|AUDIO|>` for each clip.
            audio: one clip or a list of them, in the order of the placeholders through all
                prompts; see `load_audio` for what a clip can be.
            audios: an older name of `audio`.
            sampling_rate: the rate of clips given as bare arrays; as in transformers, it must be
                16,000. Give (array, rate) for a clip of another rate and it is resampled.
            padding_side: where shorter rows are padded: "left" to generate.
            long_audio: replaces the processor's own setting in this call.

        Raises:
            InputError: clips and placeholders differ in number, or a clip cannot be used.
        """
        if audio is not None and audios is not None:
            raise InputError("audio", "given twice, as audio and as audios", "give one of them")
        if sampling_rate is not None and sampling_rate != SAMPLE_RATE:
            raise InputError(
                "sampling_rate",
                f"{sampling_rate} Hz, the model hears {SAMPLE_RATE} Hz",
                "give each clip as (array, rate) to have it resampled",
            )
        texts = [text] if isinstance(text, str) else list(text)
        clips = _as_list(audio if audios is None else audios)
        if sum(t.count(AUDIO) for t in texts) != len(clips):
            raise _count_error("text", sum(t.count(AUDIO) for t in texts), len(clips))
        waves = self.load(clips, sampling_rate=sampling_rate, long_audio=long_audio)
        sizes = iter([w.size for w in waves])
        rows = [self.expand(t, list(itertools.islice(sizes, t.count(AUDIO)))) for t in texts]
        return self.collate(rows, waves, padding_side)

    def apply_chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        add_generation_prompt: bool = True,
        padding_side: str = "left",
        long_audio: str | None = None,
    ) -> Batch:
        """One conversation or a list of them; see `qa_jax.data.chat.render` for their form."""
        single = bool(messages) and not isinstance(messages[0], list | tuple)
        conversations: Any = [messages] if single else messages
        rows, waves = [], []
        for conversation in conversations:
            prompt = render(conversation, add_generation_prompt)
            here = self.load(prompt.audio, long_audio=long_audio)
            rows.append(self.expand(prompt.text, [w.size for w in here]))
            waves += here
        return self.collate(rows, waves, padding_side)

    def load(
        self,
        clips: Sequence[Any],
        *,
        sampling_rate: int | None = None,
        long_audio: str | None = None,
        base: Any = "",
    ) -> list[np.ndarray]:
        """Reads clips; see `load_audio`."""
        return [
            load_audio(
                clip,
                sampling_rate=sampling_rate,
                long_audio=long_audio or self.long_audio,
                base=base,
                name=f"audio {i + 1}",
            )
            for i, clip in enumerate(clips)
        ]

    def expand(self, text: str, samples: Sequence[int]) -> list[int]:
        """Ids of a prompt whose clips have so many samples each."""
        ids = self.tokenizer.encode(text)
        if ids.count(self.audio_token_id) != len(samples):
            raise _count_error("prompt", ids.count(self.audio_token_id), len(samples))
        counts = iter(token_count(valid_frames(n)) for n in samples)
        expanded: list[int] = []
        for i in ids:
            expanded += [i] * next(counts) if i == self.audio_token_id else [i]
        return expanded

    def expand_answers(
        self, prompt: Prompt, samples: Sequence[int]
    ) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and, for each, whether the assistant wrote it.

        Spans are tokenized apart: each begins or ends with a special token or a newline, where the
        tokenizer cuts anyway.
        """
        ids: list[int] = []
        answer: list[bool] = []
        rest = list(samples)
        for span in prompt.spans:
            clips = span.text.count(AUDIO)
            new = self.expand(span.text, rest[:clips])
            rest = rest[clips:]
            ids += new
            answer += [span.answer] * len(new)
        return ids, answer

    def count(self, prompts: Sequence[Prompt], samples: Sequence[int], most: int) -> int:
        """Tokens of the longest of some conversations about the same clips; raises InputError where
        these are more than `most`."""
        longest = max(len(self.expand_answers(prompt, samples)[0]) for prompt in prompts)
        if longest > most:
            raise InputError(
                "record",
                f"{longest} tokens are over data.max_tokens = {most}",
                "raise it, or split the record",
            )
        return longest

    def collate(
        self, rows: Sequence[Sequence[int]], waves: Sequence[np.ndarray], padding_side: str
    ) -> Batch:
        """Pads rows of ids to the longest, and clips likewise."""
        if padding_side not in ("left", "right"):
            raise InputError("padding_side", f"{padding_side!r}", 'use "left" or "right"')
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_id, np.int32)
        mask = np.zeros((len(rows), width), np.int32)
        for i, row in enumerate(rows):
            at = slice(width - len(row), None) if padding_side == "left" else slice(len(row))
            ids[i, at], mask[i, at] = row, 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if waves:
            lengths = np.array([w.size for w in waves], np.int32)
            audio = np.zeros((len(waves), lengths.max()), np.float32)
            for row, wave in zip(audio, waves, strict=True):
                row[: wave.size] = wave
            batch |= {"audio": audio, "audio_lengths": lengths}
        return batch


def _as_list(audio: Any) -> list[Any]:
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
