"""`qa-jax score`, and `qa-jax evaluate --benchmark` before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax.cli import main
from tests.evaluate.layouts.data import Clips, librispeech

pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed")


def test_from_clips_to_reports(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    librispeech(data, Clips(tmp_path / "clips"))
    evaluate = ["evaluate", "--checkpoint", str(tiny_checkpoint), "--benchmark", "librispeech",
                "--data", str(data), "--subset", "test-clean", "--max-new-tokens", "3"]  # fmt: skip
    assert main([*evaluate, "--html", "page.html", "--json", "scores.json"]) == 0
    told = capsys.readouterr().out
    assert (
        "4 answers in librispeech.predictions.jsonl" in told
        and " 1.6 " in told
        and "reported: report" in told
    )
    assert "times real time" in told and "report in page.html" in told
    assert Path("page.html").read_text().startswith("<!doctype html>")
    whole = json.loads(Path("scores.json").read_text())["scores"][0]

    # In parts, by two processes, and then together.
    for part in (1, 2):
        output = ["--output", f"part-{part}.jsonl", "--part", f"{part}/2"]
        assert main([*evaluate, *output]) == 0
        assert "score all parts together" in capsys.readouterr().out
    assert main(["score", "part-*.jsonl", "--json", "parts.json"]) == 0
    assert json.loads(Path("parts.json").read_text())["scores"][0] == whole
    assert main(["score", "part-1.jsonl", "part-2.jsonl", "--metric", "cer",
                 "--normalizer", "whisper", "--compare", "part-1.jsonl"]) == 2  # fmt: skip
    assert "--compare: given with --metric" in capsys.readouterr().err
    assert main(["score", "librispeech.predictions.jsonl", "--compare", "part-*.jsonl",
                 "--export", "out.jsonl", "--data", str(data)]) == 0  # fmt: skip
    told = capsys.readouterr().out
    assert "+0.00" in told and "4 rows in out.jsonl" in told
    row = json.loads(Path("out.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"id", "text", "response"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate", "--checkpoint", "x"], "neither or both of MANIFEST and --benchmark"),
        (["evaluate", "--checkpoint", "x", "--benchmark", "mmau"], "given without --data"),
        (["score", "nowhere.jsonl"], "nowhere.jsonl: is not there"),
    ],
)
def test_what_is_missing(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
