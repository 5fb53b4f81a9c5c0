"""The same records in a dataset's own form and in ours, and what must agree."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.config import DataConfig
from qa_jax.data import Processor, TrainDataset
from qa_jax.train import train
from tests.runs import config, losses, stopping_after

TEXTS = ("seven", "the light in the kitchen", "a man", "three plus four")
PROMPT = "what is three"


def write_ours(audio_files: Path, directory: Path) -> Path:
    """Four records in the short form."""
    path = directory / "ours.jsonl"
    rows = [
        {"audio": str(audio_files / f"{i}.wav"), "prompt": PROMPT, "text": text}
        for i, text in enumerate(TEXTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check_same_batches(dataset: str, ours: Path, processor: Processor) -> None:
    """Both give the same batches, in the same order."""
    found, expected = (
        TrainDataset(
            DataConfig(train=str(path), prompt=PROMPT, buckets={204: 2}, max_tokens=400), processor
        )
        for path in (dataset, ours)
    )
    assert found.steps_per_epoch == expected.steps_per_epoch == 2
    for step in range(4):
        for x, y in zip(found.batch(step), expected.batch(step), strict=True):
            np.testing.assert_array_equal(x, y)


def check_training(dataset: str, settings: dict, tmp_path: Path) -> None:
    """Five steps, and the same five stopped after the third and resumed: equal bit for bit."""
    settings["data"] |= {"train": dataset, "prompt": PROMPT, "buckets": {204: 2}}
    settings["train"] |= {"steps": 5, "output_dir": str(tmp_path / "straight")}
    train(config(settings))
    settings["train"]["output_dir"] = str(tmp_path / "resumed")
    with stopping_after(3), pytest.raises(Exception, match="stopped at step"):
        train(config(settings))
    train(config(settings))
    assert losses(tmp_path / "resumed") == losses(tmp_path / "straight")
    assert len(losses(tmp_path / "resumed")) == 5
    again, expected = (
        checkpoint.load_params(d, checkpoint.read_config(d))
        for d in (tmp_path / "resumed", tmp_path / "straight")
    )
    jax.tree.map(np.testing.assert_array_equal, again, expected)
