"""A benchmark's answers, and the record of how they were made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qa_jax.api import LoadedModel
from qa_jax.errors import InputError
from qa_jax.evaluate import answer, read_answers, read_benchmark, read_run

pytestmark = pytest.mark.usefixtures("one_device")


def test_the_record_goes_on_over_interruptions(
    benchmark_data: Callable[[str], str], hf_model: LoadedModel, tmp_path: Path
) -> None:
    questions = read_benchmark("librispeech", benchmark_data("librispeech"))
    output = tmp_path / "answers.jsonl"
    answer(hf_model, questions, output, max_new_tokens=3)
    record = json.loads((tmp_path / "answers.jsonl.run.json").read_text())
    assert record["model"] == hf_model.fingerprint and record["num_slots"] == 2
    assert record["settings"] == {
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "max_new_tokens": 3,
    }
    assert record["versions"].keys() == {"qa_jax", "jax", "flax"}
    again = tmp_path / "answers.jsonl"
    answer(hf_model, questions, again, max_new_tokens=3)
    later = json.loads((tmp_path / "answers.jsonl.run.json").read_text())
    assert later["answer_seconds"] >= record["answer_seconds"] > 0
    rows = read_answers([output])
    run = read_run([output], rows)
    seconds = sum(row["seconds"] for row in rows)
    assert run["audio_seconds"] == pytest.approx(seconds, abs=1e-3)
    assert run["rtfx"] == pytest.approx(seconds / later["answer_seconds"])
    # A file that is made anew counts from the start.
    output.unlink()
    answer(hf_model, questions[:1], output, max_new_tokens=3)
    anew = json.loads((tmp_path / "answers.jsonl.run.json").read_text())
    assert anew["answer_seconds"] < later["answer_seconds"]


def test_the_record_is_there_after_a_kill(
    benchmark_data: Callable[[str], str], hf_model: LoadedModel, tmp_path: Path
) -> None:
    questions = read_benchmark("librispeech", benchmark_data("librispeech"))

    def kill(done: int, total: int) -> None:
        if done:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        answer(hf_model, questions, tmp_path / "a.jsonl", progress=kill, max_new_tokens=3)
    record = json.loads((tmp_path / "a.jsonl.run.json").read_text())
    assert record["answer_seconds"] >= 0 and record["model"] == hf_model.fingerprint


def test_other_settings_are_refused(
    benchmark_data: Callable[[str], str], hf_model: LoadedModel, tmp_path: Path
) -> None:
    questions = read_benchmark("fleurs", benchmark_data("fleurs"))
    answer(hf_model, questions, tmp_path / "a.jsonl", max_new_tokens=3)
    with pytest.raises(InputError, match="was answered with other settings"):
        answer(hf_model, questions, tmp_path / "a.jsonl", max_new_tokens=4)


def test_a_broken_clip_is_a_row_with_its_error(
    benchmark_data: Callable[[str], str], hf_model: LoadedModel, tmp_path: Path
) -> None:
    questions = read_benchmark("aishell2", benchmark_data("aishell2"), subsets=["Mic"])
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF....no sound")
    prompt = questions[1].prompt._replace(audio=[str(broken)])
    questions[1] = questions[1]._replace(prompt=prompt)
    summary = answer(hf_model, questions, tmp_path / "a.jsonl", max_new_tokens=3)
    assert summary == (3, 1)
    rows = read_answers([tmp_path / "a.jsonl"])
    assert ["error" in row for row in rows] == [False, True, False]
    assert "broken.wav" in rows[1]["error"] and "prediction" not in rows[1]
