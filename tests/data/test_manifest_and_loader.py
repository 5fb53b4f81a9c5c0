"""Records in, batches out: each once an epoch, in an order that depends on the seed alone."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from qa_jax.config import DataConfig, num_audio_tokens
from qa_jax.data import Processor, TrainDataset, read_manifest
from qa_jax.data import loader as loading
from qa_jax.data.chat import Prompt, apply_chat_template
from qa_jax.data.manifest import split_last_answer
from qa_jax.data.packing import clips_per_row, first_fit
from qa_jax.data.shard import shard
from qa_jax.errors import InputError

BUCKETS = {0: 2, 104: 2, 204: 4}


def data(manifest: Path, processor: Processor, **settings: object) -> TrainDataset:
    config = DataConfig(train=str(manifest), buckets=BUCKETS, max_tokens=400)
    num_batch_shards = settings.pop("num_batch_shards", 1)
    grad_accum_steps = settings.pop("grad_accum_steps", 1)
    config = dataclasses.replace(config, **settings)  # type: ignore[arg-type]
    return TrainDataset(
        config, processor, num_batch_shards=num_batch_shards, grad_accum_steps=grad_accum_steps
    )  # type: ignore[arg-type]


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
        steps = range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch)
        seen = [source for step in steps for source in loader.sources(step)]
        assert sorted(seen) == sorted(e.record.source for e in loader.examples)
    orders = [[loader.sources(e * loader.steps_per_epoch + i) for i in range(4)] for e in (0, 1)]
    assert orders[0] != orders[1]


def test_batches_hold_what_the_records_say(manifest: Path, processor: Processor) -> None:
    loader = data(manifest, processor)
    clips = answers = 0
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(step)
        placeholders = (batch.tokens == processor.audio_token_id).sum()
        if batch.num_frames is None:
            assert placeholders == 0
        else:
            assert num_audio_tokens(batch.num_frames).sum() == placeholders
            clips += (batch.num_frames > 0).sum()
        assert not batch.loss_weights[batch.segment_ids == 0].any()
        assert not batch.loss_weights[batch.tokens == processor.audio_token_id].any()
        answers += (batch.loss_weights.max(axis=-1) > 0).sum()
    assert clips == 10 and answers == 12


def test_length_exponent(manifest: Path, processor: Processor) -> None:
    config = DataConfig(train=str(manifest), buckets=BUCKETS)
    loader = TrainDataset(config, processor, length_exponent=-1.0)
    batch = loader.batch(0)
    out = batch.loss_weights.sum(axis=-1)
    np.testing.assert_allclose(out[out > 0], 1.0, rtol=1e-6)


def test_iteration_resumes_exactly(manifest: Path, processor: Processor) -> None:
    straight = data(manifest, processor).iterate()
    batches = [next(straight) for _ in range(9)]
    first = data(manifest, processor, num_threads=1).iterate()
    for _ in range(4):
        next(first)
    second = data(manifest, processor, num_threads=4).iterate()
    second.set_state(json.loads(json.dumps(first.get_state())))
    for expected in batches[4:]:
        for a, b in zip(next(second), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_groups_keep_clips_with_their_rows(manifest: Path, processor: Processor) -> None:
    loader = data(manifest, processor, num_batch_shards=2)
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(step)
        if batch.num_frames is None:
            continue
        for tokens, frames in zip(
            np.split(batch.tokens[0], 2), np.split(batch.num_frames[0], 2), strict=True
        ):
            assert num_audio_tokens(frames).sum() == (tokens == processor.audio_token_id).sum()


def test_accumulated_batches_hold_the_same_rows(manifest: Path, processor: Processor) -> None:
    loader = data(manifest, processor, grad_accum_steps=2)
    batch = loader.batch(0)
    assert batch.tokens.shape[0] == 2
    epoch = [loader.batch(i) for i in range(loader.steps_per_epoch)]
    assert sum((b.loss_weights.max(axis=-1) > 0).sum() for b in epoch) == 12


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
    sounds: Path, processor: Processor, line: str, message: str, request: pytest.FixtureRequest
) -> None:
    path = sounds / "bad.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=rf"bad\.jsonl:3.*{message}"):
        data(path, processor)


def test_unusable_buckets_are_refused(manifest: Path, processor: Processor) -> None:
    for buckets, message in (
        ({102: 2}, "multiple of 4"),
        ({104: 3}, "rows a multiple of 2"),
        ({104: 0}, "rows a multiple of 2"),
        ({0: 2, 44: 2}, "the largest is 44"),
    ):
        with pytest.raises(InputError, match=message):
            data(manifest, processor, buckets=buckets, num_batch_shards=2)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="contains no records"):
        read_manifest(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="not readable"):
        read_manifest(tmp_path / "absent.jsonl")


def test_a_header_that_tells_too_little(
    manifest: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "clip_num_samples", lambda *_: 4_000)
    loader = data(manifest, processor)
    with pytest.raises(InputError, match=r"manifest\.jsonl:.*more than its header says.*wav"):
        for step in range(loader.steps_per_epoch):
            loader.batch(step)


def test_packed_rows_hold_every_record_once(manifest: Path, processor: Processor) -> None:
    loader = data(manifest, processor, packed_length=300)
    apart = data(manifest, processor)
    assert loader.steps_per_epoch < apart.steps_per_epoch
    texts = []
    for each in (loader, apart):
        found = []
        for step in range(each.steps_per_epoch):
            batch = each.batch(step)
            for tokens, segments in zip(batch.tokens[0], batch.segment_ids[0], strict=True):
                for n in range(1, segments.max() + 1):
                    found.append(tuple(tokens[segments == n].tolist()))
            if batch.num_frames is not None:
                placeholders = (batch.tokens == processor.audio_token_id).sum()
                assert num_audio_tokens(batch.num_frames).sum() == placeholders
        texts.append(sorted(found))
    assert texts[0] == texts[1] and len(texts[0]) == 12
    assert max(len(row) for rows in loader._rows.values() for row in rows) > 1


def test_first_fit() -> None:
    assert first_fit([(6, 1), (5, 1), (4, 1), (5, 1), (20, 1), (1, 0)], (10, 2)) == [
        (0, 2),
        (1, 3),
        (4,),
        (5,),
    ]
    sizes = [(int(n), 1) for n in np.random.default_rng(0).integers(20, 130, 5000)]
    rows = first_fit(sizes, (1024, clips_per_row(sizes, 1024)))
    assert sorted(i for row in rows for i in row) == list(range(5000))
    held = [sum(sizes[i][0] for i in row) for row in rows]
    assert max(held) <= 1024 and sum(held) / (1024 * len(rows)) > 0.95


def test_mixtures(manifest: Path, processor: Processor, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(4)))
    config = DataConfig(train={str(manifest): 1, str(other): 2.5}, buckets=BUCKETS)
    loader = TrainDataset(config, processor)
    seen = collections.Counter(e.record.source for e in loader.examples)
    assert seen[f"{manifest}:1"] == 1
    assert [seen[f"{other}:{i}"] for i in range(1, 5)] == [3, 2, 3, 2]
    with pytest.raises(InputError, match=r"0\.5 repeats are under 1"):
        TrainDataset(dataclasses.replace(config, train={str(other): 0.5}), processor)


def test_a_few_unusable_records_may_be_left_out(sounds: Path, processor: Processor) -> None:
    path = sounds / "some_bad.jsonl"
    bad = ['{"audio": "absent.wav", "text": "x"}', "{", '{"audio": "nan.wav", "text": "x"}']
    path.write_text("\n".join([*['{"text": "fine"}'] * 5, *bad]) + "\n")
    with pytest.warns(UserWarning, match="skipped: ") as warned:
        loader = data(path, processor, max_bad_records=3)
        # Only decoding finds out that samples are NaN.
        batches = [loader.batch(i) for i in range(2 * loader.steps_per_epoch)]
    assert sum((b.loss_weights.max(axis=-1) > 0).sum() for b in batches) == 10
    assert len(loader.bad_records) == len(warned) == 3
    assert all(
        f"some_bad.jsonl:{n}" in str(w.message) for w, n in zip(warned, (7, 6, 8), strict=True)
    )
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(InputError, match=r"is bad record 2, data\.max_bad_records is 1"),
    ):
        data(path, processor, max_bad_records=1)


def test_each_process_reads_its_own_groups(manifest: Path, processor: Processor) -> None:
    loader = data(manifest, processor, num_batch_shards=2, grad_accum_steps=2)
    for step in range(loader.steps_per_epoch):
        whole = loader.batch(step)
        for group in range(2):
            part = loader.batch(step, [group])
            for x, y in zip(part, whole, strict=True):
                if y is not None:
                    half = y.shape[1] // 2
                    np.testing.assert_array_equal(x, y[:, group * half : (group + 1) * half])


@pytest.mark.parametrize("threads", [0, 1, 7])
def test_batches_do_not_depend_on_workers(
    manifest: Path, processor: Processor, threads: int
) -> None:
    loader = data(manifest, processor, packed_length=300)
    stream = data(manifest, processor, packed_length=300, num_threads=threads).iterate()
    for step in range(6):
        for x, y in zip(next(stream), loader.batch(step), strict=True):
            np.testing.assert_array_equal(x, y)


def test_ms_swift_form(tmp_path: Path) -> None:
    def row(messages: list, audios: object) -> Prompt:
        path = tmp_path / "swift.jsonl"
        path.write_text(json.dumps({"messages": messages, "audios": audios}) + "\n")
        return read_manifest(path)[0].prompt

    answer = {"role": "assistant", "content": "rain"}
    ours = apply_chat_template(
        [{"role": "user", "content": [{"audio": "a.wav"}, {"text": "What is heard?"}]}, answer]
    )
    marked = [{"role": "user", "content": "<audio>What is heard?"}, answer]
    assert row(marked, ["a.wav"]) == ours
    unmarked = [{"role": "user", "content": "What is heard?"}, answer]
    assert row(unmarked, ["a.wav"]) == ours == row(unmarked, "a.wav")
    two = row([{"role": "user", "content": "<audio>or<audio>"}, answer, *marked], list("abc"))
    assert two.audio == list("abc") and two.text.count("<|AUDIO|>") == 3
    with pytest.raises(InputError, match="2 clips for 1 <audio>"):
        row(marked, ["a.wav", "b.wav"])


def test_packed_archives(manifest: Path, processor: Processor, tmp_path: Path) -> None:
    assert shard(manifest, tmp_path / "packed", shard_bytes=30_000) == (10, 6)
    plain, packed = (data(m, processor) for m in (manifest, tmp_path / "packed/manifest.jsonl"))
    for step in range(plain.steps_per_epoch):
        for x, y in zip(plain.batch(step), packed.batch(step), strict=True):
            np.testing.assert_array_equal(x, y)
    with pytest.raises(InputError, match="exists and is not empty"):
        shard(manifest, tmp_path / "packed")
    (tmp_path / "packed" / "clips-00001.array_record").unlink()
    with pytest.raises(InputError, match=r"clips-00001\.array_record: no such shard"):
        for step in range(packed.steps_per_epoch):
            data(tmp_path / "packed/manifest.jsonl", processor).batch(step)
