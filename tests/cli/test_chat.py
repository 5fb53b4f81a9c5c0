"""`qa-jax chat`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax.cli import main
from qa_jax.data import read_manifest


class Terminal:
    """Types lines, and keeps what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, checkpoint: Path, *arguments: str) -> None:
        self.asked: list[str] = []
        self._monkeypatch = monkeypatch
        self._command = ["chat", "--checkpoint", str(checkpoint), "--max-new-tokens", "6"]
        self._command += arguments

    def type(self, *lines: object) -> None:
        remaining = iter([str(line) for line in lines])

        def answer(prompt: str) -> str:
            self.asked.append(prompt)
            try:
                return next(remaining)
            except StopIteration:
                raise EOFError from None

        self._monkeypatch.setattr("builtins.input", answer)
        assert main(self._command) == 0


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Terminal:
    return Terminal(monkeypatch, tiny_checkpoint)


def messages(path: Path) -> list[dict]:
    return json.loads(path.read_text().splitlines()[-1])["messages"]


def test_turns(
    capsys: pytest.CaptureFixture, terminal: Terminal, audio_files: Path, tmp_path: Path
) -> None:
    saved, spaced = tmp_path / "saved.jsonl", tmp_path / "my file.wav"
    spaced.write_bytes((audio_files / "1.wav").read_bytes())
    terminal.type(
        f":audio {audio_files / '0.wav'}",
        "",
        f":audio {spaced}",
        "what is three",
        f":audio {audio_files / 'nan.wav'}",
        ":retry",
        f":save {saved}",
        ":quit",
    )
    assert terminal.asked[:4] == ["you> ", "instruction> ", "you> ", "instruction> "]
    out = capsys.readouterr().out
    assert "nan.wav: 1 samples are NaN" in out
    found = messages(saved)
    assert [m["role"] for m in found] == ["user", "assistant"] * 2
    assert found[0]["content"] == [{"type": "audio", "audio": str(audio_files / "0.wav")}]
    assert [p["type"] for p in found[2]["content"]] == ["audio", "text"]
    # Saved conversations are manifests; greedy answers are the same when they are given again.
    assert len(read_manifest(saved)) == 1
    assert out.splitlines().count(found[3]["content"]) >= 2


def test_the_answers_are_part_of_the_conversation(
    terminal: Terminal, tmp_path: Path, prompts: list[str]
) -> None:
    """What was answered is in the next turn's prompt."""
    saved = tmp_path / "saved.jsonl"
    terminal.type("what is three", "turn on", f":save {saved}")
    found = messages(saved)
    assert found[1]["content"]
    assert f"assistant\n{found[1]['content']}" in prompts[1] and "turn on" in prompts[1]


def test_undo_reset_and_system(terminal: Terminal, tmp_path: Path) -> None:
    saved = tmp_path / "saved.jsonl"
    save = f":save {saved}"
    terminal.type(
        "one", "two", ":undo", save, ":reset", "three", save, ":system Be brief.", "x", save
    )
    first, second, third = [json.loads(x)["messages"] for x in saved.read_text().splitlines()]
    assert [m["content"][0]["text"] for m in first[::2]] == ["one"]
    assert [m["content"][0]["text"] for m in second[::2]] == ["three"]
    assert third[0] == {"role": "system", "content": "Be brief."} and len(third) == 3


def test_wrong_commands(capsys: pytest.CaptureFixture, terminal: Terminal) -> None:
    terminal.type(":retry", ":load x", ":audio", ":audio 'x", ":save", ":record x", ":help")
    out = capsys.readouterr().out
    for text in (
        "error: :retry: there is no turn yet",
        "error: :load: no such command; :help lists them",
        "error: :audio: names no file",
        "error: :audio: No closing quotation",
        "error: :save: names no file",
        "error: :record: ",
    ):
        assert text in out
    assert out.count(":undo") == 2


def test_checkpoints_without_a_tokenizer(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from qa_jax import checkpoint

    config = checkpoint.read_model_config(tiny_checkpoint)
    checkpoint.create(tmp_path / "bare", config, None)
    checkpoint.save_params(tmp_path / "bare", checkpoint.load_weights(tiny_checkpoint)[1])
    assert main(["chat", "--checkpoint", str(tmp_path / "bare")]) == 2
    assert "the checkpoint has no tokenizer" in capsys.readouterr().err
