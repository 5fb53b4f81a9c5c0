"""Data sets of the hub, and their Parquet files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qa_jax.data import load_audio
from qa_jax.data.readers import hf_datasets
from qa_jax.errors import InputError
from qa_jax.evaluate import load_benchmark
from qa_jax.evaluate.layouts import read_items
from tests.evaluate.layouts.data import parquet

Data = Callable[[str], str]


def test_parquet_files(benchmark_data: Data) -> None:
    items = read_items(load_benchmark("open_asr"), "ami", benchmark_data("open_asr"))
    assert [item.id for item in items] == ["0-ami-0", "1-ami-1"]
    assert items[1].reference == "it costs twenty dollars"
    assert 8_000 < load_audio(items[1].audio[0]).size < 20_000
    voice = read_items(load_benchmark("voicebench"), "sd-qa", benchmark_data("voicebench"))
    assert voice[0].fields == {"question": "the white rabbit sleeps on the river"}
    assert voice[0].reference == "yes"


def test_names_on_the_hub(monkeypatch: pytest.MonkeyPatch, benchmark_data: Data) -> None:
    asked: list[str] = []

    def load(path: str) -> object:
        asked.append(path)
        return original(benchmark_data("open_asr") + "/ami")

    original = hf_datasets._load
    monkeypatch.setattr(hf_datasets, "_load", load)
    recipe = load_benchmark("librispeech")
    (first, _) = read_items(recipe, "test-other", "hub")
    assert asked == ["hf://openslr/librispeech_asr:other@test"]
    assert str(first.audio[0]) == "hf://openslr/librispeech_asr:other@test:1/audio"
    with pytest.raises(InputError, match="Mic: is not on the hub; download it from https"):
        read_items(load_benchmark("aishell2"), "Mic", "hub")


def test_what_cannot_be_used(tmp_path: Path) -> None:
    recipe = load_benchmark("open_asr")
    with pytest.raises(InputError, match='ami: is not there; give "hub", or a directory'):
        read_items(recipe, "ami", str(tmp_path))
    parquet(tmp_path / "ami", [{"text": "a", "id": "0"}])
    with pytest.raises(InputError, match=":1: has no clip; give data with an Audio column"):
        read_items(recipe, "ami", str(tmp_path))
