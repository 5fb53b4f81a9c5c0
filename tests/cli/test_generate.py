"""`qa-jax generate`: answers, and one line with exit code 2 for bad audio."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qa_jax
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


def test_the_prompt_and_the_system_message_are_asked(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, audio_files: Path, prompts: list[str]
) -> None:
    clip = audio_files / "0.wav"
    command = ["generate", "--checkpoint", str(tiny_checkpoint), "--audio", str(clip)]
    command += ["--max-new-tokens", "12"]
    model = qa_jax.load(tiny_checkpoint)
    for system, text in (("", ""), ("", "what is three"), ("turn on the light", "what")):
        arguments = ["--system", system] if system else []
        arguments += ["--prompt", text] if text else []
        assert main([*command, *arguments]) == 0
        out = capsys.readouterr().out
        parts = [{"type": "audio", "audio": str(clip)}, {"type": "text", "text": text}]
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": parts if text else parts[:1]})
        assert out == model.chat(messages, max_new_tokens=12) + "\n"
        assert prompts[-1] == prompts[-2]
        assert (system or "You are a helpful assistant.") in prompts[-1]
        assert text in prompts[-1] and "Audio 1: " in prompts[-1]


def test_settings_without_effect_are_told(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path
) -> None:
    command = ["generate", "--checkpoint", str(tiny_checkpoint), "--prompt", "what"]
    command += ["--max-new-tokens", "2", "--temperature", "0", "--top-p", "0.5", "--seed", "3"]
    assert main(command) == 0
    error = capsys.readouterr().err
    assert "warning: top_p has no effect at temperature 0" in error
    assert "warning: seed has no effect at temperature 0" in error


def test_a_mesh(capsys: pytest.CaptureFixture, tiny_checkpoint: Path, audio_files: Path) -> None:
    command = ["generate", "--checkpoint", str(tiny_checkpoint), "--prompt", "what is three"]
    command += ["--max-new-tokens", "8"]
    assert main(command) == 0
    alone = capsys.readouterr().out
    assert main([*command, "--mesh", "tensor=2,data=4"]) == 0
    assert capsys.readouterr().out == alone
    error = refused(capsys, *command, "--mesh", "tensors=2")
    assert "write data=N,fsdp=N,tensor=N" in error


def test_a_manifest_without_answers(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, audio_files: Path, tmp_path: Path
) -> None:
    manifest, output = tmp_path / "m.jsonl", tmp_path / "out.jsonl"
    user = {"role": "user", "content": "what is three"}
    manifest.write_text(json.dumps({"messages": [user]}) + "\n")
    command = ["generate", "--checkpoint", str(tiny_checkpoint), "--manifest", str(manifest)]
    error = refused(capsys, *command)
    assert "given without --output" in error
    for _ in range(2):
        assert main([*command, "--output", str(output), "--max-new-tokens", "5"]) == 0
        assert "1 answers in" in capsys.readouterr().out
    assert json.loads(output.read_text())["source"] == f"{manifest}:1"
    error = refused(capsys, *command, "--output", output, "--max-new-tokens", "6")
    assert "answered with other settings" in error


def test_parts_of_a_manifest(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.jsonl"
    users = [{"role": "user", "content": f"what is {n}"} for n in ("one", "two", "three")]
    manifest.write_text("".join(json.dumps({"messages": [user]}) + "\n" for user in users))
    command = ["generate", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "5"]
    sources = []
    for part in ("1/2", "2/2"):
        output = tmp_path / f"{part[0]}.jsonl"
        given = ["--manifest", str(manifest), "--output", str(output), "--part", part]
        assert main([*command, *given, "--batch-size", "2"]) == 0
        sources += [json.loads(line)["source"] for line in output.read_text().splitlines()]
    assert sources == [f"{manifest}:{line}" for line in (1, 2, 3)]
    error = refused(capsys, *command, "--prompt", "what is one", "--part", "1/2")
    assert "--part, --batch-size: without --manifest" in error
