"""Hub ids and the hub's checksums."""

from __future__ import annotations

import os
from pathlib import Path

import convert_weights
import pytest
from convert_weights.hub import resolve_source

from qa_jax.cli import main
from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from tests.hf_files import digest, write


def test_checksums_of_downloads(tiny: ModelConfig, tmp_path: Path) -> None:
    """The hub's cache names a file by its SHA-256, a local download notes it beside."""
    write(tmp_path / "hf", tiny)
    note = tmp_path / "hf/.cache/huggingface/download/model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"commit\n{'0' * 64}\n1.0\n")
    before = digest(tmp_path / "hf")
    with pytest.raises(InputError, match=r"model\.safetensors: SHA-256 .* the hub says 0000"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert digest(tmp_path / "hf") == before and not (tmp_path / "ours").exists()


def test_directories_in_object_storage() -> None:
    """Which a local path would be made of otherwise: "gs:/bucket"."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    assert os.fspath(resolve_source("gs://bucket/model")) == "gs://bucket/model"


def test_unknown_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["convert", "to-jax", "nobody/nothing", str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: nobody/nothing: no such directory, and the hub's download fails"
    )
    assert error.count("\n") == 1
