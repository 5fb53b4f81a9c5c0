"""Hugging Face datasets, written by that project's library."""

from __future__ import annotations

from pathlib import Path

import pytest

from qa_jax.data import Processor, load_audio, read_manifest
from qa_jax.errors import InputError
from tests.data.readers.forms import TEXTS, check_same_batches, check_training, write_ours

datasets = pytest.importorskip("datasets", reason="datasets is not installed")


def write_parquet(audio_files: Path, directory: Path, text: str = "transcription") -> Path:
    """Two Parquet files as on the hub: an audio column with the files' bytes, and a text."""
    directory.mkdir()
    for s in range(2):
        rows = {
            "audio": [
                {"bytes": (audio_files / f"{i}.wav").read_bytes(), "path": f"{i}.wav"}
                for i in (2 * s, 2 * s + 1)
            ],
            text: list(TEXTS[2 * s : 2 * s + 2]),
            "speaker_id": [1, 2],
        }
        table = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
        table.to_parquet(str(directory / f"train-{s:05d}-of-00002.parquet"))
    return directory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_rows(audio_files: Path, processor: Processor, tmp_path: Path) -> None:
    directory = write_parquet(audio_files, tmp_path / "data")
    ours = write_ours(audio_files, tmp_path)
    check_same_batches(str(directory), ours, processor)
    one = directory / "train-00001-of-00002.parquet"
    records = read_manifest(one)
    assert [r.source for r in records] == [f"{one}:1", f"{one}:2"]
    assert records[1].raw["speaker_id"] == 2 and records[1].raw["text"] == TEXTS[3]
    saved = tmp_path / "saved"
    datasets.load_dataset("parquet", data_dir=str(directory), split="train").save_to_disk(saved)
    check_same_batches(str(saved), ours, processor)


@pytest.mark.usefixtures("one_device")
def test_training(audio_files: Path, settings: dict, tmp_path: Path) -> None:
    check_training(str(write_parquet(audio_files, tmp_path / "data")), settings, tmp_path)


def test_by_hub_id(audio_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_parquet(audio_files, tmp_path / "data")
    asked = []
    load = datasets.load_dataset

    def load_dataset(name: str, config: str | None = None, *, split: str, **more: object) -> object:
        if name == "parquet":
            return load(name, config, split=split, **more)
        asked.append((name, config, split))
        return load("parquet", data_dir=str(directory), split="train")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = read_manifest("hf://owner/speech:clean@train.100")
    assert len(records) == 4 and records[0].source == "hf://owner/speech:clean@train.100:1"
    read_manifest("hf://owner/speech")
    assert asked == [("owner/speech", "clean", "train.100"), ("owner/speech", None, "train")]


def test_messages_and_rows_without_a_clip(audio_files: Path, tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "seven"}
    wav = {"bytes": (audio_files / "0.wav").read_bytes(), "path": None}
    rows = {
        "messages": [
            [{"role": "user", "content": "<audio>what is three"}, message],
            [{"role": "user", "content": "what is three"}, message],
        ],
        "sound": [wav, None],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("sound", datasets.Audio(decode=False))
    table.to_parquet(str(tmp_path / "chat.parquet"))
    with_clip, without = read_manifest(tmp_path / "chat.parquet")
    assert len(with_clip.prompt.audio) == 1 and not without.prompt.audio
    assert load_audio(with_clip.prompt.audio[0]).size == load_audio(audio_files / "0.wav").size


def test_what_cannot_be_read_is_named(audio_files: Path, tmp_path: Path) -> None:
    directory = write_parquet(audio_files, tmp_path / "data", text="words")
    with pytest.raises(InputError, match="no column with a text; there are audio, words, speaker"):
        read_manifest(directory)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a directory without Parquet files"):
        read_manifest(tmp_path / "empty")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"broken\.parquet: not readable as a dataset"):
        read_manifest(tmp_path / "broken.parquet")
