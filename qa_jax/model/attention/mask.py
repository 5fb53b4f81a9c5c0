"""The attention mask that every implementation takes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from qa_jax.typing import Array, Bool, Int


class AttentionMask(NamedTuple):
    """A mask given by segment ids: a query attends to the keys of its own segment.

    Attributes:
        q_segment_ids: segment of each query.
        kv_segment_ids: segment of each key; keys of segment 0 are masked for all queries.
        is_causal: whether query t attends to no key after the t-th.
    """

    q_segment_ids: Int[Array, "B T"]
    kv_segment_ids: Int[Array, "B S"]
    is_causal: bool = False


def dense_mask(mask: AttentionMask, first_query: int = 0) -> Bool[Array, "B T S"]:
    """True where a query attends to a key.

    Args:
        mask: the segments.
        first_query: causal index of the first query, for a chunk of a row.
    """
    q_ids, kv_ids = mask.q_segment_ids, mask.kv_segment_ids
    dense = (q_ids[:, :, None] == kv_ids[:, None]) & (kv_ids[:, None] > 0)
    if mask.is_causal:
        q_index = first_query + jnp.arange(q_ids.shape[1])[:, None]
        dense &= q_index >= jnp.arange(kv_ids.shape[1])
    return dense
