"""Hugging Face's files to ours and back, every bit; and every fault named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import convert_weights
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qa_jax import checkpoint, hf, load
from qa_jax.cli import main
from qa_jax.config import LoraConfig, ModelConfig, from_hf, to_hf
from qa_jax.errors import InputError
from qa_jax.lora import LoraWeights, add_lora, is_lora_path
from qa_jax.model import Qwen2Audio, initialize
from qa_jax.trees import flatten_dict
from qa_jax.typing import Params
from tests.convert.files import FC1, digest, tied, write


def one_device(config: ModelConfig) -> Params:
    return jax.tree.map(lambda x: x.sharding, checkpoint.abstract_params(Qwen2Audio(config)))


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("tie", [False, True])
def test_there_and_back(tiny: ModelConfig, tmp_path: Path, layout: str, shards: int, dtype: object,
                        tie: bool) -> None:  # fmt: skip
    config = tied(tiny) if tie else tiny
    tensors = write(tmp_path / "hf", config, dtype=dtype, layout=layout, shards=shards)
    (tmp_path / "hf" / "generation_config.json").write_text('{"top_k": 1}')
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    convert_weights.to_hf(tmp_path / "ours", tmp_path / "back", "40KB" if shards > 1 else "5GB")
    back = {}
    for file in (tmp_path / "back").glob("*.safetensors"):
        back.update(load_file(file))
    assert set(back) == set(tensors)
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes(), name
    assert (tmp_path / "back" / "generation_config.json").read_text() == '{"top_k": 1}'
    assert (tmp_path / "back" / "model.safetensors.index.json").exists() == (shards > 1)
    raw = json.loads((tmp_path / "back" / "config.json").read_text())
    same = dataclasses.replace(from_hf(raw), dtype=config.dtype)
    assert same == config
    loaded = checkpoint.read_config(tmp_path / "ours")
    assert loaded.audio == config.audio and loaded.text == config.text


def test_layouts_put_weights_where_they_belong(tiny: ModelConfig, tmp_path: Path) -> None:
    tensors = write(tmp_path, tiny)
    config, source = hf.open_model(tmp_path)
    params = hf.load_params(source, config, one_device(config))
    ours = {path: np.asarray(x) for path, x in flatten_dict(params).items()}
    q = tensors["language_model.model.layers.1.self_attn.q_proj.weight"]
    x = np.random.default_rng(1).standard_normal(32)
    kernel = ours["decoder", "layers", "self_attn", "q_proj", "kernel"][1]
    np.testing.assert_allclose(np.einsum("d,dnh->nh", x, kernel).ravel(), q @ x, rtol=1e-5)
    o = tensors["language_model.model.layers.0.self_attn.o_proj.weight"]
    kernel = ours["decoder", "layers", "self_attn", "o_proj", "kernel"][0]
    np.testing.assert_allclose(
        np.einsum("nh,nhd->d", x.reshape(4, 8), kernel), o @ x, rtol=1e-4, atol=1e-5
    )
    conv = tensors["audio_tower.conv1.weight"]
    assert ours["encoder", "conv1", "kernel"][2, 5, 7] == conv[7, 5, 2]


def damage(directory: Path, change: str) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    if change == "missing":
        del tensors[FC1]
    elif change == "extra":
        tensors["audio_tower.extra.weight"] = np.zeros(2, np.float32)
    elif change == "misshapen":
        tensors[FC1] = np.ascontiguousarray(tensors[FC1].T)
    elif change == "integers":
        tensors[FC1] = tensors[FC1].astype(np.int32)
    elif change == "mixed":
        tensors[FC1] = tensors[FC1].astype(np.float16)
    save_file(tensors, file)
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "empty":
        file.write_bytes(b"")
    elif change == "pickle":
        file.rename(directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", f"{FC1}: missing"),
        ("extra", "audio_tower.extra.weight: not a tensor of this model"),
        ("misshapen", rf"{FC1}: shape \(16, 24\), expected \(24, 16\)"),
        ("integers", f"{FC1}: dtype I32 is not"),
        ("mixed", f"{FC1}: float16, other layers are float32"),
        ("truncated", "truncated, model.safetensors ends before it does"),
        ("empty", "model.safetensors: unreadable header"),
        ("pickle", "only pickled weights"),
    ],
)
def test_faults_are_named(tiny: ModelConfig, tmp_path: Path, change: str, message: str) -> None:
    write(tmp_path / "hf", tiny)
    damage(tmp_path / "hf", change)
    before = digest(tmp_path / "hf")
    with pytest.raises(InputError, match=message):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert digest(tmp_path / "hf") == before
    assert not (tmp_path / "ours").exists() and not list(tmp_path.glob(".ours*"))


def test_all_problems_at_once(tiny: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path, tiny)
    for change in ("missing", "extra"):
        damage(tmp_path, change)
    with pytest.raises(InputError, match=r"2 problems:(.|\n)*missing(.|\n)*extra"):
        hf.open_model(tmp_path)


def test_a_missing_shard_is_named(tiny: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path, tiny, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors: unreadable header"):
        hf.open_model(tmp_path)


def test_an_existing_directory_is_not_touched(tiny: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path / "hf", tiny)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "precious").write_text("x")
    with pytest.raises(InputError, match="exists and is not empty"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert [p.name for p in (tmp_path / "ours").iterdir()] == ["precious"]


def test_a_head_of_its_own_beats_the_tie(tiny: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path, tiny)
    raw = to_hf(tiny)
    raw["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.warns(UserWarning, match="the files contain another one"):
        config, _ = hf.open_model(tmp_path)
    assert not config.text.tie_word_embeddings


def test_an_adapter_merged_into_its_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
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
