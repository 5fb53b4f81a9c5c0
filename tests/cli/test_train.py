"""`qa-jax tokenizer`, `train` and `evaluate`, each on the output of the one before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from qa_jax.cli import main
from qa_jax.config import ModelConfig, to_dict


def test_tokenizer_train_evaluate(
    capsys: pytest.CaptureFixture, tiny: ModelConfig, manifest: Path, tmp_path: Path
) -> None:
    """The three commands one after the other, each reading what the one before wrote."""
    text = tmp_path / "text.txt"
    text.write_text("three plus four is seven\nturn on the light\n" * 20)
    assert (
        main(["tokenizer", str(text), "--vocab-size", "300", "--output", str(tmp_path / "t")]) == 0
    )
    config = tmp_path / "config.yaml"
    raw = {
        "preset": "demo",
        "model": to_dict(tiny),
        "data": {"buckets": {0: 8, 104: 8, 204: 8}, "tokenizer": str(tmp_path / "t")},
        "train": {"output_dir": str(tmp_path / "run")},
    }
    config.write_text(yaml.safe_dump(raw))
    command = [
        "train",
        "--config",
        str(config),
        "--data.train",
        str(manifest),
        "--train.steps",
        "2",
    ]
    assert main(command) == 0
    assert main(command) == 0, "nothing is left to do the second time"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    capsys.readouterr()
    arguments = ["--checkpoint", str(tmp_path / "run"), "--max-new-tokens", "4"]
    assert main(["evaluate", *arguments, str(manifest)]) == 2
    assert "manifest.jsonl:6: has no prompt to answer" in capsys.readouterr().err
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if not line.startswith('{"text"')))
    assert main(["evaluate", *arguments, str(manifest)]) == 0
    told = capsys.readouterr().out
    assert "10 answers in" in told and "WER" in told and "exact match" in told
    rows = [
        json.loads(x) for x in manifest.with_suffix(".predictions.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 10 and rows[1]["reference"] == "a man"
    assert rows[0]["source"].endswith("manifest.jsonl:1")
