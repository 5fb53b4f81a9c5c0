"""Running commands that must fail."""

from __future__ import annotations

import pytest

from qa_jax.cli import main


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    """Runs a command that must fail; returns its one line of error."""
    code = main([str(a) for a in argv])
    lines = capsys.readouterr().err.splitlines(keepends=True)
    error = "".join(line for line in lines if not line.startswith("loading "))
    assert code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error
