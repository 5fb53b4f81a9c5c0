"""Merging adapters."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import qa_jax
from qa_jax.config import LoraConfig
from qa_jax.lora import LoraWeights, add_lora, is_lora_path, merge_lora
from qa_jax.model import Qwen2Audio, initialize
from qa_jax.trees import flatten_dict, unflatten_dict

pytestmark = pytest.mark.usefixtures("one_device")


def test_merge_and_unmerge(tiny_checkpoint: Path) -> None:
    loaded = qa_jax.load(tiny_checkpoint)
    model = Qwen2Audio(loaded.config)
    paths = add_lora(model, LoraConfig(("decoder/", "encoder/"), 3, base_dtype="float32"))
    fresh = flatten_dict(initialize(model, jax.random.key(0), include=is_lora_path))
    low = unflatten_dict({p: x + 0.1 for p, x in fresh.items()})
    adapter = LoraWeights(low, dict.fromkeys(paths, 0.5))
    there = merge_lora(loaded.params, adapter)
    back = flatten_dict(merge_lora(there, adapter, sign=-1.0))
    for path, x in flatten_dict(loaded.params).items():
        largest = max(np.abs(x).max(), np.abs(flatten_dict(there)[path]).max())
        assert np.abs(back[path] - x).max() <= 4 * np.finfo(np.float32).eps * largest, path
