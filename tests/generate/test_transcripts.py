"""Transcripts of long clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import srt
import webvtt

import qa_jax
from qa_jax.data.questions import audio_questions
from qa_jax.errors import InputError
from qa_jax.generate import Answer, Clip, Request, requests_of_batch
from qa_jax.generate.transcripts import Segment, to_srt, to_vtt
from tests.conftest import make_waveform

CLIP = (make_waveform(5.0, 3), 16_000)


def test_each_window_is_answered_as_its_own_clip(model: qa_jax.LoadedModel) -> None:
    found = model.transcribe(CLIP, "What?", window_seconds=2.0, max_new_tokens=6)
    assert len(found.segments) > 2
    for segment in found.segments:
        part = CLIP[0][int(segment.start * 16_000) : int(segment.end * 16_000)]
        content = [{"type": "audio", "audio": (part, 16_000)}, {"type": "text", "text": "What?"}]
        alone = model.chat([{"role": "user", "content": content}], max_new_tokens=6)
        assert segment.text == alone.strip()
    assert found.segments[-1].end == 5.0


def test_a_clip_is_what_a_batch_makes_of_it(model: qa_jax.LoadedModel) -> None:
    for size in (321, 16_000, 16_001, 47_999):
        batch = model.require_processor()(
            "<|audio_bos|><|AUDIO|><|audio_eos|>", (CLIP[0][:size], 16_000)
        )
        expected = requests_of_batch(batch, model.config, model.default_sampling)[0].clips[0]
        assert Clip.of(CLIP[0][:size], model.config).digest() == expected.digest()


def test_rows_of_long_clips_have_segments(model: qa_jax.LoadedModel, tmp_path: Path) -> None:
    for name, seconds in (("long", 5.0), ("short", 1.0)):
        soundfile.write(tmp_path / f"{name}.wav", make_waveform(seconds, 3), 16_000)
    questions = audio_questions([str(tmp_path)], "Transcribe.")
    output = tmp_path / "out.jsonl"
    settings = {"window_seconds": 2.0, "max_new_tokens": 6}
    model.answer_questions(questions, output, **settings)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    whole = model.transcribe(tmp_path / "long.wav", window_seconds=2.0, max_new_tokens=6)
    assert rows[0]["text"] == whole.text
    assert [(s["start"], s["end"], s["text"]) for s in rows[0]["segments"]] == [
        (s.start, s.end, s.text) for s in whole.segments
    ]
    assert len(rows[1]["segments"]) == 1
    complete = output.read_bytes()
    output.write_bytes(complete[: complete.index(b"\n") + 20])
    model.answer_questions(questions, output, **settings)
    assert output.read_bytes() == complete
    with pytest.raises(InputError, match="was answered with other settings"):
        model.answer_questions(questions, output, window_seconds=1.0, max_new_tokens=6)


def test_a_question_about_a_long_clip(tiny_checkpoint: Path) -> None:
    """Several clips of one prompt, as far as the context goes."""
    model = qa_jax.load(tiny_checkpoint, long_audio="window", capacity=1024, num_slots=1)
    long = (np.tile(CLIP[0], 7), 16_000)  # 35 s
    content = [{"type": "audio", "audio": long}, {"type": "text", "text": "What?"}]
    batch = model.require_processor().apply_chat_template([{"role": "user", "content": content}])
    assert len(batch["audio"]) == 2
    assert batch["audio_lengths"].sum() == long[0].size
    assert model.chat([{"role": "user", "content": content}], max_new_tokens=4)
    with pytest.raises(InputError, match=r"it takes \d+ positions, .* 1024"):
        model.chat([{"role": "user", "content": content[:1] * 3}], max_new_tokens=4)


def answer(model: qa_jax.LoadedModel) -> Answer:
    request = Request(np.array([9]), [], model.default_sampling, model.config)
    return Answer(request)


def test_subtitles(model: qa_jax.LoadedModel) -> None:
    texts = [(0.0, 1.5, "one\n\n<two> & three"), (1.5, 2.0, ""), (3599.9996, 3723.25, "four")]
    segments = [Segment(*t, answer(model)) for t in texts]
    assert to_srt(segments) == (
        "1\n00:00:00,000 --> 00:00:01,500\none\n<two> & three\n\n"
        "2\n01:00:00,000 --> 01:02:03,250\nfour\n\n"
    )
    cues = list(srt.parse(to_srt(segments)))
    assert [(c.start.total_seconds(), c.end.total_seconds()) for c in cues] == [
        (0.0, 1.5),
        (3600.0, 3723.25),
    ]
    captions = webvtt.from_string(to_vtt(segments))
    assert [c.start for c in captions] == ["00:00:00.000", "01:00:00.000"]
    assert to_vtt(segments) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none\n&lt;two&gt; &amp; three\n\n"
        "01:00:00.000 --> 01:02:03.250\nfour\n"
    )
