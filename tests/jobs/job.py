"""`qa-jax train` as a job of its own, in one process or several, to be killed and compared."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qa_jax import checkpoint
from qa_jax.train.metrics import read_metrics
from qa_jax.trees import flatten_dict


class Job:
    """A training command.

    Args:
        settings: of the run; written beside its output as a recipe.
        processes: how many, joined over loopback.
        devices: forced host devices of each.
    """

    def __init__(self, settings: dict[str, Any], processes: int = 1, devices: int = 1) -> None:
        self.output = Path(settings["train"]["output_dir"])
        self.recipe = self.output.with_suffix(".yaml")
        self.recipe.write_text(yaml.safe_dump(settings))
        self.processes, self.devices = processes, devices
        self.output_dir = str(self.output)
        """Where the run writes, if that is not a local directory."""

    def start(
        self, *overrides: str, per_process: Sequence[Sequence[str]] = ()
    ) -> list[subprocess.Popen]:
        """Starts all processes; `per_process` are overrides of each."""
        command = [sys.executable, "-m", "qa_jax.cli", "train", "--config", str(self.recipe)]
        command.append(f"--train.output_dir={self.output_dir}")
        more = per_process or [()] * self.processes
        commands = [[*command, *overrides, *own] for own in more]
        return start_processes(commands, self.processes, self.devices)

    def run(self, *overrides: str, code: int = 0) -> str:
        """Runs to the end; returns the first process's output."""
        started = self.start(*overrides)
        outputs = [p.communicate(timeout=600)[0] for p in started]
        assert [p.returncode for p in started] == [code] * len(started), "\n".join(outputs)
        return outputs[0]

    def losses(self) -> list[float]:
        return [row["loss"] for row in read_metrics(f"{self.output_dir}/metrics.jsonl")]

    def params(self) -> dict[tuple[str, ...], np.ndarray]:
        config = checkpoint.read_config(self.output_dir)
        found = flatten_dict(checkpoint.load_params(self.output_dir, config))
        return {path: np.asarray(x) for path, x in found.items()}


def start_processes(
    command: Sequence[str] | Sequence[Sequence[str]], processes: int, devices: int
) -> list[subprocess.Popen]:
    """One command, or one for each process, joined over loopback."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"}
    started = []
    for i in range(processes):
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(i),
            }
        one = command if isinstance(command[0], str) else command[i]
        started.append(
            subprocess.Popen(
                list(map(str, one)),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=dict(environment),
            )
        )
    return started


def wait_for_steps(process: subprocess.Popen, count: int) -> int:
    """Reads a process's output until it has logged so many steps; returns the last one's number."""
    assert process.stdout is not None
    step = 0
    for line in process.stdout:
        match = re.match(r"step +(\d+) ", line)
        if match:
            step, count = int(match.group(1)), count - 1
            if not count:
                break
    return step


def same_bits(a: dict[tuple[str, ...], np.ndarray], b: dict[tuple[str, ...], np.ndarray]) -> bool:
    return set(a) == set(b) and all(a[p].tobytes() == b[p].tobytes() for p in a)


def close(
    a: dict[tuple[str, ...], np.ndarray], b: dict[tuple[str, ...], np.ndarray], rtol: float
) -> None:
    """Asserts that parameters differ by no more than `rtol` of each one's largest magnitude."""
    for path in a:
        difference = np.abs(a[path] - b[path]).max()
        assert difference <= rtol * np.abs(a[path]).max() + 1e-12, (path, difference)
