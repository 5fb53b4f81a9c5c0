"""Batches: every record once an epoch, in an order that depends on the seed alone."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from qa_jax.config import DataConfig, num_audio_tokens
from qa_jax.data import Processor, TrainDataset, examples
from qa_jax.errors import InputError
from qa_jax.train.run import prepare
from tests.data.datasets import BUCKETS, make_dataset
from tests.runs import dpo_config

pytestmark = pytest.mark.usefixtures("one_device")


def test_epoch_contains_every_record_once(manifest: Path, processor: Processor) -> None:
    loader = make_dataset(manifest, processor)
    for epoch in range(2):
        steps = range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch)
        seen = [source for step in steps for source in loader.sources(step)]
        assert sorted(seen) == sorted(e.record.source for e in loader.examples)
    orders = [[loader.sources(e * loader.steps_per_epoch + i) for i in range(4)] for e in (0, 1)]
    assert orders[0] != orders[1]


def test_batches_contain_the_records(manifest: Path, processor: Processor) -> None:
    loader = make_dataset(manifest, processor)
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


def test_loss_weights_of_messages(tmp_path: Path, processor: Processor) -> None:
    turns = [
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "three", "weight": 0.25},
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "four", "loss": False},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    loss = TrainDataset(DataConfig(train=str(path), buckets={0: 1}), processor).batch(0)
    assert set(loss.loss_weights.ravel()) == {0.0, 0.25}
    path.write_text(json.dumps({"messages": turns[2:]}))
    with pytest.raises(InputError, match="no assistant turn to train on"):
        TrainDataset(DataConfig(train=str(path), buckets={0: 1}), processor)


def test_iteration_resumes_exactly(manifest: Path, processor: Processor) -> None:
    straight = make_dataset(manifest, processor).iterate()
    batches = [next(straight) for _ in range(9)]
    first = make_dataset(manifest, processor, num_threads=1).iterate()
    for _ in range(4):
        next(first)
    second = make_dataset(manifest, processor, num_threads=4).iterate()
    second.set_state(json.loads(json.dumps(first.get_state())))
    for expected in batches[4:]:
        for a, b in zip(next(second), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_batch_shards_contain_the_clips_of_their_rows(manifest: Path, processor: Processor) -> None:
    loader = make_dataset(manifest, processor, num_batch_shards=2)
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(step)
        if batch.num_frames is None:
            continue
        for tokens, frames in zip(
            np.split(batch.tokens[0], 2), np.split(batch.num_frames[0], 2), strict=True
        ):
            assert num_audio_tokens(frames).sum() == (tokens == processor.audio_token_id).sum()


def test_accumulated_batches_contain_the_same_rows(manifest: Path, processor: Processor) -> None:
    loader = make_dataset(manifest, processor, grad_accum_steps=2)
    batch = loader.batch(0)
    assert batch.tokens.shape[0] == 2
    epoch = [loader.batch(i) for i in range(loader.steps_per_epoch)]
    assert sum((b.loss_weights.max(axis=-1) > 0).sum() for b in epoch) == 12


def test_bad_buckets_are_refused(manifest: Path, processor: Processor) -> None:
    for buckets, message in (
        ({102: 2}, "multiple of 4"),
        ({104: 3}, "rows a multiple of 2"),
        ({104: 0}, "rows a multiple of 2"),
        ({0: 2, 44: 2}, "the largest is 44"),
    ):
        with pytest.raises(InputError, match=message):
            make_dataset(manifest, processor, buckets=buckets, num_batch_shards=2)


def test_wrong_audio_header_is_refused(
    manifest: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "clip_num_samples", lambda *_: 4_000)
    loader = make_dataset(manifest, processor)
    with pytest.raises(InputError, match=r"manifest\.jsonl:.*more than its header says.*wav"):
        for step in range(loader.steps_per_epoch):
            loader.batch(step)


def test_packed_rows_contain_every_record_once(manifest: Path, processor: Processor) -> None:
    loader = make_dataset(manifest, processor, packed_length=300)
    apart = make_dataset(manifest, processor)
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
    assert max(np.diff(rows.starts).max() for rows in loader.epochs.rows.values()) > 1


def test_mixtures(manifest: Path, processor: Processor, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(4)))
    config = DataConfig(train={str(manifest): 1, str(other): 2.5}, buckets=BUCKETS)
    loader = TrainDataset(config, processor)
    seen = collections.Counter(e.record.source for e in loader.examples)
    assert seen[f"{manifest}:1"] == 1
    assert [seen[f"{other}:{i}"] for i in range(1, 5)] == [3, 2, 3, 2]
    half = TrainDataset(dataclasses.replace(config, train={str(other): 0.5}), processor)
    assert [e.record.source for e in half.examples] == [f"{other}:1", f"{other}:3"]
    with pytest.raises(InputError, match=r"other\.jsonl: 0 repeats; give a number above 0"):
        TrainDataset(dataclasses.replace(config, train={str(other): 0}), processor)


def test_temperature(manifest: Path, processor: Processor, tmp_path: Path) -> None:
    """Four records beside twelve: with T = 2 as often as the root of 12 / 4."""
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(4)))
    train = {str(manifest): 1.0, str(other): 1.0}
    for temperature, expected in ((1.0, 4), (2.0, round(4 * 3**0.5)), (1e9, 12)):
        config = DataConfig(train=train, buckets=BUCKETS, temperature=temperature)
        found = [e.record.source for e in TrainDataset(config, processor).examples]
        assert sum(source.startswith(f"{other}:") for source in found) == expected
        assert len(found) == 12 + expected
    with pytest.raises(InputError, match=r"data\.temperature: is 0\.5"):
        TrainDataset(DataConfig(train=train, buckets=BUCKETS, temperature=0.5), processor)


def test_sources_of_a_mixture(manifest: Path, processor: Processor, tmp_path: Path) -> None:
    """Every token of a record is marked by its manifest, also in packed rows."""
    other = tmp_path / "deeper" / "manifest.jsonl"
    other.parent.mkdir()
    other.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(4)))
    config = DataConfig(train={str(manifest): 1, str(other): 2}, buckets={204: 4})
    assert config.source_names() == [f"{tmp_path.name}/manifest", "deeper/manifest"]
    counts = []
    for packed_length in (0, 300):
        loader = TrainDataset(dataclasses.replace(config, packed_length=packed_length), processor)
        found = collections.Counter()
        for step in range(loader.steps_per_epoch):
            batch = loader.batch(step)
            assert batch.source_ids is not None
            np.testing.assert_array_equal(batch.source_ids == -1, batch.segment_ids == 0)
            found.update(batch.source_ids.ravel().tolist())
        counts.append({0: found[0], 1: found[1]})
    numbers = sum(e.num_tokens for e in loader.examples if "number" in str(e.record.raw))
    assert counts[0] == counts[1] and counts[0][1] == numbers
    assert DataConfig(train=str(manifest)).source_names() == []


@pytest.mark.parametrize("packed_length", [0, 300])
def test_a_source_that_ends(
    manifest: Path, processor: Processor, tmp_path: Path, packed_length: int
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(5)))
    config = DataConfig(
        train={str(manifest): 1, str(other): 2},
        source_epochs={str(other): 2},
        buckets={204: 1},
        packed_length=packed_length,
    )
    loader, epoch, seen = TrainDataset(config, processor), 0, collections.Counter[str]()
    lengths, shapes = [], set()
    for step in range(5 * loader.steps_per_epoch):
        number, index = loader.epochs.locate(step)
        if index == 0 and step:
            assert number == epoch + 1
            times = {f"{manifest}:{i}": 1 for i in range(1, 13)}
            times |= {f"{other}:{i}": 2 for i in range(1, 6)} if epoch < 2 else {}
            assert seen == times
            epoch, seen = number, collections.Counter()
            lengths.append(step)
        seen.update(loader.sources(step))
        shapes.add(loader.batch(step).tokens.shape)
    sizes = np.diff([0, *lengths])
    assert epoch >= 4 and sizes[0] == sizes[1] > sizes[2] == sizes[-1] and len(shapes) == 1
    # A state is the number of the next batch, also after an end.
    resumed, straight = loader.iterate(), loader.iterate()
    for _ in range(lengths[2]):
        expected = next(straight)
    resumed.set_state({**resumed.get_state(), **straight.get_state()})
    np.testing.assert_array_equal(next(resumed).tokens, next(straight).tokens)
    assert expected.tokens.shape in shapes


def test_sources_that_cannot_end(manifest: Path, processor: Processor) -> None:
    for ends, message in (
        ({"absent.jsonl": 2}, r"source_epochs absent\.jsonl: .*name one of them"),
        ({str(manifest): 0}, r"0 epochs of a manifest"),
        ({str(manifest): 2}, r"ends all manifests"),
    ):
        with pytest.raises(InputError, match=message):
            make_dataset(manifest, processor, source_epochs=ends)


def test_max_bad_records(audio_files: Path, processor: Processor) -> None:
    path = audio_files / "some_bad.jsonl"
    bad = ['{"audio": "absent.wav", "text": "x"}', "{", '{"audio": "nan.wav", "text": "x"}']
    path.write_text("\n".join([*['{"text": "fine"}'] * 5, *bad]) + "\n")
    with pytest.warns(UserWarning, match="skipped: ") as warned:
        loader = make_dataset(path, processor, max_bad_records=3)
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
        make_dataset(path, processor, max_bad_records=1)


def test_each_process_reads_its_own_shards(manifest: Path, processor: Processor) -> None:
    loader = make_dataset(manifest, processor, num_batch_shards=2, grad_accum_steps=2)
    for step in range(loader.steps_per_epoch):
        whole = loader.batch(step)
        for group in range(2):
            part = loader.batch(step, [group])
            for x, y in zip(part, whole, strict=True):
                if y is not None:
                    half = y.shape[1] // 2
                    np.testing.assert_array_equal(x, y[:, group * half : (group + 1) * half])


@pytest.mark.parametrize("threads", [0, 1, 7])
def test_batches_do_not_depend_on_threads(
    manifest: Path, processor: Processor, threads: int
) -> None:
    loader = make_dataset(manifest, processor, packed_length=300)
    stream = make_dataset(manifest, processor, packed_length=300, num_threads=threads).iterate()
    for step in range(6):
        for x, y in zip(next(stream), loader.batch(step), strict=True):
            np.testing.assert_array_equal(x, y)


def test_pairs_share_their_clips(settings: dict, pairs: Path, tiny_checkpoint: Path) -> None:
    run = prepare(dpo_config(settings, pairs, tiny_checkpoint, "--data.buckets={204: 8}"))
    batch = run.data.batch(0)
    assert batch.tokens.shape[1] == 16 and int((batch.num_frames > 0).sum()) == 7
    audio = run.processor.audio_token_id
    better, worse = np.split(batch.tokens[0], 2)
    assert [(row == audio).sum() for row in better] == [(row == audio).sum() for row in worse]
    # The prompts are the same, and no prompt's token counts.
    weights = np.split(batch.loss_weights[0], 2)
    for i in range(6):
        first = int(np.argmax(weights[0][i] > 0))
        np.testing.assert_array_equal(better[i, :first], worse[i, :first])
        assert first == int(np.argmax(weights[1][i] > 0)) > 0
    assert (batch.loss_weights[0][[6, 7, 14, 15]] == 0).all()
