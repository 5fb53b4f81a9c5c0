"""Data of every benchmark, and a random model in the released layout."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import qa_jax
from qa_jax.api import LoadedModel
from qa_jax.config import ModelConfig
from tests import hf_files
from tests.evaluate.layouts.data import WRITERS, Clips

pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="session")
def benchmark_data(clips: Clips, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The directory of a benchmark's data, by its recipe's name."""
    made: dict[str, str] = {}

    def directory(name: str) -> str:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            WRITERS[name](root, clips)
            made[name] = str(root)
        return made[name]

    return directory


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def hf_checkpoint(
    tiny_with_text: ModelConfig, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Random weights in the released layout: config.json, two .safetensors and the tokenizer."""
    directory = tmp_path_factory.mktemp("released") / "model"
    text = dataclasses.replace(tiny_with_text.text, vocab_size=384)
    hf_files.write(directory, dataclasses.replace(tiny_with_text, text=text), shards=2)
    for file in tokenizer_dir.iterdir():
        shutil.copy(file, directory)
    return directory


@pytest.fixture(scope="session")
def hf_model(hf_checkpoint: Path) -> LoadedModel:
    return qa_jax.load(hf_checkpoint, num_slots=2, capacity=256)
