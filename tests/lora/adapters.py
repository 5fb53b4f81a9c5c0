"""Adapters that change a model's answers."""

from __future__ import annotations

from pathlib import Path

import jax

import qa_jax
from qa_jax.checkpoint import save_adapter
from qa_jax.config import LoraConfig
from qa_jax.lora import LoraWeights, add_lora, is_lora_path
from qa_jax.model import Qwen2Audio, initialize
from qa_jax.trees import flatten_dict, unflatten_dict


def random_adapter(loaded: qa_jax.LoadedModel) -> LoraWeights:
    """An adapter of all linear layers that changes what they compute."""
    model = Qwen2Audio(loaded.config)
    paths = add_lora(model, LoraConfig(("decoder/", "encoder/"), 3, base_dtype="float32"))
    fresh = flatten_dict(initialize(model, jax.random.key(0), include=is_lora_path))
    low = unflatten_dict({p: x + 0.1 for p, x in fresh.items()})
    return LoraWeights(low, dict.fromkeys(paths, 0.5))


def save_random_adapter(loaded: qa_jax.LoadedModel, directory: Path) -> Path:
    save_adapter(directory, random_adapter(loaded), loaded.config, "base")
    return directory
