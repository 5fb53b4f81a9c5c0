"""Windows tile a waveform, and end where it is quiet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qa_jax.data.chat import PLACEHOLDER
from qa_jax.data.windows import WindowSplitter, join_texts, split_clips, split_windows

RATE = 16_000


def speech(seconds: float, seed: int) -> np.ndarray:
    """Noise with pauses of other lengths in every recording."""
    rng = np.random.default_rng(seed)
    size = int(seconds * RATE)
    is_loud = np.sin(np.arange(size // 100 + 1) / 160 * rng.uniform(0.3, 3)) > -0.6
    return np.repeat(rng.standard_normal(is_loud.size) * is_loud, 100)[:size].astype(np.float32)


LENGTHS = [*np.random.default_rng(0).uniform(1, 600, 195), 29.99, 30.0, 30.001, 31.4, 3 * 3600]


def test_windows_tile_200_lengths() -> None:
    for i, seconds in enumerate(LENGTHS):
        waveform = speech(seconds, i)
        most = 30.0 if i % 2 else 10.0
        windows = split_windows(waveform, most)
        assert windows[0][0] == 0
        assert windows[-1][1] == waveform.size
        assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))
        assert all(0.3 <= (last - first) / RATE <= most for first, last in windows)


def test_cuts_are_in_pauses() -> None:
    for i in range(20):
        waveform = speech(100, i)
        cuts = [first for first, _ in split_windows(waveform)[1:]]
        assert all(not waveform[cut - 800 : cut + 800].any() for cut in cuts)


def test_speech_without_a_pause_is_cut_where_it_is_quietest() -> None:
    rng = np.random.default_rng(0)
    waveform = rng.standard_normal(50 * RATE).astype(np.float32)
    waveform[22 * RATE : 22 * RATE + 8000] *= 0.5
    (_, cut), _ = split_windows(waveform)
    assert 22 * RATE <= cut <= 22 * RATE + 8000


def test_a_cut_is_in_the_middle_of_a_pause() -> None:
    waveform = np.random.default_rng(0).standard_normal(50 * RATE).astype(np.float32)
    waveform[20 * RATE : 22 * RATE] = 0
    (_, cut), _ = split_windows(waveform)
    assert abs(cut - 21 * RATE) < RATE / 10


def test_a_place_is_as_loud_as_what_follows() -> None:
    """The end of the longest window is judged by the speech after it, too."""
    waveform = np.random.default_rng(0).standard_normal(50 * RATE).astype(np.float32)
    waveform[20 * RATE : 20 * RATE + 4800] *= 0.6
    waveform[30 * RATE - 2400 : 30 * RATE] *= 0.5
    (_, cut), _ = split_windows(waveform)
    assert 20 * RATE <= cut <= 20 * RATE + 4800


def test_pieces_of_any_size_give_the_same_windows() -> None:
    for i in range(20):
        waveform = speech(45 + 7 * i, i)
        splitter, windows, at = WindowSplitter(), list[tuple[int, int]](), 0
        rng = np.random.default_rng(i)
        while at < waveform.size:
            count = int(rng.integers(1, 60_000))
            windows += splitter.push(waveform[at : at + count])
            assert all(last <= at + count for _, last in windows)
            at += count
        assert windows + splitter.finish() == split_windows(waveform)


def test_silence_alone() -> None:
    windows = split_windows(np.zeros(100 * RATE, np.float32))
    assert windows[-1][1] == 100 * RATE


def test_long_clips_of_a_prompt_become_several() -> None:
    short, long = speech(2, 0), speech(70, 1)
    text = f"system\nAudio 1: {PLACEHOLDER}\nAudio 2: {PLACEHOLDER}\nwhat? Audio 3: no"
    changed, clips = split_clips(text, [long, short])
    assert len(clips) == 4
    lines = "".join(f"Audio {i}: {PLACEHOLDER}\n" for i in range(1, 5))
    assert changed == f"system\n{lines}what? Audio 3: no"
    np.testing.assert_array_equal(np.concatenate(clips[:3]), long)
    assert split_clips(f"{PLACEHOLDER}say:", [long])[0] == f"{PLACEHOLDER * 3}say:"
    assert split_clips("<|AUDIO|>say:", [long])[0] == "<|AUDIO|>" * 3 + "say:"


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["hello there.", " and then", "", "more "], "hello there. and then more"),
        (["你好，", "世界。", "再见"], "你好，世界。再见"),
        (["こんにちは", "世界"], "こんにちは世界"),
        (["안녕하세요", "세계"], "안녕하세요 세계"),
        (["word", "你好"], "word 你好"),
        ([], ""),
    ],
)
def test_texts_are_joined_as_they_are_written(texts: list[str], joined: str) -> None:
    assert join_texts(texts) == joined
