"""`qa-jax transcribe` is killed at any time and goes on. QA_JAX_CLIPS=2000 for as many clips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qa_jax.generate import read_rows
from tests.conftest import make_waveform
from tests.jobs.kills import kill_three_times

pytestmark = pytest.mark.jobs
NUM_CLIPS = int(os.environ.get("QA_JAX_CLIPS", "200"))


def test_killed_three_times(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = tmp_path / "clips"
    clips.mkdir()
    damaged = set(rng.choice(NUM_CLIPS, NUM_CLIPS // 100, replace=False).tolist())
    for i in range(NUM_CLIPS):
        path = clips / f"{i:05}.wav"
        soundfile.write(path, make_waveform(rng.uniform(0.1, 2), i), 16_000)
        if i in damaged:
            path.write_bytes(path.read_bytes()[: int(rng.integers(0, 40))])
    command = [sys.executable, "-m", "qa_jax.cli", "transcribe", str(clips)]
    command += ["--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "8", "--output"]
    subprocess.run([*command, str(tmp_path / "whole.jsonl")], check=True)
    output = tmp_path / "killed.jsonl"
    kill_three_times(command, output, NUM_CLIPS)
    subprocess.run([*command, str(output)], check=True)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    rows = read_rows(output)
    assert [Path(row["audio"]).name for row in rows] == [f"{i:05}.wav" for i in range(NUM_CLIPS)]
    for i, row in enumerate(rows):
        assert ("error" in row) == (i in damaged)
        assert i not in damaged or f"{i:05}.wav" in row["error"]
