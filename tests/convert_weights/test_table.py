"""docs/tensors.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from qa_jax.cli import main


def test_page_is_up_to_date(capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", "table"]) == 0
    page = Path(__file__).parents[2] / "docs" / "tensors.md"
    assert capsys.readouterr().out == page.read_text()
    assert page.read_text().rstrip().endswith("876 tensors.")
