"""`qa-jax convert verify`."""

from __future__ import annotations

from pathlib import Path

import convert_weights
import pytest

from qa_jax.cli import main
from qa_jax.config import ModelConfig
from tests.hf_files import write


def test_differing_tensors_are_named(
    tiny: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "hf", tiny)
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    command = ["convert", "verify", str(tmp_path / "hf"), str(tmp_path / "ours")]
    assert main(command) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[-1].startswith(f"{len(output) - 1} tensors, all bits equal; checksum of all ")
    file = tmp_path / "hf" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # the last bit of the last number
    file.write_bytes(data)
    assert main(command) == 2
    captured = capsys.readouterr()
    assert "1 elements differ" in captured.out
    assert captured.err.startswith(f"error: 1 of {len(output) - 1} tensors: differ: ")
