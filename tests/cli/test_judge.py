"""`qa-jax judge`: the cost is told, and nothing is asked without --yes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax.cli import main
from tests.evaluate.test_judge import Judge, rows, server  # noqa: F401


def test_the_cost_is_told_first(
    server: Judge,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, prompt, output = (tmp_path / name for name in ("a.jsonl", "p.txt", "j.jsonl"))
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    prompt.write_text("XAudioX, XQuestionX\n1: XAssistant1X\n2: XAssistant2X")
    command = ["judge", str(answers), "--output", str(output), "--url", server.url]
    assert main(command) == 2
    assert "--prompt: is needed" in capsys.readouterr().err
    command += ["--prompt", str(prompt), "--price", "10", "30"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "4 requests to gpt-4-0125-preview" in told and "at most 4096 out: at most 0.12" in told
    assert "nothing was asked; --yes asks" in told and not server.messages
    assert not output.exists()
    monkeypatch.setenv("OPENAI_API_KEY", "-")
    assert main([*command, "--yes"]) == 0
    assert len(server.messages) == 4
    assert main(["score", str(output)]) == 0
    assert main(command) == 0
    assert "0 requests to" in capsys.readouterr().out
