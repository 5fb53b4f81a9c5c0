"""Answers in the form that each benchmark's own script reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qa_jax.errors import InputError
from qa_jax.evaluate import read_benchmark, score
from qa_jax.evaluate.export import export
from tests.evaluate.layouts.data import Clips, mmau

Data = Callable[[str], str]


def answers(name: str, data: str, path: Path) -> Path:
    """Answers that tell which item they are of, in another order than the data's."""
    rows = [
        {**q.row, "prediction": f"{q.row['subset']} {q.row['id']}", "seconds": 2.0}
        for q in read_benchmark(name, data)
    ]
    rows[0].pop("prediction")
    rows[0]["error"] = "broken"
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    return path


def test_mmau_gets_its_own_rows_with_the_answers(benchmark_data: Data, tmp_path: Path) -> None:
    data, output = benchmark_data("mmau"), tmp_path / "submission.json"
    count = export([str(answers("mmau", data, tmp_path / "a.jsonl"))], str(output), data=data)
    rows = json.loads(output.read_text())
    assert count == len(rows) == 4
    by_id = {row["id"]: row for row in rows}
    assert by_id["id-1"]["model_output"] == "music id-1"
    assert by_id["id-0"]["model_output"] == ""  # an error
    original = json.loads(Path(data, "mmau-test-mini.json").read_text())
    assert {k: v for k, v in by_id["id-1"].items() if k != "model_output"} == original[1]


def test_a_table_whose_answers_are_withheld(clips: Clips, tmp_path: Path) -> None:
    """MMAU's test set: answered for submission, scored by its authors."""
    mmau(tmp_path, clips)
    rows = json.loads((tmp_path / "mmau-test-mini.json").read_text())
    for row in rows:
        row |= {"id": f"test-{row['id']}", "answer": ""}
    (tmp_path / "mmau-test.json").write_text(json.dumps(rows))
    questions = read_benchmark("mmau", str(tmp_path), table="mmau-test.json")
    assert [q.row["id"] for q in questions][:1] == ["test-id-0"]
    found = [{**q.row, "prediction": "A cat"} for q in questions]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (own, *_) = score(found).scores
    assert own.title == "accuracy (references unknown)"
    output = tmp_path / "submission.json"
    assert export([str(tmp_path / "a.jsonl")], str(output), data=str(tmp_path)) == 4
    assert {row["id"]: row["model_output"] for row in json.loads(output.read_text())} == {
        f"test-id-{i}": "A cat" for i in range(4)
    }


def test_a_file_for_each_subset(benchmark_data: Data, tmp_path: Path) -> None:
    data = benchmark_data("voicebench")
    output = str(tmp_path / "model-{subset}-test-audio.jsonl")
    export([str(answers("voicebench", data, tmp_path / "a.jsonl"))], output, data=data)
    lines = (tmp_path / "model-openbookqa-test-audio.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    assert row["response"] == "openbookqa 0" and {"prompt", "reference"} <= set(row)


def test_the_open_asr_leaderboards_manifest(benchmark_data: Data, tmp_path: Path) -> None:
    path = answers("open_asr", benchmark_data("open_asr"), tmp_path / "a.jsonl")
    Path(f"{path}.run.json").write_text(json.dumps({"answer_seconds": 8.0}))
    output = tmp_path / "ami.jsonl"
    assert export([str(path)], str(output)) == 16
    row = json.loads(output.read_text().splitlines()[0])
    assert row == {
        "audio_filepath": "1-voxpopuli-1",
        "duration": 2.0,
        "time": 2.0 * 8 / 32,
        "text": "it costs twenty dollars",
        "pred_text": "voxpopuli 1-voxpopuli-1",
    }


def test_data_that_is_not_that_of_the_answers(benchmark_data: Data, tmp_path: Path) -> None:
    data = benchmark_data("mmar")
    path = answers("mmar", data, tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="needs the benchmark's rows; give --data"):
        export([str(path)], str(tmp_path / "b.jsonl"))
    other = tmp_path / "data"
    other.mkdir()
    rows = json.loads(Path(data, "MMAR-meta.json").read_text())
    rows[2]["id"] = "another"
    (other / "MMAR-meta.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="has no item BV2 of speech"):
        export([str(path)], str(tmp_path / "b.jsonl"), data=str(other))
