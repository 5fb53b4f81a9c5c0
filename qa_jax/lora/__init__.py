"""LoRA adapters, added to a model from outside (Hu et al. 2021).

A layer's kernel W becomes W + scale * A B; A is (in, rank), B (rank, out).
"""

from qa_jax.lora.model import add_lora, check_patterns, lora_dropout_keys
from qa_jax.lora.weights import LoraWeights, is_lora_path, lora_delta, merge_lora

__all__ = [
    "LoraWeights",
    "add_lora",
    "check_patterns",
    "is_lora_path",
    "lora_delta",
    "lora_dropout_keys",
    "merge_lora",
]
