"""Audio embeddings by clip, so that no clip is encoded twice while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from qa_jax.config import (
    FRAME_MARGIN,
    HOP_LENGTH,
    MAX_FRAMES,
    ModelConfig,
    num_audio_tokens,
)
from qa_jax.generate.inputs import frame_bucket
from qa_jax.generate.requests import Clip
from qa_jax.model import AudioInput
from qa_jax.typing import Float

_BUCKETS = (200, 400, 800, 1200, 1600, 2200)
"""Frames that clips are padded to, besides the longest; multiples of `FRAME_MULTIPLE`."""


class AudioCache:
    """The embeddings of the clips used last, in the host's memory.

    Args:
        encode: audio embeddings of a batch of clips.
        config: the model's.
        max_bytes: the embeddings kept.
        unit: clips per call, of which all but the first are padding: the number of batch shards.

    Attributes:
        misses: clips that were encoded.
    """

    def __init__(
        self,
        encode: Callable[[AudioInput], Float[np.ndarray, "A P D"]],
        config: ModelConfig,
        max_bytes: int,
        unit: int = 1,
    ) -> None:
        self._encode, self._max_bytes, self._unit = encode, max_bytes, unit
        self._limit = min(MAX_FRAMES, config.audio.max_frames)
        self._buckets = [*(b for b in _BUCKETS if b < self._limit), self._limit]
        self._num_mels = config.audio.num_mel_bins
        self._embeds: OrderedDict[int, Float[np.ndarray, "P D"]] = OrderedDict()
        self.num_bytes = self.misses = 0

    def embeddings(self, clip: Clip, digest: int) -> Float[np.ndarray, "P D"]:
        """A clip's embeddings, one for each audio token."""
        found = self._embeds.get(digest)
        if found is not None:
            self._embeds.move_to_end(digest)
            return found
        self.misses += 1
        count = num_audio_tokens(clip.num_frames)
        embeds = self._encode(self._pad(clip))[0, :count]
        self._embeds[digest] = embeds
        self.num_bytes += embeds.nbytes
        while self.num_bytes > self._max_bytes and len(self._embeds) > 1:
            self.num_bytes -= self._embeds.popitem(last=False)[1].nbytes
        return embeds

    def clear(self) -> None:
        """Drops all embeddings."""
        self._embeds.clear()
        self.num_bytes = 0

    def shapes(self) -> list[AudioInput]:
        """Inputs of every program that clips given as samples need."""
        clips = [Clip(np.zeros(0, np.float32), max(1, b - FRAME_MARGIN)) for b in self._buckets]
        return [self._pad(clip) for clip in clips]

    def _pad(self, clip: Clip) -> AudioInput:
        needed = frame_bucket(clip.num_frames, self._limit)
        frames = next(b for b in self._buckets if b >= needed)
        is_waveform = clip.samples.ndim == 1
        shape = (frames * HOP_LENGTH,) if is_waveform else (frames, self._num_mels)
        padded = np.zeros((self._unit, *shape), clip.samples.dtype)
        values = clip.samples[: shape[0]]
        padded[0, : len(values)] = values
        num_frames = np.zeros(self._unit, np.int32)
        num_frames[0] = clip.num_frames
        return AudioInput(padded, num_frames)
