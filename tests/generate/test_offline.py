"""Answers to many questions in a file."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import qa_jax
from qa_jax.data.questions import audio_questions, read_questions
from qa_jax.errors import InputError
from qa_jax.generate import Summary, read_rows
from tests.conftest import make_waveform


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """70 clips of mixed length, of which every seventh is damaged."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(70):
        path = folder / f"{i:02}.wav"
        soundfile.write(path, make_waveform(rng.uniform(0.1, 1.5), i), 16_000)
        if i % 7 == 3:
            path.write_bytes(path.read_bytes()[:30])
    return folder


def answer(model: qa_jax.LoadedModel, clips: Path, output: Path, **settings: object) -> Summary:
    questions = audio_questions([str(clips)], "what is three")
    return model.answer_questions(questions, output, max_new_tokens=6, **settings)


def test_every_clip_once_in_order(model: qa_jax.LoadedModel, clips: Path, tmp_path: Path) -> None:
    output, seen = tmp_path / "out.jsonl", list[tuple[int, int]]()
    summary = answer(model, clips, output, progress=lambda *x: seen.append(x))
    assert summary == Summary(70, 10) and seen[0] == (0, 70) and seen[-1] == (70, 70)
    rows = read_rows(output)
    assert [Path(row["audio"]).stem for row in rows] == [f"{i:02}" for i in range(70)]
    for i, row in enumerate(rows):
        assert ("error" in row) == (i % 7 == 3) and ("text" in row) != ("error" in row)
        if "error" in row:
            assert f"{i:02}.wav" in row["error"]
    parts = [
        {"type": "audio", "audio": rows[5]["audio"]},
        {"type": "text", "text": "what is three"},
    ]
    assert rows[5]["text"] == model.chat([{"role": "user", "content": parts}], max_new_tokens=6)


@pytest.mark.parametrize("kept", [0, 1, 29, 69, 70])
def test_going_on_where_it_stopped(
    model: qa_jax.LoadedModel, clips: Path, tmp_path: Path, kept: int
) -> None:
    output = tmp_path / "out.jsonl"
    answer(model, clips, output, temperature=1.0, seed=3)
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:kept]) + b"".join(lines[kept : kept + 1])[:-7])
    done = list[int]()
    answer(model, clips, output, temperature=1.0, seed=3, progress=lambda n, _: done.append(n))
    assert output.read_bytes() == whole and done[0] == kept


def test_another_files_rows_are_not_taken(
    model: qa_jax.LoadedModel, clips: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    answer(model, clips, output)
    with pytest.raises(InputError, match=r"out.jsonl:1: was answered with other settings"):
        answer(model, clips, output, temperature=0.5, seed=1)
    (clips / "00.wav").unlink()
    with pytest.raises(InputError, match="70 rows for 69 questions"):
        answer(model, clips, output)
    (clips / "99.wav").write_text("")
    with pytest.raises(InputError, match="out.jsonl:1: is the row of another question"):
        answer(model, clips, output)
    output.write_text("a,b\n")
    with pytest.raises(InputError, match="not JSON"):
        answer(model, clips, output)


def test_answers_have_the_rows_of_their_questions(
    model: qa_jax.LoadedModel, manifest: Path, tmp_path: Path
) -> None:
    lines = [x for x in manifest.read_text().splitlines() if not x.startswith('{"text"')]
    raw = [json.loads(line) for line in lines]
    for record in raw[:3]:  # without an answer
        record["messages"].pop()
    raw[4].pop("text")
    manifest.write_text("".join(json.dumps(record) + "\n" for record in raw))
    questions = read_questions(manifest)
    output = tmp_path / "out.jsonl"
    model.answer_questions(questions, output, field="prediction", max_new_tokens=5)
    rows = read_rows(output)
    assert ["reference" in row for row in rows] == [i not in (0, 1, 2, 4) for i in range(10)]
    for row, question in zip(rows, questions, strict=True):
        assert row["prompt"] == question.prompt.text
        batch = model.require_processor()(question.prompt.text, question.prompt.audio)
        assert row["prediction"] == model.answer(batch, max_new_tokens=5)
    assert rows[3]["prompt"] == rows[8]["prompt"] and rows[0]["prompt"] != rows[1]["prompt"]


def test_nothing_is_left_running(model: qa_jax.LoadedModel, clips: Path, tmp_path: Path) -> None:
    """A reader that stops in the middle leaves no thread and no busy slot."""
    stopping: Callable[[int, int], None] = lambda n, _: 1 / (n < 20)  # noqa: E731
    with pytest.raises(ZeroDivisionError):
        answer(model, clips, tmp_path / "out.jsonl", progress=stopping)
    assert not [t for t in threading.enumerate() if t.name.startswith("clips")]
    assert model.engine.num_running() == model.engine.num_waiting() == 0
