"""The table in the terminal, and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax.evaluate import compare_answers, score
from qa_jax.evaluate.report import print_differences, print_table, write_json

ROWS = [
    {"id": str(i), "subset": "zh", "benchmark": "fleurs", "language": "zh", "reference": "今天好",
     "prediction": "今天很好" if i else "今天好"}
    for i in range(3)
]  # fmt: skip
ROWS.append({"id": "9", "subset": "zh", "benchmark": "fleurs", "reference": "x", "error": "broken"})


def test_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = {"audio_seconds": 7200.0, "answer_seconds": 3600.0, "rtfx": 2.0, "device": "8 x cpu"}
    print_table(score(ROWS), run)
    found = capsys.readouterr().out
    assert "FLEURS" in found and "22.22" in found and "0.00 to 33.33" in found
    assert " 7.5 " in found and "reported: report" in found
    assert "2.00 h of audio in 3600 s: 2.0 times real time on 8 x cpu" in found
    assert "it counts characters" in found
    print_differences(compare_answers(ROWS, ROWS))
    assert "+0.00" in capsys.readouterr().out


def test_json(tmp_path: Path) -> None:
    write_json(str(tmp_path / "s.json"), score(ROWS), {"rtfx": 2.0})
    found = json.loads((tmp_path / "s.json").read_text())
    (own,) = found["scores"]
    assert own["value"] == pytest.approx(200 / 9) and own["interval"][0] == 0
    assert (own["num_rows"], own["num_errors"]) == (3, 1) and found["run"] == {"rtfx": 2.0}
    assert own["reported"]["report"] == 7.5
