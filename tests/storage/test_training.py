"""Training from and to object storage, with faults: an emulator on loopback answers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from qa_jax import checkpoint, load
from qa_jax.checkpoint import load_adapter
from qa_jax.checkpoint.directory import copy_tokenizer_files
from qa_jax.config import DataConfig, ModelConfig
from qa_jax.data import Processor, Tokenizer, TrainDataset, load_tokenizer
from qa_jax.data.audio import clip_num_samples, load_audio
from qa_jax.data.index_builder import build_index
from qa_jax.data.manifest import read_manifest
from qa_jax.data.shard import shard
from qa_jax.errors import InputError
from qa_jax.paths import as_path, join, parent, read_bytes
from qa_jax.terminal import RESTART
from qa_jax.train.metrics import read_metrics
from qa_jax.train.run import prepare
from tests import hf_files
from tests.jobs.job import Job, same_bits, wait_for_steps
from tests.runs import at, config
from tests.storage.emulator import Emulator, emulator

KILLS = int(os.environ.get("QA_JAX_KILLS", "1"))
READERS = int(os.environ.get("QA_JAX_READERS", "1"))
"""Starts of each of four commands that read a run: 25 for the whole claim."""


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Emulator]]:
    """An emulator that answers every seventh request with 503."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    with emulator(fail_every=7) as (found, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield found


def put(storage: type[Emulator], directory: Path, name: str) -> str:
    """Copies a local directory into the bucket."""
    for path in directory.rglob("*"):
        if path.is_file():
            key = f"{name}/{path.relative_to(directory).as_posix()}"
            storage.objects[key] = (path.read_bytes(), 1)
    return f"gs://test/{name}"


@pytest.mark.jobs
@pytest.mark.parametrize("processes", [2] if KILLS == 1 else [1, 2])
def test_training_in_object_storage(
    storage: type[Emulator], job_settings: dict, tmp_path: Path, processes: int
) -> None:
    """Shards, tokenizer, checkpoints and metrics in a bucket, kill -9 at random moments: the end is
    that of a run on local files, bit for bit."""
    job_settings["train"] |= {"steps": 8, "save_every": 4, "max_to_keep": 2}
    job_settings["mesh"]["fsdp"] = processes
    straight = Job(at(job_settings, tmp_path / "straight"), processes)
    straight.run()
    shard(job_settings["data"]["train"], tmp_path / "shards")
    data = put(storage, tmp_path / "shards", "shards")
    tokenizer = put(storage, Path(job_settings["data"]["tokenizer"]), "tokenizer")
    remote = {"train": f"{data}/manifest.jsonl", "tokenizer": tokenizer}
    recipe = at(job_settings, tmp_path / "recipe", data=remote)
    job = Job(recipe, processes)
    job.output_dir = "gs://test/run"
    rng = random.Random(processes)
    for _ in range(KILLS):
        started = job.start()
        wait_for_steps(started[0], rng.randint(1, 3))
        time.sleep(rng.uniform(0, 0.5))
        rng.choice(started).kill()
        for process in started:
            process.kill()
            process.communicate()
    job.run()
    assert not (tmp_path / "gs:").exists() and not Path("gs:").exists()
    assert same_bits(job.params(), straight.params())
    assert job.losses() == straight.losses()
    names = {name.partition("/")[2] for name in storage.objects if name.startswith("run/")}
    assert {"config.yaml", "run.yaml", "metrics.jsonl", "sentencepiece.model"} <= names
    assert any(name.startswith("tensorboard/") for name in names)
    assert storage.requests > 100


