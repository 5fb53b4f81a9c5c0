"""Conversion between Hugging Face's released layout and qa_jax checkpoints, bit for bit.

A model is never held: tensors stream from one layout on disk into the other, over the one table
in `qa_jax.hf`.
"""

from convert_weights.adapters import adapter_to_hf, adapter_to_jax
from convert_weights.describe import describe
from convert_weights.to_hf import to_hf
from convert_weights.to_jax import to_jax
from convert_weights.verify import show, verify

__all__ = ["adapter_to_hf", "adapter_to_jax", "describe", "show", "to_hf", "to_jax", "verify"]
