"""The table of tensors."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from qa_jax import checkpoint, hf
from qa_jax.config import (
    ModelConfig,
    preset,
)
from qa_jax.model import Qwen2Audio
from qa_jax.trees import flatten_dict
from qa_jax.typing import Params
from tests.hf_files import write


def one_device(config: ModelConfig) -> Params:
    return jax.tree.map(lambda x: x.sharding, checkpoint.abstract_params(Qwen2Audio(config)))


def test_released_tensors(assets) -> None:  # type: ignore[no-untyped-def]
    released = json.loads((assets / "qwen2_audio_7b_keys_shapes.json").read_text())
    actual = {n: list(t.hf_shape) for n, t in hf.tensor_map(preset("qwen2_audio_7b")).items()}
    assert actual == released


def test_layouts(tiny: ModelConfig, tmp_path: Path) -> None:
    tensors = write(tmp_path, tiny)
    config, source = hf.open_model(tmp_path)
    params = hf.load_params(source, config, one_device(config))
    actual = {path: np.asarray(x) for path, x in flatten_dict(params).items()}
    q = tensors["language_model.model.layers.1.self_attn.q_proj.weight"]
    x = np.random.default_rng(1).standard_normal(32)
    kernel = actual["decoder", "layers", "self_attn", "q_proj", "kernel"][1]
    np.testing.assert_allclose(np.einsum("d,dnh->nh", x, kernel).ravel(), q @ x, rtol=1e-5)
    o = tensors["language_model.model.layers.0.self_attn.o_proj.weight"]
    kernel = actual["decoder", "layers", "self_attn", "o_proj", "kernel"][0]
    np.testing.assert_allclose(
        np.einsum("nh,nhd->d", x.reshape(4, 8), kernel), o @ x, rtol=1e-4, atol=1e-5
    )
    conv = tensors["audio_tower.conv1.weight"]
    assert actual["encoder", "conv1", "kernel"][2, 5, 7] == conv[7, 5, 2]
