"""`qa-jax generate`: answers, and one line with exit code 2 for bad audio."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qa_jax.cli import main
from tests.cli.runs import refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short.wav", "give no audio token"),
        ("long.wav", "over the model's 30 s; split the clip"),
        ("nan.wav", "samples are NaN"),
        ("text.wav", "not readable as audio"),
        ("absent.wav", "no such file; check the path"),
        (
            "samples.npy",
            "samples without their sampling rate; pass sampling_rate (--sampling-rate)",
        ),
    ],
)
def test_bad_audio(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, audio_files: Path, name: str, message: str
) -> None:
    path = audio_files / name
    error = refused(capsys, "generate", "--checkpoint", tiny_checkpoint, "--audio", path)
    assert str(path) in error and message in error


def test_bad_rate_and_counts(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, audio_files: Path, tmp_path: Path
) -> None:
    command = ["generate", "--checkpoint", tiny_checkpoint]
    error = refused(
        capsys, *command, "--audio", audio_files / "samples.npy", "--sampling-rate", "-1"
    )
    assert "sampling rate -1 is not a rate in Hz" in error
    error = refused(
        capsys, *command, "--raw", "--audio", audio_files / "0.wav", "--prompt", "<|AUDIO|> what"
    )
    assert "2 <|AUDIO|> placeholder(s) for 1 clip(s); write one" in error
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"messages": [{"role": "user", "content": "<|AUDIO|>"}]}\n')
    error = refused(capsys, "evaluate", "--checkpoint", tiny_checkpoint, manifest)
    assert f"{manifest}:1: message 1: text contains <|AUDIO|>" in error


def test_generate(capsys: pytest.CaptureFixture, tiny_checkpoint: Path, audio_files: Path) -> None:
    command = ["generate", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "4"]
    for more in (
        ["--audio", str(audio_files / "0.wav")],
        [
            "--audio",
            str(audio_files / "0.wav"),
            "--audio",
            str(audio_files / "1.wav"),
            "--prompt",
            "what",
        ],
        ["--raw", "--audio", str(audio_files / "0.wav"), "--prompt", "what"],
        ["--audio", str(audio_files / "samples.npy"), "--sampling-rate", "16000"],
        ["--audio", str(audio_files / "long.wav"), "--long-audio", "truncate"],
        ["--prompt", "what is three"],
    ):
        assert main([*command, *more]) == 0
        assert capsys.readouterr().out.endswith("\n")


def test_long_audio_is_truncated_with_a_warning(audio_files: Path, tiny_checkpoint: Path) -> None:
    """`python -m qa_jax.cli` is the same command, and warns in one line."""
    command = [sys.executable, "-m", "qa_jax.cli", "generate", "--checkpoint", str(tiny_checkpoint)]
    command += ["--audio", str(audio_files / "long.wav"), "--long-audio", "truncate"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "2"], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0
    assert "warning: " in done.stderr and "truncated from 31.0 s to 30 s" in done.stderr
