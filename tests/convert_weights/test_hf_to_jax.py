"""From Hugging Face to qa_jax: bit-exact round trips, and an error for every fault."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import convert_weights
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qa_jax import checkpoint
from qa_jax.config import ModelConfig, from_hf
from qa_jax.errors import InputError
from qa_jax.hf import table
from tests.hf_files import EMBED, FC1, HEAD, digest, tied, write


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


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables so large that they are converted in parts."""
    monkeypatch.setattr(table, "_LARGE", 600)


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("tie", [False, True])
def test_round_trip(tiny: ModelConfig, tmp_path: Path, layout: str, shards: int, dtype: object,
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


def test_an_existing_directory_is_not_touched(tiny: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path / "hf", tiny)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "precious").write_text("x")
    with pytest.raises(InputError, match="exists and is not empty"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert [p.name for p in (tmp_path / "ours").iterdir()] == ["precious"]


@pytest.mark.parametrize("tie", [False, True])
def test_large_tables_are_converted_in_blocks(
    tiny: ModelConfig, tmp_path: Path, blocks: None, tie: bool
) -> None:
    tensors = write(tmp_path / "hf", tied(tiny) if tie else tiny, dtype=ml_dtypes.bfloat16)
    parts = table.tensor_map(tiny)[EMBED].blocks()
    assert len(parts) > 2 and parts[-1][0].stop == tiny.text.vocab_size
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    convert_weights.to_hf(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name in (EMBED, HEAD):
        assert back[name].tobytes() == tensors[name].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_conversion(tiny: ModelConfig, tmp_path: Path, dtype: str) -> None:
    """float32 holds bfloat16 exactly; the other way rounds once, to nearest even."""
    target = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    source = np.float32 if dtype == "bfloat16" else ml_dtypes.bfloat16
    tensors = write(tmp_path / "hf", tiny, dtype=source)
    there = convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours", dtype)
    rows, whole = convert_weights.verify(tmp_path / "hf", tmp_path / "ours")
    assert not any(row.num_differing for row in rows) and whole == there
    assert " -> " in rows[0].dtype
    assert convert_weights.to_hf(tmp_path / "ours", tmp_path / "back") == there
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(back[n].tobytes() == a.astype(target).tobytes() for n, a in tensors.items())
    direct = convert_weights.to_hf(tmp_path / "ours", tmp_path / "other", dtype=dtype)
    assert direct == there


def test_changed_source_is_refused(tiny: ModelConfig, tmp_path: Path) -> None:
    """A converted checkpoint is compared with its checksums when it is read."""
    write(tmp_path / "hf", tiny)
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    convert_weights.to_hf(tmp_path / "ours", tmp_path / "back")
    file = tmp_path / "back" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"\.weight: checksum .*checksums\.json says"):
        convert_weights.to_jax(tmp_path / "back", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_unreadable_shard_is_named(
    tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails in the middle of a file."""
    write(tmp_path / "hf", tiny)

    def fails(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    before = digest(tmp_path / "hf")
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read .*Input/output"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert digest(tmp_path / "hf") == before
    monkeypatch.undo()
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
