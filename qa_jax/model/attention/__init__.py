"""Attention: one function chooses the implementation, one file holds each."""

from qa_jax.model.attention.cached import cached_attention
from qa_jax.model.attention.dispatch import dot_product_attention
from qa_jax.model.attention.mask import AttentionMask

__all__ = ["AttentionMask", "cached_attention", "dot_product_attention"]
