"""`qa-jax evaluate --benchmark` is killed at any time and goes on, and asks nothing twice."""

from __future__ import annotations

import json
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
NUM_CLIPS = 260


def test_killed_three_times(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chapter = tmp_path / "data" / "test-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    names = [f"1-2-{i:04d}" for i in range(NUM_CLIPS)]
    for i, name in enumerate(names):
        soundfile.write(chapter / f"{name}.flac", make_waveform(rng.uniform(0.1, 2), i), 16_000)
    (chapter / names[7]).with_suffix(".flac").write_bytes(b"no sound")
    (chapter / "1-2.trans.txt").write_text("".join(f"{name} WORDS\n" for name in names))
    command = [sys.executable, "-m", "qa_jax.cli", "evaluate", "--benchmark", "librispeech",
               "--data", str(tmp_path / "data"), "--subset", "test-clean", "--max-new-tokens", "6",
               "--checkpoint", str(tiny_checkpoint), "--output"]  # fmt: skip
    subprocess.run([*command, str(tmp_path / "whole.jsonl")], check=True)
    output = tmp_path / "killed.jsonl"
    kill_three_times(command, output, NUM_CLIPS)
    finished = subprocess.run([*command, str(output)], check=True, capture_output=True, text=True)
    assert f"{NUM_CLIPS} answers in" in finished.stdout
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    rows = read_rows(output)
    assert [row["id"] for row in rows] == names
    assert ["error" in row for row in rows].count(True) == 1 and "error" in rows[7]
    seconds = json.loads(Path(f"{output}.run.json").read_text())["answer_seconds"]
    assert seconds > 0
