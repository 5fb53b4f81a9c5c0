"""WebDataset shards, written by that project's library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax.data import Processor, clip_num_samples, load_audio, read_manifest
from qa_jax.data.readers.webdataset import find_shards
from qa_jax.data.shard import shard
from qa_jax.errors import InputError
from tests.data.readers.forms import TEXTS, check_same_batches, check_training, write_ours

webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")


def write_shards(audio_files: Path, directory: Path) -> str:
    """Two shards; a text in .txt, in .json, and as messages."""
    directory.mkdir()
    for s in range(2):
        with webdataset.TarWriter(str(directory / f"{s:03d}.tar")) as writer:
            for i in (2 * s, 2 * s + 1):
                sample = {"__key__": f"dir/{i:04d}", "wav": (audio_files / f"{i}.wav").read_bytes()}
                if i % 2:
                    writer.write({**sample, "json": {"transcription": TEXTS[i], "speaker": 3}})
                else:
                    writer.write({**sample, "txt": TEXTS[i], "cls": 1})
    return str(directory / "{000..001}.tar")


def test_samples(audio_files: Path, processor: Processor, tmp_path: Path) -> None:
    shards = write_shards(audio_files, tmp_path / "shards")
    ours = write_ours(audio_files, tmp_path)
    check_same_batches(shards, ours, processor)
    check_same_batches(str(tmp_path / "shards" / "*.tar"), ours, processor)
    records = read_manifest(shards)
    assert [r.source for r in records][1:3] == [
        f"{tmp_path}/shards/000.tar:2",
        f"{tmp_path}/shards/001.tar:1",
    ]
    (clip,) = records[0].prompt.audio
    assert str(clip) == f"{tmp_path}/shards/000.tar/dir/0000.wav"
    assert clip_num_samples(clip) == load_audio(audio_files / "0.wav").size
    assert shard(shards, tmp_path / "packed", audio_format="keep")[:2] == (4, 1)
    check_same_batches(str(tmp_path / "packed" / "manifest.jsonl"), ours, processor)


@pytest.mark.usefixtures("one_device")
def test_training(audio_files: Path, settings: dict, tmp_path: Path) -> None:
    check_training(write_shards(audio_files, tmp_path / "shards"), settings, tmp_path)


def test_messages(audio_files: Path, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "<audio>what is three"},
        {"role": "assistant", "content": "seven"},
    ]
    with webdataset.TarWriter(str(tmp_path / "chat.tar")) as writer:
        wav = (audio_files / "0.wav").read_bytes()
        writer.write({"__key__": "a", "wav": wav, "json": {"messages": messages}})
    (record,) = read_manifest(tmp_path / "chat.tar")
    assert "<|AUDIO|>" in record.prompt.text and len(record.prompt.audio) == 1


def test_what_cannot_be_read_is_named(audio_files: Path, tmp_path: Path) -> None:
    write_shards(audio_files, tmp_path / "shards")
    with pytest.raises(InputError, match=r"002\.tar: no such shard"):
        find_shards(str(tmp_path / "shards" / "{000..002}.tar"))
    with pytest.raises(InputError, match=r"none\*\.tar: no such shard"):
        read_manifest(tmp_path / "none*.tar")
    with pytest.raises(InputError, match="gs://a/b.tar: shards in object storage"):
        read_manifest("gs://a/b.tar")
    (tmp_path / "broken.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(InputError, match=r"broken\.tar: not readable as a tar file"):
        read_manifest(tmp_path / "broken.tar")
    cut = tmp_path / "shards" / "000.tar"
    records = read_manifest(cut)
    cut.write_bytes(cut.read_bytes()[:9_000])
    with pytest.raises(InputError, match=r"000\.tar/dir/0000\.wav: is cut off"):
        load_audio(records[0].prompt.audio[0])
    with webdataset.TarWriter(str(tmp_path / "no_text.tar")) as writer:
        wav = (audio_files / "0.wav").read_bytes()
        writer.write({"__key__": "a", "wav": wav, "json": {"speaker": 3}})
        writer.write({"__key__": "b", "wav": wav, "json": json.dumps([1]).encode()})
    skipped: dict[str, str] = {}
    with pytest.raises(InputError, match="contains no records"):
        read_manifest(tmp_path / "no_text.tar", lambda e, source: skipped.update({source: str(e)}))
    assert [s.rpartition(":")[2] for s in skipped] == ["1", "2"]
    assert "neither messages nor text" in skipped[f"{tmp_path}/no_text.tar:1"]
    assert "not a JSON object" in skipped[f"{tmp_path}/no_text.tar:2"]
