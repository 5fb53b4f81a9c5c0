"""The demo's splits share no voice, sentence or sum; the audio matches its text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from qa_jax.data import read_manifest
from qa_jax.demo import corpus
from qa_jax.demo.corpus import MEN, WOMEN, plan_clips
from qa_jax.demo.synthetic import SOUNDS, Voice, make_sound
from qa_jax.demo.texts import HELD_OUT_SUMS, NUMBERS, SPLITS


@pytest.fixture(scope="module")
def plans() -> dict[str, list[corpus.Clip]]:
    return {split: plan_clips(split, 0) for split in SPLITS}


def test_voices_are_apart(plans: dict) -> None:
    names = {s: {c.voice.name for c in clips if c.voice} for s, clips in plans.items()}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not names[a] & names[b]
    assert {len(names[s]) for s in SPLITS} == {46, 8}
    for voices in (WOMEN, MEN):
        assert set(voices) == set(SPLITS)


def test_texts_are_apart(plans: dict) -> None:
    for task, length in (("transcribe", 4), ("chat", 0)):
        output = {
            s: {c.text for c in clips if any(r[0] == task for r in c.records)
                and len(c.text.split()) >= length}
            for s, clips in plans.items()
        }  # fmt: skip
        for a, b in itertools.combinations(SPLITS, 2):
            assert not output[a] & output[b], task
        assert all(output.values())


def test_sums_are_apart(plans: dict) -> None:
    def out(answers: Iterable[str]) -> set[frozenset[str]]:
        """The two numbers of every sum, whichever comes first."""
        return {frozenset(a.split()[0:3:2]) for a in answers if a.split()[1] == "plus"}

    asked = {
        s: out(r[2] for c in clips for r in c.records if r[0] == "chat")
        for s, clips in plans.items()
    }
    asked["train"] |= out(answer for _, answer in corpus.written_questions(0))
    for a, b in itertools.combinations(SPLITS, 2):
        assert not asked[a] & asked[b]
    assert len(asked["test"]) == len(HELD_OUT_SUMS["test"])
    features = {c.text for c in plans["train"] if c.text}
    for one, other in map(tuple, asked["test"] | asked["dev"]):
        for sum_ in (f"{one} plus {other}", f"{other} plus {one}"):
            assert not any(sum_ in text for text in features), "not even as a fragment"


def test_answers_are_right(plans: dict) -> None:
    for clip in plans["test"]:
        for _, question, answer in clip.records:
            if question == corpus.WHO:
                name = clip.voice.name
                assert answer == ("a woman" if name in WOMEN["test"] else "a man")
            if " plus " in answer:
                words = answer.split()
                a, b, total = (NUMBERS.index(words[i]) for i in (0, 2, -1))
                assert a + b == total


@pytest.mark.parametrize("kind", SOUNDS)
def test_sounds(kind: str) -> None:
    first, second = (make_sound(kind, np.random.default_rng(i), 1.5) for i in range(2))
    assert first.dtype == np.float32 and 0.05 < np.abs(first).max() <= 0.5
    assert not np.array_equal(first, second)


def test_the_corpus_on_disk(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="needs the [demo] extra")
    for _ in corpus.make(tmp_path, seed=1, scale=0.02):
        pass
    for name in (*SPLITS, "pretrain"):
        records = read_manifest(tmp_path / f"{name}.jsonl")
        assert all((tmp_path / clip).is_file() for r in records for clip in r.prompt.audio)
        assert any(not r.prompt.audio for r in records) == (name == "train")
    row = json.loads((tmp_path / "test_chat.jsonl").read_text().splitlines()[0])
    assert [p["type"] for p in row["messages"][0]["content"]] == ["audio"]
    assert "<|im_start|>user" in (tmp_path / "text.txt").read_text()


def test_the_same_seed_gives_the_same_audio(tmp_path: Path) -> None:
    """Byte for byte, whatever the number of processes."""
    pytest.importorskip("espeakng_loader", reason="needs the [demo] extra")
    for name, processes in (("one", 1), ("two", 2)):
        for _ in corpus.make(tmp_path / name, seed=3, num_processes=processes, scale=0.02):
            pass
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.wav"))
    assert len(files) > 300
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_made_up_voices_differ(plans: dict) -> None:
    made = [c.voice.settings for c in plans["train"] if c.voice and c.voice.settings]
    assert len(set(made)) == len(made) > 0.3 * len(plans["train"])
    for split in ("dev", "test"):
        assert not any(c.voice.settings for c in plans[split] if c.voice)


def test_speech_is_speech() -> None:
    pytest.importorskip("espeakng_loader", reason="needs the [demo] extra")
    from qa_jax.demo.synthetic import speak
    from qa_jax.errors import InputError

    man, woman = (speak("turn on the light", Voice(v)) for v in ("m1", "f1"))
    assert 0.6 < man.size / 16_000 < 2 and man.dtype == np.float32
    assert not np.array_equal(man[:1000], woman[:1000])
    with pytest.raises(InputError, match="no such eSpeak voice"):
        speak("hi", Voice("nobody"))
