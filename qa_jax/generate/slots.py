"""The compiled programs of generation, and the state that they share: a fixed number of slots.

`encode` turns clips into audio embeddings, `prefill` writes a part of some prompts into their slots
and samples the first tokens, `decode` adds tokens to all active slots, `copy` copies a slot's
first entries. Shapes are those of `qa_jax.generate.buckets`; all settings are data.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.config import ModelConfig, SamplingConfig
from qa_jax.generate.compilation import Program
from qa_jax.generate.sampling import RowSettings, Sampled, sample_tokens
from qa_jax.model import AttentionMask, AudioInput, CacheRows, KVCache, Qwen2Audio, bind
from qa_jax.parallel import constrain
from qa_jax.typing import AnyArray, Array, Bool, DType, Float, Int, Params, PyTree

BURST = 8
"""The most tokens that a call of `decode` adds to a slot."""


class Slots(NamedTuple):
    """The state of N slots on the device.

    Attributes:
        cache: keys and values.
        length: entries filled; the position of the newest token, whose keys are not there yet.
        token: the newest token.
        step: tokens generated.
        active: whether the slot's answer goes on.
        in_prompt: tokens that the prompt contains.
        counts: how often the answer contains each token.
        settings: of sampling.
    """

    cache: KVCache
    length: Int[Array, " N"]
    token: Int[Array, " N"]
    step: Int[Array, " N"]
    active: Bool[Array, " N"]
    in_prompt: Bool[Array, "N V"]
    counts: Int[Array, "N V"]
    settings: RowSettings


class Prompts(NamedTuple):
    """The next part of some prompts.

    Attributes:
        tokens: ids, padded on the right.
        num_tokens: of each row.
        slots: the rows' slots; one past the last for a row that pads the batch.
        start: entries of the slot that are filled already.
        audio: audio embeddings at the placeholders; elsewhere they are not read.
        is_last: whether the prompt ends here, and its first token is to be sampled.
        in_prompt: tokens that the whole prompt contains.
        settings: of sampling.
    """

    tokens: Int[AnyArray, "R T"]
    num_tokens: Int[AnyArray, " R"]
    slots: Int[AnyArray, " R"]
    start: Int[AnyArray, " R"]
    audio: Float[AnyArray, "R T D"]
    is_last: Bool[AnyArray, " R"]
    in_prompt: Bool[AnyArray, "R V"]
    settings: RowSettings


class Programs:
    """Functions of (parameters, state, inputs). States are donated.

    Args:
        config: the model's.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.dtype = jnp.dtype(config.dtype)
        self._bound = bind(Qwen2Audio(config))
        self.encode = Program(self._encode)
        self.prefill = Program(self._prefill, donate=1, static=("window",))
        self.decode = Program(self._decode, donate=1, static=("window",))
        self.copy = Program(self._copy, donate=0, static=("window",))
        self.logits = Program(self._logits)
        self.empty = jax.jit(self._empty, static_argnames=("num_slots", "length", "dtype"))

    def _empty(self, num_slots: int, length: int, dtype: DType) -> Slots:
        n, vocab = num_slots, self.config.text.vocab_size
        zeros = functools.partial(jnp.zeros, n, jnp.int32)
        cache = KVCache.zeros(self.config.text, n, length, dtype)
        return self._constrain(
            Slots(
                cache=cache,
                length=zeros(),
                token=zeros(),
                step=zeros(),
                active=jnp.zeros(n, bool),
                in_prompt=jnp.zeros((n, vocab), bool),
                counts=jnp.zeros((n, vocab), jnp.int32),
                settings=jax.tree.map(jnp.asarray, RowSettings.of([SamplingConfig()] * n)),
            )
        )

    def _constrain(self, slots: Slots) -> Slots:
        """Heads of the cache are sharded; every device has the rest."""
        axes = {5: (None, None, "act_heads", None, None), 4: (None, None, "act_heads", None)}
        cache = jax.tree.map(lambda x: constrain(x, *axes[x.ndim]), slots.cache)
        rest = jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), slots[1:])
        return Slots(cache, *rest)

    def _logits(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        attention_mask: Bool[Array, "B T"],
        audio: AudioInput | None,
    ) -> Float[Array, "B T V"]:
        model = self._bound(params)
        return model.logits(model(tokens, attention_mask, audio))

    def _encode(self, params: Params, audio: AudioInput) -> Float[Array, "A P D"]:
        embeds = self._bound(params).encode_audio(audio)
        return constrain(embeds, None, None, None)

    def _copy(
        self,
        slots: Slots,
        source: Int[Array, ""],
        destination: Int[Array, ""],
        count: Int[Array, ""],
        window: int,
    ) -> Slots:
        """Copies a slot's first `count` entries, at most `window`."""
        # An idle slot's decode step writes an entry at its length: past what is copied.
        return self._constrain(
            slots._replace(
                cache=slots.cache.copy(source, destination, window),
                length=slots.length.at[destination].set(count),
            )
        )

    def _prefill(
        self, params: Params, slots: Slots, prompts: Prompts, window: int
    ) -> tuple[Slots, Sampled]:
        """`window` as in `CacheRows`; 0 demands that `start` is 0."""
        model, p = self._bound(params), prompts
        t = p.tokens.shape[1]
        index = jnp.arange(t)
        is_token = index < p.num_tokens[:, None]
        positions = p.start[:, None] + index
        embeds = model.decoder.embed(p.tokens, self.dtype)
        is_audio = p.tokens == self.config.audio_token_id
        embeds = jnp.where(is_audio[..., None], p.audio.astype(self.dtype), embeds)
        ids = is_token.astype(jnp.int32)
        mask = AttentionMask(ids, ids, is_causal=True)
        at = CacheRows(p.slots, p.start, window)
        hidden, cache = model.decoder(embeds, positions, mask, slots.cache, at)
        assert cache is not None
        last = jnp.maximum(p.num_tokens - 1, 0)[:, None, None]
        logits = self._replicated(model, jnp.take_along_axis(hidden, last, axis=1)[:, 0])
        counts = jnp.zeros(p.in_prompt.shape, jnp.int32)
        step = jnp.zeros_like(p.num_tokens)
        sampled = sample_tokens(logits, p.in_prompt, counts, step, p.settings)
        rows = jnp.arange(p.tokens.shape[0])
        new = Slots(
            cache=cache,
            length=p.start + p.num_tokens,
            token=sampled.token,
            step=step + 1,
            active=p.is_last & ~_is_end(sampled.token, step + 1, p.settings),
            in_prompt=p.in_prompt,
            counts=counts.at[rows, sampled.token].set(1),
            settings=p.settings,
        )
        state = Slots(cache, *_scatter(slots[1:], new[1:], p.slots))
        return self._constrain(state), sampled

    def _decode(
        self,
        params: Params,
        slots: Slots,
        rows: Int[Array, " R"] | None,
        active: Bool[Array, " N"],
        num_steps: Int[Array, ""],
        stop_early: Bool[Array, ""],
        window: int,
    ) -> tuple[Slots, Sampled]:
        """Up to `num_steps` tokens for the active slots.

        Args:
            params: parameters.
            slots: the state.
            rows: the slots to decode, of which all others must be inactive; None for all.
            active: slots that go on; for cancelling.
            num_steps: at most `BURST`.
            stop_early: whether to return as soon as an answer is finished.
            window: entries that are attended to; all lengths stay below it.
        """
        model = self._bound(params)
        slots = slots._replace(active=slots.active & active)
        state = slots
        if rows is not None:
            state = Slots(slots.cache, *jax.tree.map(lambda x: x[rows], slots[1:]))
        num_rows, n_active = state.token.shape[0], jnp.sum(state.active)

        def cond_fn(carry: tuple[jax.Array, Slots, Sampled]) -> jax.Array:
            i, state, _ = carry
            left = jnp.sum(state.active)
            return (i < num_steps) & (left > 0) & ~(stop_early & (left < n_active))

        def body_fn(
            carry: tuple[jax.Array, Slots, Sampled],
        ) -> tuple[jax.Array, Slots, Sampled]:
            i, state, out = carry
            on = state.active
            state, new = self._decode_one(model, state, rows, window)
            new = new._replace(token=jnp.where(on, new.token, -1))
            out = jax.tree.map(lambda all_, one: all_.at[i].set(one), out, new)
            return i + 1, state, out

        one = jax.eval_shape(
            sample_tokens,
            jax.ShapeDtypeStruct((num_rows, self.config.text.vocab_size), self._logits_dtype()),
            state.in_prompt,
            state.counts,
            state.step,
            state.settings,
        )
        out = jax.tree.map(lambda x: jnp.zeros((BURST, *x.shape), x.dtype), one)
        out = out._replace(token=out.token - 1)
        _, state, out = jax.lax.while_loop(cond_fn, body_fn, (jnp.int32(0), state, out))
        if rows is not None:
            state = Slots(state.cache, *_scatter(slots[1:], state[1:], rows))
        return self._constrain(state), out

    def _decode_one(
        self, model: Qwen2Audio, state: Slots, rows: jax.Array | None, window: int
    ) -> tuple[Slots, Sampled]:
        """A token for each row, which changes the state of active ones."""
        x = model.decoder.embed(state.token[:, None], self.dtype)
        positions = state.length[:, None]
        ids = jnp.ones_like(positions)
        at = CacheRows(rows, state.length, window)
        mask = AttentionMask(ids, ids)
        hidden, cache = model.decoder(x, positions, mask, state.cache, at)
        assert cache is not None
        logits = self._replicated(model, hidden[:, 0])
        new = sample_tokens(logits, state.in_prompt, state.counts, state.step, state.settings)
        on, step, row = state.active, state.step + 1, jnp.arange(len(state.token))
        state = state._replace(
            cache=cache,
            length=state.length + on,
            token=jnp.where(on, new.token, state.token),
            step=jnp.where(on, step, state.step),
            active=on & ~_is_end(new.token, step, state.settings),
            counts=state.counts.at[row, new.token].add(on.astype(jnp.int32)),
        )
        return state, new

    def _logits_dtype(self) -> DType:
        return jnp.promote_types(self.dtype, jnp.float32)

    def _replicated(self, model: Qwen2Audio, hidden: jax.Array) -> jax.Array:
        # In two steps, so that logits are gathered and not the output layer's kernel.
        logits = constrain(model.logits(hidden), None, "act_vocab")
        return constrain(jax.lax.optimization_barrier(logits), None, None)


def _is_end(token: jax.Array, step: jax.Array, settings: RowSettings) -> jax.Array:
    """Whether an answer ends with its newest token, its `step`-th."""
    is_stop = jnp.any(token[:, None] == settings.stop_ids, axis=-1)
    return is_stop | (step >= settings.max_new_tokens)


def _scatter(arrays: PyTree, rows: PyTree, index: jax.Array) -> PyTree:
    """Arrays of all slots with those of some rows at `index`; past the last slot they are
    dropped."""
    return jax.tree.map(lambda x, y: x.at[index].set(y, mode="drop"), arrays, rows)
