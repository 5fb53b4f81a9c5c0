"""`qa-jax inspect`."""

from __future__ import annotations

from pathlib import Path

import convert_weights
import ml_dtypes
import pytest

from qa_jax.cli import main
from qa_jax.config import ModelConfig
from tests.hf_files import write


def test_inspect(tiny: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "hf", tiny, dtype=ml_dtypes.bfloat16, shards=3)
    whole = convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    for directory, kind in (("hf", "Hugging Face, 3 safetensors files"), ("ours", "step 0")):
        assert main(["inspect", str(tmp_path / directory)]) == 0
        output = capsys.readouterr().out
        assert kind in output and "bfloat16" in output and "GB" in output
        assert f"vocabulary {tiny.text.vocab_size:,}" in output
    assert whole in output
    assert main(["inspect", str(tmp_path)]) == 2
    assert "contains neither" in capsys.readouterr().err
