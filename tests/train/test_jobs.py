"""Training as it happens to people: several processes, other meshes, kills, damage, full disks."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.config import ModelConfig, to_dict
from qa_jax.errors import InputError
from qa_jax.model import Qwen2Audio, bind
from qa_jax.train import train
from qa_jax.train.objectives import next_token_loss
from qa_jax.train.run import prepare
from qa_jax.train.state import initial_params
from tests.train.jobs import Job, close, same_bits
from tests.train.runs import config, losses, one_device_mesh

KILLS = int(os.environ.get("QA_JAX_KILLS", "1"))
"""Kills of each job: 1 in a usual run, 20 for the whole claim."""


@pytest.fixture
def settings(tiny: ModelConfig, manifest: Path, tokenizer_dir: Path, tmp_path: Path) -> dict:
    return {
        "preset": "demo",
        "model": to_dict(tiny),
        "data": {"train": str(manifest), "tokenizer": str(tokenizer_dir), "buckets": {204: 8}},
        # Epsilon above rounding: where a gradient is zero but for it, Adam would take its sign.
        "optimizer": {"peak_lr": 3e-3, "warmup_steps": 2, "eps": 1e-4},
        "train": {"output_dir": str(tmp_path / "run"), "steps": 5, "log_every": 1, "save_every": 2},
        "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
    }


def at(settings: dict, output: Path, **changes: Any) -> dict:
    """The settings with another output and other values, by section."""
    raw = json.loads(json.dumps(settings))
    raw["data"]["buckets"] = {int(k): v for k, v in raw["data"]["buckets"].items()}
    raw["train"]["output_dir"] = str(output)
    for section, values in changes.items():
        raw[section] |= values
    return raw


@pytest.mark.jobs
def test_processes_agree_with_one(settings: dict, tmp_path: Path) -> None:
    """Two and four processes over loopback, and what they saved restored by one."""
    one = Job(at(settings, tmp_path / "one"))
    one.run()
    for processes, devices, mesh in (
        (4, 1, {"data": 1, "fsdp": 4, "tensor": 1}),
        (2, 2, {"data": 2, "fsdp": 1, "tensor": 2}),
    ):
        job = Job(at(settings, tmp_path / f"of{processes}", mesh=mesh), processes, devices)
        said = job.run()
        assert f"in {processes} process(es)" in said
        np.testing.assert_allclose(job.losses(), one.losses(), rtol=1e-5)
        close(job.params(), one.params(), 1e-5)
    # The last step again, by one process on from what two saved.
    shutil.rmtree(job.output / "checkpoints" / "5")
    Job(at(settings, job.output)).run()
    np.testing.assert_allclose(job.losses(), one.losses(), rtol=1e-5)


@pytest.mark.jobs
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_moment(settings: dict, tmp_path: Path, processes: int) -> None:
    """kill -9 of the process, or of one process of two: the end is the same, bit for bit."""
    settings["train"] |= {"steps": 16, "save_every": 1, "max_to_keep": 2}
    settings["mesh"]["fsdp"] = processes
    straight = Job(at(settings, tmp_path / "straight"), processes)
    straight.run()
    killed = Job(at(settings, tmp_path / "killed"), processes)
    rng, midway = random.Random(processes), 0
    for _ in range(KILLS):
        started = killed.start()
        said = started[0].stdout
        assert said is not None
        # Into the middle: after one of the first steps that it takes.
        steps = rng.randint(2, 4)
        for line in said:
            steps -= line.startswith("step ")
            if not steps:
                break
        time.sleep(rng.uniform(0.0, 0.1))
        victim = rng.choice(started)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        for other in started:
            try:
                # Processes notice that one is gone; how soon is up to jax.distributed.
                other.wait(timeout=1)
            except Exception:
                other.kill()
                other.wait()
            assert other.stdout is not None
            other.stdout.close()
        steps = checkpoint.CheckpointManager(killed.output).all_steps()
        midway += bool(steps) and steps[-1] < 16
    killed.run()
    assert same_bits(killed.params(), straight.params())
    assert killed.losses() == straight.losses()
    assert midway, "no kill came between the first checkpoint and the last"


@pytest.mark.jobs
def test_a_signal_to_one_process_stops_all(settings: dict, tmp_path: Path) -> None:
    settings["train"] |= {"steps": 500, "save_every": 0}
    settings["mesh"]["fsdp"] = 2
    job = Job(at(settings, tmp_path / "run"), 2)
    started = job.start()
    assert started[0].stdout is not None
    for line in started[0].stdout:
        if line.startswith("step "):
            break
    started[1].send_signal(signal.SIGTERM)
    said = [p.communicate(timeout=120)[0] for p in started]
    assert [p.returncode for p in started] == [0, 0], said
    assert "the same command resumes" in said[0]
    (step,) = checkpoint.CheckpointManager(job.output).all_steps()
    assert 0 < step < 500


@pytest.mark.eight_devices
def test_saved_on_eight_restored_on_fewer(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same parameters, bit for bit, and the same next loss, on 8, 2, 4 and 1 devices."""
    whole = at(settings, tmp_path / "run", mesh={"data": 2, "fsdp": 2, "tensor": 2})
    train(config(whole, "--train.steps=2"))
    devices = jax.devices()
    found = []
    for sizes in ((2, 2, 2), (1, 2, 1), (1, 2, 2), (1, 1, 1)):
        mesh = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        run = prepare(config(at(whole, tmp_path / "run", mesh=mesh)), devices[: np.prod(sizes)])
        found.append(checkpoint.load_params(tmp_path / "run", run.model_config, run.mesh))
        with jax.set_mesh(run.mesh):
            model = bind(Qwen2Audio(run.model_config))
            first = jax.tree.map(lambda x: x[0], run.data.batch(2))
            groups = run.data.num_batch_shards
            out = jax.jit(lambda p, b, m=model, g=groups: next_token_loss(m(p), b, g))(
                found[-1], first
            )
        if len(found) == 1:
            loss = float(out.loss)
        assert float(out.loss) == pytest.approx(loss, rel=1e-5)
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])


