"""`qa-jax chat`."""

from __future__ import annotations

from pathlib import Path

import pytest

from qa_jax.cli import main


def test_chat(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Path,
    audio_files: Path,
) -> None:
    lines = iter(
        [
            f":audio {audio_files / '0.wav'}",
            "",
            "what",
            f":audio {audio_files / 'nan.wav'}",
            ":reset",
            ":quit",
        ]
    )
    asked = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return next(lines)

    monkeypatch.setattr("builtins.input", answer)
    assert main(["chat", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "3"]) == 0
    assert asked[:3] == ["you> ", "instruction> ", "you> "]
    assert "nan.wav: 1 samples are NaN" in capsys.readouterr().out
