"""Records that a run can use: measured before it starts, and read from disk during it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from qa_jax.config import FRAME_MARGIN, MAX_FRAMES, DataConfig, num_audio_tokens, num_frames
from qa_jax.data.audio import clip_num_samples
from qa_jax.data.manifest import Record
from qa_jax.data.processor import Processor
from qa_jax.errors import InputError
from qa_jax.typing import Float, UInt32


class Example(NamedTuple):
    """A record that can be used, and its size in a batch, at most."""

    record: Record
    num_samples: tuple[int, ...]
    num_tokens: int
    bucket: int


class Measured(NamedTuple):
    """What planning needs of a record, whatever is planned.

    Attributes:
        num_samples: of each clip.
        text_tokens: tokens of its longest completion, without those of its clips.
    """

    num_samples: tuple[int, ...]
    text_tokens: int


class LoadedExample(NamedTuple):
    """A record read from disk.

    Attributes:
        completions: ids, and the weight of each in the loss, of each completion.
        waveforms: the clips.
        seeds: their keys for augmentation in the step.
    """

    completions: list[tuple[list[int], list[float]]]
    waveforms: list[np.ndarray]
    seeds: Sequence[UInt32[np.ndarray, " 2"]] = ()


def measure(
    record: Record, processor: Processor, long_audio: str = "error", num_completions: int = 1
) -> Measured:
    """What planning needs of a record, from its clips' headers.

    Raises InputError naming the record if it cannot be used.
    """
    try:
        num_samples = tuple(
            clip_num_samples(clip, record.base, long_audio) for clip in record.prompt.audio
        )
        completions = record.completions()
        if len(completions) != num_completions:
            raise InputError(
                "record",
                f"has {len(completions)} completion(s), train.objective needs {num_completions}",
                "name a manifest of that form, or another train.objective",
            )
        return Measured(num_samples, processor.count_text_tokens(completions, num_samples))
    except InputError as error:
        raise error.within(record.source) from None


def too_long(num_tokens: int, max_tokens: int) -> tuple[str, str]:
    """Cause and remedy of a record with too many tokens."""
    cause = f"{num_tokens} tokens are over data.max_tokens = {max_tokens}"
    return cause, "raise it, or split the record"


def load_example(
    example: Example,
    config: DataConfig,
    processor: Processor,
    room: int,
    change: Callable[[Float[np.ndarray, " _"]], Float[np.ndarray, " _"]] | None = None,
) -> LoadedExample:
    """Reads an example's clips, and tokenizes it with their exact lengths.

    Args:
        example: measured.
        config: that it was measured with.
        processor: likewise.
        room: tokens that it may have more than measured: an MP3's header may be a few frames off.
        change: made to every clip.

    Raises:
        InputError: naming the record, if a clip cannot be read or is longer than its header says.
    """
    record = example.record
    try:
        waveforms = processor.load(
            record.prompt.audio, base=record.base, long_audio=config.long_audio
        )
        if change is not None:
            waveforms = [change(waveform) for waveform in waveforms]
    except InputError as error:
        raise error.within(record.source) from None
    sizes = [waveform.size for waveform in waveforms]
    longest = max((num_frames(n) for n in sizes), default=0)
    tokens, planned = (
        sum(num_audio_tokens(num_frames(n)) for n in lengths)
        for lengths in (sizes, example.num_samples)
    )
    fits = longest + FRAME_MARGIN <= example.bucket or longest <= MAX_FRAMES == example.bucket
    if waveforms and (not fits or tokens - planned > room):
        raise InputError(
            record.source,
            f"contains {longest} frames, more than its header says",
            "convert the file to wav or flac",
        )
    tokenized = [processor.tokenize_with_weights(c, sizes) for c in record.completions()]
    return LoadedExample(tokenized, waveforms)
