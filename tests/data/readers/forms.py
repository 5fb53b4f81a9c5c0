"""The same records in a dataset's own form and in ours, and what must agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qa_jax.config import DataConfig
from qa_jax.data import Processor, TrainDataset
from tests.runs import check_resume, losses

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
    settings["train"]["steps"] = 5
    check_resume(settings, tmp_path, 3)
    assert len(losses(settings["train"]["output_dir"])) == 5
