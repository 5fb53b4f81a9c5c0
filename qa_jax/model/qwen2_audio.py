"""Qwen2-Audio: where sound meets text.

waveform -> LogMel -> AudioEncoder -> projector --+
                                                  v
token ids -> embeddings -------------- audio placed at <|AUDIO|> -> TextDecoder -> logits
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.config import ModelConfig, token_count
from qa_jax.model.attention import Visible
from qa_jax.model.decoder import KVCache, TextDecoder
from qa_jax.model.encoder import AudioEncoder
from qa_jax.model.frontend import LogMel
from qa_jax.model.layers import Linear, fan_in_normal
from qa_jax.model.module import Module
from qa_jax.parallel import constrain


class Audio(NamedTuple):
    """The clips of a batch, in the order of their placeholders: row by row, left to right.

    Attributes:
        signal: waveforms (A, S) float32 at 16 kHz, or log-mels (A, F, M) computed elsewhere.
        frames: (A,) valid log-mel frames of each clip; 0 marks a clip that only fills the batch.
    """

    signal: jax.Array
    frames: jax.Array


def place_audio(
    embeds: jax.Array,
    is_audio: jax.Array,
    audio: jax.Array,
    counts: jax.Array,
    groups: int = 1,
    copies: int = 1,
) -> jax.Array:
    """Puts the n-th valid audio embedding at the n-th audio token.

    Clips come in groups so that devices need not look at each other's: group g of the clips serves
    group g of the rows, and each group is gathered from alone. One group is the plain case.

    Args:
        embeds: (B, T, D) token embeddings.
        is_audio: bool (B, T), the placeholders.
        audio: (A, P, D) embeddings, of which the first counts[a] of each clip are valid.
        counts: (A,) valid embeddings; per group they sum to a copy's placeholders.
        groups: divides both B and A.
        copies: how often a group's rows hold its clips: so many times the same clips, in rows that
            follow one another.

    Returns:
        (B, T, D).
    """
    (b, t, d), (a, p, _) = embeds.shape, audio.shape

    def nth(is_audio: jax.Array, counts: jax.Array) -> jax.Array:
        """Indices (B/G/copies * T,) into this group's (A/G * P) embeddings."""
        n = jnp.cumsum(is_audio.reshape(-1)) - 1
        ends = jnp.cumsum(counts)
        clip = jnp.searchsorted(ends, n, side="right", method="compare_all")
        clip = jnp.minimum(clip, counts.shape[0] - 1)
        return clip * p + n - (ends - counts)[clip]

    each = jnp.repeat(counts.reshape(groups, -1), copies, axis=0)
    index = jax.vmap(nth)(is_audio.reshape(groups * copies, -1), each).reshape(groups, -1)
    # A gather, never a scatter: it shards cleanly, and unused slots need no care.
    gathered = jax.vmap(lambda x, i: x.at[i].get(mode="clip"))(
        audio.reshape(groups, (a // groups) * p, d), index
    )
    return jnp.where(is_audio[..., None], gathered.reshape(b, t, d), embeds)


def segment_positions(segments: jax.Array) -> jax.Array:
    """(B, T) segment ids -> (B, T) positions, counted from 0 where each segment starts."""
    ids = segments.astype(jnp.int32)
    count = jnp.maximum(jnp.cumsum(ids > 0, axis=1) - 1, 0)
    highest = jax.lax.cummax(jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1], axis=1)
    # Ids rise along a row, so that a higher one than any before is where a segment starts.
    return count - jax.lax.cummax(jnp.where(ids > highest, count, 0), axis=1)


class Qwen2Audio(Module):
    """The whole model. Build it from a config, then `module.bind` gives it parameters."""

    def __init__(self, config: ModelConfig) -> None:
        self.dtype = jnp.dtype(config.dtype)
        self.audio_token_id = config.audio_token_id
        self.log_mel = LogMel(config.audio.num_mel_bins)
        loop: dict[str, Any] = {"remat": config.remat, "unroll": config.unroll}
        self.encoder = AudioEncoder(config.audio, config.attention, **loop)
        self.projector = Linear(
            {"embed": config.audio.d_model},
            {"norm": config.text.hidden_size},
            bias=True,
            init=fan_in_normal(config.audio.d_model),
        )
        self.decoder = TextDecoder(config.text, config.attention, **loop)

    def encode_audio(self, audio: Audio) -> jax.Array:
        """Clips -> (A, F / 4, D) embeddings in the decoder's space."""
        log_mel = self.log_mel(audio.signal) if audio.signal.ndim == 2 else audio.signal
        x = self.encoder(log_mel.astype(self.dtype), audio.frames)
        with jax.named_scope("projector"):
            return constrain(self.projector(x), "batch", "time", "act_embed")

    def embed(
        self, tokens: jax.Array, audio: Audio | None, groups: int = 1, copies: int = 1
    ) -> jax.Array:
        """(B, T) ids and their clips -> (B, T, D) decoder inputs."""
        embeds = self.decoder.embed(tokens, self.dtype)
        if audio is None:
            return embeds
        with jax.named_scope("place_audio"):
            is_audio = tokens == self.audio_token_id
            counts = token_count(audio.frames)
            heard = self.encode_audio(audio)
            return place_audio(embeds, is_audio, heard, counts, groups, copies)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        audio: Audio | None = None,
        groups: int = 1,
        cache: KVCache | None = None,
        copies: int = 1,
    ) -> tuple[jax.Array, KVCache | None]:
        """Hidden states of whole rows, to be turned into logits where they are needed.

        Args:
            tokens: (B, T) ids, each placeholder already one id per audio token.
            segments: (B, T) int, or bool where a row is one text: tokens see those before them in
                their own segment and count their positions from its start; 0 is padding.
            audio: the clips behind the placeholders.
            groups: see `place_audio`.
            cache: an empty cache of at least T slots to fill, for generation.
            copies: see `place_audio`.

        Returns:
            (B, T, D) hidden states and the filled cache.
        """
        t = tokens.shape[1]
        slots = t if cache is None else cache.k.shape[2]
        ids = segments.astype(jnp.int32)
        keys = jnp.pad(ids, ((0, 0), (0, slots - t)))
        visible = Visible(ids, keys, causal=True)
        positions = segment_positions(segments)
        embeds = self.embed(tokens, audio, groups, copies)
        return self.decoder(embeds, positions, visible, cache)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """(..., D) hidden states -> (..., V) float32 scores of the next token."""
        return self.decoder.logits(hidden)
