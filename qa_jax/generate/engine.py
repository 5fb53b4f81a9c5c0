"""Prefill, then decoding token by token; each compiled once per length bucket."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.config import ModelConfig, SamplingConfig
from qa_jax.errors import InputError
from qa_jax.generate.inputs import ModelInputs, UserBatch, prepare_inputs
from qa_jax.generate.sampling import sample_token
from qa_jax.model import AttentionMask, AudioInput, KVCache, Qwen2Audio, bind, unstack
from qa_jax.typing import Array, Bool, Float, Int, Key, Params

CACHE_MULTIPLE = 64
"""The cache has room for a multiple of so many new tokens."""


class DecodeState(NamedTuple):
    """The state of decoding.

    Attributes:
        cache: keys and values of prompt and answer.
        attention_mask: cache entries that contain a token.
        position: of the newest token.
        tokens: the answers so far, padded by -1.
        length: decode step: the number of tokens generated for rows that have not stopped.
        done: rows that have stopped.
        seen: for the repetition penalty, or None.
        keys: random keys.
    """

    cache: KVCache
    attention_mask: Bool[Array, "B S"]
    position: Int[Array, " B"]
    tokens: Int[Array, "B new"]
    length: Int[Array, ""]
    done: Bool[Array, " B"]
    seen: Bool[Array, "B V"] | None
    keys: Key[Array, " B"]


class Engine:
    """Logits and generation.

    Args:
        config: the model's.
        params: its parameters, on their devices.
        num_batch_shards: shards of the batch.
    """

    def __init__(self, config: ModelConfig, params: Params, num_batch_shards: int = 1) -> None:
        model = Qwen2Audio(config)
        self.config, self.num_batch_shards = config, num_batch_shards
        self.params = unstack(model, params) if config.unroll_layers else params
        self._bound = bind(model)
        self._logits_jit = jax.jit(self._logits)
        self.prefill_jit = jax.jit(self.prefill, static_argnames=("new_entries", "sampling"))
        self.decode_jit = jax.jit(
            self._decode_until, static_argnames=("prompt_length", "sampling"), donate_argnums=1
        )

    def logits(self, batch: UserBatch) -> Float[np.ndarray, "B T V"]:
        """Logits of every position, float32 (float64 for a float64 model)."""
        inputs = prepare_inputs(batch, self.config, 1, self.num_batch_shards)
        return np.asarray(self._logits_jit(self.params, inputs))[: len(batch["input_ids"])]

    def generate(self, batch: UserBatch, sampling: SamplingConfig) -> list[list[int]]:
        """New tokens of every row, including the stop id that ended it."""
        state, prompt_length = self._start(batch, sampling)
        n = sampling.max_new_tokens
        state = self.decode_jit(
            self.params, state, n, prompt_length=prompt_length, sampling=sampling
        )
        tokens = np.asarray(state.tokens)[: len(batch["input_ids"]), :n]
        return [[int(t) for t in row if t >= 0] for row in tokens]

    def stream(self, batch: UserBatch, sampling: SamplingConfig) -> Iterator[list[list[int]]]:
        """The new tokens of every row after each decode step, by `generate`'s compiled program."""
        num_rows = len(batch["input_ids"])
        state, prompt_length = self._start(batch, sampling)
        for n in range(1, sampling.max_new_tokens + 1):
            if n > 1:
                state = self.decode_jit(
                    self.params, state, n, prompt_length=prompt_length, sampling=sampling
                )
            column = np.asarray(state.tokens[:, n - 1])
            if (column < 0).all():
                return
            yield [[int(t)] if t >= 0 else [] for t in column[:num_rows]]

    def _start(self, batch: UserBatch, sampling: SamplingConfig) -> tuple[DecodeState, int]:
        """Prefill of a batch, and the length of its padded prompts."""
        inputs = prepare_inputs(batch, self.config, num_batch_shards=self.num_batch_shards)
        new_entries = -(-sampling.max_new_tokens // CACHE_MULTIPLE) * CACHE_MULTIPLE
        longest = int(inputs.attention_mask.sum(axis=1).max()) + sampling.max_new_tokens
        if longest > self.config.text.max_position_embeddings:
            raise InputError(
                "prompt",
                f"with {sampling.max_new_tokens} new tokens it takes {longest} positions, the "
                f"model has {self.config.text.max_position_embeddings}",
                "shorten it, or reduce --max-new-tokens",
            )
        state = self.prefill_jit(self.params, inputs, new_entries=new_entries, sampling=sampling)
        return state, inputs.tokens.shape[1]

    def _logits(self, params: Params, inputs: ModelInputs) -> Float[Array, "B T V"]:
        model = self._bound(params)
        hidden, _ = model(inputs.tokens, inputs.attention_mask, _audio_input(inputs))
        return model.logits(hidden)

    def prefill(
        self, params: Params, inputs: ModelInputs, new_entries: int, sampling: SamplingConfig
    ) -> DecodeState:
        """Runs the prompts, and samples each row's first token.

        `new_entries` is the room for new tokens in the cache.
        """
        model, mask = self._bound(params), inputs.attention_mask
        b, t = inputs.tokens.shape
        cache = KVCache.zeros(self.config.text, b, t + new_entries, self.config.dtype)
        hidden, filled = model(inputs.tokens, mask, _audio_input(inputs), cache=cache)
        assert filled is not None
        logits = model.logits(hidden[:, -1])
        seen = None
        if sampling.repetition_penalty != 1.0:
            rows = jnp.arange(b)[:, None]
            seen = jnp.zeros(logits.shape, bool).at[rows, inputs.tokens].max(mask)
        key = jax.random.key(sampling.seed)
        state = DecodeState(
            cache=filled,
            attention_mask=jnp.pad(mask, ((0, 0), (0, new_entries))),
            position=jnp.sum(mask, axis=1) - 1,
            tokens=jnp.full((b, new_entries), -1, jnp.int32),
            length=jnp.zeros((), jnp.int32),
            done=~jnp.any(mask, axis=1),
            seen=seen,
            keys=jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b)),
        )
        return _append_token(state, logits, sampling)

    def _decode_until(
        self,
        params: Params,
        state: DecodeState,
        num_tokens: jax.Array,
        prompt_length: int,
        sampling: SamplingConfig,
    ) -> DecodeState:
        """Decodes until the answers have `num_tokens` tokens or all rows have stopped."""
        model = self._bound(params)

        def cond_fn(state: DecodeState) -> jax.Array:
            return (state.length < num_tokens) & ~jnp.all(state.done)

        def body_fn(state: DecodeState) -> DecodeState:
            newest = state.length - 1
            cache_index = prompt_length + newest
            tokens = jnp.maximum(state.tokens[:, newest], 0)[:, None]
            attention_mask = state.attention_mask.at[:, cache_index].set(True)
            position = state.position + 1
            x = model.decoder.embed(tokens, model.dtype)
            # Entries that are not filled yet are masked, so no causal mask is needed.
            mask = AttentionMask(jnp.ones_like(tokens), attention_mask.astype(jnp.int32))
            hidden, cache = model.decoder(x, position[:, None], mask, state.cache, cache_index)
            assert cache is not None
            state = state._replace(cache=cache, attention_mask=attention_mask, position=position)
            return _append_token(state, model.logits(hidden[:, 0]), sampling)

        return jax.lax.while_loop(cond_fn, body_fn, state)


def _audio_input(inputs: ModelInputs) -> AudioInput | None:
    if inputs.waveform is None or inputs.num_frames is None:
        return None
    return AudioInput(inputs.waveform, inputs.num_frames)


def _append_token(state: DecodeState, logits: jax.Array, sampling: SamplingConfig) -> DecodeState:
    """Samples every row's next token; rows that are done get none."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, data=state.length))(state.keys)
    token = sample_token(logits, state.seen, state.length, keys, sampling)
    written = jnp.where(state.done, -1, token)
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(token.shape[0]), token].max(~state.done)
    done = state.done | jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))
    return state._replace(
        tokens=state.tokens.at[:, state.length].set(written),
        length=state.length + 1,
        done=done,
        seen=seen,
    )
