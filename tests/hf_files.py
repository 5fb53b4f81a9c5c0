"""Random checkpoints in the released layout, for the tests of conversion."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from qa_jax import hf
from qa_jax.config import ModelConfig, to_hf

EMBED = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
FC1 = "audio_tower.layers.1.fc1.weight"


def write(directory: Path, config: ModelConfig, *, dtype: object = np.float32, layout: str = "old",
          shards: int = 1) -> dict[str, np.ndarray]:  # fmt: skip
    """A random checkpoint in the released layout; returns its tensors."""
    rng = np.random.default_rng(0)
    tensors = {
        n: rng.standard_normal(t.hf_shape).astype(dtype) for n, t in hf.tensor_map(config).items()
    }
    if config.text.tie_word_embeddings:
        tensors[HEAD] = tensors[EMBED]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(to_hf(config)))
    spell = hf.in_memory_name if layout == "new" else str
    named = {spell(n): np.ascontiguousarray(a) for n, a in tensors.items()}
    if shards == 1:
        save_file(named, directory / "model.safetensors")
        return tensors
    weight_map = {}
    for i in range(shards):
        part = dict(list(named.items())[i::shards])
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file(part, directory / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def tied(config: ModelConfig) -> ModelConfig:
    """The configuration with its head tied to the embedding."""
    return dataclasses.replace(
        config, text=dataclasses.replace(config.text, tie_word_embeddings=True)
    )


def digest(directory: Path) -> str:
    """One checksum of all files of a directory and their names."""
    total = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(directory)).encode() + path.read_bytes())
    return total.hexdigest()
