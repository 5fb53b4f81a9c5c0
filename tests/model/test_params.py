"""Parameters: axes, initial values, and the released sizes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from qa_jax import hf
from qa_jax.config import ModelConfig, preset
from qa_jax.model import Qwen2Audio, count_parameters, initialize, param_specs


def test_released_size() -> None:
    config = preset("qwen2_audio_7b")
    assert count_parameters(Qwen2Audio(config)) == 8_397_094_912
    tensors = hf.tensor_map(config)
    assert len(tensors) == 876
    assert sum(int(np.prod(t.shape)) for t in tensors.values()) == 8_397_094_912
    assert tensors["language_model.lm_head.weight"].hf_shape == (156_032, 4096)
    assert tensors["audio_tower.conv1.weight"].hf_shape == (1280, 128, 3)


def test_every_axis_has_a_rule(tiny: ModelConfig) -> None:
    from qa_jax.parallel import LOGICAL_AXIS_RULES

    for path, declared in param_specs(Qwen2Audio(tiny)).items():
        assert set(declared.axes) <= {*LOGICAL_AXIS_RULES, "time"}, path


def test_initial_values_do_not_depend_on_other_parameters(tiny: ModelConfig) -> None:
    untied = initialize(Qwen2Audio(tiny), jax.random.key(0))
    tied_config = dataclasses.replace(
        tiny, text=dataclasses.replace(tiny.text, tie_word_embeddings=True)
    )
    tied = initialize(Qwen2Audio(tied_config), jax.random.key(0))
    del untied["decoder"]["lm_head"]
    jax.tree.map(np.testing.assert_array_equal, untied, tied)
