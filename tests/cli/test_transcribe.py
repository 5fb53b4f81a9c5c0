"""`qa-jax transcribe`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax.cli import main
from tests.cli.runs import refused


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_directories_patterns_and_manifests(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, audio_files: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    manifest = audio_files / "list.jsonl"
    manifest.write_text('{"audio": "1.wav"}\n{"audio": "absent.wav"}\n')
    command = ["transcribe", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "4"]
    inputs = [audio_files / "0.wav", audio_files / "[12].wav", manifest, audio_files]
    assert main([*command, *map(str, inputs), "--output", str(output)]) == 0
    manifest.unlink()
    captured = capsys.readouterr()
    found = rows(output)
    names = [Path(row["audio"]).name for row in found]
    assert names[:5] == ["0.wav", "1.wav", "2.wav", "1.wav", "absent.wav"]
    assert names[5:] == sorted(p.name for p in audio_files.iterdir())
    texts = {row["audio"]: row.get("text") for row in found[:3]}
    assert found[3]["text"] == texts[str(audio_files / "1.wav")]
    wrong = {name for name, row in zip(names, found, strict=True) if "error" in row}
    assert wrong == {"absent.wav", "long.wav", "short.wav", "nan.wav", "text.wav", "samples.npy"}
    assert f"{len(found)} answers in {output}" in captured.out
    assert "6 of them could not be given" in captured.err


def test_parts_are_the_whole(tiny_checkpoint: Path, audio_files: Path, tmp_path: Path) -> None:
    command = ["transcribe", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "4"]
    command += [str(audio_files / "?.wav")]
    assert main([*command, "--output", str(tmp_path / "all.jsonl")]) == 0
    parts = []
    for i in range(1, 5):
        part = tmp_path / f"{i}.jsonl"
        assert main([*command, "--output", str(part), "--part", f"{i}/4"]) == 0
        parts += rows(part)
    assert parts == rows(tmp_path / "all.jsonl") and len(parts) == 6


def test_wrong_inputs(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, audio_files: Path, tmp_path: Path
) -> None:
    command = ["transcribe", "--checkpoint", tiny_checkpoint, "--output", tmp_path / "out.jsonl"]
    empty, manifest = tmp_path / "empty", tmp_path / "m.jsonl"
    empty.mkdir()
    manifest.write_text('{"text": "x"}\n')
    for arguments, message in (
        ([empty], "contains no audio files"),
        ([tmp_path / "*.wav"], "matches no file"),
        ([manifest], "m.jsonl:1: has no audio path"),
        ([audio_files / "0.wav", "--part", "3/2"], "write I/N"),
    ):
        assert message in refused(capsys, *command, *arguments)
    assert not (tmp_path / "out.jsonl").exists()