def test_every_path_in_object_storage(
    storage: type[Emulator],
    job_settings: dict,
    tiny_with_text: ModelConfig,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    """Base models of both layouts, adapters, compiled programs and a profile in a bucket: as with
    local files, bit for bit."""
    hf_files.write(tmp_path / "hf", tiny_with_text)
    copy_tokenizer_files(tiny_checkpoint, tmp_path / "hf")
    del job_settings["model"], job_settings["preset"]
    job_settings["mesh"]["fsdp"] = 1
    job_settings["train"] |= {"steps": 3, "save_every": 2}
    storage.fail_every = 50  # the other trainings have many faults
    rank_two = {"target_modules": ["decoder/.*_proj"], "rank": 2, "base_dtype": "float32"}
    for name, directory in (("base", tiny_checkpoint), ("hf", tmp_path / "hf")):
        remote = put(storage, directory, name)
        adapters = []
        for place, init in (("local", str(directory)), ("gs", remote)):
            recipe = {**at(job_settings, tmp_path / f"{place}-{name}"), "lora": rank_two}
            recipe["train"]["init_from"] = init
            job = Job(recipe)
            if place == "gs":
                job.output_dir = f"gs://test/adapter-{name}"
                programs = "--train.compile_cache_dir=gs://test/programs"
                job.run(programs, "--train.profile=[2, 3]")
            else:
                job.run()
            adapters.append(load_adapter(job.output_dir)[0].params)
        jax.tree.map(np.testing.assert_array_equal, *adapters)
        written = [x.partition("/")[2] for x in storage.objects if x.startswith(f"adapter-{name}/")]
        assert any(x.startswith("profile/") for x in written), written
    assert any(x.startswith("programs/") for x in storage.objects)
    # An adapter in a bucket over a base in a bucket: to go on from, and to load.
    merged = Job(at(job_settings, tmp_path / "merged"))
    merged.run("--train.init_from=gs://test/adapter-base", "--train.steps=1")
    loaded = [
        load(base, adapter=adapter).params
        for base, adapter in (
            ("gs://test/base", "gs://test/adapter-base"),
            (tiny_checkpoint, tmp_path / "local-base"),
        )
    ]
    jax.tree.map(np.testing.assert_array_equal, *loaded)


@pytest.mark.jobs
def test_readers_during_saves(job_settings: dict, audio_files: Path, tmp_path: Path) -> None:
    """Commands that read a run while it saves each step: every reader right, every save whole."""
    job_settings["train"] |= {"steps": 100_000, "save_every": 1, "max_to_keep": 100_000}
    job_settings["mesh"]["fsdp"] = 1
    job = Job(at(job_settings, tmp_path / "run"), 1)
    (started,) = job.start()
    wait_for_steps(started, 2)
    # Its output goes on, but is not read.
    threading.Thread(target=lambda: list(started.stdout or ()), daemon=True).start()
    model = ["--checkpoint", str(job.output), "--max-new-tokens", "2"]
    # Records of text alone have no prompt to answer.
    asked = tmp_path / "asked.jsonl"
    lines = Path(job_settings["data"]["train"]).read_text().splitlines(keepends=True)
    asked.write_text("".join(line for line in lines if not line.startswith('{"text"')))
    commands = [
        ["inspect", str(job.output)],
        ["generate", *model, "--audio", str(audio_files / "0.wav")],
        ["evaluate", *model, str(asked), "--output", str(tmp_path / "{i}.jsonl")],
        ["convert", "to-hf", str(job.output), str(tmp_path / "hf{i}")],
    ]
    code = (
        "import sys\nfrom qa_jax.cli import main\n"
        f"for i in range({READERS}):\n"
        "    code = main([x.format(i=i) for x in sys.argv[1:]])\n"
        "    if code: sys.exit(f'{sys.argv[1]}, start {i}: exit code {code}')\n"
    )
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", code, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "XLA_FLAGS": ""},
        )
        for command in commands
    ]
    outputs = [reader.communicate()[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0] * 4, "\n".join(outputs)
    assert started.poll() is None, "the training ended before the readers"
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=300) == RESTART
    steps = checkpoint.all_steps(job.output)
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > READERS
    config = checkpoint.read_config(job.output)
    for step in steps:
        params = checkpoint.load_params(job.output, config, step=step)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert len(list(tmp_path.glob("hf*/model*.safetensors"))) >= READERS


