"""Conversions that are interrupted, concurrent, or out of disk space."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import convert_weights
import pytest
from convert_weights.shards import Shards

from qa_jax import load
from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from tests.hf_files import write


def test_full_disk_is_refused_beforehand(
    tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "hf", tiny)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match="GB free"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_resume_after_full_disk(
    tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "hf", tiny)
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    written: list[str] = []
    plain = Shards.write

    def fills(self: Shards, name: str, parts: Any) -> None:
        if len(written) == 10:
            # The device that is always full: the system's own error.
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
        plain(self, name, parts)
        written.append(name)

    monkeypatch.setattr(Shards, "write", fills)
    with pytest.raises(InputError, match=r"No space left on device.*it resumes"):
        convert_weights.to_hf(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    monkeypatch.undo()
    again: list[str] = []

    def counts(self: Shards, name: str, parts: Any) -> None:
        plain(self, name, parts)
        again.append(name)

    monkeypatch.setattr(Shards, "write", counts)
    convert_weights.to_hf(tmp_path / "ours", tmp_path / "back")
    assert again and not set(again) & set(written[:9]), "what was done is not done again"
    assert not any(
        r.num_differing for r in convert_weights.verify(tmp_path / "hf", tmp_path / "back")[0]
    )


def test_concurrent_conversions_are_refused(tiny: ModelConfig, tmp_path: Path) -> None:
    import fcntl

    write(tmp_path / "hf", tiny)
    partial = tmp_path / ".ours.partial"
    partial.mkdir()
    lock = os.open(partial, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process is converting"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    os.close(lock)


def test_another_conversion_starts_anew(tiny: ModelConfig, tmp_path: Path) -> None:
    """Pieces of an older source are never mixed with a newer one."""
    partial = tmp_path / ".ours.partial"
    partial.mkdir()
    (partial / "conversion.jsonl").write_text('{"to": "jax", "files": [], "dtype": null}\n')
    (partial / "left").write_text("over")
    write(tmp_path / "hf", tiny)
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours" / "left").exists()


def test_resume_after_kill(tiny: ModelConfig, tmp_path: Path) -> None:
    """kill -9, ten times over both directions: nothing is accepted until it is whole."""
    write(tmp_path / "hf", tiny, shards=3)
    whole = convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    # Every tensor takes a little longer, so that there is a middle to be killed in.
    slow = (
        "import sys, time, convert_weights.job as w; add = w.Checksum.add\n"
        "def slowly(self, part):\n"
        "    print('at work', flush=True); time.sleep(0.03); add(self, part)\n"
        "w.Checksum.add = slowly\n"
        "from qa_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    rng, killed_midway = random.Random(0), 0
    for direction, source in (("to-jax", "hf"), ("to-hf", "ours")):
        dest = tmp_path / f"killed-{direction}"
        partial = tmp_path / f".{dest.name}.partial"
        command = [sys.executable, "-c", slow, "convert", direction, str(tmp_path / source)]
        for _ in range(5):
            process = subprocess.Popen([*command, str(dest)], stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            assert not dest.exists()
            killed_midway += len((partial / "conversion.jsonl").read_text().splitlines()) > 1
            for looked_at in (dest, partial):
                with pytest.raises(InputError):
                    load(looked_at)
                with pytest.raises(InputError):
                    convert_weights.describe(looked_at)
        done = subprocess.run([*command, str(dest)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert whole in done.stdout
        assert not partial.exists()
        assert not any(r.num_differing for r in convert_weights.verify(tmp_path / "hf", dest)[0])
    assert killed_midway >= 5, "too few kills came between the first tensor and the last"
