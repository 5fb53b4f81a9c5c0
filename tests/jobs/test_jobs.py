"""Training jobs of several processes: agreement, kills, signals."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from qa_jax import checkpoint
from tests.jobs.job import Job, close, same_bits
from tests.runs import at

KILLS = int(os.environ.get("QA_JAX_KILLS", "1"))
"""Kills of each job: 1 in a usual run, 20 for the whole claim."""


@pytest.mark.jobs
def test_processes_agree_with_one(job_settings: dict, tmp_path: Path) -> None:
    """Two and four processes over loopback, and what they saved restored by one."""
    one = Job(at(job_settings, tmp_path / "one"))
    one.run()
    for processes, devices, mesh in (
        (4, 1, {"data": 1, "fsdp": 4, "tensor": 1}),
        (2, 2, {"data": 2, "fsdp": 1, "tensor": 2}),
    ):
        job = Job(at(job_settings, tmp_path / f"of{processes}", mesh=mesh), processes, devices)
        printed = job.run()
        assert f"in {processes} process(es)" in printed
        np.testing.assert_allclose(job.losses(), one.losses(), rtol=1e-5)
        close(job.params(), one.params(), 1e-5)
    # The last step again, by one process on from what two saved.
    shutil.rmtree(job.output / "checkpoints" / "5")
    Job(at(job_settings, job.output)).run()
    np.testing.assert_allclose(job.losses(), one.losses(), rtol=1e-5)


@pytest.mark.jobs
@pytest.mark.parametrize("processes", [1, 2])
def test_resume_after_kill(job_settings: dict, tmp_path: Path, processes: int) -> None:
    """kill -9 of the process, or of one process of two: the end is the same, bit for bit."""
    job_settings["train"] |= {"steps": 16, "save_every": 1, "max_to_keep": 2}
    job_settings["mesh"]["fsdp"] = processes
    straight = Job(at(job_settings, tmp_path / "straight"), processes)
    straight.run()
    killed = Job(at(job_settings, tmp_path / "killed"), processes)
    rng, midway = random.Random(processes), 0
    for _ in range(KILLS):
        started = killed.start()
        stdout = started[0].stdout
        assert stdout is not None
        # Into the middle: after one of the first steps that it takes.
        steps = rng.randint(2, 4)
        for line in stdout:
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
def test_a_signal_to_one_process_stops_all(job_settings: dict, tmp_path: Path) -> None:
    job_settings["train"] |= {"steps": 500, "save_every": 0}
    job_settings["mesh"]["fsdp"] = 2
    job = Job(at(job_settings, tmp_path / "run"), 2)
    started = job.start()
    assert started[0].stdout is not None
    for line in started[0].stdout:
        if line.startswith("step "):
            break
    started[1].send_signal(signal.SIGTERM)
    outputs = [p.communicate(timeout=120)[0] for p in started]
    assert [p.returncode for p in started] == [0, 0], outputs
    assert "the same command resumes" in outputs[0]
    (step,) = checkpoint.CheckpointManager(job.output).all_steps()
    assert 0 < step < 500
