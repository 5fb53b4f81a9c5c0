"""Records in, batches out: each once an epoch, in an order that depends on the seed alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from qa_jax.config import DataConfig, token_count
from qa_jax.data import Processor, TrainData, read_manifest
from qa_jax.data import loader as loading
from qa_jax.data.manifest import split_last_answer
from qa_jax.errors import InputError

BUCKETS = {0: 2, 104: 2, 204: 4}


def data(manifest: Path, processor: Processor, **settings: object) -> TrainData:
    config = DataConfig(train=str(manifest), buckets=BUCKETS, max_tokens=400)
    groups = settings.pop("groups", 1)
    accumulate = settings.pop("accumulate", 1)
    config = dataclasses.replace(config, **settings)  # type: ignore[arg-type]
    return TrainData(config, processor, groups=groups, accumulate=accumulate)  # type: ignore[arg-type]


def test_forms(manifest: Path) -> None:
    records = read_manifest(manifest)
    assert len(records) == 12
    assert records[4].prompt.text == (
        "<|audio_bos|><|AUDIO|><|audio_eos|>turn onthe light in the kitchen<|endoftext|>"
    )
    question, answer = split_last_answer(records[0])
    assert answer == "three plus four is seven"
    assert question.text.endswith("<|im_start|>assistant\n")


def test_an_epoch_holds_every_record_once(manifest: Path, processor: Processor) -> None:
    loader = data(manifest, processor)
    for epoch in range(2):
        seen = [i for _, members in loader._epoch(epoch) for i in members]
        assert sorted(seen) == list(range(12))
    assert [list(m) for _, m in loader._epoch(0)] != [list(m) for _, m in loader._epoch(1)]


def test_batches_hold_what_the_records_say(manifest: Path, processor: Processor) -> None:
    loader = data(manifest, processor)
    clips = answers = 0
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(step)
        placeholders = (batch.tokens == processor.audio_token_id).sum()
        if batch.frames is None:
            assert placeholders == 0
        else:
            assert token_count(batch.frames).sum() == placeholders
            clips += (batch.frames > 0).sum()
        assert not batch.weights[~batch.valid].any()
        assert not batch.weights[batch.tokens == processor.audio_token_id].any()
        answers += (batch.weights.max(axis=-1) > 0).sum()
    assert clips == 10 and answers == 12


def test_length_exponent(manifest: Path, processor: Processor) -> None:
    config = DataConfig(train=str(manifest), buckets=BUCKETS)
    loader = TrainData(config, processor, length_exponent=-1.0)
    batch = loader.batch(0)
    sums = batch.weights.sum(axis=-1)
    np.testing.assert_allclose(sums[sums > 0], 1.0, rtol=1e-6)


def test_iteration_resumes_exactly(manifest: Path, processor: Processor) -> None:
    straight = data(manifest, processor).iterate()
    batches = [next(straight) for _ in range(9)]
    first = data(manifest, processor, threads=1).iterate()
    for _ in range(4):
        next(first)
    second = data(manifest, processor, threads=4).iterate()
    second.set_state(json.loads(json.dumps(first.get_state())))
    for expected in batches[4:]:
        for a, b in zip(next(second), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_groups_keep_clips_with_their_rows(manifest: Path, processor: Processor) -> None:
    loader = data(manifest, processor, groups=2)
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(step)
        if batch.frames is None:
            continue
        for tokens, frames in zip(
            np.split(batch.tokens[0], 2), np.split(batch.frames[0], 2), strict=True
        ):
            assert token_count(frames).sum() == (tokens == processor.audio_token_id).sum()


def test_accumulated_batches_hold_the_same_rows(manifest: Path, processor: Processor) -> None:
    loader = data(manifest, processor, accumulate=2)
    batch = loader.batch(0)
    assert batch.tokens.shape[0] == 2
    epoch = [loader.batch(i) for i in range(loader.steps_per_epoch)]
    assert sum((b.weights.max(axis=-1) > 0).sum() for b in epoch) == 12


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
        ('{"text": "<|AUDIO|>"}', "text holds"),
        ('{"text": "' + "word " * 500 + '"}', "over data.max_tokens"),
    ],
)
def test_bad_records_are_named(
    sounds: Path, processor: Processor, line: str, message: str, request: pytest.FixtureRequest
) -> None:
    path = sounds / "bad.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=rf"bad\.jsonl:3.*{message}"):
        data(path, processor)


def test_unusable_buckets_are_refused(manifest: Path, processor: Processor) -> None:
    for buckets, message in (
        ({102: 2}, "multiple of 4"),
        ({104: 3}, "rows one of 2"),
        ({104: 0}, "rows one of 2"),
        ({0: 2, 44: 2}, "the largest is 44"),
    ):
        with pytest.raises(InputError, match=message):
            data(manifest, processor, buckets=buckets, groups=2)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no records"):
        read_manifest(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="not readable"):
        read_manifest(tmp_path / "absent.jsonl")


def test_a_header_that_tells_too_little(
    manifest: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "clip_samples", lambda *_: 4_000)
    loader = data(manifest, processor)
    with pytest.raises(InputError, match=r"manifest\.jsonl:.*more than its header says.*wav"):
        for step in range(loader.steps_per_epoch):
            loader.batch(step)