@pytest.mark.eight_devices
@pytest.mark.parametrize("change", ["packed", "unrolled", "accumulated"])
def test_the_same_updates_however_computed(settings: dict, tmp_path: Path, change: str) -> None:
    """Packed against unpacked, scanned against unrolled, accumulated against full batches: the
    gradient of a whole epoch's records, which each of them out in its own way."""
    devices = jax.devices()[:1]
    changed = {
        "packed": {"data": {"packed_length": 800, "buckets": {204: 4}}},
        "unrolled": {"model": {"unroll_layers": True}},
        "accumulated": {"data": {"buckets": {204: 4}}, "optimizer": {"grad_accum_steps": 3}},
    }[change]
    results = []
    for changes in ({"data": {"buckets": {204: 12}}}, changed):
        run = prepare(config(at(settings, tmp_path / "none", **changes)), devices)
        params = initial_params(run)
        model = bind(run.models.policy)

        def total(params: Any, batch: Any, model: Any = model) -> Any:
            out = next_token_loss(model(params), batch)
            return out.loss, out

        gradient = jax.jit(jax.grad(total, has_aux=True))
        summed: Any = None
        for step in range(run.data.steps_per_epoch):
            batch = run.data.batch(step)
            for i in range(batch.tokens.shape[0]):
                one = gradient(params, jax.tree.map(lambda x, i=i: x[i], batch))
                summed = one if summed is None else jax.tree.map(np.add, summed, one)
        results.append(summed)
    (expected, out), (found, other) = results
    assert float(other.loss) == pytest.approx(float(out.loss), rel=1e-5)
    told, wanted = other.metrics(), out.metrics()
    assert int(told["tokens"]) == int(wanted["tokens"])
    assert float(told["audio_seconds"]) == pytest.approx(float(wanted["audio_seconds"]))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max() + 1e-6


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_device_mesh(monkeypatch)
    straight = at(settings, tmp_path / "straight")
    train(config(straight))
    damaged = at(settings, tmp_path / "run")
    train(config(damaged, "--train.steps=4"))
    files = (tmp_path / "run" / "checkpoints" / "4").rglob("d/*")
    largest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.warns(
        UserWarning, match=rf"{largest.name}: is damaged: using the checkpoint before"
    ):
        train(config(damaged))
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_a_full_disk_stops_with_the_last_good_checkpoint(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_device_mesh(monkeypatch)
    full = at(settings, tmp_path / "run")
    train(config(full, "--train.steps=2"))

    class Full:
        """Orbax's checkpointer on a disk that is full from now on."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def save_checkpointables_async(self, *_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    plain = checkpoint.CheckpointManager.__init__

    def on_a_full_disk(self: checkpoint.CheckpointManager, *arguments: Any) -> None:
        plain(self, *arguments)
        self._checkpointer = Full(self._checkpointer)

    monkeypatch.setattr(checkpoint.CheckpointManager, "__init__", on_a_full_disk)
    with pytest.raises(InputError, match=r"No space left.*the last good one is step 2.*resumes"):
        train(config(full))
    monkeypatch.setattr(checkpoint.CheckpointManager, "__init__", plain)
    train(config(full))
    train(config(at(settings, tmp_path / "straight")))
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_towers_learn_at_their_own_rates(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_device_mesh(monkeypatch)
    moved = []
    for factor in (1.0, 0.1):
        run = at(
            settings, tmp_path / f"{factor}", optimizer={"lr_multipliers": {"encoder/": factor}}
        )
        before = initial_params(prepare(config(run)))
        train(config(run, "--train.steps=1", "--optimizer.warmup_steps=0"))
        after = checkpoint.load_params(
            run["train"]["output_dir"], prepare(config(run)).model_config
        )
        change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
        moved.append((change["encoder"]["conv1"]["kernel"], change["decoder"]["embed_tokens"]))
    assert moved[1][0] == pytest.approx(0.1 * moved[0][0], rel=1e-2)
    assert moved[1][1] == moved[0][1]
    with pytest.raises(InputError, match=r"optimizer\.lr_multipliers: 'encode_' matches nothing"):
        prepare(
            config(at(settings, tmp_path / "x", optimizer={"lr_multipliers": {"encode_": 0.1}}))
        )
