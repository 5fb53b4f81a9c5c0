"""The KV cache: slots of fixed length, each of which holds one text."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.config import TextConfig
from qa_jax.model.attention import cached_attention
from qa_jax.typing import Array, DType, Float, Int, Shaped


class KVCache(NamedTuple):
    """Keys and values of all layers, in slots; the t-th token of a slot's text is its entry t.

    Heads come before entries, as in attention's products: otherwise a decode step would transpose
    the whole cache.

    Attributes:
        k, v: keys and values.
        k_scale, v_scale: of int8 keys and values, what they are multiplied by; None otherwise.
    """

    k: Float[Array, "L slots K entries H"] | Int[Array, "L slots K entries H"]
    v: Float[Array, "L slots K entries H"] | Int[Array, "L slots K entries H"]
    k_scale: Float[Array, "L slots K entries"] | None = None
    v_scale: Float[Array, "L slots K entries"] | None = None

    @classmethod
    def zeros(cls, config: TextConfig, num_slots: int, length: int, dtype: DType) -> KVCache:
        """An empty cache of `length` entries a slot; with scales if the dtype is int8."""
        heads, dim = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, num_slots, heads, length)
        scales = [jnp.zeros(shape, jnp.float32) for _ in range(2 * (dtype == jnp.int8))]
        return cls(jnp.zeros((*shape, dim), dtype), jnp.zeros((*shape, dim), dtype), *scales)

    def write(
        self,
        k: Float[Array, "R T K H"],
        v: Float[Array, "R T K H"],
        layer: Int[Array, ""] | int,
        at: CacheRows,
    ) -> KVCache:
        """The cache with the keys and values of new tokens in one layer."""
        new = {"k": jnp.swapaxes(k, 1, 2), "v": jnp.swapaxes(v, 1, 2)}
        if self.k_scale is not None:
            new["k"], new["k_scale"] = quantize_entries(new["k"])
            new["v"], new["v_scale"] = quantize_entries(new["v"])
        return self._replace(
            **{name: _write(getattr(self, name), x, layer, at) for name, x in new.items()}
        )

    def attend(
        self,
        q: Float[Array, "R T heads H"],
        positions: Int[Array, "R T"],
        layer: Int[Array, ""] | int,
        at: CacheRows,
    ) -> Float[Array, "R T heads H"]:
        """Attention of new tokens to the first `at.window` entries of their slots in one layer."""

        def rows(x: jax.Array, slot: jax.Array | int, count: int) -> jax.Array:
            start = (layer, slot, *(0,) * (x.ndim - 2))
            size = (1, count, x.shape[2], at.window, *x.shape[4:])
            return jax.lax.dynamic_slice(x, start, size)[0]

        def read(x: jax.Array) -> jax.Array:
            if at.slots is None:
                return rows(x, 0, x.shape[1])
            return jnp.concatenate([rows(x, slot, 1) for slot in at.slots])

        arrays = [read(x) for x in self if x is not None]
        return cached_attention(q, *arrays, positions=positions)

    def copy(self, source: Int[Array, ""], destination: Int[Array, ""], window: int) -> KVCache:
        """The cache with the first `window` entries of one slot copied to another."""

        def copy(x: jax.Array) -> jax.Array:
            size = (x.shape[0], 1, x.shape[2], window, *x.shape[4:])
            rest = (0,) * (x.ndim - 2)
            entries = jax.lax.dynamic_slice(x, (0, source, *rest), size)
            return jax.lax.dynamic_update_slice(x, entries, (0, destination, *rest))

        return jax.tree.map(copy, self)


class CacheRows(NamedTuple):
    """Where the new tokens of a batch of rows go in a cache, and which entries they attend to.

    Attributes:
        slots: each row's slot; None if the rows are all slots, in order. A row whose slot is past
            the last is not written.
        start: the entry, and the position, of each row's first new token.
        window: static: new tokens attend to a slot's first `window` entries, of which theirs are
            some; 0 if they attend only to each other.
    """

    slots: Int[Array, " R"] | None
    start: Int[Array, " R"]
    window: int


def quantize_entries(
    x: Float[Array, "R K T H"],
) -> tuple[Int[Array, "R K T H"], Float[Array, "R K T"]]:
    """int8 values, and the float32 scale of each vector."""
    scale = jnp.max(jnp.abs(x), axis=-1).astype(jnp.float32) / 127
    values = jnp.round(x.astype(jnp.float32) / jnp.maximum(scale, 1e-30)[..., None])
    return values.astype(jnp.int8), scale


def _write(
    cache: Shaped[Array, "L slots K entries *H"],
    new: Shaped[Array, "R K T *H"],
    layer: Int[Array, ""] | int,
    at: CacheRows,
) -> Shaped[Array, "L slots K entries *H"]:
    """Updated in place, as the carry of the scan over layers."""
    new, rest = new.astype(cache.dtype)[None, :, None], (0,) * (cache.ndim - 4)
    if at.slots is None:
        for r in range(new.shape[1]):
            index = (layer, r, 0, at.start[r], *rest)
            cache = jax.lax.dynamic_update_slice(cache, new[:, r], index)
        return cache
    slots = at.slots

    def write_row(r: jax.Array, cache: jax.Array) -> jax.Array:
        index = (layer, slots[r], 0, at.start[r], *rest)
        entries = jax.lax.dynamic_index_in_dim(new, r, 1, keepdims=False)
        old = jax.lax.dynamic_slice(cache, index, entries.shape)
        entries = jnp.where(slots[r] < cache.shape[1], entries, old)
        return jax.lax.dynamic_update_slice(cache, entries, index)

    # Not unrolled: XLA would copy the whole cache for each row, since rows are read as well.
    return jax.lax.fori_loop(0, new.shape[1], write_row, cache)
