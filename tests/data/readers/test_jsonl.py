"""JSON lines of other projects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qa_jax.data import Processor, load_audio, read_manifest
from qa_jax.errors import InputError
from tests.data.readers.forms import TEXTS, check_same_batches, check_training, write_ours


def write_nemo(audio_files: Path, directory: Path) -> Path:
    """A manifest as NeMo's scripts write it: two whole files, and two parts of a long one."""
    clips = [soundfile.read(audio_files / f"{i}.wav", dtype="float32")[0] for i in range(4)]
    silence = np.zeros(1_600, np.float32)
    soundfile.write(directory / "long.flac", np.concatenate([silence, *clips[2:]]), 16_000)
    rows = []
    start = 0.1
    for i, (clip, text) in enumerate(zip(clips, TEXTS, strict=True)):
        row = {"audio_filepath": str(audio_files / f"{i}.wav"), "duration": clip.size / 16_000}
        if i >= 2:
            row |= {"audio_filepath": "long.flac", "offset": start}
            start += clip.size / 16_000
        rows.append({**row, "text": text, "lang": "en"})
    path = directory / "nemo.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_nemo(audio_files: Path, processor: Processor, tmp_path: Path) -> None:
    nemo = write_nemo(audio_files, tmp_path)
    check_same_batches(str(nemo), write_ours(audio_files, tmp_path), processor)
    assert read_manifest(nemo)[0].prompt.audio == [str(audio_files / "0.wav")]


@pytest.mark.usefixtures("one_device")
def test_training_on_nemo(audio_files: Path, settings: dict, tmp_path: Path) -> None:
    check_training(str(write_nemo(audio_files, tmp_path)), settings, tmp_path)


def test_parts_of_files(audio_files: Path, tmp_path: Path) -> None:
    """The short form's offset and duration; only what they name is decoded."""
    path = tmp_path / "m.jsonl"
    row = {"audio": str(audio_files / "0.wav"), "offset": 0.1, "duration": 0.2, "text": "seven"}
    path.write_text(json.dumps(row))
    (clip,) = read_manifest(path)[0].prompt.audio
    whole = load_audio(audio_files / "0.wav")
    np.testing.assert_array_equal(load_audio(clip), whole[1_600:4_800])
    path.write_text(json.dumps({**row, "duration": None}))
    (clip,) = read_manifest(path)[0].prompt.audio
    np.testing.assert_array_equal(load_audio(clip), whole[1_600:])
    path.write_text(json.dumps({**row, "offset": "1 s"}))
    with pytest.raises(InputError, match=r"m\.jsonl:1: offset: is '1 s'"):
        read_manifest(path)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"text": "one"}\n[1]\nno\n{"text": "two"}\n')
    skipped = []
    records = read_manifest(path, lambda error, source: skipped.append((source, str(error))))
    assert [r.source for r in records] == [f"{path}:1", f"{path}:4"]
    assert [source for source, _ in skipped] == [f"{path}:2", f"{path}:3"]
    assert "not a JSON object" in skipped[0][1] and "not JSON" in skipped[1][1]
