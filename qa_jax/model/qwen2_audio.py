"""Qwen2-Audio: audio-text fusion.

waveform -> LogMel -> AudioEncoder -> projector --+
                                                  v
token ids -> embeddings ------------- merged at <|AUDIO|> -> TextDecoder -> logits
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.config import ModelConfig, num_audio_tokens
from qa_jax.model.attention import AttentionMask
from qa_jax.model.decoder import TextDecoder
from qa_jax.model.encoder import AudioEncoder
from qa_jax.model.frontend import LogMel
from qa_jax.model.layers import Linear, fan_in_normal
from qa_jax.model.module import Module
from qa_jax.model.quantization import declare_int8
from qa_jax.parallel import constrain
from qa_jax.typing import AnyArray, Array, Bool, Float, Int


class AudioInput(NamedTuple):
    """The clips of a batch, in the order of their placeholders: row by row, left to right.

    Attributes:
        waveform: float32 at 16 kHz, or log-mels (A, F, M) computed elsewhere.
        num_frames: valid log-mel frames of each clip; 0 marks a clip that pads the batch.
    """

    waveform: Float[AnyArray, "A samples"] | Float[AnyArray, "A F M"]
    num_frames: Int[AnyArray, " A"]


def merge_audio_embeddings(
    embeds: Float[Array, "B T D"],
    is_audio: Bool[Array, "B T"],
    audio_embeds: Float[Array, "A P D"],
    num_valid: Int[Array, " A"],
    num_batch_shards: int = 1,
    rows_per_clip: int = 1,
) -> Float[Array, "B T D"]:
    """Puts the n-th valid audio embedding at the n-th audio token.

    Rows and clips are numbered within batch shards, so that the gather needs no cross-device
    communication: the clips of shard i belong to the rows of shard i.

    Args:
        embeds: token embeddings.
        is_audio: the placeholders.
        audio_embeds: embeddings, of which the first num_valid[a] of each clip are valid.
        num_valid: per shard they sum to the placeholders of one copy of the clips.
        num_batch_shards: divides both B and A.
        rows_per_clip: how many copies of its clips a shard's rows hold, one after the other: 2 for
            pairs of completions.
    """
    (b, t, d), (a, p, _) = embeds.shape, audio_embeds.shape

    def embedding_index(is_audio: jax.Array, num_valid: jax.Array) -> jax.Array:
        """(rows * T,) indices into this shard's (A / num_batch_shards * P) embeddings."""
        n = jnp.cumsum(is_audio.reshape(-1)) - 1
        ends = jnp.cumsum(num_valid)
        clip = jnp.searchsorted(ends, n, side="right", method="compare_all")
        clip = jnp.minimum(clip, num_valid.shape[0] - 1)
        return clip * p + n - (ends - num_valid)[clip]

    per_copy = jnp.repeat(num_valid.reshape(num_batch_shards, -1), rows_per_clip, axis=0)
    copies = is_audio.reshape(num_batch_shards * rows_per_clip, -1)
    index = jax.vmap(embedding_index)(copies, per_copy).reshape(num_batch_shards, -1)
    # A gather, not a scatter: it shards cleanly, and unused indices need no special case.
    gathered = jax.vmap(lambda x, i: x.at[i].get(mode="clip"))(
        audio_embeds.reshape(num_batch_shards, (a // num_batch_shards) * p, d), index
    )
    return jnp.where(is_audio[..., None], gathered.reshape(b, t, d), embeds)


def segment_positions(
    segment_ids: Int[Array, "B T"] | Bool[Array, "B T"],
) -> Int[Array, "B T"]:
    """Positions, counted from 0 at the start of each segment."""
    ids = segment_ids.astype(jnp.int32)
    count = jnp.maximum(jnp.cumsum(ids > 0, axis=1) - 1, 0)
    highest = jax.lax.cummax(jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1], axis=1)
    # Ids increase along a row, so a segment starts at an id higher than all before it.
    return count - jax.lax.cummax(jnp.where(ids > highest, count, 0), axis=1)


class Qwen2Audio(Module):
    """The whole model; `module.bind` gives it parameters."""

    def __init__(self, config: ModelConfig) -> None:
        self.dtype = jnp.dtype(config.dtype)
        self.audio_token_id = config.audio_token_id
        self.log_mel = LogMel(config.audio.num_mel_bins)
        remat, unroll = config.remat, config.unroll_layers
        self.encoder = AudioEncoder(
            config.audio,
            config.attention_impl,
            config.conv_init_scale,
            config.position_init_scale,
            remat=remat,
            unroll=unroll,
        )
        self.projector = Linear(
            {"embed": config.audio.d_model},
            {"norm": config.text.hidden_size},
            bias=True,
            init=fan_in_normal(config.audio.d_model),
        )
        self.decoder = TextDecoder(config.text, config.attention_impl, remat=remat, unroll=unroll)
        if config.weights == "int8":
            declare_int8(self)

    def encode_audio(self, audio: AudioInput) -> Float[Array, "A P D"]:
        """Audio embeddings in the decoder's space, P = F / 4."""
        waveform = audio.waveform
        log_mel = self.log_mel(waveform) if waveform.ndim == 2 else waveform
        x = self.encoder(log_mel.astype(self.dtype), audio.num_frames)
        with jax.named_scope("projector"):
            return constrain(self.projector(x), "batch", "time", "act_embed")

    def embed(
        self,
        tokens: Int[Array, "B T"],
        audio: AudioInput | None,
        num_batch_shards: int = 1,
        rows_per_clip: int = 1,
    ) -> Float[Array, "B T D"]:
        """The decoder's inputs: token embeddings with the audio embeddings merged in."""
        embeds = self.decoder.embed(tokens, self.dtype)
        if audio is None:
            return embeds
        with jax.named_scope("merge_audio_embeddings"):
            return merge_audio_embeddings(
                embeds,
                tokens == self.audio_token_id,
                self.encode_audio(audio),
                num_audio_tokens(audio.num_frames),
                num_batch_shards,
                rows_per_clip,
            )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | Bool[Array, "B T"],
        audio: AudioInput | None = None,
        num_batch_shards: int = 1,
        rows_per_clip: int = 1,
    ) -> Float[Array, "B T D"]:
        """Hidden states of whole rows; `logits` turns them into logits where they are needed.

        Args:
            tokens: ids, each placeholder already expanded to one id per audio token.
            segment_ids: or an attention mask of bools. Tokens attend causally within their segment
                and their positions restart with it; 0 is padding.
            audio: the clips of the placeholders.
            num_batch_shards, rows_per_clip: see `merge_audio_embeddings`.
        """
        ids = segment_ids.astype(jnp.int32)
        mask = AttentionMask(ids, ids, is_causal=True)
        positions = segment_positions(segment_ids)
        embeds = self.embed(tokens, audio, num_batch_shards, rows_per_clip)
        return self.decoder(embeds, positions, mask)[0]

    def logits(self, hidden: Float[Array, "*rest D"]) -> Float[Array, "*rest V"]:
        """Float32 logits of the next token."""
        return self.decoder.logits(hidden)
