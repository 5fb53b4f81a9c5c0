"""Augmentation of clips as they are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qa_jax.config import SAMPLE_RATE, AugmentConfig, DataConfig
from qa_jax.data import Processor, TrainDataset
from qa_jax.data.augment import Augmentation
from qa_jax.errors import InputError

ALL = AugmentConfig(
    speed=(0.8, 1.25),
    pitch=(-2, 2),
    reverb_prob=0.7,
    background_prob=0.7,
    codec_prob=0.7,
    noise_prob=0.5,
)


def speech() -> np.ndarray:
    """A second of harmonics with a changing pitch and level."""
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(140 + 60 * np.sin(5 * t)) / SAMPLE_RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 9))
    return (0.1 * tone * (0.6 + 0.4 * np.sin(25 * t))).astype(np.float32)


def changed(config: AugmentConfig, draw: int = 0) -> np.ndarray:
    augmentation = Augmentation(config, seed=0)
    found = augmentation(speech(), augmentation.rng(0, draw), lambda rng: speech()[::-1])
    assert found.dtype == np.float32
    return found


def dataset(
    manifest: Path, processor: Processor, shards: int = 1, augment: AugmentConfig = ALL
) -> TrainDataset:
    config = DataConfig(train=str(manifest), buckets={0: 2, 104: 2, 204: 4, 404: 4}, max_tokens=400)
    return TrainDataset(config, processor, num_batch_shards=shards, augment=augment)


def test_a_draw_belongs_to_seed_epoch_and_record(manifest: Path, processor: Processor) -> None:
    data, again = dataset(manifest, processor), dataset(manifest, processor)
    steps = range(2 * data.steps_per_epoch)
    for step in steps:
        for x, y in zip(data.batch(step), again.batch(step), strict=True):
            np.testing.assert_array_equal(x, y)
    first, later = data.load(0, epoch=0), data.load(0, epoch=1)
    assert first is not None and later is not None
    assert first.waveforms[0].tobytes() != later.waveforms[0].tobytes()
    assert first.seeds[0].tolist() != later.seeds[0].tolist()
    other_seed = Augmentation(ALL, seed=1)
    assert other_seed.seeds(other_seed.rng(0, 0), 1)[0].tolist() != first.seeds[0].tolist()


def test_a_draw_does_not_depend_on_the_mesh(manifest: Path, processor: Processor) -> None:
    """Two batch shards hold what one holds, clip by clip."""
    one, two = dataset(manifest, processor), dataset(manifest, processor, shards=2)
    for step in range(one.steps_per_epoch):
        sets = [
            {x.tobytes() for x in batch.waveform[0]} if batch.waveform is not None else set()
            for batch in (one.batch(step), two.batch(step))
        ]
        empty = {x for x in sets[0] | sets[1] if not any(x)}
        assert sets[0] - empty == sets[1] - empty


def test_batches_have_room_for_the_slowest(manifest: Path, processor: Processor) -> None:
    data = dataset(manifest, processor, augment=AugmentConfig(speed=(0.5, 0.5)))
    plain = dataset(manifest, processor, augment=AugmentConfig())
    for slow, usual in zip(data.examples, plain.examples, strict=True):
        assert all(
            2 * a <= b <= 2 * a + 2
            for a, b in zip(usual.num_samples, slow.num_samples, strict=True)
        )
    loaded = data.load(0)
    assert loaded is not None and loaded.waveforms[0].size == 2 * plain.examples[0].num_samples[0]
    for step in range(data.steps_per_epoch):
        batch = data.batch(step)
        if batch.num_frames is not None:
            placeholders = np.count_nonzero(batch.tokens == processor.audio_token_id)
            assert placeholders == sum(((n - 1) // 2 + 1) // 2 for n in batch.num_frames[0])


def test_a_clip_of_30_s_is_not_slowed() -> None:
    augmentation = Augmentation(AugmentConfig(speed=(0.5, 0.5)), seed=0)
    lengths = np.array([480_000, 300_000, 400, 1_000])
    planned = augmentation.planned_samples(lengths)
    assert planned.tolist() == [480_000, 480_000, 801, 2_001]
    clip = np.full(300_000, 0.1, np.float32)
    assert augmentation(clip, augmentation.rng(0, 0), lambda rng: clip).size == 480_000


def test_off_changes_nothing(manifest: Path, processor: Processor) -> None:
    off, plain = AugmentConfig(), dataset(manifest, processor, augment=AugmentConfig())
    assert not off.reads_differently and not off.changes_step
    np.testing.assert_array_equal(changed(off), speech())
    batch = next(b for b in map(plain.batch, range(9)) if b.waveform is not None)
    assert batch.augment_seeds is None


@pytest.mark.parametrize("codec", ["mulaw", "gsm", "mp3", "opus"])
def test_codecs_keep_time(codec: str) -> None:
    x, y = speech(), changed(AugmentConfig(codec_prob=1, codecs=(codec,)))
    assert y.size == x.size and not np.array_equal(x, y)
    lag = np.argmax(np.correlate(y, x, "full")) - (x.size - 1)
    assert abs(lag) <= 1 and np.corrcoef(x, y)[0, 1] > 0.9


def test_rooms_and_backgrounds_are_at_their_level(tmp_path: Path) -> None:
    x = speech()
    reverb = changed(AugmentConfig(reverb_prob=1))
    np.testing.assert_allclose(np.std(reverb), np.std(x), rtol=1e-3)
    delayed = np.zeros(4_000)
    delayed[[100, 900]] = 1, 0.5
    soundfile.write(tmp_path / "room.wav", delayed, SAMPLE_RATE, subtype="FLOAT")
    echo = changed(AugmentConfig(reverb_prob=1, impulse_responses=str(tmp_path / "room.wav")))
    expected = x + 0.5 * np.pad(x, (800, 0))[: x.size]
    np.testing.assert_allclose(
        echo, expected * np.std(x) / np.std(expected), atol=1e-3 * np.abs(x).max()
    )
    hum = 0.3 * np.sin(np.arange(5_000) * 0.1)
    soundfile.write(tmp_path / "hum.wav", hum, SAMPLE_RATE)
    settings = {"background_prob": 1, "background_snr_db": (10, 10)}
    for background in ("", str(tmp_path / "hum.wav")):
        y = changed(AugmentConfig(**settings, background=background))
        ratio = 10 * np.log10(np.mean(x**2) / np.mean((y - x) ** 2))
        np.testing.assert_allclose(ratio, 10, atol=1e-3)


def test_pitch_rises_at_the_same_speed() -> None:
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    augmentation = Augmentation(AugmentConfig(pitch=(12, 12)), seed=0)
    tone = np.sin(2 * np.pi * 400 * t).astype(np.float32)
    y = augmentation(tone, augmentation.rng(0, 0), lambda rng: tone)
    assert y.size == tone.size
    assert abs(np.argmax(np.abs(np.fft.rfft(y))) - 800) < 8


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"speed": (1.2, 0.8)}, r"augment\.speed: 1\.2 is above 0\.8"),
        ({"speed": (0.1, 1.0)}, r"augment\.speed: \[0\.1, 1\.0\] is not within"),
        ({"noise_prob": 1.5}, r"augment\.noise_prob: 1\.5 is no probability"),
        ({"time_shift": -1.0}, r"augment\.time_shift: is negative"),
        ({"codecs": ("mp4",)}, r"augment\.codecs mp4: no such codec; did you mean mp3"),
        ({"codecs": (), "codec_prob": 0.5}, r"augment\.codecs: is empty"),
        ({"background": "none/*.wav"}, r"none/\*\.wav: matches no file"),
    ],
)
def test_unusable_settings(setting: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation(dataclasses.replace(AugmentConfig(), **setting), seed=0)
