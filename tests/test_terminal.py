"""What the command-line programs share."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from qa_jax import terminal


def test_no_warning_of_several_threads_is_lost(capsys: pytest.CaptureFixture) -> None:
    def warn(number: int) -> None:
        warnings.warn(f"record {number}", stacklevel=1)

    def command() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(warn, range(20_000)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert terminal.exit_code(command) == 0
    finally:
        sys.setswitchinterval(interval)
    shown = capsys.readouterr().err.splitlines()
    assert sorted(shown) == sorted(f"warning: record {number}" for number in range(20_000))
