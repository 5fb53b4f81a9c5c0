"""Directories of questions about clips."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qa_jax.errors import InputError
from qa_jax.evaluate import load_benchmark
from qa_jax.evaluate.layouts import read_items
from tests.evaluate.layouts.data import Clips, mmau

Data = Callable[[str], str]


def test_air_bench(benchmark_data: Data) -> None:
    data = benchmark_data("air_bench_chat")
    items = read_items(load_benchmark("air_bench_chat"), "music", data)
    assert [item.raw["task_name"] for item in items] == ["music_QA", "music_generation_analysis_QA"]
    assert items[0].fields["meta_info"] == "a {dog} XQuestionX"
    data = benchmark_data("air_bench_foundation")
    recipe = load_benchmark("air_bench_foundation")
    (item,) = read_items(recipe, "Audio_Grounding_AudioGrounding", data)
    assert item.audio[0].endswith(".flac") and item.raw["path"].endswith(".wav")
    (item,) = read_items(recipe, "Speaker_Gender_Recognition_common_voice_13_en", data)
    assert item.fields["choices"] == ["rain", "wind"] and item.fields["choice_d"] == "None"
    for subset in recipe.subsets:
        (item,) = read_items(recipe, subset, data)
        assert Path(item.audio[0]).is_file()


def test_mmau(benchmark_data: Data, clips: Clips, tmp_path: Path) -> None:
    recipe = load_benchmark("mmau")
    items = read_items(recipe, "speech", benchmark_data("mmau"))
    assert [item.id for item in items] == ["id-2", "id-3"] and Path(items[0].audio[0]).is_file()
    mmau(tmp_path, clips)
    table = tmp_path / "mmau-test-mini.json"
    rows = json.loads(table.read_text())
    rows[0]["answer"] = "A bird"
    table.write_text(json.dumps(rows))
    with pytest.raises(InputError, match="id-0: its answer 'A bird' is none of its choices"):
        read_items(recipe, "sound", str(tmp_path))
    rows[0] |= {"answer": "A cat", "choices": "['A cat', \"it's a dog\"]"}
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))  # as JSON lines
    (item,) = read_items(recipe, "sound", str(tmp_path))
    assert item.fields["choices"] == ["A cat", "it's a dog"]
    rows[0] |= {"choices": "A cat or a dog"}
    table.write_text(json.dumps(rows))
    with pytest.raises(InputError, match="id-0: has choices that are no list"):
        read_items(recipe, "sound", str(tmp_path))
    table.write_text("{not json")
    with pytest.raises(InputError, match=r"mmau-test-mini\.json: not JSON"):
        read_items(recipe, "sound", str(tmp_path))
    table.write_text(json.dumps(rows[1:]))
    with pytest.raises(InputError, match="has no item of sound"):
        read_items(recipe, "sound", str(tmp_path))
    table.write_text(json.dumps([rows[1], rows[1]]))
    with pytest.raises(InputError, match="music has two items id-1"):
        read_items(recipe, "music", str(tmp_path))


def test_mmau_pro_has_several_clips(benchmark_data: Data) -> None:
    recipe, data = load_benchmark("mmau_pro"), benchmark_data("mmau_pro")
    closed = read_items(recipe, "closed", data)
    assert [len(item.audio) for item in closed] == [1, 2]
    (opened,) = read_items(recipe, "open", data)
    assert opened.fields["choices"] == [] and opened.fields["choice_lines"] == ""


def test_openaudiobench(benchmark_data: Data) -> None:
    recipe, data = load_benchmark("openaudiobench"), benchmark_data("openaudiobench")
    (item, _) = read_items(recipe, "reasoning_qa", data)
    assert item.fields["question"] == "Who wrote it?" and item.reference == "Jane Austen"
    (item, _) = read_items(recipe, "alpaca_eval", data)
    assert item.reference == ""
