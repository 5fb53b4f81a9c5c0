"""Prefill once, then decode token by token; each compiled once per bucket of lengths."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from qa_jax.generate.inputs import ModelInputs, prepare
from qa_jax.generate.sampling import Sampling, choose
from qa_jax.model import Audio, KVCache, Params, Qwen2Audio, Visible, bind, unstack

SLOT_MULTIPLE = 64
"""Answers get cache slots in multiples of this."""


class DecodeState(NamedTuple):
    """What one decoded token changes.

    Attributes:
        cache: keys and values of prompt and answer.
        valid: bool (B, S), cache slots that hold a real token.
        position: (B,) position of the newest token.
        tokens: (B, N) the answers so far, padded by -1.
        length: how many tokens each answer has had a chance to grow by.
        done: bool (B,), rows that have stopped.
        seen: bool (B, V), for the repetition penalty, or None.
        keys: (B,) random keys.
    """

    cache: KVCache
    valid: jax.Array
    position: jax.Array
    tokens: jax.Array
    length: jax.Array
    done: jax.Array
    seen: jax.Array | None
    keys: jax.Array


class Engine:
    """Runs a model forward: logits of whole rows, and answers.

    Args:
        config: the model's.
        params: its parameters, placed where they shall stay.
        shards: devices that rows are cut over.
    """

    def __init__(self, config: ModelConfig, params: Params, shards: int = 1) -> None:
        model = Qwen2Audio(config)
        self.config, self.shards = config, shards
        self.params = unstack(model, params) if config.unroll else params
        self._bound = bind(model)
        self._logits = jax.jit(self._logits_of)
        self._prefill = jax.jit(self._prefill_of, static_argnames=("slots", "how"))
        self._decode = jax.jit(
            self._decode_until, static_argnames=("prompt", "how"), donate_argnums=1
        )

    def logits(self, batch: dict[str, Any]) -> np.ndarray:
        """(B, T, V) logits of every position, float32 (float64 for a float64 model).

        Takes the processor's batches or transformers' own keys.
        """
        inputs = prepare(batch, self.config, token_multiple=1, shards=self.shards)
        return np.asarray(self._logits(self.params, inputs))[: len(batch["input_ids"])]

    def generate(self, batch: dict[str, Any], how: Sampling) -> list[list[int]]:
        """The new tokens of every row, up to and with the stop id that ended it."""
        state, prompt, _ = self._start(batch, how)
        state = self._decode(self.params, state, how.max_new_tokens, prompt=prompt, how=how)
        return _trim(np.asarray(state.tokens), how)[: len(batch["input_ids"])]

    def stream(self, batch: dict[str, Any], how: Sampling) -> Iterator[list[list[int]]]:
        """Answers of every row token by token: after each, the tokens that are new in each row.

        The same compiled step as `generate`, asked for one token at a time.
        """
        rows = len(batch["input_ids"])
        state, prompt, _ = self._start(batch, how)
        for n in range(1, how.max_new_tokens + 1):
            if n > 1:
                state = self._decode(self.params, state, n, prompt=prompt, how=how)
            column = np.asarray(state.tokens[:, n - 1])
            if (column < 0).all():
                return
            yield [[int(t)] if t >= 0 else [] for t in column[:rows]]

    def _start(self, batch: dict[str, Any], how: Sampling) -> tuple[DecodeState, int, int]:
        inputs = prepare(batch, self.config, shards=self.shards)
        prompt = inputs.tokens.shape[1]
        slots = -(-how.max_new_tokens // SLOT_MULTIPLE) * SLOT_MULTIPLE
        longest = int(inputs.valid.sum(axis=1).max()) + how.max_new_tokens
        if longest > self.config.text.max_position_embeddings:
            raise InputError(
                "prompt",
                f"with {how.max_new_tokens} new tokens it takes {longest} positions, the model has "
                f"{self.config.text.max_position_embeddings}",
                "shorten it, or ask for fewer new tokens (--max-new-tokens)",
            )
        return self._prefill(self.params, inputs, slots=slots, how=how), prompt, slots

    def _logits_of(self, params: Params, inputs: ModelInputs) -> jax.Array:
        model = self._bound(params)
        hidden, _ = model(inputs.tokens, inputs.valid, _audio(inputs))
        return model.logits(hidden)

    def _prefill_of(
        self, params: Params, inputs: ModelInputs, slots: int, how: Sampling
    ) -> DecodeState:
        model, (b, t) = self._bound(params), inputs.tokens.shape
        cache = KVCache.zeros(self.config.text, b, t + slots, self.config.dtype)
        hidden, cache = model(inputs.tokens, inputs.valid, _audio(inputs), cache=cache)
        logits = model.logits(hidden[:, -1])
        seen = None
        if how.repetition_penalty != 1.0:
            rows = jnp.arange(b)[:, None]
            seen = jnp.zeros(logits.shape, bool).at[rows, inputs.tokens].max(inputs.valid)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(how.seed), jnp.arange(b))
        state = DecodeState(
            cache=cache,
            valid=jnp.pad(inputs.valid, ((0, 0), (0, slots))),
            position=jnp.sum(inputs.valid, axis=1) - 1,
            tokens=jnp.full((b, slots), -1, jnp.int32),
            length=jnp.zeros((), jnp.int32),
            done=~jnp.any(inputs.valid, axis=1),
            seen=seen,
            keys=keys,
        )
        return _append(state, logits, how)

    def _decode_until(
        self, params: Params, state: DecodeState, until: jax.Array, prompt: int, how: Sampling
    ) -> DecodeState:
        """Decodes until the answers have `until` tokens or all have stopped."""
        model = self._bound(params)

        def going_on(state: DecodeState) -> jax.Array:
            return (state.length < until) & ~jnp.all(state.done)

        def one_token(state: DecodeState) -> DecodeState:
            newest = state.length - 1
            slot = prompt + newest
            tokens = jnp.maximum(state.tokens[:, newest], 0)[:, None]
            valid = state.valid.at[:, slot].set(True)
            position = state.position + 1
            x = model.decoder.embed(tokens, model.dtype)
            # Slots not filled yet are not valid: no key comes after the query.
            keys = valid.astype(jnp.int32)
            visible = Visible(jnp.ones_like(tokens), keys)
            hidden, cache = model.decoder(x, position[:, None], visible, state.cache, slot)
            state = state._replace(cache=cache, valid=valid, position=position)
            return _append(state, model.logits(hidden[:, 0]), how)

        return jax.lax.while_loop(going_on, one_token, state)


def _audio(inputs: ModelInputs) -> Audio | None:
    return None if inputs.signal is None else Audio(inputs.signal, inputs.frames)


def _append(state: DecodeState, logits: jax.Array, how: Sampling) -> DecodeState:
    """Chooses every row's next token; rows that are done get none."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, data=state.length))(state.keys)
    token = choose(logits, state.seen, state.length, keys, how)
    written = jnp.where(state.done, -1, token)
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(token.shape[0]), token].max(~state.done)
    done = state.done | jnp.isin(token, jnp.array(how.stop_ids, jnp.int32))
    return state._replace(
        tokens=state.tokens.at[:, state.length].set(written),
        length=state.length + 1,
        done=done,
        seen=seen,
    )


def _trim(tokens: np.ndarray, how: Sampling) -> list[list[int]]:
    kept = tokens[:, : how.max_new_tokens]
    return [[int(t) for t in row if t >= 0] for row in kept]
