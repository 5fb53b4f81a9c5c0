"""Training jobs of several processes: agreement, kills, signals."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qa_jax import checkpoint
from qa_jax.terminal import RESTART
from tests.jobs.job import Job, close, same_bits, start_processes, wait_for_steps
from tests.runs import at

KILLS = int(os.environ.get("QA_JAX_KILLS", "1"))
"""Kills of each job: 1 in a usual run, 20 for the whole claim."""
PROCESSES = int(os.environ.get("QA_JAX_PROCESSES", "4"))
"""The largest job: 4 processes in a usual run, 8 for the whole claim."""


@pytest.mark.jobs
def test_processes_agree_with_one(job_settings: dict, tmp_path: Path) -> None:
    """Two, four and (with QA_JAX_PROCESSES=8) eight processes over loopback, and what they saved
    restored by one."""
    one = Job(at(job_settings, tmp_path / "one"))
    one.run()
    for processes, devices, mesh in (
        (8, 1, {"data": 2, "fsdp": 4, "tensor": 1}),
        (4, 1, {"data": 1, "fsdp": 4, "tensor": 1}),
        (2, 2, {"data": 2, "fsdp": 1, "tensor": 2}),
    ):
        if processes > PROCESSES:
            continue
        job = Job(at(job_settings, tmp_path / f"of{processes}", mesh=mesh), processes, devices)
        printed = job.run()
        assert f"in {processes} process(es)" in printed
        np.testing.assert_allclose(job.losses(), one.losses(), rtol=1e-6)
        close(job.params(), one.params(), 1e-5)
    # The last step again, by one process on from what two saved.
    shutil.rmtree(job.output / "checkpoints" / "5")
    Job(at(job_settings, job.output)).run()
    np.testing.assert_allclose(job.losses(), one.losses(), rtol=1e-5)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.jobs)])
def test_resume_after_kill(job_settings: dict, tmp_path: Path, processes: int) -> None:
    """kill -9 of the process, or of one process of two: the end is the same, bit for bit."""
    steps = 8 + 4 * KILLS
    job_settings["train"] |= {"steps": steps, "save_every": 1, "max_to_keep": 2}
    job_settings["mesh"]["fsdp"] = processes
    straight = Job(at(job_settings, tmp_path / "straight"), processes)
    straight.run()
    killed = Job(at(job_settings, tmp_path / "killed"), processes)
    rng = random.Random(processes)
    for _ in range(KILLS):
        before = max([0, *checkpoint.all_steps(killed.output)])
        started = killed.start()
        # Into the middle: after a save of its own, at any moment of the steps and saves after it.
        while max([0, *checkpoint.all_steps(killed.output)]) <= before:
            assert started[0].poll() is None, started[0].communicate()[0]
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.1))
        victim = rng.choice(started)
        victim.kill()
        for process in started:
            try:
                # Processes notice that one is gone; how soon is up to jax.distributed.
                process.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        saved = checkpoint.all_steps(killed.output)
        assert before < max(saved) < steps, "the kill came after the last step"
    killed.run()
    assert same_bits(killed.params(), straight.params())
    assert killed.losses() == straight.losses()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.jobs)])
def test_a_signal_to_one_process_stops_all(
    job_settings: dict, tmp_path: Path, processes: int
) -> None:
    """SIGTERM to one process: all save the same step, within one step, although nothing is logged
    then; the resumed run ends with the same bits."""
    job_settings["train"] |= {"steps": 300, "save_every": 0, "log_every": 1}
    job_settings["mesh"]["fsdp"] = processes
    job = Job(at(job_settings, tmp_path / "run"), processes)
    started = job.start()
    seen = wait_for_steps(started[0], 1)
    started[-1].send_signal(signal.SIGTERM)
    outputs = [p.communicate(timeout=600)[0] for p in started]
    assert [p.returncode for p in started] == [RESTART] * processes, outputs
    assert "the same command resumes" in outputs[0]
    (step,) = checkpoint.all_steps(job.output)
    assert seen <= step < 300
    # The steps after the one that was printed last before the signal: it, the next, the last.
    assert len(job.losses()) == step
    shorter = [f"--train.steps={step + 3}"]
    job.run(*shorter)
    straight = Job(at(job_settings, tmp_path / "straight", train={"steps": 300}), processes)
    straight_started = straight.start()
    wait_for_steps(straight_started[0], step + 3)
    for process in straight_started:
        process.kill()
        process.communicate()
    # The learning-rate schedule looks at train.steps, so that only the shared steps compare.
    assert job.losses()[:step] == straight.losses()[:step]


@pytest.mark.jobs
def test_one_unreadable_clip_stops_all_at_once(
    job_settings: dict, audio_files: Path, tmp_path: Path
) -> None:
    """A clip that one process cannot decode, found in the middle: both stop and name it."""
    bad = tmp_path / "bad.wav"
    good = (audio_files / "5.wav").read_bytes()
    bad.write_bytes(good)
    manifest = tmp_path / "two.jsonl"
    rows = [{"audio": str(audio_files / f"{i % 5}.wav"), "text": "seven"} for i in range(15)]
    rows.append({"audio": str(bad), "text": "eight"})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples, rate = soundfile.read(bad, dtype="float32")
    samples[100] = np.nan
    soundfile.write(bad, samples, rate, subtype="FLOAT")
    job_settings["data"]["train"] = str(manifest)
    job_settings["train"] |= {"steps": 40, "save_every": 1}
    job_settings["mesh"]["fsdp"] = 2
    job = Job(at(job_settings, tmp_path / "run"), 2)
    began = time.monotonic()
    started = job.start()
    outputs = [p.communicate(timeout=600)[0] for p in started]
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert [p.returncode for p in started] == [2, 2], outputs
    assert all("two.jsonl:16: " in output and "NaN" in output for output in outputs), outputs
    assert any("error: process " in output for output in outputs)
    # Everything before the step that could not be read is saved, and nothing after it.
    assert len(job.losses()) == max([0, *checkpoint.all_steps(job.output)])


def test_processes_with_different_data_do_not_start(job_settings: dict, tmp_path: Path) -> None:
    """One host's manifest lacks a record: nothing is trained, and both say who has what."""
    manifest = Path(job_settings["data"]["train"])
    job_settings["mesh"]["fsdp"] = 2
    job = Job(at(job_settings, tmp_path / "run"), 2)
    other = tmp_path / "other" / manifest.name
    other.parent.mkdir()
    other.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    started = job.start(per_process=[[], [f"--data.train={other}"]])
    outputs = [p.communicate(timeout=600)[0] for p in started]
    assert [p.returncode for p in started] == [2, 2], outputs
    for output in outputs:
        assert "the number of usable records: process 1 on " in output, output
        assert "has 11, process 0 on" in output
    assert not checkpoint.all_steps(job.output)


