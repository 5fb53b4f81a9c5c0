"""Evaluation of preference pairs."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax import load
from qa_jax.cli import main
from qa_jax.data import read_manifest

pytestmark = pytest.mark.usefixtures("one_device")


def test_scores_equal_the_logits(
    pairs: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, as the objective sees them."""
    kept = tmp_path / "kept.jsonl"
    command = ["evaluate", "--checkpoint", str(tiny_checkpoint), str(pairs), "--output", str(kept)]
    assert main([*command, "--batch-size", "4"]) == 0
    told = capsys.readouterr().out
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [r["source"] for r in rows] == [f"{pairs}:{i}" for i in range(1, 7)]
    better = [row["chosen"] > row["rejected"] for row in rows]
    better_mean = [
        row["chosen"] / row["chosen_tokens"] > row["rejected"] / row["rejected_tokens"]
        for row in rows
    ]
    assert sum(better) != 3 != sum(better_mean)  # else the reverse would look the same
    assert f"6 pairs  logp accuracy {sum(better) / 6:.2%}" in told
    assert f"mean logp accuracy {sum(better_mean) / 6:.2%}" in told
    loaded = load(tiny_checkpoint)
    assert loaded.processor is not None
    for row, record in zip(rows, read_manifest(pairs), strict=True):
        waveforms = loaded.processor.load(record.prompt.audio)
        for name, prompt in zip(("chosen", "rejected"), record.completions(), strict=True):
            ids, answer = loaded.processor.tokenize_with_weights(
                prompt, [w.size for w in waveforms]
            )
            batch = loaded.processor.collate([ids], waveforms, "right")
            scores = jax.nn.log_softmax(jnp.asarray(loaded.logits(batch)[0]))
            target_positions = np.flatnonzero(answer)
            expected = sum(float(scores[i - 1, ids[i]]) for i in target_positions)
            assert row[name] == pytest.approx(expected, rel=1e-4)
            assert row[f"{name}_tokens"] == len(target_positions)
