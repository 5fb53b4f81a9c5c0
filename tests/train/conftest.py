"""Settings of a small run, and one device instead of the tests' eight."""

from __future__ import annotations

from pathlib import Path

import pytest

from qa_jax.config import ModelConfig, to_dict
from tests.train.runs import one_device_mesh


@pytest.fixture
def settings(tiny: ModelConfig, manifest: Path, tokenizer_dir: Path, tmp_path: Path) -> dict:
    return {
        "preset": "demo",
        "model": to_dict(tiny),
        "data": {
            "train": str(manifest),
            "tokenizer": str(tokenizer_dir),
            "buckets": {204: 4},
        },
        "optimizer": {"peak_lr": 3e-3, "warmup_steps": 2},
        "train": {"output_dir": str(tmp_path / "run"), "steps": 8, "log_every": 1, "save_every": 3},
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
    }


@pytest.fixture
def one_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "eight_devices" not in request.keywords:
        one_device_mesh(monkeypatch)