def test_an_output_directory_of_one_host_is_refused(job_settings: dict, tmp_path: Path) -> None:
    job_settings["mesh"]["fsdp"] = 2
    job = Job(at(job_settings, tmp_path / "run"), 2)
    elsewhere = tmp_path / "elsewhere"
    began = time.monotonic()
    started = job.start(per_process=[[], [f"--train.output_dir={elsewhere}"]])
    outputs = [p.communicate(timeout=600)[0] for p in started]
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert [p.returncode for p in started] == [2, 2], outputs
    assert all("name a directory that all hosts share" in output for output in outputs), outputs


@pytest.mark.jobs
def test_a_lost_process_ends_the_others(job_settings: dict, tmp_path: Path) -> None:
    """kill -9 of one process: the other ends by itself, with an exit code that means restart (or
    that of JAX's own abort), and says what to do."""
    job_settings["train"] |= {"steps": 500, "save_every": 1}
    job_settings["mesh"]["fsdp"] = 2
    job = Job(at(job_settings, tmp_path / "run"), 2)
    started = job.start()
    wait_for_steps(started[0], 2)
    began = time.monotonic()
    started[1].kill()
    output = started[0].communicate(timeout=600)[0]
    print(f"ended after {time.monotonic() - began:.1f} s")
    started[1].communicate()
    assert started[0].returncode in (RESTART, -signal.SIGABRT), output
    if started[0].returncode == RESTART:
        assert "error: lost another process" in output
        assert "the same command resumes from the last save" in output


@pytest.mark.jobs
def test_selftest_of_several_processes(tmp_path: Path) -> None:
    """As on a pod, a process a host: it passes, and names the host and device that disagrees. In a
    usual run, without the checks that every process makes for itself."""
    whole = [sys.executable, "-m", "qa_jax.cli", "selftest", "--directory", str(tmp_path)]
    start = "import sys, time, jax\nfrom qa_jax import cli\nfrom qa_jax.selftest import checks\n"
    between = (
        "for name in ('bucket', 'single_row', 'cached', 'packed', 'unrolled', 'recomputed',"
        " 'accumulated', 'bfloat16'):\n"
        "    setattr(checks.SmallModel, name, lambda self: 0.0)\n"
    )
    one_mesh = "checks.meshes = lambda n: [(1, n, 1)]\n"
    one_mesh = f"{start}{between}{one_mesh}sys.exit(cli.main({whole[3:]}))\n"
    command = whole if PROCESSES > 4 else [sys.executable, "-c", one_mesh]
    processes = start_processes(command, 2, 2)
    outputs = [p.communicate(timeout=600)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert "all checks passed" in outputs[0] and "FAIL" not in outputs[0]
    assert "mesh 1x4x1 against one device" in outputs[0]
    assert "a checkpoint restored on other meshes" in outputs[0]
    broken = (
        f"{start}{between}"
        "plain = checks.SmallModel.devices\n"
        "def devices(self):\n"
        "    if jax.process_index() == 1:\n"
        "        time.sleep(35)\n"  # JAX's CPU backend waits 30 s for a process to connect
        "        norm = self.params['decoder']['norm']\n"
        "        norm['scale'] = 2 * norm['scale']\n"
        "    return plain(self)\n"
        "checks.SmallModel.devices = devices\n"
        "checks.meshes = lambda n: []\n"
        "sys.exit(cli.main(['selftest']))\n"
    )
    processes = start_processes([sys.executable, "-c", broken], 2, 2)
    outputs = [p.communicate(timeout=600)[0] for p in processes]
    assert [p.returncode for p in processes] == [1, 1], outputs
    (failed,) = [line for line in outputs[0].splitlines() if line.startswith("FAIL")]
    assert "every device computes the same bits" in failed
    assert re.search(r"largest: process [01] on \S+, cpu:\d", failed), failed
