"""`qa-jax evaluate` on datasets of other forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qa_jax.cli import main
from tests.data.readers.forms import TEXTS


def test_a_webdataset(
    audio_files: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    shard = tmp_path / "test.tar"
    with webdataset.TarWriter(str(shard)) as writer:
        for i, text in enumerate(TEXTS):
            wav = (audio_files / f"{i}.wav").read_bytes()
            writer.write({"__key__": f"{i}", "wav": wav, "json": {"prompt": "what"}, "txt": text})
    command = ["evaluate", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "2"]
    assert main([*command, str(shard)]) == 0
    told = capsys.readouterr().out
    assert "4 answers in" in told and "WER" in told and "exact match" in told
    rows = [json.loads(x) for x in (tmp_path / "test.predictions.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == [f"{shard}:{i}" for i in range(1, 5)]
    assert [row["reference"] for row in rows] == list(TEXTS)


def test_the_output_of_a_dataset_elsewhere_is_named(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--checkpoint", str(tiny_checkpoint), "hf://owner/name"]) == 2
    assert "--output: is needed for hf://owner/name; name a local file" in capsys.readouterr().err


def test_the_page_of_a_manifest_has_its_clips(
    manifest: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [x for x in manifest.read_text().splitlines(keepends=True) if "audio" in x][:5]
    (tmp_path / "some.jsonl").write_text("".join(lines))
    command = ["evaluate", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "2"]
    command += [str(tmp_path / "some.jsonl"), "--metric", "cer", "--html", str(tmp_path / "p.html")]
    assert main(command) == 0
    assert "CER" in capsys.readouterr().out
    num_clips = sum(json.dumps(json.loads(line)).count('"audio": "') for line in lines)
    assert (tmp_path / "p.html").read_text().count("data:audio/mpeg") == num_clips > 4
