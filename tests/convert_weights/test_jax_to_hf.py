"""From qa_jax to Hugging Face: adapters, damage, steps of training."""

from __future__ import annotations

from pathlib import Path

import convert_weights
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from qa_jax import checkpoint, load
from qa_jax.cli import main
from qa_jax.config import LoraConfig, ModelConfig
from qa_jax.errors import InputError
from qa_jax.lora import LoraWeights, add_lora, is_lora_path
from qa_jax.model import Qwen2Audio, initialize
from tests.hf_files import FC1, write


def test_merged_adapter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`convert to-hf --merge`, a tensor at a time, is what `load` merges at once."""
    config = checkpoint.read_config(tiny_checkpoint)
    model = Qwen2Audio(config)
    paths = add_lora(model, LoraConfig(("decoder/", "encoder/.*proj", "projector"), rank=2))
    low = initialize(model, jax.random.key(0), include=is_lora_path)
    low = jax.tree.map(lambda x: x + 0.1, low)
    adapter = LoraWeights(low, dict.fromkeys(paths, 0.7))
    checkpoint.save_adapter(tmp_path / "adapter", adapter, config, str(tiny_checkpoint))
    command = ["convert", "to-hf", str(tmp_path / "adapter"), str(tmp_path / "hf")]
    assert main([*command, "--merge"]) == 0
    merged, expected = (load(tmp_path / name).params for name in ("hf", "adapter"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), merged, expected
    )
    kernel = merged["decoder"]["layers"]["mlp"]["up_proj"]["kernel"]
    before = load(tiny_checkpoint).params["decoder"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert np.abs(kernel - before).max() > 1e-3


def test_a_damaged_checkpoint_is_named(tiny: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path / "hf", tiny)
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    chunk = tmp_path / "ours/checkpoints/0/params/decoder.layers.mlp.up_proj.kernel/c/1/0/0"
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(
        InputError, match=r"decoder/layers/mlp/up_proj/kernel cannot be read .*/c/1/0/0.*Digest"
    ):
        convert_weights.to_hf(tmp_path / "ours", tmp_path / "back")
    with pytest.raises(InputError, match="cannot be restored"):
        load(tmp_path / "ours")


def test_a_trained_checkpoint_converts(tiny: ModelConfig, tmp_path: Path) -> None:
    """Steps that Orbax saved itself, in its own format, at the step asked for."""
    import jax

    write(tmp_path / "hf", tiny)
    params = load(tmp_path / "hf").params
    checkpoint.create(tmp_path / "run", tiny, None)
    steps = checkpoint.CheckpointManager(tmp_path / "run")
    steps.save(3, params)
    steps.save(7, jax.tree.map(lambda x: x + 1, params))
    steps.close()
    convert_weights.to_hf(tmp_path / "run", tmp_path / "three", step=3)
    convert_weights.to_hf(tmp_path / "run", tmp_path / "seven")
    three, seven = (load_file(tmp_path / d / "model.safetensors")[FC1] for d in ("three", "seven"))
    np.testing.assert_array_equal(three + 1, seven)
    assert not any(
        r.num_differing for r in convert_weights.verify(tmp_path / "hf", tmp_path / "three")[0]
    )
    with pytest.raises(InputError, match=r"has no step 5; choose from \[3, 7\]"):
        convert_weights.to_hf(tmp_path / "run", tmp_path / "five", step=5)
