"""Checkpoints with int8 weights."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import qa_jax
from qa_jax.cli import main
from qa_jax.trees import flatten_dict
from tests.cli.runs import refused
from tests.generate.batches import batch_of


def test_stored_equals_rounded_at_load(
    tiny_checkpoint: Path,
    model: qa_jax.LoadedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    stored = tmp_path / "int8"
    assert main(["convert", "quantize", str(tiny_checkpoint), str(stored)]) == 0
    ours, rounded = qa_jax.load(stored), qa_jax.load(tiny_checkpoint, weights="int8")
    flat, expected = flatten_dict(ours.params), flatten_dict(rounded.params)
    assert flat.keys() == expected.keys()
    for path, array in flat.items():
        assert array.dtype == expected[path].dtype
        np.testing.assert_array_equal(array, expected[path])
    kernels = [path for path, x in flat.items() if x.dtype == jnp.int8]
    assert kernels and all(path[-1] == "kernel" for path in kernels)
    batch = batch_of(model, [0, 1])
    exact, close = model.logits(batch), ours.logits(batch)
    error = np.abs(exact - close).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.1
    assert ours.generate(batch, max_new_tokens=4) == rounded.generate(batch, max_new_tokens=4)


def test_int8_is_for_inference_alone(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stored = tmp_path / "int8"
    assert main(["convert", "quantize", str(tiny_checkpoint), str(stored)]) == 0
    capsys.readouterr()
    error = refused(capsys, "convert", "to-hf", stored, tmp_path / "hf")
    assert "int8, for inference alone" in error
    assert "int8 already" in refused(capsys, "convert", "quantize", stored, tmp_path / "again")
    assert "not empty" in refused(capsys, "convert", "quantize", tiny_checkpoint, stored)
    assert main(["inspect", str(stored)]) == 0
    assert "int8" in capsys.readouterr().out
