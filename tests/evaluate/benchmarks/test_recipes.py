"""Every recipe, on data in that benchmark's own layout: read, answered, killed, resumed, scored."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

import qa_jax
from qa_jax.api import LoadedModel
from qa_jax.data.chat import PLACEHOLDER
from qa_jax.errors import InputError
from qa_jax.evaluate import answer, benchmark_names, load_benchmark, read_answers, read_benchmark
from qa_jax.evaluate import score as score_rows
from qa_jax.evaluate.benchmarks.recipes import metrics_of
from tests.conftest import make_waveform
from tests.evaluate.layouts.data import WRITERS, Clips, mmau

pytestmark = pytest.mark.usefixtures("one_device")
NAMES = sorted(WRITERS)
Data = Callable[[str], str]


def test_every_recipe_has_data_here() -> None:
    assert benchmark_names() == NAMES


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_end_to_end(name: str, benchmark_data: Data, hf_model: LoadedModel, tmp_path: Path) -> None:
    questions = read_benchmark(name, benchmark_data(name))
    benchmark = load_benchmark(name)
    assert {q.row["subset"] for q in questions} == set(benchmark.subsets)
    settings = {"max_new_tokens": 4, "min_new_tokens": 1}
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    summary = answer(hf_model, questions, whole, **settings)
    assert summary == (len(questions), 0)

    def kill(done: int, total: int) -> None:
        if done >= total // 2:
            raise Killed

    with pytest.raises(Killed):
        answer(hf_model, questions, killed, progress=kill, **settings)
    # Of few rows, all may be there at once.
    before = b"".join(killed.read_bytes().splitlines(keepends=True)[: len(questions) // 2])
    killed.write_bytes(before + b'{"id": "torn')
    answered_at: list[int] = []
    answer(hf_model, questions, killed, progress=lambda done, _: answered_at.append(done),
           **settings)  # fmt: skip
    assert answered_at[0] == before.count(b"\n")
    assert killed.read_bytes() == whole.read_bytes()

    rows = read_answers([killed])
    assert all(row["seconds"] > 0 and row["benchmark"] == name for row in rows)
    for row in rows:  # what a judge would have said
        row["judgements"] = [{"text": "5 8", "swapped": False}, {"text": "3 4", "swapped": True}]
    scored = score_rows(rows)
    expected = [(s, m) for s in benchmark.subsets for m in metrics_of(benchmark, s)]
    found = [(own.subset, own.metric) for own in scored.scores]
    assert found[: len(expected)] == expected
    # Where no answer can be read, there is no average.
    known = {own.subset for own in scored.scores if own.is_known}
    averages = [name for name, parts in benchmark.averages.items() if set(parts) <= known]
    rest = [own.subset for own in scored.scores[len(expected) :]]
    assert rest[: len(averages)] == averages
    assert averages or not benchmark.averages or name == "air_bench_foundation"
    # A reference for an answer is right by every rule that counts it.
    for row in rows:
        row["prediction"] = row["reference"]
        if "choices" in row and "air_bench" in benchmark.metrics:
            row["prediction"] = "ABCD"[row["choices"].index(row["reference"])]
    for own in score_rows(rows).scores:
        if not own.metric.startswith("judge_"):
            best = 100 if own.higher_is_better else 0
            assert own.value.value == pytest.approx(best) or own.metric in ("bleu", "letter"), own


def test_prompts(benchmark_data: Data) -> None:
    """The authors' raw prompt for the base model; a chat template for Instruct."""
    data = benchmark_data("librispeech")
    base = read_benchmark("librispeech", data, subsets=["test-clean"])[0]
    text = "Detect the language and recognize the speech: <|en|>"
    assert base.prompt.text == PLACEHOLDER + text and base.is_raw
    chat = read_benchmark("librispeech", data, subsets=["test-clean"], style="instruct")[0]
    assert chat.prompt.text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>")
    assert chat.prompt.text.endswith(f"\n{text}<|im_end|>\n<|im_start|>assistant\n")
    assert chat.row["prompt"] == text and chat.instruction == text
    prompts = {}
    for name in ("covost2", "air_bench_foundation", "mmau", "voicebench", "mmau_pro"):
        for question in read_benchmark(name, benchmark_data(name)):
            prompts.setdefault((name, question.row["subset"]), question.row["prompt"])
    translate = "Detect the language and translate the speech into"
    assert prompts["covost2", "en-zh"] == f"{translate} Mandarin: <|en|>"
    assert prompts["covost2", "zh-en"] == f"{translate} English: <|zh|>"
    assert prompts["voicebench", "commoneval"] == ""
    assert prompts["mmau_pro", "closed"] == "What is heard?\nA. a bell\nB. a horn"
    assert "['A dog', 'A cat', 'A man {x}']" in prompts["mmau", "sound"]
    subset = "Spoken_Language_Identification_covost2"
    assert prompts["air_bench_foundation", subset] == (
        "Choose the most suitable answer from options A, B, C, and D to respond the question in "
        "next line, you may only choose A or B or C or D.\nWhich?\nA. rain\nB. wind\nC. fire\n"
        "D. None"
    )


