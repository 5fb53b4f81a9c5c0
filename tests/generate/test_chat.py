"""What the terminal completes; tests/cli/test_chat.py has conversations."""

from __future__ import annotations

from pathlib import Path

import pytest

from qa_jax.generate.chat import command_completer


def test_commands_and_their_files_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    (tmp_path / "street.wav").write_bytes(b"")
    monkeypatch.chdir(tmp_path)

    def completed(text: str) -> list[str]:
        found = command_completer().get_completions(Document(text), CompleteEvent())
        return [completion.text for completion in found]

    assert completed(":sa") == [":save"]
    assert completed(":audio st") == completed(":save st") == ["reet.wav"]
    assert completed(":system st") == []
