"""Conversion between Hugging Face's released layout and qa_jax checkpoints, bit for bit."""

from convert_weights.convert import to_hf, to_jax

__all__ = ["to_hf", "to_jax"]
