"""The self-test passes here, and fails where something is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from qa_jax.cli import main
from qa_jax.model import Qwen2Audio
from qa_jax.selftest.checks import kernel_error
from qa_jax.selftest.small_model import SmallModel


def test_it_passes_on_eight_devices(capsys: pytest.CaptureFixture) -> None:
    assert main(["selftest"]) == 0
    output = capsys.readouterr().out
    assert "all checks passed" in output and "FAIL" not in output
    assert "mesh 2x2x2 against one device" in output


def test_it_fails_where_records_see_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows as one text."""
    call = Qwen2Audio.__call__

    def as_one(self: Any, tokens: Any, segments: Any, *rest: Any, **named: Any) -> Any:
        return call(self, tokens, segments > 0, *rest, **named)

    monkeypatch.setattr(Qwen2Audio, "__call__", as_one)
    assert SmallModel().packed() > 1e-3


def test_kernels_are_checked() -> None:
    """What accelerators are asked, here with the TPU's kernel interpreted."""
    assert 0 < kernel_error("splash") < 2e-2
