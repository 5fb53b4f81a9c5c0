"""The self-test passes here, and fails where something is wrong."""

from __future__ import annotations

import pytest

from qa_jax import selftest
from qa_jax.cli import main
from qa_jax.model import qwen2_audio


def test_it_passes_on_eight_devices(capsys: pytest.CaptureFixture) -> None:
    assert main(["selftest"]) == 0
    said = capsys.readouterr().out
    assert "all checks passed" in said and "FAIL" not in said
    assert "mesh 2x2x2 against one device" in said


def test_it_fails_where_positions_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows whose second record goes on counting."""
    monkeypatch.setattr(
        qwen2_audio, "segment_positions", lambda s: (s > 0).astype(int).cumsum(axis=1) - 1
    )
    model = selftest._Small()
    assert model.packed() > 1e-5
