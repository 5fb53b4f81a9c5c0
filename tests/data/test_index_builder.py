"""Building an index: resumable, and incremental."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qa_jax.cli import main
from qa_jax.data import Processor, index_builder
from qa_jax.data.index import index_path
from qa_jax.data.index_builder import build_index
from tests.data.datasets import make_dataset


def columns(manifest: Path) -> dict[str, bytes]:
    """The content of an index."""
    files = sorted(Path(index_path(manifest)).iterdir())
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_builder, "_CHUNK_LINES", 4)


def test_a_stopped_build_goes_on(manifest: Path, processor: Processor) -> None:
    build_index(manifest, processor)
    whole = columns(manifest)
    shutil.rmtree(index_path(manifest))

    def stop(done: int, size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(manifest, processor, progress=stop)
    assert list(columns_so_far(manifest)) == ["000000.npz"]
    progress: list[tuple[int, int]] = []
    summary = build_index(manifest, processor, progress=lambda *x: progress.append(x))
    # The last eight lines, of which four are like the first four.
    assert summary.num_measured == 4 and summary.num_records == 12
    assert progress[-1] == (manifest.stat().st_size,) * 2
    assert columns(manifest) == whole


def columns_so_far(manifest: Path) -> list[str]:
    return sorted(path.name for path in (Path(index_path(manifest)) / "parts").iterdir())


def test_only_what_changed_is_measured_again(
    manifest: Path, audio_files: Path, processor: Processor, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(3):
        shutil.copy(audio_files / f"{i}.wav", clips / f"{i}.wav")
    path = tmp_path / "own.jsonl"
    rows = [{"audio": f"clips/{i}.wav", "text": "seven"} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert build_index(path, processor).num_measured == 3
    assert build_index(path, processor).num_measured == 0
    shutil.copy(audio_files / "3.wav", clips / "1.wav")
    assert build_index(path, processor).num_measured == 1
    path.write_text('{"text": "one"}\n' + path.read_text())
    assert build_index(path, processor).num_measured == 1
    assert build_index(path, processor, long_audio="truncate").num_measured == 4
    build_index(path, processor)
    (example,) = [e for e in make_dataset(path, processor).examples if "1.wav" in str(e.record.raw)]
    shutil.rmtree(index_path(path))
    assert example in list(make_dataset(path, processor).examples)


def test_data_index(
    manifest: Path,
    tokenizer_dir: Path,
    processor: Processor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["data", "index", str(manifest), "--tokenizer", str(tokenizer_dir)]
    assert main(command) == 0
    assert "12 usable records (12 measured now), 0 unusable" in capsys.readouterr().out
    assert len(make_dataset(manifest, processor).examples) == 12
    manifest.write_text(manifest.read_text() + '{"audio": "none.wav", "text": "one"}\n')
    assert main(command) == 2
    printed = capsys.readouterr().out
    assert "manifest.jsonl:13: " in printed and "none.wav: no such file" in printed
    assert "12 usable records (0 measured now), 1 unusable" in printed
