"""Errors of Hugging Face directories."""

from __future__ import annotations

import json
from pathlib import Path

import convert_weights
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qa_jax import hf
from qa_jax.config import ModelConfig, to_hf
from qa_jax.errors import InputError
from tests.hf_files import FC1, digest, write


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


def test_all_problems_are_listed(tiny: ModelConfig, tmp_path: Path) -> None:
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


def test_untied_head_overrides_the_config(tiny: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path, tiny)
    raw = to_hf(tiny)
    raw["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.warns(UserWarning, match="the files contain another one"):
        config, _ = hf.open_model(tmp_path)
    assert not config.text.tie_word_embeddings


@pytest.mark.parametrize("fault", ["names a shard that holds it not", "leaves one out", "no map"])
def test_a_wrong_index_is_named(tiny: ModelConfig, tmp_path: Path, fault: str) -> None:
    write(tmp_path / "hf", tiny, shards=3)
    path = tmp_path / "hf" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    message = "has no weight_map"
    if fault == "leaves one out":
        del index["weight_map"][FC1]
        message = f"{FC1}: not in the index"
    elif fault == "no map":
        index = {}
    else:
        others = set(index["weight_map"].values()) - {index["weight_map"][FC1]}
        index["weight_map"][FC1] = other = min(others)
        message = f"{FC1}: not in {other}, as the index says"
    path.write_text(json.dumps(index))
    before = digest(tmp_path / "hf")
    with pytest.raises(InputError, match=message):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert digest(tmp_path / "hf") == before