def test_data_in_object_storage(
    storage: type[Emulator], settings: dict, audio_files: Path, tmp_path: Path
) -> None:
    """A manifest with its clips beside it, and one request for each clip that is read."""
    shutil.copy(audio_files / "0.wav", tmp_path / "a.wav")
    (tmp_path / "train.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "seven"}) + "\n")
    remote = put(storage, tmp_path, "data")
    (record,) = read_manifest(f"{remote}/train.jsonl")
    assert record.base == remote and record.source == f"{remote}/train.jsonl:1"
    assert clip_num_samples("a.wav", record.base) == clip_num_samples(audio_files / "0.wav")
    storage.fail_every, before = 0, storage.requests
    loaded = load_audio("a.wav", base=record.base)
    assert storage.requests - before <= 2
    np.testing.assert_array_equal(loaded, load_audio(audio_files / "0.wav"))
    with pytest.raises(InputError, match=r"gs://test/data/b\.wav: no such file"):
        load_audio("b.wav", base=record.base)
    with pytest.raises(InputError, match=r"gs://test/none\.jsonl: not readable"):
        read_manifest("gs://test/none.jsonl")


def test_other_object_storage_is_data_only(settings: dict, tmp_path: Path) -> None:
    """s3:// is refused as output before anything starts; data is read through fsspec, here its
    file system in memory."""
    import fsspec

    with pytest.raises(InputError, match=r"s3://bucket/run: s3:// is not supported here"):
        prepare(config(settings, "--train.output_dir=s3://bucket/run", "--mesh.fsdp=-1"))
    memory = fsspec.filesystem("memory")
    with memory.open("memory://bucket/a.wav", "wb") as file:
        soundfile.write(file, np.zeros(16_000, np.float32), 16_000, format="WAV")
    assert load_audio("a.wav", base="memory://bucket").shape == (16_000,)


def test_paths() -> None:
    assert isinstance(as_path("runs/a"), Path) and as_path("file:///a/b") == Path("/a/b")
    assert join("gs://b/x", "a.wav") == "gs://b/x/a.wav" and join("gs://b/x", "/a.wav") == "/a.wav"
    assert join("/data", "gs://b/a.wav") == "gs://b/a.wav" and join("/data", "/a.wav") == "/a.wav"
    assert parent("gs://b/x/m.jsonl") == "gs://b/x" and parent("x/m.jsonl") == "x"
    with pytest.raises(FileNotFoundError):
        read_bytes("none")
    assert read_metrics("none/metrics.jsonl") == []


def test_sharding_in_object_storage(
    storage: type[Emulator], settings: dict, audio_files: Path, tmp_path: Path
) -> None:
    """From a bucket into a bucket, with faults: the objects are the files of local shards."""
    for i in range(3):
        shutil.copy(audio_files / f"{i}.wav", tmp_path / f"{i}.wav")
    rows = [{"audio": f"{i % 3}.wav", "text": f"number {i}"} for i in range(9)]
    rows[4]["audio"] = "absent.wav"
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    remote = put(storage, tmp_path, "data")
    storage.fail_every = 40  # each fault is some waiting
    found = shard(f"{remote}/m.jsonl", "gs://test/packed", records_per_shard=4, num_processes=1)
    assert found.num_clips == 8 and "absent.wav: no such file" in found.errors[0]
    shard(tmp_path / "m.jsonl", tmp_path / "packed", records_per_shard=4, num_processes=1)
    for name in ("clips-00001.array_record", "manifest.jsonl"):
        local = (tmp_path / "packed" / name).read_bytes()
        assert storage.objects[f"packed/{name}"][0] == local
    (record, *_) = read_manifest("gs://test/packed/manifest.jsonl")
    assert load_audio(record.prompt.audio[0], base=record.base).size
    build_index(tmp_path / "packed" / "manifest.jsonl", Processor(load_tokenizer_of(settings)))
    index = tmp_path / "packed" / "manifest.jsonl.index"
    put(storage, index, f"packed/{index.name}")
    config = DataConfig(train="gs://test/packed/manifest.jsonl", buckets={204: 2})
    data = TrainDataset(config, Processor(load_tokenizer_of(settings)))
    assert len(data.examples) == 8 and data.batch(0).waveform is not None


def load_tokenizer_of(settings: dict) -> Tokenizer:
    tokenizer = load_tokenizer(settings["data"]["tokenizer"])
    assert tokenizer is not None
    return tokenizer
