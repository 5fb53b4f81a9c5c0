"""What a manifest asks, and the names of its clips in the rows of its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax.data.questions import read_questions
from qa_jax.errors import InputError


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_clips_are_named_where_they_have_a_name(tmp_path: Path) -> None:
    inside = {"type": "audio", "audio": "data:audio/wav;base64,UklGRg=="}
    messages = [{"role": "user", "content": [{"type": "audio", "audio": "b.wav"}, inside]}]
    manifest = write(
        tmp_path / "m.jsonl",
        {"audio": "a.wav", "prompt": "Transcribe.", "text": "yes"},
        {"audio": "/c.wav", "prompt": "x", "text": "y", "offset": 1, "duration": 2},
        {"audio": "https://example.org/d.wav", "prompt": "x"},
        {"messages": messages},
        {"messages": [{"role": "user", "content": "hello"}]},
    )
    rows = [question.row for question in read_questions(manifest)]
    assert rows[0] == {
        "source": f"{manifest}:1",
        "prompt": "<|audio_bos|><|AUDIO|><|audio_eos|>Transcribe.",
        "audio": [str(tmp_path / "a.wav")],
        "reference": "yes",
    }
    assert rows[1]["audio"] == ["/c.wav#t=1,3"]
    assert rows[2]["audio"] == ["https://example.org/d.wav"] and "reference" not in rows[2]
    assert rows[3]["audio"] == [str(tmp_path / "b.wav")]
    assert "audio" not in rows[4]


def test_what_cannot_be_answered(tmp_path: Path) -> None:
    pair = {"prompt": "x", "chosen": "a", "rejected": "b"}
    with pytest.raises(InputError, match="m.jsonl:1: is a preference pair"):
        read_questions(write(tmp_path / "m.jsonl", pair))
