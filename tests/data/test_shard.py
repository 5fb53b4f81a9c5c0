"""ArrayRecord shards of a dataset."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qa_jax.cli import main
from qa_jax.data import Processor, load_audio, read_manifest
from qa_jax.data.shard import shard
from qa_jax.errors import InputError
from tests.data.datasets import make_dataset

KILLS = int(os.environ.get("QA_JAX_KILLS", "2"))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_sharded_manifest_gives_the_same_batches(
    manifest: Path, processor: Processor, tmp_path: Path
) -> None:
    packed_dir = tmp_path / "packed"
    summary = shard(manifest, packed_dir, records_per_shard=5, audio_format="keep", num_processes=1)
    assert summary == (10, 3, [])
    times = {path: path.stat().st_mtime_ns for path in packed_dir.glob("clips-*")}
    again = shard(manifest, packed_dir, records_per_shard=5, audio_format="keep")
    assert again == summary and all(p.stat().st_mtime_ns == t for p, t in times.items())
    plain, packed = (make_dataset(m, processor) for m in (manifest, packed_dir / "manifest.jsonl"))
    for step in range(plain.steps_per_epoch):
        for x, y in zip(plain.batch(step), packed.batch(step), strict=True):
            np.testing.assert_array_equal(x, y)
    with pytest.raises(InputError, match="contains shards made otherwise"):
        shard(manifest, packed_dir)
    with pytest.raises(InputError, match="exists and is not empty"):
        shard(manifest, tmp_path)
    (packed_dir / "clips-00001.array_record").unlink()
    with pytest.raises(InputError, match=r"clips-00001\.array_record: no such shard"):
        for step in range(packed.steps_per_epoch):
            make_dataset(packed_dir / "manifest.jsonl", processor).batch(step)


def test_clips_become_flac_at_16_khz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", 0.1 * rng.standard_normal((30_000, 2)), 44_100)
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "text": "one"}) + "\n")
    shard(path, tmp_path / "shards")
    (record,) = read_manifest(tmp_path / "shards" / "manifest.jsonl")
    (clip,) = record.prompt.audio
    original = load_audio(tmp_path / "a.wav")
    assert clip == f"clips-00000.array_record#0,{original.size}"
    np.testing.assert_allclose(load_audio(clip, base=record.base), original, atol=2**-15)


def damaged(audio_files: Path, tmp_path: Path) -> Path:
    """A hundred records, of which six are unusable, each in its own way."""
    good = (audio_files / "0.wav").read_bytes()
    files = {
        "cut.flac": (audio_files / "0.wav").read_bytes()[:40],
        "empty.wav": b"",
        "text.wav": b"this is no sound",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    samples = np.zeros(16_000, np.float32)
    samples[5] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * 16_000), 16_000)
    (tmp_path / "good.wav").write_bytes(good)
    bad = ["cut.flac", "empty.wav", "text.wav", "nan.wav", "long.wav", "absent.wav"]
    rows = [{"audio": "good.wav", "text": f"number {i}"} for i in range(100)]
    for i, name in enumerate(bad):
        rows[3 + 16 * i]["audio"] = name
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_damaged_clips_are_named(
    audio_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged(audio_files, tmp_path)
    command = ["data", "shard", str(path), str(tmp_path / "shards"), "--records-per-shard", "30"]
    assert main([*command, "--processes", "1"]) == 2
    printed = capsys.readouterr().out
    assert "94 clips in 4 shards, 6 records left out" in printed
    errors = [json.loads(x) for x in (tmp_path / "shards/errors.jsonl").read_text().splitlines()]
    assert [source.split(": ")[0] for source, _, _ in errors] == [
        f"{path}:{4 + 16 * i}" for i in range(6)
    ]
    causes = ["not readable", "not readable", "not readable", "NaN", "over the model's 30 s"]
    for (source, cause, remedy), expected in zip(errors, [*causes, "no such file"], strict=True):
        assert expected in cause and remedy and source in printed


def test_killed_and_run_again(audio_files: Path, tmp_path: Path) -> None:
    """By several processes, with SIGKILL at random moments: the bytes of one process at once."""
    path = damaged(audio_files, tmp_path)
    shard(path, tmp_path / "one", records_per_shard=7, num_processes=1)
    arguments = [str(path), str(tmp_path / "killed"), "--records-per-shard", "7"]
    command = [sys.executable, "-m", "qa_jax.cli", "data", "shard", *arguments, "--processes", "2"]
    rng = random.Random(0)
    for _ in range(KILLS):
        started = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        written = len(list((tmp_path / "killed").glob("*.array_record")))
        while started.poll() is None:
            if len(list((tmp_path / "killed").glob("*.array_record"))) > written:
                time.sleep(rng.uniform(0, 0.05))
                break
            time.sleep(0.01)
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    killed = {k: v for k, v in contents(tmp_path / "killed").items() if not k.endswith(".partial")}
    assert killed == contents(tmp_path / "one")


def test_by_apache_beam(audio_files: Path, tmp_path: Path) -> None:
    pytest.importorskip("apache_beam", reason="apache-beam is not installed")
    path = damaged(audio_files, tmp_path)
    shard(path, tmp_path / "one", records_per_shard=30, num_processes=1)
    options = ["--runner=DirectRunner", "--direct_num_workers=2"]
    options += ["--direct_running_mode=multi_processing"]
    summary = shard(path, tmp_path / "beam", records_per_shard=30, beam_options=options)
    assert summary.num_clips == 94 and len(summary.errors) == 6
    assert contents(tmp_path / "beam") == contents(tmp_path / "one")


def test_beam_is_asked_for(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"--runner: needs Apache Beam; pip install"):
        shard(manifest, tmp_path / "shards", beam_options=["--runner=DirectRunner"])
