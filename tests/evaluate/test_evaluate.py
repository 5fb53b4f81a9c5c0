"""Evaluation of answers: each record's own, greedy, compared with its own reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

import qa_jax
from qa_jax.evaluate import evaluate
from tests.conftest import make_waveform

pytestmark = pytest.mark.usefixtures("one_device")


QUESTIONS = ("what is three", "turn on", "a man or a woman", "9 + 4", "", "in the kitchen now")


def write_manifest(path: Path, references: list[str]) -> list[list[dict[str, Any]]]:
    """Questions about six clips, the longest first; returns the conversations without answers."""
    conversations = []
    with path.open("w") as file:
        for i, reference in enumerate(references):
            clip = path.with_name(f"{i}.wav")
            soundfile.write(clip, make_waveform(2.0 - 0.3 * i, 11 * i), 16_000)
            parts = [{"type": "audio", "audio": str(clip)}, {"type": "text", "text": QUESTIONS[i]}]
            turn = {"role": "user", "content": parts}
            answer = {"role": "assistant", "content": reference}
            file.write(json.dumps({"messages": [turn, answer]}) + "\n")
            conversations.append([turn])
    return conversations


def test_answers_belong_to_their_records(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = qa_jax.load(tiny_checkpoint, num_slots=2, capacity=448)
    manifest, output = tmp_path / "m.jsonl", tmp_path / "answers.jsonl"
    conversations = write_manifest(manifest, ["?"] * 6)
    settings = dict(max_new_tokens=12, repetition_penalty=1.5)
    scores = evaluate(model, manifest, output=output, **settings)
    assert scores.values["exact_match"] == 0
    expected = [model.chat(c, temperature=0.0, **settings) for c in conversations]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prediction"] for row in rows] == expected
    # References that some of the answers meet: the score counts those, in their places.
    own = [expected.count(answer) == 1 for answer in expected]
    assert sum(own) >= 2 and own != own[::-1]
    references = [a if is_own else "?" for a, is_own in zip(expected, own, strict=True)]
    write_manifest(manifest, references)
    found = evaluate(model, manifest, **settings).values["exact_match"]
    assert found == pytest.approx(sum(own) / 6)
