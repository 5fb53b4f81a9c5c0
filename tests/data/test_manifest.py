"""Manifests: every form of a record, mixtures, and errors with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax.data import Processor, read_manifest
from qa_jax.data.chat import Prompt, apply_chat_template
from qa_jax.data.manifest import split_last_answer
from qa_jax.errors import InputError
from tests.data.datasets import make_dataset

pytestmark = pytest.mark.usefixtures("one_device")


def test_forms_of_a_record(manifest: Path) -> None:
    records = read_manifest(manifest)
    assert len(records) == 12
    assert records[4].prompt.text == (
        "<|audio_bos|><|AUDIO|><|audio_eos|>turn onthe light in the kitchen<|endoftext|>"
    )
    question, answer = split_last_answer(records[0].prompt, records[0].source)
    assert answer == "three plus four is seven"
    assert question.text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"prompt": "x"}', "neither messages nor text"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "no assistant turn"),
        ('{"messages": [{"role": "bot", "content": "hi"}]}', "message 1: unknown role"),
        ('{"audio": "absent.wav", "text": "x"}', "no such file"),
        ('{"audio": "long.wav", "text": "x"}', "over the model's 30 s"),
        ('{"audio": "short.wav", "text": "x"}', "give no audio token"),
        ('{"audio": "text.wav", "text": "x"}', "not readable as audio"),
        ('{"audio": 3, "text": "x"}', "not a file"),
        ('{"text": "<|AUDIO|>"}', "text contains"),
        ('{"text": "' + "word " * 500 + '"}', "over data.max_tokens"),
    ],
)
def test_bad_records_are_named(
    audio_files: Path, processor: Processor, line: str, message: str, request: pytest.FixtureRequest
) -> None:
    path = audio_files / "bad.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=rf"bad\.jsonl:3.*{message}"):
        make_dataset(path, processor)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="contains no records"):
        read_manifest(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="not readable"):
        read_manifest(tmp_path / "absent.jsonl")


def test_swift_format(tmp_path: Path) -> None:
    def row(messages: list, audios: object) -> Prompt:
        path = tmp_path / "swift.jsonl"
        path.write_text(json.dumps({"messages": messages, "audios": audios}) + "\n")
        return read_manifest(path)[0].prompt

    answer = {"role": "assistant", "content": "rain"}
    actual = apply_chat_template(
        [{"role": "user", "content": [{"audio": "a.wav"}, {"text": "What is heard?"}]}, answer]
    )
    marked = [{"role": "user", "content": "<audio>What is heard?"}, answer]
    assert row(marked, ["a.wav"]) == actual
    unmarked = [{"role": "user", "content": "What is heard?"}, answer]
    assert row(unmarked, ["a.wav"]) == actual == row(unmarked, "a.wav")
    two = row([{"role": "user", "content": "<audio>or<audio>"}, answer, *marked], list("abc"))
    assert two.audio == list("abc") and two.text.count("<|AUDIO|>") == 3
    with pytest.raises(InputError, match="2 clips for 1 <audio>"):
        row(marked, ["a.wav", "b.wav"])


def test_forms_of_a_pair(pairs: Path) -> None:
    records = read_manifest(pairs)
    for record in records:
        for prompt in record.completions():
            assert sum(span.is_target for span in prompt.spans) == 1
        assert len(record.completions()) == 2
    short, swift, turns = records[3], records[4], records[5]
    assert [p.spans[-1].text for p in short.completions()] == [
        "a man<|endoftext|>",
        "the light in the kitchen<|endoftext|>",
    ]
    answers = [s.text for p in swift.completions() for s in p.spans if s.is_target]
    assert answers == ["a man<|im_end|>", "a woman<|im_end|>"]
    assert "the fox" in turns.prompt.text and len(turns.prompt.audio) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": None}, "has no rejected completion"),
        ({"chosen": ""}, "has no chosen completion"),
        ({"rejected": "a man"}, "chosen and rejected are the same"),
        ({"messages": []}, "messages do not end with the user"),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            "messages do not end with the user",
        ),
    ],
)
def test_bad_pairs_are_refused(change: dict, message: str, pairs: Path) -> None:
    row = json.loads(pairs.read_text().splitlines()[0]) | change
    pairs.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"pairs\.jsonl:1: {message}"):
        read_manifest(pairs)
