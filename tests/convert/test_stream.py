"""What streaming promises: it goes on where it stopped, checks what it reads, holds little."""

from __future__ import annotations

import errno
import json
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
import ml_dtypes
import numpy as np
import pytest
from convert_weights.shards import Shards
from safetensors.numpy import load_file

from qa_jax import checkpoint, load
from qa_jax.cli import main
from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from qa_jax.hf import table
from tests.convert.files import EMBED, FC1, HEAD, digest, tied, write


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables so large that they are converted in parts."""
    monkeypatch.setattr(table, "_LARGE", 600)


@pytest.mark.parametrize("tie", [False, True])
def test_large_tables_go_in_parts(
    tiny: ModelConfig, tmp_path: Path, blocks: None, tie: bool
) -> None:
    tensors = write(tmp_path / "hf", tied(tiny) if tie else tiny, dtype=ml_dtypes.bfloat16)
    parts = table.tensor_map(tiny)[EMBED].blocks()
    assert len(parts) > 2 and parts[-1][0].stop == tiny.text.vocab_size
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    convert_weights.to_hf(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name in (EMBED, HEAD):
        assert back[name].tobytes() == tensors[name].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_type(tiny: ModelConfig, tmp_path: Path, dtype: str) -> None:
    """float32 holds bfloat16 exactly; the other way rounds once, to nearest even."""
    target = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    source = np.float32 if dtype == "bfloat16" else ml_dtypes.bfloat16
    tensors = write(tmp_path / "hf", tiny, dtype=source)
    there = convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours", dtype)
    rows, whole = convert_weights.verify(tmp_path / "hf", tmp_path / "ours")
    assert not any(row.num_differing for row in rows) and whole == there
    assert " -> " in rows[0].dtype
    assert convert_weights.to_hf(tmp_path / "ours", tmp_path / "back") == there
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(back[n].tobytes() == a.astype(target).tobytes() for n, a in tensors.items())
    direct = convert_weights.to_hf(tmp_path / "ours", tmp_path / "other", dtype=dtype)
    assert direct == there


def test_verify_names_what_differs(
    tiny: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "hf", tiny)
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    command = ["convert", "verify", str(tmp_path / "hf"), str(tmp_path / "ours")]
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"{len(said) - 1} tensors, all bits equal; checksum of all ")
    file = tmp_path / "hf" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # the last bit of the last number
    file.write_bytes(data)
    assert main(command) == 2
    captured = capsys.readouterr()
    assert "1 elements differ" in captured.out
    assert captured.err.startswith(f"error: 1 of {len(said) - 1} tensors: differ: ")


def test_a_changed_source_is_noticed(tiny: ModelConfig, tmp_path: Path) -> None:
    """What a conversion wrote is held against its checksums when it is read again."""
    write(tmp_path / "hf", tiny)
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    convert_weights.to_hf(tmp_path / "ours", tmp_path / "back")
    file = tmp_path / "back" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"\.weight: checksum .*checksums\.json says"):
        convert_weights.to_jax(tmp_path / "back", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_hubs_checksum_is_checked(tiny: ModelConfig, tmp_path: Path) -> None:
    """The hub's cache names a file by its SHA-256, a local download notes it beside."""
    write(tmp_path / "hf", tiny)
    note = tmp_path / "hf/.cache/huggingface/download/model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"commit\n{'0' * 64}\n1.0\n")
    before = digest(tmp_path / "hf")
    with pytest.raises(InputError, match=r"model\.safetensors: SHA-256 .* the hub says 0000"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert digest(tmp_path / "hf") == before and not (tmp_path / "ours").exists()


def test_a_damaged_checkpoint_is_named(tiny: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path / "hf", tiny)
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    chunk = tmp_path / "ours/checkpoints/0/params/decoder.layers.mlp.up_proj.kernel/c/1/0/0"
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(
        InputError, match=r"decoder/layers/mlp/up_proj/kernel cannot be read .*/c/1/0/0.*Digest"
    ):
        convert_weights.to_hf(tmp_path / "ours", tmp_path / "back")
    with pytest.raises(InputError, match="cannot be restored"):
        load(tmp_path / "ours")


@pytest.mark.parametrize("fault", ["names a shard that holds it not", "leaves one out", "no map"])
def test_a_wrong_index_is_named(tiny: ModelConfig, tmp_path: Path, fault: str) -> None:
    write(tmp_path / "hf", tiny, shards=3)
    path = tmp_path / "hf" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    message = "has no weight_map"
    if fault == "leaves one out":
        del index["weight_map"][FC1]
        message = f"{FC1}: not in the index"
    elif fault == "no map":
        index = {}
    else:
        others = set(index["weight_map"].values()) - {index["weight_map"][FC1]}
        index["weight_map"][FC1] = other = min(others)
        message = f"{FC1}: not in {other}, as the index says"
    path.write_text(json.dumps(index))
    before = digest(tmp_path / "hf")
    with pytest.raises(InputError, match=message):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert digest(tmp_path / "hf") == before


def test_an_unreadable_shard_is_named(
    tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails in the middle of a file."""
    write(tmp_path / "hf", tiny)

    def fails(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    before = digest(tmp_path / "hf")
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read .*Input/output"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert digest(tmp_path / "hf") == before
    monkeypatch.undo()
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")


def test_a_full_disk_is_told_beforehand(
    tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "hf", tiny)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match="GB free"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_a_disk_that_fills_up_can_be_resumed(
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


def test_two_conversions_at_once_are_refused(tiny: ModelConfig, tmp_path: Path) -> None:
    import fcntl

    write(tmp_path / "hf", tiny)
    partial = tmp_path / ".ours.partial"
    partial.mkdir()
    held = os.open(partial, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process is converting"):
        convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    os.close(held)


def test_another_conversion_starts_anew(tiny: ModelConfig, tmp_path: Path) -> None:
    """Pieces of an older source are never mixed with a newer one."""
    partial = tmp_path / ".ours.partial"
    partial.mkdir()
    (partial / "conversion.jsonl").write_text('{"to": "jax", "files": [], "dtype": null}\n')
    (partial / "left").write_text("over")
    write(tmp_path / "hf", tiny)
    convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours" / "left").exists()


def test_killed_at_any_moment_it_resumes(tiny: ModelConfig, tmp_path: Path) -> None:
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


def test_inspect(tiny: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "hf", tiny, dtype=ml_dtypes.bfloat16, shards=3)
    whole = convert_weights.to_jax(tmp_path / "hf", tmp_path / "ours")
    for directory, kind in (("hf", "Hugging Face, 3 safetensors files"), ("ours", "step 0")):
        assert main(["inspect", str(tmp_path / directory)]) == 0
        said = capsys.readouterr().out
        assert kind in said and "bfloat16" in said and "GB" in said
        assert f"vocabulary {tiny.text.vocab_size:,}" in said
    assert whole in said
    assert main(["inspect", str(tmp_path)]) == 2
    assert "contains neither" in capsys.readouterr().err


def test_the_tables_page_is_the_table(capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", "table"]) == 0
    page = Path(__file__).parents[2] / "docs" / "tensors.md"
    assert capsys.readouterr().out == page.read_text()
    assert page.read_text().rstrip().endswith("876 tensors.")


def test_a_hub_id_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["convert", "to-jax", "nobody/nothing", str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: nobody/nothing: no such directory, and the hub's download fails"
    )
    assert error.count("\n") == 1


def test_a_trained_checkpoint_converts(tiny: ModelConfig, tmp_path: Path) -> None:
    """Steps that Orbax saved itself, in its own format, at the step asked for."""
    import jax

    write(tmp_path / "hf", tiny)
    params = load(tmp_path / "hf").params
    checkpoint.create(tmp_path / "run", tiny, None)
    steps = checkpoint.CheckpointManager(tmp_path / "run")
    steps.save(3, params)
    steps.save(7, jax.tree.map(lambda x: x + 1, params))
    steps.close()
    convert_weights.to_hf(tmp_path / "run", tmp_path / "three", step=3)
    convert_weights.to_hf(tmp_path / "run", tmp_path / "seven")
    three, seven = (load_file(tmp_path / d / "model.safetensors")[FC1] for d in ("three", "seven"))
    np.testing.assert_array_equal(three + 1, seven)
    assert not any(
        r.num_differing for r in convert_weights.verify(tmp_path / "hf", tmp_path / "three")[0]
    )
    with pytest.raises(InputError, match=r"has no step 5; choose from \[3, 7\]"):
        convert_weights.to_hf(tmp_path / "run", tmp_path / "five", step=5)