def test_long_clips(
    benchmark_data: Data, hf_checkpoint: Path, tmp_path: Path, clips: Clips
) -> None:
    """A transcript is that of windows, joined; a question is asked once, of several clips."""
    data = Path(benchmark_data("librispeech"))
    (directory,) = (data / "test-clean" / "61").iterdir()
    chapter = tmp_path / "speech" / "test-clean" / "61" / "70"
    shutil.copytree(directory, chapter)
    mmau(tmp_path / "mmau", clips)
    seconds = 35
    soundfile.write(chapter / "61-70-0000.flac", make_waveform(seconds), 16_000)
    for i in range(4):
        soundfile.write(tmp_path / f"mmau/test-mini-audios/{i}.wav", make_waveform(seconds), 16_000)
    model = qa_jax.load(hf_checkpoint, num_slots=2, capacity=1024, long_audio="window")
    for name, root, subset in (("librispeech", "speech", "test-clean"), ("mmau", "mmau", "music")):
        questions = read_benchmark(name, str(tmp_path / root), subsets=[subset], limit=1)
        output = tmp_path / f"{name}.jsonl"
        answer(model, questions, output, window_seconds=30.0, max_new_tokens=2)
        (row,) = read_answers([output])
        assert row["seconds"] == seconds
        assert len(row["segments"]) == (2 if name == "librispeech" else 1)


def test_parts_of_a_benchmark(benchmark_data: Data) -> None:
    data = benchmark_data("librispeech")
    found = read_benchmark("librispeech", data, subsets=["dev-other", "test-clean"], limit=3)
    assert [q.row["subset"] for q in found] == ["dev-other"] * 3 + ["test-clean"] * 3
    assert [q.row["speaker"] for q in found[:3]] == ["121", "121", "61"]
    with pytest.raises(InputError, match="no 'test-cleam'; did you mean test-clean"):
        read_benchmark("librispeech", data, subsets=["test-cleam"])
    with pytest.raises(InputError, match="no 'librispech'; did you mean librispeech"):
        read_benchmark("librispech", data)


def test_a_recipe_of_ones_own(benchmark_data: Data, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "title: Mine\nlayout: librispeech\nmetrics: [cer]\nstyle: instruct\n"
        "prompt: 'Transcribe, in {language}.'\nsubsets: {a: {path: dev-clean, language: en}}\n"
    )
    (question, *_) = read_benchmark(str(recipe), benchmark_data("librispeech"))
    assert question.row["prompt"] == "Transcribe, in en."
    assert question.row["benchmark"] == str(recipe)  # where scoring finds it
    recipe.write_text("base: librispeech\nprompt: Transcribe.\nstyle: instruct\n")
    (question, *_) = read_benchmark(str(recipe), benchmark_data("librispeech"))
    assert question.row["prompt"] == "Transcribe." and not question.is_raw
    assert load_benchmark(str(recipe)).reported == load_benchmark("librispeech").reported
    recipe.write_text("title: Mine\nlayout: librispeech\nmetrics: [cer]\nsubsets: {a: {}}\n")
    recipe.write_text(recipe.read_text().replace("metrics: [cer]", "metrics: [cerr]"))
    with pytest.raises(InputError, match="no 'cerr'"):
        load_benchmark(str(recipe))
    recipe.write_text("title: Mine\nsubset: {}\n")
    with pytest.raises(InputError, match="unknown setting subset; did you mean subsets"):
        load_benchmark(str(recipe))
    recipe.write_text("title: Mine\naverages: {both: [a, b]}\nsubsets: {a: {}}\n")
    with pytest.raises(InputError, match="names a subset b"):
        load_benchmark(str(recipe))


def test_reported_numbers_are_of_subsets_or_averages() -> None:
    for name in benchmark_names():
        benchmark = load_benchmark(name)
        known = {*benchmark.subsets, *benchmark.averages, "all"}
        for reported in benchmark.reported.values():
            assert set(reported) <= known, name
        assert dataclasses.asdict(benchmark)["url"].startswith("https://"), name
        assert json.dumps(dataclasses.asdict(benchmark))
