"""The self-test passes here, and fails where something is wrong."""

from __future__ import annotations

import pytest

from qa_jax import selftest
from qa_jax.cli import main
from qa_jax.model import Qwen2Audio


def test_it_passes_on_eight_devices(capsys: pytest.CaptureFixture) -> None:
    assert main(["selftest"]) == 0
    said = capsys.readouterr().out
    assert "all checks passed" in said and "FAIL" not in said
    assert "mesh 2x2x2 against one device" in said


def test_it_fails_where_records_see_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows as one text."""
    call = Qwen2Audio.__call__
    monkeypatch.setattr(
        Qwen2Audio, "__call__", lambda self, tokens, s, *rest: call(self, tokens, s > 0, *rest)
    )
    assert selftest._Small().packed() > 1e-3
